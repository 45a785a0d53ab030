"""Box filters by running sums that are made of sums alone: kernels whose taps are all equal.

A sum of K neighbours is built from shorter ones, S_{a+b}[i] = S_a[i] + S_b[i + a], along an addition chain for K:
some log₂K additions an axis whatever the weights, and nothing is ever subtracted, so that rounding does not pile up
as in a running sum that adds the new sample and takes away the old, and a NaN leaves with its window. Rows lie one
behind the other in memory, and each step is one addition of a whole block to itself, shifted; what runs over the end
of a row is thrown away.

Each input channel is summed once; the outputs are mixtures of these sums.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from itertools import count
from math import isqrt, prod
from typing import Any, NamedTuple

from convbench.algorithms.blocking import Block, Blocked, Blocking, matmul_into
from convbench.arrays import Array, Namespace
from convbench.errors import UnsupportedWeights
from convbench.geometry import reduced
from convbench.refusals import refuse
from convbench.spec import DTYPES, ConvSpec

__all__ = ["Box", "addition_chain", "additions_passed", "equal_taps", "why_not_box"]

_BLOCK_BYTES = 2**22  # samples and sums of a block
_HALO_SHARE = 4  # a block is so many times as long as what its halo adds, as far as that axis goes


class Step(NamedTuple):
    """One addition: register ``target`` ← ``left`` + ``right`` moved by ``shift`` samples."""

    target: int
    left: int
    right: int
    shift: int


@cache
def addition_chain(taps: int) -> tuple[Step, ...]:
    """Return the additions that sum ``taps`` neighbours of register 0, which may be overwritten; the last is the sum.

    The factor method (Knuth, *The Art of Computer Programming* 2, section 4.6.3): a sum of a·b neighbours is one of b
    sums of a, and for a prime one of p − 1 and a last neighbour. Registers are used again as soon as they are free.

    >>> addition_chain(3)
    (Step(target=1, left=0, right=0, shift=1), Step(target=1, left=1, right=0, shift=2))
    >>> [len(addition_chain(taps)) for taps in (1, 2, 9, 31, 101)]
    [0, 1, 4, 7, 9]
    """
    steps = _factor_method(taps)
    last_use = {value: at for at, step in enumerate(steps) for value in (step.left, step.right)}
    registers, free, fresh = {0: 0}, list[int](), count(1)
    chain = []
    for at, step in enumerate(steps):
        left, right = registers[step.left], registers[step.right]
        over = sorted({value for value in (step.left, step.right) if last_use[value] == at})
        if step.left in over and step.left != step.right:  # in place: sample i is read before it is written
            target = left
            over.remove(step.left)
        else:
            target = free.pop() if free else next(fresh)
        free.extend(registers[value] for value in over)
        registers[step.target] = target
        chain.append(Step(target, left, right, step.shift))
    return tuple(chain)


def _factor_method(taps: int) -> list[Step]:
    """Return the chain with a new number for every sum."""
    steps: list[Step] = []

    def add(left: int, right: int, shift: int) -> int:
        steps.append(Step(len(steps) + 1, left, right, shift))
        return len(steps)

    def sums(taps: int, source: int, spacing: int) -> int:
        """Return the number of the sum of ``taps`` neighbours, ``spacing`` apart, of another sum."""
        if taps == 1:
            return source
        factor = next((p for p in range(2, isqrt(taps) + 1) if taps % p == 0), taps)
        if factor < taps:
            return sums(taps // factor, sums(factor, source, spacing), factor * spacing)
        return add(sums(taps - 1, source, spacing), source, (taps - 1) * spacing)

    sums(taps, 0, 1)
    return steps


@dataclass(frozen=True)
class AxisSum:
    """The sum along one axis: Σ_k x[p·s + k·d] over ``taps`` values of k.

    With s' = s / gcd(s, d) taps s'·m + r meet the samples s·(p + d'·m) + r·d: the s' components are added first, at
    1/s of the samples, then summed over ``whole`` values of m; the last ``rest`` components have one tap more.
    """

    axis: int
    taps: int
    stride: int
    dilation: int

    @property
    def phases(self) -> int:
        """Components s'."""
        return reduced(self.stride, self.dilation)[0]

    @property
    def shift(self) -> int:
        """Distance d' of neighbours in a component."""
        return reduced(self.stride, self.dilation)[1]

    @property
    def whole(self) -> int:
        """Taps that all components have."""
        return self.taps // self.phases

    @property
    def rest(self) -> int:
        """Components with one more."""
        return self.taps % self.phases

    @property
    def registers(self) -> int:
        """Images that exist at once."""
        chain = addition_chain(max(1, self.whole))
        return 1 + max((step.target for step in chain), default=0) + (self.stride > 1)

    @property
    def passed(self) -> int:
        """Additions that a sample passes on its way into the sum, at most."""
        depths = {0: 0}
        target = 0
        for target, left, right, _ in addition_chain(max(1, self.whole)):
            depths[target] = 1 + max(depths[left], depths[right])
        return (self.phases - 1) * (self.whole > 0) + depths[target] + self.rest

    def component(self, phase: int, first: int, length: int) -> slice:
        """Return samples ``first`` to ``first + length`` of a component."""
        begin = phase * self.dilation + first * self.stride
        return slice(begin, begin + (length - 1) * self.stride + 1, self.stride)


def axis_sums(spec: ConvSpec) -> list[AxisSum]:
    """Return what is to be done along each axis, in running order: strided axes first, as they leave less."""
    axes = zip(range(spec.ndim), spec.kernel_size, spec.stride, spec.dilation, strict=True)
    sums = [AxisSum(*axis) for axis in axes if axis[1:3] != (1, 1)]
    return sorted(sums, key=lambda axis: (axis.stride == 1, -axis.axis))


def additions_passed(spec: ConvSpec) -> int:
    """Return the most additions that a sample passes until all axes are summed.

    >>> additions_passed(ConvSpec.parse("i1024x1024 k31"))
    14
    """
    return sum(axis.passed for axis in axis_sums(spec))


def why_not_box(spec: ConvSpec) -> str | None:
    """Refuse kernels of one tap."""
    return refuse("kernel size", "one tap: there is nothing to sum") if set(spec.kernel_size) == {1} else None


def equal_taps(ns: Namespace, w: Array) -> Array:
    """Return the one weight of each pair of channels, (G, O/g, C/g), of weights (G, O/g, C/g, *kernel_size).

    Raises
    ------
    UnsupportedWeights
        If they are not finite, or taps of a pair differ.
    """
    taps = ns.reshape(w, (*w.shape[:3], prod(w.shape[3:])))
    if not bool(ns.xp.all(ns.xp.isfinite(taps))):
        raise UnsupportedWeights(refuse("weights", "NaN or infinity among them: sums of samples do not tell taps"))
    constant = ns.xp.all(taps == taps[..., :1], axis=3)
    if not bool(ns.xp.all(constant)):
        pairs = prod(w.shape[:3])
        differ = pairs - int(ns.xp.sum(ns.xp.astype(constant, ns.xp.int64)))
        which = "the kernel" if pairs == 1 else f"{differ} of {pairs} kernels"
        raise UnsupportedWeights(refuse("weights", f"taps of {which} differ: running sums need equal ones"))
    return taps[..., 0]


class Box(Blocked):
    """Running sums along each axis, then a mixing of the channels; any stride, dilation, groups and boundary.

    Needs weights whose taps are all equal, for each pair of channels by itself. O(N·C·∏P·Σ log K) additions and a
    GEMM of O(N·O·C/g·∏P); workspace: the block's samples and one to five images of sums for each thread.
    """

    def __init__(self, ns: Namespace, spec: ConvSpec, threads: int) -> None:
        channels, outputs = spec.in_channels // spec.groups, spec.out_channels // spec.groups
        self._axes = axis_sums(spec)
        registers = max(2, *(axis.registers for axis in self._axes))
        per_output = (registers * channels * prod(spec.stride) + outputs) * DTYPES[spec.accumulate_dtype]
        blocking = Blocking(spec, per_output, _budget(spec, per_output), threads, copy=True)
        mixed = blocking.outputs_per_block * outputs if channels > 1 else 0
        super().__init__(ns, spec, threads, blocking, (*(blocking.halo_elements,) * (registers - 1), mixed))
        self.prepared_bytes = spec.out_channels * channels * DTYPES[spec.accumulate_dtype]
        self.flops = self._count_flops()

    def prepare(self, w: Array) -> tuple[Any, None]:
        """Return the one weight of each pair of channels, (G, O/g, C/g)."""
        ns, spec = self._ns, self._spec
        taps = equal_taps(ns, w)
        mixing = ns.empty((spec.groups, self._outputs, self._channels), spec.accumulate_dtype)
        mixing[...] = ns.cast(taps, spec.accumulate_dtype)
        return mixing, None

    def _fill(self, halo: Array, weights: Any, y: Array, block: Block, buffers: Sequence[Array]) -> None:
        ns = self._ns
        *spare, product = buffers
        image = _Image([ns.reshape(halo, (-1,)), *spare], halo.shape, halo.shape)
        for axis in self._axes:
            self._sum(axis, image, block.output_size[axis.axis])
        sums, mixing = image.view(ns), weights[block.groups, ...]
        if self._channels == 1:
            return ns.multiply(sums, ns.reshape(mixing, (*mixing.shape[:2], *(1,) * self._spec.ndim)), y)
        compact = ns.reshape(image.registers[1][: prod(sums.shape)], sums.shape)
        compact[...] = sums
        return matmul_into(ns, mixing, ns.reshape(compact, (*sums.shape[:3], -1)), y, product)

    def _sum(self, axis: AxisSum, image: _Image, outputs: int) -> None:
        """Sum the image along an axis."""
        if axis.stride > 1:
            return self._sum_strided(axis, image, outputs)
        self._run(axis.taps, axis.dilation * prod(image.shape[4 + axis.axis :]), image.registers, prod(image.shape))
        image.valid = _with(image.valid, 3 + axis.axis, outputs)
        return None

    def _sum_strided(self, axis: AxisSum, image: _Image, outputs: int) -> None:
        """Add the components, sum over what all of them have, add the rest."""
        ns, place = self._ns, 3 + axis.axis
        source = image.view(ns)
        length = outputs + axis.shift * max(0, axis.whole - 1)
        image.shape, image.valid = (_with(image.valid, place, size) for size in (length, outputs))

        def component(phase: int, first: int, length: int) -> Array:
            return source[(*(slice(None),) * place, axis.component(phase, first, length), ...)]

        target = ns.reshape(image.registers[1][: prod(image.shape)], image.shape)
        target[...] = component(0, 0, length)
        for phase in range(1, axis.phases if axis.whole else axis.rest):
            target += component(phase, 0, length)
        registers = image.registers[1:]
        if axis.whole:
            self._run(axis.whole, axis.shift * prod(image.shape[place + 1 :]), registers, prod(image.shape))
        image.registers = [registers[0], image.registers[0], *registers[1:]]
        target = image.view(ns)
        for phase in range(axis.rest if axis.whole else 0):
            target += component(phase, axis.shift * axis.whole, outputs)

    def _run(self, taps: int, spacing: int, registers: list[Array], length: int) -> None:
        """Sum neighbours ``spacing`` elements apart in register 0; the result is register 0 afterwards."""
        lengths, result = {0: length}, 0
        for result, left, right, shift in addition_chain(taps):
            move = shift * spacing
            reach = min(lengths[left], lengths[right] - move)
            self._ns.add(registers[left][:reach], registers[right][move : move + reach], registers[result][:reach])
            lengths[result] = reach
        registers[0], registers[result] = registers[result], registers[0]

    def _count_flops(self) -> int:
        """Additions of all blocks, the repeated halo and the ends of rows included, and the mixing."""
        spec, blocking = self._spec, self._blocking
        total, shape, valid = 0, blocking.halo_size, blocking.halo_size
        for axis in self._axes:
            outputs = blocking.shape[2 + axis.axis]
            valid = _with(valid, axis.axis, outputs)
            if axis.stride > 1:
                shape = _with(valid, axis.axis, outputs + axis.shift * max(0, axis.whole - 1))
                merged = (axis.phases if axis.whole else axis.rest) - 1
                total += merged * prod(shape) + axis.rest * (axis.whole > 0) * prod(valid)
            total += len(addition_chain(max(1, axis.whole))) * prod(shape)
        per_block = prod(blocking.shape[:2]) * self._channels * total
        return len(blocking) * per_block + (2 * self._channels - 1) * prod(spec.output_shape)


@dataclass
class _Image:
    """A block's image on its way: in register 0, laid out as ``shape``, of which the first ``valid`` count."""

    registers: list[Array]
    shape: tuple[int, ...]
    valid: tuple[int, ...]

    def view(self, ns: Namespace) -> Array:
        """Return what counts."""
        return ns.reshape(self.registers[0][: prod(self.shape)], self.shape)[tuple(map(slice, self.valid))]


def _with(sizes: tuple[int, ...], place: int, size: int) -> tuple[int, ...]:
    return *sizes[:place], size, *sizes[place + 1 :]


def _budget(spec: ConvSpec, per_output: int) -> int:
    """Return a block's bytes: more for long kernels, so that the first axis' halo is not summed too often."""
    extent = spec.dilation[0] * (spec.kernel_size[0] - 1)
    rows = _HALO_SHARE * extent // spec.stride[0]
    return max(_BLOCK_BYTES, rows * prod(spec.output_size[1:]) * per_output)
