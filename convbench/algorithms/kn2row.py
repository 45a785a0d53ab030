"""kn2row: one GEMM a tap on the input as it lies, shifted by the tap, added into the outputs; no columns.

Y += W_k · X_k with X_k[c, p] = x[c, p·s + k·d − a] (Vasudevan, Anderson and Gregg 2017, in its accumulating form;
elsewhere "shift-GEMM" or "implicit GEMM"). Rows of a block lie one behind the other in memory, so that every X_k is
the same matrix begun at another sample, which BLAS takes in place: the products at the few positions where a window
would run over the end of a row are computed too, and thrown away.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import product
from math import prod
from typing import Any, NamedTuple

from convbench.algorithms.blocking import Block, Blocked, Blocking, flipped
from convbench.algorithms.im2col import Im2col
from convbench.arrays import Array, Namespace
from convbench.refusals import refuse
from convbench.spec import DTYPES, ConvSpec

__all__ = ["MOST_TAPS", "Kn2row", "kn2row", "why_not_kn2row"]

MOST_TAPS = 2**12
_TAP_BYTES = 256  # of one in the plan
_BLOCK_BYTES = 2**20  # sums, products and samples of a block
_LEAST_WIDTH = 1024  # positions a GEMM where the image has so many; with fewer BLAS is slow


class Tap(NamedTuple):
    """One kernel offset k: k·d = s·start + phase along each axis."""

    phase: int  # number of the phase, over all axes
    start: tuple[int, ...]


class Kn2row(Blocked):
    """Shift and GEMM, any stride, dilation, groups, boundary and number of axes.

    O(MACs) work and O(K) passes over the block's sums; workspace: a block's sums, products and samples for each thread.
    """

    def __init__(self, ns: Namespace, spec: ConvSpec, threads: int) -> None:
        channels, outputs = spec.in_channels // spec.groups, spec.out_channels // spec.groups
        self._unit_stride = set(spec.stride) == {1}
        copies = 1 if self._unit_stride else 2
        per_output = (2 * outputs + copies * channels * prod(spec.stride)) * DTYPES[spec.accumulate_dtype]
        blocking = Blocking(spec, per_output, max(_BLOCK_BYTES, _LEAST_WIDTH * per_output), threads, copy=True)
        self._phases, self._taps = _phases_and_taps(spec)
        wide = prod(blocking.shape[2:-2]) * _width(spec, blocking.shape[2:])
        samples = 0 if self._unit_stride else len(self._phases) * channels * prod(_extents(spec, blocking.shape[2:]))
        lead = prod(blocking.shape[:2])
        super().__init__(ns, spec, threads, blocking, (lead * samples, *(lead * outputs * wide,) * 2))
        self.prepared_bytes = prod(spec.weight_shape) * DTYPES[spec.accumulate_dtype]
        self.workspace_bytes += _TAP_BYTES * len(self._taps)
        self.flops = round(spec.flops * wide / prod(blocking.shape[2:]))

    def prepare(self, w: Array) -> tuple[Any, None]:
        """Return a (G, 1…1, O/g, C/g) array for each tap, one after the other."""
        ns, spec = self._ns, self._spec
        matrices = ns.empty((*spec.kernel_size, *w.shape[:3]), spec.accumulate_dtype)  # BLAS wants them contiguous
        ns.assign(matrices, ns.xp.permute_dims(flipped(ns, spec, w), (*range(3, 3 + spec.ndim), 0, 1, 2)))
        outer = (1,) * max(0, spec.ndim - 2)
        return ns.reshape(matrices, (len(self._taps), spec.groups, *outer, self._outputs, self._channels)), None

    def _fill(self, halo: Array, weights: Any, y: Array, block: Block, buffers: Sequence[Array]) -> None:
        ns = self._ns
        samples = self._rows(halo[:, :, None, ...] if self._unit_stride else self._split(halo, block, buffers[0]))
        outer, width = block.output_size[:-2], _width(self._spec, block.output_size)
        shape = (*block.lead, *outer, self._outputs, width)
        sums, products = (ns.reshape(buffer[: prod(shape)], shape) for buffer in buffers[1:])
        for number, tap in enumerate(self._taps):
            begin = self._begin(tap, block)
            planes = tuple(slice(first, first + size) for first, size in zip(tap.start[:-2], outer, strict=False))
            shifted = samples[(slice(None), slice(None), tap.phase, *planes, slice(None), slice(begin, begin + width))]
            self._multiply(weights[number, block.groups, ...], shifted, products if number else sums)
            if number:
                sums += products
        self._unpack(sums, ns.xp.moveaxis(y, 2, 2 + len(outer)), block)

    def _multiply(self, weights: Array, samples: Array, target: Array) -> None:
        """Write W_k · X_k; with one channel it is no sum, and BLAS is slow at it."""
        if self._channels > 1:
            self._ns.matmul(weights, samples, target)
        else:
            self._ns.multiply(weights, samples, target)

    def _split(self, halo: Array, block: Block, buffer: Array) -> Array:
        """Return (n, g, phases, C/g, *extents): every s-th sample along each axis, from each phase that has a tap."""
        ns, spec = self._ns, self._spec
        shape = (*block.lead, len(self._phases), self._channels, *_extents(spec, block.output_size))
        split = ns.reshape(buffer[: prod(shape)], shape)
        split[...] = 0  # what no tap reads meets the weights too, where windows run over the end of a row
        for number, phase in enumerate(self._phases):
            every = tuple(slice(first, None, stride) for first, stride in zip(phase, spec.stride, strict=True))
            part = halo[(..., *every)]
            room = tuple(slice(0, min(size, most)) for size, most in zip(part.shape[3:], shape[4:], strict=True))
            split[(slice(None), slice(None), number, slice(None), *room)] = part[(..., *room)]
        return split

    def _rows(self, samples: Array) -> Array:
        """Join the last two axes, (n, g, phases, C/g, *space) → (n, g, phases, *outer, C/g, positions)."""
        shape = (*samples.shape[: max(4, samples.ndim - 2)], prod(samples.shape[max(4, samples.ndim - 2) :]))
        return self._ns.xp.moveaxis(self._ns.reshape(samples, shape, copy=False), 3, -2)

    def _begin(self, tap: Tap, block: Block) -> int:
        """Return where the tap's first sample stands in the joined rows."""
        row = _extents(self._spec, block.output_size)[-1]
        return tap.start[-1] + row * sum(tap.start[-2:-1])

    def _unpack(self, sums: Array, y: Array, block: Block) -> None:
        """Write the sums (…, O/g, width) into y (…, O/g, rows, columns), without those between the rows."""
        ns, row = self._ns, _extents(self._spec, block.output_size)[-1]
        columns = block.output_size[-1]
        if self._spec.ndim > 1:
            rows = block.output_size[-2] - 1
            whole = ns.reshape(sums[..., : rows * row], (*sums.shape[:-1], rows, row))
            y[..., :rows, :] = whole[..., :columns]
            y = y[..., rows, :]
        y[...] = sums[..., sums.shape[-1] - columns :]


def _extents(spec: ConvSpec, outputs: Sequence[int]) -> tuple[int, ...]:
    """Return the samples of one phase beneath so many outputs, along each axis."""
    axes = zip(outputs, spec.stride, spec.kernel_size, spec.dilation, strict=True)
    return tuple(p + (k - 1) * d // s for p, s, k, d in axes)


def _width(spec: ConvSpec, outputs: Sequence[int]) -> int:
    """Return the positions from the first output to the last, over the joined rows."""
    return outputs[-1] + sum(p - 1 for p in outputs[-2:-1]) * _extents(spec, outputs)[-1]


def _phases_and_taps(spec: ConvSpec) -> tuple[list[tuple[int, ...]], list[Tap]]:
    """Return the phases k·d mod s that hold a tap, and all taps in the kernel's order."""
    per_axis = [
        [divmod(k * d, s) for k in range(size)]
        for size, s, d in zip(spec.kernel_size, spec.stride, spec.dilation, strict=True)
    ]
    phases = list(product(*(sorted({phase for _, phase in axis}) for axis in per_axis)))
    numbers = {phase: number for number, phase in enumerate(phases)}
    taps = [
        Tap(numbers[tuple(phase for _, phase in tap)], tuple(start for start, _ in tap)) for tap in product(*per_axis)
    ]
    return phases, taps


def why_not_kn2row(spec: ConvSpec) -> str | None:
    """Refuse kernels of very many taps, such as the output's gradient, which the weight gradient has for its kernel."""
    taps = prod(spec.kernel_size)
    if taps <= MOST_TAPS:
        return None
    return refuse("kernel size", f"{taps} taps, each a product of its own; at most {MOST_TAPS} are done")


def kn2row(ns: Namespace, spec: ConvSpec, threads: int) -> Blocked:
    """Return the plan of a spec: with one tap at stride 1 there is nothing to add up, and no columns either."""
    return (Im2col if set(spec.kernel_size) == set(spec.stride) == {1} else Kn2row)(ns, spec, threads)
