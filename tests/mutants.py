"""Break the library on purpose, one line at a time, and see that the suite notices each.

``python tests/mutants.py`` copies the package, applies every mutant in turn, and runs the part of the suite that ought to
kill it; ``python tests/mutants.py epsilon merge`` only those whose name contains one of the words. The exit status is 1 if a
mutant survives. A mutant whose text does not occur exactly once in its file is an error: the library has moved on, and the
mutant has to follow.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parent.parent
TIMEOUT = 600

UNBIASED = ("tests/test_unbiased.py",)
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


class Mutant(NamedTuple):
    """A text that occurs once in a file, what replaces it, and the arguments of pytest that should fail."""

    name: str
    file: str
    old: str
    new: str
    tests: tuple[str, ...]


MUTANTS = [
    # Samplers
    Mutant("QR without the sign", "samplers.py", "basis * signs[:, None, :]", "basis", UNBIASED),
    Mutant(
        "norms √d",
        "samplers.py",
        "xp.sqrt(xp.sum(squares, axis=-1, keepdims=True))",
        "xp.sqrt(xp.full((count, 1), float(dim)))",
        UNBIASED,
    ),
    Mutant("antithetic pairs that are equal", "samplers.py", "[first, -first]", "[first, first]", UNBIASED),
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
        "+ shift - math.log(features.count) / 2",
        "+ shift",
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
    Mutant("joined on one scale", "partials.py", "xp.exp(first.shift - base), xp.exp(second.shift - base)",
           "xp.exp(first.shift - base), xp.exp(first.shift - base)", NUMPY),
    # JAX and packed sequences
    Mutant("no guard against jumps", "backends/jax/tiles.py", "_JUMP = 40.0", "_JUMP = 1e9", JAX_NUMERICS),
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
    Mutant("a window too narrow", "backends/numba/passes.py", '"near_low": delta + 1,', '"near_low": delta + 2,', NUMBA),
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
]  # fmt: skip


def environment(place: Path) -> dict[str, str]:
    """Return an environment in which the copy is imported, and nothing that is compiled or cached lies outside it."""
    return {
        **os.environ,
        "PYTHONPATH": str(place),
        "PYTHONDONTWRITEBYTECODE": "1",  # files change faster than the times that bytecode is checked by
        "NUMBA_CACHE_DIR": str(place / "compiled"),
        "RFKERNELS_UNDER_TEST": str(place),
    }


def copy(place: Path) -> None:
    """Copy what a run needs, so that the current directory holds the copy and not the original."""
    ignored = shutil.ignore_patterns("__pycache__")
    shutil.copytree(ROOT / "rfkernels", place / "rfkernels", ignore=ignored)
    shutil.copytree(ROOT / "tests", place / "tests", ignore=ignored)
    for name in ("pyproject.toml", "theory", "docs", "README.md"):
        source = ROOT / name
        if source.is_dir():
            shutil.copytree(source, place / name, ignore=ignored)
        elif source.exists():
            shutil.copy(source, place)
    code = "import rfkernels; print(rfkernels.__file__)"
    found = subprocess.run(
        [sys.executable, "-c", code], cwd=place, env=environment(place), capture_output=True, text=True, check=True
    )
    if not Path(found.stdout.strip()).is_relative_to(place):
        raise SystemExit(f"mutants: the copy is in {place}, but {found.stdout.strip()} is what is imported")


def run(place: Path, tests: tuple[str, ...]) -> tuple[bool, str]:
    """Run pytest in the copy; return whether it passed, and its first failure or last line."""
    command = [sys.executable, "-m", "pytest", "-x", "--no-header", "-p", "no:cacheprovider", "--tb=no", *tests]
    try:
        done = subprocess.run(
            command, cwd=place, env=environment(place), capture_output=True, text=True, timeout=TIMEOUT, check=False
        )
    except subprocess.TimeoutExpired:
        return False, f"no end after {TIMEOUT} s"
    if "ImportError while loading conftest" in done.stderr:
        return False, "the library cannot be imported"
    if done.returncode not in (0, 1):
        raise SystemExit(f"mutants: pytest ended with status {done.returncode}\n{done.stdout}\n{done.stderr}")
    lines = done.stdout.strip().splitlines()
    failed = [line for line in lines if line.startswith(("FAILED", "ERROR"))]
    return done.returncode == 0, (failed or lines or ["nothing was printed"])[-1]


def check_texts() -> None:
    """Require every mutant's text to occur exactly once."""
    for mutant in MUTANTS:
        count = (ROOT / "rfkernels" / mutant.file).read_text(encoding="utf-8").count(mutant.old)
        if count != 1:
            raise SystemExit(f"mutants: {mutant.name!r}: its text occurs {count} times in rfkernels/{mutant.file}")
    names = [mutant.name for mutant in MUTANTS]
    if len(set(names)) != len(names):
        raise SystemExit("mutants: two have the same name")


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("words", nargs="*", help="run only mutants whose name contains one of these")
    parser.add_argument("--list", action="store_true", help="list the mutants, check their texts, run nothing")
    words = parser.parse_args().words
    check_texts()
    chosen = [mutant for mutant in MUTANTS if not words or any(word in mutant.name for word in words)]
    if parser.parse_args().list:
        print("\n".join(f"{mutant.name} ({mutant.file})" for mutant in chosen))
        return 0
    survived = []
    with tempfile.TemporaryDirectory(prefix="rfkernels-mutants-") as name:
        place = Path(name).resolve()
        copy(place)
        for tests in dict.fromkeys(mutant.tests for mutant in chosen):
            passed, line = run(place, tests)
            if not passed:
                raise SystemExit(f"mutants: {' '.join(tests)} fails without any mutant: {line}")
        for mutant in chosen:
            path, start = place / "rfkernels" / mutant.file, time.monotonic()
            original, times = path.read_text(encoding="utf-8"), path.stat()
            path.write_text(original.replace(mutant.old, mutant.new), encoding="utf-8")
            passed, line = run(place, mutant.tests)
            path.write_text(original, encoding="utf-8")
            os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))  # Numba's cache goes by it
            print(
                f"{'SURVIVED' if passed else 'killed':9}{mutant.name:45}{time.monotonic() - start:6.1f} s  {line[:110]}",
                flush=True,
            )
            survived += [mutant.name] * passed
    print(f"{len(chosen) - len(survived)} of {len(chosen)} mutants were killed")
    return 1 if survived else 0


if __name__ == "__main__":
    sys.exit(main())
