"""Winograd's minimal filtering F(m, r): m outputs of r taps by m + r − 1 multiplications along each axis.

The transforms come from Toom and Cook's multiplication of polynomials, transposed (Winograd 1980; Lavin and Gray 2016):
with t = m + r − 1 distinct points p/q, ∞ among them, V_n has the rows (qⁿ⁻¹, p·qⁿ⁻², …, pⁿ⁻¹), and

    y = V_mᵀ [ (V_r w) ⊙ (V_t⁻ᵀ x) ].

They are worked out exactly, in fractions, and scaled to integers: Bᵀ row by row, the factors made up for in G. In
float64 even the division by the common factor comes last, so that small integers give exact results. The weight
gradient takes the same matrices: ∂J/∂w = Gᵀ Σ (A g) ⊙ (Bᵀ x).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from fractions import Fraction
from functools import cache
from itertools import product
from math import lcm, prod, sqrt

from convbench.algorithms.tiling import (
    ForwardScratch,
    GradientScratch,
    TileCost,
    Tiled,
    Tiling,
    lowered_taps,
    values_summed,
)
from convbench.arrays import Array, Namespace
from convbench.refusals import refuse
from convbench.spec import DTYPES, ConvSpec
from convbench.transforms import is_complex, real_of

__all__ = [
    "Winograd",
    "amplification",
    "choose_tiling",
    "exact_on_small_integers",
    "transforms",
    "why_not_winograd",
]

MOST_SAMPLES = 8  # in a tile: beyond, float32 loses too many digits (amplification grows exponentially with t)
MOST_TAPS = MOST_SAMPLES - 1
#: By which a tile may magnify rounding errors in float32, all axes together: as two axes do at their worst, F(2, 7)
#: along each. Beyond, the error bound could not tell 0 from 1.
MOST_AMPLIFICATION = 33.0**2
_SMALL_INTEGER = 9  # of samples and weights that the battery calls small

#: Finite points for a tile of t samples. Of sets of simple fractions ±⅔, ±³⁄₂ magnify rounding errors least: by at most
#: 9.2 an axis in F(4, 3), where 0, ±1, ½, −2 does by 11.0 and the usual 0, ±1, ±2 by 19.5 (:func:`amplification`); in
#: float64, where the matrices must be small integers for exact results, they give way to these.
_HALVES = (Fraction(1, 2), Fraction(-2))
_THIRDS = (Fraction(2, 3), Fraction(-2, 3), Fraction(3, 2), Fraction(-3, 2))
_UNITS = (Fraction(0), Fraction(1), Fraction(-1))
_POINTS = {
    ("float32", 6): (Fraction(0), *_THIRDS),
    ("float64", 6): (*_UNITS, *_HALVES),
    8: (*_UNITS, *_HALVES, Fraction(-1, 2), Fraction(2)),
}


def _points(samples: int, dtype: str) -> tuple[Fraction, ...]:
    return _POINTS.get((dtype, samples)) or _POINTS.get(samples) or _UNITS[: samples - 1]


Matrix = tuple[tuple[Fraction, ...], ...]


@dataclass(frozen=True)
class FilterTransforms:
    """The matrices of F(m, r), exact: y = (1 / scale) · Aᵀ [ (G w) ⊙ (Bᵀ x) ].

    Attributes
    ----------
    a : matrix (t, m) of integers
    g : matrix (t, r) of integers
    b : matrix (t, t) of integers, the rows of Bᵀ
    scale : int
    """

    a: Matrix
    g: Matrix
    b: Matrix
    scale: int


@cache
def transforms(outputs: int, taps: int, dtype: str) -> FilterTransforms:
    """Return the matrices of F(outputs, taps) for a dtype.

    >>> f = transforms(2, 3, "float32")
    >>> [[int(value) for value in row] for row in f.b]
    [[1, 0, -1, 0], [0, 1, 1, 0], [0, -1, 1, 0], [0, -1, 0, 1]]
    >>> f.scale
    2
    """
    samples = outputs + taps - 1
    if outputs == 1:  # products and their sum, as they stand
        identity = tuple(tuple(Fraction(i == j) for j in range(samples)) for i in range(samples))
        return FilterTransforms(((Fraction(1),),) * samples, identity, identity, 1)
    points = _points(samples, dtype)
    inverse = _inverse(_vandermonde(points, samples))
    rows = list(zip(*inverse, strict=True))
    factors = [lcm(*(value.denominator for value in row)) for row in rows]
    scale = lcm(*factors)
    b = tuple(tuple(value * factor for value in row) for row, factor in zip(rows, factors, strict=True))
    g = tuple(
        tuple(value * (scale // factor) for value in row)
        for row, factor in zip(_vandermonde(points, taps), factors, strict=True)
    )
    return FilterTransforms(_vandermonde(points, outputs), g, b, scale)


def _vandermonde(points: Sequence[Fraction], size: int) -> Matrix:
    """Rows (q^{n−1}, p·q^{n−2}, …, p^{n−1}) for each p/q, and that of ∞."""
    rows = [tuple(Fraction(x.numerator**j * x.denominator ** (size - 1 - j)) for j in range(size)) for x in points]
    return (*rows, (*(Fraction(0),) * (size - 1), Fraction(1)))


def _inverse(matrix: Matrix) -> Matrix:
    """Gauss and Jordan, exact."""
    size = len(matrix)
    rows = [[*row, *(Fraction(i == j) for j in range(size))] for i, row in enumerate(matrix)]
    for c in range(size):
        pivot = next(i for i in range(c, size) if rows[i][c])
        rows[c], rows[pivot] = rows[pivot], rows[c]
        rows[c] = [value / rows[c][c] for value in rows[c]]
        for i in range(size):
            if i != c and rows[i][c]:
                factor = rows[i][c]
                rows[i] = [value - factor * base for value, base in zip(rows[i], rows[c], strict=True)]
    return tuple(tuple(row[size:]) for row in rows)


@cache
def amplification(outputs: int, taps: int, dtype: str, op: str = "forward") -> float:
    """Return max_i Σ_f |A_fi|·‖G_f‖₂·‖B_f‖₂ / scale, by which F(m, r) may magnify rounding errors along one axis.

    For the weight gradient A and G change places.
    """
    f = transforms(outputs, taps, dtype)
    last, first = (f.a, f.g) if op == "forward" else (f.g, f.a)
    norms = [_norm(row) * _norm(b) for row, b in zip(first, f.b, strict=True)]
    columns = zip(*last, strict=True)
    return max(sum(abs(float(v)) * norm for v, norm in zip(column, norms, strict=True)) for column in columns) / f.scale


def _norm(row: Sequence[Fraction]) -> float:
    return sqrt(sum(float(v) ** 2 for v in row))


def exact_on_small_integers(spec: ConvSpec) -> bool:
    """Tell whether no intermediate of integers of up to ±9 can leave the 53 bits of float64."""
    if spec.dtype != "float64":
        return False
    tiling = choose_tiling(spec)
    growth = 1
    for m, r in zip(tiling.outputs, lowered_taps(spec), strict=True):
        f = transforms(m, r, "float64")
        last, first = (f.a, f.g) if spec.op == "forward" else (f.g, f.a)
        sums = [(sum(map(abs, row)) * sum(map(abs, b))) for row, b in zip(first, f.b, strict=True)]
        growth *= max(
            int(sum(abs(v) * s for v, s in zip(column, sums, strict=True))) for column in zip(*last, strict=True)
        )
    return growth * _SMALL_INTEGER**2 * values_summed(spec, tiling) < 2**53


def why_not_winograd(spec: ConvSpec) -> str | None:
    """Refuse kernels without axes to gain on, and those whose tiles would be too large."""
    taps = lowered_taps(spec)
    if max(taps) > MOST_TAPS:
        most = f"at most {MOST_TAPS} taps (a component, where the stride is above 1)"
        return refuse("kernel size", f"{'x'.join(map(str, spec.kernel_size))} given, {most}: larger tiles lose digits")
    if max(taps) == 1:
        return refuse("kernel size", "one tap along every axis: there is nothing to save")
    if max(choose_tiling(spec).outputs) == 1:
        given = "x".join(map(str, spec.kernel_size))
        return refuse("kernel size", f"{given} given: tiles of several outputs lose too many digits in {spec.dtype}")
    return None


def _choices(taps: int) -> tuple[int, ...]:
    """Outputs of a tile: those of 4, 6 or 8 samples; a single tap needs no transform."""
    return (1,) if taps == 1 else tuple(t + 1 - taps for t in (4, 6, 8) if t + 1 - taps >= 2)


def _transform_ns(tiling: Tiling) -> float:
    """Each axis is a product by a small matrix, about 0.4 ns an element whatever its size."""
    return 0.4 * prod(tiling.size) * sum(t > m for t, m in zip(tiling.size, tiling.outputs, strict=True))


def _cost(spec: ConvSpec) -> TileCost:
    wide = spec.itemsize // 4
    products = wide * (2 if is_complex(spec.dtype) else 1)
    return TileCost(
        transform_ns=lambda tiling: wide * _transform_ns(tiling),
        frequencies=lambda tiling: prod(tiling.size),
        mac_ns=0.016 * products,
        weight_bytes=spec.itemsize,
        move_ns=0.7 * wide,
    )


def choose_tiling(spec: ConvSpec) -> Tiling:
    """Return the tiles that should take the least time; in float32, of those that lose no more digits than they may.

    Amplifications of axes multiply: along three axes tiles are smaller, down to one output where there are many taps.
    """
    taps, dtype = lowered_taps(spec), real_of(spec.dtype)
    choices = [_choices(r) for r in taps]
    if dtype == "float32" and sum(r > 1 for r in taps) > 2:
        choices = [(1, *some) if r > 1 else some for r, some in zip(taps, choices, strict=True)]
        tiles = [tile for tile in product(*choices) if _amplified(tile, taps, spec.op) <= MOST_AMPLIFICATION]
    else:
        tiles = list(product(*choices))
    cost = _cost(spec)
    sizes = [tuple(m + r - 1 for m, r in zip(outputs, taps, strict=True)) for outputs in tiles]
    return min(map(Tiling, tiles, sizes), key=lambda tiling: cost.of(spec, tiling))


def _amplified(outputs: Sequence[int], taps: Sequence[int], op: str) -> float:
    """Return by how much a tile may magnify rounding errors in float32."""
    return prod(amplification(m, r, "float32", op) for m, r in zip(outputs, taps, strict=True))


class Winograd(Tiled):
    """F(m, r) along each axis with m by cost, and one GEMM a frequency.

    O(∏(m + r − 1)/∏m · C·O) multiplications an output; a NaN or infinity spoils its tile.
    """

    def __init__(self, ns: Namespace, spec: ConvSpec, threads: int) -> None:
        tiling, dtype = choose_tiling(spec), real_of(spec.dtype)
        self._matrices = [transforms(m, r, dtype) for m, r in zip(tiling.outputs, lowered_taps(spec), strict=True)]
        self._scale = prod(f.scale for f in self._matrices)
        self._wide = "complex128" if is_complex(spec.dtype) else "float64"

        def arrays(tables: Sequence[Matrix]) -> list[Array]:
            values = ([[float(v) for v in row] for row in table] for table in tables)
            return [ns.xp.asarray(table, dtype=ns.dtype(spec.dtype)) for table in values]

        self._forward = arrays([f.b for f in self._matrices])
        self._inverse = arrays([_transposed(f.a) for f in self._matrices])
        self._spread = arrays([f.a for f in self._matrices])
        super().__init__(ns, spec, threads, tiling, _cost(spec))

    def _transform_weights(self, taps: Array) -> Array:
        """In double precision, so that float32 weights are rounded once; divided by the scale here, unless double."""
        values = self._multiplied_by([f.g for f in self._matrices], self._ns.cast(taps, self._wide))
        return values if self._spec.dtype == self._wide else self._ns.cast(values / self._scale, self._spec.dtype)

    def _weights_back(self, lanes: int) -> tuple[int, Callable[[Array], Array]]:
        """In double precision, too."""
        ns, spec, size = self._ns, self._spec, self._tiling.size

        def back(values: Array) -> Array:
            values = ns.cast(ns.reshape(values, (*size, -1)), self._wide)
            values = self._multiplied_by([_transposed(f.g) for f in self._matrices], values)
            return ns.cast(values / self._scale, spec.dtype)

        return 4 * lanes * prod(size) * DTYPES[self._wide], back

    def _multiplied_by(self, tables: Sequence[Matrix], values: Array) -> Array:
        """Multiply each axis by a matrix, in double precision."""
        xp = self._ns.xp
        for axis, table in enumerate(tables):
            matrix = xp.asarray([[float(v) for v in row] for row in table], dtype=self._ns.dtype(self._wide))
            values = xp.moveaxis(xp.tensordot(matrix, values, axes=((1,), (axis,))), 0, axis)
        return values

    def _scratch_elements(self) -> int:
        return self._frequencies * max(self._lanes_in, self._lanes_out)

    def _scratch_bytes(self) -> int:
        pairs = 1 if self._spec.op == "forward" else 2
        return 2 * pairs * self._scratch_elements() * self._spec.itemsize

    def _buffer_pair(self) -> tuple[Array, Array]:
        """Two buffers, between which each axis' product goes to and fro."""
        first, second = (
            self._ns.xp.zeros((self._scratch_elements(),), dtype=self._ns.dtype(self._spec.dtype)) for _ in range(2)
        )
        return first, second

    def _make_scratch(self) -> ForwardScratch:
        first, second = self._buffer_pair()
        transformed, spare = (first, second) if self._active_axes % 2 == 0 else (second, first)
        multiplied, other = (transformed, spare) if self._single else (spare, transformed)
        products = self._view(multiplied, (self._frequencies, self._lanes_out))

        def inverse() -> Array:
            result = self._along_axes(self._inverse, (*self._tiling.size, self._lanes_out), multiplied, other)
            if self._spec.dtype == self._wide and self._scale > 1:
                result /= self._scale
            return result

        return ForwardScratch(*self._samples(first, second), lambda: products, inverse)

    def _make_gradient_scratch(self) -> GradientScratch:
        x, (first, second) = self._samples(*self._buffer_pair()), self._buffer_pair()
        shape = (*self._tiling.outputs, self._lanes_out)

        def gradients() -> Array:
            place = self._view(first, shape)
            place[...] = 0
            return place

        def spread() -> Array:
            result = self._along_axes(self._spread, shape, first, second)
            return self._ns.reshape(result, (self._frequencies, self._lanes_out))

        return GradientScratch(*x, gradients, spread)

    def _samples(self, first: Array, second: Array) -> tuple[Array, Callable[[], Array]]:
        """Return where samples go, and their transform by Bᵀ."""
        shape = (*self._tiling.size, self._lanes_in)

        def forward() -> Array:
            result = self._along_axes(self._forward, shape, first, second)
            return self._ns.reshape(result, (self._frequencies, self._lanes_in))

        return self._view(first, shape), forward

    @property
    def _active_axes(self) -> int:
        return sum(t > m for t, m in zip(self._tiling.size, self._tiling.outputs, strict=True))

    def _along_axes(self, matrices: Sequence[Array], shape: Sequence[int], source: Array, target: Array) -> Array:
        """Multiply each axis that has several taps by its matrix, each time into the other buffer."""
        sizes = list(shape)
        for axis, (t, m) in enumerate(zip(self._tiling.size, self._tiling.outputs, strict=True)):
            if t > m:
                before, after, rows = prod(sizes[:axis]), prod(sizes[axis + 1 :]), matrices[axis].shape[0]
                values = self._view(source, (before, sizes[axis], after))
                self._ns.matmul(matrices[axis], values, self._view(target, (before, rows, after)))
                sizes[axis] = rows
                source, target = target, source
        return self._view(source, sizes)

    def _view(self, buffer: Array, shape: Sequence[int]) -> Array:
        return self._ns.reshape(buffer[: prod(shape)], tuple(shape))

    def _transform_flops(self) -> float:
        """Dense products of every axis, forward (the inverse ones shrink and cost less)."""
        size, each = self._tiling.size, 8 if is_complex(self._spec.dtype) else 2
        axes = zip(size, self._tiling.outputs, strict=True)
        return float(sum(each * t * prod(size) for t, m in axes if t > m))


def _transposed(matrix: Matrix) -> Matrix:
    return tuple(zip(*matrix, strict=True))
