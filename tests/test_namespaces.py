"""Every array algorithm on another library than NumPy: array-api-strict refuses what is not in the standard."""

from __future__ import annotations

from dataclasses import replace
from itertools import combinations, product
from math import prod

import numpy as np
import pytest

from convbench import AlgorithmBackend, ConvSpec, all_backends
from convbench.arrays import standard_namespace
from convbench.backends._compiled import CompiledBackend
from convbench.checks import REFUSAL, battery, rule_name
from convbench.checks.numerics import NUMERICS
from convbench.checks.specs import EDGE_LINES, random_spec
from convbench.geometry import BOUNDARIES
from convbench.spec import OPS

#: It has no loops of its own kind to hide in: windows are copied tap by tap, so large specs would take minutes.
MOST_MACS = 1_200
#: Of a tile: an algorithm for shared weights does a convolution, or several, for each.
MOST_KERNELS = 6
#: Each algorithm is tried on every so manieth of the fixed specs, beginning with another one.
EVERY = 6
#: How a spec's weights are shared.
SHARING = ("all", "tiled", "none")
#: Algorithms that are bound to one library, and why.
NUMPY_ONLY = {"matrix-sparse": "scipy.sparse takes NumPy's arrays only", "im2col": "compiled, else im2col-numpy"} | {
    name: "generated kernels read NumPy's memory"
    for name, backend in all_backends().items()
    if isinstance(backend, CompiledBackend)
}
#: What depends on the library: results, and what is refused. The contract of plans is held to with NumPy.
RULES = {REFUSAL, *(rule_name(rule) for rule, _ in NUMERICS), "out-is-honoured", "gradients-are-the-adjoint"}
#: Names that differ from another in what the test replaces.
SAME = {"fft-pocketfft": "fft with another library's transforms"}

ALGORITHMS = [
    name
    for name, backend in all_backends().items()
    if isinstance(backend, AlgorithmBackend) and backend.device == "cpu"  # those of the GPU: test_cuda_arrays.py
]
ON_STRICT = [name for name in ALGORITHMS if name not in {**NUMPY_ONLY, **SAME}]


def specs_for(number: int) -> list[ConvSpec]:
    """Return the specs for the algorithm of that number: some fixed ones, and random ones of twelve kinds.

    The kinds are a Latin square of operation, boundary and sharing: any two of the three meet in every combination,
    and three algorithms that follow each other see all combinations of the three.
    """
    fixed = [spec for spec in map(ConvSpec.parse, EDGE_LINES) if _on_strict(spec)][number % EVERY :: EVERY]
    rng = np.random.default_rng(number)
    square = product(enumerate(OPS), enumerate(BOUNDARIES))
    return [*fixed, *(_random(rng, op, boundary, SHARING[(i + j + number) % 3]) for (i, op), (j, boundary) in square)]


def _random(rng: np.random.Generator, op: str, boundary: str, sharing: str) -> ConvSpec:
    """Draw a small spec of one kind."""
    while True:
        spec = random_spec(rng, max_macs=MOST_MACS // 4, common=True)
        tile = {"all": None, "tiled": rng.integers(1, 3, spec.ndim).tolist(), "none": "unshared"}[sharing]
        spec = spec.replace(op=op, boundary=boundary, tile=tile)
        if spec.batch and prod(spec.tile or ()) <= MOST_KERNELS:
            return spec


def _on_strict(spec: ConvSpec) -> bool:
    return spec.dtype in ("float32", "float64") and spec.ndim <= 3 and spec.macs <= MOST_MACS


def _kind(spec: ConvSpec) -> tuple[str, str, str]:
    sharing = "all" if spec.tile is None else "none" if spec.tile_word == "unshared" else "tiled"
    return spec.op, spec.boundary, sharing


@pytest.mark.parametrize("name", ON_STRICT)
def test_algorithm_passes_the_battery_on_array_api_strict(name: str) -> None:
    xp = pytest.importorskip("array_api_strict")
    bound = all_backends()[name]
    assert isinstance(bound, AlgorithmBackend)
    limits = replace(bound.limits, dtypes=("float32", "float64"))
    backend = replace(bound, ns=lambda: standard_namespace(xp), limits=limits)
    checks = battery(backend, specs=specs_for(ON_STRICT.index(name)), seed=5)
    results = [check.run() for check in checks if check.name in RULES]
    assert [r.message for r in results if r.status == "failed"] == []
    assert sum(r.status == "passed" for r in results) > 30


def test_all_kinds_and_fixed_specs_are_tried() -> None:
    tried = [specs_for(number) for number in range(EVERY)]
    kinds = [{_kind(spec) for spec in specs} for specs in tried]
    everything = set(product(OPS, BOUNDARIES, SHARING))
    for a, b in combinations(range(3), 2):
        assert {(kind[a], kind[b]) for kind in kinds[0]} >= {(kind[a], kind[b]) for kind in everything}
    assert kinds[0] | kinds[1] | kinds[2] >= everything
    assert set(filter(_on_strict, map(ConvSpec.parse, EDGE_LINES))) <= {spec for specs in tried for spec in specs}


def test_only_known_algorithms_are_bound_to_numpy() -> None:
    assert set(NUMPY_ONLY) <= set(ALGORITHMS)
    assert len(ALGORITHMS) - len(NUMPY_ONLY) >= 10
