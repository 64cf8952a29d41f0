"""States and keys exchanged between the devices of a mesh axis: for use inside `jax.shard_map`."""

from __future__ import annotations

from typing import Any, NamedTuple

from rfkernels.state import State, merge_states


class Axis(NamedTuple):
    """The devices of a mesh axis in the order in which positions follow each other.

    Parameters
    ----------
    name : str or tuple of str
        The mesh axis; several are one axis, the last of them running fastest.
    size : int
        How many devices there are.
    reverse : bool
        Whether the last device comes first: for what is read from the end.
    """

    name: str | tuple[str, ...]
    size: int
    reverse: bool = False

    def rank(self) -> Any:
        """How many devices come before this one."""
        from jax import lax

        index = lax.axis_index(self.name)
        return self.size - 1 - index if self.reverse else index

    def pass_on(self, x: Any, step: int) -> Any:
        """Return what the device `step` places before this one holds; zeros where there is none."""
        import jax

        pairs = [(i, i + step) for i in range(self.size - step)]
        if self.reverse:
            pairs = [(target, source) for source, target in pairs]
        return jax.tree.map(lambda leaf: jax.lax.ppermute(leaf, self.name, pairs), x)


def axis_size(name: Any) -> int:
    """Return the number of devices of a mesh axis that `shard_map` has bound."""
    from jax import lax

    try:
        return int(lax.axis_size(name))
    except NameError as error:
        raise ValueError(
            f"axis_name must be a mesh axis that jax.shard_map maps over, but {name!r} is not bound here"
        ) from error


def merge_over_devices(state: State, axis: Axis, exponential: bool) -> State:
    """Return the merge of the states of all devices, on all of them: Σ_i kv_i e^(shift_i − max shift), and z alike.

    The largest shift is a constant to derivatives, in which it cancels; the shifts of the devices are not, so that
    states may be any function of the keys.
    """
    import jax
    import jax.numpy as jnp

    if not exponential:
        kv, z = jax.lax.psum((state.kv, state.z), axis.name)
        return State(kv, z, jnp.zeros_like(z))
    shift = jax.lax.pmax(jax.lax.stop_gradient(state.shift), axis.name)
    base, nothing = jnp.where(shift == -jnp.inf, 0, shift), state.shift == -jnp.inf
    # Both branches of a where are differentiated: no infinity may be subtracted from another, even where it is dropped.
    decay = jnp.where(nothing, 0, jnp.exp(jnp.where(nothing, base, state.shift) - base))
    kv, z = jax.lax.psum((state.kv * decay[..., None], state.z * decay), axis.name)
    return State(kv, z, shift)


def states_before(state: State, axis: Axis, exponential: bool) -> State:
    """Return the merge of the states of the devices before this one: an exclusive scan.

    One step moves every state on by a place; each of the ⌈log₂(size − 1)⌉ that follow doubles the devices that a sum
    covers (Hillis and Steele, Data parallel algorithms, 1986). Any size will do.
    """

    def shifted(state: State, step: int) -> State:
        import jax.numpy as jnp

        came: State = axis.pass_on(state, step)
        if not exponential:
            return came
        return came._replace(shift=jnp.where(axis.rank() >= step, came.shift, -jnp.inf))

    before, covered = shifted(state, 1), 1
    while covered < axis.size - 1:
        before = merge_states(shifted(before, covered), before)
        covered *= 2
    return before


def from_last(x: Any, axis: Axis) -> Any:
    """Return what the last device holds, on all of them."""
    import jax
    import jax.numpy as jnp

    last = axis.rank() == axis.size - 1

    def send(leaf: Any) -> Any:
        total = jax.lax.psum(jnp.where(last, leaf, jnp.zeros_like(leaf)), axis.name)
        return total.astype(leaf.dtype)  # sums of booleans are integers

    return jax.tree.map(send, x)


def with_mask(k: Any, v: Any, mask: Any) -> tuple[Any, Any, Any]:
    """Return keys, values and a mask, which is all True if there was none."""
    import jax.numpy as jnp

    return k, v, jnp.ones(k.shape[-2], bool) if mask is None else mask


def halo(k: Any, v: Any, axis: Axis, window: int, mask: Any) -> tuple[Any, Any, Any]:
    """Return the last keys and values of the device before this one, and which of them may be attended."""
    k, v = axis.pass_on((k[..., -window:, :], v[..., -window:, :]), 1)
    return k, v, _halo_mask(axis, window, mask)


def _halo_mask(axis: Axis, window: int, mask: Any) -> Any:
    import jax.numpy as jnp

    if mask is None:
        return jnp.broadcast_to(axis.rank() > 0, (window,))
    return axis.pass_on(mask[..., -window:], 1)  # a device without a predecessor is sent nothing, which reads as False


def leaving(old: Any, new: Any, window: int) -> Any:
    """Return all of old and new but the last `window`."""
    import jax.numpy as jnp

    position = -1 if new.dtype == bool else -2
    return jnp.concatenate([old, new], position)[..., slice(-window), *[slice(None)] * (-1 - position)]
