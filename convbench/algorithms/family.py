"""The whole family in blocks: forward and both gradients, weights shared, tiled or unshared, every boundary.

Forward, a block gathers its halo and multiplies. Each gradient is an adjoint of that: the weight gradient gathers the
same halo and multiplies by g; the input gradient multiplies by the weights transposed and adds what comes out to the
samples that the halo was gathered from.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import prod
from typing import Any, NamedTuple

from convbench.algorithms.blocking import Block, Blocked, Blocking
from convbench.algorithms.rewriting import count_parts
from convbench.arrays import Array, Namespace
from convbench.spec import DTYPES, ConvSpec
from convbench.threads import parallel, shares

__all__ = ["MANY_PARTS", "Family", "planned"]


MANY_PARTS = 64


class Family(Blocked):
    """A blocked algorithm that does the forward operation and both gradients, with any weights and boundary.

    A gradient is computed by one thread, block after block; :func:`planned` lets several work side by side.

    Attributes
    ----------
    spreads_from : int
        The input gradient of shared weights is a convolution of g as well, written once and by blocks in parallel. This
        class does it from so many outputs a channel on, where spreading over few channels is less work than gathering
        many.
    """

    spreads_from: float

    @classmethod
    def native(cls, spec: ConvSpec) -> bool:
        """Tell what is done here, and not as another convolution, or as many."""
        if spec.op != "input_grad" or spec.tile is not None:
            return True
        return spec.out_channels >= cls.spreads_from * spec.in_channels or count_parts(spec) > MANY_PARTS

    def __init__(
        self, ns: Namespace, spec: ConvSpec, threads: int, blocking: Blocking, buffers: Sequence[int] = ()
    ) -> None:
        super().__init__(ns, spec, threads, blocking, buffers)
        if spec.op == "forward":
            return
        self._lanes = 1
        sizes = {
            "input_grad": blocking.largest_halo,  # of gradients: zeros at first, wherever the block lies
            "weight_grad": blocking.halo_elements,
        }
        self._conjugates = spec.op == "weight_grad" and "complex" in spec.dtype
        part, result = blocking.outputs_per_block * self._outputs, prod(spec.result_shape)
        read = part if spec.dtype != spec.accumulate_dtype else 0  # of g, converted
        self._buffers = (sizes[spec.op], read, result if self._converts else 0, *buffers)
        extra = self._conjugates * part + blocking.folded_elements * (spec.op == "input_grad")
        self.workspace_bytes = (sum(self._buffers) + extra) * DTYPES[spec.accumulate_dtype]
        if spec.op == "weight_grad":
            self.prepared_bytes = 0

    @abstractmethod
    def _weigh(self, halo: Array, g: Array, total: Array, block: Block, buffers: Sequence[Any]) -> None:
        """Add the block's part of ∂J/∂w to ``total`` (G, O/g, [*tile,] C/g, *K)."""

    @abstractmethod
    def _spread(self, g: Array, weights: Any, halo: Array, block: Block, buffers: Sequence[Any]) -> None:
        """Add the block's part of ∂J/∂x to ``halo``."""

    def run(self, first: Array, second: Any, bias: Array | None, out: Array) -> None:
        """Fill ``out``."""
        if self._spec.op == "forward":
            super().run(first, second, bias, out)
            return
        if self._tiny:
            self._gradient(first, second, out)
            return
        with self._ns.gemm_threads(1):
            self._gradient(first, second, out)

    def _gradient(self, first: Array, second: Any, out: Array) -> None:
        """Fill ``out`` with a gradient, block after block."""
        ns = self._ns
        with self._scratch.borrow() as (padded, converted, result, *buffers):
            total = ns.reshape(result, out.shape) if self._converts else out
            total[...] = 0
            for block in self._blocking:
                if self._spec.op == "weight_grad":
                    halo = self._blocking.load(ns, first, block, padded)
                    self._weigh(halo, self._read(second, block, converted), total, block, buffers)
                else:
                    halo = ns.reshape(padded[: prod(block.halo.shape)], block.halo.shape)
                    halo[...] = 0
                    self._spread(self._read(first, block, converted), second, halo, block, buffers)
                    self._blocking.unload(ns, total, block, halo)
            if self._conjugates:  # Σ g·conj(x) is the conjugate of Σ conj(g)·x
                ns.conjugate(total)
            if self._converts:
                ns.assign(out, total)

    def _read(self, g: Array, block: Block, buffer: Array) -> Array:
        """Return the block's part of g, or of its conjugate, in the accumulation dtype."""
        part = g[block.index]
        if self._conjugates:
            return self._ns.xp.conj(part)
        if self._spec.dtype == self._spec.accumulate_dtype:
            return part
        converted = self._ns.reshape(buffer[: prod(part.shape)], part.shape)
        self._ns.assign(converted, part)
        return converted

    def _conjugated(self, w: Array) -> Array:
        """Return the weights as this operation wants them: the input gradient takes their complex conjugate."""
        if self._spec.op == "input_grad" and "complex" in self._spec.dtype:
            return self._ns.xp.conj(w)
        return w


class _Part(NamedTuple):
    """What one thread computes of a gradient: indices into (images, groups, outputs, channels), and its algorithm."""

    images: slice
    groups: slice
    outputs: slice
    channels: slice
    algorithm: Family


@dataclass(frozen=True)
class _SideBySide:
    """A gradient cut into parts that share no element of the result; a thread takes one at a time."""

    ns: Namespace
    spec: ConvSpec
    parts: Sequence[_Part]

    @property
    def workspace_bytes(self) -> int:
        return sum(part.algorithm.workspace_bytes for part in self.parts)

    @property
    def prepared_bytes(self) -> int:
        return sum(part.algorithm.prepared_bytes for part in self.parts)

    @property
    def flops(self) -> int:
        return sum(part.algorithm.flops for part in self.parts)

    def prepare(self, w: Array) -> tuple[Any, None]:
        """Return the weights of each part."""
        return [part.algorithm.prepare(self._of("w", part, w))[0] for part in self.parts], None

    def run(self, first: Array, second: Any, bias: Array | None, out: Array) -> None:
        """Run all parts."""
        names, gradient = self.spec.operand_names, "x" if self.spec.op == "input_grad" else "w"

        def run(number: int) -> None:
            part = self.parts[number]
            other = second[number] if self.spec.op == "input_grad" else self._of(names[1], part, second)
            part.algorithm.run(self._of(names[0], part, first), other, None, self._of(gradient, part, out))

        parallel(run, range(len(self.parts)), len(self.parts))

    def _of(self, name: str, part: _Part, array: Array) -> Array:
        """Return the part's view of x (N, G, C/g, …), w (G, O/g, [*tile,] C/g, …) or g (N, G, O/g, …)."""
        if name == "w":
            tile = (slice(None),) * len(self.spec.tile or ())
            return array[(part.groups, part.outputs, *tile, part.channels, ...)]
        return array[part.images, part.groups, part.channels if name == "x" else part.outputs, ...]


def planned(algorithm: Callable[[Namespace, ConvSpec, int], Family]) -> Callable[[Namespace, ConvSpec, int], Any]:
    """Return a factory whose gradients are shared out among the threads: by groups, channels, images or outputs."""

    def plan(ns: Namespace, spec: ConvSpec, threads: int) -> Any:
        if spec.op == "forward" or threads == 1:
            return algorithm(ns, spec, threads)
        extents = {
            "groups": spec.groups,
            "channels": spec.in_channels // spec.groups,
            "images": spec.batch if spec.op == "input_grad" else 1,
            "outputs": spec.out_channels // spec.groups if spec.op == "weight_grad" else 1,
        }
        by = next((name for name, extent in extents.items() if extent >= threads), "groups")
        count = min(threads, extents[by])
        parts = []
        for share in shares(extents[by], count):
            sub = _part_of(spec, by, extents | {by: share.stop - share.start})
            ranges = {name: slice(None) for name in extents} | {by: share}
            parts.append(_Part(**ranges, algorithm=algorithm(ns, sub, 1)))
        return _SideBySide(ns, spec, parts)

    return plan


def _part_of(spec: ConvSpec, by: str, sizes: dict[str, int]) -> ConvSpec:
    channels, outputs = spec.in_channels // spec.groups, spec.out_channels // spec.groups
    if by == "groups":
        groups = sizes[by]
        return spec.replace(groups=groups, in_channels=groups * channels, out_channels=groups * outputs)
    field, per = {
        "channels": ("in_channels", spec.groups),
        "outputs": ("out_channels", spec.groups),
        "images": ("batch", 1),
    }[by]
    return spec.replace(**{field: per * sizes[by]})
