"""The record of a sampler, and the types of what it is made of."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

Normal = Callable[[tuple[int, ...]], Any]
Rows = Callable[[Normal, int, int], Any]
Coupling = Literal["independent", "orthogonal", "simplex", "other"]


@dataclass(frozen=True)
class Sampler:
    """How projection rows are drawn, and what is known of their distribution.

    Parameters
    ----------
    name : str
        What it is called in tables and errors.
    rows : callable
        ``rows(normal, count, dim)``: draw rows, shape (count, dim).
    law : str, default "normal"
        The law of a row by itself: "normal" for N(0, I), which every map is unbiased under, or the name of another.
        A map that names a kernel takes rows that are normal or stand for such ("sphere", "hadamard"), no others.
    coupling : {"independent", "orthogonal", "simplex", "other"}, default "other"
        How rows depend on each other, antithetic partners aside: not at all; in blocks of dim rows with independent
        norms and Haar-distributed directions at a right angle, or at the angle of a simplex; or in a way of which no
        closed form is known.
    antithetic : bool, default False
        Whether the second half of the rows are the negatives of the first.
    host : bool, default False
        Whether rows can only be drawn on the host, from an integer seed and not from a JAX key.
    block : callable, optional
        ``block(dim)``: how many consecutive rows are drawn together, independently of all others. None (the default)
        stands for what the coupling says: one row, dim rows, or unknown if it is "other".
    """

    name: str
    rows: Rows
    law: str = "normal"
    coupling: Coupling = "other"
    antithetic: bool = False
    host: bool = False
    block: Callable[[int], int] | None = None

    def __call__(self, normal: Normal, count: int, dim: int) -> Any:
        """Draw rows, shape (count, dim)."""
        return self.rows(normal, count, dim)

    def block_rows(self, dim: int) -> int | None:
        """How many consecutive rows are drawn together, antithetic partners aside; None if there are no such blocks."""
        if self.block is not None:
            return self.block(dim)
        if self.coupling == "other":
            return None
        return 1 if self.coupling == "independent" else dim
