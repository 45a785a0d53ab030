"""The data of a case: arrays made from the tokens ``x=``, ``w=`` and ``seed=``.

Inputs (shape ``spec.input_shape``):

``noise``     standard normal; with integer dtypes the same as ``integers``
``integers``  uniform in −4..4 (0..4 unsigned): every sum of moderate length is exact in float32
``range``     high dynamic range: normal numbers times a magnitude that falls evenly, on a logarithmic scale, from 1 at
              the start of the last axis to 10⁻⁶ at its end
``photo``     Matplotlib's sample photograph (600 high × 512 wide), see :func:`photograph`; mirrored where the spec asks
              for more, grey for one channel and RGB for three
``@file``     a ``.npy`` array or an image file, of exactly the size that the spec asks for; an image as the photograph:
              grey for one channel and RGB for three, in [0, 1], in integer dtypes 0..255 (int8: 0..127); transparency
              and the camera's orientation are ignored

Weights (shape ``spec.weight_shape``):

``random``    normal, scaled by 1/√terms so that outputs are of the size of inputs; integers as above
``rank3``     sum of 3 outer products of random vectors, one an axis (any number ≥ 1)
``gaussian``  separable Gaussian, σ = K/6 along each axis, unit sum
``box``       running mean, unit sum
``disk``      1 within the ellipse inscribed in the kernel (an image out of focus), unit sum
``motion``    1 along the diagonal from first to last corner (a camera that moved), unit sum; its rank is full
``sobel``, ``sharpen``  the 3×3 kernels; ``edge`` the book's difference of neighbours, 1×2
``@file``     a ``.npy`` array

A unit-sum kernel serves every pair of channels, divided by C/groups. The bias is standard normal. Each operand
draws from its own stream, so that weights do not depend on the input's size. In a gradient, g takes the place of x
or w; it is standard normal, or small integers.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import cache, partial, reduce
from math import prod, sqrt
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from convbench.errors import MissingDependency, SpecError, one_line
from convbench.spec import ConvSpec

__all__ = ["Data", "check_tokens", "make_data", "mirrored", "photograph"]

Floats = NDArray[Any]
DEFAULT_INPUT, DEFAULT_WEIGHTS = "noise", "random"
_STREAMS = ("x", "w", "bias", "g")
_LUMA = (0.299, 0.587, 0.114)  # ITU-R BT.601
_LEAST_DECADE = -6  # of x=range: about as far down as float32 sees beside 1
_IMAGES = (".png", ".jpg", ".jpeg", ".tif", ".tiff", ".bmp", ".gif", ".webp")


class Data(NamedTuple):
    """Operands of one case, named by ``spec.operand_names``, C-contiguous (or channels last, as the spec says)."""

    first: NDArray[Any]
    second: NDArray[Any]
    bias: NDArray[Any] | None

    def copy(self) -> Data:
        """Return freshly allocated operands of the same values and memory order."""
        return Data(*(None if a is None else a.copy(order="K") for a in self))  # type: ignore[arg-type]

    @property
    def nbytes(self) -> int:
        """Bytes of all operands."""
        return sum(a.nbytes for a in self if a is not None)


@dataclass(frozen=True)
class _Token:
    """One way to fill an operand: values for a spec, or the rule that the spec breaks."""

    make: Callable[[ConvSpec, np.random.Generator], Floats]
    rule: Callable[[ConvSpec], str | None] = lambda spec: None


def check_tokens(spec: ConvSpec, x: str, w: str, seed: object) -> None:
    """Raise SpecError if a token is unknown, does not suit the spec, or names a file that is not there."""
    if isinstance(seed, bool) or not isinstance(seed, int) or seed < 0:
        raise SpecError("seed", seed, "must be a whole number ≥ 0")
    for name, text, default in (("x", x, DEFAULT_INPUT), ("w", w, DEFAULT_WEIGHTS)):
        if name not in spec.operand_names and text != default:
            raise SpecError(name, text, f"has no place in op={spec.op}, which takes {' and '.join(spec.operand_names)}")
        broken = _token(name, text).rule(spec)
        if broken:
            raise SpecError(name, text, broken)


def make_data(spec: ConvSpec, x: str, w: str, seed: int) -> Data:
    """Return new arrays of ``spec.dtype``.

    Raises
    ------
    SpecError
        For an unknown token, one that does not suit the spec, or a file that is missing or of another size.
    MissingDependency
        If a photograph is wanted and Matplotlib or Pillow is not installed.
    """
    if spec.dtype == "bfloat16":
        raise SpecError("dtype", spec.dtype, "NumPy has no such dtype; use f32 or f16")
    check_tokens(spec, x, w, seed)

    def stream(name: str) -> np.random.Generator:
        return np.random.default_rng([seed, _STREAMS.index(name)])

    def operand(name: str) -> NDArray[Any]:
        if name == "g":
            values = _normal(spec, spec.output_shape, stream(name))
        else:
            values = _token(name, {"x": x, "w": w}[name]).make(spec, stream(name))
        values = _contiguous(values, spec)
        if name != "w" and spec.layout == "channels_last":
            values = np.moveaxis(np.ascontiguousarray(np.moveaxis(values, 1, -1)), -1, 1)
        return values

    first, second = spec.operand_names
    bias = None
    if spec.bias_shape is not None:
        bias = _contiguous(_normal(spec, spec.bias_shape, stream("bias")), spec)
    return Data(operand(first), operand(second), bias)


def _contiguous(values: Floats, spec: ConvSpec) -> NDArray[Any]:
    return np.array(values, dtype=spec.dtype, order="C", copy=True)


def _token(name: str, text: str) -> _Token:
    known = _INPUTS if name == "x" else _WEIGHTS
    if text in known:
        return known[text]
    if text.startswith("@") and len(text) > 1:
        return _Token(partial(_from_file, name, text), partial(_file_rule, name, text))
    rank = re.fullmatch(r"rank([1-9][0-9]{0,3})", text, re.ASCII)
    if name == "w" and rank:
        return _Token(partial(_low_rank, int(rank[1])), partial(_rank_rule, int(rank[1])))
    names = [*known, *(["rank3 (any rank)"] if name == "w" else []), "@file"]
    raise SpecError(name, text, f"must be one of {', '.join(names)}")


# -- random numbers -------------------------------------------------------------------------------


def _is_integer(spec: ConvSpec) -> bool:
    return "int" in spec.dtype


def _integers(spec: ConvSpec, shape: tuple[int, ...], rng: np.random.Generator) -> Floats:
    least = 0 if spec.dtype.startswith("uint") else -4
    values = rng.integers(least, 5, shape)
    return values + 1j * rng.integers(least, 5, shape) if "complex" in spec.dtype else values


def _normal(spec: ConvSpec, shape: tuple[int, ...], rng: np.random.Generator) -> Floats:
    """Unit variance; drawn in float64 whatever the dtype, so that float32 and float64 cases see the same numbers."""
    if _is_integer(spec):
        return _integers(spec, shape, rng)
    if "complex" in spec.dtype:
        return (rng.standard_normal(shape) + 1j * rng.standard_normal(shape)) / sqrt(2)
    return rng.standard_normal(shape)


def _noise(spec: ConvSpec, rng: np.random.Generator) -> Floats:
    return _normal(spec, spec.input_shape, rng)


def _high_range(spec: ConvSpec, rng: np.random.Generator) -> Floats:
    return _normal(spec, spec.input_shape, rng) * np.logspace(0, _LEAST_DECADE, spec.input_size[-1])


def _floating_rule(what: str, spec: ConvSpec) -> str | None:
    return f"needs a floating dtype: its {what} are fractions" if _is_integer(spec) else None


def _random_weights(spec: ConvSpec, rng: np.random.Generator) -> Floats:
    values = _normal(spec, spec.weight_shape, rng)
    return values if _is_integer(spec) else values / sqrt(spec.terms)


def _low_rank(rank: int, spec: ConvSpec, rng: np.random.Generator) -> Floats:
    lead = spec.weight_shape[: -spec.ndim]
    total: Floats = np.zeros(spec.weight_shape)
    for _ in range(rank):
        vectors = [_normal(spec, (*lead, size), rng) for size in spec.kernel_size]
        spread = [v.reshape(*lead, *(1,) * a, -1, *(1,) * (spec.ndim - 1 - a)) for a, v in enumerate(vectors)]
        total = total + reduce(np.multiply, spread)
    return total if _is_integer(spec) else total / sqrt(spec.terms * rank)


def _rank_rule(rank: int, spec: ConvSpec) -> str | None:
    sizes = sorted(spec.kernel_size)
    largest = prod(sizes[:-1])  # no array of these sizes has a higher rank
    return None if rank <= largest else f"a {_by(spec.kernel_size)} kernel has at most rank {largest}"


# -- kernels of image processing ------------------------------------------------------------------


def _windows(shape: Callable[[int], Floats], spec: ConvSpec) -> Floats:
    """Outer product of one window along each axis."""
    return reduce(np.multiply.outer, [shape(size) for size in spec.kernel_size])


def _gaussian_window(size: int) -> Floats:
    offsets = np.arange(size) - (size - 1) / 2
    return np.asarray(np.exp(-0.5 * (offsets / (size / 6)) ** 2))


def _disk_kernel(spec: ConvSpec) -> Floats:
    squares = [((np.arange(size) - (size - 1) / 2) / (size / 2)) ** 2 for size in spec.kernel_size]
    return (reduce(np.add.outer, squares) <= 1).astype(np.float64)


def _motion_kernel(spec: ConvSpec) -> Floats:
    """One sample for each step along the longest axis, the nearest one to the straight line."""
    steps = np.linspace(0, 1, max(spec.kernel_size))
    kernel = np.zeros(spec.kernel_size)
    kernel[tuple(np.rint(steps * (size - 1)).astype(int) for size in spec.kernel_size)] = 1
    return kernel


def _smoothing(kernel: Callable[[ConvSpec], Floats]) -> _Token:
    def make(spec: ConvSpec, rng: np.random.Generator) -> Floats:
        values = kernel(spec)
        values = values / (values.sum() * (spec.in_channels // spec.groups))
        return np.broadcast_to(values, spec.weight_shape)

    return _Token(make, partial(_floating_rule, "weights"))


def _fixed(values: list[list[int]]) -> _Token:
    kernel = np.array(values)

    def rule(spec: ConvSpec) -> str | None:
        if spec.kernel_size != kernel.shape:
            return f"is a {_by(kernel.shape)} kernel; the spec has {_by(spec.kernel_size)}"
        return "has negative weights; use a signed dtype" if spec.dtype.startswith("uint") else None

    return _Token(lambda spec, rng: np.broadcast_to(kernel, spec.weight_shape), rule)


# -- photographs and files ------------------------------------------------------------------------


@cache
def photograph() -> Floats:
    """Return Matplotlib's sample photograph ``grace_hopper.jpg``: (600, 512, 3), RGB in [0, 1], read-only."""
    _pillow()  # Matplotlib needs it as well, and would be blamed for its absence
    try:
        from matplotlib.cbook import get_sample_data
    except ImportError:
        raise MissingDependency("x=photo needs matplotlib: pip install matplotlib") from None
    try:
        image = _read_image(get_sample_data("grace_hopper.jpg", asfileobj=False))
    except FileNotFoundError:
        lack = "x=photo needs Matplotlib's sample photograph, which this installation lacks"
        raise MissingDependency(f"{lack}: pip install --force-reinstall matplotlib") from None
    image.flags.writeable = False
    return image


def _pillow() -> Any:
    try:
        from PIL import Image
    except ImportError:
        raise MissingDependency("reading images needs Pillow: pip install pillow") from None
    return Image


def _read_image(file: Any) -> Floats:
    """Return (H, W, 3), RGB in [0, 1]."""
    with _pillow().open(file) as image:
        if image.mode == "F":
            raise ValueError("an image of real numbers, whose white is not known; save it as .npy")
        if image.mode.startswith("I"):  # grey of 16 bits, which Pillow would clip to 8
            grey = np.asarray(image, dtype=np.float64) / 65535
            return np.repeat(grey[..., None], 3, axis=-1)
        return np.asarray(image.convert("RGB")) / 255.0


def mirrored(positions: int, size: int) -> NDArray[np.intp]:
    """Indices 0..size−1, then back, and so on: half-sample symmetric repetition.

    >>> mirrored(8, 3).tolist()
    [0, 1, 2, 2, 1, 0, 0, 1]
    """
    phase = np.arange(positions) % (2 * size)
    return np.minimum(phase, 2 * size - 1 - phase)


def _photo(spec: ConvSpec, rng: np.random.Generator) -> Floats:
    """Top-left corner of the photograph mirrored over the plane; example n is moved by (17n, 31n) circularly.

    One channel takes the luma 0.299 R + 0.587 G + 0.114 B, three take RGB. Integer dtypes hold 0..255 (int8: 0..127).
    """
    image = photograph()
    rows, columns = (mirrored(wanted, size) for wanted, size in zip(spec.input_size, image.shape, strict=False))
    plane = _channels(image, spec)[:, rows][:, :, columns]
    shifted = [np.roll(plane, (17 * n, 31 * n), (1, 2)) for n in range(spec.batch)]
    return np.array(shifted).reshape(spec.input_shape)


def _channels(image: Floats, spec: ConvSpec) -> Floats:
    """(H, W, 3) in [0, 1] → (1 or 3, H, W) as the dtype holds it."""
    planes = (image @ np.array(_LUMA))[None] if spec.in_channels == 1 else np.moveaxis(image, -1, 0)
    return np.rint(planes * (127 if spec.dtype == "int8" else 255)) if _is_integer(spec) else planes


def _photo_rule(spec: ConvSpec) -> str | None:
    if spec.ndim == 2 and spec.in_channels in (1, 3):
        return None
    return f"needs 2 axes and 1 or 3 channels; the spec has {spec.ndim} and {spec.in_channels}"


def _path(text: str) -> Path:
    return Path(os.path.expanduser(text[1:]))  # Path.expanduser raises for an unknown user


def _file_rule(name: str, text: str, spec: ConvSpec) -> str | None:
    path = _path(text)
    allowed = (".npy", *_IMAGES) if name == "x" else (".npy",)
    if path.suffix.lower() not in allowed:
        return f"must name a file ending in {', '.join(allowed)}"
    if not path.is_file():
        return "no such file (a relative name starts from the current folder, in a suite from its file's folder)"
    return _photo_rule(spec) if path.suffix.lower() in _IMAGES else None


def _from_file(name: str, text: str, spec: ConvSpec, rng: np.random.Generator) -> Floats:
    values = _load(name, text, spec)
    shape = spec.input_shape if name == "x" else spec.weight_shape
    if values.size != prod(shape) or values.shape != shape[len(shape) - values.ndim :]:
        raise SpecError(name, text, f"holds an array of shape {values.shape}; the spec needs {shape}")
    if not np.can_cast(values.dtype, spec.dtype, "same_kind"):
        raise SpecError(name, text, f"holds {values.dtype}, which does not convert to {spec.dtype}")
    broken = _value_rule(values, spec.dtype)
    if broken:
        raise SpecError(name, text, broken)
    return np.asarray(values.reshape(shape))


def _load(name: str, text: str, spec: ConvSpec) -> NDArray[Any]:
    """Return what a file holds; of an image, the planes of a spec of its size."""
    path = _path(text)
    try:
        values = np.load(path, allow_pickle=False) if path.suffix.lower() == ".npy" else _read_image(path)
    except MissingDependency:
        raise
    except Exception as error:  # of a damaged file, decoders raise whatever they stumble over
        raise SpecError(name, text, f"cannot be read: {one_line(error) or type(error).__name__}") from None
    if not isinstance(values, np.ndarray):
        raise SpecError(name, text, "holds several arrays (.npz); save the one that is meant with numpy.save")
    if path.suffix.lower() == ".npy":
        return values
    broken = _image_rule(values, spec)
    if broken:
        raise SpecError(name, text, broken)
    return np.asarray(_channels(values, spec).astype(spec.dtype))


def _image_rule(image: Floats, spec: ConvSpec) -> str | None:
    size = image.shape[:2]
    if spec.input_size != size:
        wanted = "x".join(map(str, size))
        return f"is an image of {_by(size)} (rows × columns), the spec asks for {_by(spec.input_size)}: write i{wanted}"
    return f"is a single image, the spec asks for a batch of {spec.batch}: write n1" if spec.batch > 1 else None


def _value_rule(values: NDArray[Any], dtype: str) -> str | None:
    """Say what is wrong if the values do not survive in ``dtype``, or if none of them is a number to reckon with."""
    if not values.size:
        return None
    finite = np.isfinite(values)
    if not finite.any():
        return "holds no finite number"
    if "int" in dtype:
        info, least, most = np.iinfo(dtype), int(values.min()), int(values.max())
        if least < info.min or most > info.max:
            return f"holds values from {least} to {most}; {dtype} ends at {info.min} and {info.max}"
        return None
    with np.errstate(all="ignore"):
        lost = finite & ~np.isfinite(values.astype(dtype))
    return f"holds {values[lost][0]!s}, which is beyond the range of {dtype}" if lost.any() else None


def _by(sizes: Iterable[int]) -> str:
    return "×".join(map(str, sizes))


_INPUTS = {
    "noise": _Token(_noise),
    "integers": _Token(lambda spec, rng: _integers(spec, spec.input_shape, rng)),
    "range": _Token(_high_range, partial(_floating_rule, "values")),
    "photo": _Token(_photo, _photo_rule),
}
_WEIGHTS = {
    "random": _Token(_random_weights),
    "gaussian": _smoothing(partial(_windows, _gaussian_window)),
    "box": _smoothing(lambda spec: np.ones(spec.kernel_size)),
    "disk": _smoothing(_disk_kernel),
    "motion": _smoothing(_motion_kernel),
    "sobel": _fixed([[-1, 0, 1], [-2, 0, 2], [-1, 0, 1]]),
    "sharpen": _fixed([[0, -1, 0], [-1, 5, -1], [0, -1, 0]]),
    "edge": _fixed([[-1, 1]]),
}
