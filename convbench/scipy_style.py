"""``convolve`` and ``correlate`` as SciPy means them: N-d arrays without channels, cropped by a mode."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from convbench.errors import SpecError
from convbench.operands import as_operand, common_dtype
from convbench.ops import conv
from convbench.spec import PaddingLike

__all__ = ["convolve", "correlate"]


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
        What lies outside ``a``. SciPy's ``wrap``, ``mirror`` and ``nearest`` are circular, reflect and replicate; the
        ``reflect`` of ``scipy.ndimage``, which repeats the edge, is not among them.
    backend, threads
        As in :func:`conv`.

    Returns
    -------
    numpy.ndarray
        Of the promoted dtype, as SciPy has it: integers wrap around when the exact sum does not fit, and bool is
        "any". A sum that might not fit 64 bits is refused.

    Raises
    ------
    SpecError, UnsupportedSpec, UnsupportedWeights, BackendUnavailable, UnknownBackend

    Notes
    -----
    Mode ``same`` for even kernels, which have no middle: the result is that of ``scipy.signal.convolve`` and
    ``convolve2d``, and of ``scipy.ndimage.convolve(..., origin=-1)``; with its own origin 0 that stands one sample
    further on, y[p + 1]. :func:`correlate` is ``scipy.signal.correlate`` and ``scipy.ndimage.correlate`` for any
    kernel; for even ones ``scipy.signal.correlate2d`` stands one sample further on. Odd kernels are the same in all.

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
    a, v = as_operand("a", a), as_operand("v", v)
    if a.ndim != v.ndim or a.ndim == 0:
        raise SpecError("v", v.shape, f"must have as many axes as a, which has shape {a.shape}, and at least one")
    if mode not in ("full", "same", "valid"):
        raise SpecError("mode", mode, "must be one of full, same, valid")
    if 0 in a.shape + v.shape:
        raise SpecError("a" if 0 in a.shape else "v", (a if 0 in a.shape else v).shape, "must not be empty")
    given = a.dtype, v.dtype
    a, v = (array.view(np.uint8) if array.dtype == bool else array for array in (a, v))
    common_dtype({"a": a, "v": v})
    dtype = np.result_type(*given)
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
    if mode == "same":  # SciPy's centring: y = full[(K−1)//2 :][:H]
        padding = tuple((k - 1 - (k - 1) // 2, (k - 1) // 2) for k in v.shape)
    y = conv(
        a[None, None], v[None, None], padding=padding, boundary=boundary, flip=flip, backend=backend, threads=threads
    )
    plane: NDArray[Any] = y[0, 0].astype(dtype, copy=False)  # exact integers wrap around, and what is not 0 is True
    return np.flip(plane) if reverse else plane
