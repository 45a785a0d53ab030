"""Every array algorithm on another library than NumPy: array-api-strict refuses what is not in the standard."""

from __future__ import annotations

from dataclasses import replace

import pytest

from convbench import AlgorithmBackend, ConvSpec, all_backends, check_backend
from convbench.arrays import standard_namespace
from convbench.refusals import work

#: It has no loops of its own kind to hide in: windows are copied tap by tap, so large specs would take minutes.
MOST_MACS = 2_000
#: Algorithms that are bound to one library, and why.
NUMPY_ONLY = {"matrix-sparse": "scipy.sparse takes NumPy's arrays only"}
#: Names that differ from another in what the test replaces.
SAME = {"fft-pocketfft": "fft with another library's transforms"}

ALGORITHMS = [name for name, backend in all_backends().items() if isinstance(backend, AlgorithmBackend)]


@pytest.mark.parametrize("name", [name for name in ALGORITHMS if name not in {**NUMPY_ONLY, **SAME}])
def test_algorithm_passes_the_battery_on_array_api_strict(name: str) -> None:
    xp = pytest.importorskip("array_api_strict")
    bound = all_backends()[name]
    assert isinstance(bound, AlgorithmBackend)

    def also(spec: ConvSpec) -> str | None:
        return work(spec.macs, MOST_MACS) or (bound.limits.also(spec) if bound.limits.also else None)

    limits = replace(bound.limits, dtypes=("float32", "float64"), axes=(1, 2, 3), also=also)
    backend = replace(bound, ns=lambda: standard_namespace(xp), limits=limits)
    results = check_backend(backend, specs=6, seed=5)
    assert [r.message for r in results if r.status == "failed"] == []
    assert sum(r.status == "passed" for r in results) > 300


def test_only_known_algorithms_are_bound_to_numpy() -> None:
    assert set(NUMPY_ONLY) <= set(ALGORITHMS)
    assert len(ALGORITHMS) - len(NUMPY_ONLY) >= 10
