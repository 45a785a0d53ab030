"""The battery: what every backend must pass before its times are worth anything. Imports no pytest.

:func:`battery` makes the checks, one for each pair of a named rule and a spec; :func:`check_backend` runs them
all, and the test suite parametrises over the same ones. The rules stand in :data:`RULES`.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from convbench.backend import Backend
from convbench.checks.contract import CONTRACT
from convbench.checks.numerics import NUMERICS
from convbench.checks.properties import PROPERTIES
from convbench.checks.running import REFUSAL, Check, CheckResult, checks_of, rule_name
from convbench.checks.specs import EDGE_LINES, LARGE_LINES, random_spec
from convbench.checks.subject import Subject
from convbench.errors import SpecError
from convbench.registry import get_backend, protocol_problem
from convbench.spec import ConvSpec

__all__ = ["REFUSAL", "RULES", "Check", "CheckResult", "battery", "check_backend", "rule_name", "specs_to_try"]

#: Every rule that a willing backend is held to, and the specs it applies to.
RULES = (*CONTRACT, *NUMERICS, *PROPERTIES)

_EXAMPLE = ConvSpec(input_size=8, kernel_size=3)


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
    >>> results = check_backend("im2col", specs=[ConvSpec.parse("n2 c2 o3 i7x6 k3x2 p1")])
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
    to_try = specs_to_try(specs, seed) if isinstance(specs, int) else specs
    return checks_of(chosen, to_try, RULES, lambda spec: Subject(chosen, spec, seed), _EXAMPLE)


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
