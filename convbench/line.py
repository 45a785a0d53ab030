"""The line format: one spec, one line of text (standard library only).

Tokens in printing order are ``op n c o i k s p d g t boundary flip bias layout dtype``. Of these
n, c, o, i, k and dtype are always printed, the rest where they differ from the default. Lines parse from
any order, and every default may be left out. ``i`` lists all axes; elsewhere one number stands for all
axes, and equal ones collapse when printed.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

from convbench.errors import SpecError
from convbench.geometry import PADDING_WORDS
from convbench.spec import DTYPES, ConvSpec

__all__ = ["SHORT_DTYPES", "format_spec", "parse_spec"]

#: How a line writes dtypes → their names.
SHORT_DTYPES = {"f16": "float16", "bf16": "bfloat16", "f32": "float32", "f64": "float64"}
_LONG = {long: short for short, long in SHORT_DTYPES.items()}
_LETTERS = {
    "n": "batch",
    "c": "in_channels",
    "o": "out_channels",
    "i": "input_size",
    "k": "kernel_size",
    "s": "stride",
    "p": "padding",
    "d": "dilation",
    "g": "groups",
    "t": "tile",
}
_KEYS = ("op", "boundary", "bias", "layout")
_LETTER_TOKEN = re.compile(r"([ncoikspdgt])(-?[0-9].*|valid|same|full|unshared)", re.ASCII)
_NUMBER = re.compile(r"-?[0-9]{1,18}", re.ASCII)
_KINDS = "n c o i k s p d g t, op= boundary= bias= layout=, flip, a dtype such as f32"

_POOLING = (
    "is a line of pooling, here is wanted one of convolution; pooling has convbench.pooling.pool_plan(line) and "
    "cb.pool(…) in Python, and 'convbench run --spec' and 'convbench list backends --pooling' on the command line"
)


def format_spec(spec: ConvSpec) -> str:
    """Return the one line that :func:`parse_spec` reads back."""
    tokens = [
        f"op={spec.op}" if spec.op != "forward" else "",
        f"n{spec.batch}",
        f"c{spec.in_channels}",
        f"o{spec.out_channels}",
        "i" + "x".join(map(str, spec.input_size)),
        "k" + _collapse(spec.kernel_size),
        "s" + _collapse(spec.stride) if set(spec.stride) != {1} else "",
        _format_padding(spec),
        "d" + _collapse(spec.dilation) if set(spec.dilation) != {1} else "",
        f"g{spec.groups}" if spec.groups != 1 else "",
        "t" + (spec.tile_word or _collapse(spec.tile)) if spec.tile else "",
        f"boundary={spec.boundary}" if spec.boundary != "zero" else "",
        "flip" if spec.flip else "",
        f"bias={spec.bias}" if spec.bias != "none" else "",
        f"layout={spec.layout}" if spec.layout != "channels_first" else "",
        _LONG.get(spec.dtype, spec.dtype),
    ]
    return " ".join(filter(None, tokens))


def parse_spec(line: str) -> ConvSpec:
    """Read a spec from one line, tokens in any order.

    Raises
    ------
    SpecError
        For an unknown, malformed, repeated or missing token, or a spec that breaks a rule.
    """
    if not isinstance(line, str):
        raise SpecError("line", line, "must be a string such as 'n1 c64 o64 i56x56 k3 p1 f32'")
    if any(token.startswith("pool=") for token in line.split()):
        raise SpecError("line", line, _POOLING)
    fields: dict[str, Any] = {}
    for token in line.split():
        name, value = _parse_token(token)
        if name in fields:
            raise SpecError(name, token, "is given twice in one line")
        fields[name] = value
    for name, example in (("input_size", "i224x224"), ("kernel_size", "k3")):
        if name not in fields:
            raise SpecError(name, line, f"is missing; add a token such as {example}")
    padding = fields.get("padding")
    if isinstance(padding, list) and len(padding) == 1:  # one entry stands for all axes
        fields["padding"] = padding * len(fields["input_size"])
    return ConvSpec(**fields)


def _parse_token(token: str) -> tuple[str, Any]:
    if token == "flip":
        return "flip", True
    if token in SHORT_DTYPES or token in DTYPES:
        return "dtype", SHORT_DTYPES.get(token, token)
    key, equals, value = token.partition("=")
    if equals:
        if key in ("x", "w", "seed", "count"):
            raise SpecError("line", token, "is a data token: it belongs to a suite's case, not to a spec")
        if key not in _KEYS:
            raise SpecError("line", token, f"is not a token of the line format ({_KINDS})")
        return key, value
    match = _LETTER_TOKEN.fullmatch(token)
    if match is None:
        raise SpecError("line", token, f"is not a token of the line format ({_KINDS})")
    letter, text = match.groups()
    name = _LETTERS[letter]
    if letter in "ncog":
        return name, _number(name, token, text)
    if letter == "p":
        return name, _parse_padding(token, text)
    if letter == "t" and text == "unshared":
        return name, text
    sizes = [_number(name, token, part) for part in text.split("x")]
    return name, sizes[0] if len(sizes) == 1 and letter != "i" else sizes


def _parse_padding(token: str, text: str) -> Any:
    if text in PADDING_WORDS:
        return text
    pairs = []
    for part in text.split("x"):
        numbers = [_number("padding", token, number) for number in part.split(":")]
        if len(numbers) > 2:
            raise SpecError("padding", token, "must be p1, p1x2 or p0:1x1:2 (before:after), psame or pfull")
        pairs.append((numbers[0], numbers[-1]))
    return pairs


def _number(name: str, token: str, text: str) -> int:
    if not _NUMBER.fullmatch(text):
        raise SpecError(name, token, "must be whole numbers joined by 'x', such as 3 or 3x5")
    return int(text)


def _collapse(sizes: Sequence[object]) -> str:
    return str(sizes[0]) if len(set(sizes)) == 1 else "x".join(map(str, sizes))


def _format_padding(spec: ConvSpec) -> str:
    if spec.padding_word in ("same", "full"):
        return f"p{spec.padding_word}"
    if all(pair == (0, 0) for pair in spec.padding):
        return ""
    return "p" + _collapse([str(a) if a == b else f"{a}:{b}" for a, b in spec.padding])
