"""The battery bites: every planted fault is caught by the rules that are there for it."""

from __future__ import annotations

import pytest
from faults import FAULTS, RIGHT, Faulty, Harmless

from convbench.algorithms import blocking
from convbench.backend import Backend
from convbench.checks import RULES, CheckResult, battery, check_backend, rule_name
from convbench.checks.specs import LARGE_LINES
from convbench.errors import SpecError, UnknownBackend
from convbench.registry import BrokenBackend, get_backend
from convbench.spec import ConvSpec


def first_failure(backend: Backend, rule: str, specs: int = 4) -> CheckResult | None:
    """Run one rule of the battery up to its first failure."""
    results = (check.run() for check in battery(backend, specs=specs) if check.name == rule)
    return next((result for result in results if result.status == "failed"), None)


@pytest.mark.parametrize("inner", [RIGHT, "im2col"], ids=["oracle", "im2col"])
def test_harmless_wrapper_passes(inner):
    backend = get_backend(inner) if isinstance(inner, str) else inner
    results = check_backend(Faulty(backend, Harmless), specs=10)
    assert [result.message for result in results if result.status == "failed"] == []
    assert {rule_name(rule) for rule, _ in RULES} <= {result.check for result in results if result.status == "passed"}


@pytest.mark.parametrize(
    ("fault", "rule"),
    [(fault, rule) for fault in FAULTS for rule in fault.caught_by],
    ids=lambda value: getattr(value, "__name__", value),
)
def test_fault_is_caught(fault, rule):
    result = first_failure(Faulty(RIGHT, fault), rule)
    assert result is not None, f"{rule} lets {fault.__name__} pass"
    assert result.message.startswith(f"right+{fault.__name__}: {result.spec}: {rule}: ")
    assert ConvSpec.parse(str(result.spec)) == result.spec


@pytest.mark.parametrize("name", ["HoardsWhenPreparing", "OverstatesWhatItKeeps"])
def test_only_the_rule_on_prepared_weights_sees_what_preparing_keeps(name):
    fault = next(fault for fault in FAULTS if fault.__name__ == name)
    specs = [ConvSpec.parse("n2 c2 o3 i9x8 k3 p1 f32"), ConvSpec.parse("op=input_grad i12 k4 s2 f64")]
    results = check_backend(Faulty(RIGHT, fault), specs=specs)
    assert {result.check for result in results if result.status == "failed"} == set(fault.caught_by)


@pytest.mark.parametrize(
    "name",
    [
        "FlippedKernel",
        "PadOffByOne",
        "AxesSwapped",
        "BiasDropped",
        "GroupOrder",
        "WrongLastRow",
        "Zeros",
        "StaleOutput",
        "WrongOnFifthCall",
        "Float32InsideFloat64",
        "ReducedPrecision",
        "InputOverwritten",
        "ContiguousOnly",
    ],
)
def test_message_gives_the_size_of_the_error(name):
    fault = next(fault for fault in FAULTS if fault.__name__ == name)
    result = first_failure(Faulty(RIGHT, fault), fault.caught_by[0])
    assert result is not None
    assert float(result.message.split("error ")[-1].split()[0]) > 0


@pytest.mark.parametrize("name", ["direct-numpy", "im2col"])
@pytest.mark.parametrize("op", ["input_grad", "weight_grad"])
def test_phase_of_later_blocks_is_caught_in_gradients(monkeypatch, name, op):
    """Tiles that begin anew in each block are right in the first one: the larger specs must have several."""
    cut = blocking._cut
    monkeypatch.setattr(blocking, "_cut", lambda first, outputs, period: cut(0, outputs, period))
    tiled = [spec for spec in map(ConvSpec.parse, LARGE_LINES) if spec.op == op and spec.tile]
    failed = {result.check for result in check_backend(name, specs=tiled) if result.status == "failed"}
    assert {"small-integers-are-exact", "gaussian-errors-are-within-the-bound"} <= failed


def test_every_rule_catches_a_fault():
    assert {rule_name(rule) for rule, _ in RULES} <= {rule for fault in FAULTS for rule in fault.caught_by}


def test_same_checks_every_time():
    first, second = ([check.id for check in battery(RIGHT, specs=3, seed=5)] for _ in range(2))
    assert first == second
    assert len(set(first)) == len(first)


def test_unavailable_backend_is_refused():
    results = check_backend(BrokenBackend("broken", "not installed: needs luck"))
    assert [(r.status, r.message) for r in results] == [("refused", "not installed: needs luck")]


def test_backend_that_takes_nothing_is_refused():
    from dataclasses import replace

    from convbench.refusals import Limits, refuse

    picky = replace(RIGHT, limits=Limits(also=lambda spec: refuse("kernel size", "never right")))
    results = check_backend(picky, specs=1)
    assert {r.status for r in results} == {"refused"}
    assert results[-1].check == "takes-some-spec"


@pytest.mark.parametrize("options", [{"specs": 0}, {"specs": "many"}, {"specs": []}, {"seed": -1}, {"specs": True}])
def test_bad_options(options):
    with pytest.raises(SpecError, match=f"{next(iter(options))}.*must be an integer"):
        check_backend("im2col", **options)


def test_specs_may_be_given():
    specs = [ConvSpec.parse("i9 k3 f32"), ConvSpec.parse("op=weight_grad i8x7 k3x2 t2 f64")]
    results = check_backend("im2col", specs=specs)
    assert {result.spec for result in results} == set(specs)
    assert {result.status for result in results} <= {"passed", "refused"}


def test_no_backend():
    with pytest.raises(SpecError, match=r"must follow convbench\.Backend: it has no name"):
        check_backend(42)
    with pytest.raises(UnknownBackend, match="did you mean im2col"):
        check_backend("im2cool")
