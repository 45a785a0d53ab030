"""``scipy-oa``: ``scipy.signal.oaconvolve``."""

from __future__ import annotations

import math
from math import log2, prod

from convbench.arrays import Array
from convbench.backend import FunctionBackend
from convbench.backends._scipy_signal import (
    LIMITS,
    REQUIRES,
    conv_by_planes,
    fft_bound,
    fft_workers,
    padded_elements,
    scipy_mode,
)
from convbench.ops import front_doors
from convbench.spec import ConvSpec


def _correlate(plane: Array, kernel: Array, mode: str) -> Array:
    from scipy.signal import oaconvolve

    return oaconvolve(plane, kernel[(slice(None, None, -1),) * kernel.ndim], mode)


def _blocks(spec: ConvSpec) -> list[tuple[int, int]]:
    """Return (number of blocks, transform size) along each axis, as SciPy chooses them.

    The size that minimises the work a sample for overlap m = min(H, K) − 1 is −m·W₋₁(−1/(2em)), rounded up to a
    fast one; one whole transform where the shorter array exceeds half the longer.
    """
    from scipy.fft import next_fast_len
    from scipy.special import lambertw

    whole = scipy_mode(spec) is not None
    found = []
    for size, kernel, (a, b) in zip(spec.input_size, spec.kernel_size, spec.padding, strict=True):
        size += 0 if whole else max(0, a) + max(0, b)
        long, short = max(size, kernel), min(size, kernel)
        count, points = 1, int(next_fast_len(long + short - 1, real=True))
        if 1 < short < long / 2:
            overlap = short - 1
            ideal = float(-overlap * lambertw(-1 / (2 * math.e * overlap), k=-1).real)
            best = int(next_fast_len(math.ceil(ideal), real=True))
            if best < long:
                count, points = -(-long // (best - overlap)), best
        found.append((count, points))
    return found


def _flops(spec: ConvSpec) -> int:
    """Two transforms a block (5/2·T·log₂T each), one of the kernel, 6 FLOPs a frequency."""
    per_axis = _blocks(spec)
    blocks, points = prod(count for count, _ in per_axis), prod(size for _, size in per_axis)
    pairs = spec.batch * spec.out_channels * (spec.in_channels // spec.groups)
    return round(pairs * points * (2.5 * log2(points + 1) * (2 * blocks + 1) + 3 * blocks))


def _workspace(spec: ConvSpec) -> int:
    """Blocks, their spectra, products and results, and copies on the way."""
    blocks = prod(count * (size + 2) for count, size in _blocks(spec))
    return (6 * blocks + padded_elements(spec) + prod(spec.output_size)) * spec.itemsize


BACKEND = FunctionBackend(
    name="scipy-oa",
    summary="signal.oaconvolve (overlap-add, pocketfft)",
    kind="rival",
    function=conv_by_planes(_correlate),
    workspace=_workspace,
    work=_flops,
    pool=fft_workers,
    bound=fft_bound,
    requires=REQUIRES,
    limits=LIMITS,
)
conv, convolve, correlate, plan = front_doors("scipy-oa")
