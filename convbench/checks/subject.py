"""What a check works on: one backend, one spec, and what the checks of both share."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from math import prod
from typing import Any, NamedTuple
from zlib import crc32

import numpy as np
from numpy.random import Generator
from numpy.typing import NDArray

from convbench.arrays import Array, numpy_namespace
from convbench.backend import Backend, Plan
from convbench.bounds import ErrorBound
from convbench.checks.specs import STRUCTURES, Numbers, Structure, gaussian
from convbench.errors import UnsupportedWeights
from convbench.oracle import Truth
from convbench.refusals import human_bytes, memory
from convbench.spec import ConvSpec

__all__ = ["Case", "CheckFunction", "Failure", "Operands", "Refusal", "Subject", "require_equal"]

#: Which weights the calls of the cases 0, 1, 2, … use: old ones come back after new ones.
_WEIGHTS_OF_CASE = (0, 0, 1, 0, 1, 2, 0)
_MOST_BYTES = 256 * 2**20  # of prepared weights and workspace; several batteries may run side by side


class Failure(Exception):
    """A check's complaint: what was expected, what came, how far off it is."""


class Refusal(Exception):
    """A check cannot be made because the backend says no, with its reason."""


class Operands(NamedTuple):
    """Host arrays of a spec's shapes."""

    x: NDArray[Any]
    w: NDArray[Any]
    bias: NDArray[Any] | None


@dataclass(frozen=True)
class Case:
    """Operands and the truth about them, prepared weights in the backend's form."""

    operands: Operands
    truth: Truth
    weights: Any


class Subject:
    """One backend on one spec.

    Parameters
    ----------
    backend : Backend
    spec : ConvSpec
    seed : int
        All data follow from it, the spec's line and the purpose they serve, in whatever order checks run.
    """

    def __init__(self, backend: Backend, spec: ConvSpec, seed: int) -> None:
        self.backend, self.spec, self.seed = backend, spec, seed
        self._plans: dict[int, Plan] = {}
        self._cases: dict[int, Case] = {}
        self._relatives: dict[str, Subject] = {}

    def on(self, spec: ConvSpec) -> Subject:
        """Return the same backend on another spec; raise Refusal if it does not take that."""
        line = str(spec)
        if line == str(self.spec):
            return self
        if line not in self._relatives:
            reason = self.backend.why_not(spec)
            if reason is not None:
                raise Refusal(f"needs {line}, which is refused: {reason}")
            self._relatives[line] = Subject(self.backend, spec, self.seed)
        return self._relatives[line]

    def rng(self, purpose: str) -> Generator:
        """Return a generator of its own for every purpose."""
        return np.random.default_rng((self.seed, crc32(f"{self.spec} {purpose}".encode())))

    @cached_property
    def bound(self) -> ErrorBound:
        """What the backend promises for the spec."""
        return self.backend.error_bound(self.spec)

    def plan(self, threads: int = 1) -> Plan:
        """Return the one plan for that many threads, shared by all checks: a plan must survive any use.

        Raises Refusal if it needs more memory than a check should: a matrix may be as large as its backend allows. But
        nothing needs several times the memory of the operation's dense matrix.
        """
        if threads not in self._plans:
            plan = self.backend.plan(self.spec, threads=threads)
            declared = plan.workspace_bytes + plan.prepared_bytes
            too_much = memory(declared, _MOST_BYTES)
            if too_much is not None:
                dense = prod(self.spec.output_shape) * prod(self.spec.input_shape) * 16
                if declared > 4 * dense + _MOST_BYTES // 4:
                    raise Failure(
                        f"declares {human_bytes(declared)} of workspace and prepared weights, where the dense matrix "
                        f"of the operation would have {human_bytes(dense)}"
                    )
                raise Refusal(f"left out of the battery: {too_much}")
            self._plans[threads] = plan
        return self._plans[threads]

    # -- data ---------------------------------------------------------------------------------

    @cached_property
    def structure(self) -> Structure:
        """The least structured kind of weights that is taken."""
        for structure in STRUCTURES:
            try:
                self._try(structure)
            except UnsupportedWeights as error:
                refusal = error
            else:
                return structure
        raise Failure(f"refuses every kind of weights, {STRUCTURES[-1].name} too: {refusal}") from refusal

    @cached_property
    def refuses_any_weights(self) -> str | None:
        """The reason why weights without structure are refused; None if they are not."""
        try:
            self._try(STRUCTURES[0])
        except UnsupportedWeights as error:
            return self.reason(error)
        return None

    def _try(self, structure: Structure) -> None:
        self.plan().prepare(self.send(structure.make(gaussian(self.rng("structure")), self.spec)))

    def weights(self, numbers: Numbers) -> NDArray[Any]:
        """Draw weights that the backend takes."""
        return self.laid_out(self.structure.make(numbers, self.spec))

    def draw(self, numbers: Numbers) -> Operands:
        """Fill the operands."""
        spec = self.spec
        x = self.laid_out(numbers(spec.input_shape, spec.dtype))
        bias = None if spec.bias_shape is None else numbers(spec.bias_shape, spec.dtype)
        return Operands(x, self.weights(numbers), bias)

    def laid_out(self, array: NDArray[Any]) -> NDArray[Any]:
        """Return ``array`` in the spec's order in memory; its shape stays."""
        if self.spec.layout == "channels_first" or array.ndim != 2 + self.spec.ndim:
            return array
        return np.moveaxis(np.ascontiguousarray(np.moveaxis(array, 1, -1)), -1, 1)

    def case(self, index: int = 0) -> Case:
        """Return Gaussian operands: new ones each, but for the weights, which come from few sets."""
        if index not in self._cases:
            fresh = self.draw(gaussian(self.rng(f"case {index}")))
            w = self.weights(gaussian(self.rng(f"weights {_WEIGHTS_OF_CASE[index]}")))
            operands = fresh._replace(w=w)
            self._cases[index] = Case(operands, Truth(self.spec, *operands), self.prepare(w))
        return self._cases[index]

    # -- running ------------------------------------------------------------------------------

    @property
    def strided(self) -> bool:
        """Whether the backend works on NumPy's arrays, which have strides and can be written anywhere."""
        return bool(self._namespace.name == "numpy")

    @cached_property
    def _namespace(self) -> Any:
        return getattr(self.backend, "ns", numpy_namespace)()

    def send(self, array: NDArray[Any] | None) -> Array | None:
        """Convert to the backend's kind of array."""
        return array if array is None or self.strided else self._namespace.from_host(array)

    def fetch(self, array: Array) -> NDArray[Any]:
        """Convert from the backend's kind of array."""
        return np.asarray(array) if self.strided else np.asarray(self._namespace.to_host(array))

    def prepare(self, w: NDArray[Any], threads: int = 1) -> Any:
        """Prepare a copy of the weights, so that a backend that overwrites them spoils its own run alone."""
        return self.plan(threads).prepare(self.send(w.copy(order="K")))

    def call(
        self, x: NDArray[Any], weights: Any, bias: NDArray[Any] | None, out: Any = None, threads: int = 1
    ) -> NDArray[Any]:
        """Run the plan on prepared weights and bring the result back."""
        return self.fetch(self.plan(threads)(self.send(x), weights, self.send(bias), out))

    def run(self, operands: Operands, threads: int = 1) -> NDArray[Any]:
        """Prepare and run on copies."""
        x, w, bias = (None if a is None else a.copy(order="K") for a in operands)
        assert x is not None
        assert w is not None
        return self.call(x, self.prepare(w, threads), bias, threads=threads)

    def run_case(self, index: int = 0) -> NDArray[Any]:
        """Run a case on copies."""
        case = self.case(index)
        bias = case.operands.bias
        return self.call(case.operands.x.copy(order="K"), case.weights, None if bias is None else bias.copy())

    def run_integers(self, x: NDArray[Any], w: NDArray[Any], bias: NDArray[Any] | None) -> NDArray[Any]:
        """Run on small integers; round where the algorithm is exact only after rounding."""
        y = self.run(Operands(x, w, bias))
        return y if self.bound.exact_on_integers else np.rint(y)

    # -- judging ------------------------------------------------------------------------------

    def judge(self, truth: Truth, y: NDArray[Any], when: str) -> str:
        """Fail if ``y`` is outside the backend's own bound, else say how near it came."""
        verdict = truth.judge(y, self.bound)
        if not verdict.ok:
            raise Failure(f"{when}: {verdict.message}")
        unit = "" if "int" in self.spec.dtype else " eps"
        return f"error {verdict.error_max_eps:.3g}{unit}, {verdict.bound_max_eps:.3g}{unit} allowed"

    def reason(self, error: Exception) -> str:
        """Return a refusal's text without the backend's name in front."""
        return str(error).removeprefix(f"{self.backend.name}: ")


#: A check raises Failure or Refusal, or returns a remark for the passed result.
CheckFunction = Callable[[Subject], str | None]


def require_equal(y: NDArray[Any], expected: NDArray[Any], when: str) -> None:
    """Fail unless two arrays of numbers are equal element by element (−0 equals 0, NaN equals NaN)."""
    if y.shape != expected.shape:
        raise Failure(f"{when}: expected shape {expected.shape}, got {y.shape}")
    differ = ~((y == expected) | (np.isnan(y) & np.isnan(expected)))
    if not differ.any():
        return
    error = np.abs(np.where(differ, y, 0) - np.where(differ, expected, 0))
    worst = np.unravel_index(int(np.argmax(np.where(differ & ~np.isfinite(error), np.inf, error))), error.shape)
    raise Failure(
        f"{when}: {int(differ.sum())} of {differ.size} elements differ; the worst is {index_text(worst)}: "
        f"expected {expected[worst]}, got {y[worst]}, error {error[worst]:.3g}"
    )


def index_text(index: Sequence[Any]) -> str:
    """Format an index."""
    return f"[{', '.join(map(str, index))}]"
