"""The catalog: items that may change, and sums of exp(q·y) over them."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal, overload

import numpy as np

from rfkernels._checks import check_flags, generator_of
from rfkernels.catalog import engines, expectations, files, kernel_sums, probabilities, sampling, store
from rfkernels.catalog.arguments import (
    check_budget,
    check_count,
    check_error,
    check_filled,
    check_fit,
    check_kernel,
    check_queries,
    check_real,
    check_seed,
    check_values,
    rows_of_ids,
)
from rfkernels.catalog.cells import check_items, held_dtype
from rfkernels.catalog.copies import OfStore, reading
from rfkernels.catalog.kernel_sums import Scaled
from rfkernels.catalog.records import Draws, Estimate, Expectation, Store, Table, Top
from rfkernels.kernels import Kernel

_DRAWS = 1 << 31


class Catalog(OfStore):
    """Items y₁ … y_n and fast sums Σ exp(q·y_i) over them, for a few thousand dot products a query.

    Any number of threads may read a catalog at once. Who asks waits for a change that is under way; a read beside which
    one begins raises RuntimeError, as does all that is asked after one that was broken off, as by KeyboardInterrupt.

    Items are grouped by k-means. A query looks at all of the groups that matter most and draws from the others, by a
    proposal close to exp(q·y): what is returned is unbiased for the sum and comes with its standard error. Sums look at
    codes of four bits for each number and take few items themselves, to put right what rounding did.

    Parameters
    ----------
    items : array, shape (items, dim)
        The items, of dtype float32 or float64; half precision is kept as float32. May be mapped from a file.
    ids : array of int, shape (items,), optional
        Their ids, from 0 to 2³¹ − 2, each once; 0, 1, … by default. Memory grows with the largest: four bytes for each.
    cells : int, optional
        How many cells k-means finds; about 0.63 √items by default. Items far out get some more, a quarter at most.
    queries : array, shape (count, dim), optional
        Past queries, a thousand or so: cells are then such that logits of queries like these vary little within them
        (`rfkernels.catalog.metric`). Sums of q·y get better by that, those of kernels of a distance worse.
    rng : int, numpy.random.SeedSequence or numpy.random.Generator, default 0
        Where grouping starts from.

    Raises
    ------
    TypeError, ValueError
        If arguments do not fit together, or an item or query is not finite.
    ImportError
        If scikit-learn, which finds the cells, is missing.
    """

    def __init__(
        self, items: Any, *, ids: Any = None, cells: int | None = None, queries: Any = None, rng: Any = 0
    ) -> None:
        self._set(store.build(items, ids, cells=cells, queries=queries, rng=rng))

    def __repr__(self) -> str:
        count = self._store.count  # without waiting: a debugger may ask while it holds all threads
        return f"Catalog of {count.sum()} items of dim {self.dim} in {len(count)} groups"

    @property
    def dim(self) -> int:
        """The width of items."""
        return int(self._held.rows.shape[1])

    @property
    @reading
    def ids(self) -> Any:
        """The ids of all items, in ascending order."""
        return np.flatnonzero(self._store.slots >= 0)

    @property
    def table(self) -> Table:
        """The arrays that estimates read."""
        with self._lock:
            if self._table is None:
                self._table = store.table(self._store)
            return self._table

    @property
    @reading
    def store(self) -> Store:
        """The arrays that `save` writes."""
        return self._store

    @reading
    def items(self, ids: Any) -> Any:
        """Return the items of some ids, (ids, dim)."""
        return np.array(self._store.rows[rows_of_ids(self._store, ids)])

    @overload
    def log_normalizer(
        self,
        /,
        queries: Any,
        *,
        budget: int | None = None,
        error: float | None = None,
        full: Literal[True],
        rng: int = 0,
        backend: str = "numba",
    ) -> Estimate: ...
    @overload
    def log_normalizer(
        self,
        /,
        queries: Any,
        *,
        budget: int | None = None,
        error: float | None = None,
        full: bool = False,
        rng: int = 0,
        backend: str = "numba",
    ) -> Any: ...
    @reading
    def log_normalizer(
        self,
        queries: Any,
        *,
        budget: int | None = None,
        error: float | None = None,
        full: bool = False,
        rng: int = 0,
        backend: str = "numba",
    ) -> Any:
        """Estimate log Z, Z = Σ_i exp(q·y_i).

        Parameters
        ----------
        queries : array, shape (queries, dim) or (dim,)
            The queries; scale them to sharpen or flatten the softmax.
        budget : int, optional
            What each query may take, in dot products, at least cells + dim + 128; 4096 by default, or twice that if it
            is more. The code of an item counts for what part of the item's bytes it has: about a seventh of a dot
            product in float32. From the number of items on the result is exact.
        error : float, optional
            A relative standard error to aim at: `budget` is spent on a pilot, which says how many dot products each
            query needs, up to exactness, and is thrown away, lest estimates be chosen by their value.
        full : bool, default False
            Return an `Estimate`, with standard errors and the dot products taken.
        rng : int, default 0
            The seed. The same seed, batch of queries and catalog give the same numbers; in another batch, those of a
            query may differ. Errors of queries that are alike depend on each other, those of different seeds do not.
        backend : {"numba", "numpy"}, default "numba"
            Compiled, or as specified.

        Returns
        -------
        array, shape (queries,) or (), or Estimate
            Float64; Ẑ is unbiased, log Ẑ is not quite. −inf without items.

        Raises
        ------
        TypeError, ValueError
            If arguments do not fit together, queries are not finite, or `budget` is too small to draw at all.
        """
        table = self.table
        given, budget = check_queries(queries, table), check_budget(table, budget)
        check_error(error)
        check_flags(full=full)
        found, shape = engines.estimated(table, given, budget, error, check_seed(rng), backend), queries.shape[:-1]
        if full:
            return Estimate(*(part.reshape(shape) for part in found))
        return found.log_normalizer.reshape(shape)

    @reading
    def probabilities(
        self, queries: Any, ids: Any, *, budget: int | None = None, error: float | None = None, rng: int = 0
    ) -> Any:
        """Estimate the softmax exp(q·y_i) / Z of some items.

        Parameters
        ----------
        queries : array, shape (queries, dim) or (dim,)
            The queries.
        ids : array of int, shape (items,) or (queries, items)
            The items: the same for all queries, or each query's own.
        budget, error, rng
            As in `log_normalizer`, whose standard error is also that of the log of each probability.

        Returns
        -------
        array, shape (queries, items) or (items,)
            Probabilities; not cut at one, which an estimate may pass. Where q·y is so large that its rounding in the
            items' dtype is no small number, as 10⁶ is in float32, they are off by as much: hold items in float64.

        Raises
        ------
        KeyError
            If an id is not in the catalog.
        TypeError, ValueError
            If arguments do not fit together.
        """
        given, slots = check_queries(queries, self.table), rows_of_ids(self._store, ids)
        if slots.ndim not in (1, 2) or (slots.ndim == 2 and len(slots) != len(given)):
            raise ValueError(f"ids must have shape (items,) or ({len(given)}, items), got {slots.shape}")
        log = np.atleast_1d(self.log_normalizer(queries, budget=budget, error=error, rng=rng))
        spent = 0 if error is not None else check_budget(self.table, budget)
        found = probabilities.of_items(self.table, given, slots, log, spent)
        return found.reshape(*queries.shape[:-1], slots.shape[-1])

    @overload
    def expectation(
        self,
        /,
        queries: Any,
        values: Any,
        *,
        budget: int | None = None,
        error: float | None = None,
        full: Literal[True],
        rng: int = 0,
        backend: str = "numba",
    ) -> Expectation: ...
    @overload
    def expectation(
        self,
        /,
        queries: Any,
        values: Any,
        *,
        budget: int | None = None,
        error: float | None = None,
        full: bool = False,
        rng: int = 0,
        backend: str = "numba",
    ) -> Any: ...
    @reading
    def expectation(
        self,
        queries: Any,
        values: Any,
        *,
        budget: int | None = None,
        error: float | None = None,
        full: bool = False,
        rng: int = 0,
        backend: str = "numba",
    ) -> Any:
        """Estimate the softmax-weighted mean Σ_i p_i v_i of values of the items.

        Parameters
        ----------
        queries : array, shape (queries, dim) or (dim,)
            The queries.
        values : array, shape (largest id ever in use + 1, width) or (largest id ever in use + 1,)
            The value of each id, a float; those of ids that are not in the catalog, or not taken, do not matter.
        budget, rng, backend
            As in `log_normalizer`. From all to one in six dot products are with items, whose values are looked at too.
        error : float, optional
            A standard error to aim at, in standard deviations: with 0.01, the standard error of every column is to be
            at most a hundredth of the standard deviation √(Σ p_i (v_i − mean)²) that its values have under the softmax,
            as 10⁴ independent draws would have it, whatever the units of values and wherever their zero is. As in
            `log_normalizer`, `budget` is spent on a pilot, which is thrown away; its sum of weights is judged too, as
            the values of a sample do not show a tail that it has missed.
        full : bool, default False
            Return an `Expectation`, with standard errors.

        Returns
        -------
        array, shape (queries, width) or (width,), or Expectation
            A ratio of unbiased estimates; its bias falls as one over the budget. Of values without width, without.

        Raises
        ------
        TypeError, ValueError
            If arguments do not fit together, the catalog is empty, or a value that was taken is not finite.
        """
        table = self.table
        given, budget = check_queries(queries, table), check_budget(table, budget)
        columns = check_values(values, self._store)
        check_filled(table)
        check_error(error)
        check_flags(full=full)
        found = expectations.expected(table, given, columns, budget, error, check_seed(rng), backend)
        found = Expectation(*(part.reshape((*queries.shape[:-1], *values.shape[1:])) for part in found))
        return found if full else found.mean

    @reading
    def top(self, queries: Any, k: int, *, budget: int | None = None, backend: str = "numba") -> Top:
        """Return the k items of largest q·y among those that a query finds, largest first.

        Groups that promise most are looked through by their codes, then items that these say most of: 3 k + 10 at most.

        Parameters
        ----------
        queries : array, shape (queries, dim) or (dim,)
            The queries.
        k : int
            How many.
        budget : int, optional
            As in `log_normalizer`: it decides how many of the true largest are found; from the number of items on, all.
        backend : {"numba", "numpy"}, default "numba"
            As in `log_normalizer`.

        Returns
        -------
        Top
            ids and logits, (queries, k) or (k,).

        Raises
        ------
        TypeError, ValueError
            If arguments do not fit together, or there are fewer than k items.
        """
        given = check_queries(queries, self.table)
        check_filled(self.table)
        check_count("k", k, 1, len(self))
        found = engines.choose(backend).top(self.table, given, int(k), check_budget(self.table, budget))
        check_fit(found.logits, np.float64)
        return Top(*(part.reshape(*queries.shape[:-1], k) for part in found))

    @reading
    def sample(self, queries: Any, n: int, rng: Any = 0, *, exact: bool = False, backend: str = "numba") -> Draws:
        """Draw n items for each query, with replacement, and say with what probability each was drawn.

        A draw takes about 2,048 dot products a query and the items of the group that it falls into, 512 at most.

        Parameters
        ----------
        queries : array, shape (queries, dim) or (dim,)
            The queries.
        n : int
            Draws for each.
        rng : int, numpy.random.SeedSequence or numpy.random.Generator, default 0
            Where chance comes from.
        exact : bool, default False
            Draw from the softmax itself, at the cost of all dot products once for each query.
        backend : {"numba", "numpy"}, default "numba"
            As in `log_normalizer`.

        Returns
        -------
        Draws
            ids, log_probability and logits, (queries, n) or (n,). exp(logits − log_probability) are importance
            weights, whose mean is an unbiased estimate of Z.

        Raises
        ------
        TypeError, ValueError
            If arguments do not fit together, or the catalog is empty.
        """
        given = check_queries(queries, self.table)
        check_count("n", n, 0, _DRAWS)
        check_filled(self.table)
        check_flags(exact=exact)
        draw = sampling.sample_exactly if exact else engines.choose(backend).sample
        found = draw(self.table, given, int(n), generator_of(rng))
        check_fit(found.logits + found.log_probability, self.table.rows.dtype)
        return Draws(*(part.reshape(*queries.shape[:-1], n) for part in found))

    @overload
    def kernel_sum(
        self,
        /,
        queries: Any,
        kernel: str | Kernel = "gaussian",
        *,
        scale: float = 1.0,
        budget: int | None = None,
        error: float | None = None,
        full: Literal[True],
        rng: int = 0,
        backend: str = "numba",
    ) -> Estimate: ...
    @overload
    def kernel_sum(
        self,
        /,
        queries: Any,
        kernel: str | Kernel = "gaussian",
        *,
        scale: float = 1.0,
        budget: int | None = None,
        error: float | None = None,
        full: bool = False,
        rng: int = 0,
        backend: str = "numba",
    ) -> Any: ...
    @reading
    def kernel_sum(
        self,
        queries: Any,
        kernel: str | Kernel = "gaussian",
        *,
        scale: float = 1.0,
        budget: int | None = None,
        error: float | None = None,
        full: bool = False,
        rng: int = 0,
        backend: str = "numba",
    ) -> Any:
        """Estimate log Σ_i k(√scale q, √scale y_i) for another kernel than exp(q·y).

        Parameters
        ----------
        queries : array, shape (queries, dim) or (dim,)
            The queries.
        kernel : str or Kernel, default "gaussian"
            A kernel, or the name of a map that has one (`rfkernels.names`); it must not be negative. For the Gaussian,
            exp(−scale |q − y|²/2), so a bandwidth h is scale=1/h².
        scale : float, default 1
            Multiplies q·y, |q|² and |y|².
        budget, error, full, rng, backend
            As in `log_normalizer`, but NumPy sums kernels with neither `Kernel.norm_weight` nor `Kernel.profile`; a
            query whose pilot met no kernel but zeros is computed exactly.

        Returns
        -------
        array, shape (queries,) or (), or Estimate
            Float64, unbiased for the sum; −inf where all kernels that were taken are zero.

        Raises
        ------
        TypeError, ValueError
            If arguments do not fit together, or the kernel can be negative, infinite, or no number.
        """
        given = check_queries(queries, self.table)
        check_real("scale", scale)
        chosen = check_kernel(kernel)
        budget = check_budget(self.table, budget)
        check_error(error)
        check_flags(full=full)
        how = Scaled(chosen, float(scale)), budget, error, check_seed(rng), backend
        found = Estimate(*(x.reshape(queries.shape[:-1]) for x in kernel_sums.estimated(self.table, given, *how)))
        return found if full else found.log_normalizer

    def add(self, items: Any, ids: Any = None) -> Any:
        """Add items and return their ids.

        Parameters
        ----------
        items : array, shape (items, dim)
            What is added, of the catalog's dtype.
        ids : array of int, shape (items,), optional
            Ids that the catalog does not have; those after the largest by default.

        Returns
        -------
        array of int, shape (items,)
            The ids.

        Raises
        ------
        TypeError, ValueError
            If arguments do not fit together, an id is there already or an item is not finite; nothing is changed then.
        """
        with self._lock:
            items, largest = check_items(items, self.dim, self._store.rows.dtype), len(self._store.slots)
            ids = np.arange(largest, largest + len(items)) if ids is None else ids
            store.add(self._to_change(), items, ids)
        return np.asarray(ids)

    def remove(self, ids: Any) -> None:
        """Remove the items of some ids, each once; nothing is changed if one is unknown (KeyError)."""
        with self._lock:
            store.remove(self._to_change(), ids)

    def update(self, ids: Any, items: Any) -> None:
        """Replace the items of some ids, each once; nothing is changed if one is unknown (KeyError) or does not fit."""
        with self._lock:
            store.update(self._to_change(), ids, items)

    @reading
    def merge(self, other: Catalog) -> Catalog:
        """Return a new catalog of the items of both, whose ids must differ.

        Each keeps its cells; where there would be more than twice as many as by default, or they were found for other
        queries, items of the smaller catalog join cells of the larger.
        """
        if not isinstance(other, Catalog):
            raise TypeError(f"other must be a Catalog, got {type(other).__name__}")
        with other._unchanged("merged: merge it again"):
            return Catalog.from_store(store.merge(self._store, other.store))

    def regroup(self, *, cells: int | None = None, queries: Any = None, rng: Any = 0) -> None:
        """Find cells anew, after many changes, for the same past queries or others: as `Catalog` would.

        Queries that look in all directions alike, such as ``np.eye(dim)``, let cells be as if there were none.
        """
        self._replace(lambda held: store.regroup(held, cells=cells, queries=queries, rng=rng))

    @property
    @reading
    def outgrown(self) -> bool:
        """Whether items doubled or halved in number or moved together or apart since cells were found (`regroup`)."""
        return store.outgrown(self._store)

    def save(self, path: str | Path) -> None:
        """Write a safetensors file, which takes its name only when it is complete: see `load`.

        A catalog that another thread changes meanwhile is a RuntimeError, and not written.
        """
        files.save(self.store, path)

    @classmethod
    def create(
        cls,
        path: str | Path,
        items: Any,
        *,
        ids: Any = None,
        cells: int | None = None,
        queries: Any = None,
        rng: Any = 0,
    ) -> Catalog:
        """Build a catalog in its file, with room for an eighth more items, and map it: see `Catalog` and `load`."""
        if not len(check_items(items)):
            raise ValueError("items must not be empty: a file is made for what it holds")
        how = {"ids": ids, "cells": cells, "queries": queries, "rng": rng, "growing": True}
        room = 5 * len(items) // 4, items.shape[1]
        files.create(path, room, held_dtype(items).name, lambda rows: store.build(items, **how, rows=rows))
        return cls.load(path, mapped=True)

    @classmethod
    def load(cls, path: str | Path, *, mapped: bool = False, verify: bool = False) -> Catalog:
        """Read a catalog that `save` wrote.

        Parameters
        ----------
        path : str or pathlib.Path
            The file.
        mapped : bool, default False
            Leave the items in the file and read them as they are needed, for catalogs larger than memory. Changes stay
            in memory, for the pages that they write to and groups that move: `save` and load again to give it back.
        verify : bool, default False
            Check the sum of mapped items too, which reads them all.

        Raises
        ------
        OSError, ValueError
            If the file cannot be read, is not a catalog, is of another version, or was cut or altered.
        """
        return cls.from_store(files.load(path, mapped=mapped, verify=verify))
