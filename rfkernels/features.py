"""A feature map bound to drawn arrays, and how they are drawn without looking at data."""

from __future__ import annotations

import json
import math
import sys
from dataclasses import dataclass, fields
from typing import Any, Literal, NamedTuple
from weakref import WeakSet

import numpy as np

from rfkernels import maps, proposals, samplers
from rfkernels._arrays import FLOATS, broadcasting, dtype_name, is_jax, name_records, read_only, record
from rfkernels._checks import broadcast_batch, check_batch, check_key, generator_of, is_number, require_finite
from rfkernels.maps import FeatureMap
from rfkernels.proposals import Proposal
from rfkernels.samplers import Normal, Rows, Sampler

SideName = Literal["query", "key"]


class Blocks(NamedTuple):
    """Which projection rows were drawn together: whole blocks are independent of each other.

    Rows are `copies` stretches of equal length, such as draws and their negatives, each cut into consecutive blocks of
    `rows` rows, of which the last may be shorter. Block i is the i-th of every stretch.

    Parameters
    ----------
    rows : int
        Rows of a block in a stretch: dim for orthogonal ones, 1 for independent rows.
    copies : int, default 1
        Stretches: 2 for antithetic rows.
    """

    rows: int
    copies: int = 1


@record
class Side(NamedTuple):
    """The affine preprocessing of one side: u = w · T(x − centre), a = c |T(x − centre)|² + linear · x.

    Parameters
    ----------
    matrix : array, shape (*batch, dim, dim), optional
        The matrix T; None (the default) stands for √scale times the identity.
    centre : array, shape (*batch, dim), optional
        What is subtracted first; None for zero.
    linear : array, shape (*batch, dim), optional
        Weights of x in the exponent; None for zero. Only an exponential map has them.
    """

    matrix: Any = None
    centre: Any = None
    linear: Any = None


@dataclass(frozen=True, eq=False)
class Features:
    """A feature map bound to its arrays: what `draw` returns and what every computation takes.

    A pytree under JAX. JAX is told so when Features are made or used after it was imported; import it first.

    Parameters
    ----------
    map : FeatureMap
        What is computed.
    projection : array, shape (*batch, rows, dim)
        The rows w_j. Batch axes broadcast against those of keys, such as one set per head.
    log_weight : array, shape (*batch, rows)
        b_j, the log-weight of each row, added on both sides.
    query, key : Side
        The affine preprocessing of each side.
    scale : array, shape ()
        The kernel is estimated at inputs multiplied by √scale on both sides: exp(scale · q·k) for softmax maps.
    blocks : Blocks, optional
        Which rows were drawn together, which standard errors are estimated from. None (the default) where it is not
        known or all rows depend on each other, as quasi-random and trained ones do.
    """

    map: FeatureMap
    projection: Any
    log_weight: Any
    query: Side
    key: Side
    scale: Any
    blocks: Blocks | None = None

    def __post_init__(self) -> None:
        if not isinstance(self.blocks, Blocks | None):
            raise TypeError(f"blocks must be a Blocks or None, got {self.blocks!r}")
        register_pytree()

    @property
    def rows(self) -> int:
        """How many projection rows there are."""
        return int(self.projection.shape[-2])

    @property
    def dim(self) -> int:
        """The width of queries and keys."""
        return int(self.projection.shape[-1])

    @property
    def count(self) -> int:
        """How many feature columns there are, m: rows times activations."""
        return self.rows * len(self.map.activations)

    @property
    def batch(self) -> tuple[int, ...]:
        """Batch axes of the arrays, which broadcast against those of keys."""
        return tuple(self.projection.shape[:-2])

    def side(self, name: SideName) -> Side:
        """Return the preprocessing of "query" or "key"."""
        if name not in ("query", "key"):
            raise ValueError(f"side must be 'query' or 'key', got {name!r}")
        return self.query if name == "query" else self.key


@broadcasting
def draw(
    feature_map: str | FeatureMap,
    dim: int,
    count: int,
    *,
    sampler: str | Sampler | Rows = "orthogonal",
    proposal: Proposal | None = None,
    scale: float | None = None,
    batch: tuple[int, ...] = (),
    rng: Any,
) -> Features:
    """Draw features without looking at data.

    Parameters
    ----------
    feature_map : str or FeatureMap
        A registered name, such as "positive", "hyperbolic", "trigonometric" or "relu", or a map of your own.
    dim : int
        The width of queries and keys.
    count : int
        Feature columns, m. Equal counts mean equal cost; a map with two activations uses count / 2 projection rows.
    sampler : str, Sampler or callable, default "orthogonal"
        A name, such as "iid", "orthogonal", "antithetic", "simplex", "stratified" or "sobol" (see `samplers`), or a
        function ``(normal, count, dim) -> rows``.
    proposal : proposals.Gaussian or proposals.Mixture, optional
        Draw the rows of an exponential map from this distribution instead of N(0, I), with log-weights that keep
        estimates unbiased: ``proposals.isotropic(1.5)`` gives the features of FAVOR++.
    scale : float, optional
        Multiplies q·k; split evenly over both sides. 1/√dim (the default) is that of attention.
    batch : tuple of int, default ()
        Draw independent rows for each element of these batch axes, such as ``(heads,)``.
    rng : int, numpy.random.SeedSequence, numpy.random.Generator or JAX key
        Source of randomness. The same integer gives the same projection on every backend.

    Returns
    -------
    Features
        Arrays are NumPy float64 and read-only, or JAX arrays when `rng` is a JAX key.

    Raises
    ------
    TypeError
        If an argument has the wrong type, or a sampler or radii return no real numbers.
    ValueError
        If a name is unknown, a size is not positive, `count` is not a multiple of the number of activations, `scale`
        is not positive and finite, a sampler or radii return another shape or what is not finite, a proposal is given
        for a map that is not exponential, rows are not normal that a proposal, the map's radii or its kernel take to
        be, or the sampler needs an integer seed and `rng` is a JAX key.
    """
    feature_map, sampler = maps.resolve(feature_map), samplers.resolve(sampler)
    dim, count = _positive_integer("dim", dim), _positive_integer("count", count)
    activations = len(feature_map.activations)
    if count % activations:
        raise ValueError(f"count must be a multiple of the map's {activations} activations, got {count}")
    if scale is None:
        scale = 1 / math.sqrt(dim)
    if not (is_number(scale) and scale > 0):
        raise ValueError(f"scale must be a positive finite number, got {scale!r}")
    check_batch(batch)
    _check_law(feature_map, sampler, proposal, dim)
    normal, xp = _normal_source(rng)
    if sampler.host and xp is not np:
        raise ValueError(
            f"rows of the sampler {sampler.name!r} are drawn on the host: rng must be an int or a numpy generator, "
            "got a JAX key"
        )
    rows = count // activations
    sets = [_rows(xp, normal, rows, dim, feature_map, sampler, proposal) for _ in range(math.prod(batch))]
    if sets:
        projection, log_weight = (xp.stack(x) for x in zip(*sets, strict=True))
    else:
        projection, log_weight = xp.zeros((0, rows, dim)), xp.zeros((0, rows))
    projection, log_weight = projection.reshape(*batch, rows, dim), log_weight.reshape(*batch, rows)
    arrays = projection, log_weight, xp.asarray(scale, projection.dtype)
    projection, log_weight, scale = arrays if xp is not np else (read_only(x) for x in arrays)
    return Features(feature_map, projection, log_weight, Side(), Side(), scale, _blocks(sampler, dim))


def _blocks(sampler: Sampler, dim: int) -> Blocks | None:
    """Return which rows a sampler draws together."""
    rows = sampler.block_rows(dim)
    return None if rows is None else Blocks(rows, 2 if sampler.antithetic else 1)


def _check_law(feature_map: FeatureMap, sampler: Sampler, proposal: Proposal | None, dim: int) -> None:
    """Require rows of the law that a proposal, or a map with a law of its own, starts from."""
    if proposal is not None:
        proposals.check_proposal(proposal, dim)
        if not feature_map.exponential or feature_map.radii is not None:
            raise ValueError("proposal needs an exponential map of normal rows, whose features take a log-weight")
    if feature_map.kernel is not None and sampler.law not in samplers.STANDS_FOR_NORMAL:
        raise ValueError(
            f"the map's kernel is that of normal rows, but the law of the sampler {sampler.name!r} is {sampler.law!r}: "
            "rfkernels.spectral.fourier() takes rows of any law"
        )
    if (proposal is not None or feature_map.radii is not None) and sampler.law != "normal":
        wants = "proposal" if proposal is not None else "a map that has radii"
        raise ValueError(f"{wants} needs normal rows, but the law of the sampler {sampler.name!r} is {sampler.law!r}")


def _rows(
    xp: Any,
    normal: Normal,
    rows: int,
    dim: int,
    feature_map: FeatureMap,
    sampler: Sampler,
    proposal: Proposal | None,
) -> tuple[Any, Any]:
    """Draw rows and their log-weights."""
    drawn = _numbers(xp, "sampler", sampler(normal, rows, dim), (rows, dim))
    if feature_map.radii is not None:
        drawn = drawn * _numbers(xp, "radii", feature_map.radii(normal, rows), (rows,))[:, None]
    if proposal is None:
        return drawn, xp.zeros(rows, drawn.dtype)
    return proposals.propose(xp, proposal, drawn, normal)


def _numbers(xp: Any, name: str, returned: Any, shape: tuple[int, ...]) -> Any:
    """Require finite real numbers of that shape, and return them as floats: of NumPy, float64."""
    found = xp.asarray(returned)
    if found.shape != shape:
        raise ValueError(f"{name} returned shape {found.shape}, expected {shape}")
    if found.dtype.kind not in "iu" and dtype_name(found.dtype) not in FLOATS:
        raise TypeError(f"{name} must return real numbers, got dtype {found.dtype}")
    if xp is np or found.dtype.kind in "iu":
        found = found.astype(float)
    require_finite(f"what {name} returned", found)
    return found


_checked: WeakSet[Features] = WeakSet()
"""Features whose arrays were found to fit: to look again would take as long as all other checks of a token."""


def check_features(features: Any, name: str, x: Any) -> None:
    """Require Features of the array's width, with batch axes that broadcast."""
    register_pytree()
    if not isinstance(features, Features):
        raise TypeError(f"features must be a Features (see rfkernels.draw), got {type(features).__name__}")
    if features not in _checked:
        _check_arrays(features)
        _checked.add(features)
    if features.dim != x.shape[-1]:
        raise ValueError(f"features are of dim {features.dim}, but {name} has shape {x.shape}")
    if np.ndim(features.scale):
        raise ValueError(
            f"features.scale must have no axes, got shape {np.shape(features.scale)}: features that jax.vmap returned "
            "are to be mapped over by jax.vmap"
        )
    broadcast_batch(features=features.batch, **{name: x.shape[:-2]})


def _check_arrays(features: Features) -> None:
    """Require arrays that fit together: those of features made by hand may not."""
    if len(getattr(features.projection, "shape", ())) < 2:
        given = getattr(features.projection, "shape", type(features.projection).__name__)
        raise ValueError(f"features.projection must be an array (*batch, rows, dim), got {given}")
    dim, batch = features.dim, features.batch
    arrays: list[tuple[str, Any, tuple[int, ...]]] = [("log_weight", features.log_weight, (features.rows,))]
    for side, own in (("query", features.query), ("key", features.key)):
        tails = zip(own._fields, own, ((dim, dim), (dim,), (dim,)), strict=True)
        arrays += [(f"{side}.{name}", x, tail) for name, x, tail in tails if x is not None]
    for name, x, tail in arrays:
        shape = getattr(x, "shape", None)
        if shape is None or shape[-len(tail) :] != tail or not _within(shape[: -len(tail)], batch):
            own_axes = ", ".join(map(str, tail))
            raise ValueError(
                f"features.{name} must be an array (*batch, {own_axes}), with batch axes that broadcast to {batch}, "
                f"those of features.projection, got {type(x).__name__ if shape is None else shape}"
            )


def _within(shape: tuple[int, ...], batch: tuple[int, ...]) -> bool:
    """Whether batch axes broadcast to others without any more."""
    return len(shape) <= len(batch) and all(n in (1, m) for n, m in zip(shape[::-1], batch[::-1], strict=False))


def _positive_integer(name: str, value: Any) -> int:
    if isinstance(value, bool) or not isinstance(value, int | np.integer) or value < 1:
        raise ValueError(f"{name} must be a positive integer, got {value!r}")
    return int(value)


def _normal_source(rng: Any) -> tuple[Normal, Any]:
    if is_jax(rng):
        check_key(rng)
        return _jax_normal(rng), sys.modules["jax.numpy"]
    return generator_of(rng, "an int, SeedSequence, numpy Generator or JAX key").standard_normal, np


def _jax_normal(key: Any) -> Normal:
    jax = sys.modules["jax"]

    def normal(shape: tuple[int, ...]) -> Any:
        nonlocal key
        key, used = jax.random.split(key)
        return jax.random.normal(used, shape)

    return normal


_registered = False


def register_pytree() -> None:
    """Tell JAX, if the user imported it, that Features is a pytree whose static part is the map and the blocks."""
    global _registered
    name_records()
    jax: Any = sys.modules.get("jax")
    if _registered or not hasattr(jax, "tree_util"):
        return
    _registered = True
    static = ["map", "blocks"]
    arrays = [field.name for field in fields(Features) if field.name not in static]
    jax.tree_util.register_dataclass(Features, data_fields=arrays, meta_fields=static)
    if hasattr(jax, "export"):
        jax.export.register_pytree_node_serialization(
            Features, serialized_name="rfkernels.Features", serialize_auxdata=_packed, deserialize_auxdata=_unpacked
        )


def _packed(static: tuple[FeatureMap, Blocks | None]) -> bytes:
    """Return the static part of Features as bytes; functions are saved as the name of their map."""
    given, blocks = static
    name = next((name for name in maps.names() if maps.lookup(name) == given), None)
    if name is None:
        raise ValueError(
            f"an export holds features by the name of their map, which rfkernels.register gives; got {given}"
        )
    return json.dumps([name, None if blocks is None else [int(x) for x in blocks]]).encode()


def _unpacked(data: bytes | bytearray) -> tuple[FeatureMap, Blocks | None]:
    name, blocks = json.loads(data)
    return maps.lookup(name), None if blocks is None else Blocks(*blocks)
