"""What property tests draw from: any valid spec, shrunk and named by its line when a property fails."""

from __future__ import annotations

import pytest
from hypothesis import find, given, settings
from strategies import specs

from convbench.geometry import BOUNDARIES
from convbench.spec import BIASES, LAYOUTS, OPS, ConvSpec


def test_a_failure_names_the_smallest_spec_in_one_line() -> None:
    @settings(database=None, derandomize=True)
    @given(specs())
    def no_stride_is_ever_drawn(spec: ConvSpec) -> None:
        assert set(spec.stride) == {1}

    with pytest.raises(AssertionError) as failure:
        no_stride_is_ever_drawn()
    lines = [note.removeprefix("spec: ") for note in failure.value.__notes__ if note.startswith("spec: ")]
    assert lines == ["n1 c1 o1 i1 k1 s2 f16"]


@pytest.mark.parametrize(
    ("field", "values"),
    [("op", OPS), ("boundary", BOUNDARIES), ("bias", BIASES), ("layout", LAYOUTS), ("tile_word", (None, "unshared")),
     ("padding_word", (None, "valid", "same", "full")), ("flip", (False, True)), ("batch", (0, 1, 2)),
     ("ndim", (1, 2, 3)), ("groups", (1, 2, 3))],
)  # fmt: skip
def test_every_member_of_the_family_is_drawn(field: str, values: tuple[object, ...]) -> None:
    for value in values:
        drawn = find(specs(), lambda spec, value=value: getattr(spec, field) == value, settings=settings(database=None))
        assert getattr(drawn, field) == value
