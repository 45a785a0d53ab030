"""Lines that stand for several cases, quoted tokens, and files that are named relative to something."""

from __future__ import annotations

import itertools
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from convbench.bench import Case, load_suite
from convbench.bench.sweeps import MOST_LINES, expand, quoted, split_tokens, unquoted, without_comment
from convbench.errors import SpecError


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("i8 k3", ["i8 k3"]),
        ("k{3,5,7}", ["k3", "k5", "k7"]),
        ("k{3}", ["k3"]),
        ("k{3..15..4}", ["k3", "k7", "k11", "k15"]),
        ("k{3..14..4}", ["k3", "k7", "k11"]),
        ("k{5..3}", ["k5", "k4", "k3"]),
        ("k{15..3..6}", ["k15", "k9", "k3"]),
        ("k{3..7..2,15}", ["k3", "k5", "k7", "k15"]),
        ("{k3 p1,k5 p2} f32", ["k3 p1 f32", "k5 p2 f32"]),
        ("i{56,112}x{56,112}", ["i56x56", "i56x112", "i112x56", "i112x112"]),
        ("{k3 {s1,s2},k{5..6}}", ["k3 s1", "k3 s2", "k5", "k6"]),
        ("k{ 3 , 5 }", ["k3", "k5"]),
        ("x='@{a,b}.png' k{3,5}", ["x='@{a,b}.png' k3", "x='@{a,b}.png' k5"]),
        ("{x=\"@a,b.npy\",x='@}.npy'}", ['x="@a,b.npy"', "x='@}.npy'"]),
        ("k3,5", ["k3,5"]),
    ],
)
def test_braces_stand_for_alternatives(line: str, expected: list[str]) -> None:
    assert [" ".join(each.split()) for each in expand(line)] == expected


@given(st.lists(st.lists(st.sampled_from(("3", "5x7", "11")), min_size=1, max_size=3), min_size=1, max_size=4))
def test_the_order_is_that_of_nested_loops(axes: list[list[str]]) -> None:
    line = " ".join(f"k{{{','.join(values)}}}" for values in axes)
    assert expand(line) == [" ".join(f"k{value}" for value in chosen) for chosen in itertools.product(*axes)]


@pytest.mark.parametrize(
    ("line", "rule"),
    [
        ("i8 k{3,5", "has a '{' without its '}'"),
        ("i8 {k{3,5}", "has a '{' without its '}'"),
        ("i8 k3,5}", "has a '}' without its '{'"),
        ("i8 k{3,,5} f32", "has an empty alternative in '{3,,5}'"),
        ("i8 k{}", "has an empty alternative in '{}'"),
        ("i8 k{3, }", "has an empty alternative in '{3, }'"),
        ("i8 k{1..3..0}", "has a range with step 0, '1..3..0'"),
        ("i8 k{1..101}x{1..100}", "stands for 10,100 lines; at most 10,000 may be"),
        ("i8 k{1..999999999999999999}", "stands for more than 10⁹ lines"),
        ("{" * 500, "more than 20 deep"),
    ],
)
def test_malformed_braces_are_quoted_with_what_is_allowed(line: str, rule: str) -> None:
    with pytest.raises(SpecError, match=r"^line: got ") as caught:
        expand(line)
    assert rule in str(caught.value)
    assert "k{3,5,7}" in str(caught.value) or "at most" in str(caught.value)
    assert len(expand(f"k{{1..{MOST_LINES}}}")) == MOST_LINES


@given(st.text(st.sampled_from("{},.0123 ki'\""), max_size=30))
def test_any_text_is_expanded_or_refused(line: str) -> None:
    try:
        lines = expand(line)
    except SpecError:
        return
    assert lines
    if not set(line) & set("{}"):
        assert lines == [line]


@given(st.text(min_size=1, max_size=12))
def test_quoted_text_is_one_token_that_means_the_same(text: str) -> None:
    token = f"x={quoted(text)}"
    assert split_tokens(f"i8 {token} k3") == ["i8", token, "k3"]
    assert unquoted(token) == f"x={text}"
    assert without_comment(f"{token} # k{{3}}") == token.strip()
    assert expand(token) == [token]


def test_a_quote_that_is_not_closed_is_refused() -> None:
    with pytest.raises(SpecError, match="has a quote that is not closed"):
        Case.parse("i8 k3 x=@it's.npy")


# -- cases ------------------------------------------------------------------------------------------------------


def test_a_sweep_makes_cases_in_order() -> None:
    cases = Case.sweep("c2 i8x8 {k3 p1,k5 p2} f32 w={random,box} count=2")
    assert [(case.spec.kernel_size[0], case.w, case.weight) for case in cases] == [
        (3, "random", 2), (3, "box", 2), (5, "random", 2), (5, "box", 2),
    ]  # fmt: skip
    assert [str(case.spec.padding[0][0]) for case in cases] == list("1122")


def test_a_sweep_says_which_of_its_cases_is_wrong_or_there_twice() -> None:
    with pytest.raises(SpecError, match=r"stands for 'i8 k0' too: kernel_size: got 0; must be an integer ≥ 1"):
        Case.sweep("i8 k{3,0}")
    with pytest.raises(SpecError, match="stands for 'n1 c1 o1 i8 k3 f32' more than once"):
        Case.sweep("i8 k{3..5,3}")


def test_suites_hold_sweeps(tmp_path: Path) -> None:
    path = tmp_path / "own.txt"
    path.write_text("#: group = A\ni{8..10} k3  # three\n#: group = B\ni12 k{3,5} count=2\n", encoding="utf-8")
    cases = load_suite(path).cases
    assert [case.spec.input_size[0] for case in cases] == [8, 9, 10, 12, 12]
    assert [(case.group, case.weight) for case in cases] == [("A", 1)] * 3 + [("B", 2)] * 2
    path.write_text("i8 k3\n\ni8 k{5,3}\n", encoding="utf-8")
    with pytest.raises(SpecError, match=r"line 3: .* makes 'n1 c1 o1 i8 k3 f32', which stands .* already, in line 1"):
        load_suite(path)
    path.write_text("i8 k{3,5\n", encoding="utf-8")
    with pytest.raises(SpecError, match=r"own\.txt, line 1: .* without its"):
        load_suite(path)


# -- files ------------------------------------------------------------------------------------------------------


def test_names_with_blanks_quotes_and_signs_print_and_parse_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("my photo.npy", "it's.npy", "{a,b}.npy", "#1.npy", 'it\'s "the" one.npy', "x=1.npy"):
        np.save(name, np.ones((6, 7)))
        case = Case.parse(f"i6x7 k3 f32 x={quoted('@' + name)}")
        assert case.x == f"@{name}"
        assert Case.sweep(str(case)) == [case]
        assert case.data().first.shape == (1, 1, 6, 7)
        (tmp_path / "own.txt").write_text(f"{case} # a comment\n", encoding="utf-8")
        assert load_suite("own.txt").cases == (case,)


def test_a_suites_files_are_named_from_its_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """And a case's from the current one, so that the line that is printed is the line to type."""
    (tmp_path / "mine").mkdir()
    np.save(tmp_path / "mine" / "x.npy", np.ones((6, 7)))
    lines = f"i6x7 k3 f32 x=@x.npy\ni6x7 k5 f32 x=@{tmp_path}/mine/x.npy\n"
    (tmp_path / "mine" / "own.txt").write_text(lines, encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    relative, absolute = load_suite("mine/own.txt").cases
    assert (relative.x, absolute.x) == (f"@{Path('mine/x.npy')}", f"@{tmp_path}/mine/x.npy")
    assert Case.parse(str(relative)) == relative
    monkeypatch.chdir("mine")
    assert load_suite("own.txt").cases[0].x == "@x.npy"
    with pytest.raises(SpecError, match=r"no such file \(a relative name starts from the current folder, in a suite"):
        Case.parse(str(relative))


def test_a_home_folder_is_found_and_not_spelled_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("USERPROFILE", str(tmp_path))
    np.save(tmp_path / "x.npy", np.ones((6, 7)))
    case = Case.parse("i6x7 k3 f32 x=@~/x.npy")
    assert str(case).endswith("x=@~/x.npy")
    assert case.data().first.sum() == 42


# -- images -----------------------------------------------------------------------------------------------------


def _save_image(path: Path, pixels: np.ndarray) -> None:  # type: ignore[type-arg]
    image = pytest.importorskip("PIL.Image")
    image.fromarray(pixels).save(path)


@pytest.mark.parametrize("dtype", ["f32", "uint8", "int8", "int16", "complex64"])
def test_images_are_scaled_as_the_photograph(tmp_path: Path, dtype: str) -> None:
    """0..1 in floating point, 0..255 in integers, 0..127 where they end there."""
    pixels = np.arange(6 * 7 * 3, dtype=np.uint8).reshape(6, 7, 3) * 2
    _save_image(tmp_path / "rgb.png", pixels)
    x = Case.parse(f"c3 i6x7 k3 {dtype} x=@{tmp_path}/rgb.png").data().first[0]
    scale = {"uint8": 255, "int16": 255, "int8": 127}.get(dtype, 1)
    expected = np.moveaxis(pixels, -1, 0) / 255 * scale
    np.testing.assert_allclose(x, np.rint(expected) if scale > 1 else expected, rtol=1e-6)


def test_grey_images_keep_their_levels(tmp_path: Path) -> None:
    grey = np.arange(42, dtype=np.uint8).reshape(6, 7) * 6
    _save_image(tmp_path / "grey.png", grey)
    np.testing.assert_array_equal(Case.parse(f"i6x7 k3 uint8 x=@{tmp_path}/grey.png").data().first[0, 0], grey)
    deep = np.arange(42, dtype=np.uint16).reshape(6, 7) * 1500
    _save_image(tmp_path / "deep.png", deep)
    x = Case.parse(f"i6x7 k3 f64 x=@{tmp_path}/deep.png").data().first[0, 0]
    np.testing.assert_allclose(x * 65535, deep, atol=1e-6)  # Pillow would have clipped it at 255


@pytest.mark.parametrize(
    ("line", "rule"),
    [
        ("i6x8 k3 f32", "is an image of 6×7 (rows × columns), the spec asks for 6×8: write i6x7"),
        ("n2 i6x7 k3 f32", "is a single image, the spec asks for a batch of 2: write n1"),
        ("c2 i6x7 k3 f32", "needs 2 axes and 1 or 3 channels"),
    ],
)
def test_images_of_another_size_say_which_they_are(tmp_path: Path, line: str, rule: str) -> None:
    _save_image(tmp_path / "x.png", np.zeros((6, 7), np.uint8))
    with pytest.raises(SpecError, match=r"^x: ") as caught:
        Case.parse(f"{line} x=@{tmp_path}/x.png").data()
    assert rule in str(caught.value)


def test_damaged_files_are_named(tmp_path: Path) -> None:
    """Whatever their decoders raise."""
    _save_image(tmp_path / "whole.png", np.random.default_rng(0).integers(0, 256, (60, 70)).astype(np.uint8))
    whole = (tmp_path / "whole.png").read_bytes()
    for length in (0, 5, 30, 100, len(whole) // 2):
        (tmp_path / "cut.png").write_bytes(whole[:length])
        with pytest.raises(SpecError, match=r"^x: .*cannot be read"):
            Case.parse(f"i60x70 k3 x=@{tmp_path}/cut.png").data()
    np.savez(tmp_path / "several.npz", a=np.ones(3))
    (tmp_path / "several.npz").rename(tmp_path / "several.npy")
    with pytest.raises(SpecError, match="holds several arrays"):
        Case.parse(f"i3 k3 x=@{tmp_path}/several.npy").data()
    np.save(tmp_path / "objects.npy", np.array([{}, {}, {}]), allow_pickle=True)
    with pytest.raises(SpecError, match="cannot be read"):
        Case.parse(f"i3 k3 x=@{tmp_path}/objects.npy").data()
