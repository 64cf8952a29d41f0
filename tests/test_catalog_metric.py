"""Catalogs that are told past queries: cells that suit these, and everything else as ever."""

from __future__ import annotations

import copy
import pickle
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest

import rfkernels as rfk
from rfkernels.catalog import metric, store
from rfkernels.catalog.cells import nearest, pack

DIM, ITEMS, CELLS = 20, 8_000, 40


def items(dtype: str = "float32") -> Any:
    return np.random.default_rng(0).normal(size=(ITEMS, DIM)).astype(dtype)


def queries(count: int = 500, seed: int = 1, dtype: str = "float32") -> Any:
    """Look in four directions most of all."""
    rng = np.random.default_rng(seed)
    return (rng.normal(size=(count, DIM)) * np.where(np.arange(DIM) < 4, 1.5, 0.15)).astype(dtype)


def exact(y: Any, q: Any) -> Any:
    return np.log(np.exp(q.astype(np.float64) @ y.astype(np.float64).T).sum(1))


def held(catalog: rfk.Catalog) -> Any:
    return catalog.items(catalog.ids)


def assert_well_grouped(catalog: rfk.Catalog) -> None:
    """Every item is in the cell of its nearest centre, as items are compared, no nearer than its group begins."""
    s = catalog.store
    packed = pack(metric.compared(s.metric, s.centres))
    for start, count, cell, edge in zip(s.start, s.count, s.cell, s.edge, strict=True):
        label, square = nearest(metric.compared(s.metric, np.array(s.rows[start : start + count])), packed)
        assert (label == cell).all()
        assert (square >= edge * (1 - 1e-4) - 1e-6).all()


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_errors_fall_and_intervals_hold(dtype: str) -> None:
    y, q, past = items(dtype), queries(400, 2, dtype), queries(dtype=dtype)
    whole, errors = exact(y, q), {}
    for told in (False, True):
        catalog = rfk.Catalog(y, cells=CELLS, queries=past if told else None)
        found = catalog.log_normalizer(q, budget=600, full=True)
        off = np.abs(found.log_normalizer - whole)
        assert np.mean(off < 1.96 * found.standard_error) > 0.9
        errors[told] = np.median(off)
    assert errors[True] < 0.7 * errors[False]


@pytest.mark.parametrize("backend", ["numba", "numpy"])
def test_sums_are_unbiased(backend: str) -> None:
    y, q = items(), queries(4, 2)
    catalog, whole = rfk.Catalog(y, cells=CELLS, queries=queries()), exact(y, q)
    ratio = np.exp([catalog.log_normalizer(q, budget=400, rng=seed, backend=backend) - whole for seed in range(150)])
    assert (np.abs(ratio.mean(0) - 1) < 6 * ratio.std(0) / 150**0.5).all()
    np.testing.assert_allclose(catalog.log_normalizer(q, budget=ITEMS, backend=backend), whole, rtol=1e-6)
    found = catalog.kernel_sum(q, "gaussian", budget=ITEMS)
    square = ((q[:, None].astype(np.float64) - y) ** 2).sum(-1)
    np.testing.assert_allclose(found, np.log(np.exp(-square / 2).sum(1)), rtol=1e-5)


def test_metric_is_what_it_says() -> None:
    past = queries(3_000).astype(np.float64)
    found = metric.metric_of(past, DIM, np.dtype("float64"))
    moment = past.T @ past + np.trace(past.T @ past) / (3_000 * DIM) * np.eye(DIM)
    fourth = np.linalg.matrix_power(found, 4)
    np.testing.assert_allclose(fourth / np.trace(fourth), moment / np.trace(moment), rtol=1e-9, atol=1e-12)
    np.testing.assert_allclose(np.linalg.det(found), 1)
    np.testing.assert_allclose(metric.metric_of(1e150 * past, DIM, np.dtype("float64")), found, rtol=1e-9)
    y = items("float64")
    np.testing.assert_allclose(metric.restored(found, metric.compared(found, y)), y, rtol=1e-9, atol=1e-12)
    none = metric.metric_of(None, DIM, np.dtype("float32"))
    assert none.shape == (0, DIM)
    assert metric.compared(none, y) is y


@pytest.mark.parametrize("count", [1, 3, DIM])
def test_few_queries_suffice(count: int) -> None:
    catalog = rfk.Catalog(items(), cells=CELLS, queries=queries(count))
    assert np.isfinite(catalog.store.metric).all()
    assert_well_grouped(catalog)


def test_changes_keep_to_the_metric() -> None:
    rng, y = np.random.default_rng(3), items()
    catalog = rfk.Catalog(y, cells=CELLS, queries=queries())
    assert_well_grouped(catalog)
    kept = catalog.store.metric.copy()
    for _ in range(4):
        gone = rng.choice(catalog.ids, 700, replace=False)
        catalog.remove(gone)
        catalog.add(rng.normal(size=(1_500, DIM)).astype(np.float32))
        some = rng.choice(catalog.ids, 500, replace=False)
        catalog.update(some, rng.normal(size=(500, DIM)).astype(np.float32))
    assert_well_grouped(catalog)
    np.testing.assert_allclose(
        catalog.log_normalizer(queries(5), budget=10**6), exact(held(catalog), queries(5)), rtol=1e-6
    )
    catalog.regroup()
    np.testing.assert_array_equal(catalog.store.metric, kept)
    assert_well_grouped(catalog)
    catalog.regroup(queries=np.roll(queries(), 4, 1))
    assert np.abs(catalog.store.metric - kept).max() > 0.1
    assert_well_grouped(catalog)


def test_groups_that_are_cut_as_items_are_compared() -> None:
    catalog = rfk.Catalog(items()[:1_500], cells=2, queries=queries())
    before = len(catalog.store.count)
    catalog.add(items()[1_500:])
    assert len(catalog.store.count) > before + 4
    assert_well_grouped(catalog)


def test_merged_where_items_are_compared_alike() -> None:
    y, past, q = items(), queries(), queries(5, 4)
    a, b = rfk.Catalog(y[:5_000], queries=past), rfk.Catalog(y[5_000:], ids=np.arange(5_000, ITEMS), queries=past)
    alike = store.merge(a.store, b.store, most=ITEMS)
    assert len(alike.centres) == len(a.store.centres) + len(b.store.centres)
    np.testing.assert_array_equal(alike.metric, a.store.metric)
    b.store.metric = b.store.metric * np.float32(1 + 1e-6)
    assert len(store.merge(a.store, b.store, most=ITEMS).centres) == len(alike.centres), "as on another machine"
    other = rfk.Catalog(y[5_000:], ids=np.arange(5_000, ITEMS))
    for one, two in ((a, other), (other, a)):
        joined = store.merge(one.store, two.store, most=ITEMS)
        assert len(joined.centres) == len(a.store.centres), "those of the larger"
        np.testing.assert_array_equal(joined.metric, a.store.metric)
        merged = rfk.Catalog.from_store(joined)
        assert_well_grouped(merged)
        np.testing.assert_allclose(merged.log_normalizer(q, budget=ITEMS), exact(y, q), rtol=1e-6)


def test_in_files(tmp_path: Path) -> None:
    y, past, q = items(), queries(), queries(5, 4)
    catalog = rfk.Catalog(y, cells=CELLS, queries=past)
    catalog.save(tmp_path / "a.safetensors")
    loaded = rfk.Catalog.load(tmp_path / "a.safetensors")
    made = rfk.Catalog.create(tmp_path / "b.safetensors", y, cells=CELLS, queries=past)
    np.testing.assert_array_equal(loaded.log_normalizer(q, budget=700), catalog.log_normalizer(q, budget=700))
    np.testing.assert_allclose(made.log_normalizer(q, budget=ITEMS), exact(y, q), rtol=1e-6)
    for other in (loaded, made):
        np.testing.assert_array_equal(other.store.metric, catalog.store.metric)
        other.add(y[:100] + 1)
        assert_well_grouped(other)


def test_refusals() -> None:
    y, past = items(), queries()
    with pytest.raises(ValueError, match=r"queries must have shape \(queries, 20\), got \(500, 19\)"):
        rfk.Catalog(y, queries=past[:, :19])
    with pytest.raises(ValueError, match=r"queries must be finite, but queries\[3, 2\] is nan"):
        rfk.Catalog(y, queries=np.where(np.arange(500 * DIM).reshape(500, DIM) == 3 * DIM + 2, np.nan, past))
    with pytest.raises(ValueError, match="queries must not all be 0, got 500 of them"):
        rfk.Catalog(y, queries=0 * past)
    with pytest.raises(ValueError, match="queries must not all be 0, got 0 of them"):
        rfk.Catalog(y, queries=past[:0])
    with pytest.raises(TypeError, match="queries must"):
        rfk.Catalog(y, queries=past.astype(int))
    with pytest.raises(TypeError, match="queries must"):
        rfk.Catalog(y, queries=[1.0, 2.0])
    with pytest.raises(
        ValueError,
        match=r"items must have squared norms whose sums fit float32 as they are compared for past queries, but items\[7\] is too large",
    ):
        rfk.Catalog(np.where(np.arange(ITEMS)[:, None] == 7, np.float32(1e37), y), queries=past)
    with pytest.raises(ValueError, match=r"items must be finite, but items\[7, 0\] is inf"):
        rfk.Catalog(np.where(np.arange(ITEMS)[:, None] == 7, np.float32(np.inf), y), queries=past)
    catalog = rfk.Catalog(y, cells=CELLS, queries=past)
    catalog.store.metric = catalog.store.metric[:7]
    with pytest.raises(ValueError, match=r"metric has shape \(7, 20\); expected as many rows as columns, or none"):
        catalog.save("never")


@pytest.mark.parametrize("narrow", ["float16", "bfloat16", "float32"])
def test_narrower_items_join_the_cells_that_they_would_be_built_into(narrow: str) -> None:
    """They are compared in the precision that they are held in."""
    kind = getattr(ml_dtypes, narrow) if narrow == "bfloat16" else np.dtype(narrow)
    for dtype in ("float32", "float64") if narrow != "float32" else ("float64",):
        large = {"float16": 6e4, "bfloat16": 1e18, "float32": 2e38}[narrow]
        catalog = rfk.Catalog(items(dtype), cells=CELLS, queries=queries(dtype=dtype))
        catalog.add(np.random.default_rng(5).normal(size=(3_000, DIM)).astype(kind))
        catalog.update(np.arange(1_000), np.random.default_rng(6).normal(size=(1_000, DIM)).astype(kind))
        assert_well_grouped(catalog)
        catalog.add(np.full((1, DIM), large).astype(kind) * (np.arange(DIM) == 1).astype(kind))


def test_a_large_query_among_others_is_one_of_them() -> None:
    past = queries(2_000, dtype="float64")
    found = metric.metric_of(past, DIM, np.dtype("float64"))
    past[7] = 1e5 * np.random.default_rng(0).normal(size=DIM)
    np.testing.assert_allclose(metric.metric_of(past, DIM, np.dtype("float64")), found, atol=0.1 * np.abs(found).max())


def test_queries_that_look_everywhere_alike_tell_nothing() -> None:
    catalog = rfk.Catalog(items(), cells=CELLS, queries=queries())
    catalog.regroup(queries=np.eye(DIM))
    np.testing.assert_allclose(catalog.store.metric, np.eye(DIM), atol=1e-6)


def out_of_band(catalog: rfk.Catalog) -> Any:
    buffers: list[pickle.PickleBuffer] = []
    return pickle.loads(pickle.dumps(catalog, 5, buffer_callback=buffers.append), buffers=buffers)


COPIES = copy.copy, copy.deepcopy, lambda x: pickle.loads(pickle.dumps(x)), out_of_band


@pytest.mark.parametrize("copied", COPIES)
def test_copies(copied: Any, tmp_path: Path) -> None:
    whole = rfk.Catalog(items(), cells=CELLS, queries=queries())
    whole.save(tmp_path / "a")
    for catalog in (whole, rfk.Catalog.load(tmp_path / "a", mapped=True)):
        q, before = queries(5, 4), len(catalog)
        own = copied(catalog)
        for name, value in vars(own.store).items():
            assert not isinstance(value, np.ndarray) or not np.may_share_memory(value, getattr(catalog.store, name))
        np.testing.assert_array_equal(own.log_normalizer(q, budget=700), catalog.log_normalizer(q, budget=700))
        catalog.add(items()[:100])
        own.remove(np.arange(10))
        assert (len(own), len(catalog)) == (before - 10, before + 100)
        for one in (own, catalog):
            np.testing.assert_allclose(one.log_normalizer(q, budget=10**6), exact(held(one), q), rtol=1e-6)


@pytest.mark.parametrize(
    ("forged", "text"),
    [
        (lambda m: 0 * m, "metric has eigenvalues from 0 to 0; expected a symmetric one of determinant 1"),
        (lambda m: np.float32(1e30) * m, "metric has eigenvalues from .*; expected"),
        (lambda m: np.roll(m, 1, 0), "metric has eigenvalues from .*; expected"),
        (lambda m: m.astype(np.float64), "metric is of dtype float64; expected float32 as in rows"),
    ],
)
def test_forged_metrics(forged: Any, text: str, tmp_path: Path) -> None:
    catalog = rfk.Catalog(items(), cells=CELLS, queries=queries())
    catalog.store.metric = forged(catalog.store.metric)
    with pytest.raises(ValueError, match=text):
        catalog.save(tmp_path / "never")
