"""Generated kernels for every instruction set that this CPU has: 72 random specs for each, against the oracle.

Longer: ``CONVBENCH_JIT_TARGET=generic convbench check direct winograd im2col fft-tiled separable box --specs 500``.
"""

from __future__ import annotations

import numpy as np
import pytest

from convbench import ConvSpec, registry
from convbench.checks import Subject, checks_of, rule_name
from convbench.checks.numerics import NUMERICS
from convbench.checks.specs import random_spec
from convbench.refusals import FLOATS

pytest.importorskip("llvmlite.binding")

from convbench.jit.target import VARIABLE, targets

BACKENDS = ("direct", "winograd", "im2col", "fft-tiled", "separable", "box")
SPECS = 12  # of each backend
RULES = [entry for entry in NUMERICS if rule_name(entry[0]) == "gaussian-errors-are-within-the-bound"]


def drawn(name: str, seed: int) -> list[ConvSpec]:
    """Return random specs of floating-point numbers that a backend takes, gradients and tiles among them."""
    backend, rng = registry.get_backend(name), np.random.default_rng(seed)
    found: dict[str, ConvSpec] = {}
    while len(found) < SPECS:
        spec = random_spec(rng, common=len(found) % 2 == 0).replace(dtype=FLOATS[len(found) % 2])
        if 0 not in spec.result_shape and backend.why_not(spec) is None:
            found[str(spec)] = spec
    return list(found.values())


@pytest.mark.parametrize("name", BACKENDS)
@pytest.mark.parametrize("target", ["avx512", "avx2", "neon", "generic"])
def test_every_target_is_right(target: str, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    if target not in targets():
        pytest.skip("not of this CPU")
    monkeypatch.setenv(VARIABLE, target)
    backend = registry.get_backend(name)
    assert target in backend.implementation
    specs = drawn(name, seed=sum(map(ord, target + name)))
    checks = checks_of(backend, specs, RULES, lambda spec: Subject(backend, spec, 0), specs[0])
    results = [check.run() for check in checks]
    assert sum(result.status == "passed" for result in results) > 0
    assert [f"{result.spec}: {result.message}" for result in results if result.status == "failed"] == []
