"""CuPy's manners on the CPU: NumPy behind CuPy's own signatures, and arrays that no one may look into.

:func:`guarded_cupy` makes a module to be used in CuPy's place. It has the names that CuPy has; each call is bound to
the signature of CuPy's function of that name, and computed by NumPy. Its arrays are :class:`DeviceArray`, which raise
:class:`Misuse` wherever CuPy would copy to the host and wait, or would raise. :class:`Cufft` does what cuFFT's
reference says of its advanced data layout, on such arrays.

It cannot know what CuPy's functions do with arguments that they take: see ``KEYWORDS`` for those that slip through.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from math import prod
from types import SimpleNamespace
from typing import Any

import numpy as np
from numpy.lib.stride_tricks import as_strided as numpy_as_strided

from convbench.arrays import Namespace, namespace_of_cupy
from convbench.transforms import Transforms, transforms_of_cufft

__all__ = ["Cufft", "DeviceArray", "Misuse", "as_strided", "guarded_cupy", "guarded_namespace", "unwrapped"]


class Misuse(AssertionError):
    """What CuPy would refuse, or would do only by a copy to the host."""


#: What CuPy's ufuncs take by keyword; they have no signature that Python could read.
_UFUNC_KEYWORDS = {"out", "dtype", "casting", "where"}

#: What functions that take any keyword (``**kwargs``) really use.
KEYWORDS = {
    "einsum": {"dtype", "optimize"},
    "pad": {"constant_values", "end_values", "reflect_type", "stat_length"},
    "meshgrid": {"indexing", "sparse", "copy"},
}

#: Values that a function of CuPy's does not take, though its signature says nothing of it.
_REFUSED_VALUES = {"pad": ("mode", {"median"})}

#: Functions that copy to the host or from it, and wait.
_COPYING = {
    "asnumpy": "copies to the host",
    "array_equal": "its answer is an array; as a truth value it is copied to the host",
    "allclose": "its answer is an array; as a truth value it is copied to the host",
    "nonzero": "waits for the number of elements",
    "argwhere": "waits for the number of elements",
    "flatnonzero": "waits for the number of elements",
    "unique": "waits for the number of elements",
    "array": "of what is not on the device, it copies; use asarray(…, copy=True)",
    "repeat": "counts that are arrays are copied to the host",
}


class DeviceArray:
    """An array whose elements are out of reach: shape, strides and dtype are known on the host, and nothing else.

    Not a subclass of NumPy's, so that no function of NumPy's takes it.
    """

    __array_ufunc__ = None  # NumPy's arrays and scalars then leave an operator to this class
    __hash__ = None  # type: ignore[assignment]

    def __init__(self, host: Any) -> None:
        self._host = np.asarray(host)

    # -- what is known on the host ----------------------------------------------------------------

    shape = property(lambda self: self._host.shape)
    strides = property(lambda self: self._host.strides)
    dtype = property(lambda self: self._host.dtype)
    ndim = property(lambda self: self._host.ndim)
    size = property(lambda self: self._host.size)
    nbytes = property(lambda self: self._host.nbytes)
    itemsize = property(lambda self: self._host.itemsize)
    flags = property(lambda self: SimpleNamespace(**{
        name: getattr(self._host.flags, name) for name in ("c_contiguous", "f_contiguous", "owndata")
    }))  # fmt: skip
    T = property(lambda self: DeviceArray(self._host.T))
    real = property(lambda self: DeviceArray(self._host.real))
    imag = property(lambda self: DeviceArray(self._host.imag))

    def __len__(self) -> int:
        return len(self._host)

    def __iter__(self) -> Iterator[DeviceArray]:
        return (self[i] for i in range(len(self)))

    def __repr__(self) -> str:
        return f"DeviceArray({self.shape}, {self.dtype})"

    # -- what would copy to the host, and wait ----------------------------------------------------

    def _misused(self, how: str) -> Any:
        raise Misuse(f"{how} of {self!r}: copies to the host and waits")

    def __array__(self, *args: Any, **kwargs: Any) -> Any:
        return self._misused("np.asarray()")

    def __float__(self) -> float:
        return self._misused("float()")

    def __int__(self) -> int:
        return self._misused("int()")

    def __index__(self) -> int:
        return self._misused("an index")

    def __complex__(self) -> complex:
        return self._misused("complex()")

    def __bool__(self) -> bool:
        return self._misused("a truth value")

    def item(self, *args: Any) -> Any:
        return self._misused(".item()")

    def tolist(self) -> Any:
        return self._misused(".tolist()")

    def get(self, *args: Any, **kwargs: Any) -> Any:
        return self._misused(".get()")

    # -- what is done on the device ---------------------------------------------------------------

    def __getitem__(self, key: Any) -> DeviceArray:
        return DeviceArray(self._host[_key(key)])

    def __setitem__(self, key: Any, value: Any) -> None:
        self._host[_key(key)] = _operand(value)

    def reshape(self, *shape: Any, order: str = "C") -> DeviceArray:
        return DeviceArray(self._host.reshape(*shape, order=order))

    def transpose(self, *axes: Any) -> DeviceArray:
        return DeviceArray(self._host.transpose(*axes))

    def astype(self, dtype: Any, order: str = "K", *, copy: bool = True) -> DeviceArray:
        return DeviceArray(self._host.astype(dtype, order=order, copy=copy))  # type: ignore[call-overload]

    def copy(self, order: str = "C") -> DeviceArray:
        return DeviceArray(self._host.copy(order))  # type: ignore[arg-type]

    def conj(self) -> DeviceArray:
        return DeviceArray(self._host.conj())

    def ravel(self, order: str = "C") -> DeviceArray:
        return DeviceArray(self._host.ravel(order))  # type: ignore[arg-type]

    def fill(self, value: Any) -> None:
        self._host.fill(_operand(value))

    def sum(self, axis: Any = None, dtype: Any = None, out: Any = None, keepdims: bool = False) -> DeviceArray:
        return DeviceArray(self._host.sum(axis, dtype, unwrapped(out), keepdims))


def _operator(name: str) -> Callable[..., Any]:
    def compute(self: DeviceArray, *others: Any) -> Any:
        return DeviceArray(getattr(self._host, name)(*map(_operand, others)))

    return compute


def _in_place(name: str) -> Callable[..., Any]:
    def compute(self: DeviceArray, other: Any) -> DeviceArray:
        getattr(self._host, name)(_operand(other))
        return self

    return compute


for _name in ("add", "sub", "mul", "truediv", "floordiv", "mod", "pow", "matmul"):
    setattr(DeviceArray, f"__{_name}__", _operator(f"__{_name}__"))
    setattr(DeviceArray, f"__r{_name}__", _operator(f"__r{_name}__"))
    setattr(DeviceArray, f"__i{_name}__", _in_place(f"__i{_name}__"))
for _name in ("neg", "pos", "abs", "eq", "ne", "lt", "le", "gt", "ge"):
    setattr(DeviceArray, f"__{_name}__", _operator(f"__{_name}__"))


def _operand(value: Any) -> Any:
    """Unwrap what an operator may meet: arrays of the device and scalars."""
    if isinstance(value, DeviceArray):
        return value._host
    if isinstance(value, np.ndarray | list | tuple):
        raise Misuse(f"{type(value).__name__} as an operand of an array on the device: copies it there")
    return value


def _key(key: Any) -> Any:
    parts = key if isinstance(key, tuple) else (key,)
    for part in parts:
        if not (part is None or part is Ellipsis or isinstance(part, int | slice | np.integer)):
            raise Misuse(f"an index of type {type(part).__name__}: copies it to the device, or waits for its length")
    return key


def unwrapped(value: Any) -> Any:
    """Return NumPy's arrays in place of the device's, in sequences and mappings too."""
    if isinstance(value, DeviceArray):
        return value._host
    if isinstance(value, tuple | list):
        return type(value)(map(unwrapped, value))
    if isinstance(value, dict):
        return {name: unwrapped(inner) for name, inner in value.items()}
    return value


def _wrapped(value: Any) -> Any:
    if isinstance(value, np.ndarray | np.number | np.bool):
        return DeviceArray(value)  # a reduction's answer stays on the device
    return type(value)(map(_wrapped, value)) if isinstance(value, tuple | list) else value


class _Function:
    """NumPy's function, called as CuPy's of that name may be."""

    def __init__(self, name: str, theirs: Any, ours: Any) -> None:
        self._name, self._theirs, self._ours = name, theirs, ours

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        if self._name in _COPYING:
            raise Misuse(f"cupy.{self._name}: {_COPYING[self._name]}")
        self._bind(args, kwargs)
        for argument in (*args, *kwargs.values()):
            self._refuse_host(argument)
        if self._name == "asarray":  # NumPy's has no ``blocking``
            kwargs = {name: value for name, value in kwargs.items() if name != "blocking"}
        made = self._ours(*unwrapped(args), **unwrapped(kwargs))
        if self._name == "empty" and made.dtype.kind in "fc":
            made.fill(np.nan)  # whoever reads it before writing it shall notice
        return _wrapped(made)

    def _bind(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        theirs = self._theirs
        if hasattr(theirs, "nargs"):  # a ufunc
            unknown = set(kwargs) - _UFUNC_KEYWORDS
            if unknown or not theirs.nin <= len(args) <= theirs.nargs:
                raise Misuse(f"cupy.{self._name}: {len(args)} arguments and {sorted(kwargs)}")
            return
        try:
            bound = inspect.signature(theirs).bind(*args, **kwargs)
        except TypeError as error:
            raise Misuse(f"cupy.{self._name}: {error}") from error
        unknown = set(kwargs) - KEYWORDS.get(self._name, set(kwargs))
        if self._name in KEYWORDS:
            unknown -= set(inspect.signature(theirs).parameters)
        if unknown:
            raise Misuse(f"cupy.{self._name} has no {', '.join(sorted(unknown))}")
        parameter, refused = _REFUSED_VALUES.get(self._name, ("", set()))
        if bound.arguments.get(parameter) in refused:
            raise Misuse(f"cupy.{self._name} has no {parameter}={bound.arguments[parameter]!r}")

    def _refuse_host(self, argument: Any) -> None:
        if isinstance(argument, np.ndarray):
            raise Misuse(f"cupy.{self._name} of an array of NumPy's: copies it to the device")
        if isinstance(argument, tuple | list):
            for inner in argument:
                self._refuse_host(inner)
        if self._name == "asarray" and isinstance(argument, list):
            raise Misuse("cupy.asarray of a list: copies it to the device")


class _Module:
    """``cupy``, as far as NumPy can stand in for it."""

    def __init__(self) -> None:
        import cupy

        self._cupy = cupy
        self.__name__ = "cupy"
        self.ndarray = DeviceArray
        stream = SimpleNamespace(synchronize=lambda: None, ptr=0)
        self.cuda = SimpleNamespace(get_current_stream=lambda: stream)

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        if not hasattr(self._cupy, name):
            raise Misuse(f"cupy has no {name}")
        theirs, ours = getattr(self._cupy, name), getattr(np, name, None)
        if isinstance(theirs, type) or not callable(theirs):
            return theirs if ours is None else ours  # dtypes and constants are NumPy's own
        if ours is None and name not in _COPYING:
            raise Misuse(f"cupy.{name} has no counterpart in NumPy that could stand in for it")
        return _Function(name, theirs, ours)


def guarded_cupy() -> Any:
    """Return a module to be used in CuPy's place."""
    return _Module()


def as_strided(x: DeviceArray, shape: Sequence[int], strides: Sequence[int]) -> DeviceArray:
    """``cupy.lib.stride_tricks.as_strided``, which takes no more than that."""
    return DeviceArray(numpy_as_strided(x._host, shape, strides))


def guarded_namespace(kernels: Callable[[Any], Any] | None = None) -> Namespace:
    """Return the namespace that convbench makes of CuPy, made of :func:`guarded_cupy`.

    Parameters
    ----------
    kernels : callable, optional
        What launches kernels on NumPy's arrays.
    """
    xp = guarded_cupy()

    def launches(kernel: Any) -> Any:
        assert kernels is not None
        launch = kernels(kernel)

        def checked(grid: tuple[int, int, int], arguments: Sequence[Any]) -> None:
            for argument in arguments:
                if isinstance(argument, np.ndarray) and argument.dtype.names is None:
                    raise Misuse(f"an array of NumPy's, {argument.dtype}{argument.shape}, as a kernel's argument")
            launch(grid, [unwrapped(argument) for argument in arguments])

        return checked

    made = namespace_of_cupy(xp, as_strided, guarded_transforms(xp), launches)
    return replace(
        made,
        from_host=lambda array: DeviceArray(np.array(array, order="K", copy=True)),
        to_host=unwrapped,
        mirror=lambda base, view: (DeviceArray(base), DeviceArray(view)),
    )


def guarded_transforms(xp: Any, current: Callable[[], Any] = lambda: 0, cufft: Any = None) -> Transforms:
    """Return the transforms that convbench makes of cuFFT, made of :class:`Cufft`."""
    made = cufft or Cufft()
    return transforms_of_cufft(xp, lambda: made, current)


class Cufft:
    """``cupy.cuda.cufft`` by NumPy: plans of the advanced data layout, and what they leave behind.

    "Advanced Data Layout" of the cuFFT API reference: item (x, y, z) of transform b is at
    ``b·idist + ((x·inembed[1] + y)·inembed[2] + z)·istride``, and likewise for the output; ``inembed`` and ``onembed``
    count what is stored, so that half a spectrum has n/2 + 1 along the last axis.
    """

    CUFFT_FORWARD, CUFFT_INVERSE = -1, 1
    CUFFT_R2C, CUFFT_C2R, CUFFT_C2C, CUFFT_D2Z, CUFFT_Z2D, CUFFT_Z2Z = range(6)

    def __init__(self) -> None:
        self.plans: list[_PlanNd] = []

    def PlanNd(  # noqa: N802
        self,
        shape: Any,
        inembed: Any,
        istride: int,
        idist: int,
        onembed: Any,
        ostride: int,
        odist: int,
        fft_type: int,
        batch: int,
        order: str,
        last_axis: int,
        last_size: int,
    ) -> _PlanNd:
        """The parameters are those of CuPy's class, of which a test reads them."""
        source, target = (tuple(inembed), istride, idist), (tuple(onembed), ostride, odist)
        plan = _PlanNd(tuple(shape), source, target, fft_type, batch)
        self.plans.append(plan)
        return plan


class _PlanNd:
    def __init__(self, shape: tuple[int, ...], source: Any, target: Any, kind: int, batch: int) -> None:
        assert 1 <= len(shape) <= 3
        self.shape, self._source, self._target, self._kind, self._batch = shape, source, target, kind, batch
        self.work_area = SimpleNamespace(mem=SimpleNamespace(size=512))
        self.in_use = False

    def fft(self, a: Any, out: Any, direction: int) -> None:
        assert not self.in_use, "a plan in two calls at once"
        self.in_use = True
        real_in = self._kind in (Cufft.CUFFT_R2C, Cufft.CUFFT_D2Z)
        real_out = self._kind in (Cufft.CUFFT_C2R, Cufft.CUFFT_Z2D)
        kept = (*self.shape[:-1], self.shape[-1] // 2 + 1)
        source = self._view(unwrapped(a), kept if real_out else self.shape, *self._source)
        target = self._view(unwrapped(out), kept if real_in else self.shape, *self._target)
        axes = tuple(range(1, 1 + len(self.shape)))
        if real_in:
            assert direction == Cufft.CUFFT_FORWARD
            target[...] = np.fft.rfftn(source, axes=axes)
        elif real_out:
            assert direction == Cufft.CUFFT_INVERSE
            found = np.fft.irfftn(source, s=self.shape, axes=axes, norm="forward")
            source[...] = np.nan  # cuFFT may leave anything
            target[...] = found
        elif direction == Cufft.CUFFT_FORWARD:
            target[...] = np.fft.fftn(source, axes=axes)
        else:
            target[...] = np.fft.ifftn(source, axes=axes, norm="forward")
        self.in_use = False

    def _view(self, array: Any, sizes: tuple[int, ...], embed: tuple[int, ...], stride: int, dist: int) -> Any:
        wanted = {0: "fF", 1: "Ff", 2: "FF", 3: "dD", 4: "Dd", 5: "DD"}[self._kind]
        assert array.dtype.char in wanted, (array.dtype, wanted)
        steps = [prod(embed[axis + 1 :]) * stride for axis in range(len(sizes))]
        last = (self._batch - 1) * dist + sum((n - 1) * step for n, step in zip(sizes, steps, strict=True))
        whole = array
        while isinstance(whole.base, np.ndarray):
            whole = whole.base
        end = np.lib.array_utils.byte_bounds(whole)[1]
        assert array.ctypes.data + (last + 1) * array.itemsize <= end, "reads or writes beyond its array"
        strides = [n * array.itemsize for n in (dist, *steps)]
        return numpy_as_strided(array, (self._batch, *sizes), strides)
