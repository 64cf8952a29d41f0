"""What `mutants.py` breaks, a line at a time, and the tests that ought to notice."""

from __future__ import annotations

from typing import NamedTuple

UNBIASED = ("tests/test_unbiased.py",)
SAMPLERS = ("tests/test_samplers.py",)
PROPOSALS = ("tests/test_proposals.py",)
SPECTRAL = ("tests/test_spectral.py",)
MOMENTS = ("tests/test_moments.py",)
VARIANCE = ("tests/test_variance.py",)
FITTING = ("tests/test_fitting.py", "-k", "not jax")
MATERIALIZED = ("tests/test_materialized.py",)
TESTING = ("tests/test_testing.py",)
NUMPY = ("tests/test_conformance.py", "-k", "test_conformance and numpy or cover or exact or linear")
NUMBA = ("tests/test_conformance.py", "-k", "numba")
JUMPS = ("tests/test_numerics.py", "-k", "numba and (jump or ratio or random or norms_from)")
NUMPY_JUMPS = ("tests/test_numerics.py", "-k", "numpy and (jump or ratio or random or norms_from or nothing or masked)")
STATE = ("tests/test_state.py",)
JAX_NUMERICS = ("tests/test_jax_numerics.py", "-k", "jump or later")
SEGMENTS = ("tests/test_segments.py", "tests/test_jax_segments.py")
MAPS = ("tests/test_maps.py",)
SHARDING = ("tests/test_sharding.py", "-k", "jump or windows or whole")
INPUTS = ("tests/test_inputs.py", "-k", "drawn")

FUSED = ("tests/test_fused.py", "-x")
TOGETHER = ("tests/test_together.py", "-x")

GROUPING = "tests/test_grouping.py"
MERGED = ("tests/test_groups.py", "-k", "test_merged_groups_are_those_of_the_keys_in_them")
BLOCKS = "tests/test_blocks_numba.py"
MERGING = "tests/test_merging_numba.py"
FAR = ("tests/test_far_features_numba.py",)
UNCERTAINTY = "tests/test_uncertainty.py"
CALIBRATION = "tests/test_calibration.py"
ADVISE = "tests/test_advise.py"

CATALOG = "tests/test_catalog.py"
CATALOG_NUMBA = "tests/test_catalog_numba.py"
RECORDS = "tests/test_records.py"
CATALOG_JAX = "tests/test_catalog_jax.py"
STORE = "tests/test_catalog_store.py"
CATALOG_ERRORS = "tests/test_catalog_errors.py"
CODES = "tests/test_codes.py"
JAX_DRAWS = "tests/test_catalog_jax_draws.py"
JAX_CATALOG = "tests/test_catalog_jax.py"
FAULTS = "tests/test_catalog_faults.py"
TOPS = "tests/test_catalog_tops.py"
SAMPLING = "tests/test_catalog_sampling.py"
CATALOG_MAPPING = "tests/test_catalog_mapping.py"
FILES = ("tests/test_whole_files.py",)
REFUSED = ("tests/test_catalog_refusals.py",)
SAMPLED = "tests/test_sampled_softmax.py"
DASK = "tests/test_dask.py"
SOFTMAX = "tests/test_cli_softmax.py"


class Mutant(NamedTuple):
    """A text that occurs once in a file, what replaces it, and the arguments of pytest that should fail."""

    name: str
    file: str
    old: str
    new: str
    tests: tuple[str, ...]


MUTANTS = [
    # Samplers
    Mutant("QR without the sign", "samplers/_rotations.py", "basis * signs[:, None, :]", "basis", SAMPLERS),
    Mutant(
        "norms √d",
        "samplers/_rotations.py",
        "xp.sqrt(xp.sum(squares, axis=-1, keepdims=True))",
        "xp.sqrt(xp.full((count, 1), float(dim)))",
        SAMPLERS,
    ),
    Mutant("antithetic pairs that are equal", "samplers/__init__.py", "[first, -first]", "[first, first]", SAMPLERS),
    # Definitions
    Mutant(
        "d^-½ on both sides",
        "core.py",
        "t = t * xp.sqrt(xp.asarray(features.scale, dtype))",
        "t = t * xp.asarray(features.scale, dtype)",
        (*MAPS, *UNBIASED),
    ),
    Mutant("default scale 1/d", "features.py", "scale = 1 / math.sqrt(dim)", "scale = 1 / dim", INPUTS),
    Mutant(
        "wrong sign of |x|²",
        "maps.py",
        '"positive": _positive((_exponential,), -0.5,',
        '"positive": _positive((_exponential,), 0.5,',
        (*MAPS, *UNBIASED),
    ),
    Mutant("uneven halves of hyperbolic", "maps.py", "return xp.exp(a - u)", "return 2 * xp.exp(a - u)", (*MAPS, *UNBIASED)),
    Mutant(
        "trigonometric without √2 in sine",
        "maps.py",
        "return math.sqrt(2) * xp.sin(u) * xp.exp(a)",
        "return xp.sin(u) * xp.exp(a)",
        (*MAPS, *UNBIASED),
    ),
    Mutant(
        "m^-½ forgotten where φ is returned",
        "core.py",
        "a[..., None] - math.log(features.count) / 2",
        "a[..., None]",
        (*UNBIASED, *NUMPY[:1], "-k", "unbiased or (test_conformance and numpy)"),
    ),
    # The specification
    Mutant(
        "a shift per key",
        "core.py",
        "phi = activate(xp, features, u, exponent - base[..., None, :])",
        "phi = activate(xp, features, u, exponent - xp.max(exponent, -1, keepdims=True, initial=-1e30))",
        NUMPY,
    ),
    Mutant(
        "epsilon added to the features of keys",
        "core.py",
        "    held = rescaled(xp, state, shift)\n",
        "    phi = phi + 1e-6\n    held = rescaled(xp, state, shift)\n",
        NUMPY_JUMPS,
    ),
    Mutant(
        "epsilon added to the features of queries",
        "core.py",
        "    denominator = xp.sum(phi * state.z",
        "    phi = phi + 1e-6\n    denominator = xp.sum(phi * state.z",
        NUMPY_JUMPS,
    ),
    Mutant(
        "epsilon added to the denominator",
        "partials.py",
        "part.numerator / xp.where(nothing, 1, part.denominator)[..., None]",
        "part.numerator / (xp.where(nothing, 1, part.denominator) + 1e-6)[..., None]",
        (*NUMPY_JUMPS, *NUMPY[:1], "-k", "numpy"),
    ),
    Mutant(
        "only values are masked",
        "core.py",
        "    held = rescaled(xp, state, shift)\n",
        "    held = rescaled(xp, state, shift)\n    v = v if mask is None else xp.where(mask[..., None], v, 0)\n"
        "    phi = key_features(xp, u, exponent, shift, features)\n",
        NUMPY,
    ),
    Mutant(
        "masked keys move the shift",
        "core.py",
        "return u, exponent if mask is None else xp.where(mask[..., None], exponent, -xp.inf)",
        "return u, exponent",
        NUMPY_JUMPS,
    ),
    Mutant("sums are not rescaled", "core.py", "decay = xp.exp(state.shift - xp.where(shift == -xp.inf, 0, shift))", "decay = xp.ones_like(shift)", NUMPY),
    Mutant(
        "maximum over future keys",
        "core.py",
        "    first = keys - length - lag\n",
        "    first = keys - length - lag\n"
        "    state = State(state.kv, state.z, write(xp, state, k, v, features, mask).shift)\n",
        NUMPY_JUMPS,
    ),
    Mutant("the first query is aligned", "core.py", "    first = keys - length - lag\n", "    first = -lag\n", NUMPY),
    Mutant("a key too many", "core.py", "    first = keys - length - lag\n", "    first = keys - length - lag + 1\n", NUMPY),
    Mutant("two-sided windows aligned", "core.py", "lag = window + keys - length", "lag = window", NUMPY),
    Mutant("estimates m times too large", "core.py", "-xp.inf, own - math.log(features.count))", "-xp.inf, own)", NUMPY),
    Mutant("the log-weight of queries", "core.py", "exponent = exponents(xp, features, u) + base\n",
           "exponent = exponents(xp, features, u) - log_weights(xp, features, u.dtype) + base\n", NUMPY),
    Mutant("joined on one scale", "partials.py", "(xp.exp(scale - base) for scale in scales)",
           "(xp.exp(scales[0] - base) for scale in scales)", NUMPY),
    # JAX and packed sequences
    Mutant("no guard against jumps", "backends/jax/tiles.py", "JUMP = 40.0", "JUMP = 1e9", JAX_NUMERICS),
    Mutant("the guard forgets masks", "backends/jax/tiles.py", "least = jnp.maximum(own, first)\n",
           "least = jnp.maximum(own, shift)\n", JAX_NUMERICS),
    Mutant("the quotient's own scale", "backends/jax/tiles.py",
           "own = stopped(jnp, jnp.where(part.denominator == 0, 1, jnp.abs(part.denominator)))",
           "own = jnp.where(part.denominator == 0, 1, 2 * jnp.sign(part.denominator))", JAX_NUMERICS),
    Mutant("a state crosses segments", "backends/jax/tiles.py", "carry = Carry(kept(features, carry.state, begins),",
           "carry = Carry(carry.state,", SEGMENTS),
    Mutant("a chunk crosses segments", "backends/jax/tiles.py",
           "visible = visible & (rows.of_query[..., :, None] == rows.of_key[..., None, :])", "pass", SEGMENTS),
    Mutant("the state of all segments", "backends/jax/__init__.py",
           "kept(features, after.state, after.segment == segments[..., -1])", "after.state", SEGMENTS),
    Mutant("pending keys of other segments", "streaming.py", "seen = seen & (segments == segments[..., -1:])", "pass",
           SEGMENTS),
    Mutant("exact weights cross segments", "exact.py", "allowed = allowed & (own == segment_ids[..., None, part])", "pass",
           SEGMENTS),
    # States
    Mutant("the shift forgotten in merge", "state.py", "xp.exp(first.shift - base), xp.exp(second.shift - base)",
           "xp.ones_like(base), xp.ones_like(base)", STATE),
    Mutant("the shift of one side in merge", "state.py", "shift = stopped(xp, xp.maximum(first.shift, second.shift))",
           "shift = first.shift + 0 * second.shift", STATE),
    Mutant("merge keeps the values of one", "state.py", "kv = first.kv * one[..., None] + second.kv * two[..., None]",
           "kv = first.kv * one[..., None] + 0 * second.kv * two[..., None]", STATE),
    Mutant("the mask of a stream forgotten", "streaming.py", "joined(decode.mask, new, wide, 1)",
           "joined(xp.ones_like(decode.mask), new, wide, 1)", STATE),
    Mutant("the position of a stream", "streaming.py", "decode.position + keys.shape[-2] - decode.keys.shape[-2]",
           "decode.position + keys.shape[-2]", STATE),
    # Exact attention
    Mutant("a window too wide", "exact.py", "abs(position - key) < window", "abs(position - key) <= window", NUMPY),
    Mutant("strictly causal", "exact.py", "allowed = key <= position", "allowed = key < position", NUMPY),
    Mutant("scale on one side", "exact.py", "    q, k = q * root, k * root\n", "    q, k = q * root, k * scale\n", NUMPY),
    # The Numba backend
    Mutant("guard disabled", "backends/numba/lowering.py", "JUMP_LIMIT = 40.0", "JUMP_LIMIT = 1e30", JUMPS),
    Mutant("guard too generous", "backends/numba/lowering.py", "JUMP_LIMIT = 40.0", "JUMP_LIMIT = 90.0", JUMPS),
    Mutant("guard ignores the first key", "backends/numba/lowering.py",
           "reached = m.where(b.and_(m.gt(earliest, old), e.splat_condition(sees)), earliest, old)",
           "reached = m.where(e.splat_condition(sees), moved, old)", JUMPS),
    Mutant("an exponent without its slope", "backends/numba/lowering.py",
           "exponent = m.add(m.fma(u, m.constant(slope), a), add)", "exponent = m.add(m.add(u, a), add)", NUMBA),
    Mutant("rows that do not exist raise the shift", "backends/numba/lowering.py",
           "moved = m.where(exists, m.maximum(old, m.add(_reduced(e, tops, m.maximum), weight)), old)",
           "moved = m.maximum(old, m.add(_reduced(e, tops, m.maximum), weight))", (*NUMBA[:1], "-k", "numba", *JUMPS[:1])),
    Mutant("pieces of the keys left out", "backends/numba/passes.py",
           "        first.append(len(ends) - 1)\n", "        first.append(max(len(ends) - 2, 0))\n", NUMBA),
    Mutant("masked keys are features", "backends/numba/lowering.py", "                if ragged:\n", "                if False:\n", NUMBA),
    Mutant("d^-½ on both sides in Numba", "backends/numba/packing.py", "projection * math.sqrt(scale)", "projection * scale", NUMBA),
    Mutant("the linear part keeps the centre", "backends/numba/packing.py", "constant += np.sum(linear * centre, 1)", "pass", NUMBA),
    Mutant("denominator without the triangle", "backends/numba/kernels.py",
           "e.store(b.fadd(e.load(denominator, r), m.reduce_add(total.get())), denominator, r)",
           "e.store(e.load(denominator, r), denominator, r)", NUMBA),
    Mutant("a strict triangle", "backends/numba/kernels.py", 'seen = b.icmp_signed("<=", lane', 'seen = b.icmp_signed("<", lane', NUMBA),
    Mutant("a whole triangle", "backends/numba/kernels.py", "value = m.where(seen, e.load_vector(scores, index), m.constant(0.0))",
           "value = e.load_vector(scores, index)", NUMBA),
    Mutant("z is not rescaled", "backends/numba/kernels.py", "e.store(b.fmul(e.load(z, j), single), z, j)", "e.store(e.load(z, j), z, j)", NUMBA),
    Mutant("values are not rescaled", "backends/numba/kernels.py",
           "e.store_vector(m.mul(e.load_vector(kv, index), factor), kv, index)",
           "e.store_vector(e.load_vector(kv, index), kv, index)", NUMBA),
    Mutant("the window's sums are not rescaled", "backends/numba/kernels.py",
           "e.store_vector(m.mul(e.load_vector(sums, index), shrink), sums, index)",
           "e.store_vector(e.load_vector(sums, index), sums, index)", NUMBA),
    Mutant("halves joined on one scale", "backends/numba/kernels.py",
           "keep, take = m.exp(m.splat(b.fsub(one, new))), m.exp(m.splat(b.fsub(two, new)))",
           "keep, take = m.exp(m.splat(b.fsub(one, new))), m.exp(m.splat(b.fsub(one, new)))", NUMBA),
    Mutant("chunks are not joined", "backends/numba/passes.py",
           "                array[i] = merged\n", "                pass\n", NUMBA),
    Mutant("bfloat16 is cut, not rounded", "backends/numba/conversions.py", "b.add(b.add(bits, _constant(word, 0x7FFF)), odd)", "bits", NUMBA),
    Mutant("m^-½ forgotten in Numba", "backends/numba/packing.py", "constant -= math.log(features.count)", "pass", NUMBA),
    Mutant("the guard's key is seen by all", "backends/numba/schedule.py",
           "first = visible if seen == 0 or visible == 0 else -1", "first = visible", JUMPS),
    Mutant("shift not rescaled before a tile", "backends/numba/schedule.py",
           "            seen = 1\n            rescale(p, s, t)\n", "            seen = 1\n", NUMBA),
    Mutant("rows that see no feature keep their scale", "backends/numba/schedule.py",
           "            if t.near != 0 or t.part_mode != 0:\n", "            if t.near < 0:\n", JUMPS),
    Mutant("a window too narrow", "backends/numba/passes.py", 'near_low=delta + 1,', 'near_low=delta + 2,', NUMBA),
    # Many devices
    Mutant("devices that nothing came from have the shift zero", "integrations/collectives.py",
           "jnp.where(axis.rank() >= step, came.shift, -jnp.inf)", "came.shift", SHARDING),
    Mutant("a scan over devices that ends early", "integrations/collectives.py",
           "while covered < axis.size - 1:", "while covered < axis.size // 2:", SHARDING),
    Mutant("shift forgotten between devices", "integrations/collectives.py",
           "jnp.exp(jnp.where(nothing, base, state.shift) - base)", "jnp.ones_like(base)", SHARDING),
    Mutant("keys before the first device", "integrations/collectives.py", "axis.rank() > 0", "axis.rank() >= 0", SHARDING),
    Mutant("the state of the first device", "integrations/collectives.py",
           "last = axis.rank() == axis.size - 1", "last = axis.rank() == 0", SHARDING),
    Mutant("the halo's keys are written twice", "integrations/sequence.py",
           "own = tuple(leaving(old, new, window)", "own = tuple(new", SHARDING),
    Mutant("a query's own key in both passes", "integrations/sequence.py", "(leaving(old, new, 1) for", "(new for", SHARDING),
    # Samplers and proposals of the literature
    Mutant("simplex directions of another length", "samplers/_rotations.py", " * math.sqrt(dim / (dim - 1))", "", (*SAMPLERS, "-k", "simplex")),
    Mutant("strata in order", "samplers/_host.py", "np.argsort(normal((count,)))", "np.arange(count)", (*SAMPLERS, "-k", "by_itself")),
    Mutant("paired norms that are equal", "samplers/_host.py", "np.array([1.0, -1.0])", "np.array([1.0, 1.0])", (*SAMPLERS, "-k", "paired")),
    Mutant("Hadamard norms of the narrower width", "samplers/_structured.py", "chi(normal, count, n)", "chi(normal, count, dim)", (*SAMPLERS, "-k", "hadamard")),
    Mutant("centres of the best mixture at the points", "proposals.py", "Mixture(2 * math.sqrt(scale) * points", "Mixture(math.sqrt(scale) * points", (*PROPOSALS, "-k", "best")),
    Mutant("half of the log-weight of a proposal", "proposals.py", "    return drawn, log_ratio / 2\n", "    return drawn, log_ratio / 4\n", (*UNBIASED, "-k", "importance")),
    Mutant("radii of Student's law without degrees", "spectral.py", "math.sqrt(degrees) / xp.maximum", "1 / xp.maximum", (*SPECTRAL, "-k", "radii or unbiased")),
    Mutant("a square left out of a spectral variance", "spectral.py", "xp.expm1(2 * log(xp, squared))", "xp.expm1(log(xp, squared))", (*SPECTRAL, "-k", "variance")),
    # Kernels and variances of maps
    Mutant("a sign in the arc-cosine recursion", "kernels.py", "2 * n * p[k - 1] * (k > 0) + q[k]", "2 * n * p[k - 1] * (k > 0) - q[k]", (*MOMENTS, "-k", "any_angle")),
    Mutant("weights of signed kernels without their sign", "exact.py", "weight = weight * kernel.sign(xp, dot, xx, yy)", "pass", ("tests/test_conformance.py", "-k", "exact_attention")),
    Mutant("a mean that is not squared", "moments.py", "log_magnitude(xp, 1 - xp.exp(2 * log_mean - base))", "log_magnitude(xp, 1 - xp.exp(log_mean - base))", (*MOMENTS, "-k", "those_of_the_activations or any_norm")),
    Mutant("the variance of squares", "moments.py", "8 + squared * (68 + 20 * squared)", "8 + squared * (68 + 24 * squared)", MOMENTS),
    Mutant("erf by one branch", "backends/numba/vectormath.py", "return self.where(self.lt(size, one), near, far)", "return near", ("tests/test_vectormath.py", "-k", "erf")),
    # Predicted errors
    Mutant("second moments of two rows", "variance/_rows.py", "quadratic = middle * middle / (1 + excess) - apart * apart / 4", "quadratic = middle * middle / (1 + excess) - apart * apart / 2", (*VARIANCE, "-k", "grid")),
    Mutant("pairs in a block that is not full", "variance/_rows.py", "return whole * dim * (dim - 1) + rest * (rest - 1)", "return whole * dim * (dim - 1)", (*VARIANCE, "-k", "coupled")),
    Mutant("the optimum of FAVOR++ by half of φ", "variance/_proposal.py", "double = 1 + 2 * phi", "double = 1 + phi", (*VARIANCE, "-k", "proposal")),
    Mutant("no bias of regularized rows", "variance/_sphere.py", "bias**2", "0 * bias", (*VARIANCE, "-k", "regularized or sphere or grid")),
    Mutant("output errors about zero", "variance/_attention.py", "apart = v - output[:, None]", "apart = v", (*VARIANCE, "-k", "attention")),
    Mutant("Bennett's bound by another series", "variance/_terms.py", "series = 1 / ((j + 1) * (j + 2)) - series * near", "series = 1 / ((j + 1) * (j + 2)) + series * near", (*VARIANCE, "-k", "bounds or inequalit")),
    # Fitted and materialized features
    Mutant("spread of the rows", "variance/_proposal.py", "1 + 8 * (phi / double) / double", "1 + 4 * (phi / double) / double", FITTING),
    Mutant("balance turned round", "fitting/algebra.py", "xp.sqrt(common)[..., :, None]", "(1 / xp.sqrt(common))[..., :, None]", FITTING),
    Mutant("log-weights twice", "fitting/choices.py", "log_weight = log_ratio / 2", "log_weight = log_ratio", FITTING),
    Mutant("the constant of centring", "fitting/choices.py", "-scale * xp.sum(a * b, -1) / 2", "-scale * xp.sum(a * b, -1)", FITTING),
    Mutant("moments merged without their distance", "fitting/statistics.py", "weight = (first.count * share)[..., None, None]", "weight = (0 * first.count * share)[..., None, None]", FITTING),
    Mutant("signs of monomials", "materialized/monomials.py", "matmul(xp, (t < 0).astype(dtype)", "matmul(xp, (t > 0).astype(dtype)", (*MATERIALIZED, "-k", "definition")),
    Mutant("geometric exponents from one on", "materialized/monomials.py", ".geometric(probability, (*batch, count, dim)) - 1", ".geometric(probability, (*batch, count, dim))", (*MATERIALIZED, "-k", "moments_stated")),
    Mutant("hybrid weights exchanged", "materialized/hybrid.py", "features.hyperbolic.count, -base_sign, base_sign)", "features.hyperbolic.count, base_sign, -base_sign)", (*MATERIALIZED, "-k", "mixes")),
    Mutant("Maclaurin variance of signs", "materialized/maclaurin.py", "spread - 2 * np.sum((x * y) ** 2, -1)", "spread - np.sum((x * y) ** 2, -1)", (*MATERIALIZED, "-k", "products_of_signs")),
    # Assertions for users
    Mutant("a second moment for a variance", "testing/integrals.py", "weights @ (found - weights @ found) ** 2", "weights @ found**2", (*TESTING, "-k", "closed_form")),
    Mutant("grids that need not agree", "testing/integrals.py", "<= allowed[index] / 4", "<= np.inf", (*TESTING, "-k", "jumps")),
    Mutant("NaN passes", "testing/comparison.py", "holds = excess <= allowed", "holds = ~(excess > allowed)", (*TESTING, "-k", "expected_values")),
    Mutant("the false-alarm probability", "testing/sampled.py", "level = math.log(2 * claimed.size / false_alarm)", "level = math.log(2 * claimed.size)", (*TESTING, "-k", "sample_is_as_large")),
    Mutant("one row of every block", "testing/laws.py", "[i % rows]", "[0]", (*TESTING, "-k", "broken_last_row")),
    Mutant("ordering at equal rows", "testing/assertions.py", "integrals.Integral(columns * found.value,", "integrals.Integral(found.value,", (*TESTING, "-k", "ordering")),
    Mutant("laws of magnitudes alone", "testing/laws.py", "np.sign(rows) * stats.norm.isf(levels)", "stats.norm.isf(levels)", (*TESTING, "-k", "laws_of_given")),
    Mutant("drawn estimates of another scale", "testing/sampled.py", "proposal=proposal, scale=scale, batch", "proposal=proposal, scale=1.0, batch", (*TESTING, "-k", "drawn_features")),
    Mutant("a second moment for the variance of a law", "testing/weighted.py", "second - np.asarray(wanted.value) ** 2", "second", (*TESTING, "-k", "moments_of_values")),
    Mutant("one success fewer", "testing/tails.py", "stats.binom.sf(counts - 1,", "stats.binom.sf(counts,", (*TESTING, "-k", "too_often")),
    Mutant("factors are not rounded", "testing/integrals.py", "error = ROUNDING * (float(np.sqrt(weights @ found**2)) + size)", "error = size = ROUNDING * float(np.sqrt(weights @ found**2))", (*MOMENTS, "-k", "both_signs")),
    Mutant("columns without m^-1/2", "core.py", "a[..., None]) / math.sqrt(features.count)", "a[..., None])", (*MOMENTS, "-k", "both_signs")),
    Mutant("weights of the first of two rows", "testing/grids.py", "density[i] * density[j] / angles", "density[i] / angles", (*TESTING, "-k", "two_rows")),
    # States
    Mutant("merged states on one scale", "state.py", "one, two = xp.exp(first.shift - base), xp.exp(second.shift - base)", "one, two = xp.exp(0 * first.shift), xp.exp(second.shift - base)", STATE),
    Mutant("a part without keys drowns the other", "partials.py", "xp.where(part.denominator == 0, -xp.inf, part.shift)", "part.shift", ("tests/test_numerics.py", "-k", "numpy and (ratio or window_over)")),
    # Groups, heavy keys, blocks
    Mutant("heavy keys written as well", "grouping/schedule.py", "return rows.mask & ~xp.any(rows.heavy[..., :, None] == positions, -2)", "return rows.mask", (GROUPING, "-k", "by_itself")),
    Mutant("heavy keys a position early", "grouping/schedule.py", "(rows.heavy[..., None, :] <= first + own)", "(rows.heavy[..., None, :] <= first + own + 1)", (GROUPING, "-k", "by_itself")),
    Mutant("groups of one weigh as much as large ones", "grouping/summaries.py", "bias = xp.where(filled, xp.log(count), -np.inf)", "bias = xp.where(filled, 0, -np.inf)", (GROUPING, "-k", "by_itself")),
    Mutant("masked keys in the spread", "grouping/fitting.py", "_within(xp, groups, k, v, weight > 0)", "_within(xp, groups, k, v, weight >= 0)", (GROUPING, "-k", "masked")),
    Mutant("merging: attention of all blocks before", "grouping/merging.py", "mass=xp.zeros_like(state.mass), within", "mass=state.mass, within", MERGED),
    Mutant("merging: the spread of the last merger alone", "grouping/merging.py", "within = state.within + matmul(", "within = matmul(", MERGED),
    Mutant("merging: points weighed by their number", "grouping/merging.py", "weight = mass / xp.where(received > 0, received, 1) +", "weight = 0 * mass +", MERGED),
    Mutant("merging: ties are followed one step", "grouping/merging.py", "for _ in range(x.shape[-2].bit_length()):", "for _ in range(0):", MERGED),
    Mutant("merging: a pair is tied from both ends", "grouping/merging.py", "least = xp.where(mutual & (index < nearest), np.inf, least)", "least = xp.where(mutual & (index < 0), np.inf, least)", MERGED),
    Mutant("merging: all ties count", "grouping/merging.py", "tied = (rank < surplus) & (least < np.inf)", "tied = (rank <= surplus) & (least < np.inf)", MERGED),
    Mutant("Numba, far features: near keys end with the query's own block", "backends/numba/far_schedule.py", "(block + 1 + o.ahead) * o.block", "(block + 1) * o.block", FAR),
    Mutant("Numba, far features: states before the last block", "backends/numba/far_features.py", "last = max((h.keys - 1) // o.block - o.reach, 0) * o.block", "last = 0", FAR),
    Mutant("Numba, far features: heavy keys a position early", "backends/numba/far_schedule.py", "n, i + t.delta + o.later)", "n, i + t.delta + 1 + o.later)", FAR),
    Mutant("Numba, far features: heavy keys beyond the first tile", "backends/numba/far_schedule.py", "position + r + i)) - start", "position + r + i))", FAR),
    Mutant("Numba, far features: nothing is behind", "backends/numba/far_schedule.py", "absorbed, seen = stop, seen | found", "absorbed, seen = stop, 0", FAR),
    Mutant("Numba, far features: chunks begin with nothing", "backends/numba/far_features.py", "(starts[index], 0))(head)", "(0, 0))(head)", FAR),
    Mutant("Numba, far features: nothing behind later chunks", "backends/numba/far_features.py", "    after.scan()\n", "", FAR),
    Mutant("Numba merging: a pair is tied from both ends", "backends/numba/merge_kernels.py", "e.store(b.select(first, e.scalar(NONE), e.load(cost, i)), cost, i)", "e.store(b.select(first, e.load(cost, i), e.load(cost, i)), cost, i)", (MERGING, "-k", "as_is_specified")),
    Mutant("Numba merging: a tie too many", "backends/numba/merge_kernels.py", "with b.if_then(e.less(cheaper, wanted)):", "with b.if_then(e.less(cheaper, e.add(wanted, 1))):", (MERGING, "-k", "as_is_specified")),
    Mutant("Numba merging: of equal costs the last ones", "backends/numba/merge_kernels.py", 'earlier = b.icmp_signed("<", lane', 'earlier = b.icmp_signed(">", lane', (MERGING, "-k", "same")),
    Mutant("Numba merging: rows beyond the queries receive", "backends/numba/merge_kernels.py", "with e.loop(first, e.add(first, count)) as r:", "with e.loop(first, e.add(first, per)) as r:", (MERGING, "-k", "as_is_specified")),
    Mutant("Numba merging: weights on the scale of their tile", "backends/numba/merge_kernels.py", "weight = m.exp(m.sub(e.load_vector(level, r), e.load_vector(top, r)))", "weight = m.constant(1.0)", (MERGING, "-k", "as_is_specified")),
    Mutant("Numba merging: cost of points that weigh the same", "backends/numba/merge_kernels.py", "pair = m.div(m.mul(one, two), m.add(one, two))", "pair = m.constant(1.0)", (MERGING, "-k", "as_is_specified")),
    Mutant("Numba merging: the spread of groups as if of one key", "backends/numba/merge_kernels.py", "factor = m.splat(b.fdiv(b.fmul(few, many), b.fadd(few, many)))", "factor = m.splat(b.fdiv(few, b.fadd(few, many)))", (MERGING, "-k", "as_is_specified")),
    Mutant("Numba merging: half of what is off the diagonal", "backends/numba/merge_kernels.py", "m.add(value, value), value)", "value, value)", (MERGING, "-k", "as_is_specified")),
    Mutant("Numba: masked keys are of groups", "backends/numba/group_kernels.py", 'found.set(b.select(b.icmp_signed("!=", given, BYTE(0)), label, SHORT(-1)))', "pass", (MERGING, "-k", "as_is_specified")),
    Mutant("Numba merging: a second round where points were", "backends/numba/merge_schedule.py", "call(m.mix, (i, _owner(m, i), s.far_x, p.dim_pad, m.weight))", "pass", (MERGING, "-k", "as_is_specified")),
    Mutant("Numba merging: attention of all blocks before", "backends/numba/merge_schedule.py", "            call(p.fill, (t.mass, t.zeros, p.points))\n", "", (MERGING, "-k", "as_is_specified")),
    Mutant("Numba merging: near keys that do not exist receive", "backends/numba/merge_schedule.py", "min(columns, p.block), m.near_level", "p.block, m.near_level", (MERGING, "-k", "as_is_specified")),
    Mutant("Numba merging: a state forgets what was received", "backends/numba/merging.py", "mass[:, : p.groups] = received[:, : p.groups]", "pass", (MERGING, "-k", "from_a_state")),
    Mutant("Numba: a tile does not learn of the last centre", "backends/numba/group_schedule.py", "first, missing = tile * p.tile, chosen + 1 - known", "first, missing = tile * p.tile, chosen - known", (BLOCKS, "-k", "steps_that_find")),
    Mutant("Numba: weights of keys on the scale of their tile", "backends/numba/group_kernels.py", "factor = m.exp(m.sub(e.load_vector(level, c), e.load_vector(top, c)))", "factor = m.constant(1.0)", (BLOCKS, "-k", "many_keys_receive")),
    Mutant("Numba: half of what is off the diagonal", "backends/numba/block_inputs.py", "np.tril(x + np.swapaxes(x, 1, 2), -1)", "np.tril(x, -1)", (BLOCKS, "-k", "wider or bidirectional")),
    Mutant("Numba: nothing is found not to be finite", "backends/numba/finite.py", "int(not np.isfinite(x).all())", "0", (BLOCKS, "-k", "not_finite")),
    Mutant("Numba: no rounding in errors", "backends/numba/spreads.py", "max(np.sqrt(error[r, j]), least * size)", "np.sqrt(error[r, j])", (UNCERTAINTY, "-k", "compiled_spreads")),
    Mutant("Numba: norms left out of exact rows", "backends/numba/exact_rows.py", "log[j] += x * (k[a, j] + weight * x)", "log[j] += x * k[a, j]", (UNCERTAINTY, "-k", "compiled_rows")),
    Mutant("Numba: no block leaves at the end", "backends/numba/block_schedule.py", "gather(p, s, t, absorbed, t.until, t.before)\n    return 0", "return 0", (BLOCKS, "-k", "causal")),
    Mutant("Numba: values move half as far", "backends/numba/block_kernels.py", "both = b.fmul(b.fmul(e.load(moved, r), e.load(scale, e.integer(0))), e.scalar(2.0))", "both = b.fmul(b.fmul(e.load(moved, r), e.load(scale, e.integer(0))), e.scalar(1.0))", (BLOCKS, "-k", "bidirectional or causal")),
    # Error bars, advice, learned features
    Mutant("rows of pairs apart", "uncertainty/_groups.py", "(first + rows * np.arange(copies)[:, None])", "(first * copies + np.arange(copies)[:, None])", (UNCERTAINTY, "-k", "equal_parts")),
    Mutant("delete-one without the others' share", "uncertainty/_jackknife.py", "share / left)", "share)", (UNCERTAINTY, "-k", "delete_one")),
    Mutant("the order statistic of one value fewer", "uncertainty/_check.py", "LEVEL * (n + 1) - 1", "LEVEL * n - 1", (UNCERTAINTY, "-k", "order_statistic")),
    Mutant("advice fitted to what it is measured on", "advise/_problem.py", "return problem.q[..., : queries // 2 : q_step, :], problem.k[..., : keys // 2 : k_step, :]", "return problem.q[..., ::q_step, :], problem.k[..., ::k_step, :]", (ADVISE, "-k", "paste")),
    Mutant("advice to use what is slower", "advise/_report.py", "if row.seconds >= exact.seconds:", "if False:", (ADVISE, "-k", "decided")),
    Mutant("steps that are worse are kept", "integrations/optax.py", "better = finite & (found < least) & (stopped == \"steps\")", "better = finite & (stopped == \"steps\")", (CALIBRATION, "-k", "no_step_is_kept")),
    Mutant("heads whose output is zero", "integrations/optax.py", "error / jnp.where(nothing, 1, size))", "error / size)", (CALIBRATION, "-k", "zeros")),
    Mutant("gain on the sample it was fitted to", "fitting/gains.py", "asked = samples if on is None else _checked(*on)", "asked = samples", ("tests/test_gain.py",)),
    # Catalogs
    Mutant("codes: cells that moved, as specified", "catalog/codes.py", "anchored[changed] = table.anchors[changed] @ query", "pass", (CODES, "-k", "moved_away")),
    Mutant("codes: cells that moved, compiled", "backends/numba/catalog_scans.py", "k.anchored[c.moved[j]] = total", "pass", (CODES, "-k", "moved_away")),
    Mutant("codes: parts of blocks count as whole ones", "catalog/scans.py", "expected = runs.log_expected + np.log(size / BLOCK)", "expected = runs.log_expected", (CATALOG, "-k", "unbiased")),
    Mutant("codes: parts of blocks count as whole ones, compiled", "backends/numba/catalog_list_kernels.py", "m.div(expected, m.mul(e.load_vector(odds, i), size))", "m.div(expected, m.mul(e.load_vector(odds, i), m.constant(float(BLOCK))))", (CODES, "-k", "as_specified")),
    Mutant("codes: what rounding did stays", "catalog/scans.py", "others = checks.distance * off /", "others = 0 * off /", (CATALOG, "-k", "unbiased or agree")),
    Mutant("codes: large items are not put right", "catalog/scans.py", "near[checks.large], logits[checks.large] = right[:large], exact[:large]", "pass", (CATALOG, "-k", "unbiased or agree")),
    Mutant("codes: errors of runs alone", "catalog/scans.py", "float(np.hypot(own, np.sqrt(square) / total))", "float(own)", (CATALOG, "-k", "standard or cover")),
    Mutant("codes: all are believed alike", "catalog/scans.py", "size = seen.boosts * near + slope", "size = near + slope", (CODES, "-k", "not_believed")),
    Mutant("codes: what a code says too much is taken away again", "catalog/scans.py", "near[checks.large], logits[checks.large] = right[:large], exact[:large]", "others = np.append(others, weight[checks.large] * (right[:large] - near[checks.large]))", (CODES, "-k", "as_specified")),
    Mutant("codes: the last of no items", "backends/numba/catalog_check_kernels.py", "some = b.select(b.icmp_unsigned(\"!=\", some, bits(0)), some, mask)", "pass", (CODES, "-k", "places_in")),
    Mutant("codes: memory of catalogs of other cells", "backends/numba/catalog_looks.py", "key = len(g.start), len(g.held), len(g.means),", "key = len(g.start), len(g.means),", (CODES, "-k", "memory_is")),
    Mutant("codes: sharp queries read them too", "catalog/scans.py", "np.searchsorted(limits(table), rounded", "np.searchsorted(limits(table)[:1], rounded", (CODES, "-k", "sharp")),
    Mutant("codes: large numbers are cut off", "backends/numba/catalog_encoding.py", "if largest > _TAILS * step:", "if False:", (CODES, "-k", "cut_off")),
    Mutant("codes: items that fill a gap keep those that were there", "backends/numba/catalog_store.py", "            copy_code(codes, row, last)\n", "", (CODES, "-k", "follow")),
    Mutant("codes: items that make room leave theirs", "backends/numba/catalog_store.py", "            copy_code(codes, last, at)\n", "", (CODES, "-k", "follow")),
    Mutant("codes: of items that were replaced", "catalog/changes.py", "    if store.codes.shape[1]:\n", "    if False:\n", (CODES, "-k", "follow")),
    Mutant("codes: of groups that moved", "catalog/layout.py", "    encode(store, moved_or_born)\n", "", (CODES, "-k", "follow")),
    Mutant("codes: of groups laid out anew", "catalog/layout.py", "    encode(replace(store, rows=rows, codes=codes, start=start), np.arange(len(start)))\n", "", (CODES, "-k", "follow")),
    Mutant("codes: of another catalog", "catalog/store.py", "    encode(store, np.arange(len(a.start), len(store.start)))\n", "", (CODES, "-k", "follow")),
    Mutant("codes: steps with the numbers beside them", "backends/numba/catalog_scan_kernels.py", "bits = b.and_(value, ir.Constant(kind, [0xFFFF0000] * self.lanes))", "bits = value", (CODES, "-k", "as_specified")),
    Mutant("codes: rows of other groups", "backends/numba/catalog_list_kernels.py", "mask = b.sub(*(b.shl(integers(e, 1), x) for x in (high, low)))", "mask = integers(e, (1 << BLOCK) - 1)", (CODES, "-k", "as_specified")),
    Mutant("codes: runs of a group read its first block again", "backends/numba/catalog_scans.py", "turn = turn + 1 if run == before + 1 else 1", "turn = 0", (CODES, "-k", "as_specified")),
    Mutant("codes: all runs of a group but the first read its second block", "backends/numba/catalog_scans.py", "turn = turn + 1 if run == before + 1 else 1", "turn = 1", (CODES, "-k", "as_specified")),
    Mutant("codes: sums that hold large items stand for the others", "backends/numba/catalog_check_kernels.py", "    e.store(total, others, block)\n", "", (CODES, "-k", "large_items")),
    Mutant("codes: queries of two shares have one's places", "backends/numba/catalog_scans.py", "while numbers[end - 1] // r.shared != shared:", "while False:", (CODES, "-k", "shares")),
    Mutant("codes: no differences but of pairs", "backends/numba/catalog_lanes.py", "e.builder.and_(count, e.integer(-2))", "count", (CODES, "-k", "differences")),
    Mutant("codes: products of bytes of the wrong halves", "backends/numba/catalog_scan_kernels.py", "for total, x, q in zip(totals, halves, own, strict=True):", "for total, x, q in zip(totals, halves[::-1], own, strict=True):", (CODES, "-k", "as_specified")),
    Mutant("codes: logits far above the guess overflow", "backends/numba/catalog_scans.py", "_BELOW, _ABOVE = 40.0, 10.0", "_BELOW, _ABOVE = 40.0, np.inf", (CODES, "-k", "far_above")),
    Mutant("codes: logits far below the guess are nothing", "backends/numba/catalog_scans.py", "_BELOW, _ABOVE = 40.0, 10.0", "_BELOW, _ABOVE = np.inf, 10.0", (CODES, "-k", "far_below")),
    Mutant("codes: queries of two shares read rows together", "backends/numba/catalog.py", "np.flatnonzero(np.diff(numbers[places] // SHARED)) + 1", "[]", (CODES, "-k", "two_shares")),
    Mutant("codes: items where sums rise by rounding", "backends/numba/catalog_check_kernels.py", "    first = b.and_(first, some)", "    first = first", (CODES, "-k", "rise")),
    Mutant("codes: expectations are judged by them", "catalog/expectations.py", "coded=False", "coded=True", (CATALOG_ERRORS, "-k", "those_of_rows")),
    Mutant("codes: as many checks whatever the query", "catalog/scans.py", "(6, 12), 32", "(12, 12), 32", (CODES, "-k", "spent")),
    Mutant("codes: even queries are steep", "catalog/scans.py", "DEVIATIONS = 1.5, 7.0", "DEVIATIONS = 0.5, 7.0", (CODES, "-k", "kinds")),
    Mutant("codes: steep queries as even ones too", "backends/numba/catalog.py", "own = kinds == kind", "own = kinds <= kind", (CODES, "-k", "as_specified or sharp or shares")),
    Mutant("top: groups that would fill the budget", "catalog/tops.py", 'np.searchsorted(items, most, side="right")', 'np.searchsorted(items, most)', (TOPS, "-k", "promise")),
    Mutant("top: as many again as are asked for", "catalog/tops.py", "RANKED, BESIDE = 3, 10", "RANKED, BESIDE = 1, 0", (TOPS, "-k", "all_codes")),
    Mutant("top: what is left of a budget", "catalog/tops.py", "max(ranked, min(wanted, rest", "min(ranked, min(wanted, rest", (TOPS, "-k", "spent")),
    Mutant("top: large queries in single precision", "catalog/tops.py", "return small & np.isfinite(", "return (size < np.inf) & np.isfinite(", (TOPS, "-k", "fit_single")),
    Mutant("top: none counts as an item", "catalog/tops.py", "np.where(rows < 0, -np.inf, np.matmul(some, queries[..., None])[..., 0])", "np.matmul(some, queries[..., None])[..., 0]", (TOPS, "-k", "fewer_items")),
    Mutant("top: no margin for rounding", "backends/numba/catalog_tops.py", "MARGIN = 2, 16", "MARGIN = 1, 0", (TOPS, "-k", "does_not_decide")),
    Mutant("top: rows of no item", "backends/numba/catalog_tops.py", "heap[j].row if j < end else -1", "heap[j].row", (TOPS, "-k", "fewer_items")),
    Mutant("top: the least of many", "backends/numba/catalog_tops.py", "        if wanted <= j + 1:\n            high = j", "        if wanted <= j + 1:\n            low = i", (TOPS, "-k", "as_specified")),
    Mutant("top: groups that nothing is left for", "backends/numba/catalog_search.py", " <= most or items < least)", " <= most)", (TOPS, "-k", "as_many")),
    Mutant("top: memory of a catalog of fewer items", "backends/numba/catalog_search.py", "g.most, g.items, seen", "g.most, seen", (TOPS, "-k", "this_catalog")),
    Mutant("top: cells that do not hold numbers", "backends/numba/catalog_top_kernels.py", "m.mul(scale, e.load_vector(stretch, j))", "m.mul(m.constant(1.0), e.load_vector(stretch, j))", (TOPS, "-k", "as_specified")),
    Mutant("top: of all, the first that come", "backends/numba/catalog_exact.py", "            _sink(heap)\n", "", (TOPS, "-k", "as_specified")),
    Mutant("top: of all, by the largest of two", "backends/numba/catalog_exact.py", "if below + 1 < end and earlier(heap, below, below + 1):", "if False:", (TOPS, "-k", "as_specified")),
    Mutant("draws: codes are read of what weighs most", "catalog/sampling.py", "guessed.log_mean + np.log(guessed.variance) / 2, seen", "guessed.log_mean, seen", (SAMPLING, "-k", "before")),
    Mutant("draws: what codes say is not used", "catalog/sampling.py", "        log_sums[groups] = sums_of(", "        _ = sums_of(", (SAMPLING, "-k", "worth")),
    Mutant("draws: sums of the first group's codes", "backends/numba/catalog_sampling.py", "        first += count\n", "", (SAMPLING, "-k", "as_specified")),
    Mutant("draws: more groups are taken", "backends/numba/catalog_sampling.py", "room.head, AGAIN)", "room.head, HEAD)", (SAMPLING, "-k", "as_specified")),
    Mutant("draws: by codes that say what is no number", "backends/numba/catalog_sampling.py", "wide) == 0:\n        return 0", "wide) == 0:\n        pass", (SAMPLING, "-k", "no_number")),
    Mutant("draws: second moments squared", "backends/numba/catalog_guesses.py", "log_mean + np.log(variance) / 2", "log_mean + np.log(variance)", (SAMPLING, "-k", "as_specified")),
    Mutant("catalog: no control variate is subtracted", "catalog/estimates.py", "scale * moved).sum(-1)", "0 * moved).sum(-1)", (CATALOG, "-k", "unbiased or control")),
    Mutant("catalog: what fell to opened items is forgotten", "catalog/estimates.py", "parts.sum() - scale * known", "parts.sum()", (CATALOG, "-k", "unbiased")),
    Mutant("catalog: draws count as if groups were equal", "catalog/plan.py", "planned.weights[place] / ends[-1] / count)", "planned.weights[place] / ends[-1] / count.mean())", (CATALOG, "-k", "unbiased")),
    Mutant("catalog: runs end with their group", "catalog/plan.py", "(first[:, None] + np.arange(run)) % count[:, None]", "np.minimum(first[:, None] + np.arange(run), count[:, None] - 1)", (CATALOG, "-k", "drawn_alike")),
    Mutant("catalog: standard errors of half the size", "catalog/trust.py", "seen = square.sum() * len(parts) / pairs.size", "seen = square.sum() * len(parts) / pairs.size / 4", (CATALOG, "-k", "standard or cover")),
    Mutant("catalog: samples show all of their tails", "catalog/trust.py", "share = FEW**2 / (effective**2 + FEW**2)", "share = 0", (CATALOG, "-k", "cover")),
    Mutant("catalog: all differences of draws count alike", "catalog/trust.py", "relative.sum() ** 2 / max((relative**2).sum(), 1)", "len(pairs)", (CATALOG, "-k", "cover")),
    Mutant("catalog: predictions count their floor", "catalog/plan.py", "- guessed.floor * drawn.sum()", "- 0 * drawn.sum()", (CATALOG, "-k", "standard or cover")),
    Mutant("catalog compiled: predictions count their floor", "backends/numba/catalog_plans.py", "noise - r.floor * total", "noise", (CATALOG_NUMBA, "-k", "as_specified or large")),
    Mutant("catalog compiled: all differences of draws count alike", "backends/numba/catalog_sums.py", "effective = square**2 / fourth if 0 < fourth < np.inf else 1.0", "pass", (CATALOG_NUMBA, "-k", "as_specified or large")),
    Mutant("catalog compiled: a difference is counted twice", "backends/numba/catalog_lanes.py", "m.fma(square, square, self._fourth.get())", "m.fma(square, m.add(square, square), self._fourth.get())", (CATALOG_NUMBA, "-k", "as_specified or large")),
    Mutant("catalog compiled: masks of one word", "backends/numba/catalog_sums.py", "words = (len(queries) + WORD - 1) // WORD", "words = 1", (CATALOG_NUMBA, "-k", "blocks or as_specified")),
    Mutant("catalog compiled: a cell begins where its own runs end", "backends/numba/catalog_plans.py", "first, stop, group, last = s.ends[c - 1] if c > 0 else 0,", "first, stop, group, last = 0,", (CATALOG_NUMBA, "-k", "as_specified")),
    Mutant("JAX catalog: predictions alone", "backends/jax/catalog.py", "share = FEW**2 / (effective**2 + FEW**2)", "share = 1", (JAX_CATALOG, "-k", "errors_are")),
    Mutant("catalog: a pilot that asks for nothing", "catalog/pilots.py", "budget * 2.0**doublings", "budget * 1.0**doublings", (CATALOG, "-k", "asked_for_is_reached")),
    Mutant("catalog: values of a sample judge themselves", "catalog/expectations.py", "np.maximum(excess, sums.standard_error) / error", "excess / error", (CATALOG_ERRORS, "-k", "expectations")),
    Mutant("catalog: kernel sums whose tails nobody sees", "catalog/kernel_sums.py", "trusted_error(parts / total, top + np.log(total), chosen)", "trusted_error(parts / total, np.inf, chosen)", (CATALOG_ERRORS, "-k", "narrow")),
    Mutant("catalog: probabilities of draws without their group", "backends/numba/catalog_sampling.py", "log[i] = math.log(s.mass[x] / total) + logits[i] - own", "log[i] = logits[i] - own", (CATALOG, "-k", "draws")),
    Mutant("catalog compiled: runs go beyond their group", "backends/numba/catalog_plans.py", "offset = offset + 1 if offset + 1 < count else 0", "offset = offset + 1 if offset < count else 0", (CATALOG_NUMBA, "-k", "as_specified")),
    Mutant("catalog compiled: free rows count", "backends/numba/catalog_exact.py", "if j >= count or ids[first + j] < 0:", "if j >= count:", (CATALOG_NUMBA, "-k", "exact")),
    Mutant("catalog compiled: queries by their place in a share", "backends/numba/catalog.py", "numbers = np.arange(first, min(first + block, len(own)))", "numbers = np.arange(min(block, len(own) - first))", (CATALOG_NUMBA, "-k", "however")),
    Mutant("catalog compiled: every run of a group is its first", "backends/numba/catalog_kernels.py", "place.set(b.select(e.less(after, size), after, e.integer(0)))", "place.set(b.select(e.less(after, size), after, e.integer(0)) if r + 1 < RUN else e.integer(0))", (CATALOG_NUMBA, "-k", "blocks")),
    Mutant("records: arrays of another kind are taken", "backends/numba/records.py", "elif x.dtype == field.dtype and x.ndim", "elif x.ndim", (RECORDS, "-k", "refused")),
    Mutant("Numba: backward halves begin at the first query", "backends/numba/passes.py", '(highs - 1) * int(h.tasks["q_row"][0]), h.keys', '0 * highs, h.keys', NUMBA),
    Mutant("fit: T as the decomposition turned it", "fitting/algebra.py", "    matrix = matmul(xp, xp.swapaxes(_rotation(xp, matrix), -1, -2), matrix)\n", "", (*FITTING[:1], "-k", "signs")),
    Mutant("fit: a root as the decomposition turned it", "fitting/algebra.py", "[..., None, :], xp.swapaxes(axes, -1, -2))\n", "[..., None, :], xp.eye(energy.shape[-1]))\n", (*FITTING[:1], "-k", "signs")),
    Mutant("fit: a rotation in half the steps", "fitting/algebra.py", "_STEPS = 10", "_STEPS = 5", (*FITTING[:1], "-k", "rotations")),
    Mutant("Numba: a state keeps those of all chunks", "backends/numba/passes.py", "x[-1] if len(x) == 1 else x[-1].copy()", "x[-1]", ("tests/test_schedules.py", "-k", "no_more_than_itself")),
    Mutant("catalog compiled: queries as they come", "backends/numba/catalog_layout.py", "x if x.flags.writeable else x.copy()", "x", (CATALOG_NUMBA, "-k", "cannot_be_written")),
    Mutant("catalog compiled: rules of the last thread", "backends/numba/catalog_layout.py", "own.rules.setdefault((m, coded), _rules(m, table, own.groups.record, coded))", "own.rules[m, coded] = _rules(m, table, own.groups.record, coded)", (CATALOG_NUMBA, "-k", "rules_that")),
    Mutant("catalog compiled: blocks that leave a thread idle", "backends/numba/catalog.py", "if block > 1 and _HALVED * longest(block // 2) < longest(block)", "if False", (CATALOG_NUMBA, "-k", "leave_no_thread")),
    Mutant("searches begin with what the last one left", "backends/numba/group_schedule.py", "    call(p.fill, (t.before, t.zeros, p.groups * p.sums_row))\n", "", (BLOCKS, "-k", "steps_that_find")),
    Mutant("catalog compiled: what is known of a table outlives its change", "backends/numba/catalog_guesses.py", "all(part() is own for part, own in zip(found[0], table, strict=True))", "True", (CATALOG_NUMBA, "-k", "parts_of_a_table")),
    Mutant("catalog compiled: draws relative to guesses alone", "backends/numba/catalog_sampling.py", "if total < TINY:", "if total < 0:", (CATALOG_NUMBA, "-k", "sharp_draws")),
    Mutant("catalog compiled: queries of all blocks share places", "backends/numba/catalog_plans.py", "2 * (number // r.shared) + 1", "1", (CATALOG_NUMBA, "-k", "blocks")),
    Mutant("catalog: changes that readers do not see", "catalog/facade.py", "self._table = None  # whatever", "pass  # whatever", (CATALOG, FAULTS, "-k", "whoever_reads or failed_change")),
    Mutant("catalog: room is found while items are out", "catalog/changes.py", "    _reserve(store, after[~stay])\n", "", (FAULTS, "-k", "without_room")),
    Mutant("catalog: groups of no items are left", "catalog/changes.py", "            drop(store, np.flatnonzero(store.count == 0))  #", "            pass  #", (FAULTS, "-k", "without_room")),
    Mutant("catalog compiled: opened groups are drawn from too", "backends/numba/catalog_plans.py", "s.mass[j] = 0.0 if s.opened[j] else s.share[c]", "s.mass[j] = s.share[c]", (CATALOG_NUMBA, "-k", "as_specified")),
    Mutant("catalog compiled: cells keep what was opened", "backends/numba/catalog_plans.py", "k = g.first[c] + s.taken[c]", "k = g.first[c]", (CATALOG_NUMBA, "-k", "as_specified")),
    Mutant("catalog compiled: opened groups are drawn from too, group by group", "backends/numba/catalog_plan_groups.py", "s.mass[group], s.opened[group], s.far[cell] = 0.0, True, 0.0", "s.opened[group], s.far[cell] = True, 0.0", (CATALOG_NUMBA, "-k", "as_specified")),
    Mutant("catalog compiled: cells keep what was opened, group by group", "backends/numba/catalog_plan_groups.py", "            s.far[cell] += s.mass[group]\n", "            pass\n", (CATALOG_NUMBA, "-k", "as_specified")),
    Mutant("catalog compiled: fewer runs than any plan may have", "backends/numba/catalog_plan_groups.py", "left >= r.fewest_runs and", "left > 0 and", (CATALOG_NUMBA, "-k", "fewer_runs")),
    Mutant("catalog compiled: numbers that are none open groups", "backends/numba/catalog_plan_groups.py", "        return budget // r.run, mass, noise, 0\n", "        pass\n", ("tests/test_catalog_faults.py", "-k", "do_not_fit")),
    Mutant("catalog compiled: noises are weights, group by group", "backends/numba/catalog_plan_kernels.py", "sums = items, whole, m.mul(whole, e.load_vector(variance, j)), items", "sums = items, whole, whole, items", (CATALOG_NUMBA, "-k", "as_specified")),
    Mutant("catalog compiled: groups beyond the first vector", "backends/numba/catalog_plan_kernels.py", "found.set(e.add(found.get(), b.select(b.icmp_signed(\"==\", found.get(), j), step, e.integer(0))))", "found.set(e.add(found.get(), b.select(b.icmp_signed(\"==\", low.get(), j), step, e.integer(0))))", (CATALOG_NUMBA, "-k", "as_specified or groups_in_a_cell")),
    Mutant("catalog compiled: the wrong half of a cell", "backends/numba/catalog_plan_kernels.py", "high.set(b.select(beyond, e.add(middle, 1), high.get()))", "high.set(b.select(beyond, high.get(), e.add(middle, 1)))", (CATALOG_NUMBA, "-k", "groups_in_a_cell")),
    Mutant("catalog compiled: guesses are kept for ever", "backends/numba/catalog_guesses.py", "if _bytes(held[1]) <= self._most:", "if True:", (CATALOG_NUMBA, "-k", "more_sizes")),
    Mutant("catalog compiled: runs in cells of no mass", "backends/numba/catalog_plan_kernels.py", "number = b.select(m.gt(own, zero), number, none)", "pass", (CATALOG_NUMBA, "-k", "no_mass")),
    Mutant("catalog compiled: guesses for another size", "backends/numba/catalog_guesses.py", "len(places) + i for i, x in enumerate(new)", "i for i, x in enumerate(new)", (CATALOG_NUMBA, "-k", "more_sizes or so_many or however")),
    Mutant("compiled once for every number", "backends/numba/compiling.py", "tuple(map(plain, given))", "given", ("tests/test_schedules.py", "-k", "compiled_in")),
    Mutant("Python may call what is no entry", "backends/numba/compiling.py", "raise TypeError(f\"{name}() can only", "TypeError(f\"{name}() can only", ("tests/test_schedules.py", "-k", "entries_alone")),
    Mutant("catalog: pilots with the seed of a neighbour", "catalog/pilots.py", "int(uniforms(seed, _PARTS + part, 1)[0] * 2**53) if part else seed", "(seed - part) % 2**64", (FAULTS, "-k", "nobody_elses")),
    Mutant("catalog: a lock that a fork inherits", "catalog/locks.py", "owner._lock = Lock()", "pass", (FAULTS, "-k", "fork")),
    Mutant("catalog on JAX: draws of closed groups without their place", "backends/jax/catalog_draws.py", "+ jnp.where(closed, log_inside, 0)", "+ 0 * jnp.where(closed, log_inside, 0)", (JAX_DRAWS, "-k", "state")),
    Mutant("catalog on JAX: slopes of cells that moved", "backends/jax/catalog_plan.py", "trusted & table.settled", "trusted", (JAX_DRAWS, "-k", "moved_are_unbiased")),
    Mutant("catalog on JAX: items that cannot be drawn", "backends/jax/catalog_proposal.py", "jnp.maximum(jnp.floor(share * TICKS), 1)", "jnp.floor(share * TICKS)", (JAX_DRAWS, "-k", "single_precision")),
    Mutant("catalog on JAX: errors about zero", "backends/jax/catalog_means.py", "(own - mean).reshape", "own.reshape", (JAX_DRAWS, "-k", "err_as_they_say")),
    Mutant("catalog on JAX: groups from the inside", "backends/jax/catalog_groups.py", "lexsort((-square, cell))", "lexsort((square, cell))", (JAX_DRAWS, "-k", "cut_as")),
    Mutant("catalog on JAX: devices without their share", "backends/jax/catalog_draws.py", "log = log + log_share(ticks[:, me], size, log.dtype)[:, None]\n        return jax.lax.psum", "log = log + 0\n        return jax.lax.psum", (JAX_CATALOG, "-k", "draw_in_proportion")),
    Mutant("catalog on JAX: a table that is the catalog", "backends/jax/tables.py", "held = DeviceTable(*map(np.array, held))", "pass", (JAX_DRAWS, "-k", "copy")),
    Mutant("catalog on JAX: derivatives of chance", "backends/jax/catalog_plan.py", "log, variance = stopped(jnp, log), stopped(jnp, variance)", "pass", (JAX_DRAWS, "-k", "derivatives")),
    Mutant("infinite moments pass", "testing/weighted.py", "holds = np.isfinite(found) & (excess <= allowed)", "holds = excess <= allowed", (*TESTING, "-k", "moments_of_values")),
    Mutant("compiled code goes by its own file", "backends/numba/compiling.py", "f\"{name}_{checksum(*_FOLDERS)}\"", "name", ("tests/test_schedules.py", "-k", "may_come_from")),
    Mutant("store: an item at an edge", "backends/numba/catalog_store.py", "edge[order[end - 1]] > square[i]", "edge[order[end - 1]] >= square[i]", (STORE, "-k", "keep_their_row")),
    Mutant("store: items are put last", "backends/numba/catalog_store.py", "start[g] + int(chance[j] * (count[g] + 1))", "start[g] + count[g]", (STORE, "-k", "places_are_random")),
    Mutant("store: sums without what joined", "backends/numba/catalog_store.py", "sums[g, k] += apart", "sums[g, k] += 0", (STORE, "-k", "hundred_thousand")),
    Mutant("store: groups found where they were", "catalog/lookup.py", "stay = ~leave[known.owner]", "stay = ~leave", (STORE, "-k", "hundred_thousand")),
    Mutant("store: groups without a centre", "catalog/lookup.py", "    store.edge[innermost] = 0", "    pass", (STORE, "-k", "hundred_thousand")),
    Mutant("store: merged slots", "catalog/store.py", "slots[held] = b.slots[held] + a.end", "slots[held] = b.slots[held] + len(a.rows)", (STORE, "-k", "merged")),
    Mutant("store: cells of the smaller are kept", "catalog/store.py", "(a, b) if a.count.sum() >= b.count.sum() else (b, a)", "(a, b)", (STORE, "-k", "merge")),
    Mutant("store: another file of the same name", "catalog/mapping.py", "_identity(file) != source.identity", "False", (CATALOG_MAPPING, "-k", "same")),
    Mutant("store: a mapping that ends a page early", "catalog/mapping.py", "skipped + shape[0] * size, file", "shape[0] * size, file", (CATALOG_MAPPING, "-k", "offset")),
    Mutant("store: of centres equally near the last", "backends/numba/catalog_nearest.py", "place[i, lane] < at", "place[i, lane] > at", (STORE, "-k", "nearest")),
    Mutant("store: spread about the mean", "catalog/tables.py", "2 * cross", "cross", (STORE, "-k", "built")),
    Mutant("files: renamed before it is on disk", "_files.py", "os.fsync(file.fileno())", "pass", FILES),
    Mutant("files: written in place", "_files.py", "temporary, file = _temporary(path.parent)", "temporary, file = path, path.open(\"w+b\")", FILES),
    Mutant("files: a header's sum", "catalog/header.py", "metadata.get(\"crc32\") != _checksum(metadata)", "False", REFUSED),
    Mutant("files: groups beyond the rows", "catalog/invariants.py", "store.start <= store.end - store.capacity", "store.start + store.capacity <= store.end", REFUSED),
    Mutant("sampled softmax: draws of the target", "integrations/sampled_softmax.py", "jnp.where(drawn == own[..., None], -jnp.inf, others)", "others", (SAMPLED, "-k", "formula or normalizer")),
    Mutant("sampled softmax: times the probability", "integrations/sampled_softmax.py", "logit[..., None] - log_p", "logit[..., None] + log_p", (SAMPLED, "-k", "formula")),
    Mutant("catalog on JAX: what fell to opened items is forgotten", "backends/jax/catalog.py", "total = head + jnp.sum(bent) - known", "total = head + jnp.sum(bent)", (CATALOG_JAX, "-k", "unbiased")),
    Mutant("Dask: chunks number their own rows", "integrations/dask.py", "np.arange(first, first + len(items)) if", "np.arange(len(items)) if", (DASK, "-k", "all_items")),
    Mutant("softmax command: one seed for all batches", "cli/softmax.py", "settings.seed + (first << 32)", "settings.seed", (SOFTMAX, "-k", "drawn_independently")),
    Mutant("softmax command: bandwidth", "cli/softmax.py", "bandwidth**-2", "1 / bandwidth", (SOFTMAX, "-k", "gaussian_sums")),
    # Kernels for a GPU, and causal tiles of accelerators together
    Mutant("fused: queries see later keys of their tile", "backends/jax/fused_kernels.py", "near = jnp.where(_lower(size), near, 0.0)", "pass", FUSED),
    Mutant("fused: mended tiles see later keys", "backends/jax/fused_kernels.py", "height = jnp.where(_lower(size), height, -jnp.inf)", "pass", FUSED),
    Mutant("fused: nothing is mended", "backends/jax/fused_calls.py", "JUMP * unit(self.pure)", "1e9", FUSED),
    Mutant("fused: states before are on another scale", "backends/jax/fused_kernels.py", "held = (held.astype(jnp.float32) * fall[:, None]).astype(plan.dtype)", "held = held.astype(plan.dtype)", FUSED),
    Mutant("fused: earlier sums stay on their scale", "backends/jax/fused_kernels.py", "return held, total * decay + own_z * rise, new", "return held, total + own_z * rise, new", FUSED),
    Mutant("fused: one part of W", "backends/jax/fused.py", "_PARTS = 2", "_PARTS = 1", FUSED),
    Mutant("fused: masked keys count", "backends/jax/fused.py", "extra = jnp.where(hidden, -jnp.inf, ", "extra = jnp.where(hidden, 0.0, ", FUSED),
    Mutant("fused: masked keys of maps without exponent count", "backends/jax/fused.py", "keep = 1 - hidden.astype(jnp.float32)", "keep = 1 - 0 * hidden.astype(jnp.float32)", FUSED),
    Mutant("fused: the offset of queries", "backends/jax/fused_kernels.py", "top + _offset(query, query.x[:, :], slice(None)) if", "top if", FUSED),
    Mutant("fused: no state to start from", "backends/jax/fused_kernels.py", "carry = start_kv[:, :], start_z[:], start_shift[:]", "carry = 0 * start_kv[:, :], 0 * start_z[:], start_shift[:]", FUSED),
    Mutant("fused: derivatives of nothing", "backends/jax/fused.py", "return jax.jvp(slow, primals, tangents)", "return jax.jvp(slow, primals, jax.tree.map(lambda x: 0 * x, tangents))", FUSED),
    Mutant("together: a tile's own keys twice", "backends/jax/tiles.py", "jnp.tri(count, k=-1, dtype=bool).reshape", "jnp.tri(count, dtype=bool).reshape", TOGETHER),
    Mutant("together: the state on its old scale", "backends/jax/tiles.py", "state.kv * fall[..., None], sums", "state.kv, sums", TOGETHER),
    Mutant("together: the guard looks at the first state only", "backends/jax/tiles.py", "jnp.concatenate([given.shift[None], shift[:-1]])", "shift", TOGETHER),
    Mutant("together: ranks", "backends/jax/tiles.py", "*x.shape[:axis], *(1,) * (rank - x.ndim), *x.shape[axis:]", "*(1,) * (rank - x.ndim), *x.shape", TOGETHER),
    Mutant("together: a last state without its tile", "backends/jax/tiles.py", "held.kv[-1] + kv[-1], held.z[-1] + z[-1]", "held.kv[-1], held.z[-1]", TOGETHER),
]  # fmt: skip
