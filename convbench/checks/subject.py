"""What a check works on: one backend, one spec, and what the checks of both share."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from hashlib import blake2b
from math import prod
from typing import Any, NamedTuple
from zlib import crc32

import numpy as np
from numpy.random import Generator
from numpy.typing import NDArray

from convbench.arrays import Array, numpy_namespace
from convbench.backend import Backend, Plan, second_operand
from convbench.bounds import ErrorBound
from convbench.checks.specs import STRUCTURES, Numbers, Structure, gaussian
from convbench.errors import UnsupportedWeights
from convbench.memory import Memory, measure_memory
from convbench.oracle import Truth
from convbench.refusals import human_bytes, memory
from convbench.spec import ConvSpec

__all__ = ["Case", "CheckFunction", "Failure", "Operands", "Refusal", "Subject", "require_equal"]

#: Which second operand the calls of the cases 0, 1, 2, … use: old ones come back after new ones.
_SECOND_OF_CASE = (0, 0, 1, 0, 1, 2, 0)
_MOST_BYTES = 256 * 2**20  # of prepared weights and workspace; several batteries may run side by side


class Failure(Exception):
    """A check's complaint: what was expected, what came, how far off it is."""


class Refusal(Exception):
    """A check cannot be made because the backend says no, with its reason."""


class Operands(NamedTuple):
    """Host arrays of a spec's shapes, in the order of ``spec.operand_names``."""

    first: NDArray[Any]
    second: NDArray[Any]
    bias: NDArray[Any] | None

    def copies(self) -> Operands:
        """Copy every array, its order in memory kept."""
        return Operands(*(None if a is None else a.copy(order="K") for a in self))  # type: ignore[arg-type]


@dataclass(frozen=True)
class Case:
    """Operands and the truth about them, the second also as the backend's plan takes it."""

    operands: Operands
    truth: Truth
    second: Any


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
        self._memory: dict[int, Memory] = {}
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
        if "w" not in self.spec.operand_names:
            return STRUCTURES[0]
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

    def operand(self, name: str, numbers: Numbers) -> NDArray[Any]:
        """Draw one operand: weights that the backend takes, x and g in the spec's order in memory."""
        spec = self.spec
        if name == "w":
            return self.structure.make(numbers, spec)
        return self.laid_out(numbers(spec.input_shape if name == "x" else spec.output_shape, spec.dtype))

    def draw(self, numbers: Numbers, second: Numbers | None = None) -> Operands:
        """Fill the operands, the second from numbers of its own if given."""
        names, bias_shape = self.spec.operand_names, self.spec.bias_shape
        first = self.operand(names[0], numbers)
        bias = None if bias_shape is None else numbers(bias_shape, self.spec.dtype)
        return Operands(first, self.operand(names[1], second or numbers), bias)

    def laid_out(self, array: NDArray[Any]) -> NDArray[Any]:
        """Return x or g in the spec's order in memory; its shape stays."""
        if self.spec.layout == "channels_first":
            return array
        return np.moveaxis(np.ascontiguousarray(np.moveaxis(array, 1, -1)), -1, 1)

    def case(self, index: int = 0) -> Case:
        """Return Gaussian operands: new ones each, but for the second, which comes from few sets."""
        if index not in self._cases:
            second = gaussian(self.rng(f"second {_SECOND_OF_CASE[index]}"))
            operands = self.draw(gaussian(self.rng(f"case {index}")), second)
            self._cases[index] = Case(operands, self.truth(operands), self.prepare(operands.second))
        return self._cases[index]

    def truth(self, operands: Operands) -> Truth:
        """Return the truth about operands; backends that are asked the same share it."""
        return _TRUTHS.of(self.spec, operands)

    # -- running ------------------------------------------------------------------------------

    @property
    def strided(self) -> bool:
        """Whether the backend's arrays have strides and can be written anywhere."""
        return self._namespace.mirror is not None

    @property
    def on_host(self) -> bool:
        """Whether the backend works on NumPy's arrays themselves."""
        return bool(self._namespace.name == "numpy")

    @cached_property
    def _namespace(self) -> Any:
        return getattr(self.backend, "ns", numpy_namespace)()

    def send(self, array: NDArray[Any] | None) -> Array | None:
        """Convert to the backend's kind of array."""
        return None if array is None else self.send_within(array, array)[1]

    def send_within(self, base: NDArray[Any], view: NDArray[Any]) -> tuple[Array, Array]:
        """Convert an array and a view of it, with their strides where the backend's kind of array has any."""
        ns = self._namespace
        return ns.mirror(base, view) if ns.mirror else (ns.from_host(base), ns.from_host(view))

    def fetch(self, array: Array) -> NDArray[Any]:
        """Convert from the backend's kind of array."""
        return np.asarray(self._namespace.to_host(array))

    def prepare(self, second: NDArray[Any], threads: int = 1) -> Any:
        """Make the second operand what the plan takes: from a copy, so that a backend spoils its own run alone."""
        return second_operand(self.plan(threads), self.send(second.copy(order="K")))

    def call(
        self, first: NDArray[Any], second: Any, bias: NDArray[Any] | None, out: Any = None, threads: int = 1
    ) -> NDArray[Any]:
        """Run the plan on an operand that :meth:`prepare` made and bring the result back."""
        return self.fetch(self.plan(threads)(self.send(first), second, self.send(bias), out))

    def run(self, operands: Operands, threads: int = 1) -> NDArray[Any]:
        """Prepare and run on copies."""
        first, second, bias = operands.copies()
        return self.call(first, self.prepare(second, threads), bias, threads=threads)

    def run_case(self, index: int = 0) -> NDArray[Any]:
        """Run a case on copies."""
        case = self.case(index)
        first, _, bias = case.operands.copies()
        return self.call(first, case.second, bias)

    def memory(self, threads: int = 1, *, again: bool = False) -> Memory:
        """Return what planning, preparing and running the first case takes, measured once for all checks."""
        if again or threads not in self._memory:
            operands = self.case().operands.copies()
            self._memory[threads] = measure_memory(self.backend, self.spec, *operands, threads=threads)
        return self._memory[threads]

    def run_integers(self, first: NDArray[Any], second: NDArray[Any], bias: NDArray[Any] | None) -> NDArray[Any]:
        """Run on small integers; round where the algorithm is exact only after rounding."""
        y = self.run(Operands(first, second, bias))
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


class _Truths:
    """The truths of late: all backends are asked the same, and a truth may cost more than what it judges."""

    def __init__(self, most_elements: int) -> None:
        self._most, self._kept = most_elements, 0
        self._truths: OrderedDict[tuple[str, bytes], Truth] = OrderedDict()

    def of(self, spec: ConvSpec, operands: Operands) -> Truth:
        digest = blake2b()
        for array in operands:
            digest.update(b"none" if array is None else array.tobytes())
        key = (str(spec), digest.digest())
        if key not in self._truths:
            self._truths[key] = Truth(spec, *operands)
            self._kept += _elements(spec)
        self._truths.move_to_end(key)
        truth = self._truths[key]
        while self._kept > self._most:
            _, oldest = self._truths.popitem(last=False)
            self._kept -= _elements(oldest.spec)
        return truth


def _elements(spec: ConvSpec) -> int:
    """What a truth holds: the operands, the result and its scale."""
    return sum(map(prod, spec.operand_shapes)) + 2 * prod(spec.result_shape)


_TRUTHS = _Truths(2**24)  # elements: those of all fixed specs and of some hundred random ones


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
