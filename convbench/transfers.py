"""Which operands are where; and NumPy arrays on a GPU's backend: sent, worked on there, the result brought back."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from convbench.arrays import Array, Namespace, numpy_namespace, on_device
from convbench.backend import Backend, Plan, _CheckedPlan
from convbench.errors import SpecError

__all__ = ["TransferringPlan", "bound_to", "common_device"]


def common_device(arrays: Mapping[str, Array]) -> str:
    """Return "cuda" if all operands are CuPy's arrays, "cpu" if none is.

    Raises
    ------
    TypeError
        If only some are: which way they should go is for the caller to say.
    """
    there = [name for name, array in arrays.items() if on_device(array)]
    if not there:
        return "cpu"
    if len(there) < len(arrays):
        here = [name for name in arrays if name not in there]
        raise TypeError(
            f"{', '.join(there)} on the GPU and {', '.join(here)} in main memory: give all operands as CuPy arrays "
            "(cupy.asarray(…)) or all as NumPy arrays (cupy.asnumpy(…))"
        )
    return "cuda"


def bound_to(plan: Plan, backend: Backend, device: str) -> Plan:
    """Return the plan itself if its arrays are where the operands are, or one that brings NumPy arrays there.

    Raises
    ------
    SpecError
        If operands are on the GPU and the backend is not: nothing is brought back unasked.
    """
    if backend.device == device:
        return plan
    if device == "cuda":
        raise SpecError(
            "backend",
            backend.name,
            "works in main memory, the operands are on the GPU: give cupy.asnumpy(…) of them, or another backend "
            "('convbench list backends' tells which run there)",
        )
    return TransferringPlan(plan, getattr(backend, "ns", numpy_namespace)())


class TransferringPlan(_CheckedPlan):
    """A plan on a device, called with NumPy arrays.

    Parameters
    ----------
    plan : Plan
    ns : Namespace
        Of its arrays.
    """

    def __init__(self, plan: Plan, ns: Namespace) -> None:
        super().__init__(plan.spec, plan.backend, plan.threads, numpy_namespace())
        self._plan, self._device, self.accumulate_dtype = plan, ns, plan.accumulate_dtype

    @property
    def workspace_bytes(self) -> int:
        """Those of the plan on the device."""
        return self._plan.workspace_bytes

    @property
    def prepared_bytes(self) -> int:
        """Those of the plan on the device."""
        return self._plan.prepared_bytes

    @property
    def flops(self) -> int:
        """Those of the plan on the device."""
        return self._plan.flops

    def _prepare(self, w: Array) -> tuple[Any, int | None]:
        prepared = self._plan.prepare(self._device.from_host(w))
        return prepared, getattr(prepared, "flops", None)

    def _run(self, first: Array, second: Any, bias: Array | None, out: Array | None) -> Array:
        send = self._device.from_host
        there = second if self._prepares else send(second)
        y = self._device.to_host(self._plan(send(first), there, None if bias is None else send(bias)))
        if out is None:
            return y
        out[...] = y
        return out
