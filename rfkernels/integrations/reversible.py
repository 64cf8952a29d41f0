"""A stack of reversible residual blocks: activation memory that does not grow with depth."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

try:
    import jax
    import jax.numpy as jnp
except ModuleNotFoundError as error:
    raise ModuleNotFoundError(
        f"rfkernels.integrations.reversible needs the package {error.name!r}: pip install 'rfkernels[jax]'"
    ) from error

Block = Callable[[Any, Any], Any]


def reversible_stack(attend: Block, feed: Block) -> Callable[[Any, Any, Any], tuple[Any, Any]]:
    """Run blocks y₁ = x₁ + attend(p, x₂), y₂ = x₂ + feed(p, y₁), and keep only the last of them for the gradient.

    Going back, each block's inputs are found from its outputs, x₂ = y₂ − feed(p, y₁), x₁ = y₁ − attend(p, x₂), and its
    two functions are run once more (Reversible residual networks, arXiv 1707.04585; Reformer, arXiv 2001.04451). Inputs
    are found up to rounding, which each block that is passed on the way back may enlarge: with large weights or great
    depth compare the gradient with that of `jax.checkpoint` on the same blocks.

    Parameters
    ----------
    attend, feed : callable
        ``(parameters, x) -> change of the other stream``, of the shape and dtype of x. They must be deterministic: the
        keys of dropout, one for each block, are parameters.
        All that is to be differentiated is in the parameters; JAX raises if they close over anything else that is.

    Returns
    -------
    callable
        ``(parameters, x1, x2) -> (y1, y2)``; each array of the parameters has the depth as its first axis. It is
        differentiated in reverse only, once.

    Examples
    --------
    >>> import jax.numpy as jnp
    >>> from rfkernels.integrations.reversible import reversible_stack
    >>> stack = reversible_stack(lambda p, x: jnp.tanh(x @ p["a"]), lambda p, x: jnp.tanh(x @ p["b"]))
    >>> parameters = {"a": jnp.ones((6, 4, 4)), "b": jnp.ones((6, 4, 4))}
    >>> stack(parameters, jnp.ones((10, 4)), jnp.ones((10, 4)))[0].shape
    (10, 4)
    """
    stack = jax.custom_vjp(partial(_forward, attend, feed))
    stack.defvjp(partial(_remember, attend, feed), partial(_backward, attend, feed))
    return stack


def _forward(attend: Block, feed: Block, parameters: Any, x1: Any, x2: Any) -> tuple[Any, Any]:
    def block(streams: tuple[Any, Any], own: Any) -> tuple[tuple[Any, Any], None]:
        x1, x2 = streams
        y1 = _changed("attend", x1, attend(own, x2))
        return (y1, _changed("feed", x2, feed(own, y1))), None

    return jax.lax.scan(block, (x1, x2), parameters)[0]


def _changed(name: str, x: Any, change: Any) -> Any:
    shape, dtype = jnp.shape(change), jnp.result_type(change)
    if shape != x.shape or dtype != x.dtype:
        raise ValueError(
            f"{name} must return a change of the other stream, {x.dtype} of shape {x.shape}, got {dtype} of shape "
            f"{shape}"
        )
    return x + change


def _remember(attend: Block, feed: Block, parameters: Any, x1: Any, x2: Any) -> tuple[tuple[Any, Any], Any]:
    y1, y2 = _forward(attend, feed, parameters, x1, x2)
    return (y1, y2), (parameters, y1, y2)


def _backward(attend: Block, feed: Block, kept: Any, cotangents: tuple[Any, Any]) -> tuple[Any, Any, Any]:
    parameters, y1, y2 = kept

    def block(streams: tuple[Any, Any, Any, Any], own: Any) -> tuple[tuple[Any, Any, Any, Any], Any]:
        y1, y2, d1, d2 = streams
        change, pull = jax.vjp(feed, own, y1)
        x2 = y2 - change
        of_feed, through = pull(d2)
        d1 = d1 + through
        change, pull = jax.vjp(attend, own, x2)
        x1 = y1 - change
        of_attend, through = pull(d1)
        return (x1, x2, d1, d2 + through), jax.tree.map(_added, of_feed, of_attend)

    (_, _, d1, d2), gradient = jax.lax.scan(block, (y1, y2, *cotangents), parameters, reverse=True)
    return gradient, d1, d2


def _added(one: Any, other: Any) -> Any:
    """Add derivatives; None, which means zero, of integers and keys."""
    return None if one.dtype == jax.dtypes.float0 else one + other
