"""Packed sequences on JAX: attention and states never cross a segment; equal to running each sequence alone."""

from __future__ import annotations

from typing import Any

import numpy as np
import oracle
import pytest

import rfkernels as rfk

LENGTH = 150
MODES: dict[str, dict[str, Any]] = {
    "bidirectional": {},
    "causal": {"causal": True},
    "windowed causal": {"causal": True, "window": 9},
    "windowed": {"window": 9},
}
IDS = np.stack(
    [
        np.repeat([0, 1, 2, 5], [40, 1, 80, 29]),  # one of a single token, one that begins and ends inside chunks
        np.repeat([-3, 64], [64, 86]),  # a boundary between chunks
        np.zeros(LENGTH, int),
    ]
)[:, None]
"""(3, 1, LENGTH): a row for each batch element, the same for all its heads."""


def inputs(seed: int = 0, jumps: bool = False) -> tuple[Any, Any, Any, Any]:
    """Queries (3, 2, L, d), keys and values that both heads of a batch element share, and a mask."""
    rng = np.random.default_rng(seed)
    q, k, v = (rng.standard_normal((3, heads, LENGTH, n)) for heads, n in ((2, 4), (1, 4), (1, 3)))
    if jumps:
        k = k * np.where(np.arange(LENGTH) % 45 < 20, 0.5, 15.0)[:, None]
    return q, k, v, rng.random((3, 1, LENGTH)) < 0.7


def alone(q: Any, k: Any, v: Any, features: Any, mask: Any, ids: Any, state: Any, **mode: Any) -> list[Any]:
    """Each sequence of each batch element by itself, in float64: outputs put together, and states of the last ones."""
    results = []
    for row in range(len(q)):
        outputs, logs, last = [], [], None
        own = ids[row, 0]
        for number, segment in enumerate(np.unique(own)):
            at = np.flatnonzero(own == segment)
            i = slice(at[0], at[-1] + 1)
            given = None if state is None or number else rfk.State(*(x[row] for x in state))
            seen = None if mask is None else mask[row][:, i]
            arrays = q[row][:, i], k[row][:, i], v[row][:, i]
            last = rfk.attention(*arrays, features, mask=seen, state=given, full=True, backend="numpy", **mode)
            outputs.append(last.output)
            logs.append(last.log_normalizer)
        results.append((np.concatenate(outputs, -2), np.concatenate(logs, -1), last.state))
    return results


def packed(backend: str, dtype: Any, arrays: Any, features: Any, **options: Any) -> Any:
    place = lambda x: None if x is None else oracle.place(x, backend)  # noqa: E731
    state = options.pop("state", None)
    if state is not None:
        state = rfk.State(*(place(x.astype(dtype)) for x in state))
    for name in ("mask", "segment_ids"):
        options[name] = place(options.get(name))
    q, k, v = (place(x.astype(dtype)) for x in arrays)
    return rfk.attention(q, k, v, features, state=state, full=True, backend=backend, **options)


def compare(backend: str, mode: str, name: str, masked: bool, resumed: bool, jumps: bool) -> None:
    q, k, v, mask = inputs(jumps=jumps)
    features, options = oracle.draw(name, 4, 6, scale=1.0), MODES[mode]
    mask, state = mask if masked else None, None
    if resumed:
        state = rfk.write_state(
            rfk.empty_state(features, 3, (3, 1), np.float64), k[..., :9, :], v[..., :9, :], features
        )
    dtype, allowed = (np.float64, 1e-9) if backend == "numpy" else (np.float32, 5e-4 if jumps else 2e-5)
    result = packed(backend, dtype, (q, k, v), features, mask=mask, segment_ids=IDS, state=state, **options)
    if not features.map.nonnegative:  # denominators cancel: to be judged against the sum of absolute values
        assert state is None
        rounded = (x.astype(dtype) for x in (q, k, v))
        expected = oracle.expect(*rounded, features, mask=mask, segment_ids=IDS, **options)
        oracle.check_result(result, expected, dtype, f"{mode} {name} {masked=}")
    for row, (output, log, after) in enumerate(alone(q, k, v, features, mask, IDS, state, **options)):
        what = f"{mode} {name} {masked=} {resumed=} {jumps=} {row=}"
        if features.map.nonnegative:
            np.testing.assert_allclose(result.output[row], output, rtol=allowed, atol=allowed, err_msg=what)
        got = np.asarray(result.log_normalizer[row])
        np.testing.assert_array_equal(np.isfinite(got), np.isfinite(log), err_msg=what)
        if features.map.nonnegative:
            np.testing.assert_allclose(got, log, rtol=allowed, atol=allowed, err_msg=what)
        if after is None:
            assert result.state is None
            continue
        ours = result.state
        if "window" in options:
            count = min(options["window"], after.keys.shape[-2])
            seen = np.broadcast_to(after.mask[..., -count:], (1, count))
            np.testing.assert_array_equal(np.asarray(ours.mask)[row][..., -count:], seen, err_msg=what)
            assert not np.asarray(ours.mask)[row][..., :-count].any()
            ours, after = ours.state, after.state
        for one, two in zip(ours, after, strict=True):
            np.testing.assert_allclose(np.asarray(one)[row], two, rtol=10 * allowed, atol=10 * allowed, err_msg=what)


@pytest.mark.parametrize("mode", MODES)
def test_segments_are_sequences_alone(mode: str) -> None:
    for jumps in (False, True):
        compare("jax", mode, "positive", True, "window" not in MODES[mode], jumps)


@pytest.mark.long
@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("name", ["positive", "trigonometric", "relu"])
@pytest.mark.parametrize("mode", MODES)
def test_segments_of_every_kind_of_map_on_jax(mode: str, name: str, masked: bool) -> None:
    for jumps in (False, True):
        compare("jax", mode, name, masked, False, jumps and name == "positive")


def test_a_windowed_stream_goes_on_in_its_last_segment() -> None:
    """A pass resumed with a DecodeState: the first segment sees the pending keys, the others do not."""
    q, k, v, _ = inputs()
    features, ids = oracle.draw("positive", 4, 6), np.repeat([0, 1, 2], [70, 50, 30])
    options = {"causal": True, "window": 9, "full": True}
    for backend, dtype in (("jax", np.float32),):
        whole = packed(backend, dtype, (q, k, v), features, segment_ids=ids, causal=True, window=9)
        state, parts = None, []
        for i in (slice(0, 75), slice(75, 150)):
            given = [oracle.place(x[..., i, :].astype(dtype), backend) for x in (q, k, v)]
            own = oracle.place(ids[i], backend)
            result = rfk.attention(*given, features, segment_ids=own, state=state, backend=backend, **options)
            state = result.state
            parts.append(np.asarray(result.output))
        np.testing.assert_allclose(np.concatenate(parts, -2), whole.output, rtol=1e-5, atol=1e-5)


def test_segments_of_nothing() -> None:
    features, nothing = oracle.draw("positive", 4, 6), np.zeros((2, 0, 4))
    for mode in MODES.values():
        result = packed("jax", np.float32, (nothing,) * 3, features, segment_ids=np.zeros(0, int), **mode)
        assert result.output.shape == (2, 0, 4)
