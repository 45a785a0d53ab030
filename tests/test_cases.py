from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from strategies import specs

from convbench.bench import Case, list_suites, load_suite
from convbench.bench.data import mirrored, photograph
from convbench.errors import SpecError
from convbench.spec import ConvSpec


@given(spec=specs(), x=st.sampled_from(("noise", "integers")), seed=st.integers(0, 10**9), rank=st.booleans())
def test_lines_print_and_parse_back(spec: ConvSpec, x: str, seed: int, rank: bool) -> None:
    x = x if "x" in spec.operand_names else "noise"
    case = Case(spec, x=x, w="rank1" if rank and "w" in spec.operand_names else "random", seed=seed)
    assert Case.parse(str(case)) == case
    assert str(Case.parse(str(case))) == str(case)


def test_defaults_are_left_out_and_tokens_parse_from_any_order() -> None:
    assert str(Case.parse("x=noise i8x8 seed=0 k3 w=random")) == "n1 c1 o1 i8x8 k3 f32"
    assert Case.parse("seed=7 w=box i8x8 x=integers k3") == Case(ConvSpec.parse("i8x8 k3"), "integers", "box", 7)


@pytest.mark.parametrize(
    ("line", "field", "rule"),
    [
        ("i8x8 k3 x=foo", "x", "must be one of noise, integers, range, photo, @file"),
        ("i8x8 k3 w=sobol", "w", "must be one of random"),
        ("i8x8 k5 w=sobel", "w", "is a 3×3 kernel; the spec has 5×5"),
        ("i8x8 k1x3 w=edge", "w", "is a 1×2 kernel"),
        ("i8x8 k3 uint8 w=sobel", "w", "signed"),
        ("i8x8 k3 int8 w=gaussian", "w", "floating"),
        ("i8x8 k3 w=rank4", "w", "at most rank 3"),
        ("i8x8 k3 w=rank0", "w", "must be one of"),
        ("i8 k3 x=photo", "x", "needs 2 axes"),
        ("c2 i8x8 k3 x=photo", "x", "1 or 3 channels"),
        ("i8x8 k3 x=@nowhere.npy", "x", "no such file"),
        ("i8x8 k3 x=@notes.txt", "x", "ending in .npy"),
        ("i8x8 k3 w=@picture.png", "w", "ending in .npy"),
        ("i8x8 k3 int8 w=motion", "w", "floating"),
        ("i8x8 k3 int16 x=range", "x", "floating"),
        ("i8x8 k3 count=0", "count", "whole number ≥ 1"),
        ("i8x8 k3 count=2.5", "count", "whole number ≥ 1"),
        ("i8x8 k3 count=", "count", "whole number ≥ 1"),
        ("i8x8 k3 count=2 count=2", "count", "twice"),
        ("i8x8 k3 seed=-1", "seed", "whole number"),
        ("i8x8 k3 seed=one", "seed", "whole number"),
        ("i8x8 k3 x=noise x=noise", "x", "twice"),
        ("i8x8 k3 y=noise", "line", "not a token"),
        ("i8x8 x=noise", "kernel_size", "is missing"),
    ],
)
def test_malformed_lines_name_field_and_rule(line: str, field: str, rule: str) -> None:
    with pytest.raises(SpecError) as caught:
        Case.parse(line)
    assert caught.value.field == field
    assert rule in str(caught.value)
    assert "\n" not in str(caught.value)


def test_counts_are_read_but_are_no_part_of_the_case() -> None:
    case = Case.parse("count=4 c64 o64 i56x56 k3 p1")
    assert (case.weight, case.group) == (4, "")
    assert str(case) == "n1 c64 o64 i56x56 k3 p1 f32"
    assert case == Case.parse(str(case)) == Case(case.spec, group="net")
    assert len({case, Case.parse(str(case))}) == 1
    for weight in (0, -1, True, 1.5):
        with pytest.raises(SpecError, match="whole number ≥ 1"):
            Case(case.spec, weight=weight)  # type: ignore[arg-type]
    with pytest.raises(SpecError, match="data token"):
        ConvSpec.parse("i8 k3 count=2")


@pytest.mark.parametrize("dtype", ["f16", "f32", "f64", "complex64", "int8", "uint8", "int64"])
@pytest.mark.parametrize("x", ["noise", "integers"])
def test_data_have_the_shapes_and_dtype_of_the_spec(dtype: str, x: str) -> None:
    case = Case.parse(f"n2 c4 o6 i5x7 k2x3 g2 t2x1 bias=tile {dtype} x={x}")
    data = case.data()
    for array, shape in zip(data, (case.spec.input_shape, case.spec.weight_shape, case.spec.bias_shape), strict=True):
        assert array is not None
        assert array.shape == shape
        assert array.dtype == case.spec.dtype
        assert array.flags.c_contiguous
        assert array.flags.writeable
        assert array.flags.owndata


def test_data_are_new_each_time_and_follow_the_seed() -> None:
    case = Case.parse("c2 o2 i9x9 k3 bias=channel f32 seed=3")
    first, second, other = case.data(), case.data(), Case.parse(f"{case.spec} seed=4").data()
    for a, b, c in zip(first, second, other, strict=True):
        assert not any(operand is None for operand in (a, b, c))
        np.testing.assert_array_equal(a, b)
        assert not np.shares_memory(a, b)
        assert not np.array_equal(a, c)
    copied = first.copy()
    assert not any(np.shares_memory(a, b) for a, b in zip(first, copied, strict=True))


def test_operands_draw_from_streams_of_their_own() -> None:
    small, large = (Case.parse(f"i{size}x{size} k3 f64").data() for size in (8, 16))
    np.testing.assert_array_equal(small.second, large.second)
    assert not np.array_equal(small.first.ravel()[:9], small.second.ravel())


def test_channels_last_data_are_a_permuted_view() -> None:
    x = Case.parse("n2 c3 i4x5 k1 layout=channels_last f32").data().first
    assert x.shape == (2, 3, 4, 5)
    assert np.moveaxis(x, 1, -1).flags.c_contiguous
    assert np.moveaxis(Case.parse("n2 c3 i4x5 k1 layout=channels_last").data().copy().first, 1, -1).flags.c_contiguous


def test_mirroring_is_half_sample_symmetric() -> None:
    expected = np.pad(np.arange(5), (0, 18), mode="symmetric")
    np.testing.assert_array_equal(mirrored(23, 5), expected)


def test_the_photograph_is_mirrored_to_size_and_shifted_from_example_to_example() -> None:
    grey = photograph() @ np.array([0.299, 0.587, 0.114])
    assert grey.shape == (600, 512)
    x = Case.parse("n2 i700x1030 k3 f64 x=photo").data().first
    np.testing.assert_array_equal(x[0, 0, :600, :512], grey)
    np.testing.assert_array_equal(x[0, 0, :600, 512:1024], grey[:, ::-1])
    np.testing.assert_array_equal(x[0, 0, 600:], x[0, 0, 599:499:-1])
    np.testing.assert_array_equal(x[1, 0], np.roll(x[0, 0], (17, 31), (0, 1)))
    assert 0 <= x.min() < 0.1 < 0.9 < x.max() <= 1


def test_the_photograph_in_colour_and_in_integers() -> None:
    colour = Case.parse("c3 i20x30 k3 f64 x=photo").data().first
    np.testing.assert_array_equal(colour[0], np.moveaxis(photograph()[:20, :30], -1, 0))
    levels = Case.parse("c3 i20x30 k3 uint8 x=photo").data().first
    np.testing.assert_array_equal(levels, np.rint(colour * 255))
    assert Case.parse("i600x512 k3 int8 x=photo").data().first.min() >= 0


@pytest.mark.parametrize("size", [(1080, 1920), (40, 2100)])
def test_the_photograph_in_colour_at_other_sizes(size: tuple[int, int]) -> None:
    x = Case.parse(f"c3 o3 g3 i{size[0]}x{size[1]} k3 f32 x=photo").data().first
    padding = [(0, max(0, wanted - given)) for wanted, given in zip(size, (600, 512), strict=True)]
    mirror = np.pad(photograph(), [*padding, (0, 0)], mode="symmetric")[: size[0], : size[1]]
    np.testing.assert_array_equal(x[0], np.moveaxis(mirror, -1, 0).astype(np.float32))


@pytest.mark.parametrize("spec", ["c2 i7x300 k3 f64", "i300 k3 f32", "n2 i4x5x300 k3 complex64"])
def test_the_magnitude_of_range_falls_from_one_to_a_millionth(spec: str) -> None:
    data, noise = (Case.parse(f"{spec} x={x}").data().first for x in ("range", "noise"))
    magnitude = np.abs(data / noise)
    np.testing.assert_allclose(magnitude[..., 0], 1, rtol=1e-6)
    np.testing.assert_allclose(magnitude[..., -1], 1e-6, rtol=1e-6)
    steps = magnitude[..., 1:] / magnitude[..., :-1]
    np.testing.assert_allclose(steps, 10 ** (-6 / 299), rtol=1e-5)


@pytest.mark.parametrize("w", ["gaussian", "box", "disk"])
def test_smoothing_kernels_sum_to_one_and_are_symmetric(w: str) -> None:
    weights = Case.parse(f"c4 o2 g2 i9x9x9 k3x4x5 f64 w={w}").data().second
    np.testing.assert_allclose(weights.sum(axis=(1, 2, 3, 4)), 1)
    np.testing.assert_allclose(weights, weights[..., ::-1, ::-1, ::-1])
    np.testing.assert_array_equal(weights[0, 0], weights[1, 1])


def test_the_gaussian_is_separable_with_sigma_a_sixth_of_the_size() -> None:
    w = Case.parse("i64x64 k13 f64 w=gaussian").data().second[0, 0]
    assert np.linalg.matrix_rank(w, tol=1e-12) == 1
    ratio = w[6, 7] / w[6, 6]
    assert ratio == pytest.approx(np.exp(-0.5 / (13 / 6) ** 2))


@pytest.mark.parametrize("rank", [1, 2, 3])
def test_rank_is_what_was_asked_for(rank: int) -> None:
    w = Case.parse(f"c2 o2 i9x9 k5x4 f64 w=rank{rank}").data().second
    assert [np.linalg.matrix_rank(plane) for plane in w.reshape(4, 5, 4)] == [rank] * 4


def test_fixed_kernels() -> None:
    assert Case.parse("i8x8 k1x2 f32 w=edge").data().second.tolist() == [[[[-1, 1]]]]
    assert Case.parse("i8x8 k3 int8 w=sobel").data().second[0, 0].tolist() == [[-1, 0, 1], [-2, 0, 2], [-1, 0, 1]]
    assert Case.parse("i8x8 k3 f32 w=sharpen").data().second.sum() == 1
    inside = Case.parse("i8x8 k5 f64 w=disk").data().second[0, 0] > 0
    assert inside.astype(int).tolist() == [[0, 1, 1, 1, 0], [1] * 5, [1] * 5, [1] * 5, [0, 1, 1, 1, 0]]


@pytest.mark.parametrize("size", [(5, 5), (3, 9), (9, 3), (1, 4), (2, 7)])
def test_motion_is_a_connected_line_between_two_corners(size: tuple[int, int]) -> None:
    w = Case.parse(f"i9x9 k{size[0]}x{size[1]} f64 w=motion").data().second[0, 0]
    assert np.count_nonzero(w) == max(size)
    assert w.sum() == pytest.approx(1)
    assert w[0, 0] == w[-1, -1] == pytest.approx(1 / max(size))
    places = np.argwhere(w)
    assert np.abs(np.diff(places, axis=0)).max() <= 1
    if size[0] == size[1]:
        assert np.linalg.matrix_rank(w) == size[0]


def test_files(tmp_path: Path) -> None:
    from PIL import Image

    rng = np.random.default_rng(1)
    values, weights = rng.standard_normal((6, 7)), rng.standard_normal((1, 1, 3, 3))
    np.save(tmp_path / "x.npy", values)
    np.save(tmp_path / "w.npy", weights)
    data = Case.parse(f"i6x7 k3 f64 x=@{tmp_path}/x.npy w=@{tmp_path}/w.npy").data()
    np.testing.assert_array_equal(data.first[0, 0], values)
    np.testing.assert_array_equal(data.second, weights)
    pixels = rng.integers(0, 256, (6, 7, 3)).astype(np.uint8)
    Image.fromarray(pixels).save(tmp_path / "x.png")
    colour = Case.parse(f"c3 i6x7 k3 f64 x=@{tmp_path}/x.png").data().first
    np.testing.assert_array_equal(colour[0], np.moveaxis(pixels, -1, 0) / 255)


def test_files_that_do_not_fit(tmp_path: Path) -> None:
    np.save(tmp_path / "x.npy", np.zeros((6, 7)))
    np.save(tmp_path / "z.npy", np.zeros((6, 7), complex))
    (tmp_path / "broken.npy").write_bytes(b"no array")
    for line, rule in (
        (f"i7x6 k3 f64 x=@{tmp_path}/x.npy", "holds an array of shape (6, 7); the spec needs (1, 1, 7, 6)"),
        (f"i6x7 k3 f64 x=@{tmp_path}/z.npy", "does not convert to float64"),
        (f"i6x7 k3 f64 x=@{tmp_path}/broken.npy", "cannot be read"),
    ):
        with pytest.raises(SpecError, match=r"^x: ") as caught:
            Case.parse(line).data()
        assert rule in str(caught.value)


@pytest.mark.parametrize("name", ["x", "w"])
@pytest.mark.parametrize(
    ("values", "dtype", "rule"),
    [
        ([1.0, 1e39, 0.0], "f32", "holds 1e+39, which is beyond the range of float32"),
        ([1, 70000, 0], "f16", "holds 70000, which is beyond the range of float16"),
        ([1.0, 1e300j, 0.0], "complex64", "beyond the range of complex64"),
        ([1, 300, -5], "int8", "holds values from -5 to 300; int8 ends at -128 and 127"),
        (np.array([1, 2**63, 0], np.uint64), "int64", "int64 ends at"),
        ([np.nan, np.inf, -np.inf], "f64", "holds no finite number"),
    ],
)
@pytest.mark.filterwarnings("error")
def test_files_whose_values_do_not_survive(tmp_path: Path, name: str, values: object, dtype: str, rule: str) -> None:
    np.save(tmp_path / "a.npy", np.asarray(values))
    with pytest.raises(SpecError, match=rf"^{name}: ") as caught:
        Case.parse(f"i3 k3 {dtype} {name}=@{tmp_path}/a.npy").data()
    assert rule in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.filterwarnings("error")
def test_files_may_hold_some_values_that_are_not_finite(tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", np.array([1.0, np.nan, -np.inf, 1e-300]))
    x = Case.parse(f"i4 k3 f32 x=@{tmp_path}/a.npy").data().first
    np.testing.assert_array_equal(x[0, 0], np.array([1, np.nan, -np.inf, 0], np.float32))


def test_gradients_have_data_of_their_own_shapes() -> None:
    for line, names in (("op=input_grad i8 k3", "gw"), ("op=weight_grad n2 i8 k3 bias=channel", "xg")):
        case = Case.parse(line)
        data = case.data()
        assert "".join(case.spec.operand_names) == names
        assert (data.first.shape, data.second.shape) == case.spec.operand_shapes
        assert data.bias is None
    shared = Case.parse("i8 k3 w=gaussian").data().second
    np.testing.assert_array_equal(Case.parse("op=input_grad i8 k3 w=gaussian").data().second, shared)


def test_tokens_of_operands_that_an_operation_has_not_are_refused() -> None:
    with pytest.raises(SpecError, match="has no place in op=input_grad, which takes g and w"):
        Case.parse("op=input_grad i8x8 k3 x=photo")
    with pytest.raises(SpecError, match="has no place in op=weight_grad"):
        Case.parse("op=weight_grad i8x8 k3 w=gaussian")


def test_there_is_no_bfloat16_in_numpy() -> None:
    with pytest.raises(SpecError, match="bfloat16"):
        Case.parse("i8 k3 bf16").data()


# -- suites -----------------------------------------------------------------------------------------------------


def test_the_built_in_suites_hold_what_they_promise() -> None:
    assert set(list_suites()) >= {"kernel-size", "edge-detection", "smoke"}
    sizes = load_suite("kernel-size")
    assert len(sizes.cases) == 20
    for w in ("random", "gaussian"):
        kernels = [case.spec.kernel_size[0] for case in sizes.cases if case.w == w]
        assert kernels == [3, 5, 7, 9, 11, 15, 21, 31, 51, 101]
    assert {(case.spec.input_size, case.x, case.spec.padding_word) for case in sizes.cases} == {
        ((1024, 1024), "photo", "same")
    }
    (edges,) = load_suite("edge-detection").cases
    assert edges.spec.output_size == (280, 319)
    assert edges.spec.multiplications + edges.spec.additions == 267960
    assert load_suite("edge-detection").tables == ("matrix",)
    smoke = load_suite("smoke").cases
    assert {case.spec.ndim for case in smoke} == {1, 2, 3}
    assert max(case.spec.macs for case in smoke) < 10**5


@pytest.mark.parametrize("name", sorted(list_suites()))
def test_every_built_in_suite_loads(name: str) -> None:
    suite = load_suite(name)
    assert suite.name == name
    assert suite.title
    assert len(set(suite.cases)) == len(suite.cases)


def write(path: Path, text: str) -> Path:
    path.write_text(text, encoding="utf-8")
    return path


def test_a_suite_file_may_start_with_a_byte_order_mark(tmp_path: Path) -> None:
    path = tmp_path / "own.txt"
    path.write_text("#: title = Two\ni8 k3\n", encoding="utf-8-sig")
    assert (load_suite(path).title, len(load_suite(path).cases)) == ("Two", 1)


def test_a_suite_file_has_comments_directives_and_lines(tmp_path: Path) -> None:
    text = "#: title = Two\n#: tables = matrix\n\n# words\ni8 k3  # trailing\ni9 k3\n"
    suite = load_suite(write(tmp_path / "own.txt", text))
    assert (suite.name, suite.title, suite.tables) == ("own", "Two", ("matrix",))
    assert [str(case) for case in suite.cases] == ["n1 c1 o1 i8 k3 f32", "n1 c1 o1 i9 k3 f32"]


@pytest.mark.parametrize(
    ("text", "line", "rule"),
    [
        ("i8 k3\ni8 k0\n", "line 2", "kernel_size"),
        ("# fine\n\ni8 k3 x=foo\n", "line 3", "must be one of noise"),
        ("i8 k3\nf32 k3 i8\n", "line 2", "stands in this suite already, in line 1"),
        ("i8 k3\nf32 k3 i8 count=2\n", "line 2", "already"),
        ("i9 k3\ni8 k3 count=0\n", "line 2", "count: got '0'; must be a whole number ≥ 1"),
        ("#: colour = red\ni8 k3", "line 1", "title, tables"),
        ("#: group ResNet-50\ni8 k3", "line 1", "'#: key = value'"),
        ("#: tables = pie\ni8 k3", "line 1", "matrix"),
        ("# nothing\n", "own.txt", "holds no case"),
    ],
)
def test_malformed_suites_name_file_and_line(tmp_path: Path, text: str, line: str, rule: str) -> None:
    path = write(tmp_path / "own.txt", text)
    with pytest.raises(SpecError) as caught:
        load_suite(path)
    message = str(caught.value)
    assert "own.txt" in message
    assert line in message
    assert rule in message
    assert "\n" not in message


def test_a_group_lasts_until_the_next(tmp_path: Path) -> None:
    text = "i8 k3\n#: group = A net\ni9 k3 count=3\ni10 k3\n#: group = B\ni11 k3 count=2\n#: group =\ni12 k3\n"
    suite = load_suite(write(tmp_path / "own.txt", text))
    assert [(case.group, case.weight) for case in suite.cases] == [
        ("", 1), ("A net", 3), ("A net", 1), ("B", 2), ("", 1),
    ]  # fmt: skip


def test_unknown_suites_are_told_what_comes_close(tmp_path: Path) -> None:
    with pytest.raises(SpecError, match="did you mean kernel-size"):
        load_suite("kernel-sizes")
    with pytest.raises(SpecError, match="convbench list suites"):
        load_suite("zzz")
    with pytest.raises(SpecError, match="cannot be read"):
        load_suite(_not_text(tmp_path))


def _not_text(folder: Path) -> Path:
    path = folder / "binary.txt"
    path.write_bytes(b"\xff\xfe\x00")
    return path
