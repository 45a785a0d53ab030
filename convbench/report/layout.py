"""How the cases of a run differ: what to call each one, and whether one number varies.

Case lines are read as text here: a report may be made where the files that a case names are not at hand.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from convbench.bench.cases import Case
from convbench.bench.families import family_of
from convbench.bench.sweeps import split_tokens
from convbench.spec import DTYPES

__all__ = ["Axis", "Layout", "axes_of", "case_spec", "data_title", "layout_of"]

_DATA_DEFAULTS = {"x": Case.x, "w": Case.w, "seed": str(Case.seed)}
_NUMERIC = {
    "batch": "batch size",
    "in_channels": "input channels",
    "out_channels": "output channels",
    "input_size": "input size",
    "kernel_size": "kernel size",
    "stride": "stride",
    "dilation": "dilation",
    "groups": "groups",
}
_SYMBOLS = {
    "batch": "N",
    "in_channels": "C",
    "out_channels": "O",
    "input_size": "H",
    "kernel_size": "K",
    "stride": "s",
    "dilation": "d",
    "groups": "g",
}
#: Padding often follows the kernel (p1 at k3, p2 at k5) or its dilation: then it is not a second variable.
_FOLLOWERS = {"k": ("p",), "d": ("p",)}
_KEYS = {"n": "batch", "c": "in_channels", "o": "out_channels", "i": "input_size", "k": "kernel_size", "s": "stride",
         "p": "padding", "d": "dilation", "g": "groups", "t": "tile"}  # fmt: skip


@dataclass(frozen=True)
class Layout:
    """The cases of a run, arranged.

    Attributes
    ----------
    labels : mapping of str to str
        Case line → the tokens in which it differs from the others, numbered (#1 …) unless ``varies`` is set.
    common : str
        The tokens that all cases share.
    varies : str or None
        The one numeric field of the spec that varies, if there is just one, and in every panel.
    panels : mapping of str to (mapping of int to str)
        Where ``varies`` is set: everything else that varies (such as ``w=gaussian``) → value of the
        field → case line.
    """

    labels: Mapping[str, str]
    common: str
    varies: str | None = None
    panels: Mapping[str, Mapping[int, str]] = field(default_factory=dict)

    def short(self, case: str) -> str:
        """Return the number of a case, or its label where that is short."""
        label = self.labels[case]
        return label.partition(" ")[0] if label.startswith("#") else label

    @property
    def symbol(self) -> str:
        """The letter of the varying field: K for the kernel size."""
        return _SYMBOLS[self.varies] if self.varies else ""

    @property
    def field_title(self) -> str:
        """The varying field in words, with its letter: "kernel size K"."""
        return f"{_NUMERIC[self.varies]} {self.symbol}" if self.varies else ""


@dataclass(frozen=True)
class Axis:
    """A number that varies among the cases of a run, whatever else does.

    Attributes
    ----------
    varies : str
        A field of the spec, such as "kernel_size".
    title : str
        In words, with its letter: "kernel size K".
    values : mapping of str to int
        Case line → its number, where that is one number or the same along every axis.
    panels : mapping of str to (mapping of int to str)
        Everything else that varies → value → case line; only where there are two values or more.
    """

    varies: str
    title: str
    values: Mapping[str, int]
    panels: Mapping[str, Mapping[int, str]]


def case_spec(case: str) -> Any:
    """Return the spec of a case line: its tokens without the data tokens.

    >>> print(case_spec("i8x8 k3 f32 x=photo w=gaussian seed=1"))
    n1 c1 o1 i8x8 k3 f32
    """
    line = " ".join(token for key, token in _tokens(case).items() if key not in _DATA_DEFAULTS)
    return family_of(line).parse_spec(line)


def layout_of(cases: Iterable[str]) -> Layout:
    """Find what the case lines share and in what they differ.

    >>> layout = layout_of(f"n1 c1 o1 i64x64 k{k} f32{w}" for k in (3, 5) for w in ("", " w=box"))
    >>> layout.common, layout.varies, list(layout.labels.values())
    ('n1 c1 o1 i64x64 f32 x=noise', 'kernel_size', ['k3 w=random', 'k3 w=box', 'k5 w=random', 'k5 w=box'])
    >>> layout.panels["w=box"][5]
    'n1 c1 o1 i64x64 k5 f32 w=box'
    """
    tokens = {case: _tokens(case) for case in dict.fromkeys(cases)}
    varying = _varying(tokens)
    first = next(iter(tokens.values()), {})
    common = " ".join(token for key, token in first.items() if key not in varying and token != "seed=0")
    numbered = {case: f"#{number} {_written(case, varying)}" for number, case in enumerate(tokens, 1)}
    numeric = [key for key in varying if _KEYS.get(key) in _NUMERIC]
    if len(tokens) == 1:
        return Layout({case: case for case in tokens}, "")
    if len(numeric) != 1:
        return Layout(numbered, common)
    panels = _panels(tokens, numeric[0], [*numeric, *_FOLLOWERS.get(numeric[0], ())], varying)
    if panels is None or any(len(panel) == 1 for panel in panels.values()):  # nothing varies within it
        return Layout(numbered, common)
    labels = {case: _join(entry, varying) for case, entry in tokens.items()}
    return Layout(labels, common, _KEYS[numeric[0]], panels)


def axes_of(cases: Iterable[str]) -> list[Axis]:
    """Find every number that varies; first that which shows most cases, in the longest lines.

    >>> cases = [f"n1 c1 o1 i{size}x{size} k{k} f32" for size in (64, 128) for k in (3, 5, 7)]
    >>> [(axis.title, list(axis.panels)) for axis in axes_of([*cases, "n1 c1 o1 i256x256 k3 f32"])]
    [('input size H', ['k3', 'k5', 'k7']), ('kernel size K', ['i64x64', 'i128x128'])]
    """
    tokens = {case: _tokens(case) for case in dict.fromkeys(cases)}
    varying = _varying(tokens)
    axes = []
    for key in (key for key in varying if _KEYS.get(key) in _NUMERIC):
        name = _KEYS[key]
        values = {case: value for case in tokens if (value := _number(case, name)) is not None}
        numbered = {case: tokens[case] for case in values}
        panels = _panels(numbered, key, [key, *_FOLLOWERS.get(key, ())], varying)
        panels = panels or _panels(numbered, key, [key], varying) or {}
        shown = {panel: points for panel, points in panels.items() if len(points) > 1}
        axes.append(Axis(name, f"{_NUMERIC[name]} {_SYMBOLS[name]}", values, shown))
    return sorted(axes, key=lambda axis: (-sum(map(len, axis.panels.values())), len(axis.panels)))


def _varying(tokens: Mapping[str, Mapping[str, str]]) -> list[str]:
    keys = list(dict.fromkeys(key for entry in tokens.values() for key in entry))
    return [key for key in keys if len({entry.get(key) for entry in tokens.values()}) > 1]


def _panels(
    tokens: Mapping[str, Mapping[str, str]], key: str, along: Sequence[str], varying: Sequence[str]
) -> dict[str, dict[int, str]] | None:
    """Sort cases by all that varies but what goes ``along`` with the number; None if two of them fall together."""
    others = [other for other in varying if other not in along]
    panels: dict[str, dict[int, str]] = {}
    for case, entry in tokens.items():
        value = _number(case, _KEYS[key])
        panel = panels.setdefault(_join(entry, others), {})
        if value is None or value in panel:
            return None
        panel[value] = case
    return {name: dict(sorted(panel.items())) for name, panel in panels.items()}


def data_title(panel: str) -> str:
    """Name a panel for people.

    >>> data_title("w=gaussian"), data_title("f64 w=random")
    ('gaussian kernel', 'f64, random kernel')
    """
    words = {"w": "{} kernel", "x": "{} input", "seed": "seed {}"}
    parts = []
    for token in panel.split():
        key, equals, value = token.partition("=")
        parts.append(words[key].format(value) if equals and key in words else token)
    return ", ".join(parts)


def _tokens(case: str) -> dict[str, str]:
    """Split a case line into its tokens, each under the name of what it sets; data tokens are always there."""
    given = {_token_key(token): token for token in split_tokens(case)}
    absent = "w" if "pool" in given else {"op=input_grad": "x", "op=weight_grad": "w"}.get(given.get("op", ""))
    defaults = {key: text for key, text in _DATA_DEFAULTS.items() if key != absent}
    data = {key: given.pop(key, f"{key}={default}") for key, default in defaults.items()}
    return given | data


def _token_key(token: str) -> str:
    key, equals, _ = token.partition("=")
    if equals or token == "flip":
        return key
    return token[0] if token[0] in _KEYS and token not in DTYPES else "dtype"


def _join(entry: Mapping[str, str], keys: Iterable[str]) -> str:
    chosen = set(keys)
    return " ".join(token for key, token in entry.items() if key in chosen)


def _written(case: str, keys: Iterable[str]) -> str:
    """Join the tokens of these keys that the line has, without the defaults if anything else is left."""
    chosen = set(keys)
    return " ".join(t for t in split_tokens(case) if _token_key(t) in chosen) or _join(_tokens(case), chosen)


def _number(case: str, name: str) -> int | None:
    """Return the field's value if it is one number or the same along every axis."""
    value = getattr(case_spec(case), name, ())  # nothing: the family has no such field
    values = set(value) if isinstance(value, tuple) else {value}
    return int(values.pop()) if len(values) == 1 else None
