"""Direct convolution of each channel on its own by the kernels of :mod:`convbench.jit.channels_direct`."""

from __future__ import annotations

from itertools import product
from math import prod
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from convbench.algorithms.axes import Axis, in_items, spec_axes
from convbench.algorithms.blocking import GroupedBias, ScratchPool, flipped
from convbench.arrays import Namespace
from convbench.jit import channels_direct, pool
from convbench.jit.channels_direct import Order, Variant
from convbench.jit.compile import Kernel
from convbench.jit.memory import address_of, aligned, keep
from convbench.jit.target import host_target
from convbench.spec import ConvSpec

__all__ = ["DirectChannels", "suits"]

Array = NDArray[Any]

_JOBS_A_THREAD = 8  # at least, where there is so much to share out
_WORTH_A_JOB = 2**16  # multiply–adds below which nothing is split further
_ADDRESSES = 5  # arguments that every call has anew, the first ones
_MOST_COLUMNS = 14  # whatever vectors hold: sums of one row in registers
_MOST_VECTORS = 1.4  # of columns, where vectors are long: beyond, they are filled well enough by neighbours
_MOST_TERMS = 400  # multiply–adds of a row by a row, which are written out
_SCRATCH_BYTES = 2**16  # a sixteenth of an L2 cache: bands lower than that read too many rows twice
_LEAST_SCRATCH_BYTES = 2**13
_WORKSPACE_SHARE = 0.15  # of the operands, for the scratch of all threads


def suits(spec: ConvSpec) -> bool:
    """Tell whether each channel is convolved on its own, and its rows are too short for vectors of neighbours.

    >>> [suits(ConvSpec.parse(f"c64 o64 i{i}x{i} k3 p1 g64 f32")) for i in (7, 56)]
    [True, False]
    """
    lanes = host_target().lanes(spec.dtype)
    inputs, outputs = spec.input_size[-1], spec.output_size[-1]
    narrow = max(inputs, outputs) <= max(_MOST_COLUMNS, _MOST_VECTORS * lanes)
    return (
        spec.in_channels == spec.out_channels == spec.groups >= lanes
        and (narrow or spec.layout == "channels_last")
        and outputs * min(spec.kernel_size[-1], inputs) <= _MOST_TERMS
    )


class _Weights(NamedTuple):
    """Packed weights; products with padding are left out if all of them are finite."""

    packed: Array
    finite: bool


class _Meetings(NamedTuple):
    """Rows of taps that meet rows of input: for each row of outputs its first, and of each where the two begin."""

    starts: NDArray[np.int64]
    places: NDArray[np.int64]


class _Call(NamedTuple):
    kernel: Kernel
    arguments: tuple[int, ...]
    jobs: int
    alive: tuple[Any, ...]  # tables that arguments are addresses of


class DirectChannels:
    """Direct convolution, forward, of 1 to 3 axes and at least as many channels as lanes, each on its own.

    O(MACs) work, padding not counted; workspace: for each thread a vector for each sample and output of a band of rows.
    """

    def __init__(self, ns: Namespace, spec: ConvSpec, threads: int) -> None:
        self._ns, self._spec, self._threads = ns, spec, threads
        self._target = host_target()
        self._lanes = lanes = self._target.lanes(spec.dtype)
        if not spec.in_channels == spec.out_channels == spec.groups >= lanes:  # else kernels would leave the arrays
            raise ValueError(f"{spec}: must have a channel a group and {lanes} groups at least")
        self._axes = spec_axes(spec)
        self._blocks = -(-spec.groups // lanes)
        self._taps = prod(spec.kernel_size)
        self._reads = tuple(map(tuple, _reads(self._axes[2]).tolist()))
        self._meetings = self._found_meetings(skips=True)
        self._limits = self._bands()
        samples, rows = np.diff(self._limits, axis=2).max(axis=0).ravel().tolist()
        self._zeros = _squares(samples, lanes)
        self._results = self._zeros + self._axes[2].size * lanes
        self._scratch_items = self._results + _squares(rows * len(self._reads), lanes)
        self._no_bias = np.zeros(spec.out_channels, spec.dtype)
        self._scratch = ScratchPool(lambda: aligned(self._scratch_items * threads, spec.dtype))
        self._calls: dict[Any, _Call] = {}
        self.prepared_bytes = self._blocks * lanes * self._taps * spec.itemsize
        places = 8 * (prod(spec.input_size) + prod(spec.output_size))
        tables = sum(table.nbytes for table in (*self._meetings, self._limits)) + places
        self.workspace_bytes = (self._scratch_items * threads + spec.out_channels) * spec.itemsize + tables
        terms = len(self._meetings.places) * sum(column >= 0 for reads in self._reads for column in reads)
        self.flops = 2 * spec.batch * spec.out_channels * terms

    def prepare(self, w: Array) -> tuple[_Weights, None]:
        """Pack the weights: (block of channels, tap, channel); the last block reaches back."""
        spec, lanes = self._spec, self._lanes
        given = flipped(self._ns, spec, w).reshape(spec.groups, self._taps)
        packed = aligned((self._blocks, self._taps, lanes), spec.dtype)
        whole = spec.groups // lanes
        packed[:whole] = given[: whole * lanes].reshape(whole, lanes, self._taps).swapaxes(1, 2)
        packed[-1] = given[-lanes:].T
        return _Weights(packed, bool(np.isfinite(packed).all())), None

    def run(self, first: Array, second: _Weights, bias: Array | None, out: Array) -> None:
        """Fill ``out``."""
        fused = bias is not None and self._spec.bias == "channel"
        key = first.strides, out.strides, second.finite
        call = self._calls.get(key) or keep(self._calls, key, self._made_call(*key))
        added = np.ascontiguousarray(bias) if fused else self._no_bias
        with self._scratch.borrow() as scratch:
            addresses = map(address_of, (first, out, second.packed, added, scratch))
            pool.run(call.kernel, (*addresses, *call.arguments), call.jobs, self._threads)
        if bias is not None and not fused:
            GroupedBias(self._ns, self._spec, bias).add(out)

    # -- plan -------------------------------------------------------------------------------------------------

    def _made_call(self, x_bytes: tuple[int, ...], y_bytes: tuple[int, ...], skips: bool) -> _Call:
        """Return what is done for arrays of these strides."""
        spec = self._spec
        x, y = (in_items(strides, spec) for strides in (x_bytes, y_bytes))
        x_places = _places(x, [axis.size for axis in self._axes])
        y_places = _places(y, [axis.outputs for axis in self._axes])
        meetings = self._meetings if skips else self._found_meetings(skips=False)
        variant = Variant(
            dtype=spec.dtype,
            reads=self._reads,
            size=self._axes[2].size,
            skips=skips,
            x_order=_order(x, x_places),
            y_order=_order(y, y_places),
        )
        bands = len(self._limits)
        units = spec.batch * self._blocks * bands
        wanted = min(_JOBS_A_THREAD * self._threads, max(1, spec.macs // _WORTH_A_JOB)) if self._threads > 1 else 1
        units_a_job = max(1, -(-units // wanted))
        values = {
            "x_image": x[0], "x_channel": x[1], "y_image": y[0], "y_channel": y[1],
            "x_places": address_of(x_places), "y_places": address_of(y_places),
            "units": units, "units_a_job": units_a_job, "channels": spec.groups, "blocks": self._blocks,
            "taps": self._taps, "bands": bands, "limits": address_of(self._limits),
            "starts": address_of(meetings.starts), "meetings": address_of(meetings.places),
            "zeros": self._zeros, "results": self._results, "scratch_items": self._scratch_items,
        }  # fmt: skip
        arguments = tuple(values[name] for name in channels_direct.ARGUMENTS[_ADDRESSES:])
        code = channels_direct.kernel(variant, self._target)
        return _Call(code, arguments, -(-units // units_a_job), (x_places, y_places, meetings))

    def _found_meetings(self, skips: bool) -> _Meetings:
        """Return for each row of outputs, in all slices of depth, which rows its taps meet; of zeros unless skipped."""
        depth, rows, columns = self._axes
        starts, places = [0], []
        for slices, lines in product(_reads(depth).tolist(), _reads(rows).tolist()):
            for tap, (plane, line) in enumerate(product(slices, lines)):
                inside = plane >= 0 and line >= 0
                if inside or not skips:
                    begin = (plane * rows.size + line) * columns.size * self._lanes if inside else -1
                    places.append((begin, tap * columns.taps * self._lanes))
            starts.append(len(places))
        return _Meetings(np.array(starts, np.int64), np.array(places, np.int64).reshape(-1, 2))

    def _bands(self) -> NDArray[np.int64]:
        """Return for each band of rows its first sample and the end of them, then its first row and the end of these.

        Bands are as high as their scratch may be.
        """
        starts, places = self._meetings
        count, row, lanes = len(starts) - 1, self._axes[2].size, self._lanes
        operands = prod(self._spec.input_shape) + prod(self._spec.output_shape) + prod(self._spec.weight_shape)
        share = int(_WORKSPACE_SHARE * operands) // self._threads
        most = max(_LEAST_SCRATCH_BYTES, min(_SCRATCH_BYTES, share * self._spec.itemsize)) // self._spec.itemsize

        def limits(first: int, last: int) -> tuple[tuple[int, int], tuple[int, int]]:
            read = places[starts[first] : starts[last], 0] // lanes
            samples = (int(read.min()), int(read.max()) + row) if len(read) else (0, 0)
            return samples, (first, last)

        def items(samples: tuple[int, int], rows: tuple[int, int]) -> int:
            positions = (rows[1] - rows[0]) * len(self._reads) + samples[1] - samples[0] + row
            return positions * lanes

        height = count
        while True:
            bands = [limits(first, min(first + height, count)) for first in range(0, count, height)]
            if height == 1 or max(items(*band) for band in bands) <= most:
                return np.array(bands, np.int64)
            height = -(-height // 2)


def _squares(count: int, lanes: int) -> int:
    """Return the items of so many vectors, filled up to whole squares."""
    return -(-count // lanes) * lanes**2


def _reads(axis: Axis) -> NDArray[np.int64]:
    """Return for each output and tap of an axis the index of the sample that it reads, or −1 for zero."""
    positions = axis.stride * np.arange(axis.outputs)[:, None] + axis.dilation * np.arange(axis.taps)
    return np.take(axis.sources.table, positions)


def _places(strides: tuple[int, ...], sizes: list[int]) -> NDArray[np.int64]:
    """Return where each position of a channel lies, in items."""
    steps = np.array(strides[3:], np.int64)
    return np.ascontiguousarray(np.tensordot(steps, np.indices(sizes, np.int64), 1).ravel())


def _order(strides: tuple[int, ...], places: NDArray[np.int64]) -> Order:
    if (places == np.arange(len(places))).all():
        return "planes"
    return "channels" if strides[1] == 1 else "any"
