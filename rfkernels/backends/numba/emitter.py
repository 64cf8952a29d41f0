"""A thin layer over llvmlite's IRBuilder: functions of 64-bit integers, loops, variables, vector loads and stores."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from llvmlite import ir

from rfkernels.backends.numba.vectormath import VectorMath

INT = ir.IntType(64)
POINTER = ir.PointerType()
LINE = 64
"""Bytes in a cache line."""

_I32 = ir.IntType(32)


class Variable:
    """A mutable value on the stack, which LLVM's mem2reg turns into registers."""

    def __init__(self, emitter: Emitter, initial: Any) -> None:
        self._builder = emitter.builder
        self._type = initial.type
        with emitter.builder.goto_block(emitter.entry):
            self._slot = emitter.builder.alloca(initial.type)
        self.set(initial)

    def get(self) -> Any:
        """Return the current value."""
        return self._builder.load(self._slot, typ=self._type)

    def set(self, value: Any) -> None:
        """Assign."""
        self._builder.store(value, self._slot)


class Emitter:
    """Emits one function ``int64 name(int64, ...)``; pointers are passed as integers.

    Parameters
    ----------
    module : llvmlite.ir.Module
        Where the function goes.
    name : str
        Its name.
    parameters : str
        Names of the parameters, separated by spaces.
    bits, lanes : int
        Width of an element (32 or 64) and elements in a vector.
    """

    def __init__(self, module: ir.Module, name: str, parameters: str, bits: int, lanes: int) -> None:
        names = parameters.split()
        self.function = ir.Function(module, ir.FunctionType(INT, [INT] * len(names)), name)
        self.entry = self.function.append_basic_block("entry")
        self.builder = ir.IRBuilder(self.function.append_basic_block("body"))
        self.math = VectorMath(self.builder, bits, lanes)
        self.lanes = lanes
        self.element: Any = ir.FloatType() if bits == 32 else ir.DoubleType()
        self.align = bits // 8
        self.arguments = tuple(self.function.args)

    def finish(self, result: Any = None) -> None:
        """Return `result`, 0 by default, and close the function."""
        self.builder.ret(self.integer(0) if result is None else result)
        with self.builder.goto_block(self.entry):
            self.builder.branch(self.function.blocks[1])

    def integer(self, value: int) -> Any:
        """Return an integer constant."""
        return ir.Constant(INT, value)

    def scalar(self, value: float) -> Any:
        """Return an element constant."""
        return ir.Constant(self.element, value)

    def variable(self, initial: Any) -> Variable:
        """Return a new variable."""
        return Variable(self, initial)

    def add(self, *terms: Any) -> Any:
        """Add integers."""
        total = terms[0]
        for term in terms[1:]:
            total = self.builder.add(total, term if not isinstance(term, int) else self.integer(term))
        return total

    def mul(self, x: Any, y: Any) -> Any:
        """Multiply integers."""
        return self.builder.mul(x, y if not isinstance(y, int) else self.integer(y))

    def less(self, x: Any, y: Any) -> Any:
        """Compare signed integers."""
        return self.builder.icmp_signed("<", x, y)

    def array(self, kind: Any, size: int) -> Any:
        """Return the address of a new array on the stack, as an integer."""
        with self.builder.goto_block(self.entry):
            return self.builder.ptrtoint(self.builder.alloca(kind, size), INT)

    @contextmanager
    def loop(self, start: Any, stop: Any, step: int = 1) -> Iterator[Any]:
        """Run the body for start, start + step, ... while below stop."""
        b = self.builder
        start = self.integer(start) if isinstance(start, int) else start
        stop = self.integer(stop) if isinstance(stop, int) else stop
        before, head = b.block, b.append_basic_block("head")
        body, done = b.append_basic_block("loop"), b.append_basic_block("done")
        b.branch(head)
        b.position_at_end(head)
        index = b.phi(INT)
        index.add_incoming(start, before)
        b.cbranch(self.less(index, stop), body, done)
        b.position_at_end(body)
        yield index
        index.add_incoming(b.add(index, self.integer(step)), b.block)
        b.branch(head)
        b.position_at_end(done)

    @contextmanager
    def repeat(self, condition: Callable[[], Any]) -> Iterator[None]:
        """Run the body as long as a condition holds, which is evaluated before each turn."""
        b = self.builder
        head, body, done = (b.append_basic_block(name) for name in ("head", "loop", "done"))
        b.branch(head)
        b.position_at_end(head)
        b.cbranch(condition(), body, done)
        b.position_at_end(body)
        yield
        b.branch(head)
        b.position_at_end(done)

    def address(self, base: Any, index: Any, kind: Any = None) -> Any:
        """Return the pointer to element `index` of the array at integer address `base`."""
        pointer = self.builder.inttoptr(base, POINTER)
        return self.builder.gep(pointer, [index], source_etype=kind or self.element)

    def load(self, base: Any, index: Any, kind: Any = None) -> Any:
        """Load one element."""
        value = self.builder.load(self.address(base, index, kind), typ=kind or self.element)
        value.align = 1 if kind is not None else self.align
        return value

    def store(self, value: Any, base: Any, index: Any) -> None:
        """Store one element, of the value's type."""
        self.builder.store(value, self.address(base, index, value.type)).align = 1

    def load_vector(self, base: Any, index: Any, kind: Any = None) -> Any:
        """Load a vector from element `index` on."""
        element = kind or self.element
        value = self.builder.load(self.address(base, index, element), typ=ir.VectorType(element, self.lanes))
        value.align = 1 if kind is not None else self.align
        return value

    def store_vector(self, value: Any, base: Any, index: Any) -> None:
        """Store a vector from element `index` on."""
        self.builder.store(value, self.address(base, index, value.type.element)).align = 1

    def call(self, name: str, result: Any, given: tuple[Any, ...]) -> Any:
        """Call a function that LLVM knows by name."""
        kind, module = ir.FunctionType(result, [x.type for x in given]), self.builder.module
        return self.builder.call(module.globals.get(name) or ir.Function(module, kind, name), given)

    def fetch(self, at: Any, near: bool = False) -> None:
        """Ask for the cache line of an address, into the second level or, if `near`, the first."""
        given = self.builder.inttoptr(at, POINTER), _I32(0), _I32(2 + near), _I32(1)
        self.call("llvm.prefetch.p0", ir.VoidType(), given)

    def lane_numbers(self) -> Any:
        """Return the vector of 32-bit integers 0, 1, 2, ..."""
        return ir.Constant(ir.VectorType(ir.IntType(32), self.lanes), list(range(self.lanes)))

    def splat_condition(self, value: Any) -> Any:
        """Return a condition in every lane."""
        kind = ir.VectorType(ir.IntType(1), self.lanes)
        single = self.builder.insert_element(ir.Constant(kind, ir.Undefined), value, ir.IntType(32)(0))
        return self.builder.shuffle_vector(single, single, ir.Constant(ir.VectorType(ir.IntType(32), self.lanes), None))

    def splat_number(self, value: Any) -> Any:
        """Return an integer in every lane, as 32 bits."""
        kind = ir.VectorType(ir.IntType(32), self.lanes)
        number = self.builder.trunc(value, ir.IntType(32))
        single = self.builder.insert_element(ir.Constant(kind, ir.Undefined), number, ir.IntType(32)(0))
        return self.builder.shuffle_vector(single, single, ir.Constant(kind, [0] * self.lanes))
