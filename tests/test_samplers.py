"""Samplers draw rows of the law they state, coupled as they state, and peers' errors would be noticed.

Laws are judged by `rfkernels.testing`, whose false alarms have a fixed probability; what a construction makes exact is
compared to rounding.
"""

from __future__ import annotations

import itertools
import math
import pickle
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from scipy import integrate, linalg, special, stats

import rfkernels as rfk
from rfkernels import FeatureMap, samplers, testing
from rfkernels.samplers._structured import walsh_hadamard

NORMAL = ["antithetic", "halton", "iid", "orthogonal", "paired", "simplex", "sobol", "stratified"]
"""Names of samplers whose rows are N(0, I) one by one."""

QUASI = ["halton", "sobol"]
KEYED = ["antithetic", "hadamard", "iid", "orthogonal", "simplex"]
"""Names of samplers of normal or nearly normal rows that a JAX key draws."""

OTHER = {"cauchy": "cauchy", "laplace": "laplace", "hadamard": "hadamard", "regularized": "sphere"}
"""Names of all other samplers, and their laws."""


def rows_of(sampler: Any, count: int, dim: int, rng: Any = 0) -> Any:
    """Rows as `draw` returns them, for a map that takes rows of any law."""
    return np.asarray(rfk.draw("elu+1", dim, count, sampler=sampler, rng=rng).projection)


def cosines(rows: Any) -> Any:
    """Cosines between rows, less 1 on the diagonal."""
    directions = rows / np.linalg.norm(rows, axis=-1, keepdims=True)
    return directions @ directions.T - np.eye(len(rows))


def test_every_sampler_states_its_law() -> None:
    assert samplers.names() == tuple(sorted([*NORMAL, *OTHER]))
    laws = dict.fromkeys(NORMAL, "normal") | OTHER
    assert {name: samplers.resolve(name).law for name in samplers.names()} == laws
    on_the_host = {name for name in samplers.names() if samplers.resolve(name).host}
    assert on_the_host == {"stratified", "paired", "sobol", "halton"}
    for name in samplers.names():
        if name != "antithetic":
            assert samplers.resolve(name) is getattr(samplers, name)
            assert samplers.resolve(name).name == name


def test_couplings_with_a_closed_form_are_named() -> None:
    known = {name: samplers.resolve(name).coupling for name in samplers.names()}
    assert {name for name, coupling in known.items() if coupling == "orthogonal"} == {
        *("antithetic", "orthogonal", "regularized")
    }
    assert {name for name, coupling in known.items() if coupling == "independent"} == {"cauchy", "iid", "laplace"}
    assert known["simplex"] == "simplex"


# The law of rows ------------------------------------------------------------------------------------------------------


DRAWS = 4000


def independent_rows(sampler: Any, dim: int, rng: Any = 0) -> Any:
    """A row of each draw, of every place in turn: (draws, dim)."""
    count = dim + dim % 2
    drawn = np.asarray(rfk.draw("elu+1", dim, count, sampler=sampler, batch=(DRAWS,), rng=rng).projection)
    return drawn[np.arange(DRAWS), np.arange(DRAWS) % count]


@pytest.mark.parametrize(
    ("sampler", "dim"), [*((sampler, 4) for sampler in NORMAL), *((s, 16) for s in NORMAL if s not in QUASI)]
)
def test_rows_are_marginally_normal(sampler: str, dim: int) -> None:
    testing.assert_law_of_rows(independent_rows(sampler, dim), what=sampler)


@pytest.mark.parametrize("sampler", NORMAL)
def test_each_row_by_itself_is_normal(sampler: str) -> None:
    """Over many draws, whatever the place of the row: in a whole block of 3, or in one that is cut."""
    drawn = rfk.draw("positive", 3, 8, sampler=sampler, batch=(DRAWS,), rng=0).projection
    for i in range(8):
        testing.assert_law_of_rows(drawn[:, i], what=f"rows {i} of {sampler}")


def assert_unbiased_along_ones(sampler: Any, dim: int) -> None:
    """Positive features of x = y along (1, …, 1) with |x + y|² = 1, whose relative variance e − 1 couplings lower."""
    x = np.full(dim, 1 / (2 * math.sqrt(dim)))
    exact, rows = math.exp(1 / 4), 4 * dim
    estimator = testing.drawn_estimates("positive", x, x, rows, sampler=sampler, batch=500)
    variance = exact**2 * math.expm1(1) / rows
    testing.assert_unbiased_by_sampling(estimator, exact, variance=variance, detect=0.05 * exact)


@pytest.mark.parametrize(
    ("sampler", "dim"),
    [*((s, 4) for s in NORMAL if s not in QUASI), ("orthogonal", 64), ("simplex", 64), ("hadamard", 64)],
)
def test_positive_features_are_unbiased_along_ones(sampler: str, dim: int) -> None:
    assert_unbiased_along_ones(sampler, dim)


def assert_spread(sampler: Any, dim: int, s: float = 0.5) -> None:
    """e^(w·z − s/2) of one row, |z|² = s, varies as a lognormal variable does, whose kurtosis is known."""

    def estimate(rng: np.random.Generator) -> Any:
        rows = rows_of(sampler, 20_000 * dim, dim, rng)[::dim]  # one of each block
        return np.exp(math.sqrt(s / dim) * rows.sum(-1) - s / 2)

    variance = math.expm1(s)
    kurtosis = math.exp(4 * s) + 2 * math.exp(3 * s) + 3 * math.exp(2 * s) - 3
    fourth = kurtosis * variance**2
    testing.assert_variance_by_sampling(estimate, 1.0, variance, fourth=fourth, detect=variance / 6)


@pytest.mark.parametrize("sampler", ["iid", "orthogonal"])
def test_estimates_of_a_row_spread_as_the_lemma_says(sampler: str) -> None:
    assert_spread(sampler, 4)


@pytest.mark.parametrize("sampler", ["cauchy", "laplace"])
def test_coordinates_of_other_laws(sampler: str) -> None:
    testing.assert_law_of_rows(rows_of(sampler, 20_000, 4), sampler)


def test_rows_are_finite_where_normals_are_zero() -> None:
    """In single precision a normal is zero once in ten million draws."""
    for name in ("cauchy", "laplace"):
        assert np.all(np.isfinite(samplers.resolve(name)(np.zeros, 3, 2)))


def test_regularized_rows_lie_on_a_sphere() -> None:
    np.testing.assert_allclose(np.linalg.norm(rows_of("regularized", 40, 16), axis=-1), 4, rtol=1e-12)


# Peers' errors --------------------------------------------------------------------------------------------------------


def unsigned(normal: Any, count: int, dim: int) -> Any:
    """Orthogonal blocks as LAPACK's QR leaves them: not Haar-distributed, since the signs of R are not folded in."""
    basis = np.linalg.qr(normal((-(-count // dim), dim, dim)))[0]
    directions = np.swapaxes(basis, -1, -2).reshape(-1, dim)[:count]
    return directions * np.linalg.norm(normal((count, dim)), axis=-1, keepdims=True)


def of_norm(norm: Callable[[int], float]) -> Any:
    """Orthogonal rows, stretched to one norm."""

    def rows(normal: Any, count: int, dim: int) -> Any:
        drawn = samplers.orthogonal(normal, count, dim)
        return drawn * (norm(dim) / np.linalg.norm(drawn, axis=-1, keepdims=True))

    return rows


@pytest.mark.parametrize("dim", [4, 16, 64])
def test_qr_without_the_sign_is_caught(dim: int) -> None:
    """PEERS 5.1: blocks that are not Haar-distributed bias exponential features, at any number of rows."""
    with pytest.raises(AssertionError, match="the mean of estimates is not"):
        assert_unbiased_along_ones(unsigned, dim)
    if dim < 64:
        with pytest.raises(AssertionError, match="the mean"):
            testing.assert_law_of_rows(independent_rows(unsigned, dim))


@pytest.mark.parametrize("dim", [4, 16])
@pytest.mark.parametrize("norm", [math.sqrt, lambda dim: 0.25, lambda dim: 1.0, lambda dim: float(dim)])
def test_wrong_norms_are_caught(norm: Callable[[int], float], dim: int) -> None:
    """PEERS 5.7 and 5.8: norms of √d, of ¼, of 1 (directions left as they are) and of d."""
    with pytest.raises(AssertionError, match="rows do not have the law 'normal'"):
        testing.assert_law_of_rows(independent_rows(of_norm(norm), dim))


def test_the_spread_notices_norms_of_root_d() -> None:
    with pytest.raises(AssertionError, match="the variance of estimates is not"):
        assert_spread(of_norm(math.sqrt), 4)


def assert_softmax_temperature(factor: float) -> None:
    """Features drawn as for attention estimate exp(q·k/√d), q and k multiplied by the factor on their way."""
    dim = 16
    q = k = np.full(dim, math.sqrt(2 / dim))  # q·k/√d = ½ and |x + y|² = 2
    estimator = testing.drawn_estimates("positive", factor * q, factor * k, 64, scale=dim**-0.5, batch=500)
    variance = math.exp(1) * math.expm1(2) / 64
    testing.assert_unbiased_by_sampling(estimator, math.exp(0.5), variance=variance, detect=0.06)


def test_the_temperature_is_right() -> None:
    assert_softmax_temperature(1.0)


WRONG_TEMPERATURES = {
    "d^-1/2 on both sides for d^-1/4": 16**-0.25,
    "none": 16**0.25,
    "twice": 16**-0.5,
    "that of a model of 8 heads": 8**-0.25,
}


@pytest.mark.parametrize("wrong", WRONG_TEMPERATURES)
def test_a_wrong_temperature_is_caught(wrong: str) -> None:
    """PEERS 5.5."""
    with pytest.raises(AssertionError):
        assert_softmax_temperature(WRONG_TEMPERATURES[wrong])


# Couplings ------------------------------------------------------------------------------------------------------------


SHAPES = [(1, 1), (1, 5), (8, 8), (12, 16), (21, 8), (256, 64), (3, 1)]


@pytest.mark.parametrize(("count", "dim"), SHAPES)
@pytest.mark.parametrize("sampler", ["orthogonal", "stratified", "paired", "regularized", "hadamard"])
def test_rows_of_a_block_are_orthogonal(sampler: str, count: int, dim: int) -> None:
    """Also in the last block, which may be cut; rows of different blocks are not."""
    rows = rows_of(sampler, count, dim)
    assert rows.shape == (count, dim)
    for start in range(0, count, dim):
        assert np.abs(cosines(rows[start : start + dim])).max() <= 1e-10
    if count > dim > 1:
        assert np.abs(cosines(rows)).max() > 1e-3


@pytest.mark.parametrize(("count", "dim"), [*SHAPES, (3, 2), (7, 3)])
def test_rows_of_a_simplex_have_equal_angles(count: int, dim: int) -> None:
    rows = rows_of("simplex", count, dim)
    assert rows.shape == (count, dim)
    for start in range(0, count, dim):
        found = cosines(rows[start : start + dim])
        np.testing.assert_allclose(found[~np.eye(len(found), dtype=bool)], -1 / (dim - 1) if dim > 1 else 0, atol=1e-10)
    if dim > 1:
        assert len(np.unique(np.linalg.norm(rows, axis=-1))) == count


def coupling_moment(s: float, dim: int, cosine: float) -> float:
    """E e^(w·z + w'·z − s) of normal rows at an angle with independent norms, |z|² = s: 1 if they are independent.

    The sum of two rows has a random direction and the squared length r² + r'² + 2 r r' cos, of which r² + r'² is
    chi-squared and independent of the share b of r²: ₀F₁ of the length becomes ₁F₁ of b in the mean.
    """

    def integrand(b: float) -> float:
        moment = special.hyp1f1(dim, dim / 2, s / 2 * (1 + 2 * cosine * math.sqrt(b * (1 - b))))
        return float(moment) * float(stats.beta(dim / 2, dim / 2).pdf(b))

    return math.exp(-s) * integrate.quad(integrand, 0, 1, epsabs=0, epsrel=1e-10)[0]


def assert_pair_moment(sampler: str, dim: int, moment: Callable[[float], float]) -> None:
    """E e^(w·z + w'·z − s) of the first two rows of each block; its square is what it is at 2z."""
    s = 2.0

    def estimate(rng: np.random.Generator) -> Any:
        pairs = rows_of(sampler, 10_000 * dim, dim, rng).reshape(10_000, dim, dim)[:, :2]
        return np.exp(math.sqrt(s / dim) * pairs.sum((-1, -2)) - s)

    expected = moment(s)
    variance = math.exp(2 * s) * moment(4 * s) - expected**2
    detect = max(0.02, 2 * math.sqrt(variance) / 100)
    assert 1 - expected > 2 * detect
    testing.assert_unbiased_by_sampling(estimate, expected, variance=variance, detect=detect)


@pytest.mark.parametrize("dim", [2, 3, 8])
@pytest.mark.parametrize(("sampler", "cosine"), [("orthogonal", lambda d: 0.0), ("simplex", lambda d: -1 / (d - 1))])
def test_pairs_of_rows_have_the_moment_of_their_angle(sampler: str, cosine: Callable[[int], float], dim: int) -> None:
    assert_pair_moment(sampler, dim, lambda s: coupling_moment(s, dim, cosine(dim)))


def test_the_moment_of_a_right_angle_is_the_polynomial() -> None:
    """In two dimensions e^(−s/2) (1 + s/2)."""
    assert math.isclose(coupling_moment(0.9, 2, 0.0), math.exp(-0.45) * 1.45, rel_tol=1e-9)


@pytest.mark.parametrize("dim", [2, pytest.param(3, marks=pytest.mark.long), pytest.param(8, marks=pytest.mark.long)])
def test_paired_norms_have_their_moment(dim: int) -> None:
    """E ₀F₁(; d/2; (r² + r'²) s/4) over opposed quantiles, below that of independent norms."""

    def moment(s: float) -> float:
        def integrand(u: float) -> float:
            squares = stats.chi2(dim).ppf(u) + stats.chi2(dim).isf(u)
            return float(special.hyp0f1(dim / 2, squares * s / 4))

        return 2 * math.exp(-s) * integrate.quad(integrand, 0, 0.5, epsrel=1e-9)[0]

    assert_pair_moment("paired", dim, moment)
    assert moment(2.0) < coupling_moment(2.0, dim, 0.0)


@pytest.mark.parametrize(("count", "dim"), [(16, 16), (10, 5), (7, 4), (3, 1), (256, 64)])
def test_paired_norms_are_opposed_quantiles(count: int, dim: int) -> None:
    norms = np.linalg.norm(rows_of("paired", count, dim, rng=3), axis=-1)
    levels = stats.chi(dim).cdf(norms)
    for start in range(0, count, dim):
        block = levels[start : start + dim]
        pairs = block[: len(block) // 2 * 2].reshape(-1, 2)
        np.testing.assert_allclose(pairs.sum(-1), 1, rtol=1e-9)
    assert len(np.unique(np.round(np.minimum(levels, 1 - levels), 9))) == sum(
        -(-min(dim, count - start) // 2) for start in range(0, count, dim)
    )


@pytest.mark.parametrize(("count", "dim"), [(16, 16), (10, 5), (3, 1), (256, 64)])
def test_each_stratum_holds_one_norm(count: int, dim: int) -> None:
    norms = np.linalg.norm(rows_of("stratified", count, dim, rng=3), axis=-1)
    strata = np.floor(count * stats.chi(dim).cdf(norms))
    np.testing.assert_array_equal(np.sort(strata), np.arange(count))
    if count > 3:
        assert np.any(strata != np.arange(count))


def test_norms_far_out_are_finite_and_positive() -> None:
    """Normals of ±30 have levels that only the complement tells from 0 and 1."""

    def normal(shape: tuple[int, ...]) -> Any:
        drawn = np.random.default_rng(0).standard_normal(shape)
        return drawn if shape == (1, 2, 2) else np.full(shape, 30.0)

    norms = np.linalg.norm(samplers.paired(normal, 2, 2), axis=-1)
    # |w|² is exponential in the plane: −2 log of the level above, and log of the level itself far below
    np.testing.assert_allclose(norms[0] ** 2, -2 * special.log_ndtr(-30), rtol=1e-9)
    np.testing.assert_allclose(2 * np.log(norms[1]), special.log_ndtr(-30) + math.log(2), rtol=1e-9)


# Quasi-random rows ----------------------------------------------------------------------------------------------------


def test_sobol_rows_are_stratified_in_every_coordinate() -> None:
    strata = np.floor(64 * special.ndtr(rows_of("sobol", 64, 20)))
    for column in strata.T:
        np.testing.assert_array_equal(np.sort(column), np.arange(64))


def test_halton_rows_are_stratified_in_their_bases() -> None:
    for coordinate, count in ((0, 64), (1, 81), (2, 125)):
        strata = np.floor(count * special.ndtr(rows_of("halton", count, 3)[:, coordinate]))
        np.testing.assert_array_equal(np.sort(strata), np.arange(count))


@pytest.mark.parametrize("count", [1, 2, 3, 100])
def test_sobol_takes_any_count(count: int) -> None:
    """The first of a power of two, without a warning."""
    rows = rows_of("sobol", count, 3)
    assert rows.shape == (count, 3)
    np.testing.assert_array_equal(rows, rows_of("sobol", 128, 3)[:count])


@pytest.mark.parametrize("engine", QUASI)
def test_ends_of_the_interval_are_finite(engine: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    from scipy.stats import qmc

    ends = np.array([[0.0, 1.0]])
    for name, method in (("Sobol", "random_base2"), ("Halton", "random")):
        monkeypatch.setattr(getattr(qmc, name), method, lambda self, n: ends)
    rows = samplers.quasi(engine)(np.random.default_rng(0).standard_normal, 1, 2)
    np.testing.assert_allclose(rows, special.ndtri(2.0**-31) * np.array([[1, -1]]), rtol=1e-6)


def test_unknown_engines_are_refused() -> None:
    with pytest.raises(ValueError, match="engine must be 'sobol' or 'halton', got 'latin'"):
        samplers.quasi("latin")  # type: ignore[arg-type]


# Structured rows ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("n", [1, 2, 8, 64])
def test_the_transform_is_multiplication_by_hadamard_matrix(n: int) -> None:
    x = np.random.default_rng(0).standard_normal((3, 2, n))
    np.testing.assert_allclose(walsh_hadamard(x), x @ linalg.hadamard(n) / math.sqrt(n), atol=1e-12)


@pytest.mark.parametrize("n", [0, 3, 12])
def test_the_transform_wants_a_power_of_two(n: int) -> None:
    with pytest.raises(ValueError, match="power of two"):
        walsh_hadamard(np.ones((2, n)))


def every_direction(n: int) -> Any:
    """All equally likely directions of the rows of a block, (signs, n, n): the last signs do not matter to squares."""
    signs = np.array(list(itertools.product([-1.0, 1.0], repeat=2 * n))).reshape(-1, 2, n)
    signs = np.concatenate([signs, np.ones((len(signs), 1, n))], 1)

    def normal(shape: tuple[int, ...]) -> Any:
        return signs if len(shape) == 3 else np.eye(1, n).repeat(shape[0], 0)

    return samplers.hadamard(normal, len(signs) * n, n).reshape(-1, n, n)


@pytest.mark.parametrize("n", [1, 2, 4])
def test_hadamard_rows_have_the_moments_stated(n: int) -> None:
    """Exactly, by enumeration of all signs, for every row of a block."""
    directions = every_direction(n)
    fourth = n * (n + 2)  # E r⁴
    np.testing.assert_allclose((directions**2).mean(0) * n, 1, rtol=1e-12)
    np.testing.assert_allclose((directions**4).mean(0) * fourth, 3 - 8 / n**2 + 8 / n**3, rtol=1e-12)
    for i, j in itertools.combinations(range(n), 2):
        mixed = (directions[..., i] ** 2 * directions[..., j] ** 2).mean(0) * fourth
        np.testing.assert_allclose(mixed, 1 + 8 / n**3, rtol=1e-12)


@pytest.mark.parametrize("n", [4, 8])
def test_the_bias_of_hadamard_rows_is_that_stated(n: int) -> None:
    """Along an axis, to leading order: the mean of e^(r t) over norms r is ₁F₁(n/2; ½; t²/2)."""
    s = 0.01
    along = every_direction(n)[:, 0, 0] if n == 4 else directions_of_one_row(n)[:, 0]
    kernel = special.hyp1f1(n / 2, 0.5, along**2 * s / 2).mean() * math.exp(-s / 2)
    np.testing.assert_allclose(kernel - 1, -(s**2) / 3 * (1 / n**2 - 1 / n**3), rtol=0.02)


def directions_of_one_row(n: int) -> Any:
    """First coordinates over all signs of the first two rounds: w_0 = n^-1 Σ_k ± T_k with T the transform of signs."""
    signs = np.array(list(itertools.product([-1.0, 1.0], repeat=n)))
    transformed = walsh_hadamard(signs)
    return (transformed @ signs.T).reshape(-1, 1) / n


@pytest.mark.parametrize("dim", [3, 5, 12, 100])
def test_hadamard_rows_of_other_widths_are_cut(dim: int) -> None:
    """Coordinates of a wider row keep their moments: dim is not made up by rescaling."""
    count = 1 << (dim - 1).bit_length()

    def estimate(rng: np.random.Generator) -> Any:
        rows = rfk.draw("elu+1", dim, count, sampler="hadamard", batch=(200,), rng=rng).projection
        return np.stack([rows.mean(-2), np.mean(rows**2, -2)], 1)

    moments = np.stack([np.zeros(dim), np.ones(dim)])
    testing.assert_unbiased_by_sampling(estimate, moments, variance=4 / count, detect=0.1)


# Antithetic rows ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("half", [name for name in samplers.names() if name != "antithetic"])
def test_antithetic_rows_come_in_pairs(half: str) -> None:
    sampler = samplers.antithetic(half)
    rows = rows_of(sampler, 24, 8, rng=5)
    np.testing.assert_array_equal(rows[12:], -rows[:12])
    np.testing.assert_array_equal(rows[:12], rows_of(half, 12, 8, rng=5))
    plain = samplers.resolve(half)
    assert sampler.name == f"antithetic({half})"
    assert (sampler.law, sampler.coupling, sampler.host) == (plain.law, plain.coupling, plain.host)
    assert sampler.antithetic


def test_antithetic_is_antithetic_of_orthogonal_rows() -> None:
    named, spelled = "antithetic", samplers.antithetic(samplers.orthogonal)
    np.testing.assert_array_equal(rows_of(named, 32, 8), rows_of(spelled, 32, 8))


def test_antithetic_rows_are_not_paired_again() -> None:
    with pytest.raises(ValueError, match=r"antithetic\(orthogonal\).*already"):
        samplers.antithetic("antithetic")
    with pytest.raises(ValueError, match="must be even, got 7"):
        rows_of("antithetic", 7, 4)


# Laws and maps --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("sampler", ["cauchy", "laplace"])
@pytest.mark.parametrize("name", ["positive", "relu"])
def test_a_map_with_a_kernel_refuses_rows_of_another_law(name: str, sampler: str) -> None:
    with pytest.raises(ValueError, match=f"kernel is that of normal rows.*'{sampler}'.*fourier"):
        rfk.draw(name, 4, 8, sampler=sampler, rng=0)


def test_a_map_without_a_kernel_takes_rows_of_any_law() -> None:
    assert rfk.draw(FeatureMap((lambda xp, u, a: xp.tanh(u),)), 4, 8, sampler="cauchy", rng=0).rows == 8


@pytest.mark.parametrize("sampler", ["hadamard", "regularized"])
def test_rows_that_stand_for_normal_ones_take_no_proposal(sampler: str) -> None:
    assert rfk.draw("positive", 4, 8, sampler=sampler, rng=0).rows == 8
    with pytest.raises(ValueError, match="proposal needs normal rows"):
        rfk.draw("positive", 4, 8, sampler=sampler, proposal=rfk.proposals.isotropic(1.5), rng=0)


def _signs(normal: samplers.Normal, count: int, dim: int) -> Any:
    return np.where(normal((count, dim)) < 0, -1, 1)


def test_rows_of_whole_numbers_are_floats() -> None:
    """The scale, the root of a proposal and log-weights are of the type of the rows, and would be cut to 0."""
    options: dict[str, Any] = {"scale": 0.25, "proposal": rfk.proposals.isotropic(0.8), "rng": 0}
    whole, floats = (rfk.draw("positive", 4, 8, sampler=s, **options) for s in (_signs, lambda *a: 1.0 * _signs(*a)))
    assert whole.scale == 0.25
    assert whole.projection.dtype == whole.scale.dtype == np.float64
    np.testing.assert_array_equal(whole.projection, floats.projection)
    np.testing.assert_array_equal(whole.log_weight, floats.log_weight)


@pytest.mark.parametrize(
    ("returned", "message"),
    [
        (np.ones(1), r"returned shape \(1,\), expected \(4"),
        (None, r"returned shape \(\), expected \(4"),
        (np.nan, r"returned must be finite, but what .* returned\[0.*\] is nan"),
        (1j, "must return real numbers, got dtype complex128"),
    ],
)
@pytest.mark.parametrize("name", ["sampler", "radii"])
def test_what_users_functions_return_is_checked(name: str, returned: Any, message: str) -> None:
    """A single radius, which broadcasts, would couple all rows."""

    def function(normal: samplers.Normal, count: int, *dim: int) -> Any:
        return np.full((count, *dim), returned) if isinstance(returned, float | complex) else returned

    feature_map = FeatureMap((lambda xp, u, a: xp.cos(u),), radii=function if name == "radii" else None)
    with pytest.raises((ValueError, TypeError), match=f"{name} {message}"):
        rfk.draw(feature_map, 3, 4, sampler=function if name == "sampler" else "iid", rng=0)


# Randomness -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("sampler", samplers.names())
def test_an_integer_seed_is_a_projection(sampler: str) -> None:
    rows = rows_of(sampler, 32, 8, rng=7)
    for same in (7, np.int64(7), np.random.SeedSequence(7), np.random.default_rng(7)):
        np.testing.assert_array_equal(rows_of(sampler, 32, 8, rng=same), rows)
    assert np.all(rows_of(sampler, 32, 8, rng=8) != rows)
    assert rows.dtype == np.float64


def test_a_generator_moves_on_and_a_seed_sequence_does_not() -> None:
    generator, sequence = np.random.default_rng(7), np.random.SeedSequence(7)
    for sampler in ("iid", "sobol"):
        assert np.all(rows_of(sampler, 8, 4, rng=generator) != rows_of(sampler, 8, 4, rng=generator))
        np.testing.assert_array_equal(rows_of(sampler, 8, 4, rng=sequence), rows_of(sampler, 8, 4, rng=sequence))


@pytest.mark.parametrize("sampler", [*NORMAL, "hadamard"])
def test_elements_of_a_batch_are_drawn_independently(sampler: str) -> None:
    draws = 20 if sampler in (*QUASI, "hadamard") else DRAWS
    drawn = rfk.draw("positive", 4, 8, sampler=sampler, batch=(draws, 3), rng=0).projection
    assert drawn.shape == (draws, 3, 8, 4)
    if draws == DRAWS:  # rows of three elements are one of twelve coordinates
        together = drawn[np.arange(draws), :, np.arange(draws) % 8]
        testing.assert_law_of_rows(together.reshape(draws, 12), what=sampler)
    flat = drawn.reshape(3 * draws, -1)
    equal = flat == np.roll(flat, 1, 0)
    assert not np.any(equal & (flat != 0))  # as a coordinate of hadamard rows may be


@pytest.mark.parametrize("sampler", KEYED)
def test_a_jax_key_draws_the_same_distribution(sampler: str) -> None:
    jax = pytest.importorskip("jax")
    one, same, other = (
        rfk.draw("positive", 8, 8 * DRAWS, sampler=sampler, rng=jax.random.key(seed)).projection for seed in (0, 0, 1)
    )
    assert isinstance(one, jax.Array)
    rows = np.asarray(one, np.float64)
    if sampler != "hadamard":
        blocks = rows[: len(rows) // 2 if sampler == "antithetic" else None].reshape(-1, 8, 8)
        testing.assert_law_of_rows(blocks[np.arange(len(blocks)), np.arange(len(blocks)) % 8], what=sampler)
    if sampler != "iid":
        angles = cosines(rows[:8])[~np.eye(8, dtype=bool)]
        np.testing.assert_allclose(angles, -1 / 7 if sampler == "simplex" else 0, atol=1e-5)
    np.testing.assert_array_equal(one, same)
    equal = rows == np.asarray(other, np.float64)
    assert np.mean(equal[rows != 0]) < 1e-4  # float32 values coincide now and then, and hadamard rows have zeros


@pytest.mark.parametrize("sampler", ["cauchy", "laplace"])
def test_a_jax_key_draws_other_laws(sampler: str) -> None:
    jax = pytest.importorskip("jax")
    rows = rfk.draw("elu+1", 4, 5000, sampler=sampler, rng=jax.random.key(0)).projection
    assert isinstance(rows, jax.Array)
    testing.assert_law_of_rows(rows, sampler)


@pytest.mark.parametrize("sampler", [*sorted(set(samplers.names()) - set(KEYED) - set(OTHER)), "antithetic paired"])
def test_what_only_the_host_draws_says_so(sampler: str) -> None:
    jax = pytest.importorskip("jax")
    chosen = samplers.antithetic("paired") if sampler == "antithetic paired" else sampler
    with pytest.raises(ValueError, match="drawn on the host: rng must be an int or a numpy generator"):
        rfk.draw("positive", 4, 8, sampler=chosen, rng=jax.random.key(0))


def test_a_jax_key_draws_a_batch() -> None:
    jax = pytest.importorskip("jax")
    for key in (jax.random.key(3), jax.random.PRNGKey(3)):
        one, other = np.asarray(rfk.draw("positive", 4, 8, sampler="iid", batch=(2,), rng=key).projection)
        assert np.all(one != other)


@pytest.mark.parametrize("sampler", [*samplers.names(), samplers.antithetic("sobol")])
def test_samplers_are_equal_to_their_pickles(sampler: Any) -> None:
    given = samplers.resolve(sampler)
    copy = pickle.loads(pickle.dumps(given))
    assert copy == given
    assert hash(copy) == hash(given)


def test_samplers_made_alike_are_equal() -> None:
    assert samplers.antithetic("iid") == samplers.antithetic("iid") != samplers.antithetic("simplex")
    assert samplers.quasi("sobol") == samplers.sobol != samplers.quasi("halton")
