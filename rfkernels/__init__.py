"""Random features for softmax and other kernels in linear time.

Importing this module imports neither JAX nor Numba.
"""

from rfkernels import fitting, kernels, maps, materialized, proposals, samplers, spectral, uncertainty, variance
from rfkernels.advise import advise
from rfkernels.attention import attention, linear_attention
from rfkernels.baseline import exact_attention, exact_log_kernel, exact_log_normalizer
from rfkernels.calibration import Calibration, calibrate
from rfkernels.catalog import Catalog
from rfkernels.estimates import log_kernel, log_normalizer, transform
from rfkernels.features import Features, Side, draw
from rfkernels.features import register_pytree as _register_pytree
from rfkernels.fitting import fit
from rfkernels.grouping import BlockState, Groups
from rfkernels.groups import fit_groups, heavy_keys
from rfkernels.kernels import Kernel
from rfkernels.maps import FeatureMap, lookup, names, register
from rfkernels.state import DecodeState, State, empty_state, merge_states
from rfkernels.streaming import AttentionResult, Errors, read_state, write_state
from rfkernels.uncertainty import UntrustedErrorWarning

__all__ = [
    "AttentionResult",
    "BlockState",
    "Calibration",
    "Catalog",
    "DecodeState",
    "Errors",
    "FeatureMap",
    "Features",
    "Groups",
    "Kernel",
    "Side",
    "State",
    "UntrustedErrorWarning",
    "advise",
    "attention",
    "calibrate",
    "draw",
    "empty_state",
    "exact_attention",
    "exact_log_kernel",
    "exact_log_normalizer",
    "fit",
    "fit_groups",
    "fitting",
    "heavy_keys",
    "kernels",
    "linear_attention",
    "log_kernel",
    "log_normalizer",
    "lookup",
    "maps",
    "materialized",
    "merge_states",
    "names",
    "proposals",
    "read_state",
    "register",
    "samplers",
    "spectral",
    "transform",
    "uncertainty",
    "variance",
    "write_state",
]

_register_pytree()


def __getattr__(name: str) -> str:
    if name == "__version__":
        from importlib.metadata import version

        return version("rfkernels")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
