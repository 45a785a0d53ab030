"""Implicit GEMM on tensor cores, forward: operands of 8 or 11 significant bits, sums in float32."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np

from convbench.arrays import Array, Namespace
from convbench.cuda.forward import C_TYPES
from convbench.cuda.geometry import blocks
from convbench.cuda.implicit_gemm import ForwardGemm
from convbench.cuda.kernel import Kernel
from convbench.cuda.splitting import ADD_UP, Tile
from convbench.cuda.variants import Variant
from convbench.spec import DTYPES, ConvSpec

__all__ = ["BFLOAT16", "FLOAT16", "KERNELS", "TF32", "Operands", "TensorGemm", "planned_with", "variants"]

_FILE = "implicit_gemm_tc.cu"
_DEPTH = 32
_ROUND_THREADS = 256
_MOST_ROUND_BLOCKS = 4096

#: Outputs and columns of a block, and of a warp; blocks of a multiprocessor that registers are kept free for.
_SHAPES = ((128, 128, 64, 32, 2), (64, 64, 32, 32, 4))


@dataclass(frozen=True)
class Operands:
    """In what weights and samples are multiplied.

    Attributes
    ----------
    name : str
        Of the type, in words.
    dtype : str
        Of the arrays.
    c_type : str
        What lies in shared memory.
    stored : str
        NumPy's name of a dtype of that size.
    significant_bits : int
        Of an operand, the leading one included.
    speed : float
        Multiply–adds a cycle and multiprocessor, as tiles are compared by.
    """

    name: str
    dtype: str
    c_type: str
    stored: str
    significant_bits: int
    speed: float

    @property
    def rounds(self) -> bool:
        """Whether operands are rounded."""
        return self.c_type != C_TYPES[self.dtype] or self.dtype == "float32"

    @property
    def rounding(self) -> Kernel:
        """What rounds the weights."""
        instance = f"round_weights<{C_TYPES[self.dtype]}, {self.c_type}>"
        return Kernel(_FILE, instance, (_ROUND_THREADS, 1, 1), tensor_cores=True)

    def kernels(self, few: bool) -> Sequence[tuple[Tile, Kernel]]:
        """Return the tiles, and the kernel of each."""
        made = []
        for shape in _SHAPES:
            outputs, columns, warp_outputs, warp_columns, _ = shape
            arguments = ", ".join((C_TYPES[self.dtype], self.c_type, *map(str, shape), str(few).lower()))
            pitch_bytes = _DEPTH * DTYPES[self.stored] + 16
            kernel = Kernel(
                _FILE,
                f"implicit_gemm_tc<{arguments}>",
                (outputs // warp_outputs * (columns // warp_columns) * 32, 1, 1),
                shared_bytes=2 * (outputs + columns) * pitch_bytes,
                tensor_cores=True,
            )
            speed = self.speed * (1.0 if outputs == 128 else 0.6) * (0.5 if few else 1.0)
            made.append((Tile(outputs, columns, _DEPTH, speed), kernel))
        return made


TF32 = Operands("TF32", "float32", "float", "float32", 11, 500.0)
BFLOAT16 = Operands("bfloat16", "float32", "__nv_bfloat16", "uint16", 8, 900.0)
FLOAT16 = Operands("float16", "float16", "__half", "uint16", 11, 900.0)

_ALL = (TF32, BFLOAT16, FLOAT16)

#: Every instance that may be launched.
KERNELS = (
    *(kernel for operands in _ALL for few in (False, True) for _, kernel in operands.kernels(few)),
    *(operands.rounding for operands in _ALL if operands.rounds),
    *ADD_UP.values(),
)


class TensorGemm(ForwardGemm):
    """Forward convolution as one product on tensor cores; memory as without them."""

    outputs_last = False

    def __init__(
        self, ns: Namespace, spec: ConvSpec, threads: int, operands: Operands, among: slice = slice(None)
    ) -> None:
        super().__init__(ns, spec, threads, operands.kernels(few=False), operands.kernels(few=True), among)
        self._operands = operands
        self._round = self._loaded(operands.rounding) if operands.rounds else None
        self.prepared_bytes = self._packed_items * DTYPES[operands.stored]
        self.preparing_bytes = self.prepared_bytes + self._packed_items * spec.itemsize

    def prepare(self, w: Array) -> tuple[Array, int | None]:
        """Pack the weights: for each group (outputs, rows k), filled up with zeros, and round them."""
        packed, flops = super().prepare(w)
        if self._round is None or not self._packed_items:
            return packed, flops
        rounded = self._ns.empty(packed.shape, self._operands.stored)
        grid = min(blocks(self._packed_items, _ROUND_THREADS), _MOST_ROUND_BLOCKS), 1, 1
        self._round(grid, (packed, rounded, np.int64(self._packed_items)))
        return rounded, flops


def planned_with(operands: Operands) -> Callable[[Namespace, ConvSpec, int], Any]:
    """Return what plans the algorithm with these operands."""
    return lambda ns, spec, threads: TensorGemm(ns, spec, threads, operands)


def variants(operands: Operands) -> tuple[Variant, ...]:
    """Return cases that launch each kernel that goes with these operands; the last shares rows k among blocks."""
    rounding = (operands.rounding,) * operands.rounds
    lines = {False: "n2 c32 o20 i7x10 k2x3 p1 bias=channel", True: "n2 c5 o20 i8x7 k3 p1 bias=channel"}
    tiles = (
        Variant(
            (kernel, *rounding),
            f"{line} {operands.dtype}",
            partial(TensorGemm, operands=operands, among=slice(number, number + 1)),
        )
        for few, line in lines.items()
        for number, (_, kernel) in enumerate(operands.kernels(few))
    )
    return *tiles, Variant((ADD_UP[operands.dtype],), f"c256 o5 i5x6 k3 p1 bias=channel {operands.dtype}")
