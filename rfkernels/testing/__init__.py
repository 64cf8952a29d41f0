"""Claims about feature maps and estimators put to the proof: for users' own maps, and for the library's.

`assert_unbiased`, `assert_variance` and their like integrate over the projection and hold to rounding;
`assert_marginal_law` and `assert_unbiased_by_sampling` sample, and give a false alarm with a probability that is fixed
and proven. `rfkernels.testing.strategies` has the Hypothesis strategies for their inputs, and needs that package.
"""

from rfkernels.testing.assertions import (
    assert_ordering,
    assert_positive,
    assert_unbiased,
    assert_variance,
    assert_variance_at_most,
)
from rfkernels.testing.binding import bind, row_estimates, with_rows
from rfkernels.testing.comparison import kernel_value
from rfkernels.testing.grids import Grid, hermite, plane, polar, strips, two_rows
from rfkernels.testing.integrals import Integral, QuadratureError, mean, variance
from rfkernels.testing.laws import assert_law_of_rows, assert_marginal_law
from rfkernels.testing.sampled import assert_unbiased_by_sampling, assert_variance_by_sampling, drawn_estimates
from rfkernels.testing.tails import assert_probability_at_most
from rfkernels.testing.weighted import assert_moments

__all__ = [
    "Grid",
    "Integral",
    "QuadratureError",
    "assert_law_of_rows",
    "assert_marginal_law",
    "assert_moments",
    "assert_ordering",
    "assert_positive",
    "assert_probability_at_most",
    "assert_unbiased",
    "assert_unbiased_by_sampling",
    "assert_variance",
    "assert_variance_at_most",
    "assert_variance_by_sampling",
    "bind",
    "drawn_estimates",
    "hermite",
    "kernel_value",
    "mean",
    "plane",
    "polar",
    "row_estimates",
    "strips",
    "two_rows",
    "variance",
    "with_rows",
]
