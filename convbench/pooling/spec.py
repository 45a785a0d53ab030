"""PoolSpec: what is pooled and how, and all that follows from it; one line of text and back."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, fields
from functools import cached_property
from math import prod
from typing import Any

from convbench.errors import SpecError
from convbench.geometry import output_size
from convbench.pooling.windows import Windows
from convbench.spec import DTYPES, _choice, _entries, _integer

__all__ = ["KINDS", "POOL_DTYPES", "POOL_OPS", "PoolSpec"]

KINDS = ("max", "mean", "l2")
POOL_OPS = ("forward", "grad")
FLOATS = ("float32", "float64")
INTEGERS = tuple(name for name in DTYPES if "int" in name)
POOL_DTYPES = (*FLOATS, *INTEGERS)

SizeLike = int | Sequence[int]
PadLike = int | Sequence[int] | Sequence[Sequence[int]]
Sizes = tuple[int, ...]
Pairs = tuple[tuple[int, int], ...]

_OPERATIONS = {"max": 1, "mean": 1, "l2": 2}  # a sample of a window: compare; add; multiply and add
_GRAD_OPERATIONS = {"max": 1, "mean": 1, "l2": 3}


@dataclass(frozen=True, init=False)
class PoolSpec:
    r"""One pooling: a window reduction of every channel by itself, or its gradient, without its data.

    ======== ========================================== ===================================================
    kind     y[p], over the samples x of the window of p gradient of J at x, from g = ∂J/∂y
    ======== ========================================== ===================================================
    max      max x (NaN if one is)                       g[p] goes to the first maximum, in row-major order
    mean     Σx / their number                           Σ_p g[p] / number
    l2       √Σx²                                        x · Σ_p g[p] / y[p], and 0 where y[p] is 0
    ======== ========================================== ===================================================

    Parameters
    ----------
    kind : {"max", "mean", "l2"}
    input_size : int or sequence of int
        Spatial sizes; fixes the number of axes.
    kernel_size : int or one per axis
        Of the windows; or give ``adaptive``.
    stride : int or one per axis, optional
        None: the kernel size, so that windows do not overlap.
    padding : int, one int per axis, or (before, after) pairs
        Not negative. Padding is no sample: the maximum and the norm ignore it, and so does the mean unless
        ``count_include_pad``. Every window must reach at least one sample, as there is no maximum and no mean of none.
    count_include_pad : bool
        The mean divides by the size of the kernel everywhere.
    adaptive : int or one per axis, optional
        Output sizes n in place of a kernel: bin i reads ⌊iH/n⌋ … ⌈(i+1)H/n⌉ − 1.
    op : {"forward", "grad"}
    batch, channels : int
        ``batch`` may be 0.
    dtype : str
        float32 or float64; the maximum of integers too (not its gradient, nor their mean or norm, which are none).

    Raises
    ------
    SpecError
        Names the field, the value and the rule.

    Notes
    -----
    x: (N, C, \*input_size). y and g: (N, C, \*output_size). Output size along an axis: ⌊(H + a + b − K)/s⌋ + 1, or n.

    Examples
    --------
    >>> spec = PoolSpec(kind="max", channels=64, input_size=(112, 112), kernel_size=3, stride=2, padding=1)
    >>> print(spec, spec.output_size)
    pool=max n1 c64 i112x112 k3 s2 p1 f32 (56, 56)
    >>> PoolSpec.parse("pool=mean c512 i13x17 adaptive=7 f32").output_shape
    (1, 512, 7, 7)
    """

    kind: str
    op: str
    batch: int
    channels: int
    input_size: Sizes
    kernel_size: Sizes
    stride: Sizes
    padding: Pairs
    count_include_pad: bool
    adaptive: Sizes | None
    dtype: str

    def __init__(
        self,
        *,
        kind: str,
        input_size: SizeLike,
        kernel_size: SizeLike | None = None,
        stride: SizeLike | None = None,
        padding: PadLike | None = None,
        count_include_pad: bool = False,
        adaptive: SizeLike | None = None,
        op: str = "forward",
        batch: int = 1,
        channels: int = 1,
        dtype: str = "float32",
    ) -> None:
        def put(name: str, value: object) -> None:
            object.__setattr__(self, name, value)

        put("kind", _choice("kind", kind, KINDS))
        put("op", _choice("op", op, POOL_OPS))
        put("batch", _integer("batch", batch, 0))
        put("channels", _integer("channels", channels, 1))
        put("input_size", sizes_of("input_size", input_size, None))
        put("dtype", _choice("dtype", dtype, POOL_DTYPES))
        if self.dtype in INTEGERS and (kind != "max" or op != "forward"):
            what = f"the {kind} of integers is none" if op == "forward" else "gradients are not integers"
            raise SpecError(
                "dtype", dtype, f"must be {' or '.join(FLOATS)}: {what}; convert x with x.astype('float64')"
            )
        if (kernel_size is None) == (adaptive is None):
            rule = (
                "must be given, or adaptive in its place"
                if adaptive is None
                else "must be left out where adaptive is given"
            )
            raise SpecError("kernel_size", kernel_size, rule)
        if not isinstance(count_include_pad, bool):
            raise SpecError("count_include_pad", count_include_pad, "must be True or False")
        if count_include_pad and (kind != "mean" or adaptive is not None):
            rule = "says what a mean divides by; only kind='mean' with a kernel has padding to count"
            raise SpecError("count_include_pad", count_include_pad, rule)
        put("count_include_pad", count_include_pad)
        if adaptive is not None:
            self._put_bins(put, adaptive, stride, padding)
        else:
            put("adaptive", None)
            put("kernel_size", sizes_of("kernel_size", kernel_size, self.ndim))
            put("stride", self.kernel_size if stride is None else sizes_of("stride", stride, self.ndim))
            put("padding", _pairs(0 if padding is None else padding, self.ndim))
            self._check_windows()

    def _put_bins(self, put: Any, adaptive: SizeLike, stride: object, padding: object) -> None:
        for name, value in (("stride", stride), ("padding", padding)):
            if value is not None:
                raise SpecError(name, value, "must be left out: bins follow from the input's size and adaptive")
            put(name, ())
        put("kernel_size", ())
        put("adaptive", sizes_of("adaptive", adaptive, self.ndim))

    def _check_windows(self) -> None:
        """Every window must hold a sample: those at the ends are the first not to."""
        for axis, (outputs, windows) in enumerate(zip(self.output_size, self.windows, strict=True)):
            size, kernel, (before, after) = self.input_size[axis], self.kernel_size[axis], self.padding[axis]
            if outputs < 1:
                raise SpecError(
                    "kernel_size",
                    self.kernel_size,
                    f"gives no output along axis {axis}: a kernel of {kernel} does not fit in {size} samples and "
                    f"padding {before} + {after}; enlarge the input or the padding",
                )
            if windows.stop(0) <= 0 or windows.start(outputs - 1) >= size:
                raise SpecError(
                    "padding",
                    self.padding,
                    f"leaves a window along axis {axis} without a sample (kernel {kernel}, input {size}, padding "
                    f"{before} + {after}): there is no {self.kind} of nothing; pad less than the kernel size",
                )

    # -- one line of text ---------------------------------------------------------------------

    @classmethod
    def parse(cls, line: str) -> PoolSpec:
        """Read the line format, tokens in any order.

        ``pool=`` (the kind) ``op= n c i k s p pad=counted adaptive=`` and a dtype, written as in
        :mod:`convbench.line`. Without ``s`` the stride is the kernel size.

        >>> str(PoolSpec.parse("k2 i8x8 pool=max"))
        'pool=max n1 c1 i8x8 k2 f32'
        >>> PoolSpec.parse("op=grad pool=mean n2 i9 k3 s2 p1:0 pad=counted f64").padding
        ((1, 0),)
        """
        return cls(**_parse(line))

    def __str__(self) -> str:
        tokens = [
            f"pool={self.kind}",
            "op=grad" if self.op == "grad" else "",
            f"n{self.batch}",
            f"c{self.channels}",
            "i" + "x".join(map(str, self.input_size)),
            f"k{_collapse(self.kernel_size)}" if self.adaptive is None else f"adaptive={_collapse(self.adaptive)}",
            f"s{_collapse(self.stride)}" if self.stride != self.kernel_size else "",
            f"p{_collapse([_pad_text(pair) for pair in self.padding])}" if self.padded else "",
            "pad=counted" if self.count_include_pad else "",
            {"float32": "f32", "float64": "f64"}.get(self.dtype, self.dtype),
        ]
        return " ".join(filter(None, tokens))

    def replace(self, **changes: Any) -> PoolSpec:
        """Return a copy with some fields changed.

        >>> print(PoolSpec.parse("pool=max i8 k2").replace(kind="mean", dtype="float64"))
        pool=mean n1 c1 i8 k2 f64
        """
        given = {f.name: getattr(self, f.name) for f in fields(self)}
        return PoolSpec(**{**{name: None if value == () else value for name, value in given.items()}, **changes})

    # -- what follows -------------------------------------------------------------------------

    @property
    def ndim(self) -> int:
        """Number of spatial axes."""
        return len(self.input_size)

    @property
    def padded(self) -> bool:
        """Is there any padding?"""
        return any(pad for pair in self.padding for pad in pair)

    @cached_property
    def output_size(self) -> Sizes:
        """⌊(H + a + b − K)/s⌋ + 1 along each axis, or ``adaptive``."""
        if self.adaptive is not None:
            return self.adaptive
        return tuple(output_size(h, k, s, 1, a, b) for h, k, s, (a, b) in self._axes())

    @cached_property
    def windows(self) -> tuple[Windows, ...]:
        """The windows along each axis; an output's window is their product."""
        if self.adaptive is not None:
            return tuple(map(Windows.adaptive, self.input_size, self.adaptive))
        axes = zip(self._axes(), self.output_size, strict=True)
        return tuple(Windows.plain(h, k, s, a, outputs) for (h, k, s, (a, _)), outputs in axes)

    def _axes(self) -> list[tuple[int, int, int, tuple[int, int]]]:
        return list(zip(self.input_size, self.kernel_size, self.stride, self.padding, strict=True))

    @property
    def input_shape(self) -> Sizes:
        """Shape of x: (N, C, *input_size)."""
        return (self.batch, self.channels, *self.input_size)

    @property
    def output_shape(self) -> Sizes:
        """Shape of y and of its gradient g: (N, C, *output_size)."""
        return (self.batch, self.channels, *self.output_size)

    @property
    def operand_names(self) -> tuple[str, ...]:
        """("x",), or ("x", "g") for the gradient."""
        return ("x",) if self.op == "forward" else ("x", "g")

    @property
    def operand_shapes(self) -> tuple[Sizes, ...]:
        """Shapes of the operands, in order."""
        return (self.input_shape, self.output_shape)[: len(self.operand_names)]

    @property
    def result_shape(self) -> Sizes:
        """Shape of what the operation computes: y, or ∂J/∂x."""
        return self.output_shape if self.op == "forward" else self.input_shape

    @property
    def result_dtype(self) -> str:
        """The operands' dtype."""
        return self.dtype

    @property
    def itemsize(self) -> int:
        """Bytes of one element of the operands."""
        return DTYPES[self.dtype]

    @property
    def terms(self) -> int:
        """Samples of the largest window."""
        return prod(windows.longest for windows in self.windows)

    @property
    def readers(self) -> int:
        """Windows that one sample lies in, at most."""
        return prod(windows.transposed().longest for windows in self.windows)

    @cached_property
    def samples(self) -> int:
        """Samples in all windows together; padding is none."""
        return self.batch * self.channels * prod(int(windows.lengths().sum()) for windows in self.windows)

    @property
    def flops(self) -> int:
        """Nominal work of the definition as written: operations a sample of a window. The backends' common measure."""
        return self.samples * (_OPERATIONS if self.op == "forward" else _GRAD_OPERATIONS)[self.kind]

    @property
    def bytes_min(self) -> int:
        """Least traffic: every operand and the result once."""
        return self.itemsize * sum(map(prod, (*self.operand_shapes, self.result_shape)))


def sizes_of(name: str, value: Any, ndim: int | None) -> Sizes:
    """Return one integer ≥ 1 an axis; without ``ndim`` as many as are given."""
    sizes = _entries(value)
    if sizes is None:
        return (_integer(name, value, 1),) * (ndim or 1)
    if not sizes or (ndim is not None and len(sizes) != ndim):
        raise SpecError(name, value, f"must be an integer or one for each of {ndim or 'the'} axes")
    return tuple(_integer(name, size, 1) for size in sizes)


def _pairs(padding: Any, ndim: int) -> Pairs:
    entries = _entries(padding)
    if entries is None:
        return ((_integer("padding", padding, 0),) * 2,) * ndim
    pairs = [_entries(entry) or (entry, entry) for entry in entries]
    if len(pairs) != ndim or any(len(pair) != 2 for pair in pairs):
        rule = f"must be an integer ≥ 0, or one integer or (before, after) pair for each of {ndim} axes"
        raise SpecError("padding", padding, rule)
    return tuple((_integer("padding", a, 0), _integer("padding", b, 0)) for a, b in pairs)


# -- the line -----------------------------------------------------------------------------------

_LETTERS = {"n": "batch", "c": "channels", "i": "input_size", "k": "kernel_size", "s": "stride", "p": "padding"}
_LETTER_TOKEN = re.compile(r"([ncikps])([0-9].*)", re.ASCII)
_NUMBER = re.compile(r"[0-9]{1,18}", re.ASCII)
_KEYS = {"pool": "kind", "op": "op", "adaptive": "adaptive", "pad": "count_include_pad"}
_KINDS_OF_TOKEN = "pool= op= n c i k s p pad=counted adaptive=, a dtype such as f32"


def _parse(line: str) -> dict[str, Any]:
    if not isinstance(line, str):
        raise SpecError("line", line, "must be a string such as 'pool=max n1 c64 i112x112 k3 s2 p1 f32'")
    given: dict[str, Any] = {}
    for token in line.split():
        name, value = _parse_token(token)
        if name in given:
            raise SpecError(name, token, "is given twice in one line")
        given[name] = value
    for name, example in (("kind", "pool=max"), ("input_size", "i112x112")):
        if name not in given:
            raise SpecError(name, line, f"is missing; add a token such as {example}")
    if "kernel_size" not in given and "adaptive" not in given:
        raise SpecError("kernel_size", line, "is missing; add a token such as k2 or adaptive=7")
    padding = given.get("padding")
    if padding is not None and len(padding) == 1:  # one entry stands for all axes
        given["padding"] = padding * len(given["input_size"])
    return given


def _parse_token(token: str) -> tuple[str, Any]:
    short = {"f32": "float32", "f64": "float64"}.get(token, token)
    if short in DTYPES:
        return "dtype", short
    key, equals, value = token.partition("=")
    if equals and key in _KEYS:
        name = _KEYS[key]
        if name == "adaptive":
            return name, _numbers(name, token, value)
        if name == "count_include_pad":
            return name, _choice("pad", value, ("counted",)) == "counted"
        return name, value
    match = _LETTER_TOKEN.fullmatch(token)
    if equals or match is None:
        raise SpecError("line", token, f"is not a token of pooling's line format ({_KINDS_OF_TOKEN})")
    letter, text = match.groups()
    name = _LETTERS[letter]
    if letter == "p":
        pairs = [[_number(name, token, part) for part in entry.split(":")] for entry in text.split("x")]
        if any(len(pair) > 2 for pair in pairs):
            raise SpecError(name, token, "must be p1, p1x2 or p0:1x1:2 (before:after)")
        return name, [(pair[0], pair[-1]) for pair in pairs]
    if letter in "nc":
        return name, _number(name, token, text)
    sizes = _numbers(name, token, text)
    return name, (sizes,) if letter == "i" and isinstance(sizes, int) else sizes


def _numbers(name: str, token: str, text: str) -> int | list[int]:
    numbers = [_number(name, token, part) for part in text.split("x")]
    return numbers[0] if len(numbers) == 1 else numbers


def _number(name: str, token: str, text: str) -> int:
    if not _NUMBER.fullmatch(text):
        raise SpecError(name, token, "must be whole numbers joined by 'x', such as 3 or 3x5")
    return int(text)


def _collapse(sizes: Iterable[object]) -> str:
    texts = [str(size) for size in sizes]
    return texts[0] if len(set(texts)) == 1 else "x".join(texts)


def _pad_text(pair: tuple[int, int]) -> str:
    before, after = pair
    return str(before) if before == after else f"{before}:{after}"
