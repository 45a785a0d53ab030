"""The vocabulary in which kernels are written: loops, conditions, vectors, and numbers in memory, as LLVM IR.

A kernel is a Python function that says what to compute by calling methods of :class:`Code`. Integers are 64 bits and
may be given as Python's; what is an ``int`` in Python is a constant of the machine code. Variables live on the stack
as far as this text goes; LLVM keeps them in registers.

    code = Code("scale", target, "float32", ["data", "count", "factor"])
    data, count = code.pointer("data"), code.integer("count")
    ...
    with code.loop(0, count, code.lanes) as i:
        code.store(code.mul(code.load(data, i), factor), data, i)

Arguments reach a kernel as a table of 64-bit integers (addresses among them), so that a call costs the same whatever
their number; a kernel does one *job* of many, on one *thread*, whose number picks its scratch memory.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from llvmlite import ir

from convbench.jit.target import Target

__all__ = ["Code", "Value", "Variable"]

Value = Any  # an ir.Value, or an int: llvmlite is untyped

_INT = ir.IntType(64)
_BOOL = ir.IntType(1)
_NUMBERS = {"float32": ir.FloatType(), "float64": ir.DoubleType()}


class Variable:
    """A value that changes: read it with :meth:`get`, change it with :meth:`set`."""

    def __init__(self, code: Code, kind: ir.Type, name: str = "") -> None:
        with code.builder.goto_entry_block():
            self._place = code.builder.alloca(kind, name=name)
        self._builder = code.builder

    def get(self) -> Value:
        """Return the value it has here."""
        return self._builder.load(self._place)

    def set(self, value: Value) -> None:
        """Give it another value."""
        self._builder.store(ir.Constant(_INT, value) if isinstance(value, int) else value, self._place)


class Code:
    """One kernel in the making: ``void name(const int64 *arguments, int64 job, int64 thread)``.

    With ``in_table=False`` it is a plain function of its arguments, ``void name(int64, …)``.

    Parameters
    ----------
    name : str
    target : Target
    dtype : str
        "float32" or "float64": of all numbers that are not integers.
    arguments : sequence of str
        The names of the table's entries, in order.
    """

    def __init__(
        self, name: str, target: Target, dtype: str, arguments: Sequence[str], *, in_table: bool = True
    ) -> None:
        self.target, self.dtype, self.arguments = target, dtype, tuple(arguments)
        self.number = _NUMBERS[dtype]
        self.itemsize = 8 if dtype == "float64" else 4
        self.lanes = target.lanes(dtype)
        self.vector = ir.VectorType(self.number, self.lanes)
        self.module = ir.Module(name)
        kinds = [_INT.as_pointer(), _INT, _INT] if in_table else [_INT] * len(arguments)
        self.function = ir.Function(self.module, ir.FunctionType(ir.VoidType(), kinds), name)
        self.function.attributes.add("nounwind")
        self.builder = ir.IRBuilder(self.function.append_basic_block("entry"))
        if in_table:
            table, self.job, self.thread = self.function.args
            places = (self.builder.gep(table, [ir.Constant(_INT, position)]) for position in range(len(arguments)))
            self._table = {name: self.builder.load(place, name) for name, place in zip(arguments, places, strict=True)}
        else:
            self._table = dict(zip(arguments, self.function.args, strict=True))
        body = self.function.append_basic_block("body")
        self.builder.branch(body)
        self.builder.position_at_end(body)

    def finish(self) -> str:
        """Return the IR of the finished kernel."""
        self.builder.ret_void()
        return str(self.module)

    # -- arguments and integers -------------------------------------------------------------------------------

    def integer(self, name: str) -> Value:
        """Return an argument as an integer."""
        return self._table[name]

    def pointer(self, name: str) -> Value:
        """Return an argument as the address of numbers."""
        return self.builder.inttoptr(self._table[name], self.number.as_pointer())

    def integers(self, name: str) -> Value:
        """Return an argument as the address of 64-bit integers."""
        return self.builder.inttoptr(self._table[name], _INT.as_pointer())

    def const(self, value: Value) -> Value:
        """Return a Python integer as a constant; a value as it is."""
        return ir.Constant(_INT, value) if isinstance(value, int) else value

    def add(self, a: Value, b: Value) -> Value:
        """Add integers."""
        if isinstance(a, int) and isinstance(b, int):
            return a + b
        return self.builder.add(self.const(a), self.const(b), flags=["nsw"])

    def sub(self, a: Value, b: Value) -> Value:
        """Subtract integers."""
        if isinstance(a, int) and isinstance(b, int):
            return a - b
        return self.builder.sub(self.const(a), self.const(b), flags=["nsw"])

    def mul(self, a: Value, b: Value) -> Value:
        """Multiply integers."""
        if isinstance(a, int) and isinstance(b, int):
            return a * b
        return self.builder.mul(self.const(a), self.const(b), flags=["nsw"])

    def div(self, a: Value, b: Value) -> Value:
        """Divide integers that are not negative."""
        return self.builder.udiv(self.const(a), self.const(b))

    def rem(self, a: Value, b: Value) -> Value:
        """Return the remainder of integers that are not negative."""
        return self.builder.urem(self.const(a), self.const(b))

    def divmod(self, a: Value, b: Value) -> tuple[Value, Value]:
        """Divide integers that are not negative."""
        quotient = self.div(a, b)
        return quotient, self.sub(a, self.mul(quotient, b))

    def min(self, a: Value, b: Value) -> Value:
        """Return the lesser integer."""
        return self.select(self.less(a, b), self.const(a), self.const(b))

    def max(self, a: Value, b: Value) -> Value:
        """Return the greater integer."""
        return self.select(self.less(a, b), self.const(b), self.const(a))

    def less(self, a: Value, b: Value) -> Value:
        """Compare integers."""
        return self.builder.icmp_signed("<", self.const(a), self.const(b))

    def equal(self, a: Value, b: Value) -> Value:
        """Compare integers."""
        return self.builder.icmp_signed("==", self.const(a), self.const(b))

    def both(self, a: Value, b: Value) -> Value:
        """Return whether both conditions hold."""
        return self.builder.and_(a, b)

    def select(self, condition: Value, yes: Value, no: Value) -> Value:
        """Return one of two values; both are worked out."""
        return self.builder.select(condition, self.const(yes), self.const(no))

    def variable(self, value: Value, name: str = "") -> Variable:
        """Return a variable that starts with a value."""
        value = self.const(value)
        variable = Variable(self, value.type, name)
        variable.set(value)
        return variable

    # -- control ----------------------------------------------------------------------------------------------

    @contextmanager
    def loop(self, start: Value, stop: Value, step: Value = 1) -> Iterator[Value]:
        """Repeat the block for start, start + step, … below stop."""
        builder = self.builder
        counter = self.variable(start)
        head, body, end = (self.function.append_basic_block(name) for name in ("head", "loop", "end"))
        builder.branch(head)
        builder.position_at_end(head)
        index = counter.get()
        builder.cbranch(self.less(index, stop), body, end)
        builder.position_at_end(body)
        yield index
        counter.set(self.add(index, step))
        builder.branch(head)
        builder.position_at_end(end)

    @contextmanager
    def repeat(self, condition: Callable[[], Value]) -> Iterator[None]:
        """Repeat the block as long as a condition holds, which is worked out before each turn."""
        builder = self.builder
        head, body, end = (self.function.append_basic_block(name) for name in ("while", "do", "end"))
        builder.branch(head)
        builder.position_at_end(head)
        builder.cbranch(condition(), body, end)
        builder.position_at_end(body)
        yield
        builder.branch(head)
        builder.position_at_end(end)

    @contextmanager
    def when(self, condition: Value) -> Iterator[None]:
        """Do the block only if the condition holds."""
        with self.builder.if_then(condition):
            yield

    def choose(self, condition: Value, yes: Callable[[], None], no: Callable[[], None]) -> None:
        """Do one of two things."""
        with self.builder.if_else(condition) as (then, otherwise):
            with then:
                yes()
            with otherwise:
                no()

    def call(self, address: Value, arguments: Sequence[Value]) -> None:
        """Call the machine code at an address."""
        kind = ir.FunctionType(ir.VoidType(), [argument.type for argument in arguments])
        self.builder.call(self.builder.inttoptr(address, kind.as_pointer()), arguments)

    def pause(self) -> None:
        """Tell the CPU that this loop waits for another thread."""
        triple = self.target.triple
        if triple.startswith("x86_64"):
            text = "pause"
        elif triple.startswith(("aarch64", "arm64")):
            text = "yield"
        else:
            return
        self.builder.asm(ir.FunctionType(ir.VoidType(), []), text, "", [], True)

    # -- memory -----------------------------------------------------------------------------------------------

    def at(self, pointer: Value, offset: Value) -> Value:
        """Return the address ``offset`` items further on."""
        return self.builder.gep(pointer, [self.const(offset)])

    def item(self, pointer: Value, offset: Value = 0) -> Value:
        """Read one number or integer."""
        return self.builder.load(self.at(pointer, offset))

    def put(self, value: Value, pointer: Value, offset: Value = 0) -> None:
        """Write one number or integer."""
        self.builder.store(value, self.at(pointer, offset))

    def load(self, pointer: Value, offset: Value = 0, lanes: int | None = None) -> Value:
        """Read a vector of neighbours; its address need not be aligned."""
        return self.builder.load(self._vector_at(pointer, offset, lanes), align=self.itemsize)

    def store(self, vector: Value, pointer: Value, offset: Value = 0) -> None:
        """Write a vector to neighbours; its address need not be aligned."""
        self.builder.store(vector, self._vector_at(pointer, offset, vector.type.count), align=self.itemsize)

    def load_some(self, pointer: Value, offset: Value, count: Value) -> Value:
        """Read the first ``count`` lanes; the rest is zero, and no memory is touched there."""
        place, mask = self._vector_at(pointer, offset, None), self._mask(count)
        return self._masked("load", self.vector, [place], [mask, self.zeros()])

    def store_some(self, vector: Value, pointer: Value, offset: Value, count: Value) -> None:
        """Write the first ``count`` lanes."""
        place, mask = self._vector_at(pointer, offset, None), self._mask(count)
        self._masked("store", ir.VoidType(), [vector, place], [mask])

    def lanes_between(self, first: Value, last: Value, start: int) -> Value:
        """Return a mask of a vector's lanes, numbered from ``start`` on: first … last − 1, less than 2³¹."""
        kind = ir.VectorType(ir.IntType(8 * self.itemsize), self.lanes)
        numbers = ir.Constant(kind, [start + lane for lane in range(self.lanes)])
        low, high = (
            self._spread(end if self.itemsize == 8 else self.builder.trunc(end, ir.IntType(32)), kind)
            for end in (self.const(first), self.const(last))
        )
        builder = self.builder
        return builder.and_(builder.icmp_signed("<=", low, numbers), builder.icmp_signed("<", numbers, high))

    def load_lanes(self, pointer: Value, offset: Value, mask: Value, otherwise: Value) -> Value:
        """Read the lanes of a mask; the rest is that of another vector, and no memory is touched there."""
        return self._masked("load", self.vector, [self._vector_at(pointer, offset, None)], [mask, otherwise])

    def store_lanes(self, vector: Value, pointer: Value, offset: Value, mask: Value) -> None:
        """Write the lanes of a mask."""
        self._masked("store", ir.VoidType(), [vector, self._vector_at(pointer, offset, None)], [mask])

    def prefetch(self, pointer: Value, offset: Value = 0, *, locality: int = 3, write: bool = False) -> None:
        """Ask for a cache line that will be read, or written."""
        place = self.builder.bitcast(self.at(pointer, offset), ir.IntType(8).as_pointer())
        kinds = [ir.IntType(8).as_pointer(), *[ir.IntType(32)] * 3]
        function = self._declared("llvm.prefetch.p0", ir.FunctionType(ir.VoidType(), kinds))
        how = (ir.Constant(ir.IntType(32), value) for value in (int(write), locality, 1))
        self.builder.call(function, [place, *how])

    def _vector_at(self, pointer: Value, offset: Value, lanes: int | None) -> Value:
        kind = ir.VectorType(self.number, lanes or self.lanes)
        return self.builder.bitcast(self.at(pointer, offset), kind.as_pointer())

    def _mask(self, count: Value) -> Value:
        if isinstance(count, int):
            return ir.Constant(ir.VectorType(_BOOL, self.lanes), [int(lane < count) for lane in range(self.lanes)])
        kind = ir.VectorType(_INT, self.lanes)
        numbers = ir.Constant(kind, list(range(self.lanes)))
        return self.builder.icmp_signed("<", numbers, self._spread(count, kind))

    def _masked(self, what: str, result: ir.Type, before: list[Value], after: list[Value]) -> Value:
        suffix = f"v{self.lanes}f{8 * self.itemsize}.p0"
        align = ir.Constant(ir.IntType(32), self.itemsize)
        arguments = [*before, align, *after]
        kind = ir.FunctionType(result, [argument.type for argument in arguments])
        return self.builder.call(self._declared(f"llvm.masked.{what}.{suffix}", kind), arguments)

    def _declared(self, name: str, kind: ir.FunctionType) -> ir.Function:
        found = self.module.globals.get(name)
        return found if found is not None else ir.Function(self.module, kind, name)

    def numbers_at(self, address: Value) -> Value:
        """Return an integer as the address of numbers."""
        return self.builder.inttoptr(address, self.number.as_pointer())

    def address(self, pointer: Value, offset: Value = 0) -> Value:
        """Return the address ``offset`` items further on as an integer."""
        return self.builder.ptrtoint(self.at(pointer, offset), _INT)

    def integers_at(self, address: Value) -> Value:
        """Return an integer as the address of 64-bit integers."""
        return self.builder.inttoptr(address, _INT.as_pointer())

    # -- numbers and vectors ----------------------------------------------------------------------------------

    def constant(self, value: float, *, lanes: int | None = None) -> Value:
        """Return a vector of one constant."""
        kind = ir.VectorType(self.number, lanes or self.lanes)
        return ir.Constant(kind, [value] * kind.count)

    def zeros(self) -> Value:
        """Return a vector of zeros."""
        return self.constant(0.0)

    def broadcast(self, pointer: Value, offset: Value = 0) -> Value:
        """Return one number of memory, spread over a vector."""
        return self.spread(self.item(pointer, offset))

    def spread(self, number: Value) -> Value:
        """Return one number, spread over a vector."""
        return self._spread(number, self.vector)

    def _spread(self, number: Value, kind: ir.VectorType) -> Value:
        builder, undefined = self.builder, ir.Constant(kind, ir.Undefined)
        first = builder.insert_element(undefined, number, ir.Constant(ir.IntType(32), 0))
        mask = ir.Constant(ir.VectorType(ir.IntType(32), kind.count), [0] * kind.count)
        return builder.shuffle_vector(first, undefined, mask)

    def fma(self, a: Value, b: Value, c: Value) -> Value:
        """Return a·b + c, rounded once where the target can."""
        kind = a.type
        name = (
            f"llvm.fmuladd.v{kind.count}f{8 * self.itemsize}"
            if isinstance(kind, ir.VectorType)
            else (f"llvm.fmuladd.f{8 * self.itemsize}")
        )
        return self.builder.call(self._declared(name, ir.FunctionType(kind, [kind] * 3)), [a, b, c])

    def fadd(self, a: Value, b: Value) -> Value:
        """Add numbers or vectors."""
        return self.builder.fadd(a, b)

    def fsub(self, a: Value, b: Value) -> Value:
        """Subtract numbers or vectors."""
        return self.builder.fsub(a, b)

    def fmul(self, a: Value, b: Value) -> Value:
        """Multiply numbers or vectors."""
        return self.builder.fmul(a, b)

    def lane(self, vector: Value, number: int) -> Value:
        """Return one number of a vector."""
        return self.builder.extract_element(vector, ir.Constant(ir.IntType(32), number))

    def negated(self, a: Value) -> Value:
        """Return −a; as a term of a multiply–add it costs nothing."""
        return self.builder.fneg(a)

    def shuffle(self, a: Value, b: Value, lanes: Sequence[int]) -> Value:
        """Return lanes of a (0 …) and of b (from a's number of lanes on)."""
        return self.builder.shuffle_vector(a, b, ir.Constant(ir.VectorType(ir.IntType(32), len(lanes)), list(lanes)))

    def every(self, vectors: Sequence[Value]) -> Value:
        """Return of 1, 2, 4, … neighbouring vectors every first, second, fourth, … lane."""
        vectors, even = list(vectors), range(0, 2 * self.lanes, 2)
        while len(vectors) > 1:
            pairs = zip(vectors[::2], vectors[1::2], strict=True)
            vectors = [self.shuffle(first, second, list(even)) for first, second in pairs]
        return vectors[0]

    def transpose(self, rows: Sequence[Value]) -> list[Value]:
        """Return the columns of a square of vectors, in log₂(lanes) steps that each take half of two vectors.

        First the squares within parts of 16 bytes, then whole parts: x86 does each with one instruction that needs no
        table of lanes in a register.
        """
        if len(rows) != self.lanes:
            raise ValueError(f"{len(rows)} rows given, {self.lanes} make a square")
        size = 16 // self.itemsize
        squares = [self._square(rows[first : first + size]) for first in range(0, self.lanes, size)]
        by_column = [self._exchange_parts(list(vectors), size) for vectors in zip(*squares, strict=True)]
        return [vectors[part] for part in range(self.lanes // size) for vectors in by_column]

    def _square(self, rows: Sequence[Value]) -> list[Value]:
        """Turn the squares of 2 or 4 rows, as many as a part has lanes: column j of every part."""
        halves = (False, True)
        couples = [rows[first : first + 2] for first in range(0, len(rows), 2)]
        pairs = [[self._alternated(a, b, 1, upper) for upper in halves] for a, b in couples]
        if len(pairs) == 1:
            return pairs[0]
        return [self._alternated(a, b, 2, upper) for a, b in zip(*pairs, strict=True) for upper in halves]

    def _alternated(self, a: Value, b: Value, run: int, upper: bool) -> Value:
        """Return lanes of a and b in turns of ``run``: of each part the lower half, or the upper one."""
        size = 16 // self.itemsize
        lanes: list[int] = []
        for part in range(upper * size // 2, self.lanes, size):
            for start in range(part, part + size // 2, run):
                taken = range(start, start + run)
                lanes += [*taken, *(self.lanes + lane for lane in taken)]
        return self.shuffle(a, b, lanes)

    def _exchange_parts(self, vectors: list[Value], size: int) -> list[Value]:
        """Collect part 0 of all vectors in one, part 1 in the next, and so on."""
        if len(vectors) == 1:
            return vectors
        found: list[list[Value]] = []
        for odd in range(2):
            parts = [start + lane for start in range(odd * size, self.lanes, 2 * size) for lane in range(size)]
            lanes = [*parts, *(self.lanes + lane for lane in parts)]
            pairs = zip(vectors[::2], vectors[1::2], strict=True)
            found.append(self._exchange_parts([self.shuffle(a, b, lanes) for a, b in pairs], size))
        return [vector for both in zip(*found, strict=True) for vector in both]
