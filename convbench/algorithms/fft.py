"""Convolution by the convolution theorem: transform, multiply, transform back.

y = F⁻¹( Σ_c X̂_c · Ŵ_oc ), with the mirrored kernel for cross-correlation. Its spectrum is prepared once, with 1/T
and the shift that the padding asks for folded in. Strides and dilations are lowered first (:mod:`~.lowering`), so no
output is computed to be thrown away, and padding costs transform length only beyond max(a, b).
"""

from __future__ import annotations

from itertools import pairwise, product
from math import log2, prod
from typing import Any

from convbench.algorithms.blocking import GroupedBias, ScratchPool, flipped
from convbench.algorithms.lowering import Lowering
from convbench.arrays import Array, Namespace
from convbench.spec import ConvSpec
from convbench.threads import parallel
from convbench.transforms import TransformPair, complex_of, spectrum_shape

__all__ = ["WholeFFT", "transform_sizes"]

_CHUNK = 2**14  # frequencies that are multiplied at a time: operands stay in the L2 cache
_MANY_PRODUCTS = 16  # channels × outputs from which a GEMM a frequency beats sums of whole spectra
_IMAGES_BYTES = 64 * 2**20  # transforms of several examples at once, up to so much memory
_WORTH_A_THREAD = 2**17  # elements
_KERNELS_BYTES = 2**22  # kernels transformed at once


def transform_sizes(spec: ConvSpec, good_size: Any) -> tuple[int, ...]:
    """Return the transform's length along each axis: the next good one, even along the last (real data)."""
    periods = [axis.period for axis in Lowering(spec).axes]
    return (*(good_size(period) for period in periods[:-1]), 2 * good_size(-(-periods[-1] // 2)))


class WholeFFT:
    """One transform of the whole (padded) input, any stride, dilation, groups and zero padding.

    O(T log T · (C + O) + T · C · O) for T points; workspace: real data and spectra of inputs and outputs. A NaN or
    infinity spoils its whole example; sums of T values must stay in the dtype's range, and values far below
    eps·‖x‖‖w‖ are lost.
    """

    def __init__(self, ns: Namespace, spec: ConvSpec, threads: int) -> None:
        self._ns, self._spec, self._threads = ns, spec, threads
        self._lowering = Lowering(spec)
        self._sizes = transform_sizes(spec, ns.transforms.good_size)
        self._inputs = spec.in_channels // spec.groups * self._lowering.phases
        self._outputs = spec.out_channels // spec.groups
        one_image = 2 * self._lowering.subgrids * spec.groups * max(self._inputs, self._outputs) * prod(self._sizes)
        self._images = _largest_divisor(spec.batch, _IMAGES_BYTES // (one_image * spec.itemsize))
        self._lead = (self._images * self._lowering.subgrids, spec.groups)
        self._in_place = self._inputs == self._outputs == 1
        self._scratch = ScratchPool(self._plan_transforms)
        pairs = spec.out_channels * (spec.in_channels // spec.groups)
        self._kernels = max(1, min(pairs, _KERNELS_BYTES // (2 * prod(self._sizes) * spec.itemsize)))
        kernels = (self._kernels,)
        self._kernel_scratch = ScratchPool(lambda: ns.transforms.pair(kernels, self._sizes, spec.dtype, threads))
        with self._scratch.borrow(), self._kernel_scratch.borrow():
            pass  # planned now, so that planning is timed as planning
        self.workspace_bytes = self._count_workspace()
        self.prepared_bytes = pairs * self._lowering.phases * prod(spectrum_shape((), self._sizes)) * 2 * spec.itemsize
        self.flops = self._count_flops()

    def prepare(self, w: Array) -> tuple[Any, None]:
        """Return the mirrored kernel's spectrum over T: (G, O/g, C', frequencies), or (frequencies, G, O/g, C')."""
        ns, spec = self._ns, self._spec
        kernels = ns.reshape(flipped(ns, spec, w), (-1, *spec.kernel_size))
        pairs, frequencies = kernels.shape[0], prod(spectrum_shape((), self._sizes))
        kept = ns.empty((pairs, self._lowering.phases, frequencies), self._complex)
        with self._kernel_scratch.borrow() as pair:
            for first in range(0, pairs, self._kernels):
                part = slice(first, min(first + self._kernels, pairs))
                for number, phase in self._lowering.each_phase():
                    self._place(kernels[part, ...], phase, pair.real)
                    pair.forward()
                    spectra = ns.reshape(pair.spectrum, (self._kernels, frequencies))
                    kept[part, number, :] = spectra[: part.stop - part.start, :] * (1 / prod(self._sizes))
        kept = ns.reshape(kept, (spec.groups, self._outputs, self._inputs, frequencies))
        if self._by_gemm:
            kept = ns.xp.asarray(ns.xp.permute_dims(kept, (3, 0, 1, 2)), copy=True)
        return kept, None

    def _place(self, kernels: Array, phase: tuple[int, ...], real: Array) -> None:
        """Lay a component's taps, mirrored, round the circle of each transform."""
        ns, axes = self._ns, self._lowering.axes
        taps = tuple(axis.taps(r) for axis, r in zip(axes, phase, strict=True))
        mirrored = ns.xp.flip(kernels[(slice(None), *taps)], axis=tuple(range(1, 1 + len(axes))))
        pieces = [axis.wrapped(r, size) for axis, r, size in zip(axes, phase, self._sizes, strict=True)]
        real[...] = 0
        for corner in product(*pieces):
            places, parts = zip(*corner, strict=True)
            real[(slice(0, kernels.shape[0]), *places)] = mirrored[(slice(None), *parts)]

    def run(self, x: Array, weights: Any, bias: Array | None, out: Array) -> None:
        """Fill ``out``, as many examples at a time as the buffers hold."""
        ns, spec = self._ns, self._spec
        x = ns.reshape(x, (spec.batch, spec.groups, spec.in_channels // spec.groups, *spec.input_size))
        y = ns.reshape(out, (spec.batch, spec.groups, self._outputs, *spec.output_size))
        spread = None if bias is None else GroupedBias(ns, spec, bias).whole
        with self._scratch.borrow() as (forward, inverse):
            for first in range(0, spec.batch, self._images):
                images = slice(first, first + self._images)
                self._gather(x[images, ...], forward.real)
                forward.forward()
                self._multiply(forward.spectrum, weights, inverse.spectrum)
                inverse.inverse()
                self._scatter(inverse.real, spread, y[images, ...])

    def _plan_transforms(self) -> tuple[TransformPair, TransformPair]:
        make, dtype = self._ns.transforms.pair, self._spec.dtype
        forward = make((*self._lead, self._inputs), self._sizes, dtype, self._threads)
        if self._in_place:
            return forward, forward
        return forward, make((*self._lead, self._outputs), self._sizes, dtype, self._threads)

    def _gather(self, x: Array, real: Array) -> None:
        """Lay the components of every subgrid, zeros around them, into the transform's input."""
        axes = self._lowering.axes
        phases = self._lowering.phases
        for grid, subgrid in self._lowering.each_subgrid():
            rows = slice(grid, None, self._lowering.subgrids)
            for number, phase in self._lowering.each_phase():
                part = real[rows, :, number::phases, ...]
                pairs = list(zip(axes, phase, subgrid, strict=True))
                targets = tuple(axis.target(r, i) for axis, r, i in pairs)
                for axis, target in enumerate(targets):
                    before = (slice(None),) * (3 + axis)
                    part[(*before, slice(0, target.start), ...)] = 0
                    part[(*before, slice(target.stop, None), ...)] = 0
                source = x[(..., *(axis.source(r, i) for axis, r, i in pairs))]
                self._copy(part[(..., *targets)], source)

    def _scatter(self, real: Array, bias: Array | None, y: Array) -> None:
        """Interleave the subgrids' outputs."""
        axes = self._lowering.axes
        for grid, subgrid in self._lowering.each_subgrid():
            rows = slice(grid, None, self._lowering.subgrids)
            pairs = list(zip(axes, subgrid, strict=True))
            wanted = real[(rows, ..., *(slice(0, axis.position_count(i)) for axis, i in pairs))]
            positions = tuple(axis.positions(i) for axis, i in pairs)
            part = y[(..., *positions)]
            self._copy(part, wanted)
            if bias is not None:
                part += bias[(..., *positions)] if self._spec.bias == "location" else bias

    def _copy(self, target: Array, source: Array) -> None:
        """Assign, over all threads where it is worth it."""
        rows = target.shape[3]
        parts = self._threads if prod(target.shape) >= _WORTH_A_THREAD else 1
        edges = [rows * i // parts for i in range(parts + 1)]

        def copy(part: slice) -> None:
            target[:, :, :, part, ...] = source[:, :, :, part, ...]

        parallel(copy, [slice(a, b) for a, b in pairwise(edges)], self._threads)

    def _multiply(self, x: Array, weights: Array, y: Array) -> None:
        """Sum the products over the channels, a chunk of frequencies at a time."""
        ns = self._ns
        frequencies = prod(x.shape[3:])
        x = ns.reshape(x, (*x.shape[:3], frequencies))
        y = ns.reshape(y, (*y.shape[:3], frequencies))

        def by_sums(f: slice) -> None:
            if self._in_place:
                y[..., f] *= weights[:, :, 0, f]
                return
            part = y[..., f]
            scratch = ns.empty(part.shape, self._complex)
            part[...] = x[:, :, :1, f] * weights[:, :, 0, f]
            for c in range(1, self._inputs):
                ns.multiply_add(part, x[:, :, c : c + 1, f], weights[:, :, c, f], scratch)

        def by_gemm(f: slice) -> None:
            columns = ns.xp.permute_dims(x[..., f], (3, 1, 2, 0))  # (f, G, C', B)
            products = ns.xp.matmul(weights[f, ...], ns.xp.asarray(columns, copy=True))
            y[..., f] = ns.xp.permute_dims(products, (3, 1, 2, 0))

        chunks = [slice(start, min(start + self._chunk, frequencies)) for start in range(0, frequencies, self._chunk)]
        with ns.gemm_threads(1):
            parallel(by_gemm if self._by_gemm else by_sums, chunks, self._threads)

    @property
    def _by_gemm(self) -> bool:
        return self._inputs * self._outputs >= _MANY_PRODUCTS and self._inputs > 1

    @property
    def _chunk(self) -> int:
        lanes = self._lead[0] * self._lead[1] * max(self._inputs, self._outputs)
        return max(64, _CHUNK // max(1, lanes))

    @property
    def _complex(self) -> str:
        return complex_of(self._spec.dtype)

    def _count_workspace(self) -> int:
        spec = self._spec
        image = prod(self._sizes) * spec.itemsize + prod(spectrum_shape((), self._sizes)) * 2 * spec.itemsize
        pairs = self._inputs if self._in_place else self._inputs + self._outputs
        lead = prod(self._lead)
        chunk = min(self._chunk, prod(spectrum_shape((), self._sizes)))
        lanes = 0 if self._in_place else 2 * lead * (self._inputs + self._outputs)
        return lead * pairs * image + self._kernels * image + self._threads * lanes * chunk * 2 * spec.itemsize

    def _count_flops(self) -> int:
        """5/2·T·log₂T a real transform (FFTW's convention), 8 a complex multiply–add."""
        spec, points = self._spec, prod(self._sizes)
        lead = spec.batch * self._lowering.subgrids * spec.groups
        transforms = 2.5 * points * log2(points) * lead * (self._inputs + self._outputs)
        return round(transforms) + 8 * prod(spectrum_shape((), self._sizes)) * lead * self._inputs * self._outputs


def _largest_divisor(number: int, most: int) -> int:
    """Return the largest divisor of ``number`` that is at most ``most``, and at least 1."""
    return next((d for d in range(min(number, max(1, most)), 0, -1) if number % d == 0), 1)
