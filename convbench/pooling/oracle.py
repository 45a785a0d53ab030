"""The truth for larger inputs: the definition by index tables, in float64; and the verdict on a result.

:func:`pool` equals :func:`convbench.pooling.reference.pool` (a test says so for random specs) and shares no code with
any algorithm: windows are gathered by tables of positions, made from the spec's fields.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cached_property
from math import prod
from typing import Any

import numpy as np
from numpy.typing import NDArray

from convbench.bounds import ErrorBound
from convbench.oracle import Verdict
from convbench.pooling.spec import PoolSpec

__all__ = ["PoolTruth", "first_maxima", "pool", "scatter_sums", "window_counts", "window_sums"]

Array = NDArray[Any]

_GATHERED = 2**21  # elements gathered at a time


def pool(spec: PoolSpec, x: Array, g: Array | None = None) -> Array:
    """Return y, or ∂J/∂x where the spec says so, in float64 (integers: in their own dtype)."""
    with np.errstate(all="ignore"):
        x = x if "int" in spec.dtype else x.astype(np.float64)
        if g is None:
            return _forward(spec, x)
        g = g.astype(np.float64)
        if spec.kind == "max":
            return _scatter_maxima(spec, first_maxima(spec, x), g)
        if spec.kind == "mean":
            return scatter_sums(spec, g / window_counts(spec))
        y = _forward(spec, x)
        read = scatter_sums(spec, np.ones_like(g)) > 0  # what no window reads has no gradient, be it NaN
        return np.where(read, x * scatter_sums(spec, np.where(y == 0, 0.0, g / y)), 0.0)


def _forward(spec: PoolSpec, x: Array) -> Array:
    if spec.kind == "max":
        return _by_axes(spec, x, lambda samples, inside, axis: np.max(samples, axis=axis))
    if spec.kind == "mean":
        return window_sums(spec, x) / window_counts(spec)
    return np.asarray(np.sqrt(window_sums(spec, x * x)))


def window_sums(spec: PoolSpec, x: Array) -> Array:
    """Return the sums of float64 samples over the windows; relative error γ of the windows' lengths added up."""
    return _by_axes(spec, x, lambda samples, inside, axis: np.sum(np.where(inside, samples, 0.0), axis=axis))


def window_counts(spec: PoolSpec) -> Array:
    """Return what a mean divides by, for each output."""
    counts = np.ones(())
    for axis in range(spec.ndim):
        lengths = _positions(spec, axis)[1].sum(axis=1).astype(np.float64)
        if spec.count_include_pad:
            lengths[:] = spec.kernel_size[axis]
        counts = counts[..., None] * lengths
    return counts


def scatter_sums(spec: PoolSpec, h: Array) -> Array:
    """Return the adjoint of :func:`window_sums`: h[p] added to every sample of the window of p."""
    for axis in range(spec.ndim):
        table, inside = _positions(spec, axis)
        columns = np.moveaxis(h, 2 + axis, 0)
        added = np.zeros((spec.input_size[axis], *columns.shape[1:]))
        for positions, valid in zip(table.T, inside.T, strict=True):
            np.add.at(added, positions[valid], columns[valid])
        h = np.moveaxis(added, 0, 2 + axis)
    return h


def first_maxima(spec: PoolSpec, x: Array) -> Array:
    """Return, for each output, where its first maximum (or NaN) lies in the flattened channel."""
    shape = (spec.batch * spec.channels, prod(spec.output_size))
    flat = x.reshape(shape[0], prod(spec.input_size))
    tables = [_positions(spec, axis) for axis in range(spec.ndim)]
    found = np.zeros(shape, np.intp)
    step = max(1, _GATHERED // max(1, shape[0] * prod(table.shape[1] for table, _ in tables)))
    for first in range(0, shape[1], step):
        outputs = np.unravel_index(np.arange(first, min(first + step, shape[1])), spec.output_size)
        windows, inside = np.zeros((len(outputs[0]), 1), np.intp), np.ones((len(outputs[0]), 1), bool)
        for size, p, (table, valid) in zip(spec.input_size, outputs, tables, strict=True):
            windows = (windows[:, :, None] * size + table[p][:, None]).reshape(len(p), -1)
            inside = (inside[:, :, None] & valid[p][:, None]).reshape(len(p), -1)
        if not inside.all():
            order = np.argsort(~inside, axis=1, kind="stable")  # samples first, in their order; padding behind them
            windows, inside = np.take_along_axis(windows, order, 1), np.take_along_axis(inside, order, 1)
            windows = np.where(inside, windows, windows[:, :1])
        best = np.argmax(flat[:, windows], axis=2)  # of equal ones the first, and the first NaN
        found[:, first : first + step] = windows[np.arange(len(windows)), best]
    return found.reshape(spec.output_shape)


def _scatter_maxima(spec: PoolSpec, where: Array, g: Array) -> Array:
    planes, size = spec.batch * spec.channels, prod(spec.input_size)
    gx = np.zeros(planes * size)
    places = where.reshape(planes, prod(spec.output_size)) + size * np.arange(planes)[:, None]
    np.add.at(gx, places.ravel(), g.ravel())
    return gx.reshape(spec.input_shape)


def _positions(spec: PoolSpec, axis: int) -> tuple[Array, NDArray[np.bool_]]:
    """Return which samples each output reads along an axis, a row each, and which of the entries count."""
    size, p = spec.input_size[axis], np.arange(spec.output_size[axis])[:, None]
    if spec.adaptive is not None:
        first, stop = p * size // spec.adaptive[axis], -(-(p + 1) * size // spec.adaptive[axis])
    else:
        first = p * spec.stride[axis] - spec.padding[axis][0]
        stop = first + spec.kernel_size[axis]
    table = first + np.arange(int((stop - first).max()))
    inside = (table >= 0) & (table < size) & (table < stop)
    return np.clip(table, np.maximum(first, 0), np.minimum(stop, size) - 1), inside


def _by_axes(spec: PoolSpec, x: Array, reduce: Callable[[Array, Array, int], Array]) -> Array:
    """Reduce one axis after the other; entries that do not count repeat a sample of the same window."""
    for axis in range(spec.ndim):
        table, inside = _positions(spec, axis)
        x = np.moveaxis(x, 2 + axis, 0)
        y = np.empty((len(table), *x.shape[1:]), x.dtype)
        step = max(1, _GATHERED // max(1, table.shape[1] * prod(x.shape[1:])))
        for first in range(0, len(table), step):
            part = slice(first, first + step)
            counts = inside[part].reshape(*inside[part].shape, *(1,) * (x.ndim - 1))
            y[part] = reduce(x[table[part]], counts, 1)
        x = np.moveaxis(y, 0, 2 + axis)
    return np.ascontiguousarray(x)


class PoolTruth:
    """The right answer for one spec and its data, worked out once, against which any result is judged.

    Parameters
    ----------
    spec : PoolSpec
    x, g : numpy.ndarray
        ``g`` for the gradient only. Both are copied, so a backend that overwrites them cannot change the verdict.
    """

    def __init__(self, spec: PoolSpec, x: Array, g: Array | None = None) -> None:
        self.spec, self._x, self._g = spec, x.copy(), None if g is None else g.copy()
        self.y = pool(spec, self._x, self._g)

    @cached_property
    def scale(self) -> Array:
        """The natural unit of an error: the result of |x| (and |g|), where nothing cancels."""
        with np.errstate(all="ignore"):
            if "int" in self.spec.dtype or (self.spec.kind == "max" and self._g is None):
                return np.abs(self.y).astype(np.float64)
            if self.spec.kind == "max":
                assert self._g is not None
                return _scatter_maxima(self.spec, first_maxima(self.spec, self._x), np.abs(self._g).astype(np.float64))
            return pool(self.spec, np.abs(self._x), None if self._g is None else np.abs(self._g))

    def allowed(self, bound: ErrorBound) -> Array:
        """Return the largest |ŷ − y| that ``bound`` permits; see :mod:`convbench.pooling.bounds`."""
        spec = self.spec
        if "int" in spec.dtype:
            return np.zeros(spec.result_shape)
        info, exact = np.finfo(spec.dtype), spec.kind == "max" and self._g is None
        own = 0.0 if exact else 2.0**-52 * (2 * (spec.terms + spec.readers) + 4)
        with np.errstate(all="ignore"):
            limit = (float(info.eps) * bound.componentwise + own) * self.scale
            if bound.normwise:
                limit = limit + self._from_sums(float(info.eps) * bound.normwise)
            return np.asarray(limit + 2 * spec.readers * float(info.smallest_subnormal) * (not exact))

    def _from_sums(self, relative: float) -> Array:
        """What an error of ``relative`` · (the sum over the whole channel) in a window's sum does to the result."""
        spec, space = self.spec, tuple(range(2, 2 + self.spec.ndim))
        if self._g is not None:
            whole = np.abs(self._g / window_counts(spec)).sum(axis=space, keepdims=True, dtype=np.float64)
            return np.broadcast_to(relative * whole, spec.result_shape)
        if spec.kind == "mean":
            whole = np.abs(self._x).sum(axis=space, keepdims=True, dtype=np.float64)
            return np.asarray(relative * whole / window_counts(spec))
        error = relative * (self._x.astype(np.float64) ** 2).sum(axis=space, keepdims=True)
        return np.asarray(error / (self.y + np.sqrt(np.maximum(self.y**2 - error, 0.0))))  # √S − √(S − δ)

    def judge(self, y: Any, bound: ErrorBound) -> Verdict:
        """Compare a result with the truth; a non-finite truth must be met by the same non-finite values."""
        expected, given = self.y, np.asarray(y)
        if given.shape != expected.shape or given.dtype != np.dtype(self.spec.result_dtype):
            text = f"expected {self.spec.result_dtype} {expected.shape}, got {given.dtype} {given.shape}"
            return Verdict(False, np.inf, np.inf, 0.0, text)
        with np.errstate(all="ignore"):
            rounded = expected.astype(given.dtype)
            same = (given == rounded) | (np.isnan(given) & np.isnan(rounded))
            wide = np.float64 if given.dtype.kind == "f" else np.longdouble
            error = np.where(same, 0.0, np.abs(given.astype(wide) - expected.astype(wide)))
            allowed = self.allowed(bound)
            wrong = ~(same | (error <= np.where(np.isfinite(allowed), allowed, 0.0)))
            unit = self.scale * (1.0 if "int" in self.spec.dtype else float(np.finfo(self.spec.dtype).eps))
            ratios = [np.where((unit > 0) & np.isfinite(e), e / unit, 0.0) for e in (error, allowed)]
            finite = [np.where(np.isfinite(a), a, 0.0).ravel() for a in (error, expected)]
            lengths = [float(np.linalg.norm(values.astype(np.float64))) for values in finite]
        message = "" if not wrong.any() else self._complaint(given, wrong, error, allowed)
        largest = [float(np.max(ratio, initial=0.0)) for ratio in ratios]
        return Verdict(not message, largest[0], lengths[0] / (lengths[1] or 1.0), largest[1], message)

    def _complaint(self, y: Array, wrong: Array, error: Array, allowed: Array) -> str:
        excess = np.where(wrong, np.where(np.isfinite(error), error, np.inf), -1.0)
        worst = np.unravel_index(int(np.argmax(excess)), wrong.shape)
        return (
            f"{int(wrong.sum())} of {wrong.size} results are wrong; the worst is [{', '.join(map(str, worst))}]: "
            f"expected {self.y[worst]:.8g}, got {y[worst]:.8g}, "
            f"error {float(error[worst]):.3g} where {float(allowed[worst]):.3g} is allowed"
        )
