"""The small fixed vocabulary in which a backend says no, and the limits it says it from.

Every reason starts with one of :data:`TOPICS`, a colon and a sentence: "stride: 2x1 given, only 1 is done".
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from convbench.geometry import BOUNDARIES
from convbench.spec import BIASES, DTYPES, LAYOUTS, OPS, ConvSpec

__all__ = [
    "FLOATS",
    "FLOATS_AND_COMPLEX",
    "NUMPY_DTYPES",
    "TOPICS",
    "WHOLE_FAMILY",
    "Limits",
    "human_bytes",
    "memory",
    "refuse",
    "work",
]

TOPICS = (
    "not installed",
    "no device",
    "dtype",
    "op",
    "kind",
    "axes",
    "groups",
    "stride",
    "dilation",
    "boundary",
    "tile",
    "layout",
    "kernel size",
    "weights",
    "data",
    "memory",
    "work",
)


def refuse(topic: str, sentence: str) -> str:
    """Return a reason; the topic must be in the vocabulary."""
    if topic not in TOPICS:
        raise ValueError(f"topic {topic!r} is not one of {', '.join(TOPICS)}")
    return f"{topic}: {sentence}"


def memory(needed_bytes: int, limit_bytes: int) -> str | None:
    """Refuse if more memory is needed than allowed."""
    if needed_bytes <= limit_bytes:
        return None
    return refuse("memory", f"{human_bytes(needed_bytes)} needed, the limit is {human_bytes(limit_bytes)}")


def work(macs: int, limit_macs: int) -> str | None:
    """Refuse if more multiply–accumulates are needed than allowed."""
    return None if macs <= limit_macs else refuse("work", f"{macs:.3g} MACs needed, the limit is {limit_macs:.3g}")


def human_bytes(count: float) -> str:
    """Format a number of bytes with a binary prefix.

    >>> human_bytes(40 * 2**30)
    '40.0 GiB'
    """
    for unit in ("B", "KiB", "MiB", "GiB"):
        if abs(count) < 1024:
            return f"{count:.0f} B" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1024
    return f"{count:.1f} TiB"


@dataclass(frozen=True, kw_only=True)
class Limits:
    """What a backend takes, declared once: :meth:`why_not` answers for it.

    Attributes
    ----------
    dtypes, ops, boundaries, biases, layouts : tuple of str
    axes : tuple of int
        Numbers of spatial axes.
    groups, stride, dilation, tile : bool
        Whether values other than the default are taken.
    also : callable, optional
        ``also(spec)`` returns a further reason or None.
    """

    dtypes: tuple[str, ...] = ("float32", "float64")
    ops: tuple[str, ...] = ("forward",)
    axes: tuple[int, ...] = (1, 2, 3)
    boundaries: tuple[str, ...] = ("zero",)
    biases: tuple[str, ...] = BIASES
    layouts: tuple[str, ...] = ("channels_first",)
    groups: bool = True
    stride: bool = True
    dilation: bool = True
    tile: bool = False
    also: Callable[[ConvSpec], str | None] | None = None

    def why_not(self, spec: ConvSpec) -> str | None:
        """Return the first reason against ``spec``, or None."""
        listed = (
            ("dtype", spec.dtype, self.dtypes),
            ("op", spec.op, self.ops),
            ("axes", spec.ndim, self.axes),
            ("boundary", spec.boundary, self.boundaries),
            ("layout", spec.layout, self.layouts),
        )
        for topic, value, allowed in listed:
            if value not in allowed:
                return refuse(topic, f"{value} given, only {_listed(allowed)} is done")
        switches = (
            ("groups", spec.groups, spec.groups != 1, self.groups),
            ("stride", "x".join(map(str, spec.stride)), set(spec.stride) != {1}, self.stride),
            ("dilation", "x".join(map(str, spec.dilation)), set(spec.dilation) != {1}, self.dilation),
        )
        for topic, text, used, allowed_any in switches:
            if used and not allowed_any:
                return refuse(topic, f"{text} given, only 1 is done")
        if spec.tile and not self.tile:
            return refuse("tile", "tiled and locally connected weights are not done")
        return self.also(spec) if self.also else None


def _listed(allowed: tuple[Any, ...]) -> str:
    if len(allowed) > 2 and all(isinstance(n, int) for n in allowed) and allowed[-1] - allowed[0] == len(allowed) - 1:
        return f"{allowed[0]} to {allowed[-1]}"
    return ", ".join(map(str, allowed))


#: Every dtype that NumPy stores.
NUMPY_DTYPES = tuple(name for name in DTYPES if name != "bfloat16")

#: What algorithms that divide or transform take.
FLOATS = ("float32", "float64")
FLOATS_AND_COMPLEX = (*FLOATS, "complex64", "complex128")

#: Everything.
WHOLE_FAMILY = Limits(
    dtypes=NUMPY_DTYPES, ops=OPS, boundaries=BOUNDARIES, layouts=LAYOUTS, tile=True, axes=tuple(range(1, 9))
)
