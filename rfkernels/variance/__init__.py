"""How wrong estimates are: closed forms of their errors, bounds that hold with given confidence, and counts from both.

Everything is relative to what is estimated. Functions take arrays of NumPy and JAX, of any batch.
"""

from rfkernels.variance._attention import attention_error
from rfkernels.variance._couplings import coupling_moment
from rfkernels.variance._cross import cross_moment
from rfkernels.variance._proposal import optimal_proposal, optimal_variance
from rfkernels.variance._relative import relative
from rfkernels.variance._sphere import regularized_ratio
from rfkernels.variance._tails import features_needed, tail_bound
from rfkernels.variance._terms import term_bound

__all__ = [
    "attention_error",
    "coupling_moment",
    "cross_moment",
    "features_needed",
    "optimal_proposal",
    "optimal_variance",
    "regularized_ratio",
    "relative",
    "tail_bound",
    "term_bound",
]
