"""Separable convolution of few taps, columns first: the numbers of taps are built into the code.

Columns have a register tile of one vector by some rows of outputs, of which each row of x is read once:

    sums[r] += taps[i − r] · x[row + i]         r < 8 (of 32 registers), 4 (of 16); 0 ≤ i − r < K

Rows of the line are read aligned, and shifted in registers where a vector is as long as a cache line: an address that
is not aligned would cost two reads.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

from convbench.jit.compile import Kernel, compiled
from convbench.jit.ir import Code, Value
from convbench.jit.lines import LINE_ARGUMENTS, LineBlock
from convbench.jit.memory import CACHE_LINE
from convbench.jit.separable import WEIGHT_ARGUMENTS, outputs_per_tile
from convbench.jit.target import Target

__all__ = ["ARGUMENTS", "FewTaps", "few_taps_kernel"]

ARGUMENTS = (*WEIGHT_ARGUMENTS, *LINE_ARGUMENTS)


@dataclass(frozen=True)
class FewTaps:
    """What a kernel is compiled for: the numbers of taps along columns and along rows."""

    dtype: str
    down: int
    across: int


@cache
def few_taps_kernel(target: Target, form: FewTaps) -> Kernel:
    """Return a compiled kernel."""
    code = Code("separable_lines", target, form.dtype, ARGUMENTS)
    block, at = LineBlock(code, each_output=True), code.integer
    start = code.item(code.pointer("starts"), block.out)
    with code.loop(0, at("channels")) as c:
        block.find_rows(c, outputs_per_tile(target))
        pair = code.add(code.mul(block.out, at("channels")), c)
        pair_taps = code.at(code.pointer("taps"), code.mul(pair, at("pair_taps")))
        with code.loop(0, code.item(code.integers("forms"), code.mul(pair, at("pair_forms")))) as b:
            across = code.at(pair_taps, code.mul(b, form.across))
            down = code.at(pair_taps, code.add(at("last_taps"), code.mul(b, form.down)))
            with code.loop(0, block.height, outputs_per_tile(target)) as row:
                _sum_columns(block, form, down, row)
                is_first = code.equal(code.add(c, b), 0)
                with code.loop(0, code.min(outputs_per_tile(target), code.sub(block.height, row))) as r:
                    _sum_row(block, form, across, block.line(r), code.add(row, r), is_first, start)
    return compiled(code.finish(), "separable_lines", target)


def _sum_columns(block: LineBlock, form: FewTaps, taps: Value, row: Value) -> None:
    """Filter some rows of outputs along columns into lines."""
    code, tile = block.code, outputs_per_tile(block.code.target)
    rows = [block.sample_row(code.add(row, i)) for i in range(tile + form.down - 1)]

    def sum_vectors(position: Value) -> None:
        sums = [code.variable(code.zeros()) for _ in range(tile)]
        for i, address in enumerate(rows):
            samples = code.load(address, position)
            for r in range(max(0, i - form.down + 1), min(tile, i + 1)):
                sums[r].set(code.fma(samples, code.broadcast(taps, i - r), sums[r].get()))
        for r, total in enumerate(sums):
            code.store(total.get(), block.line(r), position)

    def alone(line: Value, sample: Value) -> Value:
        total = code.variable(code.number(0.0))
        with code.loop(0, form.down) as k:
            number = code.item(block.sample_row(code.add(code.add(row, line), k)), sample)
            total.set(code.fma(number, code.item(taps, k), total.get()))
        return total.get()

    block.along(sum_vectors)
    block.fill_margins(code.min(tile, code.sub(block.height, row)), alone)


def _sum_row(
    block: LineBlock, form: FewTaps, taps: Value, line: Value, row: Value, is_first: Value, start: Value
) -> None:
    """Filter a line along the row into y."""
    code, lanes = block.code, block.code.lanes
    in_registers = code.target.vector_bytes == CACHE_LINE

    def make(position: Value, sums: list[Value]) -> list[Value]:
        read: dict[int, Value] = {}

        def aligned(number: int) -> Value:
            if number not in read:
                read[number] = code.load(line, code.add(position, number * lanes))
            return read[number]

        def window(offset: int) -> Value:
            number, shift = divmod(offset, lanes)
            if shift == 0:
                return aligned(number)
            if not in_registers:
                return code.load(line, code.add(position, offset))
            return code.shuffle(aligned(number), aligned(number + 1), range(shift, shift + lanes))

        for k in range(form.across):
            tap = code.broadcast(taps, k)
            sums = [code.fma(window(v * lanes + k), tap, total) for v, total in enumerate(sums)]
        return sums

    y = code.at(block.y, code.mul(row, block.at("y1")))
    block.write_row(y, is_first, start, make)
