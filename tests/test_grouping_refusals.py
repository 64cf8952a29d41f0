"""What passes over blocks refuse, and how they say so."""

from __future__ import annotations

from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest
from grouped_oracle import (
    DIM,
    SCALE,
    make_groups,
    normal,
)

import rfkernels as rfk
from rfkernels.groups import fit_groups, heavy_keys


def arguments() -> dict[str, Any]:
    q, k, v = normal(3, 40, DIM)
    return {"q": q, "k": k, "v": v, "groups": make_groups(np.random.default_rng(0), 3)}


def causal_state(**options: Any) -> Any:
    return rfk.attention(**{**arguments(), "causal": True, "full": True, **options}).state


def bad(name: str, at: tuple[int, ...], value: float) -> Any:
    x = np.array(arguments()[name])
    x[at] = value
    return x


GROUPS, FEATURES = arguments()["groups"], rfk.draw("positive", DIM, 4, scale=SCALE, rng=0)
REFUSED: dict[str, tuple[type, str, dict[str, Any]]] = {
    "nothing for other keys": (TypeError, "features must be given, or groups=", {"groups": None, "heavy": 3}),
    "not groups": (TypeError, "groups must be a Groups .*got list", {"groups": [1, 2]}),
    "a tuple of arrays": (TypeError, "groups must be a Groups .*got tuple", {"groups": tuple(GROUPS)}),
    "no groups": (ValueError, "groups, .*must be a positive integer, got 0", {"groups": 0}),
    "a truth value": (ValueError, "groups, .*must be a positive integer, got True", {"groups": True}),
    "centres of another width": (
        ValueError,
        r"groups must have centres \(\*batch, count, 4\).*got \(3, 5\)",
        {"groups": make_groups(np.random.default_rng(0), 3, dim=5)},
    ),
    "a metric of another width": (ValueError, r"groups must have .*\(2, 2\)", {"groups": GROUPS._replace(metric=np.eye(2))}),
    "a spread of another width": (ValueError, r"groups must have .*\(2, 2\)", {"groups": GROUPS._replace(spread=np.eye(2))}),
    "centres that are a list": (TypeError, "groups.centres must be .*list", {"groups": GROUPS._replace(centres=[[0.0] * 4])}),
    "no centre": (ValueError, r"groups must have .*\(0, 4\)", {"groups": GROUPS._replace(centres=np.zeros((0, 4)))}),
    "batch axes of groups": (
        ValueError,
        r"batch axes do not broadcast: .*groups \(3,\)",
        {"groups": make_groups(np.random.default_rng(0), 3, (3,)), **{n: np.stack([arguments()[n]] * 2) for n in "qkv"}},
    ),
    "batch axes within groups": (
        ValueError,
        r"groups.centres \(2,\), groups.metric \(3,\)",
        {"groups": GROUPS._replace(centres=np.zeros((2, 3, 4)), metric=np.zeros((3, 4, 4)))},
    ),
    "two scales": (
        ValueError,
        "groups and features must have one scale, got 0.7 and 0.5",
        {"features": rfk.draw("positive", DIM, 4, rng=0)},
    ),
    "a signed map": (ValueError, "exponential, nonnegative", {"features": rfk.draw("trigonometric", DIM, 4, scale=SCALE, rng=0)}),
    "a map that is not exponential": (ValueError, "exponential, nonnegative", {"groups": None, "heavy": 2, "features": rfk.draw("relu", DIM, 4, rng=0)}),
    "features of another width": (ValueError, "features are of dim 3", {"features": rfk.draw("positive", 3, 4, rng=0)}),
    "something else for features": (TypeError, "features must be a Features", {"features": "positive"}),
    "packed sequences": (ValueError, "segment_ids= cannot be combined", {"segment_ids": np.zeros(40, int)}),
    "a window of nothing": (ValueError, "window must be a positive integer or None, got 0", {"window": 0}),
    "more queries than keys": (
        ValueError,
        "a key for each query, got lengths 40 and 30",
        {"causal": True, "k": arguments()["k"][:30], "v": arguments()["v"][:30]},
    ),
    "NaN in q": (ValueError, r"q must be finite, but q\[3, 1\] is nan", {"q": bad("q", (3, 1), np.nan)}),
    "infinity in k": (ValueError, r"k must be finite, but k\[5, 2\] is inf", {"k": bad("k", (5, 2), np.inf), "groups": 3}),
    "NaN in v": (ValueError, r"v must be finite, but v\[0, 0\] is nan", {"v": bad("v", (0, 0), np.nan), "causal": True}),
    "a mask of numbers": (TypeError, "mask must be of dtype bool", {"mask": np.ones(40), "groups": 3}),
    "a mask over pairs": (ValueError, r"mask must be over keys, .*got \(40, 40\)", {"mask": np.ones((40, 40), bool)}),
    "no heavy key": (ValueError, "heavy, .*must be a positive integer, got 0", {"heavy": 0}),
    "positions in a list": (ValueError, r"heavy, if not an array .*got \[1, 2\]", {"heavy": [1, 2]}),
    "positions that are not whole": (ValueError, "heavy must hold integers .*float64", {"heavy": np.ones(2)}),
    "truth values for positions": (ValueError, "heavy must hold integers .*bool", {"heavy": np.ones(40, bool)}),
    "one position": (ValueError, r"heavy must hold integers \(\*batch, heavy\).*shape \(\)", {"heavy": np.array(3)}),
    "a position twice": (ValueError, r"heavy must not hold a position twice, got \[1, 3, 3\]", {"heavy": np.array([3, 1, 3])}),
    "a position before the first": (ValueError, r"heavy must hold positions of at least 0 .*\[-1, 2\]", {"heavy": np.array([2, -1])}),
    "a position beyond the last": (ValueError, r"less than 40, got \[2, 40\]", {"heavy": np.array([40, 2])}),
    "batch axes of positions": (
        ValueError,
        r"batch axes do not broadcast: .*heavy \(3,\)",
        {"heavy": np.arange(6).reshape(3, 2), **{n: np.stack([arguments()[n]] * 2) for n in "qkv"}},
    ),
    "a state without positions": (ValueError, "bidirectional pass: its keys have no position", {"state": causal_state()}),
    "a state of sums": (
        TypeError,
        "state must be a BlockState .*got State",
        {"causal": True, "state": rfk.empty_state(FEATURES, DIM), "features": FEATURES},
    ),
    "a state of a window": (
        TypeError,
        "state must be a BlockState .*got DecodeState",
        {"causal": True, "window": 5, "state": rfk.empty_state(FEATURES, DIM, window=5), "features": FEATURES},
    ),
    "a state of blocks for features alone": (
        ValueError,
        r"sums.kv \(\*batch, 4, 4\), got \(3, 9\)",
        {"groups": None, "causal": True, "features": FEATURES, "state": causal_state()},
    ),
    "a state of a shorter window": (
        ValueError,
        r"same window.*keys \(\*batch, 128, 4\), got \(32, 4\)",
        {"causal": True, "window": 64, "state": causal_state(window=16)},
    ),
    "a state that is as large by chance": (
        ValueError,
        r"same window.*mask \(\*batch, 2, 32\), got \(1, 64\)",
        {"causal": True, "window": 32, "state": causal_state()},
    ),
    "a state of other groups": (
        ValueError,
        r"same window, groups.*sums.kv \(\*batch, 3, 9\), got \(5, 9\)",
        {"causal": True, "state": causal_state(groups=make_groups(np.random.default_rng(0), 5))},
    ),
    "a state of merged groups": (
        ValueError,
        "same groups; those that are merged",
        {"causal": True, "state": causal_state(groups=3)},
    ),
    "merged groups whose attention is of another block": (
        ValueError,
        r"same window.*mass \(\*batch, 67\), got \(70,\); within \(\*batch, 4, 8\), got \(4, 8\)",
        {"causal": True, "groups": 3, "state": causal_state(groups=3)._replace(mass=np.zeros(70))},
    ),
    "heavy keys of another width": (
        ValueError,
        r"same window.*heavy_keys \(\*batch, 1, 4\), got \(1, 3\)",
        {"causal": True, "state": causal_state(heavy=np.array([0]))._replace(heavy_keys=np.zeros((1, 3)))},
    ),
    "sums that are not those of all groups": (
        ValueError,
        r"state.sums must have kv .*, got \(3, 9\), \(2,\) and \(3,\)",
        {
            "causal": True,
            "groups": 3,
            "state": causal_state(groups=3)._replace(sums=rfk.State(np.zeros((3, 9)), np.zeros(2), np.zeros(3))),
        },
    ),
    "merged groups that forgot how they spread": (
        ValueError,
        "same groups; those that are merged",
        {"causal": True, "groups": 3, "state": causal_state(groups=3)._replace(within=None)},
    ),
    "merged groups from a state of others": (
        ValueError,
        "same groups; those that are merged",
        {"causal": True, "groups": 3, "state": causal_state()},
    ),
    "merged groups with features": (
        ValueError,
        "groups must be a Groups .*features as well",
        {"causal": True, "groups": 3, "features": FEATURES},
    ),
    "groups for values of another width": (
        ValueError,
        r"groups.cross must have shape \(\*batch, 4, 4\), .*got \(4, 2\)",
        {"groups": GROUPS._replace(cross=np.zeros((4, 2)))},
    ),
    "a second scale": (ValueError, "scale= goes with groups= given as a number", {"scale": 0.5}),
    "a state without features": (
        ValueError,
        r"sums.kv \(\*batch, 12, 4\), got \(3, 9\)",
        {"causal": True, "features": FEATURES, "state": causal_state()},
    ),
    "a state of other values": (
        ValueError,
        r"values \(\*batch, 64, 2\), got \(64, 4\)",
        {"causal": True, "v": arguments()["v"][:, :2], "state": causal_state()},
    ),
    "a state of fewer heavy keys": (
        ValueError,
        "heavy must be as in the pass that the state comes from, of 1 positions, got 4",
        {"causal": True, "heavy": 4, "state": causal_state(heavy=1)},
    ),
    "a state without heavy keys": (
        ValueError,
        "of 0 positions, got 2",
        {"causal": True, "heavy": np.array([50, 60]), "state": causal_state()},
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_refused(name: str) -> None:
    kind, message, options = REFUSED[name]
    with pytest.raises(kind, match=message):
        rfk.attention(**{**arguments(), **options})


def test_what_is_not_finite_passes_if_asked() -> None:
    x = arguments() | {"k": bad("k", (5, 2), np.nan)}
    for given in ({}, {"groups": 3, "heavy": 2}):
        with np.errstate(invalid="ignore"):
            got = rfk.attention(**{**x, **given}, check_finite=False)
        assert got.shape == (40, DIM)


@pytest.mark.parametrize(
    ("kind", "message", "options"),
    [
        (ValueError, "count must be a positive integer, got 2.0", {"count": 2.0}),
        (ValueError, "scale must be a positive finite number, got -1", {"scale": -1}),
        (ValueError, r"q must hold at least one vector, got shape \(0, 4\)", {"q": np.zeros((0, 4))}),
        (ValueError, r"k must hold at least one vector, got shape \(0, 4\)", {"k": np.zeros((0, 4))}),
        (ValueError, r"k must be finite, but k\[1, 0\] is nan", {"k": bad("k", (1, 0), np.nan)}),
        (ValueError, "q and k must agree in dim", {"k": np.zeros((5, 3))}),
        (ValueError, "mask must be over keys", {"mask": np.ones(39, bool)}),
    ],
)
def test_fits_refuse(kind: type, message: str, options: dict[str, Any]) -> None:
    given: dict[str, Any] = {"q": arguments()["q"], "k": arguments()["k"], "count": 3, **options}
    with pytest.raises(kind, match=message):
        fit_groups(**given)
    with pytest.raises(kind, match=message):
        heavy_keys(**given)


@pytest.mark.parametrize(
    ("kind", "message", "own"),
    [
        (TypeError, r"state.position must be an integer or an array of one, got 40\.0", {"position": 40.0}),
        (TypeError, r"state.position must be an integer or an array of one, got '40'", {"position": "40"}),
        (ValueError, "state.position must be at least 0, got -1", {"position": -1}),
        (TypeError, "state.sums must be a State, got tuple", {"sums": (1, 2, 3)}),
        (TypeError, "state.keys must be a numpy.ndarray or jax.Array, got list", {"keys": [[0.0] * DIM]}),
        (
            TypeError,
            "state.mask must be a boolean array with at least 2 axes, got int64",
            {"mask": np.zeros((1, 64), int)},
        ),
        (TypeError, "state.heavy_mask must be a boolean array .* got float64", {"heavy_mask": np.ones(2)}),
    ],
)
def test_states_made_again_from_what_was_saved_are_refused_by_field(
    kind: type[Exception], message: str, own: dict[str, Any]
) -> None:
    state = causal_state(heavy=2)._replace(**own)
    with pytest.raises(kind, match=message):
        rfk.attention(**arguments(), causal=True, heavy=2, state=state)


def test_heavy_keys_that_were_seen_cannot_be_still_to_come() -> None:
    state = causal_state(heavy=np.array([0, 50]))
    rfk.attention(**arguments(), causal=True, heavy=np.array([0, 60]), state=state)
    compiled = state._replace(heavy_mask=jnp.asarray(state.heavy_mask), position=jnp.asarray(state.position))
    for given in (state, compiled):
        with pytest.raises(
            ValueError, match=r"which has seen its heavy keys among the first 40, got \[45\] in place of some"
        ):
            rfk.attention(**arguments(), causal=True, heavy=np.array([45, 50]), state=given)
