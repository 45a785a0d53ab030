"""What the launch code of every forward convolution shares: the geometry, kept for the strides it was made for."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any

from convbench.arrays import Array, Namespace
from convbench.cuda.geometry import geometry
from convbench.cuda.kernel import Kernel, Launch
from convbench.spec import ConvSpec

__all__ = ["C_TYPES", "MOST_ALONG_Y", "Forward"]

#: The C++ type in which each dtype is stored.
C_TYPES = {"float32": "float", "float64": "double", "float16": "__half"}

#: Blocks of a grid along y, and along z; along x there may be 2³¹ − 1.
MOST_ALONG_Y = 65535

_KEPT = 16  # geometries: one for each set of strides that a plan is called with


class Forward(ABC):
    """An :class:`~convbench.backend.Algorithm` for forward convolutions with shared weights, done by CUDA kernels.

    A subclass says how weights are packed (:meth:`prepare`) and what is launched (:meth:`_launch`). It makes its
    kernels ready in ``__init__`` with :meth:`_loaded`, so that no run waits for the compiler, and allocates per call
    with ``self._ns.empty`` what scratch it needs, since a plan may be called from several threads at once.

    Attributes
    ----------
    reads_weights : bool
        The kernel reads w where it lies, so that its strides are part of the geometry.
    """

    workspace_bytes = 0
    prepared_bytes = 0
    reads_weights = False

    def __init__(self, ns: Namespace, spec: ConvSpec, threads: int) -> None:
        self._ns, self._spec = ns, spec
        self.flops = spec.flops
        self._kept: dict[Any, Any] = {}

    def prepare(self, w: Array) -> tuple[Any, int | None]:
        """Return the weights as they are."""
        return w, None

    def run(self, first: Array, second: Any, bias: Array | None, out: Array) -> None:
        """Write the whole result into ``out``, of the dtype of ``first`` or of that in which sums are formed."""
        if 0 not in out.shape:
            self._launch(first, second, bias, out, self._geometry(first, second, out, bias))

    @abstractmethod
    def _launch(self, x: Array, weights: Any, bias: Array | None, y: Array, conv: Any) -> None:
        """Launch the kernels on arrays of at least one output; ``conv`` is ``struct Conv``."""

    def _loaded(self, kernel: Kernel) -> Launch:
        """Return what launches a kernel in this namespace."""
        if self._ns.kernels is None:
            raise ValueError(f"{self._ns.name} runs no CUDA kernels: {kernel.instance} needs a namespace that does")
        return self._ns.kernels(kernel)

    def _geometry(self, x: Array, weights: Any, y: Array, bias: Array | None) -> Any:
        w = weights if self.reads_weights else None
        key = (x.strides, y.strides, y.dtype, w is not None and w.strides, bias is not None and bias.strides)
        made = self._kept.get(key)
        if made is None:
            if len(self._kept) >= _KEPT:
                self._kept.clear()
            made = self._kept[key] = geometry(self._spec, x, w, y, bias)
        return made
