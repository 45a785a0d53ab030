"""The battery: what every backend must pass before its times are worth anything. Imports no pytest.

:func:`battery` makes the checks, one for each pair of a named rule and a spec; :func:`check_backend` runs them
all, and the test suite parametrises over the same ones. The rules stand in :data:`RULES`.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from traceback import extract_tb
from typing import Any

import numpy as np

from convbench.backend import Backend
from convbench.checks.contract import CONTRACT
from convbench.checks.numerics import NUMERICS
from convbench.checks.properties import PROPERTIES
from convbench.checks.specs import EDGE_LINES, LARGE_LINES, random_spec
from convbench.checks.subject import CheckFunction, Failure, Refusal, Subject
from convbench.errors import BackendUnavailable, SpecError, UnsupportedSpec, UnsupportedWeights, one_line
from convbench.refusals import TOPICS
from convbench.registry import get_backend, protocol_problem
from convbench.spec import ConvSpec

__all__ = ["REFUSAL", "RULES", "Check", "CheckResult", "battery", "check_backend", "specs_to_try"]

#: Every rule that a willing backend is held to, and the specs it applies to.
RULES = (*CONTRACT, *NUMERICS, *PROPERTIES)

#: The rule for a spec that a backend does not take: one check, whose message is the reason.
REFUSAL = "refusal-agrees-with-plan"


@dataclass(frozen=True)
class CheckResult:
    """What came of one check.

    Attributes
    ----------
    check : str
        The rule's name, such as ``small-integers-are-exact``.
    spec : ConvSpec or None
        None where the check is about the backend as a whole.
    status : {"passed", "failed", "refused"}
        Refused: the backend says no, in due form, to the spec, to a spec derived from it or to the weights.
    message : str
        If failed: backend, spec line, rule, what was expected and the size of the error. If refused: the reason.
        If passed: a remark or nothing.
    """

    check: str
    spec: ConvSpec | None
    status: str
    message: str


@dataclass(frozen=True)
class Check:
    """One rule on one spec of one backend, ready to run."""

    name: str
    backend: str
    spec: ConvSpec | None
    _function: Callable[[], str | None]

    @property
    def id(self) -> str:
        """Backend, rule and spec line: the same in every run with the same seed."""
        return " ".join(filter(None, (self.backend, self.name, str(self.spec or ""))))

    def run(self) -> CheckResult:
        """Return the result; whatever the backend raises becomes part of it."""
        status, message = "passed", ""
        try:
            with np.errstate(all="ignore"), warnings.catch_warnings():
                warnings.simplefilter("ignore", RuntimeWarning)
                message = self._function() or ""
        except Refusal as refusal:
            status, message = "refused", str(refusal)
        except UnsupportedWeights as error:
            status, message = self._judge_refusal_of_weights(error)
        except Failure as failure:
            status, message = "failed", str(failure)
        except (Exception, SystemExit) as error:  # a strange backend may raise anything; the battery goes on
            where = extract_tb(error.__traceback__)[-1]
            place = f"{where.filename.rpartition('/')[2]}:{where.lineno}"
            status, message = "failed", f"raised {type(error).__name__}: {one_line(error)} ({place})"
        if status == "failed":
            message = ": ".join(filter(None, (self.backend, str(self.spec or ""), self.name, message)))
        return CheckResult(self.name, self.spec, status, message)

    def _judge_refusal_of_weights(self, error: UnsupportedWeights) -> tuple[str, str]:
        reason = str(error).removeprefix(f"{self.backend}: ")
        if reason.startswith("weights: "):
            return "refused", reason
        return "failed", f'UnsupportedWeights must give a reason "weights: …", got {reason!r}'


def check_backend(backend: Backend | str, *, specs: int | Sequence[ConvSpec] = 60, seed: int = 0) -> list[CheckResult]:
    """Run the whole battery on a backend.

    Parameters
    ----------
    backend : Backend or str
        Any object that follows the protocol, registered or not, or a registered name.
    specs : int or sequence of ConvSpec
        Random specs, no two alike and the same for every backend, beside the fixed ones at the edges and the larger
        ones. Half of them are of the whole family, half are what most backends take. Or else all specs to try.
    seed : int
        Of the random specs and of all data.

    Returns
    -------
    list of CheckResult
        One for each pair of a rule and a spec, failures included; it never raises for them.

    Raises
    ------
    SpecError
        If ``backend`` is no backend, ``specs`` neither specs nor an integer in range, or ``seed`` no such integer.
    UnknownBackend
        If no backend of that name is registered.

    Examples
    --------
    >>> results = check_backend("im2col", specs=1)
    >>> [result.message for result in results if result.status == "failed"]
    []
    """
    return [check.run() for check in battery(backend, specs=specs, seed=seed)]


def battery(backend: Backend | str, *, specs: int | Sequence[ConvSpec] = 60, seed: int = 0) -> Iterator[Check]:
    """Return the checks that :func:`check_backend` runs, in its order; parameters and errors as there.

    Only ``why_not`` is called before the checks are run.
    """
    chosen = get_backend(backend) if isinstance(backend, str) else backend
    problem = protocol_problem(chosen)
    if problem:
        raise SpecError("backend", chosen, f"must follow convbench.Backend: {problem}")
    given = isinstance(specs, Sequence) and len(specs) > 0 and all(isinstance(spec, ConvSpec) for spec in specs)
    options: tuple[tuple[str, Any, int, str], ...] = (
        ("specs", specs, 1, " or the specs to try"),
        ("seed", seed, 0, ""),
    )
    for name, value, least, otherwise in options[given:]:
        if isinstance(value, bool) or not isinstance(value, int) or value < least:
            raise SpecError(name, value, f"must be an integer ≥ {least}{otherwise}")
    return _battery(chosen, specs_to_try(specs, seed) if isinstance(specs, int) else specs, seed)


def _battery(backend: Backend, to_try: Sequence[ConvSpec], seed: int) -> Iterator[Check]:
    if not _says_none(backend.unavailable):
        yield Check("availability-agrees-with-plan", backend.name, None, partial(_unavailable_agrees, backend))
        return
    taken = 0
    for spec in to_try:
        if not _says_none(partial(backend.why_not, spec)):
            yield Check(REFUSAL, backend.name, spec, partial(_refusal_agrees, backend, spec))
            continue
        taken += 1
        subject = Subject(backend, spec, seed)
        for rule, applies in RULES:
            if applies(spec):
                yield Check(rule_name(rule), backend.name, spec, partial(rule, subject))
    if not taken:
        yield Check("takes-some-spec", backend.name, None, partial(_takes_nothing, len(to_try)))


def rule_name(rule: CheckFunction) -> str:
    """Return the name of a rule: its function's, with hyphens."""
    return rule.__name__.replace("_", "-")


def specs_to_try(count: int, seed: int) -> list[ConvSpec]:
    """Return what every backend is asked: the fixed specs, then ``count`` random ones, no two alike.

    Every other random one stays within what most backends take; the rest are of the whole family.
    """
    specs = {str(spec): spec for spec in map(ConvSpec.parse, EDGE_LINES + LARGE_LINES)}
    rng, wanted = np.random.default_rng(seed), len(specs) + count
    while len(specs) < wanted:
        spec = random_spec(rng, common=len(specs) % 2 == 0)
        specs.setdefault(str(spec), spec)
    return list(specs.values())


def _says_none(question: Callable[[], str | None]) -> bool:
    """Is the answer None? An exception is no: the check that follows asks again and reports it."""
    try:
        return question() is None
    except (Exception, SystemExit):
        return False


def _unavailable_agrees(backend: Backend) -> None:
    reason, spec = backend.unavailable(), ConvSpec(input_size=8, kernel_size=3)
    if reason is None:
        raise Failure("unavailable() said no, then None")
    if backend.why_not(spec) is None:
        raise Failure(f"unavailable() says {reason!r}, yet why_not({spec}) is None")
    try:
        backend.plan(spec)
    except BackendUnavailable:
        raise Refusal(reason) from None
    raise Failure(f"unavailable() says {reason!r}, yet plan does not raise BackendUnavailable")


def _refusal_agrees(backend: Backend, spec: ConvSpec) -> None:
    reason = backend.why_not(spec) or ""
    topic, colon, sentence = reason.partition(": ")
    if topic not in TOPICS or not colon or not sentence:
        raise Failure(f"the reason must be one of {', '.join(TOPICS)}, a colon and a sentence, got {reason!r}")
    try:
        backend.plan(spec)
    except (UnsupportedSpec, BackendUnavailable) as error:
        if reason in str(error):
            raise Refusal(reason) from None
        raise Failure(f"why_not gives {reason!r}, plan another reason: {error}") from None
    raise Failure(f"why_not gives {reason!r}, yet plan does not raise UnsupportedSpec")


def _takes_nothing(tried: int) -> None:
    raise Refusal(f"none of the {tried} specs tried is taken: nothing is proved")
