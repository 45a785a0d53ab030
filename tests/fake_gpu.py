"""A GPU that exists on paper alone: a queue, a cache, clocks and memory, all in simulated time.

Work is real (NumPy's), and what it would take is reckoned. :class:`FakeGpu` has what timing asks of a device,
:class:`FakeNamespace` arrays that are in its memory and refuse to be taken for NumPy's, and :func:`fake_backend` a
backend of both. Importable, so that a worker process can have them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from convbench import ConvSpec, FunctionBackend, oracle
from convbench.arrays import Namespace, numpy_namespace
from convbench.cuda.timing import DeviceMemory

RESOLUTION_S = 0.5e-6  # of an event
GEMM_FLOP_PER_S, COPY_BYTES_PER_S = 2e11, 4e12  # so slow a product that small ones will do


@dataclass
class Event:
    """When the device came to it."""

    at_s: float = float("inf")


@dataclass
class FakeGpu:
    """A device and the host that feeds it.

    Attributes
    ----------
    launch_s : float
        What a launch takes the host.
    cold_factor : float
        How many times as long a kernel takes that finds the cache empty.
    speed : callable
        Speed of the device's clock after so many seconds of work: 1 is the usual one.
    bytes_per_s : float
        Of transfers.
    now_s : float
        The host's clock.
    idle_at_s : float
        When the device will have done all that is queued.
    memory_bytes : int
        That are free.
    fault : str
        What :meth:`synchronize` says from now on: an illegal access cannot be mended.
    released : int
        How often pools were emptied.
    """

    launch_s: float = 10e-6
    cold_factor: float = 1.0
    speed: Callable[[float], float] = lambda busy_s: 1.0
    bytes_per_s: float = 1e10
    now_s: float = 0.0
    idle_at_s: float = 0.0
    busy_s: float = 0.0
    warm: bool = False
    launches: list[str] = field(default_factory=list)
    used: DeviceMemory = field(default_factory=DeviceMemory)
    held_back_by: tuple[str, ...] = ()
    memory_bytes: int = 2**37
    fault: str = ""
    released: int = 0

    def launch(self, name: str, seconds: float, *, timer: bool = False) -> None:
        """Queue a kernel; one that watches the timer does not care for the clock."""
        self.now_s += self.launch_s
        if not timer:
            seconds /= self.speed(self.busy_s)
            self.busy_s += seconds
        self.idle_at_s = max(self.now_s, self.idle_at_s) + seconds
        self.launches.append(name)

    def kernel(self, seconds: float) -> None:
        """Queue work on operands that the cache holds if nothing has displaced them."""
        self.launch("kernel", seconds * (1.0 if self.warm else self.cold_factor))
        self.warm = True

    def transfer(self, count: int) -> None:
        """Wait for the device, and copy."""
        self.synchronize()
        self.now_s += count / self.bytes_per_s

    # -- what timing asks of a device ---------------------------------------------------------

    def now(self) -> float:
        self.now_s += 1e-8  # reading it takes time, and whoever waits for it gets on
        return self.now_s

    def event(self) -> Event:
        return Event()

    def record(self, event: Event) -> None:
        event.at_s = max(self.now_s, self.idle_at_s)

    def done(self, event: Event) -> bool:
        return self.now_s >= event.at_s

    def elapsed_s(self, start: Event, stop: Event) -> float:
        assert self.done(stop), "the device has not come to the event"
        milliseconds = np.float32(1e3) * np.float32(stop.at_s - start.at_s)
        return float(np.round(milliseconds / 1e3 / RESOLUTION_S) * RESOLUTION_S)

    def hold(self, seconds: float) -> None:
        self.launch("hold", seconds, timer=True)

    def flush(self) -> None:
        self.launch("flush", 40e-6)
        self.warm = False

    def synchronize(self) -> None:
        if self.fault:
            raise RuntimeError(self.fault)
        self.now_s = max(self.now_s, self.idle_at_s)

    @contextmanager
    def memory(self) -> Iterator[DeviceMemory]:
        self.used = DeviceMemory()
        yield self.used

    def free_bytes(self) -> int:
        return self.memory_bytes

    def release(self) -> None:
        self.released += 1

    def clocks(self) -> dict[str, Any]:
        """As of a device that is at work, or idle."""
        if self.idle_at_s <= self.now_s:
            return {"sm_clock_mhz": 345, "held_back_by": []}
        return {"sm_clock_mhz": 1980, "held_back_by": list(self.held_back_by)}


class GpuArray:
    """In the memory of a fake GPU: NumPy cannot have it."""

    def __init__(self, gpu: FakeGpu, values: np.ndarray) -> None:
        self.gpu, self.values = gpu, values
        gpu.used.add(values.nbytes)

    def __del__(self) -> None:
        self.gpu.used.add(-self.values.nbytes)

    def __array__(self, *arguments: Any, **named: Any) -> np.ndarray:
        raise TypeError("implicit conversion of an array on a device to NumPy's")

    @property
    def shape(self) -> tuple[int, ...]:
        return self.values.shape

    @property
    def dtype(self) -> np.dtype[Any]:
        return self.values.dtype

    def __setitem__(self, key: Any, value: GpuArray) -> None:
        self.values[key] = value.values


class FakeLibrary:
    """The functions of an array library that the harness calls."""

    def __init__(self, gpu: FakeGpu) -> None:
        self._gpu = gpu

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_"):
            raise AttributeError(name)
        return np.dtype(name)

    def empty(self, shape: Any, dtype: Any = None) -> GpuArray:
        return GpuArray(self._gpu, np.empty(shape, dtype))

    def ones(self, shape: Any, dtype: Any = None) -> GpuArray:
        return GpuArray(self._gpu, np.ones(shape, dtype))

    def matmul(self, a: GpuArray, b: GpuArray, out: GpuArray) -> GpuArray:
        self._gpu.kernel(2.0 * a.shape[0] * a.shape[1] * b.shape[1] / GEMM_FLOP_PER_S)
        return out  # nobody looks at it

    def copyto(self, target: GpuArray, source: GpuArray) -> None:
        self._gpu.kernel(2.0 * source.values.nbytes / COPY_BYTES_PER_S)


@dataclass(frozen=True)
class FakeNamespace(Namespace):
    """Names its device, as a namespace may."""

    gpu: FakeGpu = field(default_factory=FakeGpu)

    def device(self) -> FakeGpu:
        return self.gpu


def fake_namespace(gpu: FakeGpu) -> FakeNamespace:
    """Return a namespace of arrays on this device."""

    def from_host(array: np.ndarray) -> GpuArray:
        gpu.transfer(array.nbytes)
        return GpuArray(gpu, array.copy(order="K"))

    def to_host(array: GpuArray) -> np.ndarray:
        gpu.transfer(array.values.nbytes)
        return array.values.copy()

    shown = {name: getattr(numpy_namespace(), name) for name in Namespace.__dataclass_fields__}
    shown |= {"name": "fake", "xp": FakeLibrary(gpu), "from_host": from_host, "to_host": to_host}
    return FakeNamespace(**shown, gpu=gpu)


def fake_backend(gpu: FakeGpu, name: str = "fake-gpu", *, kernel_s: float = 30e-6, **fields: Any) -> FunctionBackend:
    """Return a backend that does its sums on the host and has them take ``kernel_s`` on the device."""

    def function(spec: ConvSpec, first: GpuArray, second: GpuArray, bias: GpuArray | None) -> GpuArray:
        gpu.kernel(kernel_s)
        y = oracle.conv(spec, first.values, second.values, bias and bias.values)
        return GpuArray(gpu, y.astype(spec.result_dtype))

    ns, own = fake_namespace(gpu), {"function": function, "takes_bias": True}
    given = (own if "function" not in fields else {}) | fields
    return FunctionBackend(name=name, device="cuda", ns=lambda: ns, **given)
