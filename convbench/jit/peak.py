"""The most multiply–adds that a core does: independent ones in registers, nothing read or written between them.

    sum[c] ← sum[c] · factor + term          c < chains

Each waits for its own predecessor only, so that more chains than latency × units keep all units busy: 8 on most CPUs
(4 cycles, 2 units), and there are as many as registers hold. What a convolution or a matrix product may reach lies
below, for it has to read its operands.
"""

from __future__ import annotations

from functools import cache

import numpy as np

from convbench.jit import pool
from convbench.jit.compile import Kernel, compiled
from convbench.jit.ir import Code
from convbench.jit.memory import address_of
from convbench.jit.target import Target, targets

__all__ = ["FmaWork"]

_NUMBERS = 3  # registers for factor, term, and a product where the target has no multiply–add
_PIECES = 4  # that a thread does, so that one disturbed thread does not hold up all
_ROUNDS = 2_000  # a piece: some 20 µs
_UNROLLED = 4  # rounds a turn of the loop, whose own instructions cost a few per cent otherwise


class FmaWork:
    """A call whose multiply–adds are spread over threads, at the peak of this CPU.

    Whatever target kernels are forced to, the peak is that of the best one, unless another is given.

    Parameters
    ----------
    dtype : str
        "float32" or "float64".
    threads : int
    target : Target, optional

    Attributes
    ----------
    flops : int
        That one call does.
    target : Target

    Examples
    --------
    >>> work = FmaWork("float32", 1)
    >>> work()
    >>> work.flops > 1e6
    True
    """

    def __init__(self, dtype: str, threads: int, target: Target | None = None) -> None:
        self.target = target or next(iter(targets().values()))
        lanes = self.target.lanes(dtype)
        self._numbers = np.array([0.5, 0.5], dtype)  # sums go to 1 and stay there
        self._sums = np.zeros((threads, lanes), dtype)
        self._arguments = address_of(self._numbers), address_of(self._sums), _ROUNDS // _UNROLLED
        self._kernel, self._jobs, self._threads = _kernel(dtype, self.target), threads * _PIECES, threads
        self.flops = 2 * lanes * _chains(self.target) * _ROUNDS * self._jobs

    def __call__(self) -> None:
        """Do the work."""
        pool.run(self._kernel, self._arguments, self._jobs, self._threads)


def _chains(target: Target) -> int:
    return target.registers - _NUMBERS


@cache
def _kernel(dtype: str, target: Target) -> Kernel:
    return compiled(_text(dtype, target), "peak", target)


def _text(dtype: str, target: Target) -> str:
    code = Code("peak", target, dtype, ["numbers", "sums", "turns"])
    numbers = code.pointer("numbers")
    factor, term = code.broadcast(numbers, 0), code.broadcast(numbers, 1)
    starts = range(_chains(target))  # unlike each other, lest one chain do for all
    sums = [code.variable(code.constant(start)) for start in starts]
    with code.loop(0, code.integer("turns")):
        for _ in range(_UNROLLED):
            for chain in sums:
                chain.set(code.fma(chain.get(), factor, term))
    total = sums[0].get()
    for chain in sums[1:]:
        total = code.fadd(total, chain.get())
    code.store(total, code.pointer("sums"), code.mul(code.thread, code.lanes))
    return code.finish()
