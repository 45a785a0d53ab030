"""Separable convolution on the GPU, two passes in one kernel: for sums of few products of 1-D kernels.

See ``kernels/separable.cu`` for how, :mod:`convbench.algorithms.lowrank` for the factors.
"""

from __future__ import annotations

from collections.abc import Callable
from math import prod
from typing import Any, NamedTuple

import numpy as np

from convbench.algorithms.blocking import flipped
from convbench.algorithms.lowrank import max_rank, pass_macs, tensor_train
from convbench.algorithms.separable import EPS, long_axes, rank_too_high, why_not_separable
from convbench.arrays import Array, Namespace
from convbench.cuda.forward import C_TYPES, Forward
from convbench.cuda.geometry import blocks, by_axes, permuted, three
from convbench.cuda.kernel import Kernel, Launch
from convbench.cuda.variants import Variant
from convbench.errors import UnsupportedWeights
from convbench.refusals import refuse
from convbench.spec import DTYPES, ConvSpec

__all__ = ["KERNELS", "VARIANTS", "Separable", "SeparableInSpace", "planned", "why_not"]

_LINES = 16  # that are copied and filtered at once
_EACH = 8  # outputs of a thread, and zeros before the first tap
_HALOS = 16, 32, 64, 112
_WIDTHS = {"float32": 128, "float64": 64}
_PROCESSORS, _PROCESSOR_THREADS, _PROCESSOR_BYTES = 128, 1024, 220 * 2**10  # of a large card, for choosing segments

#: ``struct Passes`` of the kernel.
_PASSES = np.dtype(
    [(name, "i4") for name in ("width", "strips", "rows", "segments", "pairs", "rank", "fan", "cycle", "skip")]
)


def _kernel(dtype: str, halo: int, plain: bool) -> Kernel:
    width, item = _WIDTHS[dtype], DTYPES[dtype]
    spare = 16 // item
    items = _LINES * (width + halo + spare) + (halo + _LINES) * (width + spare) + 2 * (halo + 16)
    shared = items * item + 4 * (width + halo)
    name = f"separable<{C_TYPES[dtype]}, {width}, {halo}, {str(plain).lower()}>"
    return Kernel("separable.cu", name, (2 * width, 1, 1), shared)


_INSTANCES = {
    (dtype, halo, plain): _kernel(dtype, halo, plain) for dtype in _WIDTHS for halo in _HALOS for plain in (True, False)
}

#: Every instance that may be launched.
KERNELS = tuple(_INSTANCES.values())


class Axis(NamedTuple):
    """One axis of a spec."""

    kernel: int
    stride: int
    dilation: int
    outputs: int

    @property
    def reach(self) -> int:
        """How far the kernel goes beyond its first sample."""
        return (self.kernel - 1) * self.dilation

    @property
    def plain(self) -> bool:
        """Do neighbouring outputs and taps read neighbouring samples?"""
        return self.stride == self.dilation == 1


def _axes(spec: ConvSpec) -> tuple[Axis, Axis, Axis]:
    """Return depth, rows and columns."""
    sizes = (three(sizes, 1) for sizes in (spec.kernel_size, spec.stride, spec.dilation, spec.output_size))
    depth, row, column = (Axis(*values) for values in zip(*sizes, strict=True))
    return depth, row, column


def _order(spec: ConvSpec) -> tuple[int, int, int]:
    """Return which axes a kernel of two passes takes for depth, rows and columns: its depth has one tap."""
    kernel = three(spec.kernel_size, 1)
    depth = next(axis for axis in range(3) if kernel[axis] == 1)
    row, column = (axis for axis in range(3) if axis != depth)
    return depth, row, column


def _halo(*axes: Axis) -> int | None:
    """Return what the kernel's instance has room for beyond the first sample; None if no instance has enough."""
    return next((halo for halo in _HALOS if halo >= max(axis.reach for axis in axes)), None)


def why_not(spec: ConvSpec) -> str | None:
    """Return the reason why a forward convolution cannot be done by these kernels, or None."""
    reason = why_not_separable(spec)
    if reason:
        return reason
    axes = _axes(spec)
    if _halo(*axes) is None:
        most = f"at most {_HALOS[-1]} is done: lines lie in shared memory"
        return refuse("kernel size", f"(taps - 1) * dilation = {max(axis.reach for axis in axes)}, {most}")
    images = spec.batch * spec.out_channels * prod(spec.output_size)
    if len(long_axes(spec)) == 3:  # an image for each pair of channels, as deep as the input, for each rank
        ranks = max_rank(spec.kernel_size) * spec.in_channels // spec.groups
        images = images // spec.output_size[0] * spec.input_size[0] * ranks
    if max(prod(spec.input_shape), images) >= 2**31:
        return refuse("memory", f"{prod(spec.input_shape):.3g} samples, {images:.3g} results: less than 2^31 are done")
    return None


class TwoPasses:
    """A kernel of two passes made ready: along rows and columns, over so many planes.

    Attributes
    ----------
    taps_items : int
        Of the padded taps of one pair.
    """

    def __init__(self, load: Callable[[Kernel], Launch], dtype: str, row: Axis, column: Axis, planes: int) -> None:
        halo = _halo(row, column)
        assert halo is not None
        self._row, self._column, self._dtype, self._planes = row, column, dtype, planes
        kernel = _INSTANCES[dtype, halo, row.plain and column.plain]
        self._launch = load(kernel)
        samples = _WIDTHS[dtype] + halo  # of a line
        self._width = min(_WIDTHS[dtype], (samples - column.reach - 1) // column.stride + 1)
        self._strips = blocks(column.outputs, self._width)
        self._rows = self._rows_of_segment(kernel)
        self._segments = blocks(row.outputs, self._rows)
        self._taps = halo + 2 * _EACH
        self.taps_items = 2 * self._taps

    def _rows_of_segment(self, kernel: Kernel) -> int:
        """Return how many rows a block should go down: many filter few lines twice, few give all processors work.

        Time is counted in lines that are filtered one block after the other, and half a round is lost at the end.
        """
        together = min(_PROCESSOR_THREADS // kernel.threads, _PROCESSOR_BYTES // kernel.shared_bytes) * _PROCESSORS

        def cost(rows: int) -> float:
            filtered = blocks(rows * self._row.stride, _LINES) + blocks(self._row.reach, _LINES)
            rounds = self._planes * self._strips * blocks(self._row.outputs, rows) / together
            return filtered * (max(1.0, rounds) + 0.5)

        steps = blocks(self._row.outputs, _LINES)
        choices = {blocks(steps, segments) * _LINES for segments in range(1, steps + 1)}
        return min(choices, key=lambda rows: (cost(rows), -rows), default=_LINES)

    @property
    def flops(self) -> int:
        """Of one pair: multiply and add in both passes; a segment filters lines that the one above it filters, too."""
        row, column = self._row, self._column
        lines = (row.outputs - self._segments) * row.stride + self._segments * (row.reach + 1)
        return self._planes * 2 * column.outputs * (column.kernel * lines + row.kernel * row.outputs)

    def packed(self, ns: Namespace, down: Any, across: Any) -> Array:
        """Return the taps of (outputs, pairs, taps along rows or columns) as the kernel takes them, on the device."""
        taps = np.zeros((*down.shape[:2], 2, self._taps), self._dtype)
        taps[:, :, 0, _EACH : _EACH + self._column.kernel] = across
        taps[:, :, 1, _EACH : _EACH + self._row.kernel] = down
        return ns.from_host(taps)

    def passes(self, pairs: int, rank: int, fan: int = 1, cycle: int = 1, skip: int = 0) -> Any:
        """Return ``struct Passes``."""
        cut = self._width, self._strips, self._rows, self._segments
        return np.array([(*cut, pairs, rank, fan, cycle, skip)], _PASSES)

    def launch(self, *arguments: Any) -> None:
        """Launch it on x, taps, bias, y, ``struct Conv`` and ``struct Passes``."""
        self._launch((self._strips * self._segments * self._planes, 1, 1), arguments)


class _Factored(Forward):
    """What both forms share: factors, worked out on the host when weights are prepared."""

    def __init__(self, ns: Namespace, spec: ConvSpec, threads: int) -> None:
        super().__init__(ns, spec, threads)
        self._channels = spec.in_channels // spec.groups
        self._sizes = tuple(spec.kernel_size[axis] for axis in long_axes(spec))
        self._most_rank = max_rank(self._sizes)

    def _cores(self, w: Array) -> list[Any]:
        """Return for each axis the cores of all kernels, (O·C/g, rank before, taps, rank after), padded with zeros.

        Raises
        ------
        UnsupportedWeights
            If the rank of a kernel is too high to gain.
        """
        kernels = self._ns.to_host(flipped(self._ns, self._spec, w)).reshape(-1, *self._sizes)
        if not np.isfinite(kernels).all():
            raise UnsupportedWeights(refuse("weights", "NaN or infinity among them: they have no rank"))
        trains = [tensor_train(kernel, EPS[self._spec.dtype]) for kernel in kernels]
        for train in trains:
            ranks = tuple(core.shape[2] for core in train[:-1])
            if max(ranks) > self._most_rank or pass_macs(self._sizes, ranks) >= prod(self._sizes):
                raise UnsupportedWeights(rank_too_high(self._sizes, ranks, self._most_rank))
        padded = []
        for cores in zip(*trains, strict=True):
            shape = [max(core.shape[axis] for core in cores) for axis in range(3)]
            padded.append(np.zeros((len(cores), *shape)))
            for place, core in zip(padded[-1], cores, strict=True):
                place[: core.shape[0], :, : core.shape[2]] = core
        return padded


class Separable(_Factored):
    """Two passes, any stride, dilation, groups and boundary, for weights of low rank: each pair of channels by itself.

    O(N·O·C/g·∏P·r·ΣK) work and no workspace.
    """

    def __init__(self, ns: Namespace, spec: ConvSpec, threads: int) -> None:
        super().__init__(ns, spec, threads)
        self._order, axes = _order(spec), _axes(spec)
        depth, row, column = (axes[axis] for axis in self._order)
        planes = spec.batch * spec.out_channels * depth.outputs
        self._two = TwoPasses(self._loaded, spec.dtype, row, column, planes)
        self.prepared_bytes = spec.out_channels * self._channels * self._two.taps_items * spec.itemsize
        self.flops = self._channels * self._two.flops

    def prepare(self, w: Array) -> tuple[Any, int | None]:
        """Factor every (o, c) kernel; raise UnsupportedWeights where the rank is too high to gain."""
        down, across = self._cores(w)
        rank, outputs = down.shape[3], self._spec.out_channels
        down = down[:, 0].swapaxes(1, 2).reshape(outputs, -1, down.shape[2])
        across = across[..., 0].reshape(outputs, -1, across.shape[2])
        pairs = self._channels * rank
        return (self._two.packed(self._ns, down, across), self._two.passes(pairs, rank)), rank * self.flops

    def _launch(self, x: Array, weights: Any, bias: Array | None, y: Array, conv: Any) -> None:
        taps, passes = weights
        self._two.launch(x, taps, bias, y, permuted(conv, self._order), passes)


class SeparableInSpace(_Factored):
    """Passes along three axes: along rows and columns of every plane of the input, then along the depth.

    Workspace: planes that are filtered along two axes, for each pair of channels and, at most, the rank that gains.
    """

    def __init__(self, ns: Namespace, spec: ConvSpec, threads: int) -> None:
        super().__init__(ns, spec, threads)
        depth, row, column = _axes(spec)
        self._pairs, self._depth = spec.batch * spec.out_channels * self._channels, spec.input_size[0]
        self._plane = spec.output_size[1:]
        self._deep = TwoPasses(
            self._loaded, spec.dtype, depth, Axis(1, 1, 1, column.outputs), spec.batch * spec.out_channels * row.outputs
        )
        self._flat = {
            rank: TwoPasses(self._loaded, spec.dtype, row, column, self._pairs * rank * self._depth)
            for rank in range(1, self._most_rank + 1)
        }
        self.workspace_bytes = self._pairs * self._most_rank * self._depth * prod(self._plane) * spec.itemsize
        items = self._flat[1].taps_items + self._deep.taps_items
        self.prepared_bytes = spec.out_channels * self._channels * items * spec.itemsize
        self.flops = self._flat[1].flops + self._channels * self._deep.flops

    def prepare(self, w: Array) -> tuple[Any, int | None]:
        """Factor every (o, c) kernel; raise UnsupportedWeights where the ranks are too high to gain."""
        deep, down, across = self._cores(w)
        (kernels, _, taps, a), b = deep.shape, across.shape[1]
        flat, outputs = self._flat[a], self._spec.out_channels
        down = down.transpose(0, 1, 3, 2).reshape(kernels * a, b, -1)
        across = np.repeat(across[..., 0], a, axis=0)
        deep = deep[:, 0].swapaxes(1, 2).reshape(outputs, self._channels * a, taps)
        flat_taps = flat.packed(self._ns, down, across)
        deep_taps = self._deep.packed(self._ns, deep, np.ones((*deep.shape[:2], 1)))
        flops = b * flat.flops + self._channels * a * self._deep.flops
        return (a, b, flat_taps, deep_taps), flops

    def _launch(self, x: Array, weights: Any, bias: Array | None, y: Array, conv: Any) -> None:
        a, b, flat_taps, deep_taps = weights
        spec, flat, channels = self._spec, self._flat[a], self._channels
        outputs = spec.out_channels // spec.groups
        planes = self._ns.empty(
            (spec.batch, spec.groups, outputs * channels * a, self._depth, *self._plane), spec.dtype
        )
        first, second = conv.copy(), conv.copy()
        for name, plain in (("kernel", 1), ("stride", 1), ("dilation", 1), ("before", 0)):
            first[name][0, 0] = second[name][0, 1:] = plain
        first["outputs"], first["result"][0, 0], first["y"] = outputs * channels * a, self._depth, by_axes(planes, 3)
        second["size"][0, 1:], second["x"] = self._plane, by_axes(planes, 3)
        flat.launch(x, flat_taps, None, planes, first, flat.passes(b, b, a, channels, 1))
        pairs = channels * a
        passes = self._deep.passes(pairs, 1, 1, outputs, pairs)
        self._deep.launch(planes, deep_taps, bias, y, permuted(second, (1, 0, 2)), passes)


def planned(ns: Namespace, spec: ConvSpec, threads: int) -> Separable | SeparableInSpace:
    """Plan passes along as many axes as the kernel has several taps."""
    return (SeparableInSpace if len(long_axes(spec)) == 3 else Separable)(ns, spec, threads)


#: Cases that launch each of them: the instance for the shorter halo does not hold so many taps.
VARIANTS = tuple(
    Variant((kernel,), f"c2 o2 i20x24 k3x{halo - 1} {'psame' if plain else 's2x1 p1x60'} bias=channel {dtype}")
    for (dtype, halo, plain), kernel in _INSTANCES.items()
)
