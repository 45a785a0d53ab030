"""Winograd's minimal filtering by one generated kernel: the choice of tiles and blocks, and the weights' transform.

See :mod:`convbench.jit.winograd` for the loops, :mod:`convbench.algorithms.winograd` for the mathematics.
"""

from __future__ import annotations

from itertools import chain
from math import prod
from typing import Any

import numpy as np
from numpy.typing import NDArray

from convbench.algorithms.blocking import GroupedBias, ScratchPool, flipped
from convbench.algorithms.winograd_tiles import choose_tiling, cut_of, stacked, stacks, three
from convbench.arrays import Namespace
from convbench.jit import pool, winograd
from convbench.jit.compile import Kernel
from convbench.jit.memory import address_of, aligned, keep, usual_strides
from convbench.jit.panel import PanelShape, panel_shape
from convbench.jit.strips import axis_sources
from convbench.jit.target import host_target
from convbench.jit.winograd import Variant, axis_transforms
from convbench.spec import ConvSpec

__all__ = ["FusedWinograd"]

Array = NDArray[Any]

_AXES = "depth", "row", "column"
_GIVEN = winograd.ARGUMENTS.index("scratch") + 1  # arguments that change from call to call come first


class FusedWinograd:
    """F(m, r) along each axis, with m by predicted time: forward, stride 1, 1 to 3 axes.

    O(∏(m + r − 1)/∏m · C·O) multiplications an output; a NaN or infinity spoils its tile. Workspace: values and
    products of a block for each thread, or the values of several blocks once. Weights are transformed in double
    precision and rounded once; there are ∏(m + r − 1)/∏r times as many.
    """

    def __init__(self, ns: Namespace, spec: ConvSpec, threads: int) -> None:
        self._ns, self._spec, self._threads = ns, spec, threads
        self._target = host_target()
        lanes, largest = self._target.lanes(spec.dtype), panel_shape(self._target)
        self._channels, self._outputs = spec.in_channels // spec.groups, spec.out_channels // spec.groups
        tiling = choose_tiling(spec)
        self._cut, _ = cut_of(spec, tiling.outputs, threads, lanes, largest.vectors, largest.items)
        self._shape = PanelShape(min(largest.vectors, -(-self._outputs // lanes)), self._cut.items)
        self._tile, self._taps, self._size = map(three, (tiling.outputs, spec.kernel_size, tiling.size))
        self._width = self._shape.vectors * lanes
        self._panels, self._channel_vectors = -(-self._outputs // self._width), -(-self._channels // lanes)
        self._blocks = stacks(spec) * prod(self._cut.blocks)
        self._frequencies = prod(self._size)
        self._tables, self._inside = self._sources()
        self._plan_scratch(lanes)
        self._no_bias = np.zeros(spec.groups * self._panels * self._width, spec.dtype)
        self._calls: dict[Any, tuple[Kernel, list[tuple[tuple[int, ...], int]]]] = {}
        packed = spec.groups * self._frequencies * self._channels * self._panels * self._width
        self.prepared_bytes = packed * spec.itemsize
        tiles = prod(self._cut.tiles) * stacks(spec)
        self.flops = tiles * (2 * self._frequencies * self._outputs * self._channels + self._transform_flops())
        usual = usual_strides(spec)
        keep(self._calls, usual, self._made_call(*usual))

    def _transform_flops(self) -> int:
        """Of one tile's samples and products: a multiply–add for each entry of the matrices, without their pairs."""
        count = 0
        for m, r, t in zip(self._tile, self._taps, self._size, strict=True):
            f = axis_transforms(m, r)
            lines = self._frequencies // t if t > 1 else 0
            for matrix, lanes in ((f.b, self._channels), (f.a, self._outputs)):
                count += 2 * lines * lanes * sum(map(bool, chain.from_iterable(matrix)))
        return count

    def _plan_scratch(self, lanes: int) -> None:
        """Decide what lies where: values, of each thread or of the blocks of a call, then what each thread needs."""
        cut, spec = self._cut, self._spec
        room = self._frequencies * cut.slots * lanes
        self._values_items = room * self._channel_vectors
        self._products_items = room * self._shape.vectors
        self._pitch = cut.block[2] * self._tile[2] + self._taps[2] - 1 + lanes  # vectors are written whole
        strip = self._size[0] * self._size[1] * self._pitch * lanes
        self._thread_items = self._products_items + strip
        values = self._values_items * (cut.together or self._threads)
        items = values + self._thread_items * self._threads
        self._scratch_at = values * spec.itemsize
        self._scratch = ScratchPool(lambda: aligned(items, spec.dtype))
        biases = 2 * spec.groups * self._panels * self._width
        self.workspace_bytes = (items + biases) * spec.itemsize + sum(table.nbytes for table in self._tables)

    def _sources(self) -> tuple[list[NDArray[np.int64]], tuple[int, int]]:
        """Return what each axis reads, as far as tiles reach, and the columns that read neighbours."""
        spec, tables = self._spec, []
        before = three([a for a, _ in spec.padding], 0)
        sizes, outputs = stacked(spec, spec.input_size), stacked(spec, spec.output_size)
        axes = zip(sizes, outputs, before, self._cut.tiles, strict=True)
        for (size, p, a, n), m, r in zip(axes, self._tile, self._taps, strict=True):
            sources = axis_sources.__wrapped__(size, p + r - 1, a, spec.boundary)  # only the longer table is kept
            table = np.full(n * m + r - 1, -1, np.int64)
            table[: len(sources.table)] = sources.table
            tables.append(table)
        return tables, (sources.first, sources.last)

    def prepare(self, w: Array) -> tuple[Array, None]:
        """Transform the weights and pack them: for each group and panel (frequency, channel, output)."""
        spec = self._spec
        g = [np.array(axis_transforms(m, r).g, float) for m, r in zip(self._tile, self._taps, strict=True)]
        matrix = np.kron(np.kron(g[0], g[1]), g[2])  # frequencies × taps
        taps = matrix.shape[1]
        given = flipped(self._ns, spec, w).reshape(spec.groups, self._outputs, self._channels, taps)
        size = self._channels * self._width
        packed = aligned((spec.groups, self._panels, self._frequencies, size), spec.dtype)
        values = np.zeros((taps, self._channels, self._width))
        for group, panel in np.ndindex(spec.groups, self._panels):
            part = given[group, panel * self._width : (panel + 1) * self._width]
            values[:, :, : len(part)] = part.transpose(2, 1, 0)
            values[:, :, len(part) :] = 0
            packed[group, panel] = matrix @ values.reshape(taps, size)
        return packed, None

    def run(self, first: Array, second: Any, bias: Array | None, out: Array) -> None:
        """Fill ``out``."""
        fused = bias is not None and self._spec.bias == "channel"
        key = first.strides, out.strides
        kernel, stages = self._calls.get(key) or keep(self._calls, key, self._made_call(*key))
        added = self._no_bias if bias is None or not fused else self._padded(bias)
        with self._scratch.borrow() as scratch:
            values = address_of(scratch)
            addresses = *map(address_of, (first, out, second, added)), values, values + self._scratch_at
            for table, jobs in stages:
                pool.run(kernel, (*addresses, *table), jobs, self._threads)
        if bias is not None and not fused:
            GroupedBias(self._ns, self._spec, bias).add(out)

    def _padded(self, bias: Array) -> Array:
        """Return a bias that fills whole panels."""
        shape = self._spec.groups, self._panels * self._width
        padded = np.zeros(shape, bias.dtype)
        padded[:, : self._outputs] = bias.reshape(shape[0], -1)
        return padded

    def _made_call(
        self, x_bytes: tuple[int, ...], y_bytes: tuple[int, ...]
    ) -> tuple[Kernel, list[tuple[tuple[int, ...], int]]]:
        """Return the kernel for arrays of these strides, and for each stage its arguments and jobs."""
        cut = self._cut
        x, y = (self._in_items(strides) for strides in (x_bytes, y_bytes))
        variant = Variant(self._spec.dtype, self._tile, self._taps, self._shape, _order(x), _order(y))
        known = self._known_arguments(x, y, (0, 0) if variant.x_order == "nothing" else self._inside)

        def stage(first: int, blocks: int, vectors: int, panels: int) -> tuple[tuple[int, ...], int]:
            """Work on some blocks; by parts of so many vectors of channels, or panels of outputs."""
            parts = max(self._channel_vectors // vectors if vectors else 0, self._panels // panels if panels else 0)
            here = {"first_block": first, "blocks": blocks, "channel_part": vectors, "panel_part": panels}
            arguments = known | here
            return tuple(arguments[name] for name in winograd.ARGUMENTS[_GIVEN:]), blocks * parts

        if not cut.together:
            stages = [stage(0, self._blocks, self._channel_vectors, self._panels)]
        else:
            starts = range(0, self._blocks, cut.together)
            parts = [(first, min(cut.together, self._blocks - first)) for first in starts]
            stages = [stage(*part, *halves) for part in parts for halves in ((1, 0), (0, 1))]
        return winograd.kernel(variant, self._target), stages

    def _known_arguments(self, x: tuple[int, ...], y: tuple[int, ...], inside: tuple[int, int]) -> dict[str, int]:
        """Return what all stages of a call are told, by name; columns ``inside`` read neighbours."""
        spec, cut = self._spec, self._cut
        known = {"first": inside[0], "last": inside[1], "groups": spec.groups, "panels": self._panels}
        known |= {"channels": self._channels, "outputs": self._outputs, "slots": cut.slots, "pitch": self._pitch}
        for array, steps in (("x", x), ("y", y)):
            names = (f"{array}_{name}" for name in ("image", "group", "channel", *_AXES))
            known |= zip(names, steps, strict=True)
        sizes = stacked(spec, spec.output_size), cut.tiles, cut.block, cut.blocks, map(address_of, self._tables)
        for axis, size, tiles, block, blocks, table in zip(_AXES, *sizes, strict=True):
            known |= {f"{axis}s": table, f"output_{axis}s": size, f"tile_{axis}s": tiles}
            known |= {f"block_{axis}": block, f"blocks_{axis}": blocks}
        known["values_block" if cut.together else "values_thread"] = self._values_items
        known["values_thread" if cut.together else "values_block"] = 0
        return known | {"scratch_thread": self._thread_items, "strip": self._products_items}

    def _in_items(self, strides: tuple[int, ...]) -> tuple[int, ...]:
        """Return (image, group, channel, depth, row, column), images stacked, of (N, G, C, *axes) in bytes."""
        image, group, channel, *axes = (stride // self._spec.itemsize for stride in strides)
        depth, row, column = three(axes, 0)
        if self._spec.ndim < 3:
            image, depth = 0, image
        return image, group, channel, depth, row, column


def _order(strides: tuple[int, ...]) -> str:
    """Return what lies side by side."""
    return "columns" if strides[5] == 1 else "channels" if strides[2] == 1 else "nothing"
