"""Implicit GEMM on the general-purpose cores: forward, and the gradient of the weights (kernels/gather.cuh)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from itertools import product
from math import prod
from typing import Any

import numpy as np

from convbench.algorithms.blocking import flipped
from convbench.arrays import Array, Namespace
from convbench.cuda.forward import C_TYPES, Forward
from convbench.cuda.geometry import blocks
from convbench.cuda.kernel import Kernel
from convbench.cuda.splitting import ADD_UP, Product, Tile, add_up, cheapest
from convbench.cuda.variants import Variant
from convbench.refusals import refuse
from convbench.spec import DTYPES, ConvSpec

__all__ = [
    "KERNELS",
    "VARIANTS",
    "ForwardGemm",
    "ImplicitGemm",
    "WeightGradient",
    "native",
    "planned",
    "tap_table",
    "why_not",
]


@dataclass(frozen=True)
class _Shape(Tile):
    """A tile and how its threads share it.

    Attributes
    ----------
    per_thread : tuple of int
        Outputs and columns of a thread.
    resident : int
        Blocks of a multiprocessor that registers are kept free for.
    """

    per_thread: tuple[int, int]
    resident: int

    def kernel(self, file: str, dtype: str, *last: str) -> Kernel:
        """Return the instance of the template that is named as its file."""
        m, n = self.per_thread
        numbers = (self.outputs, self.columns, self.depth, m, n, self.resident)
        arguments = ", ".join((C_TYPES[dtype], *map(str, numbers), *last))
        threads = self.outputs // m * (self.columns // n)
        return Kernel(file, f"{file.partition('.')[0]}<{arguments}>", (threads, 1, 1))


#: For many channels, for few and for the gradient of the weights: sums of 4 bytes, and of 8.
_SHAPES = {
    "many": (
        (
            _Shape(128, 128, 8, 100.0, (8, 8), 2),
            _Shape(64, 128, 8, 90.0, (8, 8), 3),
            _Shape(64, 64, 8, 75.0, (8, 4), 4),
            _Shape(16, 128, 8, 45.0, (4, 4), 4),
        ),
        (_Shape(64, 64, 8, 45.0, (4, 4), 2), _Shape(16, 128, 8, 25.0, (4, 4), 2)),
    ),
    "few": (
        (_Shape(64, 128, 8, 70.0, (4, 8), 2), _Shape(16, 128, 8, 35.0, (4, 4), 4)),
        (_Shape(64, 64, 8, 40.0, (4, 4), 2), _Shape(16, 128, 8, 20.0, (4, 4), 2)),
    ),
    "weights": (
        (
            _Shape(128, 64, 16, 80.0, (8, 4), 2),
            _Shape(64, 64, 16, 70.0, (8, 4), 3),
            _Shape(16, 64, 8, 40.0, (4, 4), 8),
        ),
        (_Shape(64, 64, 16, 40.0, (4, 4), 1), _Shape(16, 64, 8, 20.0, (4, 4), 4)),
    ),
}


def _kernels(kind: str, dtype: str) -> Sequence[tuple[_Shape, Kernel]]:
    shapes = _SHAPES[kind][dtype == "float64"]
    if kind == "weights":
        return [(shape, shape.kernel("weight_gradient.cu", dtype)) for shape in shapes]
    return [(shape, shape.kernel("implicit_gemm.cu", dtype, str(kind == "few").lower())) for shape in shapes]


#: Every instance that may be launched.
KERNELS = (
    *(kernel for kind, dtype in product(_SHAPES, C_TYPES) for _, kernel in _kernels(kind, dtype)),
    *ADD_UP.values(),
)

_MOST = 2**31 - 2**10  # what 32-bit counts hold, a block's columns beyond the last one included
_TAP = 4  # 32-bit numbers of struct Tap
_ALL = slice(None)


def why_not(spec: ConvSpec) -> str | None:
    """Return the reason why a spec that is native cannot be done, or None: counts of blocks and rows have 32 bits."""
    counts = {
        "positions of all images": spec.batch * prod(spec.output_size),
        "outputs an image": prod(spec.output_shape[1:]),
        "weights": prod(spec.weight_shape),
    }
    for what, count in counts.items():
        if count >= _MOST:
            return refuse("memory", f"{count:.3g} {what}, less than 2^31 are done")
    return None


def native(spec: ConvSpec) -> bool:
    """Tell whether a spec is done as one product, not rewritten as convolutions."""
    return spec.op != "input_grad" and spec.tile is None


def planned(ns: Namespace, spec: ConvSpec, threads: int) -> Forward:
    """Return the algorithm for a native spec."""
    return (WeightGradient if spec.op == "weight_grad" else ImplicitGemm)(ns, spec, threads)


def few_channels(spec: ConvSpec, depth: int) -> bool:
    """Tell whether filling the channels of a tap up to whole K-tiles would waste more than a fifth of the work."""
    channels = spec.in_channels // spec.groups
    return -(-channels // depth) * depth > 1.25 * channels


def tap_table(spec: ConvSpec, depth: int) -> Any:
    """Return struct Tap of every row k = (tap, channel), those that fill the last K-tile up included.

    >>> tap_table(ConvSpec.parse("c3 i9 k2 d4 f32"), 8)[[0, 2, 3, 5, 6]].tolist()
    [[0, 0, 0, 0], [2, 0, 0, 0], [0, 0, 0, 4], [2, 0, 0, 4], [-1, 0, 0, 0]]
    """
    channels, missing = spec.in_channels // spec.groups, 3 - spec.ndim
    axes = [np.arange(size) * step for size, step in zip(spec.kernel_size, spec.dilation, strict=True)]
    grids = np.meshgrid(*axes, np.arange(channels), indexing="ij")
    rows = prod(grids[0].shape)
    table = np.zeros((-(-rows // depth) * depth, _TAP), np.int32)
    table[rows:, 0] = -1
    table[:rows, 0] = grids[-1].ravel()
    for axis, offsets in enumerate(grids[:-1]):
        table[:rows, 1 + missing + axis] = offsets.ravel()
    return table


class ForwardGemm(Forward):
    """What the forward products share: rows k, tiles and splits chosen, partial sums added up.

    Parameters
    ----------
    many, few : sequence of pairs
        Tiles and their kernels, for many and for few channels; all of one depth.
    among : slice
        Of the tiles, those to choose from: by default all.

    Attributes
    ----------
    outputs_last : bool
        Of the packed weights, whose rows k are else the last axis.
    """

    outputs_last = True

    def __init__(
        self,
        ns: Namespace,
        spec: ConvSpec,
        threads: int,
        many: Sequence[tuple[Tile, Kernel]],
        few: Sequence[tuple[Tile, Kernel]],
        among: slice = _ALL,
    ) -> None:
        super().__init__(ns, spec, threads)
        self._outputs, channels = spec.out_channels // spec.groups, spec.in_channels // spec.groups
        self._taps, self._items, depth = prod(spec.kernel_size), prod(spec.output_shape), many[0][0].depth
        self._few = few_channels(spec, depth)
        filled = channels if self._few else blocks(channels, depth) * depth
        sum_bytes = DTYPES[spec.accumulate_dtype]
        product = Product(
            spec.groups, self._outputs, max(1, spec.batch * prod(spec.output_size)), self._taps * filled, sum_bytes
        )
        tile, kernel, self._cut = cheapest(product, (few if self._few else many)[among])
        self._kernel, self._add_up = self._loaded(kernel), self._loaded(ADD_UP[spec.dtype])
        rows = self._cut.tiles * tile.depth
        # the weights of an output: (tap, channel), of which the last is filled up, or without gaps
        self._row_shapes = (
            ((1, self._taps * channels), (1, rows)) if self._few else ((self._taps, channels), (self._taps, filled))
        )
        self._channels, self._packed_outputs = channels, self._cut.per_outputs * tile.outputs
        self._packed_items = spec.groups * rows * self._packed_outputs
        self._table = None
        if self._few:
            self._table = ns.from_host(tap_table(spec, depth))
            ns.synchronize()  # calls may come on other streams
        partial = (self._cut.splits > 1) * self._cut.splits * self._items * sum_bytes
        self.workspace_bytes = partial + self._few * rows * _TAP * 4
        self.prepared_bytes = self._packed_items * spec.itemsize
        self.flops = 2 * self._packed_items * self._cut.per_columns * tile.columns

    def prepare(self, w: Array) -> tuple[Array, int | None]:
        """Pack the weights: for each group (rows k, outputs) or (outputs, rows k), filled up with zeros."""
        ns, spec, xp = self._ns, self._spec, self._ns.xp
        used, filled = self._row_shapes
        by_tap = ns.reshape(flipped(ns, spec, w), (spec.groups, self._outputs, self._channels, self._taps))
        by_tap = ns.reshape(xp.permute_dims(by_tap, (0, 1, 3, 2)), (spec.groups, self._outputs, *used))
        shape = (*filled, self._packed_outputs) if self.outputs_last else (self._packed_outputs, *filled)
        packed = xp.zeros((spec.groups, *shape), dtype=w.dtype)
        seen = xp.moveaxis(packed, -1, 1) if self.outputs_last else packed
        ns.assign(seen[:, : self._outputs, :, : used[1]], by_tap)
        return packed, None

    def _launch(self, x: Array, weights: Any, bias: Array | None, y: Array, conv: Any) -> None:
        ns, cut, groups = self._ns, self._cut, self._spec.groups
        if cut.splits == 1:
            self._kernel(cut.grid(groups), (x, weights, bias, y, self._table, conv, *cut.arguments(0)))
            return
        parts = ns.empty((cut.splits, *y.shape), self._spec.accumulate_dtype)
        partial = self._geometry(x, None, parts[0, ...], None)
        self._kernel(cut.grid(groups), (x, weights, None, parts, self._table, partial, *cut.arguments(self._items)))
        add_up(self._add_up, parts, bias, y, conv, cut.splits)


class ImplicitGemm(ForwardGemm):
    """Forward convolution as one product, the samples gathered as they are wanted.

    O(MACs) work, filled-up rows and columns included. Memory: packed weights; partial sums where blocks would be few.
    """

    def __init__(self, ns: Namespace, spec: ConvSpec, threads: int, among: slice = _ALL) -> None:
        super().__init__(ns, spec, threads, _kernels("many", spec.dtype), _kernels("few", spec.dtype), among)


class WeightGradient(Forward):
    """∂J/∂w as one product, summed over images and positions; partial sums are added in a fixed order."""

    reads_weights = True  # the result has their place in the geometry

    def __init__(self, ns: Namespace, spec: ConvSpec, threads: int, among: slice = _ALL) -> None:
        super().__init__(ns, spec, threads)
        outputs = spec.out_channels // spec.groups
        self._shape = (spec.groups, outputs, *spec.weight_shape[1:])
        positions = spec.batch * prod(spec.output_size)
        product = Product(spec.groups, outputs, prod(self._shape[2:]), positions, DTYPES[spec.accumulate_dtype])
        tile, kernel, self._cut = cheapest(product, _kernels("weights", spec.dtype)[among])
        self._kernel, self._add_up = self._loaded(kernel), self._loaded(ADD_UP[spec.dtype])
        self._items = prod(self._shape)
        cut = self._cut
        self.workspace_bytes = (cut.splits > 1) * cut.splits * self._items * DTYPES[spec.accumulate_dtype]
        width = cut.per_outputs * tile.outputs * cut.per_columns * tile.columns
        self.flops = 2 * spec.groups * width * cut.tiles * tile.depth

    def run(self, first: Array, second: Any, bias: Array | None, out: Array) -> None:
        """Write the whole gradient into ``out``, of the dtype of ``first`` or of that in which sums are formed."""
        self._launch(first, second, None, out, self._of_result(first, second, out))

    def _of_result(self, x: Array, g: Array, w: Array) -> Any:
        """Return the geometry that writes w."""
        made = self._geometry(x, w, g, None)
        if made["wide"][0] != (w.dtype != x.dtype):
            made = made.copy()
            made["wide"] = w.dtype != x.dtype
        return made

    def _launch(self, x: Array, weights: Any, bias: Array | None, y: Array, conv: Any) -> None:
        cut, groups = self._cut, self._spec.groups
        if cut.splits == 1:
            self._kernel(cut.grid(groups), (x, weights, y, conv, *cut.arguments(0)))
            return
        parts = self._ns.empty((cut.splits, *self._shape), self._spec.accumulate_dtype)
        partial = self._of_result(x, weights, parts[0, ...])
        self._kernel(cut.grid(groups), (x, weights, parts, partial, *cut.arguments(self._items)))
        add_up(self._add_up, parts, None, y, _as_images(conv), cut.splits)


def _as_images(conv: Any) -> Any:
    """Return the geometry in which w (G, O/g, C/g, …) has the place of y (N, G, O/g, …)."""
    made = conv.copy()
    for field, source in {"batch": "groups", "groups": "outputs", "outputs": "inputs", "result": "kernel"}.items():
        made[field] = conv[source]
    made["y"] = conv["w"]
    return made


_LINES = {
    "many": "n2 c8 o20 i9x10 k3x2 p1 bias=channel",
    "few": "n2 c3 o20 i8x10 k3 p1 bias=channel",
    "weights": "op=weight_grad n3 c8 o20 i7x5 k3 p1",
}

#: Cases that launch each of them; the last share rows k among blocks.
VARIANTS = (
    *(
        Variant(
            (kernel,),
            f"{_LINES[kind]} {dtype}",
            partial(WeightGradient if kind == "weights" else ImplicitGemm, among=slice(number, number + 1)),
        )
        for kind, dtype in product(_SHAPES, C_TYPES)
        for number, (_, kernel) in enumerate(_kernels(kind, dtype))
    ),
    *(Variant((kernel,), f"c64 o5 i5x6 k3 p1 bias=channel {dtype}", planned) for dtype, kernel in ADD_UP.items()),
)
