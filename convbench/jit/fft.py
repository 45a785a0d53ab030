"""Transforms of lines of points, where the lanes of a vector are independent transforms.

A point is a vector of real and one of imaginary parts, and no butterfly exchanges lanes. A line of n = r₁·r₂·… points
takes a pass for each radix, which loops over butterflies that are written out. Transforms forward are decimated in
frequency, those back in time, each in place: what the one leaves in another order the other takes in that order.
(Gentleman and Sande 1966; Van Loan 1992, *Computational Frameworks for the Fast Fourier Transform*, sections 1.9
and 2.)
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from math import cos, gcd, pi, sin, sqrt

import numpy as np
from numpy.typing import NDArray

from convbench.jit.ir import Code, Value

__all__ = ["Complex", "Line", "dft", "factors", "frequencies", "line_cost", "multiplied", "twiddles"]

#: A vector of real and one of imaginary parts.
Complex = tuple[Value, Value]

#: Of a pass, in nanoseconds a point of a vector (relative to each other): what counts most is their number.
_PASS_COST = {2: 1.3, 3: 1.3, 4: 1.2, 5: 1.5, 6: 1.6, 7: 2.0, 8: 1.6, 9: 2.2, 10: 2.4, 12: 2.3, 16: 2.35}
_FEW_REGISTERS_COST = {2: 1.3, 3: 1.3, 4: 1.2, 5: 1.7, 6: 1.9, 7: 2.6, 8: 2.2}


# -- straight-line transforms of vectors ----------------------------------------------------------------------------


def dft(code: Code, points: Sequence[Complex], *, inverse: bool = False) -> list[Complex]:
    """Return Σ_j points[j]·exp(∓2πi·j·k/n) for every k, written out."""
    n = len(points)
    if n == 1:
        return list(points)
    if n == 2:
        (a, b), (c, d) = points
        return [(code.fadd(a, c), code.fadd(b, d)), (code.fsub(a, c), code.fsub(b, d))]
    first = 4 if n % 4 == 0 and n > 4 else next(p for p in range(2, n + 1) if n % p == 0)
    if first == n:
        return _odd_dft(code, points, inverse)
    rest = n // first  # j = rest·j₁ + j₂, k = k₁ + first·k₂
    inner = [dft(code, points[start::rest], inverse=inverse) for start in range(rest)]
    found: dict[int, Complex] = {}
    for k in range(first):
        turned = [_turned(code, inner[j][k], j * k, n, inverse) for j in range(rest)]
        for number, value in enumerate(dft(code, turned, inverse=inverse)):
            found[k + first * number] = value
    return [found[k] for k in range(n)]


def _odd_dft(code: Code, points: Sequence[Complex], inverse: bool) -> list[Complex]:
    """An odd prime: sums and differences of opposite points meet cosines and sines."""
    n, half = len(points), len(points) // 2
    pairs = [(points[j], points[n - j]) for j in range(1, half + 1)]
    sums = [tuple(code.fadd(a, b) for a, b in zip(*pair, strict=True)) for pair in pairs]
    differences = [tuple(code.fsub(a, b) for a, b in zip(*pair, strict=True)) for pair in pairs]
    found: list[Complex] = [points[0]] * n
    for part in range(2):
        total = points[0][part]
        for both in sums:
            total = code.fadd(total, both[part])
        found[0] = (total, found[0][1]) if part == 0 else (found[0][0], total)
    for k in range(1, half + 1):
        even, odd = list(points[0]), []
        for part in range(2):
            for j, both in enumerate(sums, start=1):
                even[part] = code.fma(both[part], code.constant(cos(2 * pi * j * k / n)), even[part])
            value = code.fmul(differences[0][part], code.constant(sin(2 * pi * k / n)))
            for j, both in enumerate(differences[1:], start=2):
                value = code.fma(both[part], code.constant(sin(2 * pi * j * k / n)), value)
            odd.append(value)
        # even − i·odd, of which the opposite frequency is even + i·odd
        minus = (code.fadd(even[0], odd[1]), code.fsub(even[1], odd[0]))
        plus = (code.fsub(even[0], odd[1]), code.fadd(even[1], odd[0]))
        found[k], found[n - k] = (plus, minus) if inverse else (minus, plus)
    return found


def _turned(code: Code, point: Complex, number: int, n: int, inverse: bool) -> Complex:
    """Return point·exp(∓2πi·number/n), cheaply where it is a multiple of an eighth of a turn."""
    common = gcd(number, n)
    number, n = (number // common) % (n // common), n // common
    number = -number % n if inverse else number
    a, b = point
    if number == 0:
        return point
    if n == 2:
        return code.negated(a), code.negated(b)
    if n == 4:
        return (b, code.negated(a)) if number == 1 else (code.negated(b), a)
    if n == 8:
        half, plus, minus = code.constant(sqrt(0.5)), code.fadd(a, b), code.fsub(b, a)
        scaled, other = code.fmul(plus, half), code.fmul(minus, half)  # (a + b, b − a)/√2 is an eighth of a turn
        if number in (1, 5):
            turned = scaled, other
        else:
            turned = other, code.negated(scaled)
        return turned if number in (1, 3) else (code.negated(turned[0]), code.negated(turned[1]))
    angle = 2 * pi * number / n
    return multiplied(code, point, (code.constant(cos(angle)), code.constant(-sin(angle))))


def multiplied(code: Code, a: Complex, b: Complex, *, conjugate: bool = False) -> Complex:
    """Return a·b, or a times the conjugate of b."""
    (x, y), (c, s) = a, b
    if conjugate:
        return code.fma(x, c, code.fmul(y, s)), code.fma(y, c, code.negated(code.fmul(x, s)))
    return code.fma(x, c, code.negated(code.fmul(y, s))), code.fma(x, s, code.fmul(y, c))


# -- passes over a line of points -----------------------------------------------------------------------------------


@cache
def factors(n: int, registers: int = 32) -> tuple[int, ...]:
    """Return the radices of the passes, in the order of the transform forward; the last pass has no twiddles.

    >>> factors(8), factors(128)
    ((8,), (8, 16))
    """
    costs = _PASS_COST if registers >= 32 else _FEW_REGISTERS_COST

    @cache
    def best(rest: int) -> tuple[float, tuple[int, ...]]:
        if rest == 1:
            return 0.0, ()
        options = []
        for radix, cost in costs.items():
            if rest % radix == 0:
                others, chosen = best(rest // radix)
                options.append((cost + others, tuple(sorted((radix, *chosen)))))
        return min(options, default=(float("inf"), ()))

    _, chosen = best(n)
    if n > 1 and not chosen:
        raise ValueError(f"{n} has a prime factor that no pass is made for")
    return chosen


def line_cost(n: int, registers: int = 32) -> float:
    """Return what a transform of n points costs, in the unit of a pass's cost a point."""
    costs = _PASS_COST if registers >= 32 else _FEW_REGISTERS_COST
    return sum(costs[radix] for radix in factors(n, registers))


def frequencies(n: int, registers: int = 32) -> NDArray[np.int64]:
    """Return which frequency stands at each place after a transform forward."""
    order = np.zeros(1, np.int64)
    for radix in reversed(factors(n, registers)):
        order = (np.arange(radix)[:, None] + radix * order[None, :]).ravel()
    return order


def twiddles(n: int, registers: int) -> NDArray[np.float64]:
    """Return exp(−2πi·j·k/span) of every pass but the last: for each place j the radix − 1 numbers, k = 1 …"""
    tables, span = [np.zeros((0, 2))], n
    for radix in factors(n, registers)[:-1]:
        rest = span // radix
        angles = -2 * np.pi * ((np.arange(rest)[:, None] * np.arange(1, radix)) % span) / span
        tables.append(np.stack([np.cos(angles), np.sin(angles)], axis=-1).reshape(-1, 2))
        span = rest
    return np.concatenate(tables)


@dataclass(frozen=True)
class Line:
    """In-place transforms of n points that lie one behind the other, re and im a vector each.

    Attributes
    ----------
    twiddles : address of numbers
        Of this length's passes.
    """

    code: Code
    n: int
    points: Value
    twiddles: Value

    @property
    def radices(self) -> tuple[int, ...]:
        """Of the passes of a transform forward, in order."""
        return factors(self.n, self.code.target.registers)

    def get(self, place: Value) -> Complex:
        """Read a point."""
        code = self.code
        start = code.mul(place, 2 * code.lanes)
        return code.load(self.points, start), code.load(self.points, code.add(start, code.lanes))

    def put(self, place: Value, value: Complex) -> None:
        """Write a point."""
        code = self.code
        start = code.mul(place, 2 * code.lanes)
        code.store(value[0], self.points, start)
        code.store(value[1], self.points, code.add(start, code.lanes))

    def forward(self, get: Callable[[Value], Complex] | None = None, *, passes: int | None = None) -> None:
        """Do all passes, or the first ``passes``; ``get(place)`` reads what the first starts from."""
        for number, (span, radix, table) in enumerate(self._passes()[:passes]):
            self._turn(span, radix, table, False, (get if number == 0 else None) or self.get, self.put)

    def back(self, put: Callable[[Value, Complex], None] | None = None, *, passes: int | None = None) -> None:
        """Do all passes of the inverse, times n, or the last ``passes``; ``put(place, value)`` takes the result."""
        chosen = list(enumerate(self._passes()))[:passes]
        for number, (span, radix, table) in reversed(chosen):
            self._turn(span, radix, table, True, self.get, (put if number == 0 else None) or self.put)

    def through(
        self,
        between: Callable[[Value, Complex], Complex],
        get: Callable[[Value], Complex] | None,
        put: Callable[[Value, Complex], None] | None,
    ) -> None:
        """Transform, replace every value by ``between(place, value)``, and transform back.

        The last pass there and the first back work on the same points: they are one.
        """
        code, last, count = self.code, self.radices[-1], len(self.radices)
        self.forward(get, passes=count - 1)
        read, write = (get or self.get, put or self.put) if count == 1 else (self.get, self.put)
        with code.loop(0, self.n, last) as start:
            places = [code.add(start, number) for number in range(last)]
            values = dft(code, [read(place) for place in places])
            values = [between(place, value) for place, value in zip(places, values, strict=True)]
            for place, value in zip(places, dft(code, values, inverse=True), strict=True):
                write(place, value)
        self.back(put, passes=count - 1)

    def _passes(self) -> list[tuple[int, int, int]]:
        """Return span, radix and start of the twiddles of every pass."""
        found, span, table = [], self.n, 0
        for radix in self.radices:
            found.append((span, radix, table))
            span //= radix
            table += span * (radix - 1) * 2
        return found

    def _turn(
        self,
        span: int,
        radix: int,
        table: int,
        inverse: bool,
        get: Callable[[Value], Complex],
        put: Callable[[Value, Complex], None],
    ) -> None:
        """One pass: butterflies of ``radix`` points that are span/radix apart, and their twiddles."""
        code, rest = self.code, span // radix
        with code.loop(0, self.n, span) as block, code.loop(0, rest) as j:
            first = code.add(block, j)
            places = [code.add(first, number * rest) for number in range(radix)]
            values = [get(place) for place in places]
            row = code.at(self.twiddles, code.add(code.mul(j, 2 * (radix - 1)), table))

            def twisted(number: int, value: Complex, row: Value = row) -> Complex:
                if number == 0 or rest == 1:
                    return value
                factor = code.broadcast(row, 2 * number - 2), code.broadcast(row, 2 * number - 1)
                return multiplied(code, value, factor, conjugate=inverse)

            if inverse:
                values = [twisted(number, value) for number, value in enumerate(values)]
            values = dft(code, values, inverse=inverse)
            if not inverse:
                values = [twisted(number, value) for number, value in enumerate(values)]
            for place, value in zip(places, values, strict=True):
                put(place, value)
