"""The battery on every registered backend, plug-ins included: one test for each pair of a backend and a spec."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import cycle, groupby
from typing import Any

import numpy as np
import pytest

from convbench import reference
from convbench.backend import Backend
from convbench.backends._compiled import CompiledBackend
from convbench.checks import Check, battery, specs_to_try
from convbench.checks.specs import EDGE_LINES, LARGE_LINES, random_spec
from convbench.geometry import BOUNDARIES
from convbench.registry import all_backends, get_backend
from convbench.select import AUTO_ORDER
from convbench.spec import BIASES, DTYPES, LAYOUTS, OPS, ConvSpec

SPECS = 8  # random ones, beside those at the edges; `convbench check` runs more
#: The backends that `auto` chooses from and the compiled ones get all large specs, each other one every so manieth,
#: beginning with another one: NumPy takes longer for them than for all else.
EVERY = 3


def _specs() -> Iterator[tuple[Backend, list[ConvSpec]]]:
    large, all_specs = {str(ConvSpec.parse(line)) for line in LARGE_LINES}, specs_to_try(SPECS, 0)
    small = [spec for spec in all_specs if str(spec) not in large]
    parts = cycle([[spec for spec in all_specs if str(spec) in large][begin::EVERY] for begin in range(EVERY)])
    for backend in all_backends().values():
        whole = isinstance(backend, CompiledBackend) or backend.name in AUTO_ORDER
        yield backend, all_specs if whole else small + next(parts)


def _parameters() -> Iterator[Any]:
    for backend, specs in _specs():
        missing = backend.unavailable()
        marks = [pytest.mark.skip(reason=missing)] if missing else []
        for line, checks in groupby(battery(backend, specs=specs), key=lambda check: str(check.spec or "")):
            yield pytest.param(list(checks), id=f"{backend.name} {line}", marks=marks)


@pytest.mark.parametrize("checks", list(_parameters()))
def test_backend(checks: list[Check]) -> None:
    """All rules on one spec, which share its data and plans."""
    results = [check.run() for check in checks]
    checks.clear()  # and with them their data and plans: the parameters live as long as the session
    assert [result.message for result in results if result.status == "failed"] == []


def test_fixed_lines_are_specs_as_printed() -> None:
    for line in EDGE_LINES + LARGE_LINES:
        spec = ConvSpec.parse(line)
        assert ConvSpec.parse(str(spec)) == spec
    assert len({ConvSpec.parse(line) for line in EDGE_LINES + LARGE_LINES}) == len(EDGE_LINES + LARGE_LINES)
    assert all(ConvSpec.parse(line).macs > reference.MAX_MACS for line in LARGE_LINES)


def test_random_specs_reach_the_whole_family() -> None:
    rng = np.random.default_rng(1)
    drawn = [random_spec(rng, max_macs=5000) for _ in range(600)]
    assert max(spec.macs for spec in drawn) <= 5000
    reached = {
        "op": OPS,
        "bias": BIASES,
        "boundary": BOUNDARIES,
        "layout": LAYOUTS,
        "dtype": DTYPES,
        "flip": (True, False),
        "ndim": (1, 2, 3, 4),
        "padding_word": ("valid", "same", "full", None),
        "tile_word": ("unshared", None),
        "batch": (0, 1, 2, 3),
    }
    for field, values in reached.items():
        assert {getattr(spec, field) for spec in drawn} == set(values), field
    per_axis = ("input_size", "kernel_size", "stride", "dilation", "padding", "tile")
    for field in per_axis:
        assert any(len(set(getattr(spec, field) or ())) > 1 for spec in drawn), f"{field} is never unequal"
    assert any(a < 0 or b < 0 for spec in drawn for a, b in spec.padding)
    assert any(a != b for spec in drawn for a, b in spec.padding)
    assert any(1 < spec.groups == spec.in_channels < spec.out_channels for spec in drawn)
    assert any(1 < spec.groups < spec.in_channels for spec in drawn)


def test_common_specs_are_what_most_backends_take() -> None:
    rng = np.random.default_rng(2)
    drawn = [random_spec(rng, common=True) for _ in range(200)]
    assert {get_backend("im2col").why_not(spec) for spec in drawn} == {None}
