"""States are a commutative monoid, and sums over keys are the same however the keys are parted: in exact arithmetic."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import pairwise, product
from typing import Any

import numpy as np
import sympy as sp
from matplotlib.figure import Figure

import rfkernels as rfk
from rfkernels import Features, Side, State, core
from rfkernels.state import merged
from theory._ring import apart, exact
from theory._verdict import Measured, Result, Verdict, greatest

STATEMENT = r"""
A state holds sums over keys of feature $j$, $\sum \varphi_j(k)\, v^T e^{-c_j}$ and $\sum \varphi_j(k)\, e^{-c_j}$,
with the shift $c_j$, their largest exponent; $-\infty$ before the first key. With
$(A, c) \oplus (B, e) = (A e^{c - t} + B e^{e - t},\, t)$ and $t = \max(c, e)$, states are a commutative monoid:

$$(a \oplus b) \oplus c = a \oplus (b \oplus c), \qquad a \oplus b = b \oplus a, \qquad a \oplus \emptyset = a ,$$

field by field, and $e^t (A e^{c - t} + B e^{e - t}) = A e^c + B e^e$. It follows that a sum over keys is the same taken
at once, a chunk at a time, or as the merge of the sums of parts; a causal pass is the same whole or resumed at any
position, and is the quadratic sum over the keys up to each query. There is no inverse: a maximum cannot be undone, and
removing keys means to sum the others again.

All of this is an identity of the library's own code on exact numbers. `state.merged` runs on symbols in every weak
order of three shifts, $-\infty$ among them, which is every case there is; writing and reading run on rational
numbers, whose exponentials are linearly independent over the rationals (Lindemann and Weierstrass), so that
equality can be decided.

In floating point the same sums differ by rounding: by less than $\epsilon (1 + |\text{largest exponent}|)$ relative
to $\sum |\varphi(q) \cdot \varphi(k)||v|$.
"""

CITATION = (
    "The prefix sums are those of Choromanski et al., Rethinking Attention with Performers, arXiv 2009.14794, "
    "section 2.5 and appendix B.1; shifts that travel with the sums are the library's own."
)

UNITS = 1.0
"""Claimed units of rounding, ε (1 + largest exponent), by which schedules may differ."""

Merge = Callable[[State, State], State]
Write = Callable[..., State]
Attend = Callable[..., Any]

_START = sp.Symbol("c", real=True)
_GAPS = sp.symbols("g1 g2", positive=True)
_LEVELS = (-sp.oo, _START, _START + _GAPS[0], _START + _GAPS[0] + _GAPS[1])
"""Shifts in rising order; three states that take any of them take every weak order, with and without keys."""


def _state(index: int, shift: Any) -> State:
    held = 0 if shift == -sp.oo else 1
    sums = [held * sp.Symbol(f"{name}{index}", real=True) for name in "Az"]
    return State(exact([[sums[0]]]), exact([sums[1]]), exact([shift]))


def _differences(one: State, other: State) -> int:
    return sum(apart(a, b) for a, b in zip(one, other, strict=True))


def _sums(state: State) -> Any:
    """Return the sums that a state stands for, without its shift."""
    factor = exact([sp.exp(shift.value) for shift in state.shift])
    return np.concatenate([state.kv[:, 0] * factor, state.z * factor])


def by_symbols(merge: Merge) -> list[Measured]:
    """Prove the laws for all states of one feature; features do not mix."""
    empty, wrong = _state(0, -sp.oo), dict.fromkeys(("associative", "commutative", "identity", "adds the sums"), 0)
    for shifts in product(_LEVELS, repeat=3):
        a, b, c = (_state(i, shift) for i, shift in enumerate(shifts))
        wrong["associative"] += _differences(merge(merge(a, b), c), merge(a, merge(b, c)))
    for shifts in product(_LEVELS, repeat=2):
        a, b = (_state(i, shift) for i, shift in enumerate(shifts))
        wrong["commutative"] += _differences(merge(a, b), merge(b, a))
        wrong["adds the sums"] += apart(_sums(merge(a, b)), _sums(a) + _sums(b))
        wrong["identity"] += _differences(merge(a, empty), a) + _differences(merge(empty, a), a)
    return [Measured("SymPy", name, float(count), 0.0) for name, count in wrong.items()]


QUERIES, KEYS = ((1, -2), ("1/3", 1), (2, 0), ("-5/2", 1)), ((-3, 1), (2, "1/2"), ("5/2", -1), (0, 4))
VALUES, ROWS = ((1,), (2,), (7,), ("-1/3",)), (("1/2", 1), (-1, "2/3"))


def features_of(name: str) -> Features:
    """Return features of two rational rows."""
    feature_map = rfk.lookup(name)
    return Features(feature_map, exact(ROWS), exact(("1/5", 0)), Side(), Side(), exact(1)[()])


def _empty(features: Features) -> State:
    shift = -sp.oo if features.map.exponential else 0
    return State(
        exact(np.zeros((features.count, 1), int)), exact([0] * features.count), exact([shift] * features.count)
    )


def _ways(length: int) -> Iterator[list[slice]]:
    """Yield every way to cut a sequence into consecutive chunks."""
    for cuts in product((False, True), repeat=length - 1):
        edges = [0, *(i + 1 for i, cut in enumerate(cuts) if cut), length]
        yield [slice(a, b) for a, b in pairwise(edges)]


def of_parts(name: str, merge: Merge, write: Write) -> Measured:
    """Compare one pass over keys with every way to chunk it, written one after another and merged in any nesting."""
    features, k, v = features_of(name), exact(KEYS), exact(VALUES)
    whole, wrong = write(np, _empty(features), k, v, features), 0
    for chunks in _ways(len(KEYS)):
        written, parts = _empty(features), []
        for chunk in chunks:
            written = write(np, written, k[chunk], v[chunk], features)
            parts.append(write(np, _empty(features), k[chunk], v[chunk], features))
        merged = parts[-1]
        for part in parts[-2::-1]:
            merged = merge(part, merged)
        wrong += _differences(written, whole) + _differences(merged, whole)
    return Measured("SymPy", f"{name}: once = chunked = merged", float(wrong), 0.0)


def _columns(features: Features, x: Any) -> Any:
    """Return √m φ(x) from the definition: activations of projections, with nothing shifted."""
    u = x @ features.projection.T
    a = ((x * x).sum(-1) * features.map.offset)[..., None] + features.log_weight
    return np.concatenate([activation(np, u, a) for activation in features.map.activations], -1)


def of_causal(name: str, attend: Attend) -> Measured:
    """Compare a causal pass, whole and resumed at every position, with the quadratic sum over keys up to each query."""
    features = features_of(name)
    q, k, v = exact(QUERIES), exact(KEYS), exact(VALUES)
    weights = np.tril(_columns(features, q) @ _columns(features, k).T)
    numerator, denominator = weights @ v[:, 0], weights.sum(-1)

    def differ(cuts: list[int]) -> int:
        state, wrong = _empty(features), 0
        for start, stop in pairwise(cuts):
            here = slice(start, stop)
            part, state = attend(np, q[here], k[here], v[here], features, core.Options(causal=True), None, state)
            wrong += apart(part.numerator[:, 0] * denominator[here], numerator[here] * part.denominator)
        return wrong

    wrong = differ([0, len(q)]) + sum(differ([0, cut, len(q)]) for cut in range(1, len(q)))
    return Measured("SymPy", f"{name}: causal = resumed = quadratic", float(wrong), 0.0)


def rounding(name: str, size: float) -> tuple[float, float]:
    """Return the largest exponent, and how far schedules of the public functions are apart in units of rounding."""
    rng = np.random.default_rng(0)
    q, k = rng.standard_normal((2, 130, 8)) * size ** rng.uniform(0, 1, (2, 130, 1))
    v = rng.uniform(-1, 1, (130, 4))
    features = rfk.draw(name, 8, 32, rng=0)
    log_q = rfk.transform(q, features, side="query", log=True)[0]
    log_k = rfk.transform(k, features, side="key", log=True)[0]
    top = float(max(np.max(np.abs(log[np.isfinite(log)])) for log in (log_q, log_k)))
    whole = rfk.attention(q, k, v, features, causal=True)
    off = 0.0
    for cut in (1, 64, 129):
        state = rfk.attention(q[:cut], k[:cut], v[:cut], features, causal=True, full=True).state
        resumed = rfk.attention(q[cut:], k[cut:], v[cut:], features, causal=True, state=state)
        empty = rfk.empty_state(features, 4, dtype=np.float64)
        assert isinstance(empty, State)
        parts = [rfk.write_state(empty, k[part], v[part], features) for part in (slice(cut), slice(cut, None))]
        whole_read = rfk.read_state(merged(*parts), q[-1:], features)
        off = greatest(
            off, float(np.max(np.abs(resumed - whole[cut:]))), float(np.max(np.abs(whole_read - whole[-1:])))
        )
    return top, off / (np.finfo(np.float64).eps * (1 + top))


EXACT = ("positive", "hyperbolic", "relu", "squared_relu", "exp")
"""Maps of rational constants, whose sums can be compared exactly."""


def check(merge: Merge = merged, write: Write = core.write, attend: Attend = core.attend) -> Verdict:
    """Put the monoid to the proof.

    Parameters
    ----------
    merge, write, attend : callable, optional
        What merges states, writes keys to one, and runs a pass; the library's by default.
    """
    measured = by_symbols(merge)
    for name in EXACT:
        measured += [of_parts(name, merge, write), of_causal(name, attend)]
    found = []
    for name, size in (("positive", 1.0), ("positive", 10.0), ("hyperbolic", 1e3), ("relu", 1e3)):
        top, off = rounding(name, size)
        measured.append(Measured("float64", f"{name}, norms to {size:g}: units of rounding", off, UNITS))
        found.append(f"{name}, norms that jump up to a factor {size:g}: largest exponent {top:.3g}, {off:.2f} units.")
    return Verdict(tuple(measured), tuple(found))


def figure() -> Figure:
    """Draw how far schedules are apart in float64 as the largest exponent grows."""
    drawn = Figure(figsize=(5, 4), layout="constrained")
    axes = drawn.subplots()
    for i, name in enumerate(("positive", "hyperbolic")):
        points = np.array([rounding(name, size) for size in np.geomspace(1, 1e4, 9)])
        units = np.finfo(np.float64).eps * (1 + points[:, 0])
        axes.loglog(points[:, 0], np.maximum(points[:, 1] * units, 1e-17), "o", color=f"C{i}", label=name)
    axes.loglog(points[:, 0], UNITS * units, "--", color="black", label="claimed")
    axes.set(title="whole, resumed and merged: largest difference", xlabel="largest exponent")
    axes.legend(fontsize="small")
    return drawn


RESULT = Result("monoid", STATEMENT, CITATION, check, figure)
