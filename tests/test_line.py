"""The line format: every valid spec prints and parses back, every malformed line says what is wrong with it."""

from __future__ import annotations

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from strategies import shuffled, specs

from convbench import ConvSpec, SpecError
from convbench.line import format_spec, parse_spec


@settings(max_examples=500)
@given(specs())
def test_parsing_what_was_printed_gives_the_spec_back(spec: ConvSpec) -> None:
    line = format_spec(spec)
    parsed = parse_spec(line)
    assert parsed == spec
    assert format_spec(parsed) == line
    default = (None, "valid")  # no padding, by number or by word: the default, which is not printed
    assert parsed.padding_word == spec.padding_word or {parsed.padding_word, spec.padding_word} <= set(default)
    assert parsed.tile_word == spec.tile_word


@given(specs(), st.integers(0, 1000))
def test_tokens_may_come_in_any_order(spec: ConvSpec, seed: int) -> None:
    assert parse_spec(shuffled(str(spec), seed)) == spec


@given(specs())
def test_a_line_is_one_line_of_plain_text(spec: ConvSpec) -> None:
    line = str(spec)
    assert line.isascii()
    assert line.isprintable()
    assert line == " ".join(line.split())


@pytest.mark.parametrize("word", ["same", "full"])
def test_a_padding_word_is_kept_and_resolved_anew(word: str) -> None:
    spec = parse_spec(f"i9x8 k3 p{word}")
    assert f"p{word}" in str(spec).split()
    larger = spec.replace(kernel_size=5)
    assert larger.padding == parse_spec(f"i9x8 k5 p{word}").padding != spec.padding
    assert f"p{word}" in str(larger).split()


@pytest.mark.parametrize(
    ("given_line", "printed"),
    [
        ("i8 k3", "n1 c1 o1 i8 k3 f32"),
        ("f64 k3x3 i8x9 p1x1 s2x2 d1", "n1 c1 o1 i8x9 k3 s2 p1 f64"),
        ("i8x9 k3 p1:2", "n1 c1 o1 i8x9 k3 p1:2 f32"),
        ("i8x9 k3 p0", "n1 c1 o1 i8x9 k3 f32"),
        ("i8x9 k3 p-1x1", "n1 c1 o1 i8x9 k3 p-1x1 f32"),
        ("i8x9 k3 p-1:2x0", "n1 c1 o1 i8x9 k3 p-1:2x0 f32"),
        ("i8x9 k3 pvalid", "n1 c1 o1 i8x9 k3 f32"),
        ("i8 k3 tunshared bias=location", "n1 c1 o1 i8 k3 tunshared bias=location f32"),
        ("i8x8 k3 t2", "n1 c1 o1 i8x8 k3 t2 f32"),
        ("bf16 i8 k3", "n1 c1 o1 i8 k3 bf16"),
        ("float16 i8 k3", "n1 c1 o1 i8 k3 f16"),
        ("complex64 i8 k3", "n1 c1 o1 i8 k3 complex64"),
        ("n0 i8 k3 uint8", "n0 c1 o1 i8 k3 uint8"),
        # the three lines of spec.md
        ("n1 c64 o64 i56x56 k3 p1 f32", "n1 c64 o64 i56x56 k3 p1 f32"),
        ("n1 c1 o1 i1024x1024 k31 psame boundary=reflect flip f32",) * 2,
        ("op=input_grad n2 c8 o16 i15x17 k3x5 s2x1 p0:1x1:2 d2 g4 t2x2 bias=channel complex64",
         "op=input_grad n2 c8 o16 i15x17 k3x5 s2x1 p0:1x1:2 d2 g4 t2 bias=channel complex64"),
    ],
)  # fmt: skip
def test_canonical_form(given_line: str, printed: str) -> None:
    assert str(parse_spec(given_line)) == printed


@pytest.mark.parametrize(
    ("line", "field", "part"),
    [
        ("k3", "input_size", "i224x224"),
        ("i8", "kernel_size", "k3"),
        ("", "input_size", "missing"),
        ("i8 k3 k5", "kernel_size", "twice"),
        ("i8 k3 f32 f64", "dtype", "twice"),
        ("i8 k3 flip flip", "flip", "twice"),
        ("i8 k3 psame p1", "padding", "twice"),
        ("i8 k3 q7", "line", "is not a token"),
        ("i8 k3 K5", "line", "is not a token"),
        ("i8 k3 float31", "line", "is not a token"),
        ("i8 k3 edge=zero", "line", "is not a token"),
        ("i8 k3 x=photo", "line", "data token"),
        ("i8 k3 seed=3", "line", "data token"),
        ("i8 k", "line", "is not a token"),
        ("i8x k3", "input_size", "whole numbers"),
        ("i8xx8 k3", "input_size", "whole numbers"),
        ("i8.5 k3", "input_size", "whole numbers"),
        ("i8 k3 s1e3", "stride", "whole numbers"),
        ("i8 k3 p1:2:3", "padding", "before:after"),
        ("i8 k3 p1:", "padding", "whole numbers"),
        ("i8 k٣", "line", "is not a token"),  # digits are ASCII
        ("i8 k1٣", "kernel_size", "whole numbers"),
        ("i8 k3 n-1", "batch", "≥ 0"),
        ("i8 k0", "kernel_size", "≥ 1"),
        ("i-8 k3", "input_size", "≥ 1"),
        ("i8x8 k3x3x3", "kernel_size", "2 axes"),
        ("i8x8 k3 s2x2x2", "stride", "2 axes"),
        ("i8x8 k3 p1x1x1", "padding", "3 entries for 2 axes"),
        ("i8 k9", "input_size", "axis 0"),
        ("c3 g2 o2 i8 k3", "groups", "in_channels = 3"),
        ("c2 o3 g2 i8 k3", "groups", "out_channels = 3"),
        ("i8 k3 op=backward", "op", "forward, input_grad, weight_grad"),
        ("i8 k3 boundary=wrap", "boundary", "'wrap' elsewhere means circular here"),
        ("i8 k3 bias=tile", "bias", "needs tile"),
        ("i8 k3 bias=yes", "bias", "none, channel, tile, location"),
        ("i8 k3 layout=nhwc", "layout", "channels_first, channels_last"),
        ("i" + "9" * 30 + " k3", "input_size", "whole numbers"),
    ],
)
def test_malformed_lines_name_field_value_and_rule(line: str, field: str, part: str) -> None:
    with pytest.raises(SpecError) as caught:
        parse_spec(line)
    assert caught.value.field == field
    assert part in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_line_that_is_no_string_is_refused() -> None:
    with pytest.raises(SpecError, match="must be a string"):
        parse_spec(b"i8 k3")  # type: ignore[arg-type]


@example("i8 k3 p:")
@example("i8 k3 p--1")
@example("i8 k3 op==forward")
@given(st.text(alphabet="ncoikspdgt0123456789x:=- flipbfsame", max_size=40))
def test_any_text_parses_or_raises_a_spec_error(text: str) -> None:
    message = ""
    try:
        spec = parse_spec(text)
    except SpecError as error:
        message = str(error)
    assert message or parse_spec(str(spec)) == spec
    assert "\n" not in message
