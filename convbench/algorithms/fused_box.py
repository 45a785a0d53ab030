"""Box filters by the kernels of :mod:`convbench.jit.box`; with strides, dilation or three axes as separable passes."""

from __future__ import annotations

from math import prod
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from convbench.algorithms.blocking import GroupedBias
from convbench.algorithms.box import addition_chain, equal_taps
from convbench.algorithms.fused_separable import (
    Factors,
    FusedSeparable,
    has_few_taps,
    kernel_axes,
    line_arguments,
    line_cut,
    place_arguments,
)
from convbench.arrays import Namespace
from convbench.jit import pool
from convbench.jit.box import ARGUMENTS, BoxForm, box_kernel
from convbench.jit.compile import Kernel
from convbench.jit.memory import address_of, keep, usual_strides
from convbench.jit.target import host_target
from convbench.spec import ConvSpec

__all__ = ["FusedBox"]

Array = NDArray[Any]

_GIVEN = ARGUMENTS.index("scratch") + 1  # arguments that change from call to call come first


class Mixing(NamedTuple):
    """Prepared weights: one for each pair of channels, and the passes that are as good."""

    weights: Array
    passes: Factors


class FusedBox:
    """Sums over boxes, forward, of 1 to 3 axes, then a mixing of the channels; any stride, dilation and boundary.

    Needs weights whose taps are all equal, for each pair of channels by itself. With stride and dilation 1 and samples
    that are neighbours along rows, O(N·C·∏P·log K) additions, K along rows; else O(N·O·C/g·∏P·ΣK), as for the few taps
    that are multiplied faster than summed.
    """

    def __init__(self, ns: Namespace, spec: ConvSpec, threads: int) -> None:
        self._ns, self._spec, self._threads = ns, spec, threads
        self._axes = depth, rows, columns = kernel_axes(spec)
        by_taps = has_few_taps(self._axes) and spec.out_channels == spec.groups
        simple = depth.taps == 1 and rows.shared and columns.shared and 0 not in spec.output_shape
        self._in_lines = simple and not by_taps
        self._chain = np.array(addition_chain(columns.taps), np.int64).reshape(-1, 4)
        self._target = host_target()
        self._cut = line_cut(
            spec,
            self._axes,
            self._target,
            threads,
            images=spec.batch * spec.groups,
            lines=1 + int(self._chain[:, 0].max(initial=0)),
            sums=rows.taps + 2,
            multiple=rows.taps,
        )
        self._no_bias = np.zeros(spec.out_channels, spec.dtype)
        self._made: dict[Any, tuple[Kernel, tuple[int, ...]] | None] = {}
        usual = usual_strides(spec)
        in_lines = keep(self._made, usual, self._make_call(*usual)) is not None
        items = self._in_lines * self._cut.items * threads
        self._passes = FusedSeparable(ns, spec, threads, compile_now=not in_lines, scratch_items=items)
        pairs = spec.out_channels * (spec.in_channels // spec.groups)
        self.workspace_bytes = self._passes.workspace_bytes
        self.prepared_bytes = self._passes.prepared_bytes + pairs * spec.itemsize
        self.flops = self._count_flops() if in_lines else self._passes.flops

    def prepare(self, w: Array) -> tuple[Mixing, None]:
        """Return the one weight of each pair of channels."""
        weights = np.ascontiguousarray(equal_taps(self._ns, w))
        return Mixing(weights, self._passes.equal_taps(weights)), None

    def run(self, first: Array, second: Mixing, bias: Array | None, out: Array) -> None:
        """Fill ``out``."""
        strides = first.strides, out.strides
        try:
            call = self._made[strides]
        except KeyError:
            call = keep(self._made, strides, self._make_call(*strides))
        if call is None:
            return self._passes.run(first, second.passes, bias, out)
        kernel, arguments = call
        fused = bias is not None and self._spec.bias == "channel"
        starts = np.ascontiguousarray(bias) if fused else self._no_bias
        with self._passes.scratch.borrow() as scratch:
            addresses = map(address_of, (first, out, starts, second.weights, scratch))
            jobs = self._spec.batch * self._spec.groups * prod(self._cut.blocks)
            pool.run(kernel, (*addresses, *arguments), jobs, self._threads)
        if bias is not None and not fused:
            GroupedBias(self._ns, self._spec, bias).add(out)
        return None

    def _make_call(self, x_bytes: tuple[int, ...], y_bytes: tuple[int, ...]) -> tuple[Kernel, tuple[int, ...]] | None:
        """Return the kernel for arrays of these strides, and the arguments that do not change."""
        spec = self._spec
        known = place_arguments(spec, self._axes, x_bytes, y_bytes)
        if not self._in_lines or known["x2"] != 1:
            return None
        known |= line_arguments(self._axes, self._cut)
        known |= {"chain": address_of(self._chain), "steps": len(self._chain)}
        kernel = box_kernel(self._target, BoxForm(spec.dtype, len(self._chain) > 0))
        return kernel, tuple(known[name] for name in ARGUMENTS[_GIVEN:])

    def _count_flops(self) -> int:
        """Additions along columns and rows, and the mixing."""
        spec, rows = self._spec, self._axes[1]
        down = 3 if rows.taps > 1 else 1
        sums = spec.batch * spec.in_channels * prod(spec.output_size) * (down + len(self._chain))
        return sums + 2 * prod(spec.output_shape) * (spec.in_channels // spec.groups)
