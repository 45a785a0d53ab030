"""What the operands of a call say: arrays, their common dtype, and the spec that follows from shapes and keywords."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NoReturn

import numpy as np
from numpy.typing import NDArray

from convbench.arrays import on_device
from convbench.errors import SpecError
from convbench.fitting import Padding, input_sizes, kernel_sizes
from convbench.geometry import output_size, word_padding
from convbench.spec import DTYPES, ConvSpec, SizeLike, _entries, _integer

__all__ = [
    "as_array",
    "as_operand",
    "check_dtype",
    "common_dtype",
    "forward_spec",
    "input_grad_spec",
    "spatial_axes",
    "transpose_spec",
    "weight_grad_spec",
]

Array = NDArray[Any]
Operands = tuple[Any, ...]
Sizes = tuple[int, ...]

#: Keywords that a spec has; what stands behind them among a call's options are sizes.
FIELDS = ("stride", "padding", "dilation", "groups", "tile", "boundary", "flip", "layout")


def as_operand(name: str, value: Any) -> Array:
    """Return CuPy's arrays as they are, what is made of them stays on their device; else see :func:`as_array`."""
    return value if on_device(value) else as_array(name, value)


def as_array(name: str, value: Any) -> Array:
    """Return an array, or what is plainly meant as one, as a ``numpy.ndarray``; refuse everything else."""
    masked = sys.modules.get("numpy.ma")  # not imported on its behalf
    if isinstance(value, np.ndarray) and not (masked and isinstance(value, masked.MaskedArray)):
        return np.asarray(value)  # np.matrix and other subclasses index differently
    if isinstance(value, (list, tuple, int, float, complex, np.generic)):
        try:
            return np.asarray(value)
        except ValueError as error:
            raise SpecError(name, value, f"must be an array ({error})") from None
    if on_device(value):
        raise SpecError(name, type(value).__name__, "must be a NumPy array: give cupy.asnumpy(…) of it")
    advice = next((advice for method, advice in _CONVERSIONS.items() if callable(getattr(value, method, None))), "")
    raise SpecError(name, type(value).__name__, f"must be a NumPy array{advice}")


#: Of other arrays: a method that tells what they are, and how they become NumPy's.
_CONVERSIONS = {
    "filled": ", without a mask: give .filled(…), say what stands in the masked places",
    "numpy": ": give .numpy() (of a PyTorch tensor on a device or with a gradient .detach().cpu().numpy())",
    "__array__": ": give numpy.asarray(…) of it",
}


def check_dtype(name: str, array: Array, allowed: Sequence[str]) -> None:
    """Refuse a dtype that is not among ``allowed``, or not native, and say how to convert it."""
    dtype = array.dtype
    if not dtype.isnative and dtype.newbyteorder("=").name in allowed:
        rule = f"must have a native dtype: give {name}.astype({name}.dtype.newbyteorder('='))"
        raise SpecError(name, dtype.str, rule)
    if dtype.name not in allowed:
        advice = f"; give {name}.astype('uint8')" if dtype.kind == "b" else ""
        raise SpecError(name, str(dtype), f"must have a native dtype of {', '.join(allowed)}{advice}")


def common_dtype(arrays: dict[str, Array]) -> np.dtype[Any]:
    """Return what the operands promote to, where a spec can have it and it is exact."""
    for name, operand in arrays.items():
        check_dtype(name, operand, tuple(DTYPES))
    kinds = {operand.dtype.name for operand in arrays.values()}
    if "uint64" in kinds and any(name.startswith("int") for name in kinds):
        raise SpecError(
            "dtype", ", ".join(sorted(kinds)), "mixes uint64 with signed integers: no exact common type exists"
        )
    dtype: np.dtype[Any] = np.result_type(*(operand.dtype for operand in arrays.values()))
    return dtype


def forward_spec(operands: Operands, dtype: str, *options: Any) -> ConvSpec:
    """Return the spec of :func:`convbench.conv`, for operands x, w and a bias or None."""
    (x, w, bias), (fields, _) = operands, _named(options)
    ndim = spatial_axes("x", x, "(N, C, *spatial)")
    _expect_axes("w", w, "O", "C/groups", ndim, fields["tile"], "x", x)
    spec = ConvSpec(
        batch=x.shape[0],
        in_channels=x.shape[1],
        out_channels=w.shape[0],
        input_size=x.shape[2:],
        kernel_size=w.shape[-ndim:],
        dtype=dtype,
        **fields,
    )
    _expect("w", w, spec.weight_shape, f"x of shape {x.shape} and groups={spec.groups}")
    return spec if bias is None else _with_bias(spec, bias)


def _with_bias(spec: ConvSpec, bias: Array) -> ConvSpec:
    """Recognise the bias form by its shape."""
    forms = ("channel", "tile", "location") if spec.tile else ("channel", "location")
    for form in forms:
        biased = spec.replace(bias=form)
        if biased.bias_shape == bias.shape:
            return biased
    shapes = " or ".join(str(spec.replace(bias=form).bias_shape) for form in forms)
    raise SpecError("bias", bias.shape, f"must have shape {shapes}")


def input_grad_spec(operands: Operands, dtype: str, *options: Any) -> ConvSpec:
    """Return the spec of :func:`convbench.conv_input_grad`, for operands g and w."""
    (g, w), (fields, (size,)) = operands, _named(options)
    ndim = spatial_axes("g", g, "(N, O, *output_size)")
    _expect_axes("w", w, "O", "C/groups", ndim, fields["tile"], "g", g)
    axes = _Axes.of(fields, ndim)
    sizes, kernel = _per_axis("input_size", size, ndim), w.shape[-ndim:]
    fitting = [input_sizes(*each) for each in zip(g.shape[2:], kernel, *axes, strict=True)]
    if not _fit(sizes, fitting):
        gives = _joined(max(0, outputs) for outputs in axes.outputs(sizes, kernel))
        _refuse_size("input_size", size, fitting, f"gives outputs of {gives}, and g has {_joined(g.shape[2:])}", "g")
    spec = ConvSpec(
        op="input_grad",
        batch=g.shape[0],
        in_channels=w.shape[-ndim - 1] * axes.groups,
        out_channels=w.shape[0],
        input_size=sizes,
        kernel_size=kernel,
        dtype=dtype,
        **fields,
    )
    _expect("w", w, spec.weight_shape, f"g of shape {g.shape} and groups={spec.groups}")
    _expect("g", g, spec.output_shape, f"w of shape {w.shape}")
    return spec


def weight_grad_spec(operands: Operands, dtype: str, *options: Any) -> ConvSpec:
    """Return the spec of :func:`convbench.conv_weight_grad`, for operands x and g."""
    (x, g), (fields, (size,)) = operands, _named(options)
    ndim = spatial_axes("x", x, "(N, C, *spatial)")
    if g.ndim != x.ndim:
        raise SpecError("g", g.shape, f"must have shape (N, O, *output_size): {x.ndim} axes for x of shape {x.shape}")
    axes = _Axes.of(fields, ndim)
    kernel, sizes = _per_axis("kernel_size", size, ndim), x.shape[2:]
    fitting = [kernel_sizes(*each) for each in zip(g.shape[2:], sizes, *axes, strict=True)]
    if not _fit(kernel, fitting):
        gives = _joined(max(0, outputs) for outputs in axes.outputs(sizes, kernel))
        _refuse_size("kernel_size", size, fitting, f"gives outputs of {gives}, and g has {_joined(g.shape[2:])}", "g")
    spec = ConvSpec(
        op="weight_grad",
        batch=x.shape[0],
        in_channels=x.shape[1],
        out_channels=g.shape[1],
        input_size=sizes,
        kernel_size=kernel,
        dtype=dtype,
        **fields,
    )
    _expect("g", g, spec.output_shape, f"x of shape {x.shape}")
    return spec


def transpose_spec(operands: Operands, dtype: str, *options: Any) -> ConvSpec:
    """Return the spec of :func:`convbench.conv_transpose`: an input gradient with x in the place of g."""
    (x, w, bias), (fields, (extra, size)) = operands, _named(options)
    ndim = spatial_axes("x", x, "(N, C_in, *spatial)")
    _expect_axes("w", w, "C_in", "C_out/groups", ndim, fields["tile"], "x", x)
    if w.shape[0] != x.shape[1]:
        raise SpecError("w", w.shape, f"must begin with the {x.shape[1]} input channels of x, which has {x.shape}")
    axes, kernel = _Axes.of(fields, ndim), w.shape[-ndim:]
    if x.shape[1] % axes.groups:
        raise SpecError("groups", axes.groups, f"must divide the {x.shape[1]} input channels of x")
    channels = w.shape[-ndim - 1] * axes.groups
    if bias is not None:
        _expect("bias", bias, (channels,), f"w of shape {w.shape} and groups={axes.groups}")
    sizes, padding = axes.scattered(x.shape[2:], kernel, extra, size)
    spec = ConvSpec(
        op="input_grad",
        batch=x.shape[0],
        in_channels=channels,
        out_channels=x.shape[1],
        input_size=sizes,
        kernel_size=kernel,
        dtype=dtype,
        **{**fields, "padding": padding},
    )
    _expect("w", w, spec.weight_shape, f"x of shape {x.shape} and groups={spec.groups}")
    return spec


@dataclass(frozen=True)
class _Axes:
    """Stride, dilation and padding of each axis, made regular before the sizes are known to fit."""

    stride: Sizes
    dilation: Sizes
    padding: tuple[Padding, ...]
    groups: int

    @classmethod
    def of(cls, fields: dict[str, Any], ndim: int) -> _Axes:
        # the spec's own checks, on an input beside which any kernel and padding is small
        plain = {**fields, "groups": 1, "tile": None}
        spec = ConvSpec(input_size=(2**61,) * ndim, kernel_size=1, **plain)
        padding = (spec.padding_word,) * ndim if spec.padding_word else spec.padding
        return cls(spec.stride, spec.dilation, padding, _integer("groups", fields["groups"], 1))

    def __iter__(self) -> Iterator[tuple[Any, ...]]:
        return iter((self.stride, self.dilation, self.padding))

    def pairs(self, sizes: Sizes, kernel: Sizes) -> list[tuple[int, int]]:
        """Resolve words to (before, after)."""
        return [
            word_padding(padding, size, extent, stride, dilation) if isinstance(padding, str) else padding
            for size, extent, stride, dilation, padding in zip(sizes, kernel, *self, strict=True)
        ]

    def outputs(self, sizes: Sizes, kernel: Sizes) -> list[int]:
        """Return the output sizes, which are not positive where nothing fits."""
        pairs = self.pairs(sizes, kernel)
        rows = zip(sizes, kernel, self.stride, self.dilation, pairs, strict=True)
        return [output_size(n, k, s, d, a, b) for n, k, s, d, (a, b) in rows]

    def scattered(
        self, inputs: Sizes, kernel: Sizes, extra: SizeLike, wanted: SizeLike | None
    ) -> tuple[Sizes, list[tuple[int, int]]]:
        """Return the sizes of a transposed convolution's result, and its padding with ``output_padding`` taken away.

        That may leave a crop. Then the last tap of the last input sample falls on the last sample that the layer reads,
        so the layer has exactly ``inputs`` outputs, whatever the stride.
        """
        more = _per_axis("output_padding", extra, len(inputs), least=0)
        room = [max(pair) for pair in zip(self.stride, self.dilation, strict=True)]
        if wanted is not None:
            sizes = _per_axis("input_size", wanted, len(inputs))
            if any(more):
                raise SpecError("output_padding", extra, f"and input_size={wanted} say the same; give one of the two")
            pairs = self.pairs(sizes, kernel)
            least = self._least(inputs, kernel, pairs)
            fitting = [range(max(1, first), max(1, first + most)) for first, most in zip(least, room, strict=True)]
            if "same" in self.padding:
                fitting = [input_sizes(*each) for each in zip(inputs, kernel, *self, strict=True)]
            if not _fit(sizes, fitting):
                _refuse_size("input_size", wanted, fitting, f"cannot come from x of size {_joined(inputs)}", "x")
        else:
            if "same" in self.padding:
                rule = "depends on the size of the result: give input_size, or padding as (before, after) pairs"
                raise SpecError("padding", "same", rule)
            for axis, (n, most) in enumerate(zip(more, room, strict=True)):
                if n >= most:
                    rule = f"must be smaller than the larger of stride and dilation, {most} along axis {axis}"
                    raise SpecError("output_padding", extra, rule)
            pairs = self.pairs(inputs, kernel)  # explicit, or a word that does not look at sizes
            least = self._least(inputs, kernel, pairs)
            sizes = tuple(first + n for first, n in zip(least, more, strict=True))
            if min(sizes) < 1:
                axis = sizes.index(min(sizes))
                raise SpecError("padding", pairs, f"crops the result along axis {axis} to {sizes[axis]} samples")
        rows = zip(pairs, sizes, least, strict=True)
        return sizes, [(before, after - (size - first)) for (before, after), size, first in rows]

    def _least(self, inputs: Sizes, kernel: Sizes, pairs: list[tuple[int, int]]) -> list[int]:
        """Return the sizes of a transposed convolution's result without output padding."""
        rows = zip(inputs, kernel, self.stride, self.dilation, pairs, strict=True)
        return [(n - 1) * s - a - b + d * (k - 1) + 1 for n, k, s, d, (a, b) in rows]


def _named(options: tuple[Any, ...]) -> tuple[dict[str, Any], tuple[Any, ...]]:
    return dict(zip(FIELDS, options, strict=False)), options[len(FIELDS) :]


def spatial_axes(name: str, array: Array, form: str) -> int:
    """Return the number of spatial axes."""
    if array.ndim < 3:
        raise SpecError(name, array.shape, f"must have shape {form} with at least one spatial axis")
    return array.ndim - 2


def _expect_axes(
    name: str, w: Array, outer: str, inner: str, ndim: int, tile: object, other: str, array: Array
) -> None:
    wanted = 2 + ndim * (1 if tile is None else 2)
    if w.ndim != wanted:
        form = f"({outer}, {inner}, *kernel)" if tile is None else f"({outer}, *tile, {inner}, *kernel)"
        raise SpecError(name, w.shape, f"must have shape {form}: {wanted} axes for {other} of shape {array.shape}")


def _expect(name: str, array: Array, shape: Sizes, context: str) -> None:
    if array.shape != shape:
        raise SpecError(name, array.shape, f"must have shape {shape} for {context}")


def _per_axis(name: str, value: Any, ndim: int, least: int = 1) -> Sizes:
    entries = _entries(value)
    if entries is None:
        return (_integer(name, value, least),) * ndim
    if len(entries) != ndim:
        raise SpecError(name, value, f"must be an integer or one for each of the {ndim} spatial axes")
    return tuple(_integer(name, entry, least) for entry in entries)


def _fit(sizes: Sizes, fitting: Sequence[range]) -> bool:
    return all(size in fits for size, fits in zip(sizes, fitting, strict=True))


def _refuse_size(name: str, value: object, fitting: Sequence[range], why: str, array: str) -> NoReturn:
    """Say which sizes would fit; if none would, that the size asked for is not what is wrong."""
    fits = ", ".join(f"{_span(sizes)} along axis {axis}" for axis, sizes in enumerate(fitting))
    blame = "" if all(fitting) else f": {array}, the padding or the stride is at fault"
    raise SpecError(name, value, f"{why}; what fits: {fits}{blame}")


def _span(sizes: range) -> str:
    if len(sizes) > 2**32:
        return "any"
    return "none" if not sizes else f"{sizes[0]}" if len(sizes) == 1 else f"{sizes[0]} to {sizes[-1]}"


def _joined(sizes: Iterable[int]) -> str:
    return "×".join(map(str, sizes))
