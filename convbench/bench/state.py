"""What a backend may change of its process, to the cost of those that come after it."""

from __future__ import annotations

import os
import tracemalloc
import warnings

import numpy as np

__all__ = ["State"]


class State:
    """The process as it is now; it can be brought back to this."""

    def __init__(self) -> None:
        self._errors, self._folder = np.geterr(), os.getcwd()
        self._warnings, self._cores = list(warnings.filters), _cores()
        self._flushes = _flushes_subnormals()

    def restore(self) -> list[str]:
        """Put back what differs, as far as that can be done; return a line for each."""
        found = []
        if np.geterr() != self._errors:
            np.seterr(**self._errors)
            found.append("NumPy's treatment of floating-point errors")
        if _folder() != self._folder:
            os.chdir(self._folder)
            found.append("the working folder")
        if _cores() != self._cores:
            os.sched_setaffinity(0, self._cores)
            found.append("the cores it may run on")
        if any(entry[0] == "error" for entry in warnings.filters if entry not in self._warnings):
            warnings.filters[:] = self._warnings  # type: ignore[index]
            found.append("warnings into errors")
        if tracemalloc.is_tracing():
            tracemalloc.stop()
            found.append("the tracing of memory")
        if _flushes_subnormals() != self._flushes:
            self._flushes = not self._flushes
            found.append("how the processor treats subnormal numbers, which cannot be put back")
        return [f"process: it changed {what}" for what in found]


def _folder() -> str | None:
    try:
        return os.getcwd()
    except OSError:  # it is gone
        return None


def _cores() -> set[int]:
    return os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else set()


def _flushes_subnormals() -> bool:
    """Whether 10⁻⁴⁰ in float32 is as good as 0: a setting of the processor, of which libraries know to be fast."""
    return not (np.array([1e-40], np.float32) * np.float32(1)).any()
