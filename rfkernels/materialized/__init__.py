"""Features that are not elementwise functions of a projection, and what their estimates are worth.

Their columns are computed by `transform` and given to `rfkernels.linear_attention`, or summed over keys::

    features = materialized.draw_maclaurin(dim, 256, rate=1.0, rng=0)
    phi_q, phi_k = (materialized.transform(x, features, side=side) for x, side in ((q, "query"), (k, "key")))
    out = rfkernels.linear_attention(phi_q, phi_k, v, causal=True)
    sums = phi_q @ phi_k.sum(-2)[..., None]

All estimate exp(scale · x·y). None is positive at all inputs, so that sums of estimates, and with them denominators of
attention, may vanish or be negative.
"""

from rfkernels.materialized.estimates import Materialized, log_kernel, relative_bias, relative_error, transform
from rfkernels.materialized.hybrid import AngularHybrid, draw_angular_hybrid
from rfkernels.materialized.maclaurin import Maclaurin, draw_maclaurin
from rfkernels.materialized.monomials import Monomials, draw_geometric, draw_poisson
from rfkernels.materialized.polynomial import taylor
from rfkernels.materialized.rates import optimal_degree, optimal_probability, optimal_rate

__all__ = [
    "AngularHybrid",
    "Maclaurin",
    "Materialized",
    "Monomials",
    "draw_angular_hybrid",
    "draw_geometric",
    "draw_maclaurin",
    "draw_poisson",
    "log_kernel",
    "optimal_degree",
    "optimal_probability",
    "optimal_rate",
    "relative_bias",
    "relative_error",
    "taylor",
    "transform",
]
