"""The front doors of pooling: array in, array out."""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from convbench.errors import SpecError, UnsupportedSpec
from convbench.operands import as_array, check_dtype, spatial_axes
from convbench.planning import is_auto
from convbench.pooling.backend import PoolBackend, PoolPlan
from convbench.pooling.registry import get_pool_backend
from convbench.pooling.spec import POOL_DTYPES, PadLike, PoolSpec, SizeLike, sizes_of
from convbench.threads import resolve

__all__ = [
    "adaptive_pool",
    "adaptive_pool_grad",
    "choose",
    "distance_weighted_mean",
    "pool",
    "pool_grad",
    "pool_plan",
]

Array = NDArray[Any]

_PLANS_KEPT = 64
_LONG = 96  # samples along an axis from which blocks are quicker than taps
_AUTO = ("separable", "direct")


def choose(spec: PoolSpec) -> PoolBackend:
    """Return the backend of ``backend="auto"``: van-herk for maxima over long windows, else separable.

    Neither spreads NaN or infinity, which integral-image does: that must be asked for.

    >>> choose(PoolSpec.parse("pool=max i512x512 k101 s1")).name
    'van-herk'
    """
    longest = max(windows.longest for windows in spec.windows)
    names = ("van-herk", *_AUTO) if spec.kind == "max" and longest >= _LONG else _AUTO
    for name in names:
        backend = get_pool_backend(name)
        if backend.why_not(spec) is None:
            return backend
    raise UnsupportedSpec(f"no backend takes {spec} ({get_pool_backend(names[-1]).why_not(spec)})")


def pool_plan(spec: PoolSpec | str, backend: str = "auto", *, threads: int | None = None) -> PoolPlan:
    """Make a spec ready: ``plan(x, out=None)``, or ``plan(x, g, out=None)`` for the gradient.

    Parameters
    ----------
    spec : PoolSpec or str
        A string is parsed as a line.
    backend : str
        A name from ``convbench list backends --pooling``, or "auto".
    threads : int, optional
        None: every core in the affinity mask.

    Raises
    ------
    SpecError, UnknownBackend, BackendUnavailable, UnsupportedSpec

    Examples
    --------
    >>> plan = pool_plan("pool=mean i6x6 k3 s1 f64", "integral-image", threads=1)
    >>> plan(np.ones((1, 1, 6, 6))).shape
    (1, 1, 4, 4)
    """
    if isinstance(spec, str):
        spec = PoolSpec.parse(spec)
    if not isinstance(spec, PoolSpec):
        raise SpecError("spec", spec, "must be a PoolSpec or a line such as 'pool=max n1 c64 i112x112 k3 s2 p1 f32'")
    chosen = choose(spec) if is_auto(backend) else get_pool_backend(backend)
    return chosen.plan(spec, threads=threads)


@lru_cache(_PLANS_KEPT)
def _kept_plan(spec: PoolSpec, backend: str, threads: int) -> PoolPlan:
    return pool_plan(spec, backend, threads=threads)


def pool(
    x: Array,
    kernel_size: SizeLike,
    *,
    kind: str,
    stride: SizeLike | None = None,
    padding: PadLike = 0,
    count_include_pad: bool = False,
    backend: str = "auto",
    threads: int | None = None,
    out: Array | None = None,
) -> Array:
    r"""Reduce every window of every channel: its maximum, mean or norm.

    Parameters
    ----------
    x : numpy.ndarray, shape (N, C, \*spatial)
        Float32 or float64; of integers the maximum.
    kernel_size, stride, padding, count_include_pad
        As in :class:`convbench.PoolSpec`; without ``stride`` windows lie side by side.
    kind : {"max", "mean", "l2"}
    backend : str
        A name from ``convbench list backends --pooling``, or "auto".
    threads : int, optional
        None: every core in the affinity mask.
    out : numpy.ndarray, optional
        Receives the result.

    Returns
    -------
    numpy.ndarray, shape (N, C, \*output_size)
        Of x's dtype.

    Raises
    ------
    SpecError
        For malformed input: which argument, what was given, what is allowed.
    UnsupportedSpec, BackendUnavailable, UnknownBackend
        If the backend cannot do it.

    Examples
    --------
    >>> x = np.array([[[1.0, 5.0, 2.0, 0.0, 3.0, 4.0]]])
    >>> pool(x, 2, kind="max"), pool(x, 3, kind="mean", stride=1, padding=1)[0, 0, :2]
    (array([[[5., 2., 4.]]]), array([3.        , 2.66666667]))
    """
    given = {"kernel_size": kernel_size, "stride": stride, "padding": padding, "count_include_pad": count_include_pad}
    return _run("forward", kind, {"x": x}, given, backend, threads, out)


def pool_grad(
    x: Array,
    g: Array,
    kernel_size: SizeLike,
    *,
    kind: str,
    stride: SizeLike | None = None,
    padding: PadLike = 0,
    count_include_pad: bool = False,
    backend: str = "auto",
    threads: int | None = None,
    out: Array | None = None,
) -> Array:
    """Return the gradient at x of a loss of which ``g`` is the gradient at ``pool(x, …)``.

    Parameters, errors as in :func:`pool`; the result has the shape of x. The gradient of a maximum goes to the first
    one of its window in row-major order; that of a norm is 0 where the norm is.

    Examples
    --------
    >>> x = np.array([[[1.0, 5.0, 5.0, 0.0]]])
    >>> pool_grad(x, np.array([[[1.0, 10.0, 100.0]]]), 2, kind="max", stride=1)
    array([[[  0.,  11., 100.,   0.]]])
    """
    given = {"kernel_size": kernel_size, "stride": stride, "padding": padding, "count_include_pad": count_include_pad}
    return _run("grad", kind, {"x": x, "g": g}, given, backend, threads, out)


def adaptive_pool(
    x: Array,
    output_size: SizeLike,
    *,
    kind: str,
    backend: str = "auto",
    threads: int | None = None,
    out: Array | None = None,
) -> Array:
    """Reduce inputs of any size to ``output_size``: along an axis bin i reads ⌊iH/n⌋ … ⌈(i+1)H/n⌉ − 1.

    Parameters, results and errors as in :func:`pool`.

    Examples
    --------
    >>> adaptive_pool(np.arange(14.0).reshape(1, 2, 7), 3, kind="mean")
    array([[[ 1.,  3.,  5.],
            [ 8., 10., 12.]]])
    """
    return _run("forward", kind, {"x": x}, _bins(x, output_size), backend, threads, out)


def adaptive_pool_grad(
    x: Array,
    g: Array,
    output_size: SizeLike,
    *,
    kind: str,
    backend: str = "auto",
    threads: int | None = None,
    out: Array | None = None,
) -> Array:
    """Return the gradient at x of a loss of which ``g`` is the gradient at ``adaptive_pool(x, …)``.

    Parameters, results and errors as in :func:`pool_grad`.

    Examples
    --------
    >>> adaptive_pool_grad(np.zeros((1, 1, 7)), np.array([[[3.0, 6.0, 9.0]]]), 3, kind="mean")
    array([[[1., 1., 3., 2., 5., 3., 3.]]])
    """
    return _run("grad", kind, {"x": x, "g": g}, _bins(x, output_size), backend, threads, out)


def distance_weighted_mean(
    x: Array,
    kernel_size: SizeLike,
    *,
    sigma: float | None = None,
    stride: SizeLike = 1,
    padding: Any = "valid",
    backend: str = "auto",
    threads: int | None = None,
) -> Array:
    r"""Return means weighted by the distance from the window's centre: exp(−r²/2σ²), of unit sum.

    Weights that differ make this no window reduction but a depthwise convolution, and it is done by one:
    ``cb.conv(x, w, groups=C)`` with the same weights w for every channel. At the border ``padding`` counts as zeros.

    Parameters
    ----------
    x : numpy.ndarray, shape (N, C, \*spatial)
    kernel_size : int or one per axis
    sigma : float, optional
        In samples; None: a sixth of the kernel size along each axis.
    stride, padding, backend, threads
        As in :func:`convbench.conv`.

    Examples
    --------
    >>> y = distance_weighted_mean(np.ones((1, 2, 9, 9)), 5, stride=2)
    >>> y.shape, bool(np.allclose(y, 1))
    ((1, 2, 3, 3), True)
    """
    from convbench.ops import conv

    x = _checked("x", x)
    if sigma is not None and not (isinstance(sigma, (int, float)) and sigma > 0):
        raise SpecError("sigma", sigma, "must be a number of samples > 0, or None")
    weights = np.ones(())
    for size in sizes_of("kernel_size", kernel_size, x.ndim - 2):
        distance = np.arange(size) - (size - 1) / 2
        weights = weights[..., None] * np.exp(-((distance / (sigma or size / 6)) ** 2) / 2)
    channels, dtype = x.shape[1], x.dtype if x.dtype.kind == "f" else np.dtype("float64")
    w = np.broadcast_to((weights / weights.sum()).astype(dtype), (channels, 1, *weights.shape))
    return conv(
        x.astype(dtype, copy=False),
        w,
        groups=channels,
        stride=stride,
        padding=padding,
        backend=backend,
        threads=threads,
    )


def _bins(x: Any, output_size: Any) -> dict[str, Any]:
    return {"adaptive": sizes_of("output_size", output_size, _checked("x", x).ndim - 2)}


def _run(
    op: str,
    kind: str,
    operands: dict[str, Any],
    given: dict[str, Any],
    backend: str,
    threads: int | None,
    out: Array | None,
) -> Array:
    arrays = [_checked(name, value) for name, value in operands.items()]
    x = arrays[0]
    spec = PoolSpec(
        kind=kind, op=op, batch=x.shape[0], channels=x.shape[1], input_size=x.shape[2:], dtype=x.dtype.name, **given
    )
    for name, array, shape in zip(operands, arrays, spec.operand_shapes, strict=True):
        if array.shape != shape:
            raise SpecError(name, array.shape, f"must have shape {shape}, that of the result for x of {x.shape}")
        if array.dtype != x.dtype:
            raise SpecError(name, str(array.dtype), f"must have the dtype of x, {x.dtype}")
    is_auto(backend)  # or a name: something that can be remembered
    return _kept_plan(spec, backend, resolve(threads))(*arrays, out=out)


def _checked(name: str, value: Any) -> Array:
    array = as_array(name, value)
    spatial_axes(name, array, "(N, C, *spatial)")
    check_dtype(name, array, POOL_DTYPES)
    return array
