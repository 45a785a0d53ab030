"""The front doors: array in, array out. Plans are cached, so a repeated call costs little more than its kernel."""

from __future__ import annotations

import sys
from collections import OrderedDict
from collections.abc import Callable
from functools import partial
from threading import Lock
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from convbench.backend import Plan
from convbench.errors import SpecError
from convbench.registry import get_backend
from convbench.select import choose
from convbench.spec import DTYPES, ConvSpec, PaddingLike, SizeLike, TileLike
from convbench.threads import resolve

__all__ = ["conv", "convolve", "correlate", "front_doors", "plan"]

_PLANS: OrderedDict[Any, Plan] = OrderedDict()
_PLANS_LOCK = Lock()
_PLANS_KEPT = 128
_PLANS_KEPT_BYTES = 256 * 2**20  # of workspace, which a plan may keep between calls


def plan(spec: ConvSpec | str, backend: str = "auto", *, threads: int | None = None, finite: bool = True) -> Plan:
    """Make a spec ready: ``weights = plan.prepare(w)`` once, ``plan(x, weights, bias, out)`` often.

    Parameters
    ----------
    spec : ConvSpec or str
        A string is parsed as a line.
    backend : str
        A registered name, or "auto" (see :mod:`convbench.select`).
    threads : int, optional
        None: every core in the affinity mask.
    finite : bool
        With "auto": False if the data may hold NaN or infinity.

    Raises
    ------
    SpecError, UnknownBackend, BackendUnavailable, UnsupportedSpec

    Examples
    --------
    >>> import numpy as np
    >>> p = plan("c2 o4 i8x8 k3 psame f64", backend="fft", threads=1)
    >>> weights = p.prepare(np.ones((4, 2, 3, 3)))
    >>> p(np.ones((1, 2, 8, 8)), weights).shape
    (1, 4, 8, 8)
    """
    if isinstance(spec, str):
        spec = ConvSpec.parse(spec)
    if not isinstance(spec, ConvSpec):
        raise SpecError("spec", spec, "must be a ConvSpec or a line such as 'n1 c64 o64 i56x56 k3 p1 f32'")
    chosen = choose(spec, finite=finite) if backend == "auto" else get_backend(backend)
    return chosen.plan(spec, threads=threads)


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
    stride, padding, dilation, groups, tile, boundary, flip, layout
        As in :class:`convbench.ConvSpec`.
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
    """
    options = (stride, padding, dilation, groups, tile, boundary, flip, layout, finite, backend, threads)
    try:
        extra = None if bias is None else (type(bias), bias.shape, bias.dtype)
        kinds = tuple(map(type, options))  # 1, 1.0 and True are equal, but not equally good
        signature = (type(x), x.shape, x.dtype, type(w), w.shape, w.dtype, extra, options, kinds)
        ready = _PLANS.get(signature)
    except (AttributeError, TypeError):  # not arrays, or a list among the options
        signature, ready = None, None
    if ready is None:
        return _conv_first_time(x, w, bias, out, signature, options)
    result: NDArray[Any] = ready(x, ready.prepare(w), bias, out)
    return result


def _conv_first_time(x: Any, w: Any, bias: Any, out: Any, signature: Any, options: tuple[Any, ...]) -> NDArray[Any]:
    operands = [_as_array("x", x), _as_array("w", w), *(() if bias is None else (_as_array("bias", bias),))]
    dtype = _common_dtype(operands)
    x, w, *rest = (a.astype(dtype, copy=False) for a in operands)
    bias = rest[0] if rest else None
    *fields, finite, backend, threads = options
    spec = _spec_of(x, w, bias, dtype, *fields)
    ready = plan(spec, backend, threads=resolve(threads), finite=finite)
    cacheable = signature is not None and all(a.dtype == dtype for a in operands)
    if cacheable:
        _keep(signature, ready)
    result: NDArray[Any] = ready(x, ready.prepare(w), bias, out)
    return result


def _keep(signature: Any, ready: Plan) -> None:
    with _PLANS_LOCK:
        _PLANS[signature] = ready
        while len(_PLANS) > _PLANS_KEPT or (
            len(_PLANS) > 1 and sum(kept.workspace_bytes for kept in _PLANS.values()) > _PLANS_KEPT_BYTES
        ):
            _PLANS.popitem(last=False)


def _as_array(name: str, value: Any) -> NDArray[Any]:
    masked = sys.modules.get("numpy.ma")  # not imported on its behalf
    if isinstance(value, np.ndarray) and not (masked and isinstance(value, masked.MaskedArray)):
        return np.asarray(value)  # np.matrix and other subclasses index differently
    if isinstance(value, (list, tuple, int, float, complex, np.generic)):
        try:
            return np.asarray(value)
        except ValueError as error:
            raise SpecError(name, value, f"must be an array ({error})") from None
    raise SpecError(name, type(value).__name__, "must be a NumPy array")


def _common_dtype(operands: list[NDArray[Any]], names: tuple[str, ...] = ("x", "w", "bias")) -> np.dtype[Any]:
    for name, operand in zip(names, operands, strict=False):
        if operand.dtype.name not in DTYPES or not operand.dtype.isnative:
            raise SpecError(name, str(operand.dtype), f"must have a native dtype of {', '.join(DTYPES)}")
    kinds = {operand.dtype.name for operand in operands}
    if "uint64" in kinds and any(name.startswith("int") for name in kinds):
        raise SpecError(
            "dtype", ", ".join(sorted(kinds)), "mixes uint64 with signed integers: no exact common type exists"
        )
    dtype: np.dtype[Any] = np.result_type(*(operand.dtype for operand in operands))
    return dtype


def _spec_of(
    x: NDArray[Any],
    w: NDArray[Any],
    bias: NDArray[Any] | None,
    dtype: np.dtype[Any],
    stride: SizeLike,
    padding: PaddingLike,
    dilation: SizeLike,
    groups: int,
    tile: TileLike,
    boundary: str,
    flip: bool,
    layout: str,
) -> ConvSpec:
    if x.ndim < 3:
        raise SpecError("x", x.shape, "must have shape (N, C, *spatial) with at least one spatial axis")
    ndim = x.ndim - 2
    wanted = 2 + ndim * (1 if tile is None else 2)
    if w.ndim != wanted:
        form = "(O, C/groups, *kernel)" if tile is None else "(O, *tile, C/groups, *kernel)"
        raise SpecError("w", w.shape, f"must have shape {form}: {wanted} axes for x of shape {x.shape}")
    spec = ConvSpec(
        batch=x.shape[0],
        in_channels=x.shape[1],
        out_channels=w.shape[0],
        input_size=x.shape[2:],
        kernel_size=w.shape[-ndim:],
        stride=stride,
        padding=padding,
        dilation=dilation,
        groups=groups,
        tile=tile,
        boundary=boundary,
        flip=flip,
        layout=layout,
        dtype=dtype.name,
    )
    if w.shape != spec.weight_shape:
        raise SpecError(
            "w", w.shape, f"must have shape {spec.weight_shape} for x of shape {x.shape} and groups={groups}"
        )
    return spec if bias is None else _with_bias(spec, bias)


def _with_bias(spec: ConvSpec, bias: NDArray[Any]) -> ConvSpec:
    """Recognise the bias form by its shape."""
    forms = ("channel", "tile", "location") if spec.tile else ("channel", "location")
    for form in forms:
        biased = spec.replace(bias=form)
        if biased.bias_shape == bias.shape:
            return biased
    shapes = " or ".join(str(spec.replace(bias=form).bias_shape) for form in forms)
    raise SpecError("bias", bias.shape, f"must have shape {shapes}")


def convolve(
    a: ArrayLike,
    v: ArrayLike,
    mode: str = "full",
    *,
    boundary: str = "zero",
    backend: str = "auto",
    threads: int | None = None,
) -> NDArray[Any]:
    """Convolve two N-d arrays without channels, as ``scipy.signal.convolve`` means it.

    y[p] = Σ_k a[p − k]·v[k], cropped by ``mode``.

    Parameters
    ----------
    a, v : array_like
        Of equal number of axes.
    mode : {"full", "same", "valid"}
        ``full``: H + K − 1. ``same``: the size of ``a``, centred as SciPy does for even kernels.
        ``valid``: |H − K| + 1, where one array must be at least as large as the other along every axis.
    boundary : {"zero", "circular", "reflect", "replicate"}
        SciPy's ``wrap``, ``mirror`` and ``nearest`` are circular, reflect and replicate.
    backend, threads
        As in :func:`conv`.

    Returns
    -------
    numpy.ndarray
        Of the promoted dtype, as SciPy has it: narrow integers wrap around.

    Raises
    ------
    SpecError, UnsupportedSpec, UnsupportedWeights, BackendUnavailable, UnknownBackend

    Examples
    --------
    >>> convolve([1.0, 2.0, 3.0], [0.0, 1.0, 0.5])
    array([0. , 1. , 2.5, 4. , 1.5])
    """
    return _scipy_style(a, v, mode, boundary, backend, threads, flip=True)


def correlate(
    a: ArrayLike,
    v: ArrayLike,
    mode: str = "full",
    *,
    boundary: str = "zero",
    backend: str = "auto",
    threads: int | None = None,
) -> NDArray[Any]:
    """Cross-correlate two N-d arrays without channels, as ``scipy.signal.correlate`` means it.

    y[p] = Σ_k a[p + k − (K − 1)]·conj(v[k]), cropped by ``mode``; parameters and errors as in :func:`convolve`.

    Examples
    --------
    >>> correlate([1.0, 2.0, 3.0], [0.0, 1.0, 0.5])
    array([0.5, 2. , 3.5, 3. , 0. ])
    """
    return _scipy_style(a, v, mode, boundary, backend, threads, flip=False)


def _scipy_style(
    a: ArrayLike, v: ArrayLike, mode: str, boundary: str, backend: str, threads: int | None, *, flip: bool
) -> NDArray[Any]:
    a, v = _as_array("a", a), _as_array("v", v)
    if a.ndim != v.ndim or a.ndim == 0:
        raise SpecError("v", v.shape, f"must have as many axes as a, which has shape {a.shape}, and at least one")
    if mode not in ("full", "same", "valid"):
        raise SpecError("mode", mode, "must be one of full, same, valid")
    if 0 in a.shape + v.shape:
        raise SpecError("a" if 0 in a.shape else "v", (a if 0 in a.shape else v).shape, "must not be empty")
    dtype = _common_dtype([a, v], ("a", "v"))
    if not flip and v.dtype.kind == "c":
        v = v.conj()
    reverse = False
    if mode == "valid" and any(k > h for k, h in zip(v.shape, a.shape, strict=True)):
        if any(k < h for k, h in zip(v.shape, a.shape, strict=True)):
            raise SpecError(
                "v", v.shape, f"in mode 'valid' one of a {a.shape} and v must be at least as large along every axis"
            )
        a, v, reverse = v, a, not flip  # convolution commutes; correlation comes out reversed
    padding: PaddingLike = mode
    if mode == "same":
        # SciPy's centring: y = full[(K−1)//2 :][:H]
        padding = tuple((k - 1 - (k - 1) // 2, (k - 1) // 2) for k in v.shape)
    y = conv(
        a[None, None], v[None, None], padding=padding, boundary=boundary, flip=flip, backend=backend, threads=threads
    )
    plane: NDArray[Any] = y[0, 0].astype(dtype, copy=False)  # integers come back as int64
    return np.flip(plane) if reverse else plane


class FrontDoors(NamedTuple):
    """The front doors with one backend's name filled in."""

    conv: Callable[..., NDArray[Any]]
    convolve: Callable[..., NDArray[Any]]
    correlate: Callable[..., NDArray[Any]]
    plan: Callable[..., Plan]


def front_doors(backend: str) -> FrontDoors:
    """Return :func:`conv`, :func:`convolve`, :func:`correlate` and :func:`plan` bound to one backend."""
    return FrontDoors(
        partial(conv, backend=backend),
        partial(convolve, backend=backend),
        partial(correlate, backend=backend),
        partial(plan, backend=backend),
    )
