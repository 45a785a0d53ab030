"""A case is a spec and its data, one line of text; a suite is a file of such lines."""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from difflib import get_close_matches
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

from convbench.bench.data import DEFAULT_INPUT, DEFAULT_WEIGHTS, Data, check_tokens, make_data
from convbench.bench.families import Family, family_of
from convbench.bench.sweeps import expand, quoted, split_tokens, unquoted, without_comment
from convbench.errors import SpecError
from convbench.spec import ConvSpec

__all__ = ["Case", "Suite", "case_filter", "list_suites", "load_suite"]

_DATA_KEYS = ("x", "w", "seed")
_COUNT_KEY = "count"
_SECONDS = ("budget", "time-limit")
_DIRECTIVES = ("title", "tables", "budget", "time-limit", "group")
DEFAULT_BUDGET_S = 120.0
_TABLES = ("matrix",)


@dataclass(frozen=True)
class Case:
    """What is timed: one spec with its data.

    Parameters
    ----------
    spec : ConvSpec
    x, w : str
        Data tokens, each for an operand that the operation has; see :mod:`convbench.bench.data`.
    seed : int
        Of the random numbers in them.
    weight : int
        How often the layer occurs in what the suite stands for, ≥ 1. A line may end in ``count=4``, but neither this
        nor the group is part of the case: they say what it is for, not what is timed.
    group : str
        What the layer belongs to, such as a network; "" for nothing.

    Raises
    ------
    SpecError
        For an unknown token, one that does not suit the spec, or a file that is not there.

    Examples
    --------
    >>> case = Case.parse("i280x320 k1x2 f32 x=photo w=edge")
    >>> str(case)
    'n1 c1 o1 i280x320 k1x2 f32 x=photo w=edge'
    >>> Case.parse(str(case)) == case
    True
    >>> layer = Case.parse("c64 o64 i56x56 k3 p1 count=3")
    >>> str(layer), layer.weight, layer == Case(layer.spec)
    ('n1 c64 o64 i56x56 k3 p1 f32', 3, True)
    """

    spec: ConvSpec
    x: str = DEFAULT_INPUT
    w: str = DEFAULT_WEIGHTS
    seed: int = 0
    weight: int = field(default=1, compare=False)
    group: str = field(default="", compare=False)

    def __post_init__(self) -> None:
        if isinstance(self.weight, bool) or not isinstance(self.weight, int) or self.weight < 1:
            raise SpecError("weight", self.weight, "must be a whole number ≥ 1")
        self._check()

    def _check(self) -> None:
        check_tokens(self.spec, self.x, self.w, self.seed)

    @staticmethod
    def parse(line: str, folder: str | Path = "") -> Case:
        """Read the tokens of a spec and, anywhere among them, ``x=``, ``w=``, ``seed=`` and ``count=`` (the weight).

        The spec's tokens say which family of operations the case belongs to (:mod:`convbench.bench.families`). A token
        with blanks stands in quotes: ``x="@my photo.png"``. Relative names of files start from ``folder``.
        """
        if not isinstance(line, str):
            raise SpecError("line", line, "must be a string such as 'i56x56 k3 p1 f32 x=noise w=random'")
        data: dict[str, str] = {}
        spec_tokens = []
        for token in map(unquoted, split_tokens(line)):
            key, equals, value = token.partition("=")
            if not equals or key not in (*_DATA_KEYS, _COUNT_KEY):
                spec_tokens.append(token)
                continue
            if key in data:
                raise SpecError(key, token, "is given twice in one line")
            data[key] = value
        text = " ".join(spec_tokens)
        family = family_of(text)
        spec = family.parse_spec(text)
        x, w = (_from_folder(data.get(key, _DEFAULTS[key]), folder) for key in ("x", "w"))
        seed = _whole("seed", data.get("seed", "0"), 0)
        count = _whole(_COUNT_KEY, data.get(_COUNT_KEY, "1"), 1)
        return family.case_type()(spec, x, w, seed, count)

    @staticmethod
    def sweep(line: str, folder: str | Path = "") -> list[Case]:
        """Read a line that may hold braces and so stand for several cases (:mod:`convbench.bench.sweeps`).

        >>> [str(case) for case in Case.sweep("i64x64 k{3,5..9..2} psame f32")]  # doctest: +ELLIPSIS
        ['n1 c1 o1 i64x64 k3 psame f32', 'n1 c1 o1 i64x64 k5 psame f32', ..., 'n1 c1 o1 i64x64 k9 psame f32']
        """
        lines = expand(line) if isinstance(line, str) else [line]
        cases: dict[Case, None] = {}
        for each in lines:
            try:
                case = Case.parse(each, folder)
            except SpecError as error:
                if len(lines) == 1:
                    raise
                raise SpecError("line", line, f"stands for '{each}' too: {error}") from None
            if case in cases:
                raise SpecError("line", line, f"stands for '{case}' more than once")
            cases[case] = None
        return list(cases)

    def __str__(self) -> str:
        values = {key: getattr(self, key) for key in _DATA_KEYS}
        tokens = [f"{key}={quoted(str(value))}" for key, value in values.items() if value != _DEFAULTS[key]]
        return " ".join([str(self.spec), *tokens])

    def data(self) -> Data:
        """Return freshly made operands; errors as in :func:`convbench.bench.data.make_data`."""
        return make_data(self.spec, self.x, self.w, self.seed)

    def truth(self, data: Data) -> Any:
        """Return the right answer for these operands, which judges results as :class:`convbench.oracle.Truth` does."""
        from convbench.oracle import Truth

        return Truth(self.spec, *data)

    @property
    def family(self) -> Family:
        """The family of operations that the case belongs to."""
        return family_of(str(self.spec))


def _from_folder(token: str, folder: str | Path) -> str:
    """Let the relative name of a file start from ``folder``."""
    name = os.path.expanduser(token[1:])
    return f"@{Path(folder) / name}" if token.startswith("@") and name and not os.path.isabs(name) else token


def _whole(key: str, text: str, least: int) -> int:
    if not re.fullmatch(r"[0-9]{1,18}", text, re.ASCII) or int(text) < least:
        raise SpecError(key, text, f"must be a whole number ≥ {least}")
    return int(text)


_DEFAULTS: dict[str, Any] = {key: getattr(Case, key) for key in _DATA_KEYS}


@dataclass(frozen=True)
class Suite:
    """Cases that belong together.

    Attributes
    ----------
    name, title : str
    cases : tuple of Case
        Each case knows the group that its line stands in.
    tables : tuple of str
        Further tables that a report prints: "matrix", the operation seen as a matrix.
    budget_s : float
        Seconds that a run of it takes unless told otherwise.
    time_limit_s : float or None
        Seconds that one pair may take unless told otherwise; None: as :class:`convbench.bench.Options` has it.
    """

    name: str
    title: str
    cases: tuple[Case, ...]
    tables: tuple[str, ...] = ()
    budget_s: float = DEFAULT_BUDGET_S
    time_limit_s: float | None = None

    def at(self, *, batch: int | None = None, dtype: str | None = None) -> Suite:
        """Return the suite with all its cases at another batch size, or in another dtype; None leaves it as it is.

        Raises
        ------
        SpecError
            For a case that cannot be so, and for one that another case becomes too.

        Examples
        --------
        >>> suite = Suite("mine", "Two layers", (Case.parse("i8x8 k3"), Case.parse("i8x8 k5")))
        >>> at_16 = suite.at(batch=16, dtype="float16")
        >>> at_16.name, at_16.title, str(at_16.cases[0])
        ('mine-batch16-float16', 'mine at batch 16 in float16', 'n16 c1 o1 i8x8 k3 f16')
        """
        changes = {key: value for key, value in (("batch", batch), ("dtype", dtype)) if value is not None}
        if not changes:
            return self
        how = " ".join([f"at batch {batch}"] * (batch is not None) + [f"in {dtype}"] * (dtype is not None))
        became: dict[Case, Case] = {}
        for case in self.cases:
            try:
                changed = replace(case, spec=case.spec.replace(**changes))
            except SpecError as error:
                raise SpecError(f"suite {self.name}", str(case), f"cannot be {how}: {error}") from None
            if became.setdefault(changed, case) is not case:
                raise SpecError(f"suite {self.name}", str(case), f"is the same as '{became[changed]}' {how}")
        name = self.name + f"-batch{batch}" * (batch is not None) + f"-{dtype}" * (dtype is not None)
        return replace(self, name=name, title=f"{self.name} {how}", cases=tuple(became))


def list_suites() -> dict[str, Path]:
    """Return the built-in suites, name → file.

    >>> "kernel-size" in list_suites()
    True
    """
    package = Path(__file__).resolve().parents[1]
    for folder in (package / "_suites", package.parent / "suites"):  # in a wheel; in a checkout
        if folder.is_dir():
            return {file.stem: file for file in sorted(folder.glob("*.txt"))}
    return {}


def load_suite(name_or_path: str | Path) -> Suite:
    """Read a suite: a built-in's name, or the path of a file.

    One case a line, or several: ``i56x56 k{3,5,7}`` (:mod:`convbench.bench.sweeps`). A relative name of a file, as in
    ``x=@photo.png``, starts from the folder of the suite's file. ``# …`` is a comment; ``#: title = …``,
    ``#: tables = …``, ``#: budget = …`` and ``#: time-limit = …`` (seconds for a run, and for one pair of it) say
    something of the whole file, ``#: group = …`` of the lines up
    to the next one (a network, of which each line is a layer that occurs ``count=`` times; nothing after the sign ends
    the group).

    Raises
    ------
    SpecError
        For an unknown name (with those that come close), an unreadable or empty file, and for a malformed or repeated
        line, with file and line number.
    """
    known = list_suites()
    name = str(name_or_path)
    path = known.get(name, Path(name_or_path))
    if name not in known and not path.is_file():
        close = get_close_matches(name, known, n=3, cutoff=0.4)
        hint = f"did you mean {' or '.join(close)}?" if close else f"built in are {', '.join(known)}"
        rule = f"is neither a built-in suite nor a file; {hint} ('convbench list suites' shows all)"
        raise SpecError("suite", name, rule)
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()  # some editors start a file with a BOM
    except (OSError, UnicodeDecodeError) as error:
        raise SpecError("suite", name, f"cannot be read: {error}") from None
    label = path.name if name in known else name
    directives, cases = _read_lines(label, lines, path.parent)
    if not cases:
        raise SpecError(label, [], "holds no case; write one spec a line, such as 'i224x224 k3 psame f32'")
    tables = tuple(directives.get("tables", "").replace(",", " ").split())
    budget_s = float(directives.get("budget", DEFAULT_BUDGET_S))
    limit = directives.get("time-limit")
    title = directives.get("title", path.stem)
    return Suite(path.stem, title, tuple(cases), tables, budget_s, None if limit is None else float(limit))


def _read_lines(label: str, lines: list[str], folder: Path) -> tuple[dict[str, str], list[Case]]:
    directives: dict[str, str] = {}
    cases: list[Case] = []
    seen: dict[Case, int] = {}
    for number, line in enumerate(lines, start=1):
        here = f"{label}, line {number}"
        text = line.strip()
        if text.startswith("#:"):
            key, value = _read_directive(here, text)
            directives[key] = value
            continue
        text = without_comment(text)
        if not text:
            continue
        try:
            found = [replace(case, group=directives.get("group", "")) for case in Case.sweep(text, folder)]
        except SpecError as error:
            raise SpecError(here, text, str(error)) from None
        repeated = next((case for case in found if case in seen), None)
        if repeated is not None:
            what = "" if len(found) == 1 else f"makes '{repeated}', which "
            raise SpecError(here, text, f"{what}stands in this suite already, in line {seen[repeated]}")
        seen |= dict.fromkeys(found, number)
        cases += found
    return directives, cases


def _read_directive(here: str, text: str) -> tuple[str, str]:
    key, equals, value = (part.strip() for part in text.removeprefix("#:").partition("="))
    if not equals or key not in _DIRECTIVES:
        raise SpecError(here, text, f"must be '#: key = value' with key one of {', '.join(_DIRECTIVES)}")
    unknown = set(value.replace(",", " ").split()) - set(_TABLES) if key == "tables" else set()
    if unknown:
        raise SpecError(here, text, f"tables must be of {', '.join(_TABLES)}")
    if key in _SECONDS and not re.fullmatch(r"[1-9][0-9]{0,6}", value):
        raise SpecError(here, text, f"{key} must be a whole number of seconds ≥ 1")
    return key, value


def case_filter(pattern: str) -> Callable[[Case], bool]:
    """Return what keeps a case that has a token for each glob, and none for those after a "!".

    Raises
    ------
    SpecError
        For a quote that is not closed.

    Examples
    --------
    >>> keep = case_filter("k3 !f64")
    >>> keep(Case.parse("i8x8 k3")), keep(Case.parse("i8x8 k3 f64"))
    (True, False)
    """
    try:
        globs = [unquoted(token) for token in split_tokens(pattern)]
    except SpecError:
        raise SpecError("-k", pattern, "has a quote that is not closed") from None
    wanted = [(glob.removeprefix("!"), not glob.startswith("!")) for glob in globs]
    return lambda case: all(_has_token(case, glob) is has for glob, has in wanted)


def _has_token(case: Case, glob: str) -> bool:
    tokens = [*str(case.spec).split(), f"x={case.x}", f"w={case.w}", f"seed={case.seed}"]
    tokens += [f"group={case.group}", f"count={case.weight}"]
    return any(fnmatchcase(token, glob) for token in tokens)
