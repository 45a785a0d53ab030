"""The truth for larger inputs: the reference vectorised, in int64, float64 or complex128, and the verdict on a result.

:func:`conv` equals :func:`convbench.reference.conv` (a test says so for random specs of the whole forward
family) and is fast enough to check a 101×101 kernel on a megapixel. It shares no code with any backend.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from itertools import product
from math import prod
from typing import Any

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view
from numpy.typing import NDArray

from convbench.bounds import ErrorBound
from convbench.errors import UnsupportedSpec
from convbench.geometry import boundary_index
from convbench.spec import ConvSpec

__all__ = ["Truth", "Verdict", "conv"]

_TOEPLITZ_BLOCK = 64  # outputs a Toeplitz block; (B + K − 1)/K of the work is wasted, the rest runs at GEMM speed
_TOEPLITZ_MIN_KERNEL = 12


def conv(spec: ConvSpec, x: NDArray[Any], w: NDArray[Any], bias: NDArray[Any] | None = None) -> NDArray[Any]:
    """Return the forward operation in int64/uint64, float64 or complex128, accumulated directly (no transform).

    Parameters, shapes and errors as in :func:`convbench.reference.conv`; the result is not rounded back to
    the spec's dtype. Integer arithmetic is exact as long as no sum exceeds 64 bits (not checked here).
    Componentwise error γₙ with n = ``spec.terms`` + 1 (Higham 2002, eq. 3.5).
    """
    if spec.op != "forward":
        raise UnsupportedSpec(f"op: {spec.op} is not in forward")
    dtype = accumulator(spec)
    padded: Any = _extend(spec, x.astype(dtype))
    weights: Any = w.astype(dtype)
    if spec.flip:
        weights = np.flip(weights, axis=tuple(range(-spec.ndim, 0)))
    padded = padded.reshape(spec.batch, spec.groups, spec.in_channels // spec.groups, *padded.shape[2:])
    weights = weights.reshape(spec.groups, -1, *weights.shape[1:])
    with np.errstate(all="ignore"):
        if spec.tile:
            y = _tiled(spec, padded, weights)
        elif (
            dtype != np.int64
            and dtype != np.uint64
            and spec.kernel_size[-1] >= _TOEPLITZ_MIN_KERNEL
            and spec.stride[-1] == spec.dilation[-1] == 1
            and np.isfinite(padded).all()  # the band's zeros would spread a NaN
            and np.isfinite(weights).all()
        ):
            y = _toeplitz(spec, padded, weights)
        else:
            y = _shared(spec, padded, weights)
        y = y.reshape(spec.output_shape)
        if bias is not None:
            y += _spread_bias(spec, bias.astype(dtype))
    return np.asarray(y)


def accumulator(spec: ConvSpec) -> np.dtype[Any]:
    """Return the dtype the oracle sums in: the widest of the spec's kind."""
    kinds = {"float": "float64", "bfloat": "float64", "complex": "complex128"}
    return np.dtype(kinds.get(spec.dtype.rstrip("0123456789"), spec.result_dtype))


def _extend(spec: ConvSpec, x: Any) -> Any:
    """Return the input as the kernel sees it: index l along an axis holds position l − a of the extension."""
    for axis in range(spec.ndim):
        reach = (
            (spec.output_size[axis] - 1) * spec.stride[axis] + (spec.kernel_size[axis] - 1) * spec.dilation[axis] + 1
        )
        size = spec.input_size[axis]
        indices = [boundary_index(q - spec.padding[axis][0], size, spec.boundary) for q in range(reach)]
        x = x.take([0 if i is None else i for i in indices], axis=2 + axis)
        outside = [l for l, i in enumerate(indices) if i is None]
        x[(slice(None),) * (2 + axis) + (outside,)] = 0
    return x


def _tap_slices(spec: ConvSpec, k: tuple[int, ...]) -> tuple[Any, ...]:
    axes = zip(k, spec.dilation, spec.output_size, spec.stride, strict=False)
    return tuple(slice(i * d, i * d + (p - 1) * s + 1, s) for i, d, p, s in axes)


def _shared(spec: ConvSpec, x: Any, w: Any) -> Any:
    """Sum one (O/g × C/g) matrix product a tap."""
    y = np.zeros((*x.shape[:2], w.shape[1], prod(spec.output_size)), x.dtype)
    for k in product(*map(range, spec.kernel_size)):
        samples = x[(..., *_tap_slices(spec, k))].reshape(*x.shape[:3], prod(spec.output_size))
        y += np.matmul(w[(..., *k)], samples)
    return y


def _toeplitz(spec: ConvSpec, x: Any, w: Any) -> Any:
    """Multiply blocks of the last axis by a banded Toeplitz matrix, one for each tap of the other axes."""
    block, kernel, width = _TOEPLITZ_BLOCK, spec.kernel_size[-1], spec.output_size[-1]
    blocks = -(-width // block)
    x = np.pad(x, [(0, 0)] * (x.ndim - 1) + [(0, blocks * block - width)])
    windows = sliding_window_view(x, block + kernel - 1, axis=-1)[..., ::block, :]
    lead = spec.output_size[:-1]
    y = np.zeros((*x.shape[:2], w.shape[1], *lead, blocks, block), x.dtype)
    for k in product(*map(range, spec.kernel_size[:-1])):
        for c in range(x.shape[2]):
            band = np.zeros((*w.shape[:2], block + kernel - 1, block), x.dtype)
            for j in range(block):
                band[..., j : j + kernel, j] = w[(slice(None), slice(None), c, *k)]
            rows = windows[(slice(None), slice(None), c, *_tap_slices(spec, k))]
            flat = rows.reshape(*x.shape[:2], 1, prod(lead) * blocks, block + kernel - 1)
            y += np.matmul(flat, band).reshape(y.shape)
    return y.reshape(*y.shape[:-2], blocks * block)[..., :width]


def _tiled(spec: ConvSpec, x: Any, w: Any) -> Any:
    """Cycle through the kernels with period t along each axis (eq. 9.10)."""
    assert spec.tile is not None
    cycle = np.ix_(*(np.arange(p) % t for p, t in zip(spec.output_size, spec.tile, strict=True)))
    y = np.zeros((*x.shape[:2], w.shape[1], *spec.output_size), x.dtype)
    for k in product(*map(range, spec.kernel_size)):
        for c in range(x.shape[2]):
            samples = x[(slice(None), slice(None), c, *_tap_slices(spec, k))]
            y += samples[:, :, None] * w[(..., c, *k)][(..., *cycle)]
    return y


def _spread_bias(spec: ConvSpec, bias: Any) -> Any:
    """Return the bias in a shape that broadcasts against (N, O, *output_size)."""
    if spec.bias == "channel":
        return bias.reshape(-1, *(1,) * spec.ndim)
    if spec.bias == "tile":
        assert spec.tile is not None
        cycle = np.ix_(*(np.arange(p) % t for p, t in zip(spec.output_size, spec.tile, strict=True)))
        return np.asarray(bias[(slice(None), *cycle)])
    return bias


@dataclass(frozen=True)
class Verdict:
    """How far a result is from the truth.

    Attributes
    ----------
    ok : bool
        Within the bound everywhere.
    error_max_eps, bound_max_eps : float
        Largest |ŷ − y| / (|w| ∗ |x| + |bias|), and the largest that the bound allows, in units of eps, over the
        outputs where that sum is not zero. Where it is, an error beyond the bound makes it infinite. For float64 the
        oracle's own rounding shows as well.
    error_norm : float
        ‖ŷ − y‖₂ / ‖y‖₂.
    message : str
        Empty if ok, else one line: where, what was expected, what came, how many are off.
    """

    ok: bool
    error_max_eps: float
    error_norm: float
    bound_max_eps: float
    message: str


class Truth:
    """The right answer for one spec and its data, worked out once, against which any result is judged.

    The inputs are copied, so a backend that overwrites them cannot change the verdict.
    """

    def __init__(self, spec: ConvSpec, x: NDArray[Any], w: NDArray[Any], bias: NDArray[Any] | None = None) -> None:
        self.spec = spec
        self._x, self._w = x.copy(), w.copy()
        self._bias = None if bias is None else bias.copy()
        self.y = conv(spec, self._x, self._w, self._bias)

    @cached_property
    def scale(self) -> NDArray[Any]:
        """|w| ∗ |x| + |bias|, the natural unit of a componentwise error."""
        x, w = (np.abs(a).astype(self._real) for a in (self._x, self._w))
        bias = None if self._bias is None else np.abs(self._bias).astype(self._real)
        return conv(self._real_spec, x, w, bias)

    def norms(self, reach: tuple[int, ...] | None) -> NDArray[Any]:
        """‖w‖₂ · ‖x‖₂ in a shape that broadcasts against y; see :class:`ErrorBound`."""
        spec = self.spec
        energy = np.abs(self._x).astype(self._real) ** 2
        energy = energy.reshape(spec.batch, spec.groups, spec.in_channels // spec.groups, *spec.input_size).sum(axis=2)
        if reach is None:
            x_square = energy.sum(axis=tuple(range(2, energy.ndim)), keepdims=True)
        elif any(reach):
            x_square = _neighbourhood_sums(spec, energy, reach)
        else:
            ones = spec.replace(groups=1, in_channels=1, out_channels=1, batch=spec.batch * spec.groups)
            ones = ones.replace(tile=None, bias="none", dtype="float64")
            window = conv(ones, energy.reshape(ones.input_shape), np.ones(ones.weight_shape))
            x_square = window.reshape(spec.batch, spec.groups, *spec.output_size)
        x_norm = np.repeat(np.sqrt(x_square), spec.out_channels // spec.groups, axis=1)
        w_norm = np.sqrt((np.abs(self._w).astype(self._real) ** 2).reshape(spec.out_channels, -1).sum(axis=1))
        return np.asarray(x_norm * w_norm.reshape(-1, *(1,) * spec.ndim))

    def allowed(self, bound: ErrorBound) -> NDArray[Any]:
        """Return the largest |ŷ − y| that ``bound`` permits, the oracle's own error included."""
        if "int" in self.spec.dtype:
            return np.zeros(self.spec.output_shape)
        info = np.finfo(self.spec.dtype)
        terms = self.spec.terms + 1
        own = np.finfo(np.float64).eps * terms / 2  # γₙ of the oracle itself
        limit = (float(info.eps) * bound.componentwise + own) * self.scale
        if bound.normwise:
            limit = limit + float(info.eps) * bound.normwise * self.norms(bound.reach)
        return limit + terms * float(info.smallest_subnormal)  # gradual underflow: half of it a product

    def allowed_energy(self, bound: ErrorBound) -> NDArray[Any]:
        """Return the largest ‖ŷ − y‖₂ of each example and output channel that ``bound.energy`` permits."""
        info, terms = np.finfo(self.spec.dtype), self.spec.terms + 1
        space = tuple(range(2, 2 + self.spec.ndim))
        own = np.finfo(np.float64).eps * terms / 2
        limit = (float(info.eps) * bound.componentwise + own) * np.sqrt((self.scale**2).sum(axis=space))
        limit += float(info.eps) * bound.energy * self._x_norms * self._gains
        return np.asarray(limit + terms * float(info.smallest_subnormal) * prod(self.spec.output_size))

    @cached_property
    def _x_norms(self) -> NDArray[Any]:
        """‖x‖₂ of what each output channel reads, shape (N, O)."""
        spec = self.spec
        energy = (np.abs(self._x).astype(self._real) ** 2).reshape(spec.batch, spec.groups, -1 if spec.batch else 1)
        return np.repeat(np.sqrt(energy.sum(axis=2)), spec.out_channels // spec.groups, axis=1)

    @cached_property
    def _gains(self) -> NDArray[Any]:
        """max_f √Σ_c |ŵ_oc(f)|², shape (O,), over all frequencies.

        Sampled four times as densely as needed; between samples it is at most 1/cos(π/8) a axis larger (Ehlich
        and Zeller 1964).
        """
        ndim = self.spec.ndim
        sizes = [4 * size for size in self.spec.kernel_size]
        spectra = np.fft.fftn(self._w.astype(accumulator(self.spec)), s=sizes, axes=tuple(range(-ndim, 0)))
        power = (np.abs(spectra) ** 2).sum(axis=1).reshape(self.spec.out_channels, -1)
        return np.asarray(np.sqrt(power.max(axis=1)) / np.cos(np.pi / 8) ** ndim)

    def judge(self, y: Any, bound: ErrorBound) -> Verdict:
        """Compare a result with the truth; a non-finite truth must be met by the same non-finite values."""
        expected, given = self.y, np.asarray(y)
        if given.shape != expected.shape or given.dtype != np.dtype(self.spec.result_dtype):
            text = f"expected {self.spec.result_dtype} {expected.shape}, got {given.dtype} {given.shape}"
            return Verdict(False, np.inf, np.inf, 0.0, text)
        with np.errstate(all="ignore"):
            rounded = expected.astype(given.dtype)
            same = (given == rounded) | (np.isnan(given) & np.isnan(rounded))
            error = np.where(same & ~np.isfinite(rounded), 0.0, np.abs(given - expected))
            allowed = self.allowed(bound)
            allowed = np.where(np.isfinite(allowed), allowed, 0.0)
            wrong = ~(same | (error <= allowed))
            unit = self.scale * (1.0 if "int" in self.spec.dtype else float(np.finfo(self.spec.dtype).eps))
            forgiven = (unit == 0) & ~wrong  # a dark corner of a photograph says nothing of the rest
            ratio = _largest_ratio(np.where(forgiven, 0.0, error), unit)
            norm = np.linalg.norm(np.where(np.isfinite(error), error, 0.0))
            norm = norm / (np.linalg.norm(np.where(np.isfinite(expected), expected, 0.0)) or 1.0)
            bound_ratio = _largest_ratio(np.where(unit == 0, 0.0, allowed), unit)
        message = "" if not wrong.any() else self._complaint(given, wrong, error, allowed)
        if not message and bound.energy and not self.spec.tile and np.isfinite(self.scale).all():
            message = self._complaint_of_energy(error, bound)
        return Verdict(not message, ratio, float(norm), bound_ratio, message)

    def _complaint_of_energy(self, error: NDArray[Any], bound: ErrorBound) -> str:
        found = np.sqrt((error**2).sum(axis=tuple(range(2, 2 + self.spec.ndim))))
        allowed = self.allowed_energy(bound)
        if (found <= allowed).all():
            return ""
        n, o = np.unravel_index(int(np.argmax(found - allowed)), found.shape)
        return (
            f"the outputs of example {n}, channel {o} are wrong together: ‖ŷ − y‖₂ = {found[n, o]:.3g} where "
            f"{allowed[n, o]:.3g} is allowed"
        )

    @property
    def _real(self) -> str:
        return "int64" if "int" in self.spec.dtype else "float64"

    @property
    def _real_spec(self) -> ConvSpec:
        return self.spec.replace(dtype=self._real)

    def _complaint(self, y: NDArray[Any], wrong: NDArray[Any], error: NDArray[Any], allowed: NDArray[Any]) -> str:
        excess = np.where(wrong, np.where(np.isfinite(error), error, np.inf) / np.maximum(allowed, 1e-300), -1.0)
        worst = np.unravel_index(int(np.argmax(excess)), wrong.shape)
        return (
            f"{int(wrong.sum())} of {wrong.size} outputs are wrong; the worst is [{', '.join(map(str, worst))}]: "
            f"expected {self.y[worst]:.8g}, got {y[worst]:.8g}, "
            f"error {error[worst]:.3g} where {allowed[worst]:.3g} is allowed"
        )


def _neighbourhood_sums(spec: ConvSpec, x: NDArray[Any], reach: tuple[int, ...]) -> NDArray[Any]:
    """Sum x (N, G, *space) over the extent of the kernel and ``reach`` beyond it, for each output."""
    extents = [(k - 1) * d + 1 + 2 * r for k, d, r in zip(spec.kernel_size, spec.dilation, reach, strict=True)]
    padding = [(a + r, b + r) for (a, b), r in zip(spec.padding, reach, strict=True)]
    x = _extend(spec.replace(kernel_size=extents, dilation=1, padding=padding), x)
    for axis, extent in enumerate(extents, start=2):
        x = _sliding_sums(x, axis, extent)
    strides: tuple[Any, ...] = (..., *(slice(None, None, s) for s in spec.stride))
    return np.asarray(x[strides])


def _sliding_sums(x: NDArray[Any], axis: int, length: int) -> NDArray[Any]:
    """Sum ``length`` neighbours by doubling: no subtraction, so small sums beside large ones keep their digits."""
    x = np.moveaxis(x, axis, 0)
    total, power, done = np.zeros(1), x, 0
    for bit in range(length.bit_length()):
        if length >> bit & 1:
            total = total + power[done : done + x.shape[0] - length + 1]
            done += 1 << bit
        power = power[: -(1 << bit)] + power[1 << bit :]
    return np.moveaxis(total, 0, axis)


def _largest_ratio(error: NDArray[Any], unit: NDArray[Any]) -> float:
    with np.errstate(all="ignore"):
        ratio = np.where(error == 0, 0.0, error / unit)
    return float(np.max(ratio, initial=0.0))
