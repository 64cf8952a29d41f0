"""The libraries compared with: each function returns a call on the same inputs, or raises what prevents it."""

from __future__ import annotations

import contextlib
import io
import warnings
from functools import partial
from typing import Any

import numpy as np

from rfkernels.benchmark.plan import Arrays, Plan, allowed_threads
from rfkernels.benchmark.timing import Call
from rfkernels.features import draw


def torch_exact(plan: Plan, arrays: Arrays, causal: bool) -> Call:
    """Exact softmax attention: torch.nn.functional.scaled_dot_product_attention on the CPU."""
    import torch

    torch.set_num_threads(allowed_threads())
    q, k, v = (torch.from_numpy(np.ascontiguousarray(x))[None] for x in arrays)

    def call() -> Any:
        with torch.no_grad():
            return torch.nn.functional.scaled_dot_product_attention(q, k, v, is_causal=causal)

    return call


def performer(plan: Plan, arrays: Arrays, causal: bool) -> Call:
    """FAVOR+ of performer-pytorch: FastAttention with the same width and number of features."""
    import torch

    with contextlib.redirect_stdout(io.StringIO()), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it says on standard output that its causal CUDA kernel is absent
        from performer_pytorch import FastAttention

        layer = FastAttention(dim_heads=plan.dim, nb_features=plan.count, causal=causal).eval()
    torch.set_num_threads(allowed_threads())
    q, k, v = (torch.from_numpy(np.ascontiguousarray(x))[None] for x in arrays)

    def call() -> Any:
        with torch.no_grad():
            return layer(q, k, v)

    return call


def torch_positive(plan: Plan, x: Any) -> Call:
    """Positive features of rows, as one writes them: exp(x w − ½x²) / √m."""
    import torch

    torch.set_num_threads(allowed_threads())
    w = torch.from_numpy(np.asarray(draw("positive", plan.dim, plan.count, scale=1, rng=0).projection, np.float32).T)
    rows = torch.from_numpy(x)

    def call() -> Any:
        with torch.no_grad():
            return torch.exp(rows @ w - rows.square().sum(-1, keepdim=True) / 2) / plan.count**0.5

    return call


def torch_given(phi_q: Any, phi_k: Any, v: Any) -> Call:
    """Attention from features that are given, as one writes it: two products and a division."""
    import torch

    torch.set_num_threads(allowed_threads())
    of_q, of_k, values = map(torch.from_numpy, (phi_q, phi_k, v))

    def call() -> Any:
        with torch.no_grad():
            kv, z = of_k.transpose(-1, -2) @ values, of_k.sum(-2)
            return (of_q @ kv) / (of_q @ z[..., None])

    return call


def rbf_sampler(plan: Plan, x: Any) -> Call:
    """As many features of a Gaussian kernel: scikit-learn's RBFSampler."""
    from sklearn.kernel_approximation import RBFSampler

    return partial(RBFSampler(gamma=0.5, n_components=plan.count, random_state=0).fit(x).transform, x)


def jax_plain(plan: Plan, arrays: Arrays, causal: bool = False) -> Call:
    """The plain mathematics under jax.jit: φ = exp(x w − |x|²/2 − its largest), then two contractions."""
    if causal:
        raise ValueError("only the bidirectional form is compared with")
    import jax
    import jax.numpy as jnp

    cpu = jax.devices("cpu")[0]
    features = draw("positive", plan.dim, plan.count, rng=0)
    w = jax.device_put(np.asarray(features.projection, np.float32), cpu)
    root = float(features.scale) ** 0.5
    q, k, v = (jax.device_put(x, cpu) for x in arrays)

    def exponent(x: Any) -> Any:
        x = x * root
        return jnp.einsum("hld,md->hlm", x, w, precision="highest") - jnp.sum(x * x, -1, keepdims=True) / 2

    def plain(q: Any, k: Any, v: Any) -> Any:
        of_q, of_k = exponent(q), exponent(k)
        phi_q = jnp.exp(of_q - jnp.max(of_q, -1, keepdims=True))
        phi_k = jnp.exp(of_k - jnp.max(of_k, (-2, -1), keepdims=True))
        kv = jnp.einsum("hlm,hld->hmd", phi_k, v)
        denominator = jnp.einsum("hlm,hm->hl", phi_q, jnp.sum(phi_k, -2))
        return jnp.einsum("hlm,hmd->hld", phi_q, kv) / denominator[..., None]

    compiled = jax.jit(plain)
    return lambda: compiled(q, k, v).block_until_ready()


def jax_product(order: int) -> Call:
    """A product of two square matrices under jax.jit."""
    import jax
    import jax.numpy as jnp

    cpu = jax.devices("cpu")[0]
    x, y = (jax.device_put(a, cpu) for a in np.random.default_rng(0).standard_normal((2, order, order), np.float32))
    compiled = jax.jit(jnp.matmul)
    return lambda: compiled(x, y).block_until_ready()
