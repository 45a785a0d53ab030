"""Gradients and tiled weights as forward convolutions with shared weights, of the same arrays seen in another way.

Every algorithm that convolves can therefore do the whole family (indices as in the specification, along one axis):

- *Tiled weights*, period t: outputs p ≡ i (mod t) are a convolution of their own, of stride s·t, with kernel w[i].
- *Weight gradient*: ∂J/∂w[k] = Σ_p g[p]·x[k·d + p·s − a] is a convolution of x with kernel g, of stride d and dilation
  s, in which examples and channels change places.
- *Input gradient*: sample q of residue ρ = (q + a) mod s meets only the taps k ≡ k₀ (mod s/gcd(s, d)) for which
  s divides q + a − k·d, so each residue is a convolution of g, of stride 1 and dilation d/gcd(s, d), with these taps
  flipped; nothing is computed to be thrown away. What a boundary other than zero has made of the input's margins is
  computed in strips, which are added to the samples they stand for.

Parts are views of the operands; of complex ones the conjugate is a copy. A rewriting may need another one: they are
applied until all that is left is native to the algorithm. (Dumoulin and Visin 2016,
section 4, for transposed layers; Vaidyanathan 1993 for polyphase components.)
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from itertools import product
from math import prod
from typing import Any

from convbench import bounds
from convbench.algorithms.blocking import GroupedBias, ScratchPool, scratch_not_kept
from convbench.arrays import Array, Namespace
from convbench.backend import Algorithm
from convbench.bounds import ErrorBound
from convbench.geometry import extension_runs, reduced
from convbench.refusals import refuse
from convbench.spec import DTYPES, ConvSpec

__all__ = ["MOST_PARTS", "Rewritten", "bound", "count_parts", "why_not"]

#: Convolutions that one may be rewritten as.
MOST_PARTS = 1024

_MOST_KEPT = 16  # parts that keep their buffers between calls
_PLAN_BYTES = 3 * 2**14  # of a part's plan: its blocks and views
_WEIGHTS_BYTES = 2**9  # of a part's prepared weights: views and other objects of Python's

_EVERYTHING = slice(None)


@dataclass(frozen=True)
class View:
    """A part of an operand with its groups split off: an index, then a permutation of the axes."""

    index: tuple[Any, ...] = (...,)
    axes: tuple[int, ...] | None = None

    def of(self, ns: Namespace, array: Array) -> Array:
        """Return the part; nothing is copied."""
        part = array[self.index]
        return part if self.axes is None else ns.xp.permute_dims(part, self.axes)


@dataclass(frozen=True)
class Part:
    """One convolution: what of the operands it reads, and where in the target its result goes."""

    spec: ConvSpec
    first: View
    second: View
    result: View


@dataclass(frozen=True)
class Fold:
    """Add ``source`` of a target to ``place`` of the result, summed along the axes where one sample stands for many."""

    source: tuple[Any, ...]
    place: tuple[Any, ...]
    summed: tuple[int, ...] = ()


@dataclass(frozen=True)
class Target:
    """Where parts put their results: the result itself, or a buffer that is folded into it afterwards.

    Attributes
    ----------
    parts : tuple of Part
    zeros : tuple of View
        What no part reaches.
    shape : tuple of int, optional
        Of the buffer; None is the result itself.
    folds : tuple of Fold
    """

    parts: tuple[Part, ...]
    zeros: tuple[View, ...] = ()
    shape: tuple[int, ...] | None = None
    folds: tuple[Fold, ...] = ()


def targets_of(spec: ConvSpec) -> Iterator[Target]:
    """Rewrite a spec by one step; the targets come in the order in which they are to be filled."""
    if 0 in spec.result_shape:
        return
    if spec.batch == 0:
        yield Target((), zeros=(View(),))
    elif spec.tile is not None:
        yield from _by_tile_entries(spec)
    elif spec.op == "weight_grad":
        yield Target((_images_and_channels_swapped(spec),))
    else:
        yield from _by_residues(spec)


# -- tiled weights --------------------------------------------------------------------------------------------


def _by_tile_entries(spec: ConvSpec) -> Iterator[Target]:
    """One convolution an entry; entries beyond the output are never used."""
    assert spec.tile is not None
    used = [range(min(t, p)) for t, p in zip(spec.tile, spec.output_size, strict=True)]
    parts = []
    for entry in product(*used):
        outputs = View((..., *(slice(i, None, t) for i, t in zip(entry, spec.tile, strict=True))))
        weights = View((_EVERYTHING, _EVERYTHING, *entry, ...))
        views = {"x": View(), "g": outputs, "w": weights}
        first, second = (views[name] for name in spec.operand_names)
        result = {"forward": outputs, "input_grad": View(), "weight_grad": weights}[spec.op]
        parts.append(Part(_entry_spec(spec, entry), first, second, result))
    if spec.op == "input_grad":  # every entry reaches every sample: they are added up
        yield Target((), zeros=(View(),))
        for part in parts:
            yield Target((part,), shape=_grouped_input(spec), folds=(Fold((...,), (...,)),))
        return
    unused = [View((_EVERYTHING, _EVERYTHING, *beyond, ...)) for beyond in _beyond(spec.tile, used)]
    yield Target(tuple(parts), zeros=tuple(unused) if spec.op == "weight_grad" else ())


def _entry_spec(spec: ConvSpec, entry: tuple[int, ...]) -> ConvSpec:
    assert spec.tile is not None
    stride, padding = [], []
    for axis, (i, t) in enumerate(zip(entry, spec.tile, strict=True)):
        outputs = -(-(spec.output_size[axis] - i) // t)
        step, before = spec.stride[axis] * t, spec.padding[axis][0] - i * spec.stride[axis]
        extent = (outputs - 1) * step + (spec.kernel_size[axis] - 1) * spec.dilation[axis] + 1
        stride.append(step if outputs > 1 else 1)
        padding.append((before, extent - spec.input_size[axis] - before))
    return spec.replace(tile=None, bias="none", stride=stride, padding=padding)


def _beyond(tile: Sequence[int], used: Sequence[range]) -> Iterator[tuple[slice, ...]]:
    """Return the entries that no output uses, as boxes that may overlap."""
    for axis, (period, inside) in enumerate(zip(tile, used, strict=True)):
        if len(inside) < period:
            yield (*(_EVERYTHING,) * axis, slice(len(inside), period), *(_EVERYTHING,) * (len(tile) - axis - 1))


# -- the weight gradient --------------------------------------------------------------------------------------


def _images_and_channels_swapped(spec: ConvSpec) -> Part:
    """∂J/∂w as a forward convolution: channels are its images, and (group, image) its input channels."""
    padding = [
        (a, (k - 1) * d + (p - 1) * s + 1 - size - a)
        for size, k, p, s, d, (a, _) in zip(
            spec.input_size,
            spec.kernel_size,
            spec.output_size,
            spec.stride,
            spec.dilation,
            spec.padding,
            strict=True,
        )
    ]
    swapped = spec.replace(
        op="forward",
        batch=spec.in_channels // spec.groups,
        in_channels=spec.groups * spec.batch,
        kernel_size=spec.output_size,
        stride=spec.dilation,
        dilation=spec.stride,
        padding=padding,
        flip=False,
        bias="none",
        layout="channels_first",
    )
    space = tuple(range(3, 3 + spec.ndim))
    reverse = (..., *(slice(None, None, -1),) * spec.ndim) if spec.flip else (...,)
    return Part(
        swapped,
        first=View(axes=(2, 1, 0, *space)),  # x (N, G, C/g, …) as (C/g, G, N, …)
        second=View(axes=(1, 2, 0, *space)),  # g (N, G, O/g, …) as (G, O/g, N, …)
        result=View(reverse, axes=(2, 0, 1, *space)),  # ∂J/∂w (G, O/g, C/g, …) as (C/g, G, O/g, …)
    )


# -- the input gradient ---------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Segment:
    """Positions ``start`` … ``stop − 1`` of an extended input axis; ``inside`` the input, or a margin."""

    start: int
    stop: int
    inside: bool


@dataclass(frozen=True)
class _Residue:
    """Positions of a segment that meet the same taps, and these taps: one axis of a part."""

    places: slice  # within the segment
    taps: slice  # of the stored kernel
    fields: dict[str, Any]


def _by_residues(spec: ConvSpec) -> Iterator[Target]:
    for corner in product(*(_segments(spec, axis) for axis in range(spec.ndim))):
        axes = [_residues(spec, axis, segment) for axis, segment in enumerate(corner)]
        parts = tuple(_residue_part(spec, residues) for residues in product(*axes))
        sizes = tuple(segment.stop - segment.start for segment in corner)
        whole = all(
            len(found) == min(stride, size) for found, stride, size in zip(axes, spec.stride, sizes, strict=True)
        )
        zeros = () if whole else (View(),)  # what no tap reaches
        if all(segment.inside for segment in corner):
            yield Target(parts, zeros)
        elif parts:
            yield Target(parts, zeros, (*_grouped_input(spec)[:3], *sizes), tuple(_folds(spec, corner)))


def _segments(spec: ConvSpec, axis: int) -> list[_Segment]:
    """The input itself first, then what the boundary makes of it before and after."""
    size, (before, _) = spec.input_size[axis], spec.padding[axis]
    last = (spec.output_size[axis] - 1) * spec.stride[axis] + (spec.kernel_size[axis] - 1) * spec.dilation[axis]
    segments = [_Segment(0, size, True)]
    if spec.boundary != "zero":
        margins = _Segment(-before, 0, False), _Segment(size, last - before + 1, False)
        segments += [margin for margin in margins if margin.stop > margin.start]
    return segments


def _residues(spec: ConvSpec, axis: int, segment: _Segment) -> list[_Residue]:
    """Find, for each tap k₀ that begins a component, the samples it meets, every s-th, and the taps k₀ + s'·m."""
    stride, dilation, kernel = spec.stride[axis], spec.dilation[axis], spec.kernel_size[axis]
    outputs, (before, _) = spec.output_size[axis], spec.padding[axis]
    tap_step, step = reduced(stride, dilation)
    found = []
    for tap in range(min(tap_step, kernel)):
        offset = (tap * dilation - before - segment.start) % stride  # of the first sample that it meets
        count = -(-(segment.stop - segment.start - offset) // stride)
        taps = -(-(kernel - tap) // tap_step)
        start, reach = (segment.start + offset + before - tap * dilation) // stride, (taps - 1) * step
        if count < 1 or start + count - 1 < 0 or start - reach >= outputs:  # or cropped: no output reads them
            continue
        stored = slice(tap, None, tap_step)
        if spec.flip:
            stored = slice(kernel - 1 - tap - (taps - 1) * tap_step, kernel - tap, tap_step)
        fields = {
            "input_size": outputs,
            "kernel_size": taps,
            "dilation": step,
            "stride": 1,
            "padding": (reach - start, count - outputs + start),
        }
        found.append(_Residue(slice(offset, None, stride), stored, fields))
    return found


def _residue_part(spec: ConvSpec, residues: Sequence[_Residue]) -> Part:
    fields = {name: [residue.fields[name] for residue in residues] for name in residues[0].fields}
    sub = spec.replace(
        op="forward",
        in_channels=spec.out_channels,
        out_channels=spec.in_channels,
        flip=not spec.flip,
        boundary="zero",
        bias="none",
        **fields,
    )
    space = tuple(range(3, 3 + spec.ndim))
    taps = (..., *(residue.taps for residue in residues))
    result = View((..., *(residue.places for residue in residues)))
    return Part(sub, first=View(), second=View(taps, axes=(0, 2, 1, *space)), result=result)


def _folds(spec: ConvSpec, segments: Sequence[_Segment]) -> Iterator[Fold]:
    """Return where each run of a margin lies in the input."""
    axes = [
        list(extension_runs(segment.start, segment.stop, size, spec.boundary))
        for segment, size in zip(segments, spec.input_size, strict=True)
    ]
    for runs in product(*axes):
        source = (slice(run.start - s.start, run.stop - s.start) for run, s in zip(runs, segments, strict=True))
        summed = tuple(3 + axis for axis, run in enumerate(runs) if run.step == 0 and run.stop - run.start > 1)
        yield Fold((..., *source), (..., *(run.samples for run in runs)), summed)


def _grouped_input(spec: ConvSpec) -> tuple[int, ...]:
    return (spec.batch, spec.groups, spec.in_channels // spec.groups, *spec.input_size)


# -- what a backend asks --------------------------------------------------------------------------------------


def native_specs(spec: ConvSpec, native: Callable[[ConvSpec], bool]) -> Iterator[ConvSpec]:
    """Return the specs that are left when all that is not native has been rewritten."""
    if native(spec):
        yield spec
        return
    for target in targets_of(spec):
        for part in target.parts:
            yield from native_specs(part.spec, native)


def count_parts(spec: ConvSpec) -> int:
    """Return how many forward convolutions with shared weights a spec is rewritten as, at most."""
    entries = prod(map(min, spec.tile, spec.output_size)) if spec.tile else 1
    if spec.op != "input_grad":
        return entries
    shared = _entry_spec(spec, (0,) * spec.ndim) if spec.tile else spec
    residues = (
        min(reduced(stride, dilation)[0], kernel)
        for stride, dilation, kernel in zip(shared.stride, shared.dilation, shared.kernel_size, strict=True)
    )
    return entries * prod(residues) * prod(len(_segments(shared, axis)) for axis in range(spec.ndim))


def why_not(
    spec: ConvSpec, native: Callable[[ConvSpec], bool], also: Callable[[ConvSpec], str | None] | None
) -> str | None:
    """Return the reason why a spec cannot be rewritten, or the first reason against what it becomes."""
    count = count_parts(spec)
    if count > MOST_PARTS:
        topic = "tile" if spec.tile else "stride"
        return refuse(topic, f"{count} convolutions would be needed here, at most {MOST_PARTS} are done")
    if also is None:
        return None
    for part in dict.fromkeys(native_specs(spec, native)):
        reason = also(part)
        if reason is not None:
            topic, _, sentence = reason.partition(": ")
            return refuse(topic, f"{sentence} (for {part}, which this is done as)")
    return None


def bound(
    spec: ConvSpec, native: Callable[[ConvSpec], bool], native_bound: Callable[[ConvSpec], ErrorBound]
) -> ErrorBound:
    """Return the bound of the convolutions that a spec is rewritten as, and of adding them up.

    Each part obeys its own bound, whose right-hand side grows to that of the whole: the norms are taken over all of
    both operands, and Σ ‖gᵢ‖‖wᵢ‖ ≤ ‖g‖‖w‖ for entries i of a tile (Cauchy and Schwarz). What is added up afterwards is
    at most as many numbers as there are terms.
    """
    parts = [native_bound(part) for part in dict.fromkeys(native_specs(spec, native))]
    if not parts:
        return bounds.direct(spec)
    added_up = spec.op == "input_grad" and (spec.tile is not None or spec.boundary != "zero")
    return replace(
        parts[0],
        componentwise=max(part.componentwise for part in parts)
        + bounds.gamma(spec.terms + 2 if added_up else 2, spec.dtype),
        normwise=max(part.normwise for part in parts),
        energy=0.0,
        reach=None,
        exact_on_integers=all(part.exact_on_integers for part in parts),
        spreads_nonfinite=any(part.spreads_nonfinite for part in parts),
    )


# -- running --------------------------------------------------------------------------------------------------


class Rewritten:
    """A spec done as the convolutions it is rewritten as, one after the other, each with all threads.

    Parameters
    ----------
    realised : callable
        ``realised(ns, spec, threads)``: the algorithm of a part, itself rewritten if need be.
    """

    def __init__(
        self,
        ns: Namespace,
        spec: ConvSpec,
        threads: int,
        realised: Callable[[Namespace, ConvSpec, int], Algorithm],
    ) -> None:
        self._ns, self._spec = ns, spec
        targets = tuple(targets_of(spec))
        specs = dict.fromkeys(part.spec for target in targets for part in target.parts)
        take_turns = len(specs) > _MOST_KEPT
        with scratch_not_kept() if take_turns else nullcontext():
            made = {part: realised(ns, part, threads) for part in specs}
        self._targets = [(target, [(part, made[part.spec]) for part in target.parts]) for target in targets]
        self._buffer_size = max((prod(target.shape) for target, _ in self._targets if target.shape), default=0)
        added = spec.bias_shape is not None or any(target.folds for target, _ in self._targets)
        half = spec.dtype in ("float16", "bfloat16")  # what is added up is rounded to storage once, at the end
        self._sum_dtype = spec.accumulate_dtype if half and added else spec.result_dtype
        self._sums_size = prod(spec.result_shape) if half and added else 0
        self._scratch = ScratchPool(
            lambda: tuple(ns.empty((size,), self._sum_dtype) for size in (self._buffer_size, self._sums_size))
        )
        self._conjugates = "complex" in spec.dtype and spec.op != "forward"
        sizes = [algorithm.workspace_bytes for algorithm in made.values()]
        self.workspace_bytes = (max(sizes, default=0) if take_turns else sum(sizes)) + _PLAN_BYTES * len(sizes)
        summed = max(
            (prod(target.shape) // 2 for target in targets if target.shape and any(f.summed for f in target.folds)),
            default=0,
        )
        self.workspace_bytes += (self._buffer_size + self._sums_size + summed) * DTYPES[self._sum_dtype]
        parts = [algorithm for _, parts in self._targets for _, algorithm in parts]
        self.prepared_bytes = sum(algorithm.prepared_bytes + _WEIGHTS_BYTES for algorithm in parts)
        self.flops = sum(algorithm.flops for algorithm in parts)
        if spec.op == "weight_grad":  # g takes the place of the kernel
            preparing = (getattr(algorithm, "preparing_bytes", algorithm.prepared_bytes) for algorithm in parts)
            self.workspace_bytes += max(preparing, default=0)
            self.prepared_bytes = 0
        if self._conjugates:
            size = {"input_grad": spec.weight_shape, "weight_grad": spec.output_shape}[spec.op]
            self.workspace_bytes += prod(size) * spec.itemsize

    def prepare(self, w: Array) -> tuple[Any, int | None]:
        """Return the prepared weights of each part."""
        prepared, flops = [], 0
        for _, parts in self._targets:
            for part, algorithm in parts:
                view = part.second.of(self._ns, w)
                if self._conjugates and part.spec.op == "forward":
                    view = self._ns.xp.conj(view)
                weights, work = algorithm.prepare(view)
                prepared.append(weights)
                flops += algorithm.flops if work is None else work
        return prepared, flops

    def run(self, first: Array, second: Any, bias: Array | None, out: Array) -> None:
        """Fill ``out``, target by target."""
        prepared = iter(second if self._spec.op != "weight_grad" else ())
        with self._scratch.borrow() as (buffer, sums):
            total = self._ns.reshape(sums, out.shape) if self._sums_size else out
            for target, parts in self._targets:
                place = total if target.shape is None else self._ns.reshape(buffer[: prod(target.shape)], target.shape)
                for zero in target.zeros:
                    place[zero.index] = 0
                for part, algorithm in parts:
                    operand = part.first.of(self._ns, first)
                    result = part.result.of(self._ns, place)
                    if self._spec.op == "weight_grad":
                        self._weigh(part, algorithm, operand, part.second.of(self._ns, second), result)
                    else:
                        algorithm.run(operand, next(prepared), None, result)
                for fold in target.folds:
                    self._fold(fold, place, total)
            if bias is not None:
                GroupedBias(self._ns, self._spec, bias).add(total)
            if self._sums_size:
                self._ns.assign(out, total)

    def _weigh(self, part: Part, algorithm: Algorithm, x: Array, g: Array, result: Array) -> None:
        """Compute ∂J/∂w, for complex data as the conjugate of x ∗ conj(g)."""
        if part.spec.op == "weight_grad":
            algorithm.run(x, g, None, result)
            return
        conjugate = self._ns.xp.conj if self._conjugates else None
        weights, _ = algorithm.prepare(conjugate(g) if conjugate else g)
        algorithm.run(x, weights, None, result)
        if conjugate:
            self._ns.conjugate(result)

    def _fold(self, fold: Fold, buffer: Array, out: Array) -> None:
        values = buffer[fold.source]
        if fold.summed:
            values = self._ns.xp.sum(values, axis=fold.summed, keepdims=True, dtype=values.dtype)
        out[fold.place] += values
