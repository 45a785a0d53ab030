"""What every battery shares, whatever its specs: a check is run, its outcome told, and a refusal held to its word."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from traceback import extract_tb
from typing import TYPE_CHECKING, Any

import numpy as np

from convbench.checks.subject import Failure, Refusal
from convbench.errors import BackendUnavailable, UnsupportedSpec, UnsupportedWeights, one_line
from convbench.refusals import TOPICS

if TYPE_CHECKING:
    from convbench.pooling.spec import PoolSpec
    from convbench.spec import ConvSpec

__all__ = ["REFUSAL", "Check", "CheckResult", "checks_of", "rule_name"]

#: The rule for a spec that a backend does not take: one check, whose message is the reason.
REFUSAL = "refusal-agrees-with-plan"


@dataclass(frozen=True)
class CheckResult:
    """What came of one check.

    Attributes
    ----------
    check : str
        The rule's name, such as ``small-integers-are-exact``.
    spec : ConvSpec, PoolSpec or None
        None where the check is about the backend as a whole.
    status : {"passed", "failed", "refused"}
        Refused: the backend says no, in due form, to the spec, to a spec derived from it or to the weights.
    message : str
        If failed: backend, spec line, rule, what was expected and the size of the error. If refused: the reason.
        If passed: a remark or nothing.
    """

    check: str
    spec: ConvSpec | PoolSpec | None
    status: str
    message: str


@dataclass(frozen=True)
class Check:
    """One rule on one spec of one backend, ready to run."""

    name: str
    backend: str
    spec: ConvSpec | PoolSpec | None
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


def checks_of(
    backend: Any,
    to_try: Iterable[Any],
    rules: Sequence[tuple[Callable[[Any], str | None], Callable[[Any], bool]]],
    subject: Callable[[Any], Any],
    example: ConvSpec | PoolSpec,
) -> Iterator[Check]:
    """Return the checks of a battery: all rules on each spec that is taken, one on each that is refused.

    Parameters
    ----------
    backend : Backend or PoolBackend
        Only ``unavailable`` and ``why_not`` are called before the checks are run.
    to_try : iterable of specs
    rules : sequence of pairs
        Each rule, and which specs it applies to.
    subject : callable
        ``subject(spec)`` returns what the rules on a spec are given.
    example : spec
        Any: it is asked of a backend that is not available.
    """
    if not _says_none(backend.unavailable):
        function = partial(_unavailable_agrees, backend, example)
        yield Check("availability-agrees-with-plan", backend.name, None, function)
        return
    taken = refused = 0
    for spec in to_try:
        if not _says_none(partial(backend.why_not, spec)):
            refused += 1
            yield Check(REFUSAL, backend.name, spec, partial(_refusal_agrees, backend, spec))
            continue
        taken += 1
        shared = subject(spec)
        for rule, applies in rules:
            if applies(spec):
                yield Check(rule_name(rule), backend.name, spec, partial(rule, shared))
    if not taken:
        yield Check("takes-some-spec", backend.name, None, partial(_takes_nothing, refused))


def rule_name(rule: Callable[..., Any]) -> str:
    """Return the name of a rule: its function's, with hyphens."""
    return rule.__name__.replace("_", "-")


def _says_none(question: Callable[[], str | None]) -> bool:
    """Is the answer None? An exception is no: the check that follows asks again and reports it."""
    try:
        return question() is None
    except (Exception, SystemExit):
        return False


def _unavailable_agrees(backend: Any, spec: ConvSpec | PoolSpec) -> None:
    reason = backend.unavailable()
    if reason is None:
        raise Failure("unavailable() said no, then None")
    if backend.why_not(spec) is None:
        raise Failure(f"unavailable() says {reason!r}, yet why_not({spec}) is None")
    try:
        backend.plan(spec)
    except BackendUnavailable:
        raise Refusal(reason) from None
    raise Failure(f"unavailable() says {reason!r}, yet plan does not raise BackendUnavailable")


def _refusal_agrees(backend: Any, spec: ConvSpec | PoolSpec) -> None:
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
