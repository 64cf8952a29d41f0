"""The NumPy backend: the specification itself. Slow when causal, and the oracle in float64."""

import numpy as np

from rfkernels.backends.specification import specification

BACKEND = specification("numpy", np)
