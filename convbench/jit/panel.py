"""The register tile of all kernels that multiply many inputs by many outputs: direct convolution, GEMM, Winograd.

    accumulators[v][i] += weights[v] · item[i]          v < vectors, i < items

A step reads ``vectors`` vectors of packed weights, whose lanes are neighbouring output channels, and ``items`` single
numbers (pixels, tiles, …), each spread over a vector: vectors + items reads for vectors · items multiply–adds, which
stay in registers until all steps are done. With 2 × 14 of AVX-512's 32 registers, that is 16 reads for 28
multiply–adds, where the CPU can do two of each a cycle; and each of the 28 waits for its own predecessor only, where a
latency of 4 cycles asks for 8 chains.

               item 0   item 1   …   item 13
    weights 0   acc      acc            acc      ← lanes: output channels 0 … 15
    weights 1   acc      acc            acc      ← 16 … 31

Steps must be a loop of the machine code: unrolled, LLVM keeps numbers that later steps read again in registers that it
has not got (122 GFLOP/s instead of 172–220 when three taps of a row were written out).
(Goto and van de Geijn 2008, "Anatomy of High-Performance Matrix Multiplication"; Georganas et al. 2018,
arXiv 1808.05567.)
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from convbench.jit.ir import Code, Value
from convbench.jit.target import Target

__all__ = ["Panel", "PanelShape", "panel_shape"]


@dataclass(frozen=True)
class PanelShape:
    """How many vectors of outputs, and how many items."""

    vectors: int
    items: int


def panel_shape(target: Target) -> PanelShape:
    """Return the tile that fills a target's registers, but for the weights and one item."""
    return PanelShape(2, 14) if target.registers >= 32 else PanelShape(2, 6)


class Panel:
    """Accumulators of one tile in a kernel.

    Parameters
    ----------
    initial : callable, optional
        ``initial(v, i)``: the vector from which a sum starts; zero without it.
    """

    def __init__(self, code: Code, shape: PanelShape, initial: Callable[[int, int], Value] | None = None) -> None:
        self.code, self.shape = code, shape
        zeros = code.zeros()
        self._sums = [
            [code.variable(initial(v, i) if initial else zeros) for i in range(shape.items)]
            for v in range(shape.vectors)
        ]

    def step(self, weights: Sequence[Value], item: Callable[[int], Value]) -> None:
        """Multiply vectors of packed weights by items; ``item(i)`` returns the address of one number."""
        code = self.code
        for i in range(self.shape.items):
            spread = code.broadcast(item(i))
            for v, vector in enumerate(weights):
                self._sums[v][i].set(code.fma(vector, spread, self._sums[v][i].get()))

    def vector(self, v: int, i: int) -> Value:
        """Return the sums of one item: its lanes are output channels."""
        return self._sums[v][i].get()

    def rows(self, v: int) -> Iterator[tuple[int, int, Value]]:
        """Turn the sums of one vector by a quarter: yield (channel, first item, vector of items) for each channel.

        A tile of more items than lanes gives several vectors a channel. Lanes beyond the last item are zero.
        """
        code, items = self.code, self.shape.items
        for first in range(0, items, code.lanes):
            columns = [self.vector(v, i) for i in range(first, min(items, first + code.lanes))]
            columns += [code.zeros()] * (code.lanes - len(columns))
            for channel, row in enumerate(code.transpose(columns)):
                yield channel, first, row
