"""The truth for larger inputs: the reference vectorised, in int64, float64 or complex128, and the verdict on a result.

:func:`conv` equals :func:`convbench.reference.conv` (a test says so for random specs of the whole family) and is fast
enough to check a 101×101 kernel on a megapixel. It shares no code with any backend.
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
from convbench.errors import SpecError
from convbench.geometry import boundary_index
from convbench.spec import ConvSpec

__all__ = ["Truth", "Verdict", "conv"]

_TOEPLITZ_BLOCK = 64  # outputs a Toeplitz block; (B + K − 1)/K of the work is wasted, the rest runs at GEMM speed
_TOEPLITZ_MIN_KERNEL = 12
_TOEPLITZ_MOST_CHANNELS = 4  # with more, one matrix product a tap is as fast and wastes nothing


def conv(spec: ConvSpec, first: NDArray[Any], second: NDArray[Any], bias: NDArray[Any] | None = None) -> NDArray[Any]:
    """Return the operation in int64/uint64, float64 or complex128, accumulated directly (no transform).

    Parameters, shapes and errors as in :func:`convbench.reference.conv`; the result is not rounded back to
    the spec's dtype. Integer arithmetic is exact as long as no sum exceeds 64 bits (not checked here).
    Componentwise error γₙ with n = ``spec.terms`` + 1 (Higham 2002, eq. 3.5).

    Notes
    -----
    The operation is bilinear, with y[p] += w[k]·x[p·s + k·d] over the input extended by its boundary; so one walk over
    the products serves all three: whichever of x, w and y is not given starts as zeros and receives their sums. The
    gradients are of ⟨a, b⟩ = Σ conj(a)·b, which conjugates their second factor.
    """
    if bias is not None and spec.op != "forward":
        raise SpecError("bias", f"shape {bias.shape}", f"must be None: {spec.op} does not depend on it")
    dtype = _summing_dtype(spec, first, second, bias)
    x: Any = np.zeros(_extended_shape(spec), dtype)
    w: Any = np.zeros(spec.weight_shape, dtype)
    y: Any = np.zeros(spec.output_shape, dtype)
    if spec.op == "forward":
        x, w, result = _extend(spec, first.astype(dtype)), second.astype(dtype), y
    elif spec.op == "input_grad":
        y, w, result = first.astype(dtype), second.astype(dtype).conj(), x
    else:
        x, y, result = _extend(spec, first.astype(dtype)).conj(), second.astype(dtype), w
    with np.errstate(all="ignore"):
        _accumulate(spec, x, w, y)
        if spec.op == "input_grad":
            result = _fold(spec, x)
        if bias is not None:
            result += _spread_bias(spec, bias.astype(dtype))
    return np.asarray(result.astype(accumulator(spec), copy=False))


def accumulator(spec: ConvSpec) -> np.dtype[Any]:
    """Return the dtype of the oracle's result: the widest of the spec's kind."""
    kinds = {"float": "float64", "bfloat": "float64", "complex": "complex128"}
    return np.dtype(kinds.get(spec.dtype.rstrip("0123456789"), spec.result_dtype))


def _summing_dtype(spec: ConvSpec, *operands: NDArray[Any] | None) -> np.dtype[Any]:
    """Return the accumulator, or float64 for integers whose every sum stays below 2⁵³: as exact, and BLAS has it."""
    if "int" not in spec.dtype:
        return accumulator(spec)
    a, b, *bias = (max(int(v.max(initial=0)), -int(v.min(initial=0))) for v in operands if v is not None)
    return np.dtype("float64") if a * b * spec.terms + sum(bias) < 2**53 else accumulator(spec)


def _extended_shape(spec: ConvSpec) -> tuple[int, ...]:
    """Return the shape of the input as the kernel sees it: from its first tap at output 0 to its last at the last."""
    reaches = (
        (outputs - 1) * stride + (kernel - 1) * dilation + 1
        for outputs, stride, kernel, dilation in zip(
            spec.output_size, spec.stride, spec.kernel_size, spec.dilation, strict=True
        )
    )
    return (spec.batch, spec.in_channels, *reaches)


def _sources(spec: ConvSpec, axis: int) -> list[int | None]:
    """Return which sample stands at each index of the extended axis, None where zeros lie."""
    before, size = spec.padding[axis][0], spec.input_size[axis]
    return [boundary_index(l - before, size, spec.boundary) for l in range(_extended_shape(spec)[2 + axis])]


def _extend(spec: ConvSpec, x: Any) -> Any:
    """Return the input as the kernel sees it: index l along an axis holds position l − a of the extension."""
    for axis in range(spec.ndim):
        sources = _sources(spec, axis)
        x = x.take([0 if i is None else i for i in sources], axis=2 + axis)
        outside = [l for l, i in enumerate(sources) if i is None]
        x[(slice(None),) * (2 + axis) + (outside,)] = 0
    return x


def _fold(spec: ConvSpec, x: Any) -> Any:
    """Return each sample's sum over the places where the extension shows it: the adjoint of :func:`_extend`."""
    for axis in range(spec.ndim):
        sources = _sources(spec, axis)
        inside = [l for l, i in enumerate(sources) if i is not None]
        shown = np.array([sources[l] for l in inside], dtype=np.intp)
        x = _sum_by_index(x.take(inside, axis=2 + axis), 2 + axis, shown, spec.input_size[axis])
    return x


def _sum_by_index(a: Any, axis: int, indices: NDArray[np.intp], size: int) -> Any:
    """Sum the entries along an axis that have the same index: the adjoint of ``take``."""
    total = np.zeros((*a.shape[:axis], size, *a.shape[axis + 1 :]), a.dtype)
    if indices.size:
        order = np.argsort(indices, kind="stable")
        present, starts = np.unique(indices[order], return_index=True)
        total[(slice(None),) * axis + (present,)] = np.add.reduceat(a.take(order, axis=axis), starts, axis=axis)
    return total


def _tap_slices(spec: ConvSpec, k: tuple[int, ...]) -> tuple[Any, ...]:
    axes = zip(k, spec.dilation, spec.output_size, spec.stride, strict=False)
    return tuple(slice(i * d, i * d + (p - 1) * s + 1, s) for i, d, p, s in axes)


def _accumulate(spec: ConvSpec, x: Any, w: Any, y: Any) -> None:
    """Add all products, in place, to whichever array the operation asks for; ``x`` is extended."""
    x = x.reshape(spec.batch, spec.groups, spec.in_channels // spec.groups, *x.shape[2:])
    w = w.reshape(spec.groups, spec.out_channels // spec.groups, *w.shape[1:])
    y = y.reshape(spec.batch, spec.groups, spec.out_channels // spec.groups, *y.shape[2:])
    if spec.flip:
        w = np.flip(w, axis=tuple(range(-spec.ndim, 0)))
    if spec.tile:
        _by_tiles(spec, x, w, y)
    elif (
        x.dtype.kind in "fc"
        and spec.kernel_size[-1] >= _TOEPLITZ_MIN_KERNEL
        and spec.stride[-1] == spec.dilation[-1] == 1
        and min(x.shape[2], y.shape[2]) <= _TOEPLITZ_MOST_CHANNELS
        and all(np.isfinite(a).all() for a in (x, w, y))  # the band's zeros would spread a NaN
    ):
        _by_bands(spec, x, w, y)
    else:
        _by_taps(spec, x, w, y)


def _by_taps(spec: ConvSpec, x: Any, w: Any, y: Any) -> None:
    """Shared weights: one (O/g × C/g) matrix product a tap."""
    outputs = y.reshape(*y.shape[:3], prod(spec.output_size))
    for k in product(*map(range, spec.kernel_size)):
        samples, tap = x[(..., *_tap_slices(spec, k))], w[(..., *k)]
        if spec.op == "input_grad":
            samples += np.matmul(tap.swapaxes(1, 2), outputs).reshape(samples.shape)
            continue
        columns = samples.reshape(*x.shape[:3], outputs.shape[-1])
        if spec.op == "forward":
            outputs += np.matmul(tap, columns)
        else:
            tap += np.matmul(outputs, columns.swapaxes(2, 3)).sum(axis=0)


def _by_tiles(spec: ConvSpec, x: Any, w: Any, y: Any) -> None:
    """Cycle through the kernels with period t along each axis (eq. 9.10), an element at a time."""
    assert spec.tile is not None
    cycles = [np.arange(p) % t for p, t in zip(spec.output_size, spec.tile, strict=True)]
    for k in product(*map(range, spec.kernel_size)):
        for c in range(x.shape[2]):
            samples, tap = x[(slice(None), slice(None), c, *_tap_slices(spec, k))], w[(..., c, *k)]
            if spec.op == "forward":
                y += samples[:, :, None] * tap[(..., *np.ix_(*cycles))]
            elif spec.op == "input_grad":
                samples += (tap[(..., *np.ix_(*cycles))] * y).sum(axis=2)
            else:
                products = (samples[:, :, None] * y).sum(axis=0)
                for axis, (cycle, period) in enumerate(zip(cycles, spec.tile, strict=True), start=2):
                    products = _sum_by_index(products, axis, cycle, period)
                tap += products


def _by_bands(spec: ConvSpec, x: Any, w: Any, y: Any) -> None:
    """Multiply by banded Toeplitz matrices along the last axis, one for each channel and tap of the other axes.

    A block of B outputs reads a window of B + K − 1 samples: with a row for each block, windows · band = blocks.
    """
    kernel, width, outputs = spec.kernel_size[-1], spec.output_size[-1], w.shape[1]
    block = min(max(_TOEPLITZ_BLOCK, kernel), 8 * _TOEPLITZ_BLOCK, width)
    count, reach = -(-width // block), block + kernel - 1
    rows = prod(spec.output_size[:-1]) * count
    windows = _windows(spec, x, block, count)
    blocks = _to_blocks(y, block, count)
    for *k, c in product(*map(range, spec.kernel_size[:-1]), range(x.shape[2])):
        samples = windows[(slice(None), slice(None), c, *_tap_slices(spec, tuple(k)))]
        tap = w[(slice(None), slice(None), c, *k)].swapaxes(1, 2)  # (G, K, O/g)
        band = np.zeros((spec.groups, reach, outputs, block), x.dtype)
        matrix = band.reshape(spec.groups, reach, outputs * block)
        diagonals = [band[:, j : j + kernel, :, j] for j in range(block)]
        if spec.op == "weight_grad":
            matrix += np.matmul(samples.reshape(*x.shape[:2], rows, reach).swapaxes(2, 3), blocks).sum(axis=0)
            tap += sum(diagonals)
            continue
        for diagonal in diagonals:
            diagonal[...] = tap
        if spec.op == "forward":
            blocks += np.matmul(samples.reshape(*x.shape[:2], rows, reach), matrix)
        else:
            samples += np.matmul(blocks, matrix.swapaxes(1, 2)).reshape(samples.shape)
    if spec.op == "forward":
        y[...] = _from_blocks(blocks, y.shape, block, count)
    elif spec.op == "input_grad":
        for i in range(count):  # windows overlap
            samples = x[..., i * block : i * block + reach]
            samples += windows[..., i, : samples.shape[-1]]


def _windows(spec: ConvSpec, x: Any, block: int, count: int) -> Any:
    """Return the windows of the last axis, (…, count, B + K − 1): a view of x, or zeros to gather ∂J/∂x in."""
    reach = block + spec.kernel_size[-1] - 1
    if spec.op == "input_grad":
        return np.zeros((*x.shape[:-1], count, reach), x.dtype)
    x = np.pad(x, [(0, 0)] * (x.ndim - 1) + [(0, count * block - spec.output_size[-1])])
    return sliding_window_view(x, reach, axis=-1)[..., ::block, :]


def _to_blocks(y: Any, block: int, count: int) -> Any:
    """Cut the last axis into blocks, filled up with zeros: (N, G, O/g, …, W) becomes (N, G, … · count, O/g · B)."""
    blocks = np.zeros((*y.shape[:-1], count * block), y.dtype)
    blocks[..., : y.shape[-1]] = y
    blocks = blocks.reshape(*y.shape[:3], prod(y.shape[3:-1]) * count, block).swapaxes(2, 3)
    return blocks.reshape(*y.shape[:2], blocks.shape[2], y.shape[2] * block)


def _from_blocks(blocks: Any, shape: tuple[int, ...], block: int, count: int) -> Any:
    """Undo :func:`_to_blocks`."""
    blocks = blocks.reshape(*blocks.shape[:3], shape[2], block).swapaxes(2, 3)
    return blocks.reshape(*shape[:-1], count * block)[..., : shape[-1]]


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

    The operands are copied, so a backend that overwrites them cannot change the verdict. ``y`` is the truth, of
    ``spec.result_shape``.
    """

    def __init__(
        self, spec: ConvSpec, first: NDArray[Any], second: NDArray[Any], bias: NDArray[Any] | None = None
    ) -> None:
        self.spec = spec
        self._first, self._second = first.copy(), second.copy()
        self._bias = None if bias is None else bias.copy()
        self.y = conv(spec, self._first, self._second, self._bias)

    @cached_property
    def scale(self) -> NDArray[Any]:
        """The operation on absolute values, |w| ∗ |x| + |bias| of the forward one: the unit of componentwise errors."""
        operands = (self._first, self._second, *(() if self._bias is None else (self._bias,)))
        return conv(self.spec.replace(dtype=self._real), *map(self._magnitudes, operands))

    def _magnitudes(self, a: NDArray[Any]) -> NDArray[Any]:
        return np.asarray(np.abs(a.astype(accumulator(self.spec))).astype(self._real))

    def norms(self, reach: tuple[int, ...] | None) -> NDArray[Any]:
        """Return the product of the operands' 2-norms in a shape that broadcasts against y; see :class:`ErrorBound`.

        Forward, ‖w‖₂ of an output channel times ‖x‖₂ of the samples named by ``reach``. For the gradients the norms
        are over whole arrays: ∂J/∂x ‖g‖₂ of an example's group times ‖w‖₂ of all that reads the input channel,
        ∂J/∂w ‖x‖₂ of the input channel times ‖g‖₂ of the output channel, examples together. All three are what Cauchy
        and Schwarz give for the sum over the channels, examples or tiles.

        A boundary other than zero shows a sample several times, m say, and a transform takes in what it shows: the
        sample's energy counts m-fold, and m elements of the extension's gradient, each with the error of one, are
        folded into that of the sample.
        """
        spec, groups = self.spec, self.spec.groups
        space = tuple(range(-spec.ndim, 0))
        first, second = (self._magnitudes(a).astype(np.float64) ** 2 for a in (self._first, self._second))
        if spec.op == "weight_grad":
            x = np.sqrt((first * self._shown).sum(axis=(0, *space))).reshape(groups, 1, -1)
            g = np.sqrt(second.sum(axis=(0, *space))).reshape(groups, -1, 1)
            return np.asarray(g * x).reshape(spec.out_channels, *(1,) * len(spec.tile or ()), -1, *(1,) * spec.ndim)
        if spec.op == "input_grad":
            outputs = spec.out_channels // groups
            g = np.sqrt(first.reshape(spec.batch, groups, outputs, *spec.output_size).sum(axis=(2, *space)))
            w = np.sqrt(second.reshape(groups, -1, *second.shape[-1 - spec.ndim :]).sum(axis=(1, *space)))
            channels = (g[..., None] * w).reshape(spec.batch, spec.in_channels, *(1,) * spec.ndim)
            return np.asarray(channels * self._shown)
        x = np.repeat(np.sqrt(self._energy(first, reach)), spec.out_channels // groups, axis=1)
        w = np.sqrt(second.reshape(spec.out_channels, -1).sum(axis=1))
        return np.asarray(x * w.reshape(-1, *(1,) * spec.ndim))

    def _energy(self, squares: NDArray[Any], reach: tuple[int, ...] | None) -> NDArray[Any]:
        """‖x‖₂² of each example's group over the samples named by ``reach``, to broadcast with (N, G, *output_size)."""
        spec = self.spec
        if reach is None:
            squares = squares * self._shown
        squares = squares.reshape(spec.batch, spec.groups, spec.in_channels // spec.groups, *spec.input_size).sum(
            axis=2
        )
        if reach is None:
            return np.asarray(squares.sum(axis=tuple(range(-spec.ndim, 0)), keepdims=True))
        if any(reach):
            return _neighbourhood_sums(spec, squares, reach)
        ones = spec.replace(groups=1, in_channels=1, out_channels=1, batch=spec.batch * spec.groups)
        ones = ones.replace(tile=None, bias="none", dtype="float64")
        window = conv(ones, squares.reshape(ones.input_shape), np.ones(ones.weight_shape))
        return window.reshape(spec.batch, spec.groups, *spec.output_size)

    @cached_property
    def _shown(self) -> NDArray[Any]:
        """How often the extension shows each sample (and 1 where it does not), shape ``spec.input_size``."""
        shown = np.ones(())
        for axis, size in enumerate(self.spec.input_size):
            sources = np.array([i for i in _sources(self.spec, axis) if i is not None], dtype=np.intp)
            shown = np.multiply.outer(shown, np.maximum(1, np.bincount(sources, minlength=size)))
        return shown

    def allowed(self, bound: ErrorBound) -> NDArray[Any]:
        """Return the largest |ŷ − y| that ``bound`` permits, the oracle's own error included."""
        if "int" in self.spec.dtype:
            return np.zeros(self.spec.result_shape)
        eps, _ = _spacings(self.spec.dtype)
        limit = (eps * bound.componentwise + self._own_error) * self.scale
        if bound.normwise:
            limit = limit + eps * bound.normwise * self.norms(bound.reach)
        return limit + self._underflow(bound)

    @property
    def _own_error(self) -> float:
        """γₙ of the oracle itself."""
        return float(np.finfo(np.float64).eps) * (self.spec.terms + 1) / 2

    def _underflow(self, bound: ErrorBound) -> float:
        """Gradual underflow: half a smallest number for each product, and one where the sum is rounded to storage.

        Where denormal numbers count as zero: the smallest normal one for each product, sum and factor, times the other.
        """
        _, stored = _spacings(self.spec.dtype)
        _, summed = _spacings(self.spec.accumulate_dtype)
        lost = stored + (self.spec.terms + 1) * summed
        if bound.flushes_denormals:
            factors = sum(float(np.max(self._magnitudes(a), initial=0.0)) for a in (self._first, self._second))
            lost += 2 * (self.spec.terms + 1) * (factors + 2) * float(np.finfo(self.spec.dtype).smallest_normal)
        return lost

    def allowed_energy(self, bound: ErrorBound) -> NDArray[Any]:
        """Return the largest ‖ŷ − y‖₂ of each example and output channel that ``bound.energy`` permits."""
        eps, _ = _spacings(self.spec.dtype)
        space = tuple(range(2, 2 + self.spec.ndim))
        limit = (eps * bound.componentwise + self._own_error) * np.sqrt((self.scale**2).sum(axis=space))
        squares = self._magnitudes(self._first).astype(np.float64) ** 2
        x = np.sqrt(self._energy(squares, None)).reshape(self.spec.batch, self.spec.groups)
        limit += eps * bound.energy * np.repeat(x, self.spec.out_channels // self.spec.groups, axis=1) * self._gains
        return np.asarray(limit + self._underflow(bound) * prod(self.spec.output_size))

    @cached_property
    def _gains(self) -> NDArray[Any]:
        """max_f √Σ_c |ŵ_oc(f)|², shape (O,), over all frequencies.

        Sampled four times as densely as needed; between samples it is at most 1/cos(π/8) a axis larger (Ehlich
        and Zeller 1964).
        """
        ndim = self.spec.ndim
        sizes = [4 * size for size in self.spec.kernel_size]
        spectra = np.fft.fftn(self._second.astype(accumulator(self.spec)), s=sizes, axes=tuple(range(-ndim, 0)))
        power = (np.abs(spectra) ** 2).sum(axis=1).reshape(self.spec.out_channels, -1)
        return np.asarray(np.sqrt(power.max(axis=1)) / np.cos(np.pi / 8) ** ndim)

    def judge(self, y: Any, bound: ErrorBound) -> Verdict:
        """Compare a result with the truth; a non-finite truth must be met by the same non-finite values."""
        expected, given = self.y, np.asarray(y)
        if given.shape != expected.shape or str(given.dtype) != self.spec.result_dtype:
            text = f"expected {self.spec.result_dtype} {expected.shape}, got {given.dtype} {given.shape}"
            return Verdict(False, np.inf, np.inf, 0.0, text)
        with np.errstate(all="ignore"):
            rounded = expected.astype(given.dtype)
            same = (given == rounded) | (np.isnan(given) & np.isnan(rounded))
            error = np.where(same & ~np.isfinite(rounded), 0.0, np.abs(given - expected))
            allowed = self.allowed(bound)
            allowed = np.where(np.isfinite(allowed), allowed, 0.0)
            wrong = ~(same | (error <= allowed))
            unit = self.scale * (1.0 if "int" in self.spec.dtype else _spacings(self.spec.dtype)[0])
            forgiven = (unit == 0) & ~wrong  # a dark corner of a photograph says nothing of the rest
            ratio = _largest_ratio(np.where(forgiven, 0.0, error), unit)
            norm = _length(error) / (_length(expected) or 1.0)
            bound_ratio = _largest_ratio(np.where(unit == 0, 0.0, allowed), unit)
        message = "" if not wrong.any() else self._complaint(given, wrong, error, allowed)
        shared = self.spec.op == "forward" and not self.spec.tile
        if not message and bound.energy and shared and np.isfinite(self.scale).all():
            message = self._complaint_of_energy(error, bound)
        return Verdict(not message, ratio, norm, bound_ratio, message)

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
        return self.spec.result_dtype if "int" in self.spec.dtype else "float64"

    def _complaint(self, y: NDArray[Any], wrong: NDArray[Any], error: NDArray[Any], allowed: NDArray[Any]) -> str:
        excess = np.where(wrong, np.where(np.isfinite(error), error, np.inf) / np.maximum(allowed, 1e-300), -1.0)
        worst = np.unravel_index(int(np.argmax(excess)), wrong.shape)
        where = ", ".join(map(str, worst))
        return (
            f"{int(wrong.sum())} of {wrong.size} {_ELEMENTS[self.spec.op]} are wrong; the worst is [{where}]: "
            f"expected {self.y[worst]:.8g}, got {y[worst]:.8g}, "
            f"error {error[worst]:.3g} where {allowed[worst]:.3g} is allowed"
        )


_ELEMENTS = {"forward": "outputs", "input_grad": "elements of ∂J/∂x", "weight_grad": "elements of ∂J/∂w"}


def _spacings(dtype: str) -> tuple[float, float]:
    """Return the spacing of a floating dtype's numbers at 1 and at 0."""
    if dtype == "bfloat16":  # NumPy has no such type
        return 2.0**-7, 2.0**-133
    info = np.finfo(dtype)
    return float(info.eps), float(info.smallest_subnormal)


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


def _length(values: NDArray[Any]) -> float:
    """2-norm of what is finite; by no BLAS, whose threads cost more than they gain here."""
    finite = np.abs(np.where(np.isfinite(values), values, 0)).astype(np.float64)
    return float(np.sqrt(np.sum(finite * finite)))


def _largest_ratio(error: NDArray[Any], unit: NDArray[Any]) -> float:
    with np.errstate(all="ignore"):
        ratio = np.where(error == 0, 0.0, error / unit)
    return float(np.max(ratio, initial=0.0))
