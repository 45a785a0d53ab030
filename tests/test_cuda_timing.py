"""The stopwatch of the GPU, on a device that is simulated: what would be wrong on a real one is wrong here too."""

from __future__ import annotations

import math
import re
import sys
from collections.abc import Callable
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest
from fake_gpu import RESOLUTION_S, FakeGpu, fake_namespace

from convbench.bench.places import OnDevice
from convbench.bench.timing import Measurement, measure
from convbench.cuda import nvidia_smi
from convbench.cuda.timing import HOLD, KERNELS, MOST_CALLS, WINDOW_S, CupyDevice, EventStopwatch


def call_of(gpu: FakeGpu, *kernels_s: float) -> Callable[[], None]:
    """A call that launches these kernels, one after the other."""

    def call() -> None:
        for seconds in kernels_s:
            gpu.kernel(seconds)

    return call


def timed(gpu: FakeGpu, call: Callable[[], Any], *, cold: bool = False) -> tuple[Measurement, EventStopwatch]:
    stopwatch = EventStopwatch(gpu, cold=cold)
    return measure(call, 0.5, enough=4, most=20, stopwatch=stopwatch), stopwatch


@pytest.mark.parametrize("cold", [False, True])
@pytest.mark.parametrize("launch_s", [1e-6, 10e-6, 200e-6])
@pytest.mark.parametrize("kernels_s", [(3e-6,), (40e-6,), (2e-6, 5e-6, 1e-6), (3e-3,)])
def test_times_are_the_devices_whatever_a_launch_takes(
    kernels_s: tuple[float, ...], launch_s: float, cold: bool
) -> None:
    gpu = FakeGpu(launch_s=launch_s)
    taken, stopwatch = timed(gpu, call_of(gpu, *kernels_s), cold=cold)
    calls = 1 if cold else min(MOST_CALLS, math.ceil(WINDOW_S / sum(kernels_s)))
    assert taken.samples_s == pytest.approx([sum(kernels_s)] * len(taken.samples_s), abs=RESOLUTION_S / calls)
    assert stopwatch.caveat is None
    assert stopwatch.launch_s == pytest.approx(launch_s * len(kernels_s), rel=0.1)


def test_without_a_hold_the_launch_would_count() -> None:
    """The fake device has the fault that the hold is there for: else the test above would show nothing."""
    gpu = FakeGpu(launch_s=10e-6)
    gpu.hold = lambda seconds: None  # type: ignore[method-assign]
    taken, stopwatch = timed(gpu, call_of(gpu, 2e-6, 2e-6))
    assert min(taken.samples_s) > 10e-6
    assert stopwatch.exposed == stopwatch.windows
    assert (stopwatch.caveat or "").startswith("launches: times hold gaps")


def test_a_host_that_is_disturbed_is_tried_again_behind_a_longer_hold() -> None:
    gpu, calls = FakeGpu(launch_s=5e-6), 0

    def call() -> None:
        nonlocal calls
        calls += 1
        if calls % 50 == 0:
            gpu.now_s += 3e-3  # somebody else has the core
        gpu.kernel(20e-6)

    taken, stopwatch = timed(gpu, call)
    assert taken.samples_s == pytest.approx([20e-6] * len(taken.samples_s), rel=0.01)
    assert stopwatch.caveat is None


def test_calls_that_wait_for_the_device_are_said_to() -> None:
    gpu = FakeGpu(launch_s=10e-6)

    def call() -> None:
        gpu.kernel(30e-6)
        gpu.synchronize()
        gpu.kernel(30e-6)

    taken, stopwatch = timed(gpu, call)
    assert "its calls wait for the GPU themselves" in (stopwatch.caveat or "")
    assert min(taken.samples_s) >= 70e-6  # a launch is part of every call, and nothing could hide it
    assert gpu.launches.count("hold") < gpu.launches.count("kernel") / 10  # which is found out soon


def test_first_calls_that_compile_and_tune_are_no_rule() -> None:
    gpu, calls = FakeGpu(), 0

    def call() -> None:
        nonlocal calls
        calls += 1
        gpu.now_s += 0.1 * (calls < 6)
        gpu.kernel(10e-6)

    taken, stopwatch = timed(gpu, call)
    assert taken.samples_s[-1] == pytest.approx(10e-6, abs=RESOLUTION_S)
    assert stopwatch.exposed_in_a_row == 0


def test_cold_calls_each_find_the_cache_flushed_and_the_flush_takes_no_time() -> None:
    times = {}
    for cold in (False, True):
        gpu = FakeGpu(cold_factor=3.0)
        taken, _ = timed(gpu, call_of(gpu, 10e-6), cold=cold)
        times[cold] = taken.samples_s
        kernels = [i for i, name in enumerate(gpu.launches) if name == "kernel"]
        assert all(gpu.launches[i - 1] == "flush" for i in kernels) == cold
    assert times[False] == pytest.approx([10e-6] * len(times[False]), abs=RESOLUTION_S)
    assert times[True] == pytest.approx([30e-6] * len(times[True]), abs=RESOLUTION_S)


def test_short_calls_stand_together_between_two_events_and_long_ones_alone() -> None:
    for kernel_s, together in ((1e-6, MOST_CALLS), (10.5e-6, 20), (1e-3, 1)):
        gpu = FakeGpu()
        stopwatch = EventStopwatch(gpu)
        stopwatch.lap(call_of(gpu, kernel_s), 1)
        gpu.launches.clear()
        lap = stopwatch.lap(call_of(gpu, kernel_s), 4 * together)
        assert "".join(name[0] for name in gpu.launches) == ("h" + "k" * together) * 4
        assert lap.seconds == pytest.approx(4 * together * kernel_s, abs=4 * RESOLUTION_S)


def test_a_kernel_below_the_resolution_is_seen_in_many() -> None:
    gpu = FakeGpu(launch_s=2e-6)
    taken, _ = timed(gpu, call_of(gpu, 0.2e-6))
    assert taken.samples_s == pytest.approx([0.2e-6] * len(taken.samples_s), rel=0.1)


def test_clocks_that_rise_are_waited_for() -> None:
    """The device starts at a third of its speed and gets there within a few samples' work."""
    gpu = FakeGpu(speed=lambda busy_s: min(1.0, 1 / 3 + busy_s / 0.06))
    taken, _ = timed(gpu, call_of(gpu, 100e-6))
    assert taken.samples_s == pytest.approx([100e-6] * len(taken.samples_s), rel=0.06)


def test_clocks_that_fall_show_in_the_samples() -> None:
    gpu = FakeGpu(speed=lambda busy_s: 1.0 if busy_s < 0.1 else 0.5)
    taken = measure(call_of(gpu, 1e-3), 0.4, enough=1000, most=1000, stopwatch=EventStopwatch(gpu))
    assert taken.samples_s[0] == pytest.approx(1e-3, abs=RESOLUTION_S)
    assert taken.samples_s[-1] == pytest.approx(2e-3, abs=RESOLUTION_S)


def test_hours_after_the_first_event_the_times_are_as_precise() -> None:
    """The time between two events is a float32 number of milliseconds: a step of 4 µs after a minute."""
    gpu = FakeGpu()
    stopwatch = EventStopwatch(gpu)
    first = stopwatch.lap(call_of(gpu, 7e-6), 1).seconds
    gpu.now_s += 1e5
    assert stopwatch.lap(call_of(gpu, 7e-6), 1).seconds == first == pytest.approx(7e-6, abs=RESOLUTION_S / 2)


def test_budgets_are_of_the_wall() -> None:
    """Holds and flushes take time too, and it is not the samples that tell how much."""
    gpu = FakeGpu()
    taken = measure(call_of(gpu, 1e-6), 0.05, enough=10**6, most=10**6, stopwatch=EventStopwatch(gpu, cold=True))
    assert taken.stop_reason == "budget"
    assert taken.elapsed_s <= 0.07
    assert sum(taken.samples_s) * taken.batch < 0.01 < taken.called_s
    assert math.isnan(taken.cores_used)


def test_the_last_result_is_let_go_before_the_next_call() -> None:
    gpu, alive = FakeGpu(), 0

    class Result:
        def __init__(self) -> None:
            nonlocal alive
            alive += 1
            assert alive == 1, "two results at once: calls do not find the same memory free"

        def __del__(self) -> None:
            nonlocal alive
            alive -= 1

    def call() -> Result:
        gpu.kernel(2e-6)
        return Result()

    stopwatch = EventStopwatch(gpu)
    stopwatch.lap(call, 1)
    assert isinstance(stopwatch.lap(call, 100).result, Result)


def test_the_hold_compiles_and_is_a_loop_over_the_timer() -> None:
    pytest.importorskip("cupy")
    from convbench.cuda.nvrtc import nvrtc_problem, programs

    if problem := nvrtc_problem():
        pytest.skip(problem)
    assert HOLD in KERNELS
    for program in programs(KERNELS):
        code = program.compile()[HOLD.instance]
        assert (code.spill_bytes, code.shared_bytes) == (0, 0)
        assert any("u64" in opcode and opcode.startswith("mov") for opcode in code.opcodes)


# -- CuPy's part --------------------------------------------------------------------------------------------------


class StubCupy(ModuleType):
    """The names of CuPy that its device uses, on a fake GPU."""

    uint8 = np.uint8

    def __init__(self, gpu: FakeGpu) -> None:
        super().__init__("cupy")
        hooks: list[Any] = []

        class Event:
            def __init__(self) -> None:
                self.own = gpu.event()

            def record(self, stream: Any = None) -> None:
                assert stream == "the current stream"
                gpu.record(self.own)

            @property
            def done(self) -> bool:
                return gpu.done(self.own)

        class Device:
            id, pci_bus_id, attributes = 0, "0000:1A:00.0", {"L2CacheSize": 1000}
            mem_info = (5000, 9000)

            def synchronize(self) -> None:
                gpu.synchronize()

        class MemoryHook:
            def __enter__(self) -> None:
                hooks.append(self)

            def __exit__(self, *about: Any) -> None:
                hooks.remove(self)

        class Filled:
            def __init__(self, count: int, dtype: Any) -> None:
                self.nbytes = count

            def fill(self, value: int) -> None:
                gpu.flush()
                gpu.launches[-1] = f"fill {self.nbytes}"

        class Pool:
            kept = 300

            def free_bytes(self) -> int:
                return self.kept

            def free_all_blocks(self) -> None:
                self.kept = 0

        pool = Pool()
        self.get_default_memory_pool = lambda: pool
        self.empty, self.hooks = Filled, hooks
        self.cuda = SimpleNamespace(
            Event=Event,
            Device=Device,
            MemoryHook=MemoryHook,
            get_current_stream=lambda: "the current stream",
            get_elapsed_time=lambda start, stop: gpu.elapsed_s(start.own, stop.own) * 1e3,
        )


@pytest.fixture
def cupys(monkeypatch: pytest.MonkeyPatch) -> tuple[CupyDevice, FakeGpu, StubCupy]:
    gpu = FakeGpu(launch_s=20e-6)
    stub = StubCupy(gpu)

    def kernels(kernel: Any) -> Callable[..., None]:
        assert kernel == HOLD

        def launch(grid: tuple[int, ...], arguments: tuple[Any, ...]) -> None:
            (nanoseconds,) = arguments
            assert (grid, type(nanoseconds)) == ((1, 1, 1), np.uint64)
            gpu.hold(float(nanoseconds) / 1e9)

        return launch

    monkeypatch.setitem(sys.modules, "cupy", stub)
    monkeypatch.setattr("convbench.cuda.launch.cupy_kernels", kernels)
    monkeypatch.setattr(CupyDevice, "now", lambda self: gpu.now())
    return CupyDevice(), gpu, stub


@pytest.mark.parametrize("cold", [False, True])
def test_cupys_device_holds_flushes_and_reads_events(cupys: tuple[CupyDevice, FakeGpu, StubCupy], cold: bool) -> None:
    device, gpu, _ = cupys
    taken = measure(call_of(gpu, 6e-6), 0.1, enough=4, most=8, stopwatch=EventStopwatch(device, cold=cold))
    assert taken.samples_s == pytest.approx([6e-6] * len(taken.samples_s), abs=RESOLUTION_S)
    assert set(gpu.launches) == {"hold", "kernel", *["fill 2000"] * cold}


def test_cupys_memory_is_what_its_pool_hands_out(cupys: tuple[CupyDevice, FakeGpu, StubCupy]) -> None:
    device, _, stub = cupys
    with device.memory() as used:
        (hook,) = stub.hooks
        hook.malloc_postprocess(device_id=0, size=1000, mem_size=1024, mem_ptr=7, pmem_id=1)
        hook.malloc_postprocess(device_id=0, size=500, mem_size=512, mem_ptr=8, pmem_id=2)
        hook.malloc_postprocess(device_id=0, size=2**60, mem_size=2**60, mem_ptr=0, pmem_id=0)  # there was none
        hook.free_postprocess(device_id=0, mem_size=1024, mem_ptr=7, pmem_id=1)
    assert (used.now, used.peak) == (512, 1536)
    assert stub.hooks == []


def test_the_driver_is_asked_anew_each_time(
    cupys: tuple[CupyDevice, FakeGpu, StubCupy], monkeypatch: pytest.MonkeyPatch
) -> None:
    device, _, _ = cupys
    asked: list[str] = []
    monkeypatch.setattr(
        "convbench.cuda.nvidia_smi.clocks", lambda place: asked.append(place) or {"sm_clock_mhz": len(asked)}
    )
    assert [device.clocks(), device.clocks()] == [{"sm_clock_mhz": 1}, {"sm_clock_mhz": 2}]
    assert asked == ["0000:1A:00.0"] * 2


@pytest.mark.parametrize("kernel_s", [3e-6, 2e-3, 0.5])
def test_clocks_are_asked_while_the_device_is_at_work(kernel_s: float, monkeypatch: pytest.MonkeyPatch) -> None:
    """Short calls go on until the driver has answered, and of long ones only a few are queued."""
    gpu = FakeGpu(launch_s=2e-6)
    assert gpu.clocks()["sm_clock_mhz"] == 345
    place = OnDevice(gpu, fake_namespace(gpu))
    assert place.clocks(call_of(gpu, kernel_s), kernel_s)["sm_clock_mhz"] == 1980
    assert gpu.idle_at_s <= gpu.now_s  # all is done afterwards
    assert gpu.busy_s <= gpu.now_s < 3.0


def test_memory_is_what_cuda_and_the_pool_have_and_the_pools_are_emptied(
    cupys: tuple[CupyDevice, FakeGpu, StubCupy], monkeypatch: pytest.MonkeyPatch
) -> None:
    device, _, _ = cupys
    assert device.free_bytes() == 5000 + 300
    emptied: list[str] = []
    torch = SimpleNamespace(cuda=SimpleNamespace(empty_cache=lambda: emptied.append("torch")))
    monkeypatch.setitem(sys.modules, "torch", torch)
    device.release()
    assert device.free_bytes() == 5000
    assert emptied == ["torch"]
    monkeypatch.delitem(sys.modules, "torch")
    device.release()  # which imports nothing
    assert "torch" not in sys.modules


def test_cupy_has_the_names_that_the_stub_stands_for() -> None:
    cupy = pytest.importorskip("cupy")
    for owner, names in (
        (cupy.cuda, ("Event", "Device", "MemoryHook", "get_current_stream", "get_elapsed_time")),
        (cupy.cuda.Event, ("record", "done")),
        (cupy.cuda.Device, ("attributes", "pci_bus_id", "synchronize", "mem_info", "compute_capability")),
        (cupy.cuda.MemoryHook, ("malloc_postprocess", "free_postprocess", "__enter__", "__exit__")),
        (cupy.cuda.runtime, ("getDeviceProperties", "driverGetVersion", "runtimeGetVersion")),
        (cupy.ndarray, ("fill",)),
        (cupy.get_default_memory_pool(), ("free_bytes", "free_all_blocks")),
    ):
        assert [name for name in names if not hasattr(owner, name)] == []
    assert isinstance(cupy.cuda.nvrtc.getVersion(), tuple)
    assert "device_id" in cupy.cuda.MemoryHook.free_postprocess.__doc__
    assert {"mem_size", "mem_ptr"} <= set(re.findall(r"mem_\w+", cupy.cuda.MemoryHook.malloc_postprocess.__doc__))


# -- what the driver says -----------------------------------------------------------------------------------------

_ALL = {name: field for name, (field, _) in nvidia_smi._FIELDS.items()}
_H200 = {
    "name": "NVIDIA H200", "pci.bus_id": "00000000:1A:00.0", "driver_version": "570.86.15", "compute_cap": "9.0",
    "memory.total": "143771", "clocks.sm": "1980", "clocks.max.sm": "1980", "clocks.applications.graphics": "1980",
    "clocks.mem": "3201", "clocks.max.mem": "3201", "clocks.applications.mem": "3201", "power.limit": "700.00",
    "power.default_limit": "700.00", "temperature.gpu": "41", "persistence_mode": "Enabled",
    "mig.mode.current": "Disabled", "ecc.mode.current": "Enabled", "clocks_event_reasons.active": "0x0000000000000004",
}  # fmt: skip
_GEFORCE = _H200 | {
    "name": "NVIDIA GeForce RTX 2070", "pci.bus_id": "00000000:01:00.0", "memory.total": "8192",
    "clocks.applications.graphics": "[N/A]", "clocks.applications.mem": "[Not Supported]", "power.limit": "[N/A]",
    "mig.mode.current": "[N/A]", "ecc.mode.current": "[Unknown Error]", "clocks_event_reasons.active": "[N/A]",
}  # fmt: skip


def driver(*gpus: dict[str, str], asked: list[str] | None = None) -> nvidia_smi.Runner:
    """A driver that knows the fields of these GPUs and no others."""

    def run(arguments: Any) -> tuple[int, str]:
        fields = arguments[0].removeprefix("--query-gpu=").split(",")
        if asked is not None:
            asked.append(arguments[0])
        unknown = next((field for field in fields if field not in gpus[0]), None)
        if unknown:
            return 2, f'Field "{unknown}" is not a valid field to query.\n\n'
        return 0, "".join(", ".join(gpu[field] for field in fields) + "\n" for gpu in gpus)

    return run


def test_a_data_centre_card_is_read() -> None:
    (gpu,) = nvidia_smi.describe_gpus(driver(_H200))
    assert gpu["name"] == "NVIDIA H200"
    assert gpu["memory_bytes"] == 143771 * 2**20
    assert (gpu["sm_clock_mhz"], gpu["power_limit_w"], gpu["compute_capability"]) == (1980, 700, "9.0")
    assert gpu["held_back_by"] == ["its power limit"]
    assert gpu.keys() == (_ALL.keys() - {"reasons"}) | {"held_back_by"}


def test_what_a_card_does_not_tell_is_not_known() -> None:
    first, second = nvidia_smi.describe_gpus(driver(_GEFORCE, _H200))
    for name in ("sm_clock_application_mhz", "memory_clock_application_mhz", "power_limit_w", "mig", "ecc"):
        assert first[name] is None
    assert first["held_back_by"] is None
    assert second["power_limit_w"] == 700


def test_an_older_driver_has_older_names_and_fewer_fields() -> None:
    old = {
        field: value for field, value in _H200.items() if field not in ("compute_cap", "clocks_event_reasons.active")
    }
    old["clocks_throttle_reasons.active"] = "0x0000000000000041"
    asked: list[str] = []
    (gpu,) = nvidia_smi.describe_gpus(driver(old, asked=asked))
    assert gpu["compute_capability"] is None
    assert gpu["held_back_by"] == ["its temperature (hardware)"]
    assert len(asked) == 3


@pytest.mark.parametrize(
    ("code", "text"),
    [
        (9, "NVIDIA-SMI has failed because it couldn't communicate with the NVIDIA driver.\n"),
        (1, ""),
        (0, "No devices were found\n"),
        (0, "a, b\n"),
    ],
)
def test_without_a_driver_there_are_no_gpus(code: int, text: str) -> None:
    assert nvidia_smi.describe_gpus(lambda arguments: (code, text)) == []
    assert nvidia_smi.clocks(run=lambda arguments: (code, text)) is None


def test_a_driver_that_refuses_every_field_is_asked_no_more() -> None:
    assert nvidia_smi.query(run=driver({})) == []


def test_the_clocks_are_those_of_the_device_that_is_used() -> None:
    run = driver(_GEFORCE | {"clocks.sm": "300"}, _H200 | {"clocks.sm": "1200"})
    found = nvidia_smi.clocks("0000:1a:00.0", run)
    assert found is not None
    assert (found["sm_clock_mhz"], found["held_back_by"]) == (1200, ["its power limit"])
    assert nvidia_smi.clocks(None, run) is None  # which of two?
    assert nvidia_smi.clocks(None, driver(_H200)) is not None
