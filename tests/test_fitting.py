"""Fitted features are unbiased whatever the data, and each method is the optimum that its paper or ours says it is."""

from __future__ import annotations

import dataclasses
import itertools
import math
from typing import Any

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

import rfkernels as rfk
from rfkernels import fitting, testing
from rfkernels.fitting import algebra, statistics

METHODS = [name for name in fitting.methods() if name != "tilted"]
SEEDS = st.integers(0, 2**32 - 1)


def hermite(nodes: int = 64) -> tuple[Any, Any]:
    """Rows and weights with Σ weights · f(rows) = E f(w), w ~ N(0, I) of two dimensions."""
    points, weights = np.polynomial.hermite_e.hermegauss(nodes)
    rows = np.stack(np.meshgrid(points, points, indexing="ij"), -1).reshape(-1, 2)
    return rows, np.outer(weights, weights).reshape(-1) / (2 * math.pi)


ROWS, WEIGHTS = hermite()


def transformed(chosen: Any, x: Any, y: Any, scale: float) -> Any:
    """Sums of the points of both sides as rows meet them: a row estimates e^(w·z)."""
    z: Any = 0.0
    for side, points in ((chosen.query, x), (chosen.key, y)):
        apart = points if side.centre is None else points - side.centre
        z = z + (math.sqrt(scale) * apart if side.matrix is None else apart @ side.matrix.T)
    return z


def nodes_of(chosen: Any) -> tuple[Any, Any]:
    """Normal rows that the proposal makes Gauss–Hermite nodes of, and weights: as exact for a wide proposal as for none."""
    rows = np.linalg.solve(chosen.proposal.root, ROWS.T).T
    density = np.exp((np.sum(ROWS**2, -1) - np.sum(rows**2, -1)) / 2)
    return rows, WEIGHTS * density / abs(np.linalg.det(chosen.proposal.root))


def sample(seed: int, length: int = 40, dim: int = 2, size: float = 0.5) -> Any:
    """Vectors of an oblique normal distribution with a mean."""
    rng = np.random.default_rng(seed)
    root = size * rng.standard_normal((dim, dim)) / math.sqrt(dim)
    return rng.standard_normal((length, dim)) @ root.T + size * rng.standard_normal(dim)


def choose(q: Any, k: Any, method: str, **options: Any) -> Any:
    if method == "tilted":
        of_q, of_k, cross = statistics.attended(q, k, options.get("scale", 1 / math.sqrt(q.shape[-1])))
        return fitting.choose(of_q, of_k, cross=cross, **options)
    return fitting.choose(fitting.moments(q), fitting.moments(k), method=method, **options)


def terms(features: Any, x: Any, y: Any) -> Any:
    """What each row alone would estimate of exp(scale x·y), relative to it: (pairs, rows)."""
    log = [rfk.transform(v, features, side=side, log=True)[0] for v, side in ((x, "query"), (y, "key"))]
    relative = np.exp(sum(log) - float(features.scale) * np.sum(x * y, -1)[:, None])
    return features.rows * relative.reshape(len(x), -1, features.rows).sum(1)


# Unbiasedness and variance --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("method", "feature_map"),
    [*((method, "positive") for method in fitting.methods()), ("affine", "hyperbolic"), ("tilted", "hyperbolic")],
)
@given(seed=SEEDS, scale=st.floats(0.1, 1.0))
def test_unbiased(method: str, feature_map: str, seed: int, scale: float) -> None:
    """E φ(x)·φ(y) = exp(scale x·y), also for points that are unlike the sample."""
    q, k, x, y = (sample(seed + i, n) for i, n in enumerate((40, 30, 2, 2)))
    chosen = choose(q, k, method, scale=scale)
    rows, weights = nodes_of(chosen)
    features = fitting.bind(chosen, rows, feature_map=feature_map)
    points = np.concatenate([x, q[:2]]), np.concatenate([y, k[:2]])
    assume(np.max(np.sum(transformed(chosen, *points, scale) ** 2, -1)) < 60)  # the nodes reach no farther
    testing.assert_moments(terms(features, *points), weights, mean=1)


@pytest.mark.parametrize("method", ["affine", "symmetric"])
def test_unbiased_with_rows_of_another_mean(method: str) -> None:
    q, k = sample(1), sample(2)
    chosen = choose(q, k, method)
    chosen = chosen._replace(proposal=chosen.proposal._replace(mean=np.array([0.3, -0.2])))
    testing.assert_moments(terms(fitting.bind(chosen, ROWS), q[:5], k[:5]), WEIGHTS, mean=1, rtol=1e-7)
    one_each = fitting.bind(
        chosen._replace(proposal=rfk.proposals.Gaussian(np.stack([chosen.proposal.root] * 2), np.zeros((2, 2)))), ROWS
    )
    assert one_each.batch == (2,)


def closed_form(chosen: Any, x: Any, y: Any, scale: float) -> Any:
    """1 + the relative variance of a row, from the distribution of rows and the transformed points."""
    z = transformed(chosen, x, y, scale)
    variances, axes = np.linalg.eigh(chosen.proposal.root @ chosen.proposal.root.T)
    rho = 2 * variances - 1
    return np.exp(np.sum(np.log((1 + rho) / (2 * np.sqrt(rho))) + (z @ axes) ** 2 / rho, -1))


@pytest.mark.parametrize("method", fitting.methods())
@given(seed=SEEDS, scale=st.floats(0.1, 1.0))
def test_the_second_moment_is_the_closed_form(method: str, seed: int, scale: float) -> None:
    q, k = sample(seed, 40, size=0.4), sample(seed + 1, 30, size=0.4)
    chosen = choose(q, k, method, scale=scale)
    rows, weights = nodes_of(chosen)
    assume(np.max(np.sum(transformed(chosen, q[:3], k[:3], scale) ** 2, -1)) < 60 / 4)
    second = closed_form(chosen, q[:3], k[:3], scale)
    testing.assert_moments(terms(fitting.bind(chosen, rows), q[:3], k[:3]), weights, mean=1, variance=second - 1)


@pytest.mark.parametrize("method", fitting.methods())
def test_the_error_is_that_of_independent_rows_and_pairs(method: str) -> None:
    """One row, and one pair ±w, integrated; a mean of n of them has an n-th of the error."""
    q, k = sample(1, 40, size=0.4), sample(2, 30, size=0.4)
    chosen = choose(q, k, method, scale=0.6)
    x, y = q[:5], k[:5]
    one, reflected = (terms(fitting.bind(chosen, rows), x, y) for rows in (ROWS, -ROWS))
    found = fitting.relative(chosen, x, y, count=7)
    testing.assert_moments(one, WEIGHTS, mean=1, variance=7 * found, rtol=1e-7)
    pairs = fitting.relative(chosen, x, y, count=6, sampler=rfk.samplers.antithetic("iid"))
    testing.assert_moments((one + reflected) / 2, WEIGHTS, mean=1, variance=3 * pairs, rtol=1e-7)
    np.testing.assert_allclose(fitting.relative(chosen, x, y, count=7, log=True), np.log(found))


def objective(chosen: Any, q: Any, k: Any, scale: float) -> float:
    """Mean over all pairs of the log of 1 + the relative variance."""
    pairs = np.repeat(q, len(k), 0), np.tile(k, (len(q), 1))
    return float(np.mean(np.log(closed_form(chosen, *pairs, scale))))


@pytest.mark.parametrize("seed", range(4))
def test_methods_with_more_choices_are_no_worse(seed: int) -> None:
    q, k = sample(seed, 60, 5, 1.5), 2 * sample(seed + 10, 50, 5, 1.5)
    found = {name: objective(choose(q, k, name, prior=1e-9), q, k, 0.5) for name in METHODS if name != "tilted"}
    assert found["symmetric"] <= found["isotropic"]
    assert found["asymmetric"] <= found["isotropic"]
    assert found["centred_isotropic"] <= found["isotropic"]
    assert found["centred_isotropic"] <= found["centred"]
    assert found["affine"] < min(value for name, value in found.items() if name != "affine")


@pytest.mark.parametrize("seed", range(4))
def test_affine_is_where_the_objective_is_flat(seed: int) -> None:
    """Any small change of T, of a mean or of the rows' covariance makes the mean log larger, to second order."""
    rng = np.random.default_rng(seed)
    q, k, scale = sample(seed, 60, 3, 1.5), sample(seed + 10, 50, 3, 1.5), 0.6
    chosen = choose(q, k, "affine", scale=scale, prior=1e-12)
    best, step = objective(chosen, q, k, scale), 1e-3
    for _ in range(20):
        turn, shift, stretch = (step * rng.standard_normal(shape) for shape in ((3, 3), 3, (3, 3)))
        moved = np.eye(3) + turn
        for query, key, root in (
            (
                chosen.query._replace(matrix=moved @ chosen.query.matrix),
                chosen.key._replace(matrix=np.linalg.inv(moved).T @ chosen.key.matrix),
                None,
            ),
            (chosen.query._replace(centre=chosen.query.centre + shift), chosen.key, None),
            (chosen.query, chosen.key, (np.eye(3) + stretch) @ chosen.proposal.root),
        ):
            other = chosen._replace(query=query, key=key)
            if root is not None:
                other = other._replace(proposal=rfk.proposals.Gaussian(root))
            assert best - 1e-12 <= objective(other, q, k, scale) <= best + 1e3 * step**2


# What the methods are -------------------------------------------------------------------------------------------------


def variances_of_rows(chosen: Any) -> Any:
    return chosen.proposal.root @ chosen.proposal.root.T


def variance_for(energy: Any) -> Any:
    """σ² = (1 + ρ)/2 as FAVOR++ has it: A = (1 − 2φ − √((2φ + 1)² + 8φ))/16, σ² = 1 − 4A."""
    return 1 - (1 - 2 * energy - np.sqrt((2 * energy + 1) ** 2 + 8 * energy)) / 4


def pair_sums(q: Any, k: Any) -> Any:
    return (q[:, None] + k[None]).reshape(-1, q.shape[-1])


@pytest.mark.parametrize("seed", range(3))
def test_isotropic_is_that_of_the_mean_square_of_sums(seed: int) -> None:
    q, k, scale = sample(seed, 20, 4), sample(seed + 7, 30, 4), 0.7
    chosen = choose(q, k, "isotropic", scale=scale)
    phi = scale * np.mean(np.sum(pair_sums(q, k) ** 2, -1)) / 4
    np.testing.assert_allclose(variances_of_rows(chosen), variance_for(phi) * np.eye(4), atol=1e-12)
    assert (chosen.query, chosen.key) == (rfk.Side(), rfk.Side())


@pytest.mark.parametrize("seed", range(3))
def test_symmetric_has_a_variance_for_each_eigenvector(seed: int) -> None:
    q, k, scale = sample(seed, 20, 4), sample(seed + 7, 30, 4), 0.7
    chosen, z = choose(q, k, "symmetric", scale=scale), pair_sums(q, k)
    values, axes = np.linalg.eigh(scale * z.T @ z / len(z))
    np.testing.assert_allclose(variances_of_rows(chosen), axes * variance_for(values) @ axes.T, atol=1e-12)
    assert (chosen.query, chosen.key) == (rfk.Side(), rfk.Side())


@pytest.mark.parametrize("seed", range(3))
def test_asymmetric_equals_both_second_moments(seed: int) -> None:
    """B⁽¹⁾ = S^½ Uᵀ Λ₁^-½ Q₁ᵀ, B⁽²⁾ = S^½ Vᵀ Λ₂^-½ Q₂ᵀ, turned to be symmetric; with S^-½ moments would be S⁻¹."""
    q, k, scale = sample(seed, 20, 4), 3 * sample(seed + 7, 30, 4), 0.7
    chosen = choose(q, k, "asymmetric", scale=scale, prior=1e-13)
    (first, x), (second, y) = (
        (m.matrix @ v.T @ v @ m.matrix.T / len(v), v) for m, v in ((chosen.query, q), (chosen.key, k))
    )
    common = np.linalg.svd(scale * _root(x) @ _root(y), compute_uv=False)
    np.testing.assert_allclose(first, second, atol=1e-9)
    np.testing.assert_allclose(np.linalg.eigvalsh(first)[::-1], common, atol=1e-9)
    np.testing.assert_allclose(chosen.query.matrix, chosen.query.matrix.T, atol=1e-10)
    np.testing.assert_allclose(chosen.query.matrix.T @ chosen.key.matrix, scale * np.eye(4), atol=1e-10)
    phi = (2 * common.sum() + 2 * scale * q.mean(0) @ k.mean(0)) / 4
    np.testing.assert_allclose(variances_of_rows(chosen), variance_for(phi) * np.eye(4), atol=1e-9)


def _root(x: Any) -> Any:
    values, axes = np.linalg.eigh(x.T @ x / len(x))
    return axes * np.sqrt(values) @ axes.T


@pytest.mark.parametrize("seed", range(3))
def test_balanced_stretches_coordinates_until_their_squares_agree(seed: int) -> None:
    q, k, scale = sample(seed, 20, 4), 3 * sample(seed + 7, 30, 4), 0.7
    chosen = choose(q, k, "balanced", scale=scale, prior=1e-13)
    stretch = (np.mean(k**2, 0) / np.mean(q**2, 0)) ** 0.25
    np.testing.assert_allclose(chosen.query.matrix, math.sqrt(scale) * np.diag(stretch), atol=1e-10)
    np.testing.assert_allclose(chosen.key.matrix, math.sqrt(scale) * np.diag(1 / stretch), atol=1e-10)
    symmetric = choose(q * stretch, k / stretch, "symmetric", scale=scale)
    np.testing.assert_allclose(variances_of_rows(chosen), variances_of_rows(symmetric), atol=1e-9)


@pytest.mark.parametrize("seed", range(3))
def test_affine_equals_both_covariances(seed: int) -> None:
    """TᵀT is the geometric mean of S_x⁻¹ and S_y, and λ = 2 × the singular values of S_x^½ S_y^½."""
    q, k, scale = sample(seed, 20, 4), 3 * sample(seed + 7, 30, 4), 0.7
    chosen = choose(q, k, "affine", scale=scale, prior=1e-13)
    x, y = q - q.mean(0), k - k.mean(0)
    half = _root(x)
    middle = half @ (y.T @ y / len(y)) @ half
    values, axes = np.linalg.eigh(middle)
    geometric = np.linalg.inv(half) @ (axes * np.sqrt(values)) @ axes.T @ np.linalg.inv(half)
    np.testing.assert_allclose(chosen.query.matrix.T @ chosen.query.matrix, scale * geometric, rtol=1e-6, atol=1e-8)
    common = np.sort(scale * np.linalg.svd(half @ _root(y), compute_uv=False))
    found = np.sort(np.linalg.eigvalsh(variances_of_rows(chosen)))
    np.testing.assert_allclose(found, variance_for(2 * common), rtol=1e-9)
    np.testing.assert_allclose(chosen.key.linear, scale * q.mean(0), atol=1e-15)
    np.testing.assert_allclose(chosen.query.linear, scale * k.mean(0), atol=1e-15)
    np.testing.assert_allclose(chosen.query.centre, q.mean(0), atol=1e-15)
    np.testing.assert_allclose(chosen.key.centre, k.mean(0), atol=1e-15)


@pytest.mark.parametrize("apart", [1.0, 1e2, 1e8])
def test_rotations_are_found_in_few_steps(apart: float) -> None:
    rng = np.random.default_rng(0)
    left, right = (np.linalg.qr(x)[0] for x in rng.standard_normal((2, 64, 64)))
    found = algebra._rotation(np, (left * np.geomspace(1, apart, 64)) @ right)
    np.testing.assert_allclose(found.T @ found, np.eye(64), atol=1e-12)
    np.testing.assert_allclose(found, left @ right, atol=1e-15 * max(apart, 100))


@pytest.mark.parametrize("method", ["affine", "symmetric", "tilted"])
def test_what_is_fitted_does_not_depend_on_the_signs_of_eigenvectors(
    method: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Or two machines would draw different features from the same seed."""
    q, k, rng = sample(0, 20, 5), 3 * sample(1, 30, 5), np.random.default_rng(2)
    decide = {"method": method, "scale": 0.7, "prior": 1e-3}
    expected = fitting.choices.decide(q, k, **decide)
    eigh, svd = np.linalg.eigh, np.linalg.svd

    def other_eigh(matrix: Any) -> Any:
        values, axes = eigh(matrix)
        return values, axes * rng.choice([-1.0, 1.0], len(values))

    def other_svd(matrix: Any) -> Any:
        left, values, right = svd(matrix)
        signs = rng.choice([-1.0, 1.0], len(values))
        return left * signs, values, signs[:, None] * right

    monkeypatch.setattr(np.linalg, "eigh", other_eigh)
    monkeypatch.setattr(np.linalg, "svd", other_svd)
    found = fitting.choices.decide(q, k, **decide)
    for own, other in ((found.query, expected.query), (found.key, expected.key)):
        if method != "symmetric":
            np.testing.assert_allclose(own.matrix, other.matrix, rtol=1e-9, atol=1e-11)
    np.testing.assert_allclose(found.proposal.root, expected.proposal.root, rtol=1e-9, atol=1e-11)


@given(st.floats(0, 1e6))
def test_the_spread_is_where_its_derivative_vanishes(energy: float) -> None:
    rho = float(algebra.best_spread(np, np.float64(energy)))
    assert rho >= 1
    # d/dρ [log((1 + ρ)/(2√ρ)) + λ/ρ] = 1/(1 + ρ) − 1/(2ρ) − λ/ρ²
    np.testing.assert_allclose(rho**2 / (1 + rho) - rho / 2, energy, rtol=1e-9, atol=1e-12)
    np.testing.assert_allclose((1 + rho) / 2, variance_for(energy), rtol=1e-9)


def test_the_spread_of_huge_energies_is_finite() -> None:
    energies = np.array([0.0, 1e-300, 1e150, 1e300])
    np.testing.assert_allclose(algebra.best_spread(np, energies), [1, 1, 2e150, 2e300])


# Moments --------------------------------------------------------------------------------------------------------------


def assert_same_moments(found: Any, expected: Any, rtol: float = 1e-12) -> None:
    np.testing.assert_array_equal(found.count, expected.count)
    np.testing.assert_allclose(found.mean, expected.mean, rtol=rtol)
    np.testing.assert_allclose(found.scatter, expected.scatter, rtol=rtol, atol=rtol * np.abs(expected.scatter).max())


def test_moments_are_those_of_numpy() -> None:
    x = np.random.default_rng(0).standard_normal((2, 3, 17, 4)).astype(np.float32)
    found = fitting.moments(x)
    assert [v.shape for v in found] == [(2, 3), (2, 3, 4), (2, 3, 4, 4)]
    assert {v.dtype for v in found} == {np.dtype(np.float64)}
    np.testing.assert_array_equal(found.count, 17)
    np.testing.assert_allclose(found.mean[1, 2], x[1, 2].astype(np.float64).mean(0))
    np.testing.assert_allclose(found.scatter[1, 2] / 17, np.cov(x[1, 2].T.astype(np.float64), bias=True))


@given(cuts=st.lists(st.integers(0, 30), max_size=4), seed=SEEDS)
def test_merging_blocks_is_seeing_them_together(cuts: list[int], seed: int) -> None:
    x = np.random.default_rng(seed).standard_normal((2, 30, 3)) + 1e6  # raw squares would lose twelve digits
    bounds = [0, *sorted(cuts), 30]
    merged = fitting.moments(x[:, :0])
    for start, stop in itertools.pairwise(bounds):
        merged = fitting.merge(merged, fitting.moments(x[:, start:stop]))
    assert_same_moments(merged, fitting.moments(x), 1e-8)


def test_nothing_is_the_neutral_moments() -> None:
    some, nothing = fitting.moments(sample(0, 9, 3)), fitting.moments(np.zeros((0, 3)))
    assert_same_moments(fitting.merge(some, nothing), some)
    assert_same_moments(fitting.merge(nothing, some), some)
    assert_same_moments(fitting.merge(nothing, nothing), nothing)


def test_merged_moments_choose_as_those_of_all_do() -> None:
    q, k = sample(1, 30, 3), sample(2, 40, 3)
    merged = [fitting.merge(fitting.moments(x[:7]), fitting.moments(x[7:])) for x in (q, k)]
    one, other = fitting.choose(*merged), choose(q, k, "affine")
    np.testing.assert_allclose(
        one.query.matrix.T @ one.query.matrix, other.query.matrix.T @ other.query.matrix, rtol=1e-9
    )
    nothing = fitting.moments(q[:0])
    with pytest.raises(ValueError, match="at least one vector"):
        fitting.choose(fitting.merge(nothing, nothing), merged[1])


def test_attended_moments_are_those_of_weighted_pairs() -> None:
    q, k, scale = sample(1, 300, 3), sample(2, 40, 3), 2.0
    weight = np.exp(scale * q @ k.T)
    weight /= weight.sum(1, keepdims=True) * len(q)
    of_q, of_k, cross = statistics.attended(q, k, scale)
    assert_same_moments(of_q, fitting.moments(q))
    mean = np.einsum("ij,jc->c", weight, k)
    np.testing.assert_allclose(of_k.mean, mean)
    apart = k - mean
    np.testing.assert_allclose(of_k.scatter / of_k.count, np.einsum("ij,ja,jb->ab", weight, apart, apart))
    np.testing.assert_allclose(of_k.count, 1 / np.sum(weight.sum(0) ** 2))
    np.testing.assert_allclose(cross, np.einsum("ij,ia,jb->ab", weight, q - q.mean(0), apart))


def test_without_weights_tilted_is_affine() -> None:
    """With scale → 0 attention is uniform, and all pairs count alike."""
    q, k = sample(1, 30, 3), sample(2, 40, 3)
    one, other = (choose(q, k, method, scale=1e-9) for method in ("tilted", "affine"))
    np.testing.assert_allclose(one.query.centre, other.query.centre, atol=1e-8)
    np.testing.assert_allclose(one.key.centre, other.key.centre, atol=1e-8)
    np.testing.assert_allclose(
        one.query.matrix.T @ one.query.matrix, other.query.matrix.T @ other.query.matrix, rtol=1e-5
    )


# Features -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", fitting.methods())
@pytest.mark.parametrize("backend", ["numpy", "numba", "jax"])
def test_attention_on_every_backend(backend: str, method: str) -> None:
    """The pipeline takes fitted features as any others: the same output from a reference that goes row by row."""
    q, k, v = (np.stack([sample(seed + i, n, 8, 1.5) for i in range(2)]) for seed, n in ((1, 33), (2, 33), (3, 33)))
    features = fitting.fit(q, k, 32, method=method, rng=0)
    assert features.batch == (2,)
    expected = rfk.attention(q, k, v, features, causal=True, backend="numpy")
    phi_q, phi_k = (rfk.transform(x, features, side=side) for x, side in ((q, "query"), (k, "key")))
    weights = np.tril(phi_q @ np.swapaxes(phi_k, -1, -2))
    np.testing.assert_allclose(expected, weights @ v / weights.sum(-1, keepdims=True), rtol=1e-9, atol=1e-9)
    if backend == "jax":
        jnp = pytest.importorskip("jax.numpy")
        out = rfk.attention(*map(jnp.asarray, (q, k, v)), features, causal=True)
    else:
        out = rfk.attention(q, k, v, features, causal=True, backend=backend)
    np.testing.assert_allclose(
        out, expected, rtol=1e-3 if backend == "jax" else 1e-9, atol=1e-4 if backend == "jax" else 1e-9
    )


@pytest.mark.parametrize("method", fitting.methods())
def test_quadrature_features_give_exact_attention(method: str) -> None:
    q, k, v = sample(1, 9), sample(2, 12), sample(3, 12)
    features = fitting.bind(choose(q, k, method), ROWS)
    weights = np.log(features.rows * WEIGHTS) / 2
    features = dataclasses.replace(features, log_weight=features.log_weight + weights)
    np.testing.assert_allclose(
        rfk.attention(q, k, v, features, backend="numpy"), rfk.exact_attention(q, k, v), rtol=1e-7
    )


def test_fit_binds_the_rows_that_draw_draws() -> None:
    q, k = sample(1, 20, 6), sample(2, 30, 6)
    found = fitting.fit(q, k, 24, sampler="orthogonal", scale=0.3, rng=5)
    rows = rfk.draw("positive", 6, 24, sampler="orthogonal", scale=0.3, rng=5).projection
    expected = fitting.bind(choose(q, k, "affine", scale=0.3), rows)
    np.testing.assert_array_equal(found.projection, expected.projection)
    np.testing.assert_array_equal(found.log_weight, expected.log_weight)
    assert found.count == 24
    assert float(found.scale) == 0.3
    assert fitting.fit(q, k, 24, feature_map="hyperbolic", sampler="iid", rng=5).rows == 12
    np.testing.assert_allclose(float(fitting.fit(q, k, 24, rng=5).scale), 1 / math.sqrt(6))


def test_arrays_are_those_of_their_features_alone() -> None:
    """Read-only and owned, so that backends may keep what they derive from them."""
    features = fitting.fit(sample(1, 20, 6), sample(2, 30, 6), 24, rng=5)
    for array in (features.projection, features.log_weight, features.scale, *features.query, *features.key):
        assert array.flags.owndata
        assert not array.flags.writeable


@pytest.mark.parametrize(
    ("of_q", "of_k"),
    [
        ((), ()),
        ((3,), (3,)),
        ((3,), ()),
        ((), (3,)),
        ((2, 3, 4), (2, 3, 1)),
        ((5, 1), (1, 3)),
        ((2, 3), (3,)),
        ((1, 2), (2,)),
        ((0,), (0,)),
    ],
)
@pytest.mark.parametrize("method", ["affine", "tilted"])
def test_one_set_for_each_batch_axis_of_keys(method: str, of_q: Any, of_k: Any) -> None:
    rng = np.random.default_rng(0)
    q, k = rng.standard_normal((*of_q, 7, 4)) + 1, rng.standard_normal((*of_k, 9, 4))
    features = fitting.fit(q, k, 8, method=method, rng=0)
    assert features.batch == of_k
    assert rfk.attention(q, k, k, features).shape == (*np.broadcast_shapes(of_q, of_k), 7, 4)
    for index in np.ndindex(of_k):
        wide = np.broadcast_to(q, (*np.broadcast_shapes(of_q, of_k), 7, 4))
        lead = wide.ndim - 2 - len(of_k)
        own = wide[(slice(None),) * lead + tuple(i if n > 1 else slice(None) for i, n in zip(index, of_k, strict=True))]
        chosen = choose(own.reshape(-1, 4), k[index], method)
        np.testing.assert_allclose(features.query.centre[index], chosen.query.centre, atol=1e-12)
        np.testing.assert_allclose(
            features.query.matrix[index].T @ features.query.matrix[index],
            chosen.query.matrix.T @ chosen.query.matrix,
            rtol=1e-9,
            atol=1e-12,
        )


DEGENERATE = {
    "one of each": (np.array([[1.0, 2.0, 3.0]]), np.array([[0.5, -1.0, 0.0]])),
    "equal queries": (np.tile([1.0, 2.0, 3.0], (9, 1)), sample(1, 9, 3)),
    "equal keys": (sample(1, 9, 3), np.tile([0.1, 0.2, 0.3], (9, 1))),
    "zeros": (np.zeros((5, 3)), np.zeros((4, 3))),
    "zero queries": (np.zeros((5, 3)), sample(1, 9, 3)),
    "a line": (np.outer(np.arange(5.0), [1.0, -1.0, 2.0]), sample(1, 9, 3)),
    "two lines": (np.outer(np.arange(5.0), [1.0, 0.0, 0.0]), np.outer(np.arange(5.0), [0.0, 1.0, 0.0])),
    "one dimension": (sample(1, 5, 1), sample(2, 5, 1)),
    "huge": (1e150 * sample(1, 9, 3), 1e150 * sample(2, 9, 3)),
    "huge and tiny": (1e150 * sample(1, 9, 3), 1e-150 * sample(2, 9, 3)),
}


@pytest.mark.parametrize("case", DEGENERATE)
@pytest.mark.parametrize("method", fitting.methods())
def test_degenerate_samples_give_valid_features(method: str, case: str) -> None:
    """All finite, and the identity that makes estimates unbiased holds: T⁻ᵀ is the inverse of Tᵀ."""
    q, k = DEGENERATE[case]
    features = fitting.fit(q, k, 16, method=method, rng=0)
    for array in (features.projection, features.log_weight, *features.query, *features.key):
        assert array is None or np.isfinite(array).all()
    if features.query.matrix is not None:
        product = features.query.matrix.T @ features.key.matrix
        np.testing.assert_allclose(product, float(features.scale) * np.eye(q.shape[-1]), atol=1e-7)
    assert np.isfinite(rfk.attention(q, k, k, features, backend="numpy")).all()


@pytest.mark.parametrize(
    "case", [name for name in DEGENERATE if not name.startswith("huge") and DEGENERATE[name][0].shape[-1] == 3]
)
@pytest.mark.parametrize("method", fitting.methods())
def test_degenerate_samples_in_the_plane_are_unbiased(method: str, case: str) -> None:
    q, k = (0.2 * x[:, :2] for x in DEGENERATE[case])
    chosen = choose(q, k, method)
    x, y = 0.2 * sample(1, 3), 0.2 * sample(2, 3)
    testing.assert_moments(terms(fitting.bind(chosen, ROWS), x, y), WEIGHTS, mean=1, rtol=1e-7)


def test_equal_queries_are_exact_up_to_the_prior() -> None:
    """Where all queries are one vector the kernel is exp(a·y), which the linear part of the keys gives exactly."""
    q, k = np.tile([1.0, 2.0, 3.0], (9, 1)), sample(1, 9, 3)
    features = fitting.fit(q, k, 16, prior=1e-12, rng=0)
    np.testing.assert_allclose(rfk.log_kernel(q, k, features), (q * k).sum(-1) / math.sqrt(3), atol=0.05)


@pytest.mark.parametrize("method", ["affine", "tilted", "centred", "centred_isotropic"])
def test_where_keys_lie_does_not_matter_once_means_are_subtracted(method: str) -> None:
    q, k = sample(0, 60, 3), sample(1, 60, 3)
    near, far = (fitting.fit(q, keys, 16, method=method, rng=0) for keys in (k, k + 1e6))
    np.testing.assert_allclose(far.projection, near.projection, rtol=1e-7, atol=1e-7)
    np.testing.assert_allclose(far.key.centre, near.key.centre + 1e6)


@pytest.mark.parametrize("count", [50, 100_000])
@pytest.mark.parametrize("dtype", [np.float64, np.float32])
def test_equal_keys_are_not_taken_for_certain_to_return(dtype: Any, count: int) -> None:
    """They spread as their norm does, over n: rounding of their mean, which grows with n, says nothing."""
    keys = fitting.moments(np.tile(np.array([0.1, 0.2, 0.3], dtype), (count, 1)))
    matrix = fitting.choose(fitting.moments(sample(0, 50, 3)), keys).key.matrix
    assert np.linalg.norm(matrix) < count


# JAX ------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", fitting.methods())
def test_jax_fits_alike(method: str) -> None:
    jax = pytest.importorskip("jax")
    q, k = (np.stack([sample(seed + i, 30, 4, 1.0) for i in range(2)]).astype(np.float32) for seed in (1, 5))
    host = fitting.fit(q, k, 16, method=method, rng=0)
    device = fitting.fit(jax.numpy.asarray(q), jax.numpy.asarray(k), 16, method=method, rng=0)
    assert isinstance(device.projection, jax.Array)
    assert device.projection.dtype == device.log_weight.dtype == np.float32
    np.testing.assert_allclose(device.projection, host.projection, rtol=1e-3, atol=1e-3)
    for x, y in ((host.query.matrix, device.query.matrix), (host.key.matrix, device.key.matrix)):
        assert (x is None) == (y is None)
        if x is not None:
            np.testing.assert_allclose(y, x, rtol=1e-3, atol=1e-3)
    for x, y in ((host.query, device.query), (host.key, device.key)):
        if x.centre is not None:
            np.testing.assert_allclose(y.centre, x.centre, atol=1e-5)
            np.testing.assert_allclose(y.linear, x.linear, atol=1e-5)


@pytest.mark.parametrize("method", ["affine", "asymmetric", "tilted"])
def test_the_derivative_exists_where_queries_are_keys(method: str) -> None:
    """T is the identity then, and all its singular values are equal."""
    jax = pytest.importorskip("jax")
    x = jax.numpy.asarray(sample(3, 30, 4, 1.0).astype(np.float32))

    @jax.jit
    def loss(q: Any, k: Any) -> Any:
        return rfk.log_kernel(q[:3], k[:3], fitting.fit(q, k, 8, method=method, rng=0)).sum()

    gradient = jax.jit(jax.grad(loss))(x, x)
    assert np.isfinite(gradient).all()
    step = np.random.default_rng(0).standard_normal(x.shape).astype(np.float32)
    ahead, behind = (loss(x + sign * 1e-2 * step, x) for sign in (1, -1))
    np.testing.assert_allclose((gradient * step).sum(), (ahead - behind) / 2e-2, rtol=2e-2)


def test_jax_fits_inside_jit_with_a_key() -> None:
    jax = pytest.importorskip("jax")
    q, k = (jax.numpy.asarray(sample(seed, 30, 4, 1.0).astype(np.float32)) for seed in (1, 2))
    inside = jax.jit(lambda q, k, key: fitting.fit(q, k, 16, sampler="iid", rng=key))(q, k, jax.random.key(0))
    outside = fitting.fit(q, k, 16, sampler="iid", rng=jax.random.key(0))
    np.testing.assert_allclose(rfk.log_kernel(q, k, inside), rfk.log_kernel(q, k, outside), atol=1e-4)


def test_numpy_samples_and_a_key_of_jax_make_arrays_of_jax() -> None:
    jax = pytest.importorskip("jax")
    features = fitting.fit(sample(1, 30, 4, 1.0), sample(2, 30, 4, 1.0), 16, sampler="iid", rng=jax.random.key(0))
    assert all(isinstance(x, jax.Array) and x.dtype == np.float32 for x in jax.tree.leaves(features))


# Errors ---------------------------------------------------------------------------------------------------------------

Q, K = sample(1, 5, 4), sample(2, 6, 4)


@pytest.mark.parametrize(
    ("error", "text", "call"),
    [
        (
            ValueError,
            "unknown method 'best'; known are: affine, asymmetric",
            lambda: fitting.fit(Q, K, 8, method="best", rng=0),
        ),
        (ValueError, "unknown method", lambda: fitting.choose(fitting.moments(Q), fitting.moments(K), method="tilted")),
        (
            ValueError,
            "feature_map must be exponential, nonnegative",
            lambda: fitting.fit(Q, K, 8, feature_map="trigonometric", rng=0),
        ),
        (
            ValueError,
            "feature_map must be exponential, nonnegative",
            lambda: fitting.fit(Q, K, 8, feature_map="relu", rng=0),
        ),
        (
            ValueError,
            "feature_map must be exponential, nonnegative",
            lambda: fitting.fit(Q, K, 8, feature_map="exp", rng=0),
        ),
        (
            ValueError,
            "the law of the sampler 'regularized' is 'sphere'",
            lambda: fitting.fit(Q, K, 8, sampler="regularized", rng=0),
        ),
        (ValueError, "antithetic rows come in pairs", lambda: fitting.fit(Q, K, 7, rng=0)),
        (
            ValueError,
            r"q must hold at least one vector to fit to, got shape \(0, 4\)",
            lambda: fitting.fit(Q[:0], K, 8, rng=0),
        ),
        (
            ValueError,
            r"k must hold at least one vector to fit to, got shape \(0, 4\)",
            lambda: fitting.fit(Q, K[:0], 8, rng=0),
        ),
        (
            ValueError,
            r"q must be at least one wide, got shape \(\d+, 0\)",
            lambda: fitting.fit(Q[:, :0], K[:, :0], 8, scale=1.0, rng=0),
        ),
        (ValueError, "q and k must agree in dim", lambda: fitting.fit(Q, K[:, :3], 8, rng=0)),
        (ValueError, r"k must be finite, but k\[0, 0\] is nan", lambda: fitting.fit(Q, K * np.nan, 8, rng=0)),
        (ValueError, "scale must be a positive finite number, got -1", lambda: fitting.fit(Q, K, 8, scale=-1, rng=0)),
        (ValueError, "prior must be a positive finite number, got 0", lambda: fitting.fit(Q, K, 8, prior=0, rng=0)),
        (ValueError, "count must be a positive integer", lambda: fitting.fit(Q, K, 0, rng=0)),
        (
            ValueError,
            "at least one vector, got a count of 0",
            lambda: fitting.choose(fitting.moments(Q[:0]), fitting.moments(K)),
        ),
        (
            ValueError,
            "must agree in dim, got means",
            lambda: fitting.choose(fitting.moments(Q), fitting.moments(K[:, :2])),
        ),
        (
            ValueError,
            r"rows must have shape \(\*batch, rows, 4\), got \(3, 5\)",
            lambda: fitting.bind(choose(Q, K, "affine"), np.zeros((3, 5))),
        ),
        (
            ValueError,
            r"without batch axes, got a root of shape \(1, 4, 4\)",
            lambda: fitting.relative(choose(Q[None], K[None], "affine"), Q[0], K[0], count=4),
        ),
        (TypeError, "queries must be Moments .*, got ndarray", lambda: fitting.choose(Q, K)),
        (TypeError, "second must be Moments .*, got int", lambda: fitting.merge(fitting.moments(Q), 3)),
        (TypeError, "first.count must be an array, got int", lambda: fitting.merge(fitting.Moments(1, 2, 3), Q)),
        (
            ValueError,
            r"second must have count \(\*batch\), .* got \(\), \(4,\) and \(4,\)",
            lambda: fitting.merge(fitting.moments(Q), fitting.Moments(np.ones(()), np.ones(4), np.ones(4))),
        ),
        (
            ValueError,
            r"first and second must agree in dim, got means of shapes \(4,\) and \(3,\)",
            lambda: fitting.merge(fitting.moments(Q), fitting.moments(Q[:, :3])),
        ),
        (
            ValueError,
            r"batch axes do not broadcast: first \(2,\), second \(3,\)",
            lambda: fitting.merge(*(fitting.moments(np.stack([Q] * n)) for n in (2, 3))),
        ),
        (
            ValueError,
            r"cross must have shape \(\*batch, 4, 4\), got \(3,\)",
            lambda: fitting.choose(fitting.moments(Q), fitting.moments(K), cross=np.ones(3)),
        ),
        (TypeError, "given must be a Choice .*, got int", lambda: fitting.bind(3, Q)),
        (TypeError, "given must be a Choice .*, got int", lambda: fitting.relative(3, Q[0], K[0], count=4)),
        (ValueError, r"k must have squares .* but it has 1e\+200", lambda: fitting.fit(Q, K + 1e200, 8, rng=0)),
        (ValueError, r"x must have squares .* but it has 1e\+153", lambda: fitting.moments(Q + 1e153)),
        (TypeError, "q must be a numpy.ndarray", lambda: fitting.fit(Q.tolist(), K, 8, rng=0)),
        (TypeError, "x must be a numpy.ndarray", lambda: fitting.moments([[1.0]])),
        (ValueError, r"^x must be finite, but x\[1, 0\] is nan$", lambda: fitting.moments(np.array([[1.0], [np.nan]]))),
    ],
)
def test_errors_name_what_is_wrong(error: type[Exception], text: str, call: Any) -> None:
    with pytest.raises(error, match=text):
        call()
