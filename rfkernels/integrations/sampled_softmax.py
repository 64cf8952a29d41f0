"""Softmax cross entropy over many items from a few drawn ones, in JAX."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

try:
    import jax
    import jax.numpy as jnp
except ModuleNotFoundError as error:
    raise ModuleNotFoundError(
        f"rfkernels.integrations.sampled_softmax needs the package {error.name!r}: pip install 'rfkernels[jax]'"
    ) from error

import numpy as np

from rfkernels._arrays import accumulator, broadcast_shapes, broadcasting, stopped
from rfkernels._checks import check_array, check_finite_arrays, check_flags, check_plain, is_tracer, result_dtype

if TYPE_CHECKING:
    from jax.typing import ArrayLike

_MASKED = "a draw that is masked would count all the same"
_ABOVE_ZERO = 1e-3  # by how much rounding may raise the log of a probability


@broadcasting
def sampled_softmax_loss(
    queries: ArrayLike,
    items: ArrayLike,
    targets: ArrayLike,
    negatives: ArrayLike,
    *,
    log_probability: ArrayLike,
    bias: ArrayLike | None = None,
    check_finite: bool = True,
) -> Any:
    """Estimate −log softmax(q·y + bias)[target] from n items drawn for each query.

    With logits l_i = q·y_i + bias_i the loss is log Ẑ − l_t, where the target counts as it is and every draw j stands
    for the other items by one over its probability:

        Ẑ = exp(l_t) + (1/n) Σ_j [j ≠ t] exp(l_j) / p_j

    A draw that hits the target adds nothing and still counts among the n, which makes E[Ẑ] = Z for any proposal that
    can draw every other item; nothing has to be renormalised or drawn again. The loss itself, being a log, is too small
    by Var(Ẑ) / 2Z² to first order: that and the bias of its gradient fall as 1/n, and both are small where p_j is close
    to the softmax. The loss is never negative.

    Draws are independent and with replacement. Where item j is expected among the n a known number of times π_j,
    as without replacement, log(π_j / n) takes the place of log p_j; n items taken once each have −log n, and with all
    items the loss is that of the full softmax.

    Parameters
    ----------
    queries : array, shape (*batch, dim)
        Queries, such as the states before an output layer; multiply them by what the softmax is scaled with.
    items : array, shape (items, dim)
        Item vectors. Their gradient has this shape: where it is large, pass the rows that a step needs and number
        `targets` and `negatives` by those.
    targets : array of int, shape (*batch)
        The item that belongs to each query.
    negatives : array of int, shape (*batch, n) or (n,)
        Items drawn for each query, or for all queries together; they may repeat and hit targets.
    log_probability : array, broadcastable to (*batch, n)
        The log of the probability with which each was drawn, normalised over all items, the target
        among them if it can be drawn; a constant to derivatives. `Catalog.sample` returns it with its draws.
    bias : array, shape (items,), optional
        Added to the logits.
    check_finite : bool, default True
        Outside `jax.jit` and its like, whether a loss that is not finite is refused if an argument is to blame.

    Returns
    -------
    jax.Array, shape (*batch)
        In the accumulation dtype: float64 if any array has it, else float32. NaN, under `jax.jit`, where an id is
        out of range.

    Raises
    ------
    TypeError, ValueError
        If shapes or dtypes do not fit, there are no negatives, or, outside `jax.jit` and its like, an id is out of
        range, a probability exceeds 1 or a value is not finite.

    Notes
    -----
    Importance sampling of the normaliser of a model in training is due to Bengio and Senécal (2003). Blanc and Rendle
    (2018) show that the gradient is unbiased at every n for one proposal alone: the softmax over the other items.

    Examples
    --------
    >>> import jax.numpy as jnp
    >>> from rfkernels.integrations.sampled_softmax import sampled_softmax_loss
    >>> items, query = jnp.eye(4), jnp.ones((1, 4))
    >>> everything = jnp.arange(4)
    >>> loss = sampled_softmax_loss(query, items, jnp.array([2]), everything, log_probability=-jnp.log(4.0))
    >>> round(float(loss[0]), 4)  # of four equal logits
    1.3863
    """
    check_flags(check_finite=check_finite)
    check_array("queries", queries, 1)
    check_array("items", items, 2)
    _check_shapes(queries, items, bias)
    batch, count = np.shape(queries)[:-1], np.shape(items)[0]
    _check_ids(count, targets=targets, negatives=negatives)
    _check_draws(batch, np.shape(targets), np.shape(negatives), log_probability)
    result_dtype(jnp, *(x for x in (queries, items, bias) if x is not None))
    dtype = accumulator(jnp, queries, items, bias)
    q, own, drawn = jnp.asarray(queries, dtype), *(_numbers(x, count) for x in (targets, negatives))
    logit = jnp.sum(q * _rows(items, own, dtype), -1)
    vectors = _rows(items, drawn, dtype)
    logits = jnp.einsum("...d,...nd->...n", q, vectors, precision="highest")
    if bias is not None:
        logit, logits = logit + _rows(bias, own, dtype), logits + _rows(bias, drawn, dtype)
    log_p = stopped(jnp, jnp.asarray(log_probability, dtype))
    others = logits - logit[..., None] - log_p - math.log(drawn.shape[-1])
    loss = _log1p_sum_exp(jnp.where(drawn == own[..., None], -jnp.inf, others))
    if check_finite and not is_tracer(loss) and not bool(jnp.isfinite(loss).all()):
        check_finite_arrays(queries=queries, items=items, log_probability=log_p)
        if bias is not None:
            check_finite_arrays(bias=bias)
    return loss


def _log1p_sum_exp(x: Any) -> Any:
    """Return log(1 + Σ exp x) over the last axis, to relative accuracy; x may be −inf."""
    top = stopped(jnp, jnp.maximum(jnp.max(x, -1), 0))
    return top + jnp.log1p(jnp.expm1(-top) + jnp.sum(jnp.exp(x - top[..., None]), -1))


def _numbers(ids: ArrayLike, count: int) -> jax.Array:
    """Return ids of one dtype, those out of range as `count`: JAX would cut them to 32 bits where it looks up rows."""
    ids = jnp.asarray(ids).astype(int)
    return jnp.where((ids >= 0) & (ids < count), ids, count)


def _rows(table: ArrayLike, ids: jax.Array, dtype: Any) -> Any:
    """Take rows; NaN for an id out of range, which JAX would otherwise move into it."""
    taken = jnp.asarray(table).at[ids].get(mode="fill", fill_value=jnp.nan)
    return taken.astype(dtype)


def _check_shapes(queries: Any, items: Any, bias: Any) -> None:
    if items.ndim != 2 or items.shape[0] == 0:
        raise ValueError(f"items must have shape (items, dim) with at least one item, got {items.shape}")
    if queries.shape[-1] != items.shape[-1]:
        raise ValueError(f"queries and items must agree in dim, got shapes {queries.shape} and {items.shape}")
    if bias is not None:
        check_array("bias", bias, 1)
        if bias.shape != items.shape[:1]:
            raise ValueError(f"bias must have shape {items.shape[:1]}, one number for each item, got {bias.shape}")


def _check_ids(count: int, **given: Any) -> None:
    for name, ids in given.items():
        if not isinstance(ids, np.ndarray | jax.Array):
            raise TypeError(f"{name} must be an array of integers, got {type(ids).__name__}")
        check_plain(name, ids, _MASKED)
        if ids.dtype.kind not in "iu":
            raise TypeError(f"{name} must be of an integer dtype, got {ids.dtype}")
        if is_tracer(ids):
            continue
        values = np.asarray(ids)
        wrong = np.argwhere((values < 0) | (values >= count))
        if len(wrong):
            index = [int(i) for i in wrong[0]]
            raise ValueError(
                f"{name} must be numbers of items, 0 to {count - 1}, but {name}{index} is {values[*index]}"
            )


def _check_draws(batch: tuple[int, ...], targets: tuple[int, ...], negatives: tuple[int, ...], log_p: Any) -> None:
    if targets != batch:
        raise ValueError(f"targets must have shape {batch}, one for each query, got {targets}")
    if negatives[:-1] not in ((), batch) or negatives in ((), (0,), (*batch, 0)):
        shape = ", ".join(str(n) for n in (*batch, "n"))
        raise ValueError(f"negatives must have shape ({shape}) or (n,) with n at least 1, got {negatives}")
    check_plain("log_probability", log_p, _MASKED)
    dtype = log_p.dtype if hasattr(log_p, "dtype") else np.asarray(log_p).dtype
    if not any(jnp.issubdtype(dtype, kind) for kind in (jnp.floating, jnp.integer)):
        raise TypeError(f"log_probability must be real numbers, got {type(log_p).__name__} of dtype {dtype}")
    expected = (*batch, negatives[-1])
    try:
        fits = broadcast_shapes(np.shape(log_p), expected) == expected
    except ValueError:
        fits = False
    if not fits:
        raise ValueError(f"log_probability must broadcast to {expected}, got shape {np.shape(log_p)}")
    if is_tracer(log_p):
        return
    values = np.asarray(log_p)
    high = np.argwhere(values > _ABOVE_ZERO)
    if len(high):
        index = [int(i) for i in high[0]]
        raise ValueError(
            f"log_probability must be logs of probabilities, at most 0, but "
            f"log_probability{index if index else ''} is {float(values[*index])}"
        )
