"""Sums over boxes, columns first, in a number of additions that does not grow with the columns' taps.

Along columns, outputs are taken K rows at a time. The K windows of such a group all reach over the border between its
K rows of x and the next: each is the end of the first K rows and the beginning of the next ones,

    group      x₀ x₁ x₂ x₃ │ x₄ x₅ x₆               K = 4
    window 0   └─────────┘ │
    window 1      └────────┼──┘          ends[t] = x_t + … + x_{K−1}        from the last backwards
    window 2         └─────┼─────┘       beginning += x_{K−1+t}             from the first on
    window 3            └──┼────────┘    window t = ends[t] + beginning

so that three additions an output do (van Herk 1992 and Gil and Werman 1993, who have maxima in place of sums). Nothing
is subtracted, as running sums would: rounding does not pile up, and a NaN or a loud sample leaves with its window.

Along rows the line, which lies in cache, is added to itself, shifted, along an addition chain for the number of taps
(:func:`convbench.algorithms.box.addition_chain`): 2 additions for 3 taps, 9 for 101.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

from convbench.jit.compile import Kernel, compiled
from convbench.jit.ir import Code, Value
from convbench.jit.lines import LINE_ARGUMENTS, LineBlock
from convbench.jit.target import Target

__all__ = ["ARGUMENTS", "BoxForm", "box_kernel"]

ARGUMENTS = ("x", "y", "starts", "weights", "scratch", *LINE_ARGUMENTS, "chain", "steps")


@dataclass(frozen=True)
class BoxForm:
    """What a kernel is compiled for."""

    dtype: str
    across: bool  # there are several taps along rows


@cache
def box_kernel(target: Target, form: BoxForm) -> Kernel:
    """Return a compiled kernel."""
    code = Code("box", target, form.dtype, ARGUMENTS)
    block, at = LineBlock(code, each_output=False), code.integer
    taps = at("k1")
    with code.loop(0, at("channels")) as c:
        block.find_rows(c, 0)
        with code.loop(0, block.height, taps) as group:
            _sum_ends(block, group)
            with code.loop(0, code.min(taps, code.sub(block.height, group))) as t:
                row = code.add(group, t)
                _sum_columns(block, row, t)
                if form.across:
                    _sum_along(block)
                _mix(block, row, c, form)
    return compiled(code.finish(), "box", target)


def _ends(block: LineBlock, t: Value) -> Value:
    """Return the line of ``ends[t]``; those of K and K + 1 are the beginning, by turns.

    By turns, as a vector may be added twice where a row ends: never to itself.
    """
    return block.code.at(block.sums, block.code.mul(t, block.at("line_pitch")))


def _sum_ends(block: LineBlock, group: Value) -> None:
    """Fill the ends of a group, and clear the beginning."""
    code, taps = block.code, block.at("k1")
    beginning = _ends(block, taps)
    block.along(lambda position: code.store(code.zeros(), beginning, position))
    with code.loop(1, code.add(taps, 1)) as back:  # the beginning is zero: the last row is its own end
        t = code.sub(taps, back)
        row, later, ends = block.sample_row(code.add(group, t)), _ends(block, code.add(t, 1)), _ends(block, t)
        block.along(
            lambda position: code.store(code.fadd(code.load(later, position), code.load(row, position)), ends, position)
        )


def _sum_columns(block: LineBlock, row: Value, t: Value) -> None:
    """Add the next row to the beginning, and write window ``t`` of a group to line 0."""
    code, taps, line = block.code, block.at("k1"), block.line(0)
    ends, grows = _ends(block, t), code.less(0, t)
    before, beginning = (_ends(block, code.add(taps, code.rem(code.add(t, turn), 2))) for turn in (1, 0))
    newest = block.sample_row(code.add(row, code.sub(taps, 1)))

    def alone(_: Value, sample: Value) -> Value:
        total = code.variable(code.number(0.0))
        with code.loop(0, taps) as k:
            total.set(code.fadd(total.get(), code.item(block.sample_row(code.add(row, k)), sample)))
        return total.get()

    def grow(position: Value) -> None:
        begun = code.fadd(code.load(before, position), code.load(newest, position))
        code.store(begun, beginning, position)
        code.store(code.fadd(code.load(ends, position), begun), line, position)

    def first(position: Value) -> None:
        code.store(code.load(ends, position), line, position)

    code.choose(grows, lambda: block.along(grow), lambda: block.along(first))
    block.fill_margins(1, alone)


def _step(block: LineBlock, step: Value) -> tuple[Value, Value, Value]:
    """Return what a step of the chain adds, and where its sum goes: two addresses and a line."""
    code = block.code
    chain = code.at(code.integers("chain"), code.mul(step, 4))
    target, left, right, shift = (code.item(chain, i) for i in range(4))
    return block.line(left), code.at(block.line(right), shift), block.line(target)


def _sum_along(block: LineBlock) -> None:
    """Do all steps of the chain but the last."""
    code = block.code
    with code.loop(0, code.sub(block.at("steps"), 1)) as step:
        left, right, target = _step(block, step)
        with code.loop(0, block.extent, code.lanes) as position:
            code.store(code.fadd(code.load(left, position), code.load(right, position)), target, position)


def _mix(block: LineBlock, row: Value, channel: Value, form: BoxForm) -> None:
    """Do the last step, and add the sums of a channel to each output, times its weight."""
    code, at = block.code, block.at
    left, right = block.line(0), block.line(0)
    if form.across:
        left, right, _ = _step(block, code.sub(at("steps"), 1))
    with code.loop(0, at("outs")) as o:
        out = code.add(block.out, o)
        weight = code.broadcast(code.pointer("weights"), code.add(code.mul(out, at("channels")), channel))

        def make(position: Value, sums: list[Value], weight: Value = weight) -> list[Value]:
            added = []
            for v, total in enumerate(sums):
                window = code.load(left, code.add(position, v * code.lanes))
                if form.across:
                    window = code.fadd(window, code.load(right, code.add(position, v * code.lanes)))
                added.append(code.fma(window, weight, total))
            return added

        y = code.at(code.at(block.y, code.mul(row, at("y1"))), code.mul(o, at("yo")))
        block.write_row(y, code.equal(channel, 0), code.item(code.pointer("starts"), out), make)
