"""Convolution by FFT on the GPU: of whole images, or of tiles of a size chosen by cost (overlap-save).

A call is a handful of launches, whatever the spec: samples are laid out (``kernels/fft.cu``), cuFFT transforms them,
spectra are multiplied and summed over the channels, cuFFT transforms back, outputs are taken out and the bias added.
Strides and dilations are lowered first (:mod:`convbench.algorithms.lowering`): polyphase components are further
channels, interleaved subgrids further images, tiles too. The kernels' spectra are prepared once.

There are two orders in memory. Of many channels the products are one complex matrix product for each frequency and
group (Mathieu, Henaff and LeCun 2013; Vasilache and others 2015), for which cuFFT writes and reads a matrix for each
frequency itself, by its advanced data layout: no transposition apart. Of few channels, as of depthwise layers, spectra
lie one behind the other and a kernel multiplies them.

Memory is allocated in each call from the pool of the calling stream, in which it is there again as soon as the
operation that needed it has been handed to the device. Cost figures are assumptions about cards of this decade, not
measurements: only the choice of tiles and of the order rests on them.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from itertools import product
from math import prod
from typing import Any, NamedTuple

import numpy as np

from convbench.algorithms.fft import transform_sizes
from convbench.algorithms.lowering import AxisLowering, Lowering
from convbench.arrays import Array, Namespace
from convbench.cuda.forward import MOST_ALONG_Y, Forward
from convbench.cuda.geometry import blocks, geometry, three
from convbench.cuda.kernel import Kernel, Launch
from convbench.cuda.variants import Variant
from convbench.refusals import refuse
from convbench.spec import DTYPES, ConvSpec
from convbench.transforms import (
    Lanes,
    LaneTransform,
    complex_of,
    cufft_size,
    is_complex,
    real_of,
    spectrum_shape,
    transform_flops,
)

__all__ = [
    "KERNELS",
    "VARIANTS",
    "AxisTiles",
    "CudaFFT",
    "cheapest_tiles",
    "overlap",
    "reach",
    "whole_tiles",
    "why_not",
]

_C_TYPES = {
    "float32": "float",
    "float64": "double",
    "complex64": "Complex<float>",
    "complex128": "Complex<double>",
}
_BLOCKS = (16, 16, 1), (32, 8, 1), (256, 1, 1)
_MOVING = {
    (name, dtype, block): Kernel("fft.cu", f"{name}<{c_type}>", block)
    for name in ("fft_pack", "fft_taps", "fft_unpack")
    for dtype, c_type in _C_TYPES.items()
    for block in _BLOCKS
}
_SUMS = 4  # outputs, and transforms, whose sums a thread keeps
_ROWS = 4  # of a block of products
_PRODUCTS = {
    (dtype, outputs, tiles): Kernel("fft.cu", f"fft_multiply<{_C_TYPES[dtype]}, {outputs}, {tiles}>", (32, _ROWS, 1))
    for dtype in ("float32", "float64")
    for outputs in (1, _SUMS)
    for tiles in (1, _SUMS)
}

#: Every instance that may be launched.
KERNELS = (*_MOVING.values(), *_PRODUCTS.values())

#: ``struct Tiles`` of ``kernels/fft.cu``, field by field.
_TILES = np.dtype(
    [
        *(
            (name, "i4", 3)
            for name in ("count", "outputs", "size", "first", "length", "phases", "subgrids", "tap_step", "grid_step")
        ),
        ("images", "i4"),
        ("lanes", "i8", 3),
    ],
    align=True,
)

_CALL_BYTES = 4 * 2**30  # of a call's buffers, beyond which images are done in turn
_TAPS_BYTES = 2**28  # of kernels that are laid out at a time
_LINES_OF_A_THREAD = 4  # that a thread fills, where there are so many

# -- tiles ----------------------------------------------------------------------------------------------------

_FLOPS_PER_BYTE = 15.0  # float32 arithmetic against memory: A100 13, H100 SXM 20
_ONE_PASS = 2**12  # samples of a line that cuFFT transforms without going through memory
_ODD_SIZE = 1.15  # what a size 3·2ᵏ costs against a power of two
_GEMM_TILE = 32  # rows and columns of a matrix product that cuBLAS computes at least
_TILE_SIZES = tuple(sorted((*(2**power for power in range(3, 17)), *(3 * 2**power for power in range(3, 15)))))


class AxisTiles(NamedTuple):
    """How one axis of the lowered spec is cut.

    Attributes
    ----------
    number : int
        Of tiles.
    outputs : int
        Of a tile.
    size : int
        Of a transform.
    first : int
        Place of the first sample of the first tile: those before are zeros in every component.
    """

    number: int
    outputs: int
    size: int
    first: int


def whole_tiles(spec: ConvSpec) -> tuple[AxisTiles, ...]:
    """Return one tile along each axis, in which padding wraps round onto padding, and circular boundaries wrap."""
    sizes = transform_sizes(spec, cufft_size)
    return tuple(
        AxisTiles(1, axis.lowered_outputs, size, axis.zeros[0])
        for axis, size in zip(Lowering(spec).axes, sizes, strict=True)
    )


@lru_cache(maxsize=256)
def cheapest_tiles(spec: ConvSpec) -> tuple[AxisTiles, ...]:
    """Return the tiles that should take the least time; along each axis, one may be the whole."""
    last = len(spec.input_size) - 1
    choices = [
        [one, *_cut(axis, real=number == last and not is_complex(spec.dtype))]
        for number, (axis, one) in enumerate(zip(Lowering(spec).axes, whole_tiles(spec), strict=True))
    ]
    return min(product(*choices), key=lambda tiles: _cost(spec, tiles))


def _cut(axis: AxisLowering, real: bool) -> Iterator[AxisTiles]:
    """Return the ways to cut an axis into tiles; along one with a single tap nothing need be transformed."""
    taps, outputs = axis.lowered_kernel, axis.lowered_outputs
    if taps == 1 and not real:
        yield AxisTiles(outputs, 1, 1, 0)
    for size in _TILE_SIZES:
        kept = size - taps + 1
        if size >= 2 * taps and kept < outputs:
            yield AxisTiles(blocks(outputs, kept), kept, size, 0)


def _cost(spec: ConvSpec, tiles: Sequence[AxisTiles]) -> float:
    """Return about how many bytes could be moved in the time that a call takes."""
    counts = _Counts.of(spec, tiles)
    sizes = [axis.size for axis in tiles]
    passes = sum((1 + (size > _ONE_PASS)) * (_ODD_SIZE if size % 3 == 0 else 1) for size in sizes if size > 1)
    values = counts.points * spec.itemsize
    moved = (counts.lanes_in + counts.lanes_out) * values * (2 + 2 * passes)
    spectrum = counts.frequencies * DTYPES[complex_of(spec.dtype)]
    products = min(_gemm_cost(spec, counts), _multiply_cost(spec, counts))
    return moved + products + spec.groups * counts.inputs * counts.outputs * spectrum


class _Counts(NamedTuple):
    """What there is to transform and multiply."""

    batch: int  # images × subgrids × tiles
    inputs: int  # of a group: channels × phases
    outputs: int
    groups: int
    points: int  # of a transform
    frequencies: int

    @classmethod
    def of(cls, spec: ConvSpec, tiles: Sequence[AxisTiles], images: int | None = None) -> _Counts:
        """Count for so many images at once, by default for all."""
        lowering, sizes = Lowering(spec), [axis.size for axis in tiles]
        return cls(
            batch=(spec.batch if images is None else images) * lowering.subgrids * prod(axis.number for axis in tiles),
            inputs=spec.in_channels // spec.groups * lowering.phases,
            outputs=spec.out_channels // spec.groups,
            groups=spec.groups,
            points=prod(sizes),
            frequencies=prod(spectrum_shape((), sizes, spec.dtype)),
        )

    @property
    def lanes_in(self) -> int:
        """Transforms of samples."""
        return self.batch * self.groups * self.inputs

    @property
    def lanes_out(self) -> int:
        """Transforms back."""
        return self.batch * self.groups * self.outputs

    @property
    def kernels(self) -> int:
        """Transforms of kernels."""
        return self.groups * self.outputs * self.inputs


def _gemm_cost(spec: ConvSpec, counts: _Counts) -> float:
    """8 FLOPs a complex multiply–add, of matrices rounded up to what is computed at least, at half the peak."""
    rows, columns = (blocks(n, _GEMM_TILE) * _GEMM_TILE for n in (counts.outputs, counts.batch))
    flops = 8 * counts.frequencies * counts.groups * rows * columns * counts.inputs
    moved = counts.frequencies * (counts.lanes_in + counts.lanes_out) * DTYPES[complex_of(spec.dtype)]
    return moved + flops * 2 / _FLOPS_PER_BYTE * DTYPES[real_of(spec.dtype)] / 4


def _multiply_cost(spec: ConvSpec, counts: _Counts) -> float:
    """Spectra from the caches, which are about three times as fast as memory, for every few outputs anew."""
    read = counts.lanes_in * blocks(counts.outputs, _SUMS) + counts.kernels * blocks(counts.batch, _SUMS)
    return counts.frequencies * (read / 3 + counts.lanes_out) * DTYPES[complex_of(spec.dtype)]


def overlap(tiles: Sequence[AxisTiles]) -> int:
    """Return the number of tiles that a sample lies in at most."""
    return prod(min(axis.number, blocks(axis.size, axis.outputs)) for axis in tiles)


def reach(spec: ConvSpec, tiles: Sequence[AxisTiles]) -> tuple[int, ...]:
    """Return how far beyond an output's window its tile may extend, along each axis, in samples."""
    axes = zip(Lowering(spec).axes, tiles, strict=True)
    return tuple((one.outputs - (axis.phases == 1)) * axis.stride * axis.grid_step for axis, one in axes)


def why_not(spec: ConvSpec, tiles: Sequence[AxisTiles]) -> str | None:
    """Refuse what 32 bits cannot count: a position along an axis, or an item of the transforms of one image."""
    largest = max(axis.stride * axis.grid_step * 2 * (axis.length + axis.size) for axis in Lowering(spec).axes)
    counts = _Counts.of(spec, tiles, 1)
    items = counts.points * max(counts.lanes_in, counts.lanes_out, counts.kernels)
    for what, count in (("positions along an axis", largest), ("items to transform", items)):
        if count >= 2**31:
            return refuse("memory", f"{count:.3g} {what}, less than 2^31 are done")
    return None


# -- the algorithm --------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Side:
    """The transforms before or after the products: their layout in memory, and what runs them."""

    lanes: Lanes
    transform: LaneTransform

    @property
    def samples_bytes(self) -> int:
        return self.lanes.count * prod(self.lanes.sizes) * DTYPES[self.lanes.dtype]

    @property
    def spectra_bytes(self) -> int:
        return self.lanes.count * prod(self.lanes.kept) * DTYPES[complex_of(self.lanes.dtype)]


class CudaFFT(Forward):
    """Forward convolutions with shared weights by transforms of tiles.

    O(T log T · (C + O) + T · C · O) for T points in all tiles; a NaN or infinity spoils its tile.

    Parameters
    ----------
    tiles : tuple of AxisTiles
        By :func:`whole_tiles` or :func:`cheapest_tiles`.
    """

    def __init__(self, ns: Namespace, spec: ConvSpec, threads: int, tiles: tuple[AxisTiles, ...]) -> None:
        super().__init__(ns, spec, threads)
        self._tiles, self._lowering = tiles, Lowering(spec)
        self._sizes = tuple(axis.size for axis in tiles)
        self._images = _images_at_once(spec, tiles)
        self._counts = counts = _Counts.of(spec, tiles, self._images)
        self._by_gemm = counts.inputs > 1 and _gemm_cost(spec, counts) < _multiply_cost(spec, counts)
        self._in_place = not self._by_gemm and counts.inputs == counts.outputs == 1
        self._describe()
        self._load()
        self._plan()
        self.workspace_bytes = self._count_workspace()
        self.prepared_bytes = counts.kernels * counts.frequencies * DTYPES[self._complex]
        self.flops = _flops(spec, _Counts.of(spec, tiles))

    @property
    def _complex(self) -> str:
        return complex_of(self._spec.dtype)

    def _describe(self) -> None:
        """Make the structs that the kernels take: of the samples' transforms, of those of results, and of kernels."""
        axes, counts = self._lowering.axes, self._counts
        fields = {
            "count": three([tile.number for tile in self._tiles], 1),
            "outputs": three([tile.outputs for tile in self._tiles], 1),
            "size": three(self._sizes, 1),
            "first": three([tile.first for tile in self._tiles], 0),
            "length": three([axis.length for axis in axes], 1),
            "phases": three([axis.phases for axis in axes], 1),
            "subgrids": three([axis.subgrids for axis in axes], 1),
            "tap_step": three([axis.phase_step for axis in axes], 1),
            "grid_step": three([axis.grid_step for axis in axes], 1),
            "images": self._images,
        }
        self._of_samples = _struct(fields | {"lanes": self._strides(counts.inputs)})
        self._of_results = _struct(fields | {"phases": 1, "lanes": self._strides(counts.outputs)})

    def _strides(self, channels: int) -> tuple[int, int, int]:
        """Return the distances of groups, channels, and images with their tiles, in transforms."""
        batch = self._counts.batch
        return (channels * batch, batch, 1) if self._by_gemm else (channels, 1, channels * self._counts.groups)

    def _load(self) -> None:
        """Make the kernels ready: moving ones in blocks of the shape that fits a tile."""
        dtype, columns, outputs = self._spec.dtype, self._sizes[-1], self._tiles[-1].outputs
        self._pack, self._taps = (self._moving(name, dtype, self._sizes, columns) for name in ("fft_pack", "fft_taps"))
        self._unpack = self._moving("fft_unpack", dtype, [tile.outputs for tile in self._tiles], outputs)
        if self._by_gemm:
            return
        counts = self._counts
        few = [_SUMS if n > 1 else 1 for n in (counts.outputs, counts.batch)]
        self._multiply = self._loaded(_PRODUCTS[(real_of(dtype), few[0], few[1])])
        self._multiply_grid = (
            blocks(counts.frequencies, 32),
            min(counts.groups * blocks(counts.outputs, few[0]), MOST_ALONG_Y),
            min(blocks(counts.batch, few[1] * _ROWS), MOST_ALONG_Y),
        )

    def _moving(self, name: str, dtype: str, extents: Sequence[int], columns: int) -> tuple[Launch, int, int]:
        """Return what launches a kernel that goes through tiles of these extents, and its grid along y and z."""
        block = _BLOCKS[(columns > 16) + (columns > 128)]
        lines = prod(extents[:-1])
        along_y = blocks(lines, block[1] * _LINES_OF_A_THREAD), blocks(columns, block[0] * _LINES_OF_A_THREAD)
        launch = self._loaded(_MOVING[(name, dtype, block)])
        return launch, min(along_y[0], MOST_ALONG_Y), min(along_y[1], MOST_ALONG_Y)

    def _plan(self) -> None:
        """Plan all transforms now, so that planning is timed as planning."""
        counts = self._counts
        self._there, self._back = self._side(counts.lanes_in), self._side(counts.lanes_out, inverse=True)
        self._kernels_at_once = _largest_divisor(counts.kernels, _TAPS_BYTES // (counts.points * self._spec.itemsize))
        self._of_kernels = self._side(self._kernels_at_once, counts.kernels)

    def _side(self, lanes: int, row: int | None = None, inverse: bool = False) -> _Side:
        made = self._ns.transforms.lanes
        if made is None:
            raise ValueError(f"{self._ns.transforms.name} transforms no arrays that it is given")
        row = (lanes if row is None else row) if self._by_gemm else 0
        layout = Lanes(lanes, self._sizes, self._spec.dtype, row)
        return _Side(layout, made(layout, inverse))

    def _count_workspace(self) -> int:
        """Return the most that is there at once, with what transforms keep."""
        there, back = self._there, self._back
        stages = (
            there.samples_bytes + there.spectra_bytes,
            there.spectra_bytes + (0 if self._in_place else back.spectra_bytes),
            back.spectra_bytes + back.samples_bytes,
        )
        kept = (side.transform.workspace_bytes for side in (there, back, self._of_kernels))
        return max(stages) + sum(kept)

    @cached_property
    def preparing_bytes(self) -> int:
        """Bytes of prepared weights, and of kernels laid out on the way to them."""
        return self.prepared_bytes + self._of_kernels.samples_bytes

    # -- weights ----------------------------------------------------------------------------------------------

    def prepare(self, w: Array) -> tuple[Any, None]:
        """Return the spectra of the kernels' components: (G·O/g·C', frequencies), or (frequencies · G, O/g, C')."""
        ns, counts = self._ns, self._counts
        lanes, frequencies = counts.kernels, counts.frequencies
        spectra = ns.empty((frequencies, lanes) if self._by_gemm else (lanes, frequencies), self._complex)
        scale = np.dtype(real_of(self._spec.dtype)).type(1 / counts.points)
        conv = geometry(self._spec, w, w, w)
        launch, along_y, along_z = self._taps
        count = self._kernels_at_once
        for start in range(0, lanes, count):
            samples = ns.empty((count, *self._sizes), self._spec.dtype)
            launch((count, along_y, along_z), (w, samples, conv, self._of_samples, np.int64(start), scale))
            part = spectra[:, start : start + count] if self._by_gemm else spectra[start : start + count]
            self._of_kernels.transform.run(samples, part)
        if self._by_gemm:
            spectra = ns.reshape(spectra, (frequencies * counts.groups, counts.outputs, counts.inputs))
        return spectra, None

    # -- calls ------------------------------------------------------------------------------------------------

    def run(self, first: Array, second: Any, bias: Array | None, out: Array) -> None:
        """Fill ``out``, as many images at a time as there should be memory for."""
        if 0 in out.shape:
            return
        for start in range(0, self._spec.batch, self._images):
            images = slice(start, start + self._images)
            x, y = first[images, ...], out[images, ...]
            self._launch(x, second, bias, y, self._geometry(x, None, y, bias))

    def _launch(self, x: Array, weights: Any, bias: Array | None, y: Array, conv: Any) -> None:
        """Lay out, transform, multiply, transform back, take out."""
        ns, counts, dtype = self._ns, self._counts, self._spec.dtype
        launch, along_y, along_z = self._pack
        samples = ns.empty((counts.lanes_in, *self._sizes), dtype)
        launch((counts.lanes_in, along_y, along_z), (x, samples, conv, self._of_samples))
        spectra = self._new_spectra(counts.lanes_in)
        self._there.transform.run(samples, spectra)
        del samples  # its memory is the pool's again, for what comes next on this stream
        sums = self._products(spectra, weights)
        del spectra
        samples = ns.empty((counts.lanes_out, *self._sizes), dtype)
        self._back.transform.run(sums, samples)
        del sums
        launch, along_y, along_z = self._unpack
        launch((counts.lanes_out, along_y, along_z), (samples, bias, y, conv, self._of_results))

    def _new_spectra(self, lanes: int) -> Array:
        frequencies = self._counts.frequencies
        return self._ns.empty((frequencies, lanes) if self._by_gemm else (lanes, frequencies), self._complex)

    def _products(self, spectra: Array, weights: Any) -> Array:
        """Return the spectra of the results."""
        ns, counts = self._ns, self._counts
        sums = spectra if self._in_place else self._new_spectra(counts.lanes_out)
        if self._by_gemm:  # a matrix (C', batch) for each frequency and group
            matrices, batch = counts.frequencies * counts.groups, counts.batch
            columns = ns.reshape(spectra, (matrices, counts.inputs, batch))
            ns.matmul(weights, columns, ns.reshape(sums, (matrices, counts.outputs, batch)))
        else:
            sizes = counts.frequencies, counts.groups, counts.inputs, counts.outputs, counts.batch
            self._multiply(self._multiply_grid, (spectra, weights, sums, *map(np.int32, sizes)))
        return sums


def _struct(fields: dict[str, Any]) -> Any:
    made = np.zeros(1, _TILES)
    for name, value in fields.items():
        made[name] = value
    return made


def _images_at_once(spec: ConvSpec, tiles: Sequence[AxisTiles]) -> int:
    one = _Counts.of(spec, tiles, 1)
    values = one.points * spec.itemsize + one.frequencies * DTYPES[complex_of(spec.dtype)]
    return _largest_divisor(spec.batch, _CALL_BYTES // (max(one.lanes_in, one.lanes_out) * values))


def _largest_divisor(number: int, most: int) -> int:
    """Return the largest divisor of ``number`` that is at most ``most``, and at least 1."""
    return next((d for d in range(min(number, max(1, most)), 0, -1) if number % d == 0), 1)


def _flops(spec: ConvSpec, counts: _Counts) -> int:
    """8 a complex multiply–add."""
    transforms = transform_flops(counts.points, spec.dtype) * (counts.lanes_in + counts.lanes_out)
    return round(transforms + 8.0 * counts.frequencies * counts.batch * counts.kernels)


_LINES = {(16, 16, 1): "i6x9 k3x2", (32, 8, 1): "i6x50 k3x2", (256, 1, 1): "i4x300 k2x150"}

#: Cases that launch each kernel; of one input channel, so that no matrices are multiplied.
VARIANTS = (
    *(
        Variant(
            tuple(_MOVING[name, dtype, block] for name in ("fft_pack", "fft_taps", "fft_unpack")),
            f"n2 c2 o3 {line} p1 bias=channel {dtype}",
        )
        for dtype in _C_TYPES
        for block, line in _LINES.items()
    ),
    *(
        Variant((kernel,), f"n{tiles} o{outputs} i9x8 k3x2 p1 bias=channel {dtype}")
        for (dtype, outputs, tiles), kernel in _PRODUCTS.items()
    ),
)
