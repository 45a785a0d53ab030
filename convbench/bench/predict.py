"""How long will a call take? Known before it is made, from something smaller that has been run."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from math import prod

from convbench.backend import Backend, second_operand
from convbench.bench.data import Data
from convbench.bench.places import place_of
from convbench.spec import ConvSpec
from convbench.threads import resolve

__all__ = ["Known", "expected_prepare_seconds", "expected_seconds", "shrink"]

PROBE_FLOPS = 2 * 10**7
ENLARGED = (8, 4, 2)  # times as much work in the second probe, which tells what a call costs apart from its work
_LONG_PROBE_S = 1.0  # a second probe that should take longer, planning and preparing included, is not made
_TRIES = 5  # the quickest counts: what disturbs a call only makes it longer
_CLEAR_S = 0.05  # a call that takes longer is timed once: it is far above what disturbs the clock
_MOST_FLOPS = 10**9  # really done by a probe: a second on a slow backend
# Of the weights of a probe:
_MOST_TERMS = 2**15  # summed into one output: some backends make a NumPy call for each
_MOST_KERNELS = 2**14  # pairs of channels: some backends transform or factorise the kernel of each
_MOST_WEIGHTS = 2**22
_HEAVY = 16  # times as many weights as samples of input and output, in one example
_DENSE = 64  # times the nominal work: the backend multiplies by a dense matrix
_LEAST_FLOPS = 10**6  # below this, what a call costs is mostly the call itself
_ALIKE = ("op", "in_channels", "out_channels", "stride", "dilation", "groups", "boundary", "layout", "dtype")
_TAPS_NEAR = 2  # the same of kernels: some implementations fall off a cliff as these grow
_NEAR = 8  # a timed call tells of others up to so many times as large; beyond, two probes say more


@dataclass(frozen=True)
class Known:
    """A call that has been timed: what, the FLOPs really done, and the seconds; and what preparing for it took."""

    spec: ConvSpec
    flops: int
    seconds: float
    prepared_bytes: int = 0
    prepare_s: float = 0.0


@dataclass(frozen=True)
class _Rate:
    """Seconds of a call of some kind: ``overhead_s`` + ``flop_s`` · FLOPs.

    ``share``: of the plan's FLOPs, what weights of ones cost; None where the values of weights do not matter.
    """

    overhead_s: float
    flop_s: float
    share: float | None = None


_UNKNOWN = _Rate(math.nan, math.nan)
_RATES: dict[tuple[str, str, str, int], _Rate] = {}  # found once a process


def expected_seconds(
    backend: Backend,
    spec: ConvSpec,
    threads: int | None = None,
    *,
    flops: int | None = None,
    known: Sequence[Known] = (),
) -> float:
    """Return how long one call should take, from the FLOPs that the backend really does.

    Parameters
    ----------
    backend : Backend
    spec : ConvSpec
    threads : int, optional
        None: every core.
    flops : int, optional
        Work of one call if known (of a plan or of prepared weights); else a plan is made to ask it.
    known : sequence of Known
        This backend's own timed calls. The largest smaller one that differs in its sizes alone is scaled up, if it
        did at least 10⁶ FLOPs and an eighth of these; else two probes are run, once a process: :func:`shrink`'s spec
        and one 8 times as large (less if the first is slow; no larger than ``spec``). A line through both separates
        the cost of the call from that of the work. No probe is made that should take much more than a second.

    Returns
    -------
    float
        Seconds; NaN if nothing smaller can be run, or not on weights of ones.

    Raises
    ------
    UnsupportedSpec, BackendUnavailable
        If the backend refuses ``spec``.
    """
    threads = resolve(threads)
    if flops is None:
        flops = backend.plan(spec, threads=threads).flops
    least = max(_LEAST_FLOPS, flops / _NEAR)
    smaller = [k for k in known if least <= k.flops <= flops and _alike(k.spec, spec)]
    if smaller:
        nearest = max(smaller, key=lambda k: k.flops)
        return nearest.seconds * flops / nearest.flops
    rate = _rate(backend, spec, threads, flops)
    likened = flops if rate.share is None else backend.plan(spec, threads=threads).flops * rate.share
    # Weights of a higher rank than the probes' make the same calls more often: their overhead grows as their work does.
    return (rate.overhead_s + rate.flop_s * likened) * flops / likened if likened else rate.overhead_s


def expected_prepare_seconds(prepared_bytes: int, known: Sequence[Known]) -> float:
    """Return how long preparing should take, by the bytes that it keeps: 0 if nothing smaller has been prepared.

    >>> expected_prepare_seconds(300, [Known(ConvSpec(input_size=8, kernel_size=3), 1, 1.0, 100, 2.0)])
    6.0
    """
    smaller = [k for k in known if 0 < k.prepared_bytes <= prepared_bytes]
    nearest = max(smaller, key=lambda k: k.prepared_bytes, default=None)
    return nearest.prepare_s * prepared_bytes / nearest.prepared_bytes if nearest else 0.0


def _alike(a: ConvSpec, b: ConvSpec) -> bool:
    """Whether a call of ``a`` tells of one of ``b``."""
    tiles = [spec.tile == spec.output_size or spec.tile for spec in (a, b)]  # unshared at any size, or of one period
    if a.ndim != b.ndim or tiles[0] != tiles[1] or prod(b.kernel_size) > _TAPS_NEAR * prod(a.kernel_size):
        return False
    return all(getattr(a, name) == getattr(b, name) for name in _ALIKE)


def shrink(spec: ConvSpec, max_flops: float = PROBE_FLOPS) -> ConvSpec:
    """Return the spec with batch 1 and its largest axes halved until it does at most ``max_flops``.

    Kernel, channels and all else stay, padding words too, so the probe does the same kind of work. Only beyond 2¹⁵
    terms, 2¹⁴ kernels (O·C/groups) or 2²² weights are they halved too, explicit padding with them. Where the weights
    far outweigh input and output, a call goes over them once for the whole batch: then channels are halved instead of
    axes, and the batch stays as far as the weights outweigh it. The result may remain above ``max_flops`` where nothing
    more can be halved.

    >>> print(shrink(ConvSpec.parse("n8 c64 o64 i224x224 k3 psame f32")))
    n1 c64 o64 i14x14 k3 psame f32
    >>> print(shrink(ConvSpec.parse("n8 c256 o512 i8x8 k4 s2 p1 f32")))
    n8 c64 o64 i8x8 k4 s2 p1 f32
    >>> print(shrink(ConvSpec.parse("i4096x4096 k1001 p500 f32")))
    n1 c1 o1 i16x16 k125x250 p63x125 f32
    """
    small = spec.replace(batch=min(spec.batch, 1))
    outweighed = prod(small.weight_shape) // max(1, prod(small.input_shape) + prod(small.output_shape))
    heavy = outweighed > _HEAVY
    if heavy:
        small = spec.replace(batch=min(spec.batch, outweighed))
    while _too_many_weights(small):
        small = _with_fewer_weights(small)
    while small.flops > max_flops:
        halved = (_with_fewer_channels(small) if heavy else None) or _halved(small)
        if halved is None:
            break
        small = halved
    return small


def _too_many_weights(spec: ConvSpec) -> bool:
    kernels = spec.out_channels * spec.in_channels // spec.groups
    terms = spec.in_channels // spec.groups * prod(spec.kernel_size)
    return terms > _MOST_TERMS or kernels > _MOST_KERNELS or spec.out_channels * terms > _MOST_WEIGHTS


def _with_fewer_weights(spec: ConvSpec) -> ConvSpec:
    """The spec with the largest of these halved: taps, channels in and out of a group, groups."""
    taps, groups = prod(spec.kernel_size), spec.groups
    inner, outer = spec.in_channels // groups, spec.out_channels // groups
    largest = max(taps, inner, outer, groups)
    if largest == taps:
        return _with_half_the_kernel(spec)
    if largest == inner:
        inner //= 2
    elif largest == outer:
        outer //= 2
    else:
        groups //= 2
    return spec.replace(groups=groups, in_channels=inner * groups, out_channels=outer * groups)


def _with_fewer_channels(spec: ConvSpec) -> ConvSpec | None:
    """The spec with the channels in or out of a group halved, whichever are more."""
    if spec.out_channels >= max(spec.in_channels, 2 * spec.groups):
        return spec.replace(out_channels=spec.out_channels // spec.groups // 2 * spec.groups)
    if spec.in_channels >= 2 * spec.groups:
        return spec.replace(in_channels=spec.in_channels // spec.groups // 2 * spec.groups)
    return None


def _with_half_the_kernel(spec: ConvSpec) -> ConvSpec:
    """The longest axis of the kernel halved, its padding in proportion: rounded up, so that an output remains."""
    kernel_size, padding = list(spec.kernel_size), list(spec.padding)
    axis = kernel_size.index(max(kernel_size))
    before, after = kernel_size[axis], kernel_size[axis] // 2
    kernel_size[axis] = after
    padding[axis] = tuple(-(-pad * (after - 1) // (before - 1)) for pad in padding[axis])  # type: ignore[assignment]
    return spec.replace(kernel_size=tuple(kernel_size), padding=spec.padding_word or padding)


def _halved(spec: ConvSpec) -> ConvSpec | None:
    """The spec with one axis halved, or as far as an output remains: the largest axis for which that is possible."""
    for axis in sorted(range(spec.ndim), key=lambda a: -spec.input_size[a]):
        size, extent = spec.input_size[axis], spec.dilation[axis] * (spec.kernel_size[axis] - 1) + 1
        least = max(1, extent - sum(spec.padding[axis]))
        smaller = size // 2 if size // 2 >= least else (size + least) // 2
        if smaller < size:
            return spec.replace(input_size=(*spec.input_size[:axis], smaller, *spec.input_size[axis + 1 :]))
    return None


def _rate(backend: Backend, spec: ConvSpec, threads: int, flops: int) -> _Rate:
    small, *larger = (_probe_spec(spec, flops, times * PROBE_FLOPS) for times in (1, *ENLARGED))
    key = (backend.name, backend.implementation, f"{small}, {larger[0]}", threads)
    if key not in _RATES:
        try:
            _RATES[key] = _probe(backend, small, larger, threads)
        except (Exception, SystemExit):  # whatever goes wrong here, the real call will show it better
            _RATES[key] = _UNKNOWN
    return _RATES[key]


def _probe_spec(spec: ConvSpec, flops: int, most: int) -> ConvSpec:
    """Shrink ``spec``, of which the backend makes ``flops``, to about ``most``: a dense matrix by its square root."""
    dense = flops > _DENSE * spec.flops
    return shrink(spec, spec.flops * math.sqrt(min(1.0, most / flops)) if dense else most)


def _probe(backend: Backend, small: ConvSpec, larger: Sequence[ConvSpec], threads: int) -> _Rate:
    first = _timed(backend, small, threads)
    if first is None:
        return _UNKNOWN
    alone = _Rate(0.0, first.seconds / first.flops, first.share)
    for large, times in zip(larger, ENLARGED, strict=True):
        if large != small and times * (first.setup_s + first.seconds) <= _LONG_PROBE_S:
            second = _timed(backend, large, threads, once=times * first.seconds > _CLEAR_S)
            return alone if second is None else _line(first, second)
    return alone


def _line(first: _Timed, second: _Timed) -> _Rate:
    """Draw a line through two probes; through the larger and the origin if there is none that rises from above it."""
    more = second.flops - first.flops
    slope = (second.seconds - first.seconds) / more if more > 0 else 0.0
    overhead_s = first.seconds - slope * first.flops
    if slope > 0 and overhead_s > 0:
        return _Rate(overhead_s, slope, first.share)
    return _Rate(0.0, second.seconds / second.flops, first.share)


@dataclass(frozen=True)
class _Timed:
    """A probe that was run: FLOPs and seconds of a call, seconds to plan and prepare; see :class:`_Rate`."""

    flops: int
    seconds: float
    setup_s: float
    share: float | None


def _timed(backend: Backend, spec: ConvSpec, threads: int, *, once: bool = False) -> _Timed | None:
    """Run the spec on ones, of rank 1 as every backend takes them: to warm up, then by the clock; or once.

    None if the backend refuses the spec, or would take too long.
    """
    if 0 in spec.output_shape or backend.why_not(spec) is not None:
        return None
    place = place_of(backend)
    planned_s, plan = place.timed(lambda: backend.plan(spec, threads=threads))
    if plan.flops > _MOST_FLOPS:
        return None
    made_s, (first, second, bias) = place.timed(lambda: place.send(_ones(spec)))
    prepared_s, weights = place.timed(lambda: second_operand(plan, second))
    if not once:
        plan(first, weights, bias)
    seconds = math.inf
    for _ in range(1 if once else _TRIES):
        call_s, _ = place.timed(lambda: plan(first, weights, bias))
        seconds = min(seconds, call_s)
        if seconds > _CLEAR_S:
            break
    own_flops = getattr(weights, "flops", None)
    share = own_flops / plan.flops if own_flops and plan.flops else None
    return _Timed(own_flops or plan.flops, seconds, planned_s + made_s + prepared_s, share)


def _ones(spec: ConvSpec) -> Data:
    import numpy as np

    shapes = (*spec.operand_shapes, spec.bias_shape)
    return Data(*(None if shape is None else np.ones(shape, spec.dtype) for shape in shapes))  # type: ignore[arg-type]
