"""A case is a spec and its data, one line of text; a suite is a file of such lines."""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import dataclass, field
from difflib import get_close_matches
from pathlib import Path

from convbench.bench.data import Data, check_tokens, make_data
from convbench.errors import SpecError
from convbench.spec import ConvSpec

__all__ = ["Case", "Suite", "list_suites", "load_suite"]

_DATA_KEYS = ("x", "w", "seed")
_DIRECTIVES = ("title", "tables", "budget")
DEFAULT_BUDGET_S = 120.0
_TABLES = ("matrix",)


@dataclass(frozen=True)
class Case:
    """What is timed: one spec with its data.

    Parameters
    ----------
    spec : ConvSpec
    x, w : str
        Data tokens; see :mod:`convbench.bench.data`.
    seed : int
        Of the random numbers in them.
    weight : int
        How often the layer occurs in what the suite stands for; no part of the line.

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
    """

    spec: ConvSpec
    x: str = "noise"
    w: str = "random"
    seed: int = 0
    weight: int = field(default=1, compare=False)

    def __post_init__(self) -> None:
        check_tokens(self.spec, self.x, self.w, self.seed)

    @classmethod
    def parse(cls, line: str) -> Case:
        """Read the tokens of a spec and, anywhere among them, ``x=``, ``w=`` and ``seed=``."""
        if not isinstance(line, str):
            raise SpecError("line", line, "must be a string such as 'i56x56 k3 p1 f32 x=noise w=random'")
        data: dict[str, str] = {}
        spec_tokens = []
        for token in line.split():
            key, equals, value = token.partition("=")
            if not equals or key not in _DATA_KEYS:
                spec_tokens.append(token)
                continue
            if key in data:
                raise SpecError(key, token, "is given twice in one line")
            data[key] = value
        spec = ConvSpec.parse(" ".join(spec_tokens))
        seed = data.pop("seed", "0")
        if not (seed.isascii() and seed.isdigit() and len(seed) <= 18):
            raise SpecError("seed", seed, "must be a whole number ≥ 0")
        return cls(spec, data.get("x", "noise"), data.get("w", "random"), int(seed))

    def __str__(self) -> str:
        tokens = [f"{key}={getattr(self, key)}" for key in _DATA_KEYS if getattr(self, key) != _DEFAULTS[key]]
        return " ".join([str(self.spec), *tokens])

    def data(self) -> Data:
        """Return freshly made operands; errors as in :func:`convbench.bench.data.make_data`."""
        return make_data(self.spec, self.x, self.w, self.seed)


_DEFAULTS = {key: Case.__dataclass_fields__[key].default for key in _DATA_KEYS}


@dataclass(frozen=True)
class Suite:
    """Cases that belong together.

    Attributes
    ----------
    name, title : str
    cases : tuple of Case
    tables : tuple of str
        Further tables that a report prints: "matrix", the operation seen as a matrix.
    budget_s : float
        Seconds that a run of it takes unless told otherwise.
    """

    name: str
    title: str
    cases: tuple[Case, ...]
    tables: tuple[str, ...] = ()
    budget_s: float = DEFAULT_BUDGET_S


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

    One case a line. ``# …`` is a comment; ``#: title = …``, ``#: tables = …`` and ``#: budget = …`` (seconds) say
    something of the whole file.

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
    directives, cases = _read_lines(label, lines)
    if not cases:
        raise SpecError(label, [], "holds no case; write one spec a line, such as 'i224x224 k3 psame f32'")
    tables = tuple(directives.get("tables", "").replace(",", " ").split())
    budget_s = float(directives.get("budget", DEFAULT_BUDGET_S))
    return Suite(path.stem, directives.get("title", path.stem), tuple(cases), tables, budget_s)


def _read_lines(label: str, lines: list[str]) -> tuple[dict[str, str], list[Case]]:
    directives: dict[str, str] = {}
    cases: list[Case] = []
    seen: Counter[Case] = Counter()
    for number, line in enumerate(lines, start=1):
        here = f"{label}, line {number}"
        text = line.strip()
        if text.startswith("#:"):
            key, value = _read_directive(here, text)
            directives[key] = value
            continue
        text = text.partition("#")[0].strip()
        if not text:
            continue
        try:
            case = Case.parse(text)
        except SpecError as error:
            raise SpecError(here, text, str(error)) from None
        seen[case] += 1
        if seen[case] > 1:
            raise SpecError(here, text, "stands in this suite already")
        cases.append(case)
    return directives, cases


def _read_directive(here: str, text: str) -> tuple[str, str]:
    key, equals, value = (part.strip() for part in text.removeprefix("#:").partition("="))
    if not equals or key not in _DIRECTIVES:
        raise SpecError(here, text, f"must be '#: key = value' with key one of {', '.join(_DIRECTIVES)}")
    unknown = set(value.replace(",", " ").split()) - set(_TABLES) if key == "tables" else set()
    if unknown:
        raise SpecError(here, text, f"tables must be of {', '.join(_TABLES)}")
    if key == "budget" and not re.fullmatch(r"[1-9][0-9]{0,6}", value):
        raise SpecError(here, text, "budget must be a whole number of seconds ≥ 1")
    return key, value
