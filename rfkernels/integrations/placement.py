"""Where whole arrays lie on a mesh: the partition specs that `jax.shard_map` is told."""

from __future__ import annotations

from typing import Any, NamedTuple

from rfkernels._checks import broadcast_batch
from rfkernels.features import Features, Side
from rfkernels.state import DecodeState, State
from rfkernels.streaming import AttentionResult

Name = str | tuple[str, ...]


class Placement(NamedTuple):
    """The mesh axes that positions and batch axes are spread over.

    Parameters
    ----------
    mesh : jax.sharding.Mesh
    axis_name : str, tuple of str or None
        Of positions; None if they are not spread.
    batch_axes : tuple
        One entry for each batch axis of the broadcast arguments, None where it is not spread.
    """

    mesh: Any
    axis_name: Name | None
    batch_axes: tuple[Name | None, ...]

    def names(self) -> set[str]:
        """All mesh axes in use; the others are left to the compiler."""
        used = [axis for axis in (self.axis_name, *self.batch_axes) if axis is not None]
        return {name for axis in used for name in ((axis,) if isinstance(axis, str) else axis)}

    def spec(self, batch: tuple[int, ...], *rest: Name | None) -> Any:
        """Return the spec of an array with these batch axes, which broadcast, and `rest` for the axes after them."""
        from jax.sharding import PartitionSpec

        own = self.batch_axes[len(self.batch_axes) - len(batch) :]
        return PartitionSpec(*(None if n == 1 else axis for n, axis in zip(batch, own, strict=True)), *rest)

    def inputs(self, q: Any, k: Any, v: Any, features: Features, mask: Any) -> tuple[Any, ...]:
        """Return the specs of the arguments."""
        arrays = [self.spec(x.shape[:-2], self.axis_name, None) for x in (q, k, v)]
        seen = None if mask is None else self.spec(mask.shape[:-1], self.axis_name)
        return *arrays, self._features(features), seen

    def _features(self, features: Features) -> Features:
        def spec(x: Any, axes: int) -> Any:
            return None if x is None else self.spec(x.shape[: x.ndim - axes], *[None] * axes)

        query, key = (
            Side(spec(x.matrix, 2), spec(x.centre, 1), spec(x.linear, 1)) for x in (features.query, features.key)
        )
        projection, log_weight = spec(features.projection, 2), spec(features.log_weight, 1)
        return Features(features.map, projection, log_weight, query, key, self.spec(()), features.blocks)

    def results(self, q: Any, k: Any, v: Any, features: Features, mask: Any, causal: bool, window: int | None) -> Any:
        """Return the specs of an `AttentionResult`."""
        every = {"k": k.shape[:-2], "v": v.shape[:-2], "features": features.batch}
        rows = self.spec(broadcast_batch(q=q.shape[:-2], **every), self.axis_name)
        output = self.spec(broadcast_batch(q=q.shape[:-2], **every), self.axis_name, None)
        if window is not None and not causal:
            return AttentionResult(output, None, rows, rows)
        seen = () if mask is None else mask.shape[:-1]
        batch = broadcast_batch(**every, mask=seen)
        state: Any = State(self.spec(batch, None, None), self.spec(batch, None), self.spec(batch, None))
        if window is not None:
            keys, values = (self.spec(x.shape[:-2], None, None) for x in (k, v))
            state = DecodeState(state, keys, values, self.spec(seen, None), self.spec(()))
        return AttentionResult(output, state, rows, rows)
