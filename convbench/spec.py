"""ConvSpec: what is convolved with what, and all that follows from it (standard library only)."""

from __future__ import annotations

import operator
from collections.abc import Sequence
from dataclasses import dataclass, field, fields
from functools import cached_property
from math import prod
from typing import Any

from convbench.errors import SpecError
from convbench.geometry import (
    BOUNDARIES,
    PADDING_WORDS,
    in_bounds_taps,
    most_reads,
    output_size,
    positions_reached,
    word_padding,
)

__all__ = ["BIASES", "DTYPES", "LAYOUTS", "OPS", "ConvSpec", "PaddingLike", "SizeLike", "TileLike"]

OPS = ("forward", "input_grad", "weight_grad")
BIASES = ("none", "channel", "tile", "location")
LAYOUTS = ("channels_first", "channels_last")

#: NumPy's dtype names and their sizes in bytes.
DTYPES = {
    "float16": 2,
    "bfloat16": 2,
    "float32": 4,
    "float64": 8,
    "complex64": 8,
    "complex128": 16,
    **{f"{sign}int{bits}": bits // 8 for sign in ("", "u") for bits in (8, 16, 32, 64)},
}

SizeLike = int | Sequence[int]
PaddingLike = str | int | Sequence[int] | Sequence[Sequence[int]]
TileLike = None | str | int | Sequence[int]
Sizes = tuple[int, ...]
Pairs = tuple[tuple[int, int], ...]


@dataclass(frozen=True, init=False)
class ConvSpec:
    r"""One member of the convolution family, without its data.

    The forward operation is, for example n, output channel o, output position p and kernel offset k,

    .. math:: y[n,o,p] = \sum_{c,k} x[n, c, p·s + k·d − a] · w[o,c,k] + bias

    (*Deep Learning*, eqs. 9.6–9.8; ``flip=True`` gives 9.3–9.5, ``tile`` 9.9 and 9.10, ``op`` 9.11 and 9.13).

    Parameters
    ----------
    input_size, kernel_size : int or sequence of int
        Spatial sizes; ``input_size`` fixes the number of axes. In both gradients ``input_size`` is still
        that of the forward operation.
    op : {"forward", "input_grad", "weight_grad"}
    batch, in_channels, out_channels, groups : int
        ``groups`` divides both channel counts; ``groups == in_channels`` is depthwise. ``batch`` may be 0.
    stride, dilation : int or one per axis
    padding : {"valid", "same", "full"}, int, one int per axis, or (before, after) pairs
        Stored as pairs; the word is kept in ``padding_word`` for printing. Negative values crop.
    tile : None, "unshared", int or one per axis
        Period of tiled convolution; "unshared" is the locally connected layer (tile = output size).
    boundary : {"zero", "circular", "reflect", "replicate"}
        What lies outside the input.
    flip : bool
        True for convolution as in signal processing, False for cross-correlation.
    bias : {"none", "channel", "tile", "location"}
    layout : {"channels_first", "channels_last"}
        Order in memory; the shapes below are the same for both.
    dtype : str
        A NumPy dtype name (or "bfloat16").

    Raises
    ------
    SpecError
        Names the field, the value and the rule.

    Notes
    -----
    x: (N, C, \*input_size). w: (O, [\*tile,] C/groups, \*kernel_size). y: (N, O, \*output_size).
    Output size along an axis: ⌊(H + a + b − d·(K−1) − 1)/s⌋ + 1.

    Examples
    --------
    >>> spec = ConvSpec(in_channels=3, out_channels=64, input_size=(224, 224), kernel_size=7, stride=2, padding=3)
    >>> print(spec, spec.output_size, spec.macs)
    n1 c3 o64 i224x224 k7 s2 p3 f32 (112, 112) 118013952
    >>> ConvSpec.parse("n1 c3 o64 i224x224 k7 s2 p3 f32") == spec
    True
    """

    op: str
    batch: int
    in_channels: int
    out_channels: int
    input_size: Sizes
    kernel_size: Sizes
    stride: Sizes
    padding: Pairs
    dilation: Sizes
    groups: int
    tile: Sizes | None
    boundary: str
    flip: bool
    bias: str
    layout: str
    dtype: str
    padding_word: str | None = field(compare=False)
    tile_word: str | None = field(compare=False)

    def __init__(
        self,
        *,
        input_size: SizeLike,
        kernel_size: SizeLike,
        op: str = "forward",
        batch: int = 1,
        in_channels: int = 1,
        out_channels: int = 1,
        stride: SizeLike = 1,
        padding: PaddingLike = "valid",
        dilation: SizeLike = 1,
        groups: int = 1,
        tile: TileLike = None,
        boundary: str = "zero",
        flip: bool = False,
        bias: str = "none",
        layout: str = "channels_first",
        dtype: str = "float32",
    ) -> None:
        def put(name: str, value: object) -> None:
            object.__setattr__(self, name, value)

        put("op", _choice("op", op, OPS))
        put("batch", _integer("batch", batch, 0))
        put("in_channels", _integer("in_channels", in_channels, 1))
        put("out_channels", _integer("out_channels", out_channels, 1))
        put("input_size", _sizes("input_size", input_size, None))
        put("kernel_size", _sizes("kernel_size", kernel_size, self.ndim))
        put("stride", _sizes("stride", stride, self.ndim))
        put("dilation", _sizes("dilation", dilation, self.ndim))
        put("groups", _integer("groups", groups, 1))
        put("boundary", _choice("boundary", boundary, BOUNDARIES, _BOUNDARY_HINTS))
        put("bias", _choice("bias", bias, BIASES))
        put("layout", _choice("layout", layout, LAYOUTS))
        put("dtype", _choice("dtype", dtype, tuple(DTYPES)))
        if not isinstance(flip, bool):
            raise SpecError("flip", flip, "must be True (convolution) or False (cross-correlation)")
        put("flip", flip)
        for name in ("in_channels", "out_channels"):
            channels = getattr(self, name)
            if channels % self.groups:
                raise SpecError("groups", groups, f"must divide {name} = {channels}")
        put("padding_word", padding if isinstance(padding, str) else None)
        put("padding", self._resolve_padding(padding))
        _ = self.output_size  # raises if nothing fits
        put("tile_word", tile if isinstance(tile, str) else None)
        put("tile", self._resolve_tile(tile))
        if bias == "tile" and self.tile is None:
            raise SpecError("bias", bias, "needs tile=...; with shared weights use bias='channel'")

    def _resolve_padding(self, padding: PaddingLike) -> Pairs:
        if isinstance(padding, str):
            word = _choice("padding", padding, PADDING_WORDS)
            return tuple(
                word_padding(word, *axis)
                for axis in zip(self.input_size, self.kernel_size, self.stride, self.dilation, strict=True)
            )
        words = ", ".join(PADDING_WORDS)
        allowed = f"must be one of {words}, an integer, or one integer or (before, after) pair for each axis"
        entries = _entries(padding)
        if entries is None:
            return ((_integer("padding", padding, None),) * 2,) * self.ndim
        if len(entries) != self.ndim:
            hint = "; for (before, after) write ((before, after),)" if self.ndim == 1 and len(entries) == 2 else ""
            raise SpecError("padding", padding, f"{allowed}: {len(entries)} entries for {self.ndim} axes{hint}")
        pairs = [_entries(entry) or (entry, entry) for entry in entries]
        if any(len(pair) != 2 for pair in pairs):
            raise SpecError("padding", padding, allowed)
        return tuple((_integer("padding", a, None), _integer("padding", b, None)) for a, b in pairs)

    @cached_property
    def output_size(self) -> Sizes:
        """⌊(H + a + b − d·(K−1) − 1)/s⌋ + 1 along each axis."""
        sizes = []
        for axis, (size, kernel, stride, dilation, (before, after)) in enumerate(self._axes()):
            outputs = output_size(size, kernel, stride, dilation, before, after)
            if outputs < 1:
                raise SpecError(
                    "input_size",
                    self.input_size,
                    f"gives no output along axis {axis}: input {size} + padding {before} + {after} is smaller than the "
                    f"kernel's extent {dilation}·({kernel} − 1) + 1 = {dilation * (kernel - 1) + 1}; enlarge the input "
                    "or the padding",
                )
            sizes.append(outputs)
        return tuple(sizes)

    def _resolve_tile(self, tile: TileLike) -> Sizes | None:
        if tile is None:
            return None
        if isinstance(tile, str):
            if tile != "unshared":
                raise SpecError("tile", tile, "must be 'unshared', an integer or one for each axis")
            return self.output_size
        return _sizes("tile", tile, self.ndim)

    def _axes(self) -> list[tuple[int, int, int, int, tuple[int, int]]]:
        return list(zip(self.input_size, self.kernel_size, self.stride, self.dilation, self.padding, strict=True))

    # -- one line of text ---------------------------------------------------------------------

    @classmethod
    def parse(cls, line: str) -> ConvSpec:
        """Read the line format, tokens in any order (see :mod:`convbench.line`).

        >>> ConvSpec.parse("f32 k3 i8x9").output_size
        (6, 7)
        """
        from convbench.line import parse_spec

        return parse_spec(line)

    def __str__(self) -> str:
        from convbench.line import format_spec

        return format_spec(self)

    def replace(self, **changes: Any) -> ConvSpec:
        """Return a copy with some fields changed; a padding or tile word is resolved anew.

        >>> print(ConvSpec.parse("i8x8 k3 psame").replace(kernel_size=5))
        n1 c1 o1 i8x8 k5 psame f32
        """
        given = {f.name: getattr(self, f.name) for f in fields(self)}
        padding_word, tile_word = given.pop("padding_word"), given.pop("tile_word")
        given["padding"] = padding_word or given["padding"]
        given["tile"] = tile_word or given["tile"]
        return ConvSpec(**{**given, **changes})

    # -- what follows -------------------------------------------------------------------------

    @property
    def ndim(self) -> int:
        """Number of spatial axes."""
        return len(self.input_size)

    @property
    def input_shape(self) -> Sizes:
        """Shape of x: (N, C, *input_size)."""
        return (self.batch, self.in_channels, *self.input_size)

    @property
    def weight_shape(self) -> Sizes:
        """Shape of w: (O, [*tile,] C/groups, *kernel_size)."""
        return (self.out_channels, *(self.tile or ()), self.in_channels // self.groups, *self.kernel_size)

    @property
    def output_shape(self) -> Sizes:
        """Shape of y and of its gradient g: (N, O, *output_size)."""
        return (self.batch, self.out_channels, *self.output_size)

    @property
    def bias_shape(self) -> Sizes | None:
        """(O,), (O, *tile), (O, *output_size); None without bias, and for the gradients, which do not depend on it."""
        tails: dict[str, Sizes] = {"channel": (), "tile": self.tile or (), "location": self.output_size}
        return None if self.bias == "none" or self.op != "forward" else (self.out_channels, *tails[self.bias])

    @property
    def operand_names(self) -> tuple[str, str]:
        """What the operation takes, in order: x and w; g and w for ∂J/∂x; x and g for ∂J/∂w."""
        return {"forward": ("x", "w"), "input_grad": ("g", "w"), "weight_grad": ("x", "g")}[self.op]

    @property
    def operand_shapes(self) -> tuple[Sizes, Sizes]:
        """Shapes of the operands, in the order of ``operand_names``."""
        shapes = {"x": self.input_shape, "w": self.weight_shape, "g": self.output_shape}
        first, second = self.operand_names
        return shapes[first], shapes[second]

    @property
    def result_shape(self) -> Sizes:
        """Shape of what the operation computes: y, ∂J/∂x or ∂J/∂w."""
        shapes = {"forward": self.output_shape, "input_grad": self.input_shape, "weight_grad": self.weight_shape}
        return shapes[self.op]

    @property
    def itemsize(self) -> int:
        """Bytes of one element of the operands."""
        return DTYPES[self.dtype]

    @property
    def result_dtype(self) -> str:
        """The operands' dtype; integers give int64 (uint64 if the operands are)."""
        if "int" not in self.dtype:
            return self.dtype
        return "uint64" if self.dtype == "uint64" else "int64"

    @property
    def accumulate_dtype(self) -> str:
        """What sums are formed in: float32 for half precision, and for integers the least that holds every sum exactly.

        >>> [ConvSpec.parse(f"i99 k9 {dtype}").accumulate_dtype for dtype in ("f16", "f64", "uint8", "int16", "int32")]
        ['float32', 'float64', 'float32', 'float64', 'int64']
        """
        if self.dtype in ("float16", "bfloat16"):
            return "float32"
        if "int" not in self.dtype:
            return self.dtype
        largest = 2 ** (8 * self.itemsize - (self.dtype[0] != "u"))
        total = largest**2 * self.terms + largest  # a bias is of the same type
        exact = (name for name, digits in (("float32", 24), ("float64", 53)) if total <= 2**digits)
        return next(exact, self.result_dtype)

    @property
    def terms(self) -> int:
        """Products summed into one element of the result, at most.

        Forward (C/groups)·∏K; ∂J/∂w N·∏⌈P/t⌉; ∂J/∂x O/groups times as often as a sample is read by one kernel.
        """
        if self.op == "weight_grad":
            return self.batch * prod(
                -(-outputs // period)
                for outputs, period in zip(self.output_size, self.tile or (1,) * self.ndim, strict=True)
            )
        if self.op == "input_grad":
            reads = (
                most_reads(size, kernel, stride, dilation, before, outputs, self.boundary)
                for (size, kernel, stride, dilation, (before, _)), outputs in zip(
                    self._axes(), self.output_size, strict=True
                )
            )
            return self.out_channels // self.groups * prod(reads)
        return self.in_channels // self.groups * prod(self.kernel_size)

    @property
    def macs(self) -> int:
        """Multiply–accumulate operations, padded taps included; the same for all three ops."""
        return prod(self.output_shape) * (self.in_channels // self.groups) * prod(self.kernel_size)

    @property
    def flops(self) -> int:
        """Nominal work, 2·MACs: the common denominator of all backends."""
        return 2 * self.macs

    @property
    def multiplications(self) -> int:
        """Exact count for the definition evaluated as written, padded taps included."""
        return self.macs

    @property
    def additions(self) -> int:
        """Exact count: m products summed cost m − 1 additions, one more for a bias.

        For the input gradient it is that of the padded input: adding up what a boundary repeats does not count.

        >>> edges = ConvSpec.parse("i280x320 k1x2")  # the book's example: 319·280·3 operations in all
        >>> edges.multiplications + edges.additions
        267960
        """
        if self.op == "forward":
            return self.macs - prod(self.output_shape) * (self.bias == "none")
        if self.op == "weight_grad":
            # a period beyond the output leaves kernels unused
            used = prod(map(min, self.tile, self.output_size)) if self.tile else 1
            weights = self.out_channels * (self.in_channels // self.groups) * prod(self.kernel_size)
            return max(0, self.macs - used * weights)
        reached = map(positions_reached, self.kernel_size, self.stride, self.dilation, self.output_size)
        return self.macs - self.batch * self.in_channels * prod(reached)

    @property
    def in_bounds_macs(self) -> int:
        """MACs whose input sample lies inside the input: the entries of the sparse matrix, times the batch."""
        if self.boundary != "zero":
            return self.macs
        pairs = (
            in_bounds_taps(size, kernel, stride, dilation, before, outputs)
            for (size, kernel, stride, dilation, (before, _)), outputs in zip(
                self._axes(), self.output_size, strict=True
            )
        )
        return self.batch * self.out_channels * (self.in_channels // self.groups) * prod(pairs)

    @property
    def parameters(self) -> int:
        """Stored numbers: weights and bias."""
        return prod(self.weight_shape) + (prod(self.bias_shape) if self.bias_shape is not None else 0)

    @property
    def bytes_min(self) -> int:
        """Least traffic: every operand read once, the result written once."""
        result_size = DTYPES[self.result_dtype]
        operands = {
            "forward": prod(self.input_shape) + self.parameters,
            "input_grad": prod(self.output_shape) + prod(self.weight_shape),
            "weight_grad": prod(self.input_shape) + prod(self.output_shape),
        }
        return operands[self.op] * self.itemsize + prod(self.result_shape) * result_size

    @property
    def arithmetic_intensity(self) -> float:
        """Nominal FLOPs per byte of least traffic."""
        return self.flops / self.bytes_min


_BOUNDARY_HINTS = {
    "zeros": "zero",
    "constant": "zero",
    "fill": "zero",
    "wrap": "circular",
    "grid-wrap": "circular",
    "grid-constant": "zero",
    "grid-mirror": "half-sample symmetry, which convbench does not have",
    "mirror": "reflect",
    "nearest": "replicate",
    "symmetric": "half-sample symmetry, which convbench does not have",
    "symm": "half-sample symmetry, which convbench does not have",
}


def _choice(name: str, value: object, allowed: tuple[str, ...], hints: dict[str, str] | None = None) -> str:
    if isinstance(value, str) and value in allowed:
        return value
    hint = (hints or {}).get(value) if isinstance(value, str) else None
    meaning = f" ({value!r} elsewhere means {hint} here)" if hint else ""
    raise SpecError(name, value, f"must be one of {', '.join(allowed)}{meaning}")


def _integer(name: str, value: Any, least: int | None) -> int:
    rule = "must be an integer" if least is None else f"must be an integer ≥ {least}"
    if isinstance(value, bool):
        raise SpecError(name, value, rule)
    try:
        number = operator.index(value)
    except TypeError:
        raise SpecError(name, value, rule) from None
    if least is not None and number < least:
        raise SpecError(name, value, rule)
    if abs(number) >= 2**62:
        raise SpecError(name, value, "must lie below 2⁶²")
    return number


def _entries(value: Any) -> tuple[Any, ...] | None:
    """Return what a sequence holds; None for one value, such as a number, a word or an array without axes."""
    if isinstance(value, str):
        return None
    try:
        return tuple(value)
    except TypeError:
        return None


def _sizes(name: str, value: Any, ndim: int | None) -> Sizes:
    """Normalise an int or a sequence to one integer ≥ 1 per axis."""
    entries = _entries(value)
    if entries is None:
        return (_integer(name, value, 1),) * (ndim or 1)
    if not entries or (ndim is not None and len(entries) != ndim):
        wanted = f"one for each of the {ndim} axes of input_size" if ndim else "at least one axis"
        raise SpecError(name, value, f"must be an integer or {wanted}")
    return tuple(_integer(name, entry, 1) for entry in entries)
