"""Linear algebra of the methods: balances, spreads and second moments, for batches and in both namespaces."""

from __future__ import annotations

from typing import Any

from rfkernels._arrays import matmul
from rfkernels.fitting.statistics import Moments
from rfkernels.variance import optimal_variance

_STEPS = 10
"""Of Newton's iteration: more than it takes for singular values that are 10⁸ apart."""

_ROUNDED = 8
"""Units of rounding, times their number, that equal vectors may lie apart from their mean, which is of their sum."""


def best_spread(xp: Any, energy: Any) -> Any:
    """Return ρ, with rows of variance (1 + ρ)/2, from λ = E z² along an axis; 1 where there is nothing to gain.

    The least point of log((1 + ρ)/(2√ρ)) + λ/ρ (FAVOR++, arXiv 2205.15317, with A = (1 − ρ)/8).
    """
    spread: Any = 2 * optimal_variance(xp.maximum(energy, 0)) - 1
    return spread


def regular(xp: Any, second: Any, given: Moments, prior: float, scale: float) -> Any:
    """Add `prior` samples that spread alike in all directions, so that a second moment is positive definite.

    They spread as much as those seen; and besides by |mean|² e^(2 − 2n), lest a few vectors be taken for certain to
    return, which no longer tells where they are once n is some dozen. Equal vectors spread by |mean|²/n², zeros by 1.
    """
    dim, eps = second.shape[-1], xp.finfo(second.dtype).eps
    count, squared = given.count, scale * xp.sum(given.mean**2, -1)
    seen, few = xp.trace(second, axis1=-2, axis2=-1), xp.exp(2 - 2 * count)
    many = xp.maximum(count, 1)
    share = xp.where(seen > (_ROUNDED * eps * many) ** 2 * squared, few, 1 / many**2)
    total = (seen + share * squared) / dim
    total = xp.where(total > 0, total, 1) * prior / (count + prior)
    return second * (count / (count + prior))[..., None, None] + total[..., None, None] * xp.eye(
        dim, dtype=second.dtype
    )


def balance(xp: Any, kind: str, first: Any, second: Any) -> tuple[Any, Any]:
    """Return T and T⁻ᵀ for second moments P of queries and Q of keys.

    In full, TᵀT is the geometric mean of P⁻¹ and Q, so that T P Tᵀ = T⁻ᵀ Q T⁻¹: with the singular value decomposition
    U S Vᵀ of P^½ Q^½, S^½ Uᵀ P^-½ is such a T (FAVOR#, arXiv 2302.00787, has this for uncentred moments). It is turned
    to be symmetric and positive, as decompositions are free to choose signs, and so that no two machines differ.
    """
    if kind == "none":
        eye = xp.eye(first.shape[-1], dtype=first.dtype)
        return eye, eye
    if kind == "diagonal":
        own, other = (xp.diagonal(x, axis1=-2, axis2=-1) ** 0.25 for x in (first, second))
        stretch = other / own
        eye = xp.eye(first.shape[-1], dtype=first.dtype)
        return stretch[..., None] * eye, (1 / stretch)[..., None] * eye
    (roots, axes), (other_roots, other_axes) = _root(xp, first), _root(xp, second)
    overlap = matmul(xp, xp.swapaxes(axes, -1, -2), other_axes)
    left, common, _ = xp.linalg.svd(roots[..., :, None] * overlap * other_roots[..., None, :])
    common = xp.maximum(common, xp.finfo(common.dtype).eps * common[..., :1])
    whitened = xp.swapaxes(axes / roots[..., None, :], -1, -2)
    matrix = matmul(xp, xp.sqrt(common)[..., :, None] * xp.swapaxes(left, -1, -2), whitened)
    matrix = matmul(xp, xp.swapaxes(_rotation(xp, matrix), -1, -2), matrix)
    return matrix, xp.swapaxes(xp.linalg.inv(matrix), -1, -2)  # an inverse to rounding: unbiased however T came out


def _rotation(xp: Any, matrix: Any) -> Any:
    """Return the orthogonal factor of a polar decomposition, by Newton's scaled iteration (Higham, 1986).

    A singular value decomposition has it, too, but no derivative where singular values are equal, as those of T are
    where queries and keys have the same moments.
    """
    for _ in range(_STEPS):
        inverse = xp.swapaxes(xp.linalg.inv(matrix), -1, -2)
        sizes = (xp.sqrt(xp.sum(x * x, (-1, -2), keepdims=True)) for x in (inverse, matrix))
        ratio = xp.sqrt(next(sizes) / next(sizes))
        matrix = (ratio * matrix + inverse / ratio) / 2
    return matrix


def _root(xp: Any, second: Any) -> tuple[Any, Any]:
    """Return roots of the eigenvalues of a positive definite matrix, and its eigenvectors in columns."""
    values, axes = xp.linalg.eigh(second)
    floor = second.shape[-1] * xp.finfo(second.dtype).eps * values[..., -1:]  # what rounding may have left of them
    return xp.sqrt(xp.maximum(values, floor)), axes


def rows_root(xp: Any, kind: str, energy: Any) -> Any:
    """Return the symmetric root of the covariance of rows, from the second moment of z."""
    dim, eye = energy.shape[-1], xp.eye(energy.shape[-1], dtype=energy.dtype)
    if kind == "unit":
        return xp.broadcast_to(eye, energy.shape)
    if kind == "isotropic":
        rho = best_spread(xp, xp.trace(energy, axis1=-2, axis2=-1) / dim)
        return xp.sqrt((1 + rho) / 2)[..., None, None] * eye
    values, axes = xp.linalg.eigh(energy)
    return matmul(xp, axes * xp.sqrt((1 + best_spread(xp, values)) / 2)[..., None, :], xp.swapaxes(axes, -1, -2))


def second_moment(xp: Any, given: Moments, centre: Any, scale: float) -> Any:
    """Return the second moment of scaled vectors about a centre."""
    apart = given.mean - centre
    covariance = given.scatter / given.count[..., None, None]
    return scale * (covariance + apart[..., :, None] * apart[..., None, :])


def apply(xp: Any, matrix: Any, vector: Any) -> Any:
    """Return the matrix times the vector."""
    return matmul(xp, matrix, vector[..., None])[..., 0]


def between(xp: Any, left: Any, matrix: Any, right: Any) -> Any:
    """Return left · matrix · rightᵀ."""
    return matmul(xp, matmul(xp, left, matrix), xp.swapaxes(right, -1, -2))
