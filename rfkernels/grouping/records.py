"""Groups of keys, what stands for far keys, and what a blocked pass is made of."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from rfkernels._arrays import record
from rfkernels.features import Features
from rfkernels.state import State


@record
class Groups(NamedTuple):
    """Centres that divide keys into groups: a key is of the group whose centre is nearest.

    What read-only arrays are turned into is kept. Those of `fit_groups` are: make new ones to change them.

    Parameters
    ----------
    centres : array, shape (*batch, count, dim)
        Centres, as keys are given.
    metric : array, shape (*batch, dim, dim)
        M of the squared distance (k − c)ᵀ M (k − c), the mean square of what logits differ by if M is the second
        moment of queries. `fit_groups` multiplies it by a power of two where queries or keys are beyond 10⁷ or 10⁻⁷.
    spread : array, shape (*batch, dim, dim)
        The covariance of keys within their groups, divided by its mean in the metric: that of a group is taken to be
        this times the mean of its own (k − mean)ᵀ M (k − mean).
    cross : array, shape (*batch, dim, width), or None
        The covariance of keys and values within their groups, divided by the same. Where it is given, values are moved
        along with what a query prefers within a group.
    scale : float or array, shape ()
        Multiplies q·k.
    """

    centres: Any
    metric: Any
    spread: Any
    cross: Any
    scale: Any

    @property
    def size(self) -> int:
        """How many groups there are."""
        return int(self.centres.shape[-2])

    @property
    def dim(self) -> int:
        """Width of keys."""
        return int(self.centres.shape[-1])

    @property
    def batch(self) -> tuple[int, ...]:
        """Batch axes."""
        parts = self.centres, self.metric, self.spread, self.cross
        return np.broadcast_shapes(*(x.shape[:-2] for x in parts if x is not None))


class Far(NamedTuple):
    """What estimates the sum over far keys: groups, features, or features of what is left of a key within its group.

    With neither, groups come of the keys themselves as they leave the window (`rfkernels.grouping.merging`).
    """

    groups: Groups | None
    features: Features | None
    scale: Any

    @property
    def batch(self) -> tuple[tuple[int, ...], ...]:
        """Batch axes of each part."""
        return tuple(part.batch for part in (self.groups, self.features) if part is not None)


class Plan(NamedTuple):
    """How a sequence is cut: the positions of a block, and on each side as many blocks as the window needs.

    A query sees exactly the keys of its own block (up to itself if causal) and of `reach` blocks before it (and after
    it, if not causal); `reach` None is no exact part nearby. `merged` is how many groups are made of the keys that
    leave, where no others are given.
    """

    block: int
    reach: int | None
    causal: bool
    full: bool = False
    merged: int = 0


@record
class BlockState(NamedTuple):
    """What a causal pass over blocks is resumed from.

    Parameters
    ----------
    sums : State
        Of the keys that have left the window, heavy keys aside.
    keys, values : array, shape (*batch, (reach + 1) * block, dim) and (*batch, (reach + 1) * block, width)
        The present block, at the end, and the blocks before it.
    mask : array of bool, shape (*batch, reach + 1, block)
        Which of them exist, may be attended and are not heavy.
    heavy_keys, heavy_values : array, shape (*batch, heavy, dim) and (*batch, heavy, width)
        Heavy keys, zeros before they are seen.
    heavy_mask : array of bool, shape (*batch, heavy)
        Which of them were seen and may be attended.
    position : int or array, shape ()
        How many keys were seen.
    mass : array, shape (*batch, groups + block), or None
        The attention that each group and each key of the oldest block has received from the queries of the present one,
        where groups are merged from keys.
    within : array, shape (*batch, dim, dim + width), or None
        Σ (k − mean)(k − mean, v − mean)ᵀ over keys within their groups, likewise.
    """

    sums: State
    keys: Any
    values: Any
    mask: Any
    heavy_keys: Any
    heavy_values: Any
    heavy_mask: Any
    position: Any
    mass: Any = None
    within: Any = None


SMALLEST, LARGEST = 16, 64


def plan_for(window: int | None, causal: bool, full: bool = False, merged: int = 0) -> Plan:
    """Return the blocks for a window: its size rounded down to a power of two, from 16 to 64 positions.

    A causal pass without a window has the queries' own blocks exact.
    """
    if window is None:
        return Plan(LARGEST, 0 if causal else None, causal, full, merged)
    block = min(max(1 << (int(window).bit_length() - 1), SMALLEST), LARGEST)
    return Plan(block, -(-(int(window) - 1) // block), causal, full, merged)
