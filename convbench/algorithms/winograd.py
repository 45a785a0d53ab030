"""Winograd's minimal filtering F(m, r): m outputs of r taps by m + r − 1 multiplications along each axis.

The transforms come from Toom and Cook's multiplication of polynomials, transposed (Winograd 1980; Lavin and Gray 2016):
with t = m + r − 1 distinct points p/q, ∞ among them, V_n has the rows (qⁿ⁻¹, p·qⁿ⁻², …, pⁿ⁻¹), and

    y = V_mᵀ [ (V_r w) ⊙ (V_t⁻ᵀ x) ].

They are worked out exactly, in fractions, and scaled to integers: Bᵀ row by row, the factors made up for in G. In
float64 even the division by the common factor comes last, so that small integers give exact results.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from functools import cache
from math import lcm, prod, sqrt

from convbench.algorithms.tiling import Scratch, TileCost, Tiled, Tiling, cheapest_tiling, lowered_taps
from convbench.arrays import Array, Namespace
from convbench.refusals import refuse
from convbench.spec import ConvSpec

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


def amplification(outputs: int, taps: int, dtype: str) -> float:
    """Return max_i Σ_f |A_fi|·‖G_f‖₂·‖B_f‖₂ / scale, by which F(m, r) may magnify rounding errors along one axis."""
    f = transforms(outputs, taps, dtype)
    norms = [
        sqrt(sum(float(v) ** 2 for v in g)) * sqrt(sum(float(v) ** 2 for v in b)) for g, b in zip(f.g, f.b, strict=True)
    ]
    columns = zip(*f.a, strict=True)
    return max(sum(abs(float(v)) * norm for v, norm in zip(column, norms, strict=True)) for column in columns) / f.scale


def exact_on_small_integers(spec: ConvSpec) -> bool:
    """Tell whether no intermediate of integers of up to ±9 can leave the 53 bits of float64."""
    if spec.dtype != "float64":
        return False
    tiling = choose_tiling(spec)
    growth = 1
    for m, r in zip(tiling.outputs, lowered_taps(spec), strict=True):
        f = transforms(m, r, spec.dtype)
        sums = [(sum(map(abs, g)) * sum(map(abs, b))) for g, b in zip(f.g, f.b, strict=True)]
        growth *= max(
            int(sum(abs(v) * s for v, s in zip(column, sums, strict=True))) for column in zip(*f.a, strict=True)
        )
    return growth * _SMALL_INTEGER**2 * (spec.in_channels // spec.groups) * prod(spec.stride) < 2**53


def why_not_winograd(spec: ConvSpec) -> str | None:
    """Refuse kernels without axes to gain on, and those whose tiles would be too large."""
    taps = lowered_taps(spec)
    if max(taps) > MOST_TAPS:
        most = f"at most {MOST_TAPS} taps (a component, where the stride is above 1)"
        return refuse("kernel size", f"{'x'.join(map(str, spec.kernel_size))} given, {most}: larger tiles lose digits")
    if max(taps) == 1:
        return refuse("kernel size", "one tap along every axis: there is nothing to save")
    return None


def _choices(taps: int) -> tuple[int, ...]:
    """Outputs of a tile: those of 4, 6 or 8 samples; a single tap needs no transform."""
    return (1,) if taps == 1 else tuple(t + 1 - taps for t in (4, 6, 8) if t + 1 - taps >= 2)


def _transform_ns(tiling: Tiling) -> float:
    """Each axis is a product by a small matrix, about 0.4 ns an element whatever its size."""
    return 0.4 * prod(tiling.size) * sum(t > m for t, m in zip(tiling.size, tiling.outputs, strict=True))


def _cost(spec: ConvSpec) -> TileCost:
    wide = spec.itemsize // 4
    return TileCost(
        transform_ns=lambda tiling: wide * _transform_ns(tiling),
        frequencies=lambda tiling: prod(tiling.size),
        mac_ns=0.016 * wide,
        weight_bytes=spec.itemsize,
        move_ns=0.7 * wide,
    )


def choose_tiling(spec: ConvSpec) -> Tiling:
    """Return the tiles that should take the least time."""
    return cheapest_tiling(spec, [_choices(taps) for taps in lowered_taps(spec)], _cost(spec))


class Winograd(Tiled):
    """F(m, r) along each axis with m by cost, and one GEMM a frequency.

    O(∏(m + r − 1)/∏m · C·O) multiplications an output; a NaN or infinity spoils its tile.
    """

    def __init__(self, ns: Namespace, spec: ConvSpec, threads: int) -> None:
        tiling, dtype = choose_tiling(spec), ns.dtype(spec.dtype)
        self._matrices = [transforms(m, r, spec.dtype) for m, r in zip(tiling.outputs, lowered_taps(spec), strict=True)]
        self._scale = prod(f.scale for f in self._matrices)

        def arrays(name: str, transpose: bool) -> list[Array]:
            tables = [getattr(f, name) for f in self._matrices]
            tables = [list(zip(*table, strict=True)) if transpose else table for table in tables]
            return [ns.xp.asarray([[float(v) for v in row] for row in table], dtype=dtype) for table in tables]

        self._forward, self._inverse = arrays("b", False), arrays("a", True)
        super().__init__(ns, spec, threads, tiling, _cost(spec))

    def _transform_weights(self, taps: Array) -> Array:
        """In float64, so that float32 weights are rounded once; divided by the scale here, but for float64."""
        ns, spec = self._ns, self._spec
        values = ns.cast(taps, "float64")
        for axis, f in enumerate(self._matrices):
            matrix = ns.xp.asarray([[float(v) for v in row] for row in f.g], dtype=ns.dtype("float64"))
            values = ns.xp.moveaxis(ns.xp.tensordot(matrix, values, axes=((1,), (axis,))), 0, axis)
        return values if spec.dtype == "float64" else ns.cast(values / self._scale, spec.dtype)

    def _scratch_elements(self) -> int:
        return self._frequencies * max(self._lanes_in, self._lanes_out)

    def _scratch_bytes(self) -> int:
        return 2 * self._scratch_elements() * self._spec.itemsize

    def _make_scratch(self) -> Scratch:
        """Two buffers, between which each axis' product goes to and fro."""
        ns, size = self._ns, self._tiling.size
        shape, dtype = (self._scratch_elements(),), ns.dtype(self._spec.dtype)
        first, second = (ns.xp.zeros(shape, dtype=dtype) for _ in range(2))
        active = [axis for axis, (t, m) in enumerate(zip(size, self._tiling.outputs, strict=True)) if t > m]
        samples = self._view(first, (*size, self._lanes_in))
        transformed, spare = (first, second) if len(active) % 2 == 0 else (second, first)
        multiplied = transformed if self._single else spare

        def forward() -> Array:
            shape, source, target = [*size, self._lanes_in], first, second
            for axis in active:
                source, target = self._along(axis, self._forward[axis], shape, source, target)
            return self._view(transformed, (self._frequencies, self._lanes_in))

        def inverse() -> Array:
            shape, source = [*size, self._lanes_out], multiplied
            target = first if source is second else second
            for axis in active:
                source, target = self._along(axis, self._inverse[axis], shape, source, target)
            result = self._view(source, shape)
            if self._spec.dtype == "float64" and self._scale > 1:
                result /= self._scale
            return result

        return Scratch(samples, forward, lambda: self._view(multiplied, (self._frequencies, self._lanes_out)), inverse)

    def _along(self, axis: int, matrix: Array, shape: list[int], source: Array, target: Array) -> tuple[Array, Array]:
        """Multiply one axis by a matrix into the other buffer; return the buffers with their roles changed."""
        before, after = prod(shape[:axis]), prod(shape[axis + 1 :])
        rows = matrix.shape[0]
        self._ns.matmul(
            matrix, self._view(source, (before, shape[axis], after)), self._view(target, (before, rows, after))
        )
        shape[axis] = rows
        return target, source

    def _view(self, buffer: Array, shape: Sequence[int]) -> Array:
        return self._ns.reshape(buffer[: prod(shape)], tuple(shape))

    def _transform_flops(self) -> float:
        """Dense products of every axis, forward (the inverse ones shrink and cost less)."""
        size = self._tiling.size
        axes = zip(size, self._tiling.outputs, strict=True)
        return float(sum(2 * t * prod(size) for t, m in axes if t > m))
