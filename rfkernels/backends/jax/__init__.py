"""The JAX backend: the specification on jax.numpy, for now without a schedule of its own."""

import jax.numpy as jnp

from rfkernels.backends.specification import specification

BACKEND = specification("jax", jnp)
