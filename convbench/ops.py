"""The front doors of the family: array in, array out. Plans are cached, so a call costs little more than its kernel."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache, partial
from itertools import product
from math import prod
from typing import Any, ClassVar, TypedDict, Unpack

import numpy as np
from numpy.typing import NDArray

from convbench.backend import Plan, overlap
from convbench.errors import SpecError, UnsupportedSpec
from convbench.operands import (
    as_operand,
    common_dtype,
    forward_spec,
    input_grad_spec,
    spatial_axes,
    transpose_spec,
    weight_grad_spec,
)
from convbench.planning import Door, call, plan
from convbench.refusals import refuse
from convbench.spec import BIASES, ConvSpec, PaddingLike, SizeLike, TileLike, _choice

__all__ = [
    "ConvOptions",
    "FrontDoors",
    "conv",
    "conv_bias_grad",
    "conv_input_grad",
    "conv_transpose",
    "conv_weight_grad",
    "front_doors",
    "plan",
]

Array = NDArray[Any]
Operands = tuple[Any, ...]
Sizes = tuple[int, ...]


def conv(
    x: NDArray[Any],
    w: NDArray[Any],
    bias: NDArray[Any] | None = None,
    *,
    stride: SizeLike = 1,
    padding: PaddingLike = "valid",
    dilation: SizeLike = 1,
    groups: int = 1,
    tile: TileLike = None,
    boundary: str = "zero",
    flip: bool = False,
    layout: str = "channels_first",
    finite: bool = True,
    backend: str = "auto",
    threads: int | None = None,
    out: NDArray[Any] | None = None,
) -> NDArray[Any]:
    r"""Convolve as deep learning does: y[n,o,p] = Σ_{c,k} x[n, c, p·s + k·d − a]·w[o,c,k] + bias.

    Parameters
    ----------
    x : numpy.ndarray, shape (N, C, \*spatial)
    w : numpy.ndarray, shape (O, [\*tile,] C/groups, \*kernel)
    bias : numpy.ndarray, optional
        Shape (O,), or (O, \*tile) with ``tile``, or (O, \*output_size).
    stride, padding, dilation, groups, tile, boundary, flip
        As in :class:`convbench.ConvSpec`.
    layout : {"channels_first", "channels_last"}
        The order in memory of the result (except for the gradient of weights); shapes are the same for both, and
        operands may have any strides.
    finite : bool
        False keeps ``backend="auto"`` off methods that spread NaN and infinity.
    backend : str
        A name from ``convbench list backends``, or "auto".
    threads : int, optional
        None: every core in the affinity mask.
    out : numpy.ndarray, optional
        Receives the result.

    Returns
    -------
    numpy.ndarray, shape (N, O, \*output_size)
        Of the promoted dtype of the operands; integers are summed exactly and give int64.

    Raises
    ------
    SpecError
        For malformed input: which argument, what was given, what is allowed.
    UnsupportedSpec, UnsupportedWeights, BackendUnavailable, UnknownBackend
        If the backend cannot do it.

    Notes
    -----
    The plan is cached by shapes and options; weights are prepared anew in each call (use :func:`plan` to
    prepare them once). An operand of a narrower dtype than the promoted one is converted, which copies it.

    Examples
    --------
    >>> import numpy as np
    >>> conv(np.ones((1, 1, 3, 3), "f4"), np.ones((1, 1, 3, 3), "f4"), padding="same")[0, 0]
    array([[4., 6., 4.],
           [6., 9., 6.],
           [4., 6., 4.]], dtype=float32)

    Arrays with the channels last go in and come out as views, without a copy:

    >>> image = np.ones((2, 8, 9, 3), "f4")  # N, H, W, C
    >>> y = conv(np.moveaxis(image, -1, 1), np.ones((5, 3, 3, 3), "f4"), layout="channels_last")
    >>> nhwc = np.moveaxis(y, 1, -1)
    >>> nhwc.shape, nhwc.flags.c_contiguous
    ((2, 6, 7, 5), True)
    """
    options = (stride, padding, dilation, groups, tile, boundary, flip, layout)
    return call(_FORWARD, (x, w, bias), options, out, finite, backend, threads)


_DEFAULTS: dict[str, Any] = conv.__kwdefaults__ or {}


class ConvOptions(TypedDict, total=False):
    """The keywords of :func:`conv`, which its gradients and its transpose have too, with the same defaults."""

    stride: SizeLike
    padding: PaddingLike
    dilation: SizeLike
    groups: int
    tile: TileLike
    boundary: str
    flip: bool
    layout: str
    finite: bool
    backend: str
    threads: int | None
    out: NDArray[Any] | None


def conv_input_grad(
    g: NDArray[Any], w: NDArray[Any], input_size: SizeLike, **options: Unpack[ConvOptions]
) -> NDArray[Any]:
    r"""Return ∂J/∂x of :func:`conv` from g = ∂J/∂y: Σ g[n,o,p]·conj(w[o,c,k]) over p·s + k·d − a = q (eq. 9.13).

    It is the exact adjoint, ⟨conv(x, w), g⟩ = ⟨x, conv_input_grad(g, w)⟩, of every boundary too: circular wraps
    back, reflect folds back, replicate gathers at the edge.

    Parameters
    ----------
    g : numpy.ndarray, shape (N, O, \*output_size)
    w : numpy.ndarray, shape (O, [\*tile,] C/groups, \*kernel)
    input_size : int or one per axis
        Spatial size of x. With a stride several sizes give one output size, so it is told, never guessed; of one that
        does not fit the error says which would.
    **options
        Keywords of :func:`conv`, with the same defaults.

    Returns
    -------
    numpy.ndarray, shape (N, C, \*input_size)

    Raises
    ------
    SpecError, UnsupportedSpec, UnsupportedWeights, BackendUnavailable, UnknownBackend
        As :func:`conv`.

    Examples
    --------
    >>> import numpy as np
    >>> conv_input_grad(np.ones((1, 1, 2)), np.array([[[1.0, 10.0]]]), 5, stride=2)
    array([[[ 1., 10.,  1., 10.,  0.]]])
    """
    return _call_with(_INPUT_GRAD, (g, w), (input_size,), options)


def conv_weight_grad(
    x: NDArray[Any], g: NDArray[Any], kernel_size: SizeLike, **options: Unpack[ConvOptions]
) -> NDArray[Any]:
    r"""Return ∂J/∂w of :func:`conv` from g = ∂J/∂y: Σ_{n,p} conj(x[n, c, p·s + k·d − a])·g[n,o,p] (eq. 9.11).

    Parameters
    ----------
    x : numpy.ndarray, shape (N, C, \*spatial)
    g : numpy.ndarray, shape (N, O, \*output_size)
    kernel_size : int or one per axis
        Several may give one output size; of one that does not fit the error says which would.
    **options
        Keywords of :func:`conv`, with the same defaults.

    Returns
    -------
    numpy.ndarray, shape (O, [\*tile,] C/groups, \*kernel)
        C-contiguous in either layout; with ``tile`` each kernel has the sum over the positions that use it.

    Raises
    ------
    SpecError, UnsupportedSpec, BackendUnavailable, UnknownBackend
        As :func:`conv`.

    Examples
    --------
    >>> import numpy as np
    >>> conv_weight_grad(np.array([[[1.0, 2.0, 3.0]]]), np.array([[[1.0, 10.0]]]), 2)
    array([[[21., 32.]]])
    """
    return _call_with(_WEIGHT_GRAD, (x, g), (kernel_size,), options)


def conv_bias_grad(g: NDArray[Any], *, bias: str = "channel", tile: TileLike = None) -> NDArray[Any]:
    r"""Return ∂J/∂bias of :func:`conv` from g = ∂J/∂y: the sum over all examples and positions that share an entry.

    Parameters
    ----------
    g : numpy.ndarray, shape (N, O, \*output_size)
    bias : {"channel", "tile", "location"}
        What has an entry of its own: an output channel; each of ``tile`` positions that are cycled through; each
        position.
    tile : "unshared", int or one per axis
        The period, for ``bias="tile"``.

    Returns
    -------
    numpy.ndarray, shape (O,), (O, \*tile) or (O, \*output_size)
        Of g's dtype; integers are summed exactly and give int64, half precision is summed in float32.

    Raises
    ------
    SpecError
    UnsupportedSpec
        If a sum of integers could overflow 64 bits.

    Examples
    --------
    >>> import numpy as np
    >>> g = np.arange(5.0).reshape(1, 1, 5)
    >>> conv_bias_grad(g), conv_bias_grad(g, bias="tile", tile=2)
    (array([10.]), array([[6., 4.]]))
    """
    g = as_operand("g", g)
    spatial_axes("g", g, "(N, O, *output_size)")
    form = _choice("bias", bias, BIASES[1:])
    # a layer of 1×1 kernels has this output; its spec checks the rest
    spec = ConvSpec(
        batch=g.shape[0],
        out_channels=g.shape[1],
        input_size=g.shape[2:],
        kernel_size=1,
        tile=tile,
        bias=form,
        dtype=common_dtype({"g": g}).name,
    )
    period = {"channel": (1,) * spec.ndim, "tile": spec.tile or (), "location": spec.output_size}[form]
    if g.dtype.kind in "iu" and g.size:
        terms = g.shape[0] * prod(-(-size // t) for size, t in zip(spec.output_size, period, strict=True))
        _refuse_overflow("max|g|·terms", _largest(g) * terms, np.dtype(spec.result_dtype))
    with np.errstate(over="ignore"):  # a sum beyond float16 is infinite, as the layer's own results are
        total = _periodic_sum(g, period, spec.result_dtype)
    return total.reshape(-1) if form == "channel" else total


def _periodic_sum(g: Array, period: Sizes, dtype: str) -> Array:
    """Sum over examples and over the positions that are equal modulo ``period``."""
    sizes = g.shape[2:]
    total = np.zeros_like(g, dtype, shape=(g.shape[1], *period))  # of g's library, whichever that is
    cycled = [t < size for t, size in zip(period, sizes, strict=True)]
    axes = (0, *(2 + axis for axis, summed in enumerate(cycled) if summed))
    # one sum for each phase of the axes that are cycled through, all positions at once of the others
    phases: list[Any] = [
        range(t) if summed else [slice(size)] for t, size, summed in zip(period, sizes, cycled, strict=True)
    ]
    sums_in = "float32" if dtype in ("float16", "bfloat16") else dtype
    for phase in product(*phases):
        alike: Any = [i if isinstance(i, slice) else slice(i, None, t) for i, t in zip(phase, period, strict=True)]
        total[(slice(None), *phase)] = g[(slice(None), slice(None), *alike)].sum(axis=axes, dtype=sums_in)
    return total


def conv_transpose(
    x: NDArray[Any],
    w: NDArray[Any],
    bias: NDArray[Any] | None = None,
    *,
    output_padding: SizeLike = 0,
    input_size: SizeLike | None = None,
    **options: Unpack[ConvOptions],
) -> NDArray[Any]:
    r"""Transposed convolution as PyTorch and ONNX define it: y[p·s + k·d − a] += x[p]·w[k], plus a bias.

    It is the input gradient of the layer that leads from y's shape to x's, used as a forward operation; unlike the
    gradient it does not conjugate complex weights. The size of the result is
    (H − 1)·s − a − b + d·(K − 1) + 1 + output_padding.

    Parameters
    ----------
    x : numpy.ndarray, shape (N, C_in, \*spatial)
    w : numpy.ndarray, shape (C_in, [\*tile,] C_out/groups, \*kernel)
    bias : numpy.ndarray, shape (C_out,), optional
    output_padding : int or one per axis
        Further samples at the end, fewer than the larger of stride and dilation.
    input_size : int or one per axis, optional
        In place of ``output_padding``, the spatial size of the result, which is the input of that layer.
    **options
        Keywords of :func:`conv`, with the same defaults. Padding crops the result: 0 (or "valid"), an integer, or
        (before, after) pairs, as in :func:`conv`; "same" depends on the size of the result and needs ``input_size``.

    Returns
    -------
    numpy.ndarray, shape (N, C_out, \*size)

    Raises
    ------
    SpecError, UnsupportedSpec, UnsupportedWeights, BackendUnavailable, UnknownBackend
        As :func:`conv`.

    Examples
    --------
    >>> import numpy as np
    >>> x, w = np.array([[[1.0, 2.0]]]), np.array([[[1.0, 10.0, 100.0]]])
    >>> conv_transpose(x, w, stride=2)
    array([[[  1.,  10., 102.,  20., 200.]]])
    >>> conv_transpose(x, w, stride=2, padding=1, input_size=4)
    array([[[ 10., 102.,  20., 200.]]])
    """
    return _call_with(_TRANSPOSE, (x, w, bias), (output_padding, input_size), options)


def _call_with(door: Door, operands: Operands, sizes: tuple[Any, ...], given: ConvOptions) -> Array:
    options = {**_DEFAULTS, **given}
    if len(options) != len(_DEFAULTS):
        unknown = ", ".join(sorted(options.keys() - _DEFAULTS.keys()))
        raise TypeError(f"unexpected keyword argument {unknown}; there are {', '.join(_DEFAULTS)}")
    *fields, finite, backend, threads, out = options.values()
    return call(door, operands, (*fields, *sizes), out, finite, backend, threads)


# -- from a plan to a result -------------------------------------------------------------------------


def _run_prepared(ready: Plan, operands: Operands, out: Any) -> Array:
    first, w, bias = operands if len(operands) == 3 else (*operands, None)
    result: Array = ready(first, ready.prepare(w), bias, out)
    return result


def _run_weight_grad(ready: Plan, operands: Operands, out: Any) -> Array:
    x, g = operands
    result: Array = ready(x, g, None, out)
    return result


def _run_transpose(ready: Plan, operands: Operands, out: Any) -> Array:
    x, w, bias = operands
    if isinstance(out, type(x)):
        for name, operand in (("x", x), ("w", w), ("bias", bias)):
            if operand is not None and overlap(out, operand):
                raise SpecError("out", f"memory shared with {name}", "must be an array of its own")
    if w.dtype.kind == "c":  # the gradient conjugates
        w = w.conj()
    y: Array = ready(x, ready.prepare(w), None, out)
    if bias is not None:
        if y.dtype.kind in "iu" and y.size:
            _refuse_overflow("max|y| + max|bias|", _largest(y) + _largest(bias), y.dtype)
        y += bias.reshape(-1, *(1,) * (y.ndim - 2))
    return y


def _largest(array: Array) -> int:
    return max(abs(int(array.max())), abs(int(array.min())))


def _refuse_overflow(what: str, total: int, dtype: np.dtype[Any]) -> None:
    """Integers are exact or refused."""
    if total > np.iinfo(dtype).max:
        sentence = f"{what} = {total:.3g} could overflow {dtype}; convert to float64 or scale down"
        raise UnsupportedSpec(refuse("dtype", sentence))


_FORWARD = Door(("x", "w", "bias"), forward_spec, _run_prepared)
_INPUT_GRAD = Door(("g", "w"), input_grad_spec, _run_prepared)
_WEIGHT_GRAD = Door(("x", "g"), weight_grad_spec, _run_weight_grad)
_TRANSPOSE = Door(("x", "w", "bias"), transpose_spec, _run_transpose)


# -- one backend's -----------------------------------------------------------------------------------


@dataclass(frozen=True)
class FrontDoors:
    """The front doors with one backend's name filled in, as a module's ``__getattr__``.

    Attributes
    ----------
    backend : str
    """

    backend: str

    NAMES: ClassVar = ("conv", "conv_input_grad", "conv_transpose", "conv_weight_grad", "convolve", "correlate", "plan")

    def __call__(self, name: str) -> Callable[..., Any]:
        """Return the front door of that name."""
        if name not in self.NAMES:
            raise AttributeError(f"backend {self.backend!r} has no {name!r}; it has {', '.join(self.NAMES)}")
        return _bound(self.backend, name)


@cache
def _bound(backend: str, name: str) -> Callable[..., Any]:
    import convbench

    return partial(getattr(convbench, name), backend=backend)


def front_doors(backend: str) -> FrontDoors:
    """Return all front doors of one backend, for its module: ``__getattr__ = front_doors("fft")``.

    >>> front_doors("im2col")("convolve")([1.0, 2.0], [1.0, 1.0])
    array([1., 3., 2.])
    """
    return FrontDoors(backend)
