"""How wrong estimates are: closed forms of their errors, bounds that hold with given confidence, and counts from both.

Everything is relative to what is estimated. Functions take arrays of NumPy and JAX, of any batch.
"""

from rfkernels.variance._couplings import coupling_moment
from rfkernels.variance._proposal import optimal_proposal, optimal_variance
from rfkernels.variance._relative import relative
from rfkernels.variance._sphere import regularized_ratio

__all__ = [
    "coupling_moment",
    "optimal_proposal",
    "optimal_variance",
    "regularized_ratio",
    "relative",
]
