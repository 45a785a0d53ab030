"""Separable convolution: 1-D passes for kernels that are sums of few products of 1-D kernels.

A pass costs K_j per output where the whole kernel costs ∏K. Each is a product with a banded Toeplitz matrix, a
strip of outputs at a time: the band's zeros are multiplied too (B + K − 1 for K), and still the pass runs at
GEMM speed, several times that of shifting and adding. The price: a NaN or infinity reaches the whole strip.
Passes are fused within blocks of outputs, whose intermediate images stay in cache.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from math import prod
from typing import Any, NamedTuple

from convbench.algorithms.blocking import Block, Blocked, Blocking, flipped
from convbench.algorithms.lowrank import max_rank, pass_macs, tensor_train
from convbench.arrays import Array, Namespace
from convbench.errors import UnsupportedWeights
from convbench.geometry import reduced
from convbench.refusals import refuse
from convbench.spec import ConvSpec

__all__ = ["EPS", "Separable", "long_axes", "rank_too_high", "why_not_separable"]

_STRIP = 32  # outputs a Toeplitz product: below, BLAS is slow; above, zeros cost more
_PASS_BYTES = 512  # Python's own objects of a prepared pass of rank 1
_BLOCK_BYTES = 2**22  # halo and intermediate images of a block; larger ones repeat less of the first passes
EPS = {"float32": 2.0**-23, "float64": 2.0**-52}


class Pass(NamedTuple):
    """One 1-D pass: the Toeplitz matrices (strip, samples) of each pair of ranks, for full and last strips."""

    axis: int
    matrices: list[list[Array]]  # [rank out][rank in]


def long_axes(spec: ConvSpec) -> tuple[int, ...]:
    """Axes along which the kernel has more than one tap."""
    return tuple(axis for axis, size in enumerate(spec.kernel_size) if size > 1)


def why_not_separable(spec: ConvSpec) -> str | None:
    """Refuse kernels whose passes cost as much as the whole."""
    sizes = tuple(size for size in spec.kernel_size if size > 1)
    if len(sizes) < 2:
        return refuse("kernel size", "at most one axis has several taps: there is nothing to separate")
    if max_rank(sizes) < 1:
        return refuse("kernel size", f"{'x'.join(map(str, sizes))}: 1-D passes cost as much as the whole kernel")
    return None


def rank_too_high(sizes: tuple[int, ...], ranks: tuple[int, ...], most: int) -> str:
    """Return the reason against weights of these ranks, where passes gain up to rank ``most``."""
    full = [min(prod(sizes[:i]), prod(sizes[i:])) for i in range(1, len(sizes))]
    found = " and ".join(f"{rank} of {whole}" for rank, whole in zip(ranks, full, strict=True))
    return refuse("weights", f"numerical rank {found}: 1-D passes gain up to rank {most}")


class Separable(Blocked):
    """Passes along each axis, the last first; any stride, dilation, groups and boundary.

    Needs weights of low rank, for each pair of channels by itself. O(N·O·C/g·∏P·Σ r·r·(K + B)) work; workspace:
    a block's halo and the images between passes, for each thread.
    """

    def __init__(self, ns: Namespace, spec: ConvSpec, threads: int) -> None:
        channels, outputs = spec.in_channels // spec.groups, spec.out_channels // spec.groups
        per_output = (channels + outputs + 2) * prod(spec.stride) * spec.itemsize
        super().__init__(ns, spec, threads, Blocking(spec, per_output, _BLOCK_BYTES, threads))
        self._axes = long_axes(spec)
        self._rank = max_rank(tuple(spec.kernel_size[axis] for axis in self._axes))
        self.workspace_bytes += self._lanes * self._image_bytes()
        self.prepared_bytes = self._count_prepared()
        self.flops = self._count_flops((1,) * (len(self._axes) - 1))

    def prepare(self, w: Array) -> tuple[Any, int]:
        """Factor every (o, c) kernel; raise UnsupportedWeights where the rank is too high to gain."""
        ns, spec = self._ns, self._spec
        kernels = ns.to_host(flipped(ns, spec, w))
        if not bool(ns.xp.all(ns.xp.isfinite(w))):
            raise UnsupportedWeights(refuse("weights", "NaN or infinity among them: they have no rank"))
        sizes = tuple(spec.kernel_size[axis] for axis in self._axes)
        passes, highest = [], (1,) * (len(sizes) - 1)
        for kernel in kernels.reshape(spec.out_channels * self._channels, *sizes):
            cores = tensor_train(kernel, EPS[spec.dtype])
            ranks = tuple(core.shape[2] for core in cores[:-1])
            if max(ranks) > self._rank or pass_macs(sizes, ranks) >= prod(sizes):
                raise UnsupportedWeights(rank_too_high(sizes, ranks, self._rank))
            highest = max(highest, ranks, key=lambda r: pass_macs(sizes, r))
            passes.append([self._toeplitz(axis, core) for axis, core in zip(self._axes, cores, strict=True)])
        grouped = [passes[i : i + self._channels] for i in range(0, len(passes), self._channels)]
        return grouped, self._count_flops(highest)

    def _fill(self, halo: Array, weights: Any, y: Array, block: Block, buffers: Sequence[Array]) -> None:
        halo = halo[(..., *self._skip_unread())]
        for local, group in enumerate(range(block.groups.start, block.groups.stop)):
            for o in range(self._outputs):
                for c in range(self._channels):
                    image = self._filter(halo[:, local, c, ...], weights[group * self._outputs + o][c], block)
                    if c == 0:
                        y[:, local, o, ...] = image
                    else:
                        y[:, local, o, ...] += image

    def _skip_unread(self) -> tuple[slice, ...]:
        """Along axes with one tap a pass is plain subsampling."""
        spec = self._spec
        return tuple(slice(None, None, spec.stride[a] if spec.kernel_size[a] == 1 else 1) for a in range(spec.ndim))

    def _filter(self, image: Array, passes: list[Pass], block: Block) -> Array:
        """Run the passes, the last axis first; image: (n, *space) → (n, *outputs)."""
        images: Iterable[Array] = [image]
        for step in reversed(passes):
            images = self._apply(step, images, block.output_size[step.axis])
        return next(iter(images))

    def _apply(self, step: Pass, images: Iterable[Array], outputs: int) -> Iterator[Array]:
        """Yield Σ_b T_ab · images_b for each a; images come one at a time, so few exist at once."""
        results: list[Array] = []
        for b, image in enumerate(images):
            shape = (*image.shape[: 1 + step.axis], outputs, *image.shape[2 + step.axis :])
            for a, row in enumerate(step.matrices):
                product = self._ns.empty(shape, self._spec.dtype)
                self._multiply(row[b], image, step.axis, product)
                if len(row) == 1:
                    yield product
                elif b == 0:
                    results.append(product)
                else:
                    results[a] += product
        yield from results

    def _multiply(self, matrix: Array, image: Array, axis: int, target: Array) -> None:
        """Multiply strips of one axis by a Toeplitz matrix: position i·s + d·(s'·j + k) of subgrid i."""
        ns, spec = self._ns, self._spec
        stride, dilation, outputs = spec.stride[axis], spec.dilation[axis], target.shape[1 + axis]
        step, grids = reduced(stride, dilation)
        lead = (slice(None),) * (1 + axis)
        last = axis == spec.ndim - 1
        for grid in range(min(grids, outputs)):
            samples = image[(*lead, slice(grid * stride, None, dilation), ...)]
            if last and dilation > 1:
                samples = ns.xp.asarray(samples, copy=True)  # BLAS wants unit stride along rows
            count = -(-(outputs - grid) // grids)
            for first in range(0, count, _STRIP):
                rows = min(_STRIP, count - first)
                strip = matrix[:rows, : (rows - 1) * step + spec.kernel_size[axis]]
                begin = first * step
                read = samples[(*lead, slice(begin, begin + strip.shape[1]), ...)]
                write = target[(*lead, slice(grid + first * grids, grid + (first + rows - 1) * grids + 1, grids), ...)]
                if last:
                    ns.matmul(read, strip.T, write)
                else:
                    self._multiply_left(strip, read, write, axis)

    def _multiply_left(self, strip: Array, read: Array, write: Array, axis: int) -> None:
        """Write = strip · read along ``axis``, the axes after it joined into long rows where memory allows."""
        ns = self._ns
        joined = prod(read.shape[2 + axis :])
        try:
            read = ns.reshape(read, (*read.shape[: 2 + axis], joined), copy=False)
            write = ns.reshape(write, (*write.shape[: 2 + axis], joined), copy=False)
        except ValueError:
            pass
        if len(read.shape) == len(write.shape) == 3 + axis:
            ns.matmul(strip, read, write)
        else:
            ns.matmul(strip, ns.xp.moveaxis(read, 1 + axis, -2), ns.xp.moveaxis(write, 1 + axis, -2))

    def _toeplitz(self, axis: int, core: Any) -> Pass:
        """Return the matrices T[j, s'·j + k] = core[a, k, b] of a full strip."""
        ns, spec = self._ns, self._spec
        step, _ = reduced(spec.stride[axis], spec.dilation[axis])
        kernel = spec.kernel_size[axis]
        matrices = []
        for row in core.astype(spec.dtype):  # (K, ranks in)
            across = []
            for b in range(row.shape[1]):
                matrix = ns.xp.zeros((_STRIP, (_STRIP - 1) * step + kernel), dtype=ns.dtype(spec.dtype))
                taps = ns.from_host(row[:, b])
                for j in range(_STRIP):
                    matrix[j, j * step : j * step + kernel] = taps
                across.append(matrix)
            matrices.append(across)
        return Pass(axis, matrices)

    def _image_elements(self) -> list[tuple[int, int]]:
        """Return (axis, elements) of a block's image after each pass, in running order."""
        shape = list(self._blocking.halo_size)
        sizes = []
        for axis in reversed(self._axes):
            shape[axis] = self._blocking.shape[2 + axis]
            sizes.append((axis, self._blocking.shape[0] * prod(shape)))
        return sizes

    def _count_prepared(self) -> int:
        """Toeplitz matrices of full strips for kernels of rank 1; those of rank r take r times (r² between) as much."""
        spec, total = self._spec, 0
        for axis in self._axes:
            step, _ = reduced(spec.stride[axis], spec.dilation[axis])
            total += _STRIP * ((_STRIP - 1) * step + spec.kernel_size[axis]) * spec.itemsize + _PASS_BYTES
        return spec.out_channels * self._channels * total

    def _image_bytes(self) -> int:
        """One image of the first pass, all ranks of those between, the result and a product, a dilated copy."""
        first, *between, final = (elements for _, elements in self._image_elements())
        images = first + sum((self._rank + 1) * elements for elements in between) + 2 * final
        if self._spec.dilation[-1] > 1:
            images += self._blocking.shape[0] * prod(self._blocking.halo_size)
        return images * self._spec.itemsize

    def _count_flops(self, ranks: tuple[int, ...]) -> int:
        """Work of the Toeplitz products, the band's zeros and the repeated halo included."""
        spec, bonds = self._spec, (1, *ranks, 1)
        total = 0
        for number, (axis, elements) in enumerate(self._image_elements()):
            step, _ = reduced(spec.stride[axis], spec.dilation[axis])
            rows = min(_STRIP, self._blocking.shape[2 + axis])
            before, after = bonds[-1 - number], bonds[-2 - number]
            total += 2 * before * after * elements * ((rows - 1) * step + spec.kernel_size[axis])
        blocks = len(self._blocking) * self._blocking.shape[1]
        return total * blocks * self._outputs * self._channels
