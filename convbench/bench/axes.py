"""An axis of a search: a field of a spec, and the values that it may take."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from convbench.bench.cases import Case
from convbench.errors import SpecError
from convbench.spec import ConvSpec

__all__ = ["AXES", "Axis", "axis_of", "axis_pair", "base_case", "between", "case_with", "spread"]

#: What may vary → the fields of the spec that it sets, the range it takes unless told otherwise, and the binary digits
#: of its values: of 4 are 16, 18, 20, … 30, 32, 36, …, an eighth of an octave at most. Kernel sizes differ more finely.
AXES: dict[str, tuple[tuple[str, ...], tuple[int, int], int]] = {
    "kernel_size": (("kernel_size",), (3, 31), 7),
    "input_size": (("input_size",), (16, 1024), 4),
    "in_channels": (("in_channels",), (1, 512), 4),
    "out_channels": (("out_channels",), (1, 512), 4),
    "channels": (("in_channels", "out_channels"), (1, 512), 4),
    "batch": (("batch",), (1, 64), 4),
}
_MOST = 10**6
_RANGE = re.compile(r"([0-9]{1,9}):([0-9]{1,9})", re.ASCII)
_LIST = re.compile(r"[0-9]{1,9}(,[0-9]{1,9})*", re.ASCII)
_FORMS = "must be a range such as 3:101, or a list such as 3,5,7"


@dataclass(frozen=True)
class Axis:
    """A field and its values, in rising order; ``case`` gives the other fields."""

    field: str
    case: Case
    values: tuple[int, ...]

    def case_at(self, value: int) -> Case:
        """Return the case with this value."""
        return case_with(self.case, {self.field: value})


def base_case(spec: str | ConvSpec | Case) -> Case:
    """Return the case from which an axis starts.

    Raises
    ------
    SpecError
        For a malformed line, and for pooling: where padding and stride follow the window there is no single axis.
    """
    case = spec if isinstance(spec, Case) else Case.parse(str(spec))
    if not isinstance(case.spec, ConvSpec):
        raise SpecError("spec", str(case), "is a line of pooling; crossovers and winner maps are of convolutions")
    return case


def axis_of(case: Case, over: str, values: str | Iterable[int] | None = None) -> Axis:
    """Return an axis with all values that may be tried.

    Parameters
    ----------
    case : Case
    over : str
        One of :data:`AXES`. "channels" sets both numbers of channels, and the groups of a depthwise layer with them.
    values : str or iterable of int, optional
        A range ``"3:101"``, of which round values are taken (odd kernel sizes where padding is "same") as far as the
        spec allows; or a list ``"3,5,7"``, taken as it stands. None: the usual range.

    Raises
    ------
    SpecError
        For a field that cannot vary, a spec for which that would be ambiguous, or values that it does not allow.

    Examples
    --------
    >>> axis_of(Case.parse("i64x64 k3 psame f32"), "kernel_size", "3:12").values
    (3, 5, 7, 9, 11)
    >>> axis_of(Case.parse("i64x64 k3 psame f32"), "input_size", "30:40").values
    (30, 32, 36, 40)
    """
    candidates = _candidates(case, over, values)
    return _axis(case, candidates, lambda value: case_with(case, {over: value}))


def axis_pair(case: Case, over: Mapping[str, str | Iterable[int] | None]) -> tuple[Axis, Axis]:
    """Return two axes, each with the values that are possible with some value of the other.

    Parameters
    ----------
    case : Case
    over : mapping
        Two fields, each with its values as of :func:`axis_of`.

    Raises
    ------
    SpecError
        As :func:`axis_of` does.

    Examples
    --------
    >>> x, y = axis_pair(Case.parse("i8x8 k3 f32"), {"kernel_size": "9,11", "input_size": "9,16"})
    >>> x.values, y.values
    ((9, 11), (9, 16))
    """
    x, y = (_candidates(case, field, values) for field, values in over.items())
    return (
        _axis(case, x, lambda value: _first_case(case, x.field, value, y.field, reversed(y.values))),
        _axis(case, y, lambda value: _first_case(case, y.field, value, x.field, x.values)),
    )


def _first_case(case: Case, field: str, value: int, other: str, values: Iterable[int]) -> Case:
    """Return the first case that there is with this value and one of the other field's; raise as the last one does."""
    problem: SpecError | None = None
    for its in values:
        try:
            return case_with(case, {field: value, other: its})
        except SpecError as error:
            problem = error
    assert problem is not None  # no list of candidates is empty
    raise problem


@dataclass(frozen=True)
class _Candidates:
    """What an axis may take before it is known which cases there are; ``stated``: each was named and must be one."""

    field: str
    values: tuple[int, ...]
    given: str | None
    stated: bool


def _candidates(case: Case, over: str, values: str | Iterable[int] | None) -> _Candidates:
    if over not in AXES:
        raise SpecError("over", over, f"must be one of {', '.join(AXES)}")
    _refuse_ambiguity(case, over)
    if not isinstance(values, str | None):
        values = ",".join(str(value) for value in values)
    stated = values is not None and ":" not in values
    found = _listed(over, values or "") if stated else _ranged(case, over, values)
    return _Candidates(over, tuple(found), values, stated)


def _axis(case: Case, candidates: _Candidates, attempt: Callable[[int], Case]) -> Axis:
    """Keep the values at which there is a case."""
    allowed: list[int] = []
    problem: SpecError | None = None
    for value in candidates.values:
        try:
            attempt(value)
        except SpecError as error:
            if candidates.stated:
                raise
            problem = problem or error
        else:
            allowed.append(value)
    if len(allowed) < 2:
        text = f"; {problem}" if problem else ""
        rule = f"leaves {len(allowed)} of the values that an axis needs at least two of{text}"
        raise SpecError(candidates.field, candidates.given, rule)
    return Axis(candidates.field, case, tuple(allowed))


def spread(values: Sequence[int], count: int) -> list[int]:
    """Choose up to ``count`` values at about equal ratios, both ends among them.

    >>> spread(range(3, 102, 2), 5)
    [3, 7, 17, 41, 101]
    """
    if len(values) <= count or count < 2:
        return list(values)
    low, high = max(values[0], 0.5), values[-1]
    places = [low * (high / low) ** (step / (count - 1)) for step in range(count)]
    return _nearest(values, places)


def between(values: Sequence[int], low: int, high: int, count: int) -> list[int]:
    """Choose up to ``count`` of those strictly between two others, at about equal ratios.

    >>> between([3, 5, 7, 9, 11, 13], 3, 13, 1)
    [7]
    """
    inner = [value for value in values if low < value < high]
    if len(inner) <= count:
        return inner
    start = max(low, 0.5)
    return _nearest(inner, [start * (high / start) ** (step / (count + 1)) for step in range(1, count + 1)])


def _nearest(values: Sequence[int], places: Iterable[float]) -> list[int]:
    chosen = (min(values, key=lambda value: abs(math.log(max(value, 0.5) / place))) for place in places)
    return sorted(set(chosen))


def case_with(case: Case, values: Mapping[str, int]) -> Case:
    """Return the case with these values of some of :data:`AXES`, set at once: one may be possible only with another.

    Raises
    ------
    SpecError
        If there is no such case.

    Examples
    --------
    >>> str(case_with(Case.parse("i8x8 k3 f32"), {"kernel_size": 9, "input_size": 16}))
    'n1 c1 o1 i16x16 k9 f32'
    """
    spec, changes = case.spec, dict[str, Any]()
    for field, value in values.items():
        for name in AXES[field][0]:
            changes[name] = (value,) * spec.ndim if isinstance(getattr(spec, name), tuple) else value
        if field == "channels" and 1 < spec.groups == spec.in_channels:
            changes["groups"] = value
    return replace(case, spec=spec.replace(**changes))


def _refuse_ambiguity(case: Case, over: str) -> None:
    spec = case.spec
    sizes = getattr(spec, over, ())
    if isinstance(sizes, tuple) and len(set(sizes)) > 1:
        text = "x".join(map(str, sizes))
        raise SpecError(over, text, "differs between the axes of the spec, so one number cannot stand for it")
    if over == "channels" and spec.in_channels != spec.out_channels:
        rule = "sets both; as they differ here, vary in_channels or out_channels, or write a spec with as many of both"
        raise SpecError("channels", f"c{spec.in_channels} o{spec.out_channels}", rule)
    if over == "kernel_size" and spec.padding_word is None and any(map(any, spec.padding)):
        rule = "would stay as it is while the kernel grows; write psame or pfull, which follow it, or pvalid"
        raise SpecError("padding", next(token for token in str(spec).split() if token[0] == "p"), rule)
    shape_of_x = over != "kernel_size" and over != "out_channels"
    shape_of_w = over not in ("input_size", "batch")
    for name, token, varies in (("x", case.x, shape_of_x), ("w", case.w, shape_of_w)):
        if token.startswith("@") and varies:
            raise SpecError(name, token, f"has one size, and {over} would change it; leave out {name}=")


def _listed(over: str, text: str) -> list[int]:
    if not _LIST.fullmatch(text):
        raise SpecError("values", text, _FORMS)
    given = [int(part) for part in text.split(",")]
    if len(set(given)) < len(given):
        raise SpecError("values", text, "names a value twice")
    if len(given) < 2:
        raise SpecError(over, text, "needs at least two values, a range such as 3:101 or a list such as 3,5,7")
    return sorted(given)


def _ranged(case: Case, over: str, text: str | None) -> list[int]:
    """List the range's ends and the round values between; of kernel sizes the odd ones where padding is "same"."""
    _, (low, high), digits = AXES[over]
    if text is not None:
        match = _RANGE.fullmatch(text)
        if match is None:
            raise SpecError("values", text, _FORMS)
        low, high = int(match[1]), int(match[2])
        if not 1 <= low < high <= _MOST:
            raise SpecError("values", text, f"must rise, from 1 or more to {_MOST} or less")
    odd = over == "kernel_size" and case.spec.padding_word == "same"
    values = {low, high}
    value = low
    while value <= high:
        step = 2 ** max(0, value.bit_length() - digits)
        value = -(-value // step) * step
        values.add(value)
        value += step
    if odd:
        values = {value if value % 2 else value + 1 for value in values}
    return sorted(value for value in values if value <= high)
