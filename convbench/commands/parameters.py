"""What commands take: kinds of arguments, and the choice of backends."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from fnmatch import fnmatchcase
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from click.shell_completion import CompletionItem

from convbench.bench.cases import list_suites
from convbench.bench.families import Convolution, Family
from convbench.errors import SpecError, UnknownBackend
from convbench.registry import backend_names

__all__ = [
    "BACKEND",
    "BASELINE_HELP",
    "EXIT_CODES",
    "FOLDER",
    "JSON_HELP",
    "SUITE",
    "TRANSFERS_HELP",
    "Count",
    "Names",
    "Seconds",
    "Size",
    "chosen_backends",
    "pooling_family",
]

JSON_HELP = "Print results as one JSON object: environment, summary, noise, files; all else goes to standard error."

TRANSFERS_HELP = "Let times on a GPU hold the sending of operands and the fetching of the result, for each call."

EXIT_CODES = """\b
Exit codes:
  0    done
  1    a result is wrong, failed, timed out, outgrew its memory or crashed
       (run), a check failed (check), or a pair got slower or went missing
       (compare)
  2    bad input, or a library is missing
  130  interrupted; what was measured is kept
  141  the reader of the output went away"""


if TYPE_CHECKING:
    _Text = click.ParamType[str]
    _Float = click.ParamType[float]
    _Int = click.ParamType[int]
else:  # not generic before click 8.4
    _Text = _Float = _Int = click.ParamType


class Names(_Text):
    """Any text; the shell completes it from a list."""

    def __init__(self, name: str, known: Callable[[], Sequence[str]]) -> None:
        self.name, self._known = name, known

    def shell_complete(self, ctx: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem]:
        """Complete the last of several names joined by commas."""
        before, comma, last = incomplete.rpartition(",")
        return [CompletionItem(before + comma + name) for name in self._known() if name.startswith(last)]


SUITE = Names("suite", lambda: list(list_suites()))
BACKEND = Names("backend", backend_names)
FOLDER = click.Path(path_type=Path)
BASELINE_HELP = f"Of speed-ups; default: of {', '.join(Convolution.baselines)} the one with times on the most cases."


class Seconds(_Float):
    """A positive number of seconds."""

    name = "seconds"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        """Return a positive, finite number."""
        try:
            seconds = float(value)
        except ValueError:
            seconds = 0.0
        if not 0 < seconds < float("inf"):
            self.fail(f"{value!r} is not a positive number of seconds.", param, ctx)
        return seconds


class Count(_Int):
    """A whole number from ``least`` on."""

    name = "count"

    def __init__(self, least: int = 1) -> None:
        self._least = least

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        """Return a whole number in range."""
        text = str(value).strip()
        if not re.fullmatch(r"[0-9]{1,18}", text, re.ASCII) or int(text) < self._least:
            self.fail(f"{value!r} is not a whole number ≥ {self._least}.", param, ctx)
        return int(text)


class Size(_Int):
    """A number of bytes, with or without a unit."""

    name = "size"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        """Return bytes; KB is 1000 of them, K and KiB are 1024."""
        if isinstance(value, int):
            return value
        match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([KMGT]?)(I?B?)\s*", value.upper(), re.ASCII)
        size = 0
        if match:
            number, unit, suffix = match.groups()
            power = 1000 if suffix == "B" and unit else 1024
            size = int(float(number) * power ** ("", "K", "M", "G", "T").index(unit))
        if size < 1:
            self.fail(f"{value!r} is not a size such as 512MiB, 2GiB or 1.5GB.", param, ctx)
        return size


def chosen_backends(patterns: str | None, family: Family) -> list[str]:
    """Names that match, in the registry's order; a name without wildcards must exist."""
    known = family.backend_names()
    if patterns is None:
        return known
    chosen: set[str] = set()
    for pattern in filter(None, (part.strip() for part in patterns.split(","))):
        matches = [name for name in known if fnmatchcase(name, pattern)]
        if not matches and any(sign in pattern for sign in "*?["):
            raise UnknownBackend(f"--backends: no backend matches {pattern!r}; there are {', '.join(known)}")
        chosen.update(matches or [family.get_backend(pattern).name])
    if not chosen:
        raise SpecError("--backends", patterns, "names no backend; write names or globs joined by commas")
    return [name for name in known if name in chosen]


def pooling_family() -> Family:
    """Return the family of pooling, imported now."""
    from convbench.pooling.family import POOLING

    return POOLING
