"""Cases to try a backend on: specs at the edges, larger ones, seeded random ones, and numbers to fill them with."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from math import isqrt
from typing import Any

import numpy as np
from numpy.random import Generator
from numpy.typing import NDArray

from convbench.errors import SpecError
from convbench.geometry import BOUNDARIES
from convbench.spec import DTYPES, LAYOUTS, OPS, ConvSpec

__all__ = [
    "EDGE_LINES",
    "LARGE_LINES",
    "STRUCTURES",
    "Structure",
    "constant",
    "gaussian",
    "integers",
    "low_rank",
    "random_spec",
    "wide",
]

#: Where implementations go wrong. Backends that do not take one show how they refuse it.
EDGE_LINES = (
    # one tap, one sample
    "i1 k1 f32",
    "n2 c3 o4 i5x7 k1 bias=channel f32",
    "c4 o6 i6x5x4 k1 s2x1x3 g2 f64",
    "n3 c2 o2 i1x9 k1x4 psame f32",
    # the kernel is larger than the input; outputs that see zeros alone
    "c2 o3 i3x2 k5x4 p2:2x1:2 f32",
    "i2 k7 pfull flip f64",
    "i1x1x1 k3 p1 f64",
    "c2 o2 i3x4 k2x3 p5:1x0:6 bias=channel f32",
    # strides that skip samples
    "c2 o2 i11x13 k2x3 s4x5 f32",
    "n2 c3 o2 i17 k1 s6 f64",
    "c2 o2 i12x9 k2 p3:0x0:4 s5x3 flip f32",
    # nothing to do
    "n0 c2 o3 i6x5 k3 p1 bias=channel f32",
    "n0 i5 k3 bias=channel int8",
    # asymmetric and negative padding
    "c2 o2 i9x8 k3x2 p-2:1x0:-3 f32",
    "n2 i12 k3 p-4:-1 f64",
    "c2 o3 i5x6 k2x3 s2x1 p3:0x0:2 f64",
    "c3 o2 i8x7 k4x2 s2x3 psame bias=channel f32",
    # restricted connectivity
    "n2 c5 o5 i7x6 k3x2 psame g5 bias=channel f32",
    "c3 o6 i9 k4 g3 flip f64",
    "n2 c4 o6 i8x7 k3x2 p1x0 g2 f32",
    "c6 o4 i4x5x3 k2x1x3 s1x2x1 p0x0x2 g2 bias=location f64",
    # dilation and stride, coprime, with a common divisor, equal
    "c2 o2 i15x14 k3x2 s2x3 p2 d3x2 f32",
    "c2 o3 i19x17 k3x2 s2x3 p3 d4x6 flip f64",
    "n2 c2 o2 i16x18 k3x2 s4x6 p0:3x2:0 d2x4 g2 f32",
    "c2 o2 i23 k4 s3 p1:2 d3 f32",
    "i31x2 k2x3 p0x4 d17x3 f64",
    # one to four axes
    "c2 o2 i70 k31 pfull flip f32",
    "n2 c2 o3 i5x6x7 k2x3x4 s1x2x3 p1:0x0:2x1:1 d2x1x1 bias=channel f64",
    "i3x4x3x5 k2x1x2x3 p1 f64",
    # bias forms, tiles
    "c2 o3 i5x6 k2x3 bias=location f32",
    "n2 c2 o3 i7x6 k3x2 p1 t2x3 bias=tile f64",
    "c2 o4 i6x5 k2x3 s1x2 g2 tunshared bias=location f32",
    "c2 o2 i7 k3 psame t1 bias=channel f32",
    "n2 c3 o3 i9x8 k2x3 s2x1 p1:0x2:1 d1x2 g3 t3x2 flip bias=location f32",
    "n2 c2 o3 i6 k3 p1 t9 bias=tile f64",
    # boundaries, padding beyond the input included
    "c2 o2 i4x5 k3x2 p6:1x2:7 boundary=circular f32",
    "n2 c2 o2 i6x5 k3 s2x1 psame boundary=circular f64",
    "i4x1 k3x2 p7:5x3:0 boundary=reflect f64",
    "c2 o3 i3x5 k2x4 p4:8x2:1 d2x1 boundary=replicate flip f32",
    "n2 c2 o4 i5x6 k3x2 s2x1 p4:3x1:6 g2 t2x3 boundary=reflect bias=tile f32",
    "c2 o2 i6x4 k3 p-2:1x3:-1 tunshared boundary=replicate bias=location f64",
    # order in memory, dtypes
    "n2 c3 o4 i6x5 k3x2 p1 layout=channels_last bias=channel f32",
    "n2 c2 o4 i5x6 k3 psame g2 t2 boundary=circular layout=channels_last f64",
    "n2 c2 o3 i7x6 k2x3 p1x0 flip bias=channel complex64",
    "c2 o2 i9 k4 s2 pfull complex128",
    "c3 o2 i6x7 k3x2 p1 bias=channel int8",
    "c2 o2 i9x4 k2x3 s2x1 uint8",
    "n2 c3 o2 i6x5 k3x2 psame boundary=reflect bias=location uint8",
    "c2 o4 i8x7 k3 p1 g2 t2x3 bias=tile int16",
    "c2 o2 i12 k5 psame bias=channel int32",
    "i8x5 k2x3 uint64",
    "c2 o2 i6x5 k3 f16",
    "n2 c2 o3 i7x5 k3x2 s2x1 p2 t2 boundary=replicate bias=tile f16",
    "c2 o2 i6x5 k3 bf16",
    # the gradient of the input: strides and dilations with a common divisor, samples that no output reads
    "op=input_grad n2 c2 o4 i7x6 k3x2 s2x1 p1 g2 f32",
    "op=input_grad c2 o3 i16x18 k3x2 s4x6 p0:3x2:0 d2x4 flip f64",
    "op=input_grad n2 c2 o2 i11x9 k2 s4x3 p-1:0x2:-2 f32",
    "op=input_grad n2 c4 o2 i6x5 k3x2 s2x1 p2:1 g2 t2x3 f32",
    "op=input_grad c2 o2 i6x5 k2x3 s1x2 p1 tunshared complex64",
    "op=input_grad c2 o2 i4x5 k3x2 s2x1 p6:1x2:7 boundary=circular f32",
    "op=input_grad n2 c2 o2 i3x1 k4x1 p7:5x0 t2x1 boundary=reflect f64",
    "op=input_grad c3 o2 i3x5 k2x4 p4:8x2:1 boundary=replicate flip layout=channels_last f32",
    "op=input_grad c2 o3 i2x3 k5x4 p4 int8",
    "op=input_grad n0 c2 o3 i6x5 k3 p1 f32",
    "op=input_grad i3x4x3x5 k2x1x2x3 s1x2x1x1 p1 f64",
    # the gradient of the weights: sums over images and positions, kernels that no output uses
    "op=weight_grad n2 c2 o3 i6x5 k2x3 p0:1x1:0 flip f64",
    "op=weight_grad n3 c4 o2 i16x18 k3x2 s4x6 p0:3x2:0 d2x4 g2 f32",
    "op=weight_grad n2 c2 o2 i9 k3 s2 p-2:4 complex64",
    "op=weight_grad n2 c2 o4 i8x7 k3x2 p1 g2 t2x3 f32",
    "op=weight_grad n2 c2 o2 i6x5 k2x3 s1x2 tunshared f64",
    "op=weight_grad n2 c2 o2 i4x5 k3x2 p6:1x2:7 d1x2 boundary=circular f32",
    "op=weight_grad c2 o3 i4x1 k3x2 p4:1x3:0 t9x2 boundary=reflect flip f64",
    "op=weight_grad n2 c3 o2 i3x5 k2x4 p4:8x2:1 boundary=replicate layout=channels_last f32",
    "op=weight_grad n2 c2 o2 i6x5 k3 f16",
    "op=weight_grad n0 c2 o3 i6x5 k3 p1 f32",
    "op=weight_grad c2 o1 i5x6x7 k2x3x4 s1x2x3 p1:0x0:2x1:1 uint8",
)

#: More than 10⁶ MACs each: they cross the borders of bands, blocks and chunks, where what repeats (tiles, strides) has
#: another phase than in the first block; a copy of the bias is as large as the result. ``reference`` refuses them.
LARGE_LINES = (
    "c8 o6 i61x53 k3x4 p1x2 bias=channel f32",
    "n3 c2 o5 i83x47 k7x5 s1x2 psame f64",
    "i131x157 k9x11 pfull flip f32",
    "n2 c6 o6 i97x71 k5x7 s2x1 p2x4 d1x2 g3 f32",
    "i24007 k63 psame f32",
    "c2 o3 i21x15x23 k3x2x5 p1:0x1x1:2 f64",
    "c4 o5 i67x59 k3x5 p1x2 t2x3 f32",
    "c3 o4 i61x53 k5x7 tunshared f32",
    "c3 o2 i71x67 k5x7 p9x4 boundary=reflect f32",
    "op=input_grad c6 o4 i71x61 k5x4 s2x1 p2x3 f32",
    "op=weight_grad n2 c4 o7 i43x37 k4x5 p1 f32",
    "o8 i121x130 k3 p1 t2x3 bias=tile f32",
    "o8 i128x120 k3 p1 bias=location f16",
    "op=weight_grad n2 o32 i43x47 k3 p1:2 t4x3 boundary=reflect f32",
    "op=weight_grad n2 o8 i91x93 k3 tunshared f32",
    "op=input_grad c3 o7 i123x139 k2x3 s2x1 p1:2 t3x4 boundary=circular f32",
    # many small kernels: what each takes beyond its taps shows
    "c24 o28 i19x18 k3x2 p1 f32",
    "op=input_grad c28 o24 i240 k9 p4 f64",
)


def random_spec(rng: Generator, *, max_macs: int = 20_000, common: bool = False) -> ConvSpec:
    """Draw one valid spec of the whole family, sizes unequal from axis to axis.

    Parameters
    ----------
    rng : numpy.random.Generator
    max_macs : int
        Upper limit of ``spec.macs``.
    common : bool
        Stay within what most backends take: forward, float32 or float64, zero boundary, shared weights,
        channels first, one to three axes.

    Raises
    ------
    SpecError
        If ``max_macs`` is below 1.

    Examples
    --------
    >>> rng = np.random.default_rng(0)
    >>> all(random_spec(rng, max_macs=1000).macs <= 1000 for _ in range(20))
    True
    """
    if max_macs < 1:
        raise SpecError("max_macs", max_macs, "must be an integer ≥ 1")
    while True:
        fields = _random_geometry(rng, common)
        if not common:
            fields |= _random_kind(rng, len(fields["input_size"]))
        try:
            spec = ConvSpec(**fields)
        except SpecError:  # a kernel beyond its input, for the most part; rejection keeps the rest independent
            continue
        if spec.macs <= max_macs:
            return spec


def _random_geometry(rng: Generator, common: bool) -> dict[str, Any]:
    ndim = int(rng.choice((1, 2, 3, 4), p=(0.3, 0.45, 0.25, 0.0) if common else (0.3, 0.4, 0.25, 0.05)))
    size, kernel = {1: (60, 17), 2: (20, 7), 3: (9, 4), 4: (5, 3)}[ndim]
    groups = int(rng.integers(1, 4)) if rng.random() < 0.5 else 1

    def per_axis(plain: float, low: int, high: int) -> list[int]:
        """1 along every axis with probability ``plain``, else one draw an axis."""
        return [1] * ndim if rng.random() < plain else rng.integers(low, high + 1, ndim).tolist()

    paddings: tuple[Any, ...] = ("valid", "same", "full", rng.integers(-2, 6, (ndim, 2)).tolist())
    return {
        "batch": int(rng.choice((0, 1, 2, 3), p=(0.03, 0.47, 0.3, 0.2))),
        "in_channels": groups * int(rng.integers(1, 4)),
        "out_channels": groups * int(rng.integers(1, 4)),
        "groups": groups,
        "input_size": per_axis(0.02, 1, size),
        "kernel_size": per_axis(0.05, 1, kernel),
        "stride": per_axis(0.5, 1, 4),
        "dilation": per_axis(0.6, 1, 4),
        "padding": paddings[rng.choice(4, p=(0.2, 0.2, 0.15, 0.45))],
        "flip": bool(rng.random() < 0.4),
        "bias": str(rng.choice(("none", "channel", "location"), p=(0.4, 0.45, 0.15))),
        "dtype": str(rng.choice(("float32", "float64"))),
    }


#: How often each is drawn: most where rounding has most to spoil. The eight integer types share what is left, and
#: bfloat16 is rare, as NumPy does not have it.
_DTYPE_ODDS = {"float32": 0.35, "float64": 0.2, "complex64": 0.1, "complex128": 0.05, "float16": 0.05, "bfloat16": 0.01}
_DTYPE_ODDS |= dict.fromkeys((name for name in DTYPES if "int" in name), 0.03)


def _random_kind(rng: Generator, ndim: int) -> dict[str, Any]:
    tiles: tuple[Any, ...] = (None, "unshared", rng.integers(1, 4, ndim).tolist())
    tile = tiles[rng.choice(3, p=(0.6, 0.1, 0.3))]
    kind: dict[str, Any] = {
        "op": str(rng.choice(OPS, p=(0.4, 0.3, 0.3))),
        "tile": tile,
        "boundary": str(rng.choice(BOUNDARIES)),
        "layout": str(rng.choice(LAYOUTS, p=(0.8, 0.2))),
        "dtype": str(rng.choice(tuple(_DTYPE_ODDS), p=tuple(_DTYPE_ODDS.values()))),
    }
    if tile is not None and rng.random() < 0.5:
        kind["bias"] = "tile"
    return kind


#: ``numbers(shape, dtype)``: an array of that shape and dtype.
Numbers = Callable[[tuple[int, ...], str], NDArray[Any]]


def gaussian(rng: Generator) -> Numbers:
    """Return a source of N(0, 1), complex with independent parts; integers of up to ±9 for the integer types."""

    def numbers(shape: tuple[int, ...], dtype: str) -> NDArray[Any]:
        if "int" in dtype:
            return rng.integers(0 if dtype[0] == "u" else -9, 10, shape).astype(dtype)
        values = rng.standard_normal(shape)
        return (values + 1j * rng.standard_normal(shape) if "complex" in dtype else values).astype(dtype)

    return numbers


def integers(rng: Generator, largest: int) -> Numbers:
    """Return a source of whole numbers from −largest (0 if unsigned) to largest, in any dtype's storage."""

    def numbers(shape: tuple[int, ...], dtype: str) -> NDArray[Any]:
        lowest = 0 if dtype[0] == "u" else -largest
        values = rng.integers(lowest, largest + 1, shape)
        return (values + 1j * rng.integers(lowest, largest + 1, shape) if "complex" in dtype else values).astype(dtype)

    return numbers


def wide(rng: Generator, decades: float) -> Numbers:
    """Return a source of N(0, 1) times 10 to a power uniform in ±decades."""
    plain = gaussian(rng)

    def numbers(shape: tuple[int, ...], dtype: str) -> NDArray[Any]:
        return (plain(shape, dtype) * 10 ** rng.uniform(-decades, decades, shape)).astype(dtype)

    return numbers


def low_rank(numbers: Numbers, spec: ConvSpec, rank: int) -> NDArray[Any]:
    """Return weights of ``rank`` at most: sums of outer products of one factor an axis, drawn from ``numbers``."""
    lead = spec.weight_shape[: -spec.ndim]
    w = np.zeros(spec.weight_shape, spec.dtype)
    for _ in range(rank):
        term = np.ones((*lead, *(1,) * spec.ndim), spec.dtype)
        for axis, size in enumerate(spec.kernel_size):
            shape = [1] * spec.ndim
            shape[axis] = size
            term = term * numbers((*lead, *shape), spec.dtype)
        w += term
    return w


def constant(numbers: Numbers, spec: ConvSpec) -> NDArray[Any]:
    """Return weights that are the same at every tap of a kernel."""
    lead = numbers((*spec.weight_shape[: -spec.ndim], *(1,) * spec.ndim), spec.dtype)
    return np.array(np.broadcast_to(lead, spec.weight_shape))


@dataclass(frozen=True)
class Structure:
    """A kind of weights that an algorithm may need.

    Attributes
    ----------
    name : str
    make : callable
        ``make(numbers, spec)``: weights of that kind.
    factors : callable
        ``factors(ndim)``: how many of the numbers are multiplied with each other in one weight.
    """

    name: str
    make: Callable[[Numbers, ConvSpec], NDArray[Any]]
    factors: Callable[[int], int] = lambda ndim: 1


#: From none to the most; a backend takes one of them, and all that come after it.
STRUCTURES = (
    Structure("any weights", lambda numbers, spec: numbers(spec.weight_shape, spec.dtype)),
    Structure("weights of rank 1", lambda numbers, spec: low_rank(numbers, spec, 1), lambda ndim: ndim),
    Structure("constant weights", constant),
)


def largest_exact_integer(spec: ConvSpec) -> int:
    """Return m such that sums of products of integers of up to m, a bias included, are exact in the spec's dtype.

    >>> largest_exact_integer(ConvSpec.parse("i99 k9 f32"))
    9
    """
    if "int" in spec.dtype:  # as far as the type goes, and the 64-bit sum
        return min(int(np.iinfo(spec.dtype).max), isqrt(2**61 // (spec.terms + 1)))
    return max(1, min(9, isqrt(2 ** int(np.finfo(spec.dtype).nmant) // (2 * spec.terms + 2))))
