"""Records of a catalog: its table of items in groups, and what queries return."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, NamedTuple

from rfkernels._arrays import record
from rfkernels.catalog.mapping import Private, Source


class Table(NamedTuple):
    """Items in groups: all that an estimate reads.

    Items belong to the cell of the nearest centre. Those of a cell are cut into groups, shells of like distance from
    the centre: logits of far items vary more, so the few farthest are kept apart. A group is a run of rows, its items
    in random order.

    Parameters
    ----------
    rows : array, shape (room, dim)
        Items, those of a group side by side; may be mapped from a file. Rows of no group are free.
    ids : array of int32, shape (room,)
        The id of each row, −1 where it is free.
    start, count : array of int64 and int32, shape (groups,)
        Where each group begins and how many items it holds, at least one.
    cell : array of int32, shape (groups,)
        The cell of each group, in ascending order.
    spread : array, shape (groups,)
        Mean squared distance of a group's items from the mean of their cell; for proposals only.
    means : array, shape (cells, dim)
        The mean of all items of each cell; 0 for a cell without any.
    shape : array, shape (dim, dim)
        Covariance of items about the means of their cells, of trace 1; for proposals only.
    codes : array of uint8, shape (⌈room / 16⌉, bytes), optional
        Four bits for each number of each row, as `rfkernels.catalog.codes` has it.
    anchors : array, shape (cells, dim), optional
        The points that codes count from, near the means of cells.
    scales : array, shape (dim,), optional
        What steps of codes are multiplied by in each dimension.
    metric : array, shape (dim, dim) or (0, dim), optional
        What items are multiplied by where they are compared: see `rfkernels.catalog.metric`.
    centres : array, shape (cells, dim), optional
    edge : array, shape (groups,), optional
        As in `Store`: what tells which group an item joins.
    """

    rows: Any
    ids: Any
    start: Any
    count: Any
    cell: Any
    spread: Any
    means: Any
    shape: Any
    codes: Any = None
    anchors: Any = None
    scales: Any = None
    metric: Any = None
    centres: Any = None
    edge: Any = None


@record
class Estimate(NamedTuple):
    """What is known of the log-normalizers of queries.

    Parameters
    ----------
    log_normalizer : array, shape (queries,)
        log Ẑ, where Ẑ is an unbiased estimate of Z = Σ_i exp(q·y_i); −inf for no items.
    standard_error : array, shape (queries,)
        Standard error of Ẑ as a part of Ẑ, which to first order is that of its log; 0 where every item was taken. Too
        large, at most, where nearly all items of the groups that are drawn from are drawn: no item is drawn twice
        before the others of its group, which the error does not know. Rounding of q·y, which is in proportion to
        |q||y|, is not part of it.
    dots : array of int, shape (queries,)
        Dot products that each query took, codes among them as far as their bytes go.
    """

    log_normalizer: Any
    standard_error: Any
    dots: Any


@record
class Expectation(NamedTuple):
    """Softmax-weighted means of values.

    Parameters
    ----------
    mean : array, shape (queries, width), or (queries,) of values without width
        Σ p_i v_i, with p the softmax: the ratio of two unbiased estimates, whose bias falls as one over the budget.
    standard_error : array, shape (queries, width)
        Its standard error to first order, as differences of draws show it, and for what few draws do not show, what is
        predicted of the sum of weights, as if values varied along; 0 where every item was taken, and for a column in
        which those taken do not differ.
    """

    mean: Any
    standard_error: Any


@record
class Top(NamedTuple):
    """The items of largest q·y among those taken, largest first.

    Parameters
    ----------
    ids : array of int, shape (queries, count)
        The items.
    logits : array, shape (queries, count)
        q·y of each.
    """

    ids: Any
    logits: Any


@record
class Draws(NamedTuple):
    """Items drawn for each query.

    Parameters
    ----------
    ids : array of int, shape (queries, draws)
        The items.
    log_probability : array, shape (queries, draws)
        The log of the probability with which each draw, independently, came out as this item.
    logits : array, shape (queries, draws)
        q·y of each.
    """

    ids: Any
    log_probability: Any
    logits: Any


class Index(NamedTuple):
    """Groups in the orders in which changes look for them.

    Parameters
    ----------
    begins, owner : array of int64, shape (groups,)
        The first row of each group in ascending order, and whose it is.
    order : array of int64, shape (groups,)
        Groups cell by cell, those of a cell from the inside outwards.
    first : array of int64, shape (cells + 1,)
        Where each cell begins in `order`.
    packed : rfkernels.backends.numba.catalog_nearest.Packed
        The centres, which stay the same.
    """

    begins: Any
    owner: Any
    order: Any
    first: Any
    packed: Any


@dataclass
class Store:
    """Everything that a catalog holds and that `save` writes: the arrays of its table and what changing it needs.

    Parameters
    ----------
    rows, ids, start, count, cell, shape
        As in `Table`.
    capacity : array of int32, shape (groups,)
        How many rows each group may fill before it has to move.
    edge : array, shape (groups,)
        Squared distance from the centre at which each group begins, as items are compared: one joins the outermost
        group of its cell that begins no farther out than it lies.
    sums : array of float64, shape (groups, dim)
        Σ (y − centre) over each group, always summed again, never subtracted from.
    squares : array of float64, shape (groups,)
        Σ |y − centre|² over each group.
    centres : array, shape (cells, dim)
        The points that items are assigned to cells by; they stay where they are until the catalog is grouped anew.
    slots : array of int32, shape (largest id + 1,)
        The row of each id, −1 for none.
    codes : array of uint8, shape (⌈room / 16⌉, bytes)
    anchors : array, shape (cells, dim)
    scales : array, shape (dim,)
        As in `Table`; anchors and scales stay the same until the catalog is grouped anew, codes go with their rows.
    metric : array, shape (dim, dim) or (0, dim)
        What items are multiplied by where they are compared with centres; none of its rows for items as they are.
    end : int
        Rows from here on were never used.
    built : int
        How many items there were when the cells were found.
    index : Index, optional
        What changes look groups up in: made of the other arrays when it is needed, and not written.
    source : rfkernels.catalog.mapping.Source or Private, optional
        The file that `rows` are mapped from, if they are, or what they lie in when they were changed since.
    whole : bool
        False while a change moves items, and for good once one was broken off in the midst of that.
    changes : int
        How often items were moved.
    """

    rows: Any
    ids: Any
    start: Any
    count: Any
    capacity: Any
    cell: Any
    edge: Any
    sums: Any
    squares: Any
    centres: Any
    shape: Any
    slots: Any
    codes: Any
    anchors: Any
    scales: Any
    metric: Any
    end: int
    built: int
    index: Index | None = field(default=None, repr=False, compare=False)
    source: Source | Private | None = field(default=None, repr=False, compare=False)
    whole: bool = field(default=True, repr=False, compare=False)
    changes: int = field(default=0, repr=False, compare=False)
