"""Attention of whole arrays whose positions, batch and heads are spread over the devices of a JAX mesh."""

from __future__ import annotations

import math
from functools import cache
from types import ModuleType
from typing import Any

from rfkernels._checks import broadcast_batch, check_flags
from rfkernels.attention import attention
from rfkernels.features import Features
from rfkernels.integrations.placement import Name, Placement
from rfkernels.integrations.sequence import check_arguments, check_lengths, sequence_attention

__all__ = ["sequence_attention", "sharded_attention"]


def sharded_attention(
    q: Any,
    k: Any,
    v: Any,
    features: Features,
    *,
    mesh: Any,
    axis_name: Name | None = None,
    batch_axes: tuple[Name | None, ...] = (),
    causal: bool = False,
    window: int | None = None,
    mask: Any = None,
    full: bool = False,
) -> Any:
    """Compute linear attention of whole arrays that are spread over the devices of a mesh.

    Positions: what `sequence_attention` computes, without writing `jax.shard_map` around it. Batch axes: each device
    computes its own, and nothing is communicated. Compiled once for each shape and each set of options; may be called
    under `jax.jit` and differentiated.

    Parameters
    ----------
    q : array, shape (*batch, length, dim)
        Queries. Arrays that are sharded otherwise than asked for are moved.
    k, v : array, shape (*batch, keys, dim) and (*batch, keys, width)
        Keys and values.
    features : Features
        What `rfkernels.draw` returned.
    mesh : jax.sharding.Mesh
        The devices.
    axis_name : str or tuple of str, optional
        The mesh axis that the sequence is spread over. Its size must divide both lengths.
    batch_axes : tuple of str, tuple of str or None, default ()
        The mesh axes that the batch axes are spread over, the first batch axis first, as in a
        `jax.sharding.PartitionSpec`. Batch axes of length 1, such as those of the keys of grouped
        queries, are not spread.
    causal, window, mask, full
        As in `sequence_attention`; as in `rfkernels.attention` if the sequence is not spread.

    Returns
    -------
    array, shape (*batch, length, width), or AttentionResult
        Spread as the queries are. The state of an `AttentionResult` is whole on every device of the axis.

    Raises
    ------
    TypeError
        If an argument has the wrong type or dtype.
    ValueError
        If shapes do not fit together or the mesh, or what is asked for would need more than a neighbour's keys.
    """
    jax = _jax()
    if not isinstance(mesh, jax.sharding.Mesh):
        raise TypeError(f"mesh must be a jax.sharding.Mesh, got {type(mesh).__name__}")
    check_flags(causal=causal, full=full)
    check_arguments(q, k, v, features, mask, window)
    batch = broadcast_batch(q=q.shape[:-2], k=k.shape[:-2], v=v.shape[:-2], features=features.batch)
    size = 1 if axis_name is None else _spread(mesh, "axis_name", axis_name)
    for name, length in (("q", q.shape[-2]), ("k", k.shape[-2])):
        if length % size:
            raise ValueError(
                f"{name} has length {length}, which the {size} devices of axis {axis_name!r} do not divide; pad the "
                "arrays and take the padding out with mask="
            )
    if axis_name is None and not any(batch_axes):
        raise ValueError("axis_name= or batch_axes= must name an axis of the mesh: nothing would be spread")
    if len(batch_axes) > len(batch):
        raise ValueError(f"batch_axes names {len(batch_axes)} axes, but the batch is {batch}")
    for axis, length in zip(batch_axes, batch, strict=False):
        if axis is not None and length % _spread(mesh, "batch_axes", axis):
            raise ValueError(
                f"batch_axes spreads {length} elements over axis {axis!r}, whose size does not divide them"
            )
    check_lengths(q.shape[-2] // size, k.shape[-2] // size, size, causal, window)
    where = Placement(mesh, axis_name, (*batch_axes, *[None] * (len(batch) - len(batch_axes))))
    return _compiled()(q, k, v, features, mask, where=where, causal=bool(causal), window=window, full=bool(full))


def _jax() -> ModuleType:
    try:
        import jax
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError("sharded attention needs the package 'jax': pip install 'rfkernels[jax]'") from error
    return jax


def _spread(mesh: Any, argument: str, name: Name) -> int:
    """Return the number of devices of a mesh axis, or of several taken as one."""
    names = (name,) if isinstance(name, str) else tuple(name)
    missing = [axis for axis in names if axis not in mesh.shape]
    if missing or not names:
        raise ValueError(f"{argument} must name axes of the mesh, {tuple(mesh.shape)}, got {name!r}")
    return math.prod(mesh.shape[axis] for axis in names)


@cache
def _compiled() -> Any:
    import jax

    return jax.jit(_sharded, static_argnames=("where", "causal", "window", "full"))


def _sharded(
    q: Any,
    k: Any,
    v: Any,
    features: Features,
    mask: Any,
    *,
    where: Placement,
    causal: bool,
    window: int | None,
    full: bool,
) -> Any:
    import jax

    def part(q: Any, k: Any, v: Any, features: Features, mask: Any) -> Any:
        options: dict[str, Any] = {"causal": causal, "window": window, "mask": mask, "full": full}
        if where.axis_name is None:
            return attention(q, k, v, features, **options, backend="jax", check_finite=False)
        return sequence_attention(q, k, v, features, axis_name=where.axis_name, **options)

    results = where.results(q, k, v, features, mask, causal, window)
    specs = where.inputs(q, k, v, features, mask)
    arguments = (q, k, v, features, mask)
    if jax.sharding.AxisType.Explicit in where.mesh.axis_types:
        # The compiler moves arrays to where they are wanted; on axes that are part of the arrays' types it may not.
        arguments = jax.reshard(arguments, jax.tree.map(lambda s: jax.sharding.NamedSharding(where.mesh, s), specs))
    mapped = jax.shard_map(
        part,
        mesh=where.mesh,
        in_specs=specs,
        out_specs=results if full else results.output,
        axis_names=where.names(),
        # The empty state that a pass begins with is the same on all devices and what it grows into is not, which JAX
        # would refuse; without an axis that is communicated over there is nothing else to check.
        check_vma=where.axis_name is not None,
    )
    return mapped(*arguments)
