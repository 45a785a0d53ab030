"""Convolution by the convolution theorem: transform, multiply, transform back.

y = F⁻¹( Σ_c X̂_c · Ŵ_oc ), with the mirrored kernel for cross-correlation. Its spectrum is prepared once, with 1/T
and the shift that the padding asks for folded in. Strides and dilations are lowered first (:mod:`~.lowering`), so no
output is computed to be thrown away, and padding costs transform length only beyond max(a, b). A circular boundary
costs none where the input's length is one that transforms well.

Of y = S F⁻¹ Ŵ F L x, where L lays out the input's components and S takes the outputs, the input gradient is the
adjoint, Lᵀ F⁻¹ Ŵᴴ F Sᵀ g, step by step: the same transforms and spectra, whatever the stride, dilation and boundary.
The weight gradient, F⁻¹ Σ_n Ĝ · X̂ᴴ, is a forward operation with images and channels swapped (:mod:`~.rewriting`),
which transforms x and g once and each kernel back once; there is no doing with less.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cached_property
from itertools import product
from math import prod
from typing import Any

from convbench.algorithms.blocking import GroupedBias, ScratchPool, flipped
from convbench.algorithms.lowering import Lowering, Reading
from convbench.algorithms.tiling import boxes, filled
from convbench.arrays import Array, Namespace
from convbench.spec import DTYPES, ConvSpec
from convbench.threads import parallel, shares
from convbench.transforms import (
    TransformPair,
    complex_of,
    is_complex,
    pair_bytes,
    spectrum_shape,
    transform_flops,
)

__all__ = ["WholeFFT", "does_itself", "transform_sizes"]

_CHUNK = 2**14  # frequencies that are multiplied at a time: operands stay in the L2 cache
_MANY_PRODUCTS = 16  # channels × outputs from which a GEMM a frequency beats sums of whole spectra
_IMAGES_BYTES = 64 * 2**20  # transforms of several examples at once, up to so much memory
_WORTH_A_THREAD = 2**17  # elements
_KERNELS_BYTES = 2**22  # kernels transformed at once


def does_itself(spec: ConvSpec) -> bool:
    """Tell what need not be rewritten: shared weights, forward or the input gradient."""
    return spec.tile is None and spec.op != "weight_grad"


def transform_sizes(spec: ConvSpec, good_size: Callable[[int], int]) -> tuple[int, ...]:
    """Return the transform's length along each axis: the next good one, even along the last of real data.

    Where the boundary is circular it is the input's own, if that is a good one.
    """

    def good(size: int, even: bool) -> int:
        return 2 * good_size(-(-size // 2)) if even else good_size(size)

    sizes = []
    for number, axis in enumerate(Lowering(spec).axes, start=1):
        even = number == spec.ndim and not is_complex(spec.dtype)
        free = axis.cycle is not None and good(axis.cycle, even) == axis.cycle
        sizes.append(axis.cycle if axis.cycle is not None and free else good(axis.period, even))
    return tuple(sizes)


class WholeFFT:
    """One transform of the whole (padded) input: forward and input gradient, any stride, dilation, groups, boundary.

    O(T log T · (C + O) + T · C · O) for T points; workspace: samples and spectra of inputs and outputs. A NaN or
    infinity spoils its whole example; sums of T values must stay in the dtype's range, and values far below
    eps·‖x‖‖w‖ are lost.
    """

    def __init__(self, ns: Namespace, spec: ConvSpec, threads: int) -> None:
        self._ns, self._spec, self._threads = ns, spec, threads
        self._lowering = Lowering(spec)
        self._sizes = transform_sizes(spec, ns.transforms.good_size)
        self._frequencies = prod(spectrum_shape((), self._sizes, spec.dtype))
        self._adjoint = spec.op == "input_grad"
        channels, outputs = spec.in_channels // spec.groups, spec.out_channels // spec.groups
        self._kernel_shape = (spec.groups, outputs, channels, self._lowering.phases)
        lanes = channels * self._lowering.phases, outputs
        self._inputs, self._outputs = reversed(lanes) if self._adjoint else lanes
        self._pair_bytes = pair_bytes(self._sizes, spec.dtype)
        one_image = self._lowering.subgrids * spec.groups * max(lanes) * self._pair_bytes
        self._images = _largest_divisor(spec.batch, _IMAGES_BYTES // one_image)
        self._lead = (self._images * self._lowering.subgrids, spec.groups)
        self._in_place = self._inputs == self._outputs == 1
        self._scratch = ScratchPool(self._plan_transforms)
        self._kernels = filled(self._kernel_shape[:3], _KERNELS_BYTES // self._pair_bytes)
        self._kernel_scratch = ScratchPool(lambda: ns.transforms.pair(self._kernels, self._sizes, spec.dtype, threads))
        with self._scratch.borrow(), self._kernel_scratch.borrow():
            pass  # planned now, so that planning is timed as planning
        self.workspace_bytes = self._count_workspace()
        self.prepared_bytes = prod(self._kernel_shape) * self._frequencies * DTYPES[self._complex]
        self.flops = self._count_flops()

    def prepare(self, w: Array) -> tuple[Any, None]:
        """Return the mirrored kernel's spectrum over T, conjugated for the gradient.

        Shape (G, outputs, inputs, frequencies), or (frequencies, G, outputs, inputs), of the operation in hand.
        """
        ns, spec = self._ns, self._spec
        w = flipped(ns, spec, w)
        prepared, spectra = self._new_spectra()
        with self._kernel_scratch.borrow() as pair:
            for box in boxes(w.shape[:3], self._kernels):
                inside = tuple(slice(0, part.stop - part.start) for part in box)
                for number, phase in self._lowering.each_phase():
                    self._place(w[(*box, ...)], phase, pair.samples)
                    pair.forward()
                    pair.spectrum *= 1 / prod(self._sizes)
                    found = ns.reshape(pair.spectrum, (*self._kernels, self._frequencies))[(*inside, ...)]
                    spectra[(*box, number, slice(None))] = ns.xp.conj(found) if self._adjoint else found
        return prepared, None

    def _new_spectra(self) -> tuple[Array, Array]:
        """Return memory for prepared weights as the products want it, and the same as (G, O/g, C/g, phase, f)."""
        ns = self._ns
        order = [0, 2, 3, 1] if self._adjoint else [0, 1, 2, 3]
        order = [4, *order] if self._by_gemm else [*order, 4]
        extents = (*self._kernel_shape, self._frequencies)
        memory = ns.empty([extents[axis] for axis in order], self._complex)
        lanes = (self._spec.groups, self._outputs, self._inputs)
        shape = (self._frequencies, *lanes) if self._by_gemm else (*lanes, self._frequencies)
        return ns.reshape(memory, shape), ns.xp.permute_dims(memory, tuple(order.index(axis) for axis in range(5)))

    def _place(self, kernels: Array, phase: tuple[int, ...], samples: Array) -> None:
        """Lay a component's taps (g, o, c, *K), mirrored, round the circle of each transform."""
        ns, axes = self._ns, self._lowering.axes
        taps = tuple(axis.taps(r) for axis, r in zip(axes, phase, strict=True))
        mirrored = ns.xp.flip(kernels[(..., *taps)], axis=tuple(range(3, 3 + len(axes))))
        pieces = [axis.wrapped(r, size) for axis, r, size in zip(axes, phase, self._sizes, strict=True)]
        inside = tuple(slice(0, extent) for extent in kernels.shape[:3])
        samples[...] = 0
        for corner in product(*pieces):
            places, parts = zip(*corner, strict=True)
            samples[(*inside, *places)] = mirrored[(..., *parts)]

    def run(self, first: Array, second: Any, bias: Array | None, out: Array) -> None:
        """Fill ``out``, as many examples at a time as the buffers hold."""
        offsets = None if bias is None else GroupedBias(self._ns, self._spec, bias)
        lay, take = (self._lay_outputs, self._add_inputs) if self._adjoint else (self._lay_inputs, self._take_outputs)
        with self._scratch.borrow() as (there, back):
            for start in range(0, self._spec.batch, self._images):
                images = slice(start, start + self._images)
                lay(first[images, ...], there.samples)
                there.forward()
                self._multiply(there.spectrum, second, back.spectrum)
                back.inverse()
                take(back.samples, out[images, ...])
                if offsets is not None:
                    offsets.add(out[images, ...])

    def _plan_transforms(self) -> tuple[TransformPair, TransformPair]:
        make, dtype = self._ns.transforms.pair, self._spec.dtype
        there = make((*self._lead, self._inputs), self._sizes, dtype, self._threads)
        if self._in_place:
            return there, there
        return there, make((*self._lead, self._outputs), self._sizes, dtype, self._threads)

    # -- L and S, and their adjoints --------------------------------------------------------------------------

    def _lay_inputs(self, x: Array, samples: Array) -> None:
        """Lay the components of every subgrid, as the boundary continues them, into the transform's input."""
        for index, readings in self._components:
            part = samples[(*index, ...)]
            self._clear(part, [slice(r[0].place.start, r[-1].place.stop) if r else slice(0, 0) for r in readings])
            for corner in product(*readings):
                target = part[(..., *(reading.place for reading in corner))]
                source = x[(..., *(reading.source for reading in corner))]
                if any(reading.repeated for reading in corner):
                    source = self._ns.xp.broadcast_to(source, target.shape)
                self._by_rows(self._ns.assign, target, source)

    def _add_inputs(self, samples: Array, x: Array) -> None:
        """Add up what each input sample was read as: circles wrap, reflections fold back, edges collect."""
        ns = self._ns
        x[...] = 0
        for index, readings in self._components:
            part = samples[(*index, ...)]
            for corner in product(*readings):
                source = part[(..., *(reading.place for reading in corner))]
                summed = tuple(axis for axis, reading in enumerate(corner, start=3) if reading.repeated)
                if summed:
                    source = ns.xp.sum(source, axis=summed, keepdims=True)
                target = x[(..., *(reading.source for reading in corner))]
                self._by_rows(lambda to, added: ns.add(to, added, to), target, source)

    def _take_outputs(self, samples: Array, y: Array) -> None:
        """Interleave the subgrids' outputs."""
        for rows, positions, counts in self._subgrids:
            self._by_rows(self._ns.assign, y[(..., *positions)], samples[(rows, ..., *counts)])

    def _lay_outputs(self, g: Array, samples: Array) -> None:
        """Lay out the subgrids of g, zeros behind them."""
        for rows, positions, counts in self._subgrids:
            part = samples[rows, ...]
            self._clear(part, counts)
            self._by_rows(self._ns.assign, part[(..., *counts)], g[(..., *positions)])

    @cached_property
    def _components(self) -> list[tuple[tuple[slice, ...], list[list[Reading]]]]:
        """Every component on every subgrid: where it lies in a transform's batch, and what it reads along each axis."""
        lowering = self._lowering
        found: list[tuple[tuple[slice, ...], list[list[Reading]]]] = []
        for (grid, subgrid), (number, phase) in product(lowering.each_subgrid(), lowering.each_phase()):
            index = slice(grid, None, lowering.subgrids), slice(None), slice(number, None, lowering.phases)
            axes = zip(lowering.axes, phase, subgrid, self._sizes, strict=True)
            found.append((index, [axis.readings(r, i, size) for axis, r, i, size in axes]))
        return found

    @cached_property
    def _subgrids(self) -> list[tuple[slice, list[slice], list[slice]]]:
        """Every subgrid: its part of a transform's batch, its outputs, and where they lie in the samples."""
        lowering, found = self._lowering, []
        for grid, subgrid in lowering.each_subgrid():
            axes = list(zip(lowering.axes, subgrid, strict=True))
            counts = [slice(0, axis.position_count(i)) for axis, i in axes]
            found.append((slice(grid, None, lowering.subgrids), [axis.positions(i) for axis, i in axes], counts))
        return found

    def _clear(self, samples: Array, filled: Sequence[slice]) -> None:
        """Zero what lies beside the range that is filled along each axis."""
        for axis, part in enumerate(filled, start=3):
            before = (slice(None),) * axis
            samples[(*before, slice(0, part.start), ...)] = 0
            samples[(*before, slice(part.stop, None), ...)] = 0

    def _by_rows(self, assign: Callable[[Array, Array], None], target: Array, source: Array) -> None:
        """Assign, over all threads where it is worth it."""
        rows = target.shape[3]
        parts = self._threads if prod(target.shape) >= _WORTH_A_THREAD else 1

        def run(part: slice) -> None:
            assign(target[:, :, :, part, ...], source[:, :, :, part, ...])

        parallel(run, shares(rows, parts), self._threads)

    # -- products ---------------------------------------------------------------------------------------------

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
        lead = prod(self._lead)
        pairs = lead * (self._inputs if self._in_place else self._inputs + self._outputs) + prod(self._kernels)
        chunk = min(self._chunk, self._frequencies) * DTYPES[self._complex]
        products = 0 if self._in_place else 2 * lead * (self._inputs + self._outputs)
        return pairs * self._pair_bytes + self._threads * products * chunk + self._folded_bytes

    @property
    def _folded_bytes(self) -> int:
        """Bytes of sums over samples that one input sample was repeated as."""
        spec = self._spec
        if not self._adjoint or spec.boundary == "zero":
            return 0
        samples = prod(spec.input_size) // min(spec.input_size)
        return self._images * spec.in_channels * samples * spec.itemsize

    def _count_flops(self) -> int:
        """8 a complex multiply–add."""
        lead = self._spec.batch * self._lowering.subgrids * self._spec.groups
        transforms = transform_flops(prod(self._sizes), self._spec.dtype) * (self._inputs + self._outputs)
        return round(lead * (transforms + 8 * self._frequencies * self._inputs * self._outputs))


def _largest_divisor(number: int, most: int) -> int:
    """Return the largest divisor of ``number`` that is at most ``most``, and at least 1."""
    return next((d for d in range(min(number, max(1, most)), 0, -1) if number % d == 0), 1)
