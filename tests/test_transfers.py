"""Front doors and arrays on a GPU, here ones of a NumPy subclass that stands for CuPy's and counts what is sent."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

import convbench as cb
from convbench import planning, registry
from convbench.algorithms.direct import ShiftAndAdd
from convbench.arrays import Namespace, _mirrored, numpy_namespace
from convbench.backend import AlgorithmBackend
from convbench.errors import SpecError


class DeviceArray(np.ndarray):
    """An array on the pretended device."""


class Elsewhere:
    """An array there that is none of NumPy's, as CuPy's are."""


class Device:
    """Counts transfers."""

    def __init__(self) -> None:
        self.sent = self.fetched = 0

    def send(self, array: Any) -> DeviceArray:
        self.sent += 1
        return np.array(array).view(DeviceArray)

    def fetch(self, array: Any) -> Any:
        self.fetched += 1
        assert isinstance(array, DeviceArray)
        return np.array(array)

    def namespace(self) -> Namespace:
        def empty(shape: Any, dtype: Any = float) -> DeviceArray:
            return np.empty(shape, dtype).view(DeviceArray)

        xp = SimpleNamespace(**{**vars(np), "empty": empty})
        return replace(numpy_namespace(), name="cupy", xp=xp, from_host=self.send, to_host=self.fetch)


class _Xp(SimpleNamespace):
    __hash__ = object.__hash__  # type: ignore[assignment]


@pytest.fixture
def device(monkeypatch: pytest.MonkeyPatch) -> Iterator[Device]:
    made = Device()
    ns = made.namespace()
    ns = replace(ns, xp=_Xp(**vars(ns.xp)))
    like_cupy = SimpleNamespace(ndarray=(DeviceArray, Elsewhere), may_share_memory=np.may_share_memory)
    monkeypatch.setitem(sys.modules, "cupy", like_cupy)
    gpu = AlgorithmBackend(
        name="direct-cupy", device="cuda", algorithm=ShiftAndAdd, ns=lambda: ns, summary="stands for a GPU's"
    )
    real = registry.get_backend
    monkeypatch.setattr(planning, "get_backend", lambda name: gpu if name == "direct-cupy" else real(name))
    monkeypatch.setattr("convbench.select.get_backend", lambda name: gpu if name.endswith("-cupy") else real(name))
    yield made
    planning._PLANS.clear()


X = np.arange(32.0).reshape(1, 2, 16)
W = np.arange(18.0).reshape(3, 2, 3)


def test_numpy_arrays_are_sent_and_the_result_comes_back(device: Device) -> None:
    bias, expected = np.arange(3.0), cb.conv(X, W, np.arange(3.0), backend="direct-numpy")
    for _ in range(2):  # the second time by the plan that was kept
        y = cb.conv(X, W, bias, backend="direct-cupy")
        assert type(y) is np.ndarray
        np.testing.assert_array_equal(y, expected)
    assert (device.sent, device.fetched) == (6, 2)
    out = np.empty_like(expected)
    assert cb.conv(X, W, bias, backend="direct-cupy", out=out) is out
    np.testing.assert_array_equal(out, expected)


def test_arrays_on_the_device_stay_there(device: Device) -> None:
    x, w = X.view(DeviceArray), W.view(DeviceArray)
    for backend in ("direct-cupy", "auto"):
        y = cb.conv(x, w, backend=backend)
        assert isinstance(y, DeviceArray)
        np.testing.assert_array_equal(np.asarray(y), cb.conv(X, W))
    assert (device.sent, device.fetched) == (0, 0)


def test_a_mixture_is_a_type_error_that_names_who_is_where(device: Device) -> None:
    with pytest.raises(TypeError, match=r"w on the GPU and x in main memory: .*cupy\.asarray"):
        cb.conv(X, W.view(DeviceArray), backend="direct-cupy")
    with pytest.raises(TypeError, match="x on the GPU and w, bias in main memory"):
        cb.conv(X.view(DeviceArray), W, np.arange(3.0))


def test_nothing_is_brought_back_unasked(device: Device) -> None:
    with pytest.raises(SpecError, match=r"works in main memory, the operands are on the GPU: give cupy\.asnumpy"):
        cb.conv(X.view(DeviceArray), W.view(DeviceArray), backend="direct-numpy")


def test_out_is_checked_before_anything_is_sent(device: Device) -> None:
    with pytest.raises(SpecError, match="out"):
        cb.conv(X, W, backend="direct-cupy", out=np.empty((1, 3, 5)))
    x = np.zeros((1, 3, 16))
    with pytest.raises(SpecError, match="memory shared with x"):
        cb.conv(x, np.ones((3, 3, 3)), backend="direct-cupy", out=x[:, :, :14])
    assert device.fetched == 0


def test_doors_beside_conv(device: Device) -> None:
    g = np.arange(42.0).reshape(1, 3, 14)
    np.testing.assert_array_equal(np.asarray(cb.conv_bias_grad(g.view(DeviceArray))), cb.conv_bias_grad(g))
    with pytest.raises(SpecError, match=r"must be a NumPy array: give cupy\.asnumpy"):
        cb.pool(Elsewhere(), 2, kind="max")
    a, v = X[0, 0], W[0, 0]
    y = cb.convolve(a.view(DeviceArray), v.view(DeviceArray), "same")
    assert isinstance(y, DeviceArray)
    np.testing.assert_array_equal(np.asarray(y), cb.convolve(a, v, "same"))


class _Memory:
    """An offset into bytes, as CuPy's pointers are."""

    def __init__(self, held: np.ndarray[Any, Any], offset: int = 0) -> None:
        self.held, self.offset = held, offset

    def __add__(self, count: int) -> _Memory:
        return _Memory(self.held, self.offset + count)


_LIKE_CUPY = SimpleNamespace(
    asarray=lambda array: SimpleNamespace(data=_Memory(array.copy())),
    ndarray=lambda shape, dtype, memory, strides: np.ndarray(shape, dtype, memory.held, memory.offset, strides),
)


@pytest.mark.parametrize(
    "view",
    [np.s_[1::2, ::3], np.s_[::-1, ::-2], np.s_[2:2], np.s_[...], np.s_[3]],
    ids=["gaps", "back", "no", "all", "row"],
)
def test_a_mirrored_view_has_the_strides_of_the_original(view: Any) -> None:
    base = np.random.default_rng(0).normal(size=(7, 9))
    there, part = _mirrored(_LIKE_CUPY, base, base[view])
    np.testing.assert_array_equal(there, base)
    np.testing.assert_array_equal(part, base[view])
    assert part.strides == base[view].strides
    part[...] = 99
    assert np.count_nonzero(there == 99) == part.size
    _, alone = _mirrored(_LIKE_CUPY, base[view], base[view])
    np.testing.assert_array_equal(alone, base[view])
