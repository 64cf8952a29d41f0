"""Elementwise functions as branch-free vector LLVM IR.

Everything is inline arithmetic: no call is left for a linker to resolve. Polynomials are minimax (Remez) fits made for
this file in 50-digit arithmetic; the algorithms are the textbook ones (Cody and Waite's reduction, the log of fdlibm).
"""

from __future__ import annotations

import math
import struct
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from llvmlite import ir


@dataclass(frozen=True)
class _Precision:
    """Coefficients and limits of one floating-point format; polynomials have their constant term first."""

    mantissa: int
    exp_limits: tuple[float, float]
    expm1_limits: tuple[float, float]
    tanh_limit: float
    ln2: tuple[float, ...]
    pi: tuple[float, ...]
    expm1: tuple[float, ...]
    exponent: tuple[float, ...]
    log: tuple[float, ...]
    sin: tuple[float, ...]
    erf_limit: float
    erf: tuple[float, ...]
    log_erfc: tuple[float, ...]


# All terms of ln2 and pi but the last have trailing zero bits, so that their products with an integer are exact.
_SINGLE = _Precision(
    mantissa=23,
    exp_limits=(-87.0, 88.72283172607422),
    expm1_limits=(-40.0, 88.9),
    tanh_limit=10.0,
    ln2=(0.693145751953125, 1.4286068203094173e-06),
    pi=(3.140625, 0.0009675025939941406, 1.5099579909783765e-07),
    expm1=(0.5, 0.16666542, 0.04166628, 0.0083667105, 0.0013946668),
    exponent=(0.49999231, 0.16667116, 0.041890331, 0.0083125057),
    log=(0.66666776, 0.3997745, 0.29874417),
    sin=(-0.16666655, 0.008332981, -0.00019804016, 2.594376e-06),
    erf_limit=4.0,
    erf=(
        *(0.12837917, -0.37612626, 0.11283585, -0.026853814, 0.0051883305, -0.00080102027),
        7.85385e-05,
    ),
    log_erfc=(
        *(-0.00034152325, -1.1270892, -0.63814483, -0.10310675, 0.021838063, -0.0029476580),
        0.00018637915,
    ),
)

_DOUBLE_EXPM1 = (
    *(0.5000000000000006, 0.16666666666666685, 0.0416666666665722, 0.008333333333314314, 0.0013888888932877712),
    *(0.00019841269903715092, 2.480150381340609e-05, 2.7557227281298997e-06, 2.7626589519711315e-07),
    2.511470251664875e-08,
)

_DOUBLE = _Precision(
    mantissa=52,
    exp_limits=(-708.0, 709.782712893384),
    expm1_limits=(-60.0, 710.0),
    tanh_limit=20.0,
    ln2=(0.693147180559663, 2.8235290563031577e-13),
    pi=(3.1415926534682512, 1.2154201012607932e-10, 4.044532497591901e-21),
    expm1=_DOUBLE_EXPM1,
    exponent=_DOUBLE_EXPM1,
    log=(
        *(0.6666666666666735, 0.3999999999940749, 0.2857142874414078, 0.22222198378591124, 0.18183575157792858),
        *(0.15313755988130043, 0.14799063585670885),
    ),
    sin=(
        *(-0.16666666666666663, 0.00833333333333305, -0.0001984126984116532, 2.7557319204530177e-06),
        *(-2.50521063261976e-08, 1.6058914397369168e-10, -7.642376432764018e-13, 2.7150653732848722e-15),
    ),
    erf_limit=6.0,
    erf=(
        *(0.12837916709551256, -0.3761263890318352, 0.112837916709442, -0.026866170643113415),
        *(0.005223977606130842, -0.0008548325929766244, 0.0001205529358693695, -1.4924712439534814e-05),
        *(1.6447132699786621e-06, -1.6206318752969208e-07, 1.3710988704190523e-08, -7.779462971761597e-10),
    ),
    log_erfc=(
        *(-1.0633276893993572e-06, -1.1283687146029797, -0.6366675686867301, -0.10263767571998965),
        *(0.018865429686249484, 0.0005840074404448445, -0.0020987239854064776, 0.000919909900628277),
        *(-0.0002306323381841969, 2.799285249165156e-05, 3.612271872990886e-06, -2.673269097116701e-06),
        *(6.878034207881507e-07, -1.0822819959980068e-07, 1.0904074759634715e-08, -6.518605319974546e-10),
        1.7705569878539337e-11,
    ),
)

# The reductions below rely on sums being evaluated as written, and log of a negative number on nan being kept.
_SUM_FLAGS = ("contract", "nsz")
_PRODUCT_FLAGS = ("contract", "nsz", "reassoc")


class VectorMath:
    """Vector operations on an LLVM IR builder.

    Parameters
    ----------
    builder : llvmlite.ir.IRBuilder
        Where instructions are appended.
    bits : {32, 64}
        Width of an element.
    lanes : int
        Elements in a vector, a power of two from 2.
    """

    def __init__(self, builder: ir.IRBuilder, bits: int, lanes: int) -> None:
        if bits not in (32, 64):
            raise ValueError(f"bits must be 32 or 64, got {bits}")
        if lanes < 2 or lanes & (lanes - 1):
            raise ValueError(f"lanes must be a power of two from 2, got {lanes}")
        self.builder = builder
        self.bits = bits
        self.lanes = lanes
        self.element: ir.Type = ir.FloatType() if bits == 32 else ir.DoubleType()
        self.vector = ir.VectorType(self.element, lanes)
        self.integer = ir.VectorType(ir.IntType(bits), lanes)
        self._precision = _SINGLE if bits == 32 else _DOUBLE
        self._bias = 2 ** (bits - self._precision.mantissa - 2) - 1
        # Adding this to a small number rounds it to an integer and leaves that integer in the lowest bits.
        self._rounder = 1.5 * 2.0**self._precision.mantissa

    def constant(self, x: float) -> ir.Constant:
        """A vector of one number."""
        return ir.Constant(self.vector, [float(x)] * self.lanes)

    def splat(self, scalar: ir.Value) -> ir.Value:
        """A vector whose elements all are a scalar of the element type."""
        zero = ir.Constant(ir.IntType(32), 0)
        undefined = ir.Constant(self.vector, ir.Undefined)
        first = self.builder.insert_element(undefined, scalar, zero)
        return self._shuffle(first, [0] * self.lanes)

    def add(self, x: ir.Value, y: ir.Value) -> ir.Value:
        """``x + y``."""
        return self.builder.fadd(x, y, flags=_SUM_FLAGS)

    def sub(self, x: ir.Value, y: ir.Value) -> ir.Value:
        """``x - y``."""
        return self.builder.fsub(x, y, flags=_SUM_FLAGS)

    def mul(self, x: ir.Value, y: ir.Value) -> ir.Value:
        """``x * y``; a chain of products may be reordered, as powers profit from."""
        return self.builder.fmul(x, y, flags=_PRODUCT_FLAGS)

    def div(self, x: ir.Value, y: ir.Value) -> ir.Value:
        """``x / y``."""
        return self.builder.fdiv(x, y)

    def neg(self, x: ir.Value) -> ir.Value:
        """``-x``."""
        return self.builder.fneg(x)

    def fma(self, x: ir.Value, y: ir.Value, z: ir.Value) -> ir.Value:
        """``x * y + z``, rounded once where the machine can."""
        return self._intrinsic("fmuladd", x, y, z)

    def gt(self, x: ir.Value, y: ir.Value) -> ir.Value:
        """``x > y``."""
        return self.builder.fcmp_ordered(">", x, y)

    def ge(self, x: ir.Value, y: ir.Value) -> ir.Value:
        """``x >= y``."""
        return self.builder.fcmp_ordered(">=", x, y)

    def lt(self, x: ir.Value, y: ir.Value) -> ir.Value:
        """``x < y``."""
        return self.builder.fcmp_ordered("<", x, y)

    def le(self, x: ir.Value, y: ir.Value) -> ir.Value:
        """``x <= y``."""
        return self.builder.fcmp_ordered("<=", x, y)

    def and_(self, x: ir.Value, y: ir.Value) -> ir.Value:
        """Both conditions."""
        return self.builder.and_(x, y)

    def or_(self, x: ir.Value, y: ir.Value) -> ir.Value:
        """Either condition."""
        return self.builder.or_(x, y)

    def not_(self, x: ir.Value) -> ir.Value:
        """The opposite condition."""
        return self.builder.not_(x)

    def where(self, c: ir.Value, x: ir.Value, y: ir.Value) -> ir.Value:
        """Take `x` where the condition holds and `y` elsewhere."""
        return self.builder.select(c, x, y)

    def maximum(self, x: ir.Value, y: ir.Value) -> ir.Value:
        """The larger of `x` and `y`; `x` if either is nan."""
        return self.where(self.gt(y, x), y, x)

    def minimum(self, x: ir.Value, y: ir.Value) -> ir.Value:
        """The smaller of `x` and `y`; `x` if either is nan."""
        return self.where(self.lt(y, x), y, x)

    def abs(self, x: ir.Value) -> ir.Value:
        """``|x|``."""
        return self._intrinsic("fabs", x)

    def sqrt(self, x: ir.Value) -> ir.Value:
        """Square root; nan below zero."""
        return self._intrinsic("sqrt", x)

    def square(self, x: ir.Value) -> ir.Value:
        """``x * x``."""
        return self.mul(x, x)

    def exp(self, x: ir.Value) -> ir.Value:
        """Exponential; exactly zero below -87 (float32) or -708 (float64), infinite where it overflows."""
        low, high = self._precision.exp_limits
        power, r = self._powers_of_two(x)
        i = self.builder.add(self._bits(self._polynomial(r, (1.0, 1.0, *self._precision.expm1))), power)
        # Selecting integers lets the mask merge into the addition.
        i = self.where(self.lt(x, self.constant(low)), self._whole(0), i)
        i = self.where(self.gt(x, self.constant(high)), self._whole(self._pattern(math.inf)), i)
        return self._float(i)

    def exp_of_exponent(self, x: ir.Value) -> ir.Value:
        """Exponential of an exponent that a shift was taken from, so not far above zero.

        As `exp`, with ln2 in one term, no overflow and, in float32, a term less: the errors that adds, of 3e-9 |x| and
        1e-7, are no more than the rounding of an x of 2. It is exact at zero.
        """
        low, _ = self._precision.exp_limits
        power, r = self._powers_of_two(x, (math.log(2.0),))
        i = self.builder.add(self._bits(self._polynomial(r, (1.0, 1.0, *self._precision.exponent))), power)
        return self._float(self.where(self.lt(x, self.constant(low)), self._whole(0), i))

    def expm1(self, x: ir.Value) -> ir.Value:
        """``exp(x) - 1``, with full relative accuracy near zero."""
        low, high = self._precision.expm1_limits
        return self._expm1(self.minimum(self.maximum(x, self.constant(low)), self.constant(high)))

    def tanh(self, x: ir.Value) -> ir.Value:
        """Hyperbolic tangent."""
        limit = self._precision.tanh_limit
        x = self.minimum(self.maximum(x, self.constant(-limit)), self.constant(limit))
        y = self._expm1(self.add(x, x))
        return self.div(y, self.add(y, self.constant(2.0)))

    def erf(self, x: ir.Value) -> ir.Value:
        """Error function: x + x P(x²) below 1, and 1 − exp(log erfc) with a polynomial for the logarithm from there."""
        p, one = self._precision, self.constant(1.0)
        size = self.minimum(self.abs(x), self.constant(p.erf_limit))
        near = self.fma(x, self._polynomial(self.mul(size, size), p.erf), x)
        far = self.sub(one, self.exp(self._polynomial(size, p.log_erfc)))
        far = self.where(self.lt(x, self.constant(0.0)), self.neg(far), far)
        return self.where(self.lt(size, one), near, far)

    def log(self, x: ir.Value) -> ir.Value:
        """Natural logarithm; subnormal numbers count as zero, whose logarithm is -inf, and negative ones give nan."""
        return self._log(x, self.constant(0.0))

    def log1p(self, x: ir.Value) -> ir.Value:
        """``log(1 + x)``, with full relative accuracy near zero."""
        one = self.constant(1.0)
        y = self.add(x, one)
        return self._log(y, self.div(self.sub(x, self.sub(y, one)), y))

    def sin(self, x: ir.Value) -> ir.Value:
        """Sine; accurate to 1e4 (float32) or 1e6 (float64), beyond that some number in [-1, 1]; nan of infinity."""
        rounder = self.constant(self._rounder)
        shifted = self.fma(x, self.constant(1.0 / math.pi), rounder)
        return self._sin(x, shifted, self.sub(shifted, rounder))

    def cos(self, x: ir.Value) -> ir.Value:
        """Cosine, as accurate as `sin`."""
        rounder, half = self.constant(self._rounder), self.constant(0.5)
        shifted = self.add(self.fma(x, self.constant(1.0 / math.pi), half), rounder)
        return self._sin(x, shifted, self.sub(self.sub(shifted, rounder), half))

    def reduce_max(self, x: ir.Value) -> ir.Value:
        """The largest element, a scalar."""
        return self._reduce(x, self.maximum)

    def reduce_add(self, x: ir.Value) -> ir.Value:
        """The sum of the elements, a scalar."""
        return self._reduce(x, self.add)

    def reduce_each(self, rows: Sequence[ir.Value], operation: Callable[[ir.Value, ir.Value], ir.Value]) -> ir.Value:
        """Reduce as many vectors as there are lanes; lane i of the result is that of vector i."""
        lane, rows, step = ir.VectorType(ir.IntType(32), self.lanes), list(rows), self.lanes // 2
        while step:
            kept = [i if not i & step else self.lanes + i - step for i in range(self.lanes)]
            moved = [i + step if not i & step else self.lanes + i for i in range(self.lanes)]
            halves = zip(rows[:step], rows[step:], strict=True)
            rows = [
                operation(*(self.builder.shuffle_vector(x, y, ir.Constant(lane, order)) for order in (kept, moved)))
                for x, y in halves
            ]
            step //= 2
        return rows[0]

    def _powers_of_two(self, x: ir.Value, ln2: Sequence[float] | None = None) -> tuple[ir.Value, ir.Value]:
        """Write x as n ln2 + r; n comes shifted into the exponent's place, to be added to the bits of a number."""
        rounder = self.constant(self._rounder)
        shifted = self.fma(x, self.constant(1.0 / math.log(2.0)), rounder)
        r = self._reduced(x, self.sub(shifted, rounder), ln2 or self._precision.ln2)
        return self.builder.shl(self._bits(shifted), self._whole(self._precision.mantissa)), r

    def _expm1(self, x: ir.Value) -> ir.Value:
        half = self.constant(0.5)
        power, r = self._powers_of_two(x)
        y = self.fma(self.mul(r, r), self._polynomial(r, self._precision.expm1), r)
        # Half the power of two, as the whole one is already infinite next to the largest result.
        scale = self._float(self.builder.add(power, self._whole(self._pattern(0.5))))
        y = self.fma(scale, y, self.sub(scale, half))
        return self.add(y, y)

    def _log(self, x: ir.Value, correction: ir.Value) -> ir.Value:
        """Evaluate log(x) + correction, where the correction is at most a rounding error of x."""
        build, p, one = self.builder, self._precision, self.constant(1.0)
        lowest = self._pattern(math.sqrt(0.5))
        i = build.add(self._bits(x), self._whole(self._pattern(1.0) - lowest))
        # An exponent below 2**mantissa becomes a float by being the low bits of one.
        carrier = 2.0**p.mantissa
        k = self._float(build.or_(build.lshr(i, self._whole(p.mantissa)), self._whole(self._pattern(carrier))))
        k = self.sub(k, self.constant(carrier + self._bias))
        m = self._float(build.add(build.and_(i, self._whole(2**p.mantissa - 1)), self._whole(lowest)))
        f = self.sub(m, one)
        s = self.div(f, self.add(f, self.constant(2.0)))
        z = self.mul(s, s)
        h = self.mul(self.mul(f, f), self.constant(0.5))
        tail = self.fma(s, self.fma(z, self._polynomial(z, p.log), h), self.fma(k, self.constant(p.ln2[1]), correction))
        y = self.fma(k, self.constant(p.ln2[0]), self.sub(f, self.sub(h, tail)))
        y = self.where(self.lt(x, self.constant(2.0 ** (1 - self._bias))), self.constant(-math.inf), y)
        y = self.where(self.lt(x, self.constant(0.0)), self.constant(math.nan), y)
        return self.where(self.lt(x, self.constant(math.inf)), y, x)

    def _sin(self, x: ir.Value, shifted: ir.Value, turns: ir.Value) -> ir.Value:
        """Sine of x less some half turns, with the sign in the lowest bit of `shifted`."""
        r = self._reduced(x, turns, self._precision.pi)
        z = self.mul(r, r)
        y = self.fma(self.mul(r, z), self._polynomial(z, self._precision.sin), r)
        # Rounding could pass 1, and a failed reduction anything; minimum and maximum return the bound for a nan.
        y = self.maximum(self.constant(-1.0), self.minimum(self.constant(1.0), y))
        sign = self.builder.shl(self._bits(shifted), self._whole(self.bits - 1))
        return self.add(self._float(self.builder.xor(self._bits(y), sign)), self.sub(x, x))

    def _reduced(self, x: ir.Value, n: ir.Value, period: Sequence[float]) -> ir.Value:
        for part in period:
            x = self.fma(n, self.constant(-part), x)
        return x

    def _polynomial(self, x: ir.Value, coefficients: Sequence[float]) -> ir.Value:
        y: ir.Value = self.constant(coefficients[-1])
        for c in reversed(coefficients[:-1]):
            y = self.fma(x, y, self.constant(c))
        return y

    def _reduce(self, x: ir.Value, operation: Callable[[ir.Value, ir.Value], ir.Value]) -> ir.Value:
        width = self.lanes // 2
        while width:
            x = operation(x, self._shuffle(x, [(i + width) % self.lanes for i in range(self.lanes)]))
            width //= 2
        return self.builder.extract_element(x, ir.Constant(ir.IntType(32), 0))

    def _shuffle(self, x: ir.Value, order: list[int]) -> ir.Value:
        mask = ir.Constant(ir.VectorType(ir.IntType(32), self.lanes), order)
        return self.builder.shuffle_vector(x, ir.Constant(self.vector, ir.Undefined), mask)

    def _intrinsic(self, name: str, *operands: ir.Value) -> ir.Value:
        name = f"llvm.{name}.v{self.lanes}f{self.bits}"
        module = self.builder.module
        function = module.globals.get(name)
        if function is None:
            function = ir.Function(module, ir.FunctionType(self.vector, [self.vector] * len(operands)), name)
        return self.builder.call(function, operands)

    def _bits(self, x: ir.Value) -> ir.Value:
        return self.builder.bitcast(x, self.integer)

    def _float(self, i: ir.Value) -> ir.Value:
        return self.builder.bitcast(i, self.vector)

    def _whole(self, i: int) -> ir.Constant:
        return ir.Constant(self.integer, [i] * self.lanes)

    def _pattern(self, x: float) -> int:
        packed = struct.pack("<f" if self.bits == 32 else "<d", x)
        return int.from_bytes(packed, "little")
