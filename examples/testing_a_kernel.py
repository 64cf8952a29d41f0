"""A kernel of one's own put to the proof: that it is unbiased, how far it varies, that it is positive, in any sampler.

    pytest examples/testing_a_kernel.py
    python examples/testing_a_kernel.py               # what the assertions say of two mistakes

The map is h(u) = Φ(u), the distribution function of a standard normal. Given w, Φ(w·x) Φ(w·y) is the probability that
two more normals are below w·x and w·y; with w ~ N(0, I) it therefore estimates the probability that two normals of
correlation ρ = x·y / √((1 + |x|²)(1 + |y|²)) are both negative: k(x, y) = 1/4 + arcsin(ρ) / 2π.
"""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import numpy as np
from hypothesis import given, settings

import rfkernels as rfk
from rfkernels import testing
from rfkernels.testing import strategies as rst


def cumulative(xp: Any, u: Any, a: Any) -> Any:
    """Return h(u, a) = Φ(u)."""
    return 0.5 + 0.5 * xp.erf(u / math.sqrt(2))


def log_orthant(xp: Any, dot: Any, xx: Any, yy: Any) -> Any:
    """Return log (1/4 + arcsin(ρ) / 2π)."""
    return xp.log(0.25 + xp.arcsin(dot / xp.sqrt((1 + xx) * (1 + yy))) / (2 * math.pi))


KERNEL = rfk.Kernel("orthant", log_orthant)
MAP = rfk.FeatureMap((cumulative,), nonnegative=True, kernel=KERNEL)

fast = settings(deadline=None)


@fast
@given(pair=rst.pairs(dim=3), scale=rst.scales())
def test_unbiased(pair: Any, scale: float) -> None:
    """E φ(x)·φ(y) = k(√scale x, √scale y), integrated to nine digits."""
    testing.assert_unbiased(MAP, *pair, scale=scale)


@fast
@given(pair=rst.pairs(dim=3))
def test_variance(pair: Any) -> None:
    """What lies between 0 and 1 has a variance of at most k (1 − k)."""

    def bound(x: Any, y: Any) -> Any:
        k = testing.kernel_value(KERNEL, x, y).value
        return k * (1 - k)

    x, y = pair
    testing.assert_variance_at_most(MAP, x, y, bound)


@fast
@given(pair=rst.pairs(dim=3, norm=10.0))
def test_positive(pair: Any) -> None:
    testing.assert_positive(MAP, *pair)


def test_unbiased_with_orthogonal_rows() -> None:
    """Coupled rows are sampled; the mean of several varies no more than one of them, however they are coupled."""
    x, y = np.array([0.6, -0.2, 0.3, 0.5]), np.array([0.4, 0.1, -0.3, 0.8])
    k = float(testing.kernel_value(KERNEL, x, y).value)

    def estimator(rng: np.random.Generator) -> Any:
        features = rfk.draw(MAP, 4, 8, sampler="orthogonal", scale=1.0, batch=(200,), rng=rng)
        return np.exp(rfk.log_kernel(x, y, features))

    testing.assert_unbiased_by_sampling(estimator, k, variance=k * (1 - k), detect=0.05)


def main() -> None:
    x, y = np.random.default_rng(0).normal(size=(2, 20, 3)).round(2)
    logistic = rfk.FeatureMap((lambda xp, u, a: 1 / (1 + xp.exp(-1.702 * u)),), nonnegative=True, kernel=KERNEL)
    half = dataclasses.replace(
        MAP, kernel=rfk.Kernel("half", lambda xp, dot, xx, yy: log_orthant(xp, dot, xx, yy) - math.log(2))
    )
    testing.assert_unbiased(MAP, x, y)
    print("The map estimates its kernel. Two mistakes:\n")
    for name, wrong in (("a logistic function for Φ", logistic), ("a factor of 2 in the kernel", half)):
        try:
            testing.assert_unbiased(wrong, x, y)
        except AssertionError as error:
            print(f"{name}: {error}\n")


if __name__ == "__main__":
    main()
