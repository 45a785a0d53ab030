"""Two algorithms of a stranger's: one as a pure function, one that follows convbench's protocols with no adapter."""

from __future__ import annotations

from typing import Any

import numpy as np

import convbench as cb

# -- a function: Kronecker substitution -----------------------------------------------------------------------------


def kronecker(spec: cb.ConvSpec, x: np.ndarray, w: np.ndarray) -> np.ndarray:
    """Convolve integers by multiplying integers: sequences as the digits, in base 2⁶⁴, of a product of two numbers.

    CPython multiplies them by Karatsuba's method. Products are summed over channels before the digits are read.
    """
    (size,), (kernel,), (step,), (dilation,) = spec.input_size, spec.kernel_size, spec.stride, spec.dilation
    (before, _), (outputs,) = spec.padding[0], spec.output_size
    inner, outer = spec.in_channels // spec.groups, spec.out_channels // spec.groups
    taps = w if spec.flip else w[..., ::-1]
    spaced = np.zeros((*w.shape[:2], dilation * (kernel - 1) + 1), w.dtype)
    spaced[..., ::dilation] = taps
    weights = [[_number(row) for row in rows] for rows in spaced]
    digits = size + dilation * (kernel - 1)
    first = dilation * (kernel - 1) - before  # digit of output 0, perhaps outside the product
    wanted = first + step * np.arange(outputs)
    inside = (wanted >= 0) & (wanted < digits)
    y = np.zeros(spec.output_shape, np.int64)
    for image, rows in zip(y, x, strict=True):
        samples = [_number(row) for row in rows]
        for o, row in enumerate(image):
            group = samples[o // outer * inner : (o // outer + 1) * inner]
            total = sum(a * b for a, b in zip(group, weights[o], strict=True))
            row[inside] = _digits(total, digits)[wanted[inside]]
    return y


def _number(digits: np.ndarray) -> int:
    """Return Σ digits[i]·2^(64i)."""
    positive, negative = (
        int.from_bytes(np.maximum(part, 0).astype("<u8").tobytes(), "little")
        for part in (digits.astype(np.int64), -digits.astype(np.int64))
    )
    return positive - negative


def _digits(number: int, count: int) -> np.ndarray:
    """Invert :func:`_number` for digits of magnitude below 2⁶³: 2⁶³ is added to each, so that none is negative."""
    offset = int.from_bytes(np.full(count, 2**63, "<u8").tobytes(), "little")
    raised = np.frombuffer((number + offset).to_bytes(8 * count, "little"), "<u8")
    return (raised ^ np.uint64(2**63)).view(np.int64)


def _workspace(spec: cb.ConvSpec) -> int:
    digits = spec.input_size[0] + spec.dilation[0] * spec.kernel_size[0]
    numbers = spec.in_channels + 8 + np.prod(spec.weight_shape[:2])  # of 30 bits in 32, a few of them under way
    return int(9 * numbers * digits + 32 * spec.output_size[0])


KRONECKER = cb.FunctionBackend(
    name="kronecker",
    summary="Kronecker substitution: products of long integers",
    function=kronecker,
    workspace=_workspace,
    limits=cb.Limits(axes=(1,), dtypes=("int8", "int16", "int32", "int64", "uint8", "uint16", "uint32")),
)


# -- a class from scratch: Karatsuba's method, overlap-add ----------------------------------------------------------


class Karatsuba:
    """One axis, one channel: blocks as long as the kernel, each multiplied by it as polynomials are (Karatsuba 1962).

    With halves a = a₀ + z·a₁ and w = w₀ + z·w₁, three products do in place of four:
    a₀w₁ + a₁w₀ = (a₀ + a₁)(w₀ + w₁) − a₀w₀ − a₁w₁. Neighbouring blocks' products overlap and are added.
    """

    name, kind, device = "karatsuba", "own", "cpu"
    implementation = f"Karatsuba's method on blocks, overlap-add (numpy {np.__version__})"

    def unavailable(self) -> str | None:
        return None

    def why_not(self, spec: cb.ConvSpec) -> str | None:
        if spec.dtype not in ("float32", "float64"):
            return f"dtype: {spec.dtype} given, only float32 and float64 are done"
        if spec.op != "forward":
            return f"op: {spec.op} given, only forward is done"
        if spec.ndim != 1 or spec.in_channels != 1 or spec.out_channels != 1:
            return "axes: only one axis and one channel are done"
        if spec.stride != (1,) or spec.dilation != (1,):
            return "stride: only stride 1 and dilation 1 are done"
        if spec.boundary != "zero" or spec.tile or spec.layout != "channels_first":
            return "boundary: only zeros, shared weights and channels_first are done"
        return None

    def plan(self, spec: cb.ConvSpec, *, threads: int | None = None) -> KaratsubaPlan:
        if threads is not None and (not isinstance(threads, int) or threads < 1):
            raise cb.SpecError("threads", threads, "must be an integer ≥ 1, or None")
        reason = self.why_not(spec)
        if reason:
            raise cb.UnsupportedSpec(f"{self.name}: {reason}")
        return KaratsubaPlan(spec)

    def error_bound(self, spec: cb.ConvSpec) -> cb.ErrorBound:
        """In eps·‖a‖₂‖w‖₂: a leaf of n taps has γₙ; a level 5 times the error of its halves and 5 of its own sums.

        For ‖a₀ + a₁‖ ≤ √2·‖a‖, so the product of the sums counts twice, and each of the others once where it is
        subtracted and once where it stands.
        """
        length, error = _length(spec.kernel_size[0])
        for _ in range((length // error - 1).bit_length()):
            error = 5 * error + 6
        return cb.ErrorBound(
            source="by induction over the levels",
            componentwise=1.0,
            normwise=2.0 * error + 1,
            reach=(2 * length,),
            exact_on_integers=False,
            spreads_nonfinite=True,
        )


class KaratsubaPlan:
    """Blocks of ``length`` samples, of a padded input."""

    backend, threads, prepared_bytes = Karatsuba.name, 1, 0

    def __init__(self, spec: cb.ConvSpec) -> None:
        self.spec, self.accumulate_dtype = spec, spec.dtype
        self._length, leaf = _length(spec.kernel_size[0])
        self._padded = spec.input_size[0] + sum(spec.padding[0])
        self._blocks = -(-self._padded // self._length)
        samples = spec.batch * (self._blocks + 1) * self._length
        self.workspace_bytes = 10 * samples * spec.itemsize
        self.flops = spec.batch * self._blocks * _flops(self._length, leaf)

    def prepare(self, w: np.ndarray) -> np.ndarray:
        self._check("w", w, self.spec.weight_shape)
        taps = w[0, 0] if self.spec.flip else w[0, 0, ::-1]
        return np.pad(taps, (0, self._length - taps.size))

    def __call__(self, x: np.ndarray, weights: Any, bias: Any = None, out: Any = None) -> np.ndarray:
        spec = self.spec
        self._check("x", x, spec.input_shape)
        self._check("weights", weights, (self._length,))
        if bias is not None or spec.bias_shape is not None:
            self._check("bias", bias, spec.bias_shape)
        if out is None:
            out = np.empty(spec.output_shape, spec.dtype)
        self._check("out", out, spec.output_shape)
        if not out.flags.writeable:
            raise cb.SpecError("out", "a read-only array", "must be writeable")
        products = _product(self._cut(x), weights, _length(spec.kernel_size[0])[1])
        y = np.zeros((spec.batch, self._blocks + 1, self._length), spec.dtype)
        y[:, :-1] = products[..., : self._length]
        y[:, 1:, :-1] += products[..., self._length :]
        first = spec.kernel_size[0] - 1
        joined = y.reshape(spec.batch, (self._blocks + 1) * self._length)
        out[:, 0] = joined[:, first : first + spec.output_size[0]]
        if bias is not None:
            out += bias.reshape(-1, 1) if spec.bias == "channel" else bias
        return out

    def _cut(self, x: np.ndarray) -> np.ndarray:
        (before, after), size = self.spec.padding[0], self.spec.input_size[0]
        samples = np.zeros((len(x), self._blocks * self._length), x.dtype)
        kept = x[:, 0, max(0, -before) : size - max(0, -after)]
        samples[:, max(0, before) :][:, : kept.shape[1]] = kept
        return samples.reshape(len(x), self._blocks, self._length)

    def _check(self, name: str, array: Any, shape: tuple[int, ...] | None) -> None:
        if not isinstance(array, np.ndarray) or array.shape != shape or array.dtype != self.spec.dtype:
            given = f"{getattr(array, 'dtype', type(array).__name__)} {getattr(array, 'shape', '')}"
            raise cb.SpecError(name, given, f"must be a {self.spec.dtype} array of shape {shape} for {self.spec}")


def _length(kernel: int) -> tuple[int, int]:
    """Return the least leaf·2ʲ ≥ kernel with leaf ≤ 8, and leaf."""
    levels = max(0, (kernel - 1).bit_length() - 3)
    leaf = -(-kernel // 2**levels)
    return leaf << levels, leaf


def _product(a: np.ndarray, w: np.ndarray, leaf: int) -> np.ndarray:
    """Multiply polynomials a (..., n) by w (n), to (..., 2n − 1)."""
    n, half = w.size, w.size // 2
    y = np.zeros((*a.shape[:-1], 2 * n - 1), a.dtype)
    if n == leaf:
        for k in range(n):
            y[..., k : k + n] += w[k] * a
        return y
    low, high = _product(a[..., :half], w[:half], leaf), _product(a[..., half:], w[half:], leaf)
    middle = _product(a[..., :half] + a[..., half:], w[:half] + w[half:], leaf)
    middle -= low
    middle -= high
    y[..., : n - 1], y[..., n:] = low, high
    y[..., half : half + n - 1] += middle
    return y


def _flops(n: int, leaf: int) -> int:
    return 2 * n * n if n == leaf else 3 * _flops(n // 2, leaf) + 4 * n


KARATSUBA = Karatsuba()
