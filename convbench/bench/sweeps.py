"""The text of cases: one line may stand for several, as in a shell, and a token may be quoted, as in a shell.

``k{3,5,7}``             alternatives; every pair of braces is an axis of its own: ``i{56,112}x{56,112}`` makes four
``{k3 p1,k5 p2}``        alternatives of several tokens
``k{3..15..2}``          first, last and step of whole numbers; also among alternatives: ``k{3..11..2,15,21}``
``x="@my photo.png"``    quoted text, in ' or ", is left as it is: blanks, braces and # mean nothing in it

The order is a shell's, the last braces varying fastest. This is own code because braceexpand, the library there is, had
its last release in 2021, keeps malformed braces as text, and cannot say how much it will make before it makes it.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from itertools import product
from math import prod
from typing import NamedTuple

from convbench.errors import SpecError

__all__ = ["MOST_LINES", "expand", "quoted", "split_tokens", "unquoted", "without_comment"]

MOST_LINES = 10_000
_DEEPEST = 20
_HINT = "write k{3,5,7}, k{3..15..2} or {k3 p1,k5 p2}"
_IN_QUOTES = r"""'[^']*'|"[^"]*\""""
_TOKEN = re.compile(rf"""(?:{_IN_QUOTES}|[^\s'"])+""")
_PIECE = re.compile(rf"""{_IN_QUOTES}|[{{}},]|[^'"{{}},]+|['"]""")
_RANGE = re.compile(r"([0-9]{1,18})\.\.([0-9]{1,18})(?:\.\.([0-9]{1,18}))?", re.ASCII)


def split_tokens(line: str) -> list[str]:
    """Split at blanks outside quotes; the quotes stay, so that the tokens joined by blanks mean the same.

    Raises
    ------
    SpecError
        For a quote that is not closed.

    >>> split_tokens("i64x64 k3 x='@my photo.png'")
    ['i64x64', 'k3', "x='@my photo.png'"]
    """
    if _TOKEN.sub("", line).strip():
        rule = """has a quote that is not closed; a name with one is put between the other kind: x="@it's.png\""""
        raise SpecError("line", line, rule)
    return _TOKEN.findall(line)


def unquoted(token: str) -> str:
    """Return a token as it is meant.

    >>> unquoted("x='@my photo.png'")
    'x=@my photo.png'
    """
    return re.sub(_IN_QUOTES, lambda match: match[0][1:-1], token)


def quoted(text: str) -> str:
    r"""Return a text as a token's part that :func:`unquoted` turns back, in quotes only where it needs them.

    >>> quoted("@photo.png"), quoted("@my photo.png"), quoted("@it's.png")
    ('@photo.png', "'@my photo.png'", '"@it\'s.png"')
    """
    if not re.search(r"""[\s'"{}#]""", text):
        return text
    if "'" not in text:  # lines stand between " on a command line
        return f"'{text}'"
    return f'"{text}"' if '"' not in text else "'" + text.replace("'", "'\"'\"'") + "'"


def without_comment(line: str) -> str:
    """Return a line up to the first # outside quotes.

    >>> without_comment("i8x8 k3 x='@#1.png'  # the first")
    "i8x8 k3 x='@#1.png'"
    """
    match = re.match(rf"(?:{_IN_QUOTES}|[^#])*", line)
    return match[0].strip() if match else ""


def expand(line: str) -> list[str]:
    """Return the lines that one line with braces stands for.

    Raises
    ------
    SpecError
        For a brace without its partner, an empty alternative, a step of 0, and for more than :data:`MOST_LINES` lines.

    Examples
    --------
    >>> expand("i8x8 k{3,5} {s1,s2 p1}")
    ['i8x8 k3 s1', 'i8x8 k3 s2 p1', 'i8x8 k5 s1', 'i8x8 k5 s2 p1']
    >>> expand("k{3..11..4,21}")
    ['k3', 'k7', 'k11', 'k21']
    """
    whole = _Reader(line).whole()
    if whole.size > MOST_LINES:
        raise SpecError("line", line, f"stands for {_short_count(whole.size)} lines; at most {MOST_LINES:,} may be")
    return list(whole.lines())


def _short_count(count: int) -> str:
    return f"{count:,}" if count < 10**9 else "more than 10⁹"


class _Range(NamedTuple):
    """Whole numbers from first to last."""

    numbers: range

    @property
    def size(self) -> int:
        # not len(), which ends at the machine's word
        return 1 + (abs(self.numbers.stop - self.numbers.start) - 1) // abs(self.numbers.step)

    def lines(self) -> Iterator[str]:
        return map(str, self.numbers)


class _Choice(NamedTuple):
    """One of several alternatives."""

    alternatives: Sequence[_Chain | _Range]

    @property
    def size(self) -> int:
        return sum(alternative.size for alternative in self.alternatives)

    def lines(self) -> Iterator[str]:
        for alternative in self.alternatives:
            yield from (line.strip() for line in alternative.lines())


class _Chain(NamedTuple):
    """Texts and choices, one after the other."""

    parts: Sequence[str | _Choice]

    @property
    def size(self) -> int:
        return prod(part.size for part in self.parts if isinstance(part, _Choice))

    def lines(self) -> Iterator[str]:
        choices = [[part] if isinstance(part, str) else list(part.lines()) for part in self.parts]
        return map("".join, product(*choices))


class _Reader:
    """Reads a line by recursive descent."""

    def __init__(self, line: str) -> None:
        self._line = line
        self._pieces = [(match.start(), match[0]) for match in _PIECE.finditer(line)]
        self._at = 0

    def whole(self) -> _Chain:
        chain = self._chain(depth=0)
        if self._next():  # a chain ends early at a brace only
            raise SpecError("line", self._line, f"has a '}}' without its '{{'; {_HINT}")
        return chain

    def _next(self) -> str:
        return self._pieces[self._at][1] if self._at < len(self._pieces) else ""

    def _chain(self, depth: int) -> _Chain:
        """Read up to the end, or to what ends an alternative."""
        parts: list[str | _Choice] = []
        while (piece := self._next()) and piece != "}" and (piece != "," or depth == 0):
            if piece == "{":
                parts.append(self._choice(depth + 1))
            else:
                parts.append(piece)
                self._at += 1
        return _Chain(parts)

    def _choice(self, depth: int) -> _Choice:
        start = self._pieces[self._at][0]
        if depth > _DEEPEST:
            raise SpecError("line", self._line, f"has braces within braces more than {_DEEPEST} deep; {_HINT}")
        alternatives: list[_Chain | _Range] = []
        while self._next() != "}":  # at the opening brace, then at commas
            self._at += 1
            chain = self._chain(depth)
            if not self._next():
                rule = f"has a '{{' without its '}}'; {_HINT}, and a file's name with braces in quotes"
                raise SpecError("line", self._line, rule)
            if not any(not isinstance(part, str) or part.strip() for part in chain.parts):
                braces = self._line[start:].partition("}")[0] + "}"
                raise SpecError("line", self._line, f"has an empty alternative in '{braces}'; {_HINT}")
            alternatives.append(self._range(chain) or chain)
        self._at += 1
        return _Choice(alternatives)

    def _range(self, chain: _Chain) -> _Range | None:
        (text, *others) = chain.parts
        match = _RANGE.fullmatch(text.strip()) if isinstance(text, str) and not others else None
        if match is None:
            return None
        first, last, step = int(match[1]), int(match[2]), int(match[3] or 1)
        if step == 0:
            raise SpecError("line", self._line, f"has a range with step 0, '{match[0]}'; {_HINT}")
        return _Range(range(first, last + 1, step) if first <= last else range(first, last - 1, -step))
