"""What a benchmark can compare: families of operations, each with specs, backends and a truth of its own.

Clock, statistics, records and reports know of an operation only what stands in :class:`Family`. Convolution is one;
pooling is another and lives in its own package. A line of text says by its tokens which it belongs to, and a run is of
one family: the same name, such as ``torch``, is another backend in each.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Protocol

from convbench.errors import SpecError

if TYPE_CHECKING:
    from convbench.backend import Backend
    from convbench.bench.cases import Case
    from convbench.bench.data import Data
    from convbench.memory import Memory

__all__ = ["Convolution", "Family", "family_of", "only_family"]


class Family(Protocol):
    """One kind of operation.

    Attributes
    ----------
    name : str
    baselines : tuple of str
        Backends over which speed-ups are reckoned unless one is named: the one that has times on the most cases of a
        run, the first of equals.
    legend : mapping of str to str
        What those columns of the comparison mean that do not mean the same in every family.
    """

    name: str
    baselines: tuple[str, ...]
    legend: Mapping[str, str]

    def case_type(self) -> type[Case]:
        """Return the class of its cases."""
        ...

    def parse_spec(self, line: str) -> Any:
        """Read a spec; raises SpecError."""
        ...

    def backend_names(self) -> list[str]:
        """Return the names of its backends."""
        ...

    def all_backends(self) -> Mapping[str, Backend]:
        """Return all of them by name, the unavailable included."""
        ...

    def get_backend(self, name: str) -> Backend:
        """Return a backend that can be benchmarked; raises UnknownBackend."""
        ...

    def adopt(self, candidate: Any) -> Backend:
        """Return an unregistered object as a backend that can be benchmarked; raises SpecError if it is none."""
        ...

    def check(self, name: str, *, specs: int, seed: int) -> Sequence[Any]:
        """Put a backend through the family's battery; results as :func:`convbench.check_backend` returns them."""
        ...

    def measure_memory(self, backend: Backend, spec: Any, data: Data, threads: int) -> Memory:
        """Run once, traced; return what memory that took, and the result."""
        ...

    def expected_seconds(self, backend: Backend, spec: Any, threads: int, *, flops: int, known: Any) -> float:
        """Return how long a call should take, NaN if that is not known."""
        ...


class Convolution:
    """Everything that :class:`convbench.ConvSpec` describes."""

    name = "convolution"
    baselines: tuple[str, ...] = ("scipy-fft", "im2col", "direct-numpy")  # the last two do the whole family
    legend: Mapping[str, str] = {
        "with prepare": "the same of prepare + time, prepare being what new weights cost outside the call (timed once, "
        "cold); some do that inside their call",
        "GFLOP/s": "nominal operations (2·MACs, the same for all) over time; executed: operations really done over "
        "time",
        "error": "largest |ŷ − y| / (|w| ∗ |x|), for gradients the same of their operands, in units of the dtype's "
        "eps; bound: what the algorithm promises",
    }

    def case_type(self) -> type[Case]:
        """Return :class:`convbench.bench.cases.Case`."""
        from convbench.bench.cases import Case

        return Case

    def parse_spec(self, line: str) -> Any:
        """Read a :class:`convbench.ConvSpec`."""
        from convbench.spec import ConvSpec

        return ConvSpec.parse(line)

    def backend_names(self) -> list[str]:
        """Return the registered names."""
        from convbench.registry import backend_names

        return backend_names()

    def all_backends(self) -> Mapping[str, Backend]:
        """Return all that are registered."""
        from convbench.registry import all_backends

        return all_backends()

    def get_backend(self, name: str) -> Backend:
        """Return a registered backend."""
        from convbench.registry import get_backend

        return get_backend(name)

    def adopt(self, candidate: Any) -> Backend:
        """Return the object itself if it follows the protocol."""
        from convbench.registry import protocol_problem

        problem = protocol_problem(candidate)
        if problem:
            rule = f"must be registered names or backends: {problem}"
            raise SpecError("backends", type(candidate).__name__, rule)
        backend: Backend = candidate
        return backend

    def check(self, name: str, *, specs: int, seed: int) -> Sequence[Any]:
        """Run :func:`convbench.check_backend`."""
        from convbench.checks import check_backend

        return check_backend(self.get_backend(name), specs=specs, seed=seed)

    def measure_memory(self, backend: Backend, spec: Any, data: Data, threads: int) -> Memory:
        """Ask :func:`convbench.memory.measure_memory`."""
        from convbench.memory import measure_memory

        return measure_memory(backend, spec, *data, threads=threads)

    def expected_seconds(self, backend: Backend, spec: Any, threads: int, *, flops: int, known: Any) -> float:
        """Ask :func:`convbench.bench.predict.expected_seconds`."""
        from convbench.bench.predict import expected_seconds

        return expected_seconds(backend, spec, threads, flops=flops, known=known)


_CONVOLUTION = Convolution()


def family_of(line: str) -> Family:
    """Return the family that a line of text belongs to.

    >>> family_of("i8x8 k3 f32").name, family_of("pool=max i8x8 k2 f32").name
    ('convolution', 'pooling')
    """
    if any(token.startswith("pool=") for token in str(line).split()):
        from convbench.pooling.family import POOLING

        return POOLING
    return _CONVOLUTION


def only_family(lines: Iterable[str]) -> Family:
    """Return the family of all these lines.

    Raises
    ------
    SpecError
        If there are several.
    """
    families = {family.name: family for family in map(family_of, lines)}
    if len(families) > 1:
        raise SpecError("cases", " and ".join(families), "are compared apart: run one of them at a time")
    return next(iter(families.values()), _CONVOLUTION)
