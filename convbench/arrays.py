"""Namespace: the few array operations that algorithms use, bound to NumPy or to any array-API library.

An algorithm takes a :class:`Namespace` and imports no array library itself. Where NumPy can write into a
buffer that is already there, its namespace does; the standard one computes and assigns.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from ctypes import c_char, c_size_t
from dataclasses import dataclass
from functools import cache, partial
from itertools import product
from operator import mul
from typing import TYPE_CHECKING, Any

from convbench.spec import ConvSpec
from convbench.threads import blas_threads
from convbench.transforms import Transforms, cufft_transforms, standard_transforms

if TYPE_CHECKING:
    from convbench.cuda.kernel import Kernel, Launch

__all__ = [
    "Array",
    "Namespace",
    "address",
    "cupy_namespace",
    "namespace_of_cupy",
    "numpy_namespace",
    "on_device",
    "standard_namespace",
]

#: An array of whatever library the namespace binds.
Array = Any


@dataclass(frozen=True)
class Namespace:
    """What an algorithm may do with arrays.

    Attributes
    ----------
    name : str
    xp : module
        The array library; algorithms use only what the array API standard has.
    from_host, to_host : callable
        Convert to and from ``numpy.ndarray``.
    synchronize : callable
        Return when all work handed to the device is done.
    assign : callable
        ``assign(target, source)``: copy, converting to the target's dtype.
    conjugate : callable
        ``conjugate(target)``: take the complex conjugate in place.
    increase : callable
        ``increase(target, values)``: target += values, of whatever dtype, with the usual broadcasting.
    reshape : callable
        ``reshape(x, shape)`` or ``reshape(x, shape, copy=False)``, which raises ValueError if it would copy.
    windows : callable
        ``windows(x, kernel_size, stride, dilation, output_size)``: from (..., *space) the array
        (..., *kernel, *output) of samples under the kernel, a view where the library has strides.
    add, multiply : callable
        ``add(a, b, out)``, ``multiply(a, b, out)``, with the usual broadcasting.
    multiply_add : callable
        ``multiply_add(acc, a, b, scratch)``: acc += a·b with a product buffer of acc's shape.
    matmul : callable
        ``matmul(a, b, out)``.
    transforms : Transforms
        The FFT library.
    threaded : bool
        May several threads call it at once?
    gemm_threads : callable
        ``gemm_threads(n)``: a context in which one matmul uses n threads.
    mirror : callable, optional
        ``mirror(base, view)``: the memory of a C-contiguous or permuted NumPy array as an array of this library, and in
        it the view with the same strides; None for libraries whose arrays have none.
    kernels : callable, optional
        ``kernels(kernel)``: what launches a CUDA kernel on arrays of this library.
    """

    name: str
    xp: Any
    from_host: Callable[[Any], Array]
    to_host: Callable[[Array], Any]
    synchronize: Callable[[], None]
    assign: Callable[[Array, Array], None]
    conjugate: Callable[[Array], None]
    increase: Callable[[Array, Array], None]
    reshape: Callable[..., Array]
    windows: Callable[..., Array]
    add: Callable[[Array, Array, Array], None]
    multiply: Callable[[Array, Array, Array], None]
    multiply_add: Callable[[Array, Array, Array, Array], None]
    matmul: Callable[[Array, Array, Array], None]
    transforms: Transforms
    threaded: bool
    gemm_threads: Callable[[int], AbstractContextManager[None]]
    mirror: Callable[[Any, Any], tuple[Array, Array]] | None = None
    kernels: Callable[[Kernel], Launch] | None = None

    def empty(self, shape: Sequence[int], dtype: str) -> Array:
        """Return an uninitialised array."""
        return self.xp.empty(tuple(shape), dtype=self.dtype(dtype))

    def allocator(self, spec: ConvSpec) -> Callable[[], Array]:
        """Return what makes uninitialised arrays for the result of ``spec``, in its order in memory."""
        shape, dtype = spec.result_shape, self.dtype(spec.result_dtype)
        if spec.layout == "channels_first" or spec.op == "weight_grad":
            return partial(self.xp.empty, shape, dtype=dtype)
        memory, order = (shape[0], *shape[2:], shape[1]), (0, len(shape) - 1, *range(1, len(shape) - 1))
        return lambda: self.xp.permute_dims(self.xp.empty(memory, dtype=dtype), order)

    def empty_laid_out(self, spec: ConvSpec) -> Array:
        """Return an uninitialised array for the result of ``spec``, in its order in memory."""
        return self.allocator(spec)()

    def dtype(self, name: str) -> Any:
        """Return the library's dtype object of a NumPy dtype name."""
        return getattr(self.xp, name)

    def cast(self, array: Array, dtype: str) -> Array:
        """Return the array in the given dtype, itself if it has it already."""
        wanted = self.dtype(dtype)
        return array if array.dtype == wanted else self.xp.astype(array, wanted)

    def is_array(self, value: object) -> bool:
        """Tell whether ``value`` is an array of this library."""
        return isinstance(value, self.array_type)

    @property
    def array_type(self) -> type:
        """The library's class of arrays."""
        return _array_type(self.xp)


def on_device(array: object) -> bool:
    """Tell whether this is one of CuPy's arrays, which are in a GPU's memory; CuPy is not imported to find out."""
    cupy = sys.modules.get("cupy")
    return cupy is not None and isinstance(array, cupy.ndarray)


#: Of every Python object: the bytes before what it holds.
_HEADER_BYTES = object.__basicsize__

_pointer_at = c_size_t.from_address


def address(array: Array) -> int:
    """Return where a NumPy array's first element lies, for compiled code: ``array.ctypes.data``, but in 0.2 µs, not 1.

    The C struct of an array begins with this pointer (``PyArrayObject_fields`` in NumPy's ABI).

    >>> import numpy as np
    >>> row = np.zeros((3, 4), "f4")[1]
    >>> address(row) == row.ctypes.data
    True
    """
    if _begins_with_pointer():
        return _pointer_at(id(array) + _HEADER_BYTES).value
    return int(array.ctypes.data)


@cache
def _begins_with_pointer() -> bool:
    """Is it so with this interpreter and this NumPy?"""
    import numpy as np

    if sys.implementation.name != "cpython":  # where an id need not be an address
        return False
    probe = np.empty(2)[1:]
    return _pointer_at(id(probe) + _HEADER_BYTES).value == probe.ctypes.data


@cache
def _array_type(xp: Any) -> type:
    return type(xp.empty((1,)))


@cache
def numpy_namespace(transforms: Transforms | None = None) -> Namespace:
    """Return the NumPy namespace, with NumPy's own FFT unless another is given."""
    import numpy as np
    from numpy.lib.stride_tricks import as_strided

    def windows(
        x: Array, kernel_size: Sequence[int], stride: Sequence[int], dilation: Sequence[int], output_size: Sequence[int]
    ) -> Array:
        lead = x.ndim - len(kernel_size)
        outer, inner = x.strides[:lead], x.strides[lead:]
        shape = (*x.shape[:lead], *kernel_size, *output_size)
        strides = (*outer, *map(mul, inner, dilation), *map(mul, inner, stride))
        if x.flags.c_contiguous:  # the constructor costs a tenth of as_strided, which matters for tiny arrays
            return np.ndarray(shape, x.dtype, x, 0, strides)
        return as_strided(x, shape, strides, writeable=False)

    def assign(target: Array, source: Array) -> None:
        target[...] = source

    def conjugate(target: Array) -> None:
        np.conjugate(target, out=target)

    def multiply_add(acc: Array, a: Array, b: Array, scratch: Array) -> None:
        np.multiply(a, b, out=scratch)
        np.add(acc, scratch, out=acc)

    return Namespace(
        name="numpy",
        xp=np,
        from_host=np.asarray,
        to_host=np.asarray,
        synchronize=lambda: None,
        assign=assign,
        conjugate=conjugate,
        increase=lambda target, values: np.add(target, values, out=target),
        reshape=np.ndarray.reshape,
        windows=windows,
        add=lambda a, b, out: np.add(a, b, out=out),
        multiply=lambda a, b, out: np.multiply(a, b, out=out),
        multiply_add=multiply_add,
        matmul=lambda a, b, out: np.matmul(a, b, out=out),
        transforms=transforms or standard_transforms(np),
        threaded=True,
        gemm_threads=blas_threads,
        mirror=lambda base, view: (base, view),
    )


@cache
def standard_namespace(xp: Any) -> Namespace:
    """Return the namespace of any library that follows the array API standard, such as array-api-strict."""
    import numpy as np

    def windows(
        x: Array, kernel_size: Sequence[int], stride: Sequence[int], dilation: Sequence[int], output_size: Sequence[int]
    ) -> Array:
        lead = x.ndim - len(kernel_size)
        taps = [
            x[
                (slice(None),) * lead
                + tuple(
                    slice(k * d, k * d + (p - 1) * s + 1, s)
                    for k, d, s, p in zip(tap, dilation, stride, output_size, strict=True)
                )
            ]
            for tap in product(*map(range, kernel_size))
        ]
        stacked = xp.stack(taps, axis=lead)
        return xp.reshape(stacked, (*x.shape[:lead], *kernel_size, *output_size))

    def assign(target: Array, source: Array) -> None:
        target[...] = source if source.dtype == target.dtype else xp.astype(source, target.dtype)

    def conjugate(target: Array) -> None:
        target[...] = xp.conj(target)

    def increase(target: Array, values: Array) -> None:
        target[...] = target + (values if values.dtype == target.dtype else xp.astype(values, target.dtype))

    def add(a: Array, b: Array, out: Array) -> None:
        out[...] = a + b

    def multiply(a: Array, b: Array, out: Array) -> None:
        out[...] = a * b

    def multiply_add(acc: Array, a: Array, b: Array, scratch: Array) -> None:
        acc[...] = acc + a * b

    def matmul(a: Array, b: Array, out: Array) -> None:
        out[...] = xp.matmul(a, b)

    def reshape(x: Array, shape: tuple[int, ...], copy: bool | None = None) -> Array:
        try:
            return xp.reshape(x, shape, copy=copy)
        except AttributeError as error:  # array-api-strict's, where the standard has ValueError
            raise ValueError(str(error)) from error

    return Namespace(
        name=xp.__name__,
        xp=xp,
        from_host=xp.asarray,
        to_host=np.asarray,
        synchronize=lambda: None,
        assign=assign,
        conjugate=conjugate,
        increase=increase,
        reshape=reshape,
        windows=windows,
        add=add,
        multiply=multiply,
        multiply_add=multiply_add,
        matmul=matmul,
        transforms=standard_transforms(xp),
        threaded=False,
        gemm_threads=lambda threads: nullcontext(),
    )


@cache
def cupy_namespace() -> Namespace:
    """Return CuPy's namespace: arrays in the memory of the current device, work on the current stream."""
    import cupy
    from cupy.lib.stride_tricks import as_strided

    from convbench.cuda.launch import cupy_kernels

    return namespace_of_cupy(cupy, as_strided, cufft_transforms(), cupy_kernels)


def namespace_of_cupy(
    cp: Any, as_strided: Callable[..., Array], transforms: Transforms, kernels: Callable[[Kernel], Launch]
) -> Namespace:
    """Return the namespace of a module like ``cupy``, with its ``as_strided``; tests have others than CuPy's own."""

    def windows(
        x: Array, kernel_size: Sequence[int], stride: Sequence[int], dilation: Sequence[int], output_size: Sequence[int]
    ) -> Array:  # CuPy's own sliding_window_view copies its window's shape to the device and waits
        lead = x.ndim - len(kernel_size)
        outer, inner = x.strides[:lead], x.strides[lead:]
        shape = (*x.shape[:lead], *kernel_size, *output_size)
        return as_strided(x, shape, (*outer, *map(mul, inner, dilation), *map(mul, inner, stride)))

    def assign(target: Array, source: Array) -> None:
        target[...] = source

    def reshape(x: Array, shape: tuple[int, ...], copy: bool | None = None) -> Array:
        view = x.reshape(shape)
        if copy is False and view.size and not cp.may_share_memory(view, x):
            raise ValueError("cannot be seen in that shape without a copy")
        return view

    def multiply_add(acc: Array, a: Array, b: Array, scratch: Array) -> None:
        cp.multiply(a, b, out=scratch)
        cp.add(acc, scratch, out=acc)

    return Namespace(
        name="cupy",
        xp=cp,
        from_host=partial(_to_device, cp),
        to_host=partial(_to_host, cp),
        synchronize=lambda: cp.cuda.get_current_stream().synchronize(),
        assign=assign,
        conjugate=lambda target: cp.conj(target, out=target),
        increase=lambda target, values: cp.add(target, values, out=target, casting="same_kind"),
        reshape=reshape,
        windows=windows,
        add=lambda a, b, out: cp.add(a, b, out=out),
        multiply=lambda a, b, out: cp.multiply(a, b, out=out),
        multiply_add=multiply_add,
        matmul=lambda a, b, out: cp.matmul(a, b, out=out),
        transforms=transforms,
        threaded=False,
        gemm_threads=lambda threads: nullcontext(),
        mirror=partial(_mirrored, cp),
        kernels=kernels,
    )


def _to_device(cp: Any, array: Any) -> Array:
    """Copy a NumPy array to the device, its axes in the same order in memory."""
    import numpy as np

    given = np.asarray(array)
    order = sorted(range(given.ndim), key=lambda axis: -abs(given.strides[axis]))
    sent = cp.asarray(np.ascontiguousarray(given.transpose(order)))
    back = [order.index(axis) for axis in range(given.ndim)]
    return sent.transpose(back)


def _to_host(cp: Any, array: Array) -> Any:
    """Copy an array from the device, its axes in the same order in memory; NumPy arrays are returned as they are."""
    import numpy as np

    if isinstance(array, np.ndarray):
        return array
    order = sorted(range(array.ndim), key=lambda axis: -abs(array.strides[axis]))
    fetched = cp.asnumpy(cp.ascontiguousarray(array.transpose(order)))
    back = [order.index(axis) for axis in range(array.ndim)]
    return fetched.transpose(back)


def _mirrored(xp: Any, base: Any, view: Any) -> tuple[Array, Array]:
    """Send what two NumPy arrays span in memory, of which the first holds the second; return both with their strides.

    ``xp`` is CuPy, or what has its ``ndarray(shape, dtype, memory, strides)`` and its ``data``.
    """
    import numpy as np
    from numpy.lib.array_utils import byte_bounds

    low, high = byte_bounds(base) if base.size else (0, 0)
    held: Any = (c_char * (high - low)).from_address(low) if high > low else b""
    flat = np.frombuffer(held, np.uint8)
    sent = xp.asarray(flat)

    def placed(array: Any) -> Array:
        first = array.__array_interface__["data"][0] - low if array.size else 0
        return xp.ndarray(array.shape, array.dtype, sent.data + first, array.strides)

    return placed(base), placed(view)
