"""Direct convolution of each channel on its own: lanes are channels, for images too narrow to fill vectors by columns.

    for each unit of the job (image, block of ``lanes`` channels, band of rows):
        turn the samples beneath the band so that their channels are neighbours: one vector a sample
        for each output row of the band:
            for each piece of it:                                       outputs of a row: as many sums in registers
                for each row of taps that meets a row of input:
                    sums[p] += weights[k] · samples[column that p reads by k]          for all p and k, written out
            store the sums
        turn them back

Rows are those of all slices of depth, one after the other. Nothing is padded. Which rows of taps meet which rows of
input is said by a table, an output row at a time; which columns meet is known when the code is written, so that every
boundary, stride and dilation is nothing but another list of multiply–adds. Each operand is a whole vector on a cache
line of its own: no multiply–add waits for a shuffle, and none is spent on padding. The two turns cost about 8
multiply–adds a sample and an output; where channels are neighbours in memory there are none.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import Literal

from convbench.jit.compile import Kernel, compiled
from convbench.jit.ir import Code, Value, Variable
from convbench.jit.target import Target

__all__ = ["ARGUMENTS", "Order", "Variant", "kernel"]

ARGUMENTS = (
    *("x", "y", "weights", "bias", "scratch"),  # addresses
    *("x_image", "x_channel", "y_image", "y_channel"),  # strides in items
    *("x_places", "y_places"),  # tables: where samples and outputs of a channel lie
    *("units", "units_a_job", "channels", "blocks", "taps"),
    *("bands", "limits"),  # a table: of each band the first sample and the end of them, and so for rows of outputs
    *(
        "starts",
        "meetings",
    ),  # tables: for each output row its first meeting; of each, where samples weights begin, −1 for zeros
    *("zeros", "results", "scratch_items"),  # where scratch, which holds whole squares, has a row of zeros, and outputs
)

#: How a channel's samples lie: all of them one after the other; those of neighbouring channels; or anyhow.
Order = Literal["planes", "channels", "any"]


_MOST_SUMS = 14  # of 16 registers


@dataclass(frozen=True)
class Variant:
    """What is built into the machine code.

    Attributes
    ----------
    reads : tuple of tuple of int
        For each output of a row, for each tap of a row: the column that it reads, or −1 for zero.
    size : int
        Columns of the input.
    skips : bool
        What meets zeros is left out, which weights that are not finite forbid.
    x_order, y_order : Order
    """

    dtype: str
    reads: tuple[tuple[int, ...], ...]
    size: int
    skips: bool = True
    x_order: Order = "planes"
    y_order: Order = "planes"


@cache
def kernel(variant: Variant, target: Target) -> Kernel:
    """Return the compiled kernel."""
    return compiled(_Channels(variant, target).text(), "channels", target)


@dataclass(frozen=True)
class _Operands:
    """Addresses of sample 0, of a block's weights, and of a row of zeros."""

    strip: Value
    weights: Value
    zeros: Value


class _Channels:
    """Writes one variant."""

    def __init__(self, variant: Variant, target: Target) -> None:
        self.variant = variant
        self.code = Code("channels", target, variant.dtype, ARGUMENTS)
        self.lanes = self.code.lanes
        pieces = -(-len(variant.reads) // _MOST_SUMS)
        self.piece = -(-len(variant.reads) // pieces)

    def text(self) -> str:
        code, arg, lanes = self.code, self.code.integer, self.lanes
        scratch = code.at(code.pointer("scratch"), code.mul(code.thread, arg("scratch_items")))
        zeros = code.at(scratch, arg("zeros"))
        if not self.variant.skips:
            for column in range(self.variant.size):
                code.store(code.zeros(), zeros, column * lanes)
        first = code.mul(code.job, arg("units_a_job"))
        with code.loop(first, code.min(code.add(first, arg("units_a_job")), arg("units"))) as unit:
            rest, band = code.divmod(unit, arg("bands"))
            image, block = code.divmod(rest, arg("blocks"))
            channel = code.min(code.mul(block, lanes), code.sub(arg("channels"), lanes))  # the last block reaches back
            x, y = (
                code.at(
                    code.pointer(name),
                    code.add(code.mul(image, arg(f"{name}_image")), code.mul(channel, arg(f"{name}_channel"))),
                )
                for name in "xy"
            )
            limits = code.at(code.integers("limits"), code.mul(band, 4))
            samples, rows = (tuple(code.item(limits, which + end) for end in range(2)) for which in (0, 2))
            outputs = tuple(code.mul(row, len(self.variant.reads)) for row in rows)
            # as if there were scratch for all samples and outputs
            strip, results = (
                code.at(scratch, code.sub(begin, code.mul(positions[0], lanes)))
                for begin, positions in ((0, samples), (arg("results"), outputs))
            )
            self._gather(x, strip, *samples)
            weights = code.at(code.pointer("weights"), code.mul(block, code.mul(arg("taps"), lanes)))
            with code.loop(*rows) as row:
                target = code.at(results, code.mul(row, len(self.variant.reads) * lanes))
                self._sum(row, _Operands(strip, weights, zeros), code.load(code.pointer("bias"), channel), target)
            self._scatter(results, y, *outputs)
        return code.finish()

    # -- sums -------------------------------------------------------------------------------------------------

    def _sum(self, row: Value, operands: _Operands, bias: Value, target: Value) -> None:
        """Compute a row of outputs."""
        code, reads = self.code, self.variant.reads
        starts, meetings = code.integers("starts"), code.integers("meetings")
        start, stop = code.item(starts, row), code.item(starts, code.add(row, 1))
        for begin in range(0, len(reads), self.piece):
            sums = [code.variable(bias) for _ in reads[begin : begin + self.piece]]
            with code.loop(start, stop) as meeting:
                here = code.at(meetings, code.mul(meeting, 2))
                place, tap = code.item(here), code.item(here, 1)
                samples = code.at(operands.strip, place)
                if not self.variant.skips:
                    samples = code.select(code.less(place, 0), operands.zeros, samples)
                self._multiply(sums, begin, samples, code.at(operands.weights, tap))
            for number, total in enumerate(sums):
                code.store(total.get(), target, (begin + number) * self.lanes)

    def _multiply(self, sums: list[Variable], begin: int, samples: Value, taps: Value) -> None:
        """A row of taps times a row of samples: those of which there are fewer are in registers, the others in turn."""
        code, v = self.code, self.variant
        reads = v.reads[begin : begin + len(sums)]
        terms = [
            (output, tap, column)
            for output, columns in enumerate(reads)
            for tap, column in enumerate(columns)
            if column >= 0 or not v.skips
        ]
        by_tap = len({tap for _, tap, _ in terms}) > len({column for _, _, column in terms})
        terms.sort(key=lambda term: term[1:] if by_tap else term[:0:-1])
        for output, tap, column in terms:
            sample = code.load(samples, column * self.lanes) if column >= 0 else code.zeros()
            sums[output].set(code.fma(code.load(taps, tap * self.lanes), sample, sums[output].get()))

    # -- turns ------------------------------------------------------------------------------------------------

    def _gather(self, x: Value, strip: Value, begin: Value, end: Value) -> None:
        """Fill the strip: for each sample a vector of its channels."""
        code, arg, lanes = self.code, self.code.integer, self.lanes
        lines = [code.at(x, code.mul(arg("x_channel"), channel)) for channel in range(lanes)]
        if self.variant.x_order == "planes":

            def square(start: Value, count: Value | None) -> None:
                rows = [
                    code.load(line, start) if count is None else code.load_some(line, start, count) for line in lines
                ]
                for number, column in enumerate(code.transpose(rows)):
                    code.store(column, strip, code.mul(code.add(start, number), lanes))

            self._by_squares(begin, end, square)
            return
        with code.loop(begin, end) as position:
            place, target = code.item(code.integers("x_places"), position), code.mul(position, lanes)
            if self.variant.x_order == "channels":
                code.store(code.load(x, place), strip, target)
                return
            for channel, line in enumerate(lines):
                code.put(code.item(line, place), strip, code.add(target, channel))

    def _scatter(self, results: Value, y: Value, begin: Value, end: Value) -> None:
        """Write the outputs: for each a vector of its channels."""
        code, arg, lanes = self.code, self.code.integer, self.lanes
        lines = [code.at(y, code.mul(arg("y_channel"), channel)) for channel in range(lanes)]
        if self.variant.y_order == "planes":

            def square(start: Value, count: Value | None) -> None:
                source = code.at(results, code.mul(start, lanes))
                columns = code.transpose([code.load(source, number * lanes) for number in range(lanes)])
                for line, column in zip(lines, columns, strict=True):
                    if count is None:
                        code.store(column, line, start)
                    else:
                        code.store_some(column, line, start, count)

            self._by_squares(begin, end, square)
            return
        with code.loop(begin, end) as position:
            place, source = code.item(code.integers("y_places"), position), code.mul(position, lanes)
            if self.variant.y_order == "channels":
                code.store(code.load(results, source), y, place)
                return
            for channel, line in enumerate(lines):
                code.put(code.item(results, code.add(source, channel)), line, place)

    def _by_squares(self, begin: Value, end: Value, square: Callable[[Value, Value | None], None]) -> None:
        """Turn vectors, a square at a time; of the last one only some are there."""
        code = self.code
        whole = code.sub(end, code.rem(code.sub(end, begin), self.lanes))
        with code.loop(begin, whole, self.lanes) as start:
            square(start, None)
        with code.when(code.less(whole, end)):
            square(whole, code.sub(end, whole))
