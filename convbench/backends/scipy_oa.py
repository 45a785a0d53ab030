"""``scipy-oa``: ``scipy.signal.oaconvolve``."""

from __future__ import annotations

import math
from dataclasses import replace
from math import log2, prod, sqrt
from typing import Any

from convbench import bounds
from convbench.backends._scipy_signal import (
    batch_flops,
    batch_workspace,
    conv_by_batches,
    convolve_by,
    scipy_mode,
    transform_rival,
)
from convbench.bounds import ErrorBound, gamma
from convbench.ops import front_doors
from convbench.spec import ConvSpec


def _signal() -> Any:
    from scipy import signal

    return signal


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
        count, points = 1, int(next_fast_len(long + short - 1, real="complex" not in spec.dtype))
        if 1 < short < long / 2:
            overlap = short - 1
            ideal = float(-overlap * lambertw(-1 / (2 * math.e * overlap), k=-1).real)
            best = int(next_fast_len(math.ceil(ideal)))
            if best < long:
                count, points = -(-long // (best - overlap)), best
        found.append((count, points))
    return found


def _flops(spec: ConvSpec) -> int:
    """See ``batch_flops``: inputs and results have one transform a block, kernels one."""
    per_axis = _blocks(spec)
    blocks, points = prod(count for count, _ in per_axis), prod(size for _, size in per_axis)
    parts = 2 if "complex" in spec.dtype else 1
    transform = 2.5 * parts * points * log2(points + 1)
    return batch_flops(spec, blocks * transform, transform, blocks * transform, blocks * parts * points / 2)


def _workspace(spec: ConvSpec) -> int:
    """Blocks, their spectra, products and results, and copies on the way."""
    return batch_workspace(spec, prod(count * (size + 2) for count, size in _blocks(spec)))


def _bound(spec: ConvSpec) -> ErrorBound:
    """Blocks of samples that do not overlap; an output adds up those parts of their results that reach it.

    With v blocks meeting in an output, Σ‖x_b‖ ≤ √v·‖x‖₂ over all of them (Cauchy and Schwarz).
    """
    blocks = [
        (points, max(1, points - kernel + 1))
        for (_, points), kernel in zip(_blocks(spec), spec.kernel_size, strict=True)
    ]
    meeting = prod(-(-points // step) for points, step in blocks)
    one = bounds.fft(spec, prod(points for points, _ in blocks), tuple(points for points, _ in blocks), meeting)
    return replace(one, normwise=one.normwise * sqrt(meeting), componentwise=gamma(meeting, spec.dtype))


BACKEND = transform_rival(
    name="scipy-oa",
    summary="signal.oaconvolve (overlap-add, pocketfft)",
    function=conv_by_batches(convolve_by(_signal, "oaconvolve")),
    workspace=_workspace,
    work=_flops,
    bound=_bound,
)
__getattr__ = front_doors("scipy-oa")
