"""The built-in suites: that they hold the workloads they are named after, and that each case can be run."""

from __future__ import annotations

from collections import defaultdict
from math import prod
from pathlib import Path

import numpy as np
import pytest

from convbench.bench import Case, benchmark, list_suites, load_suite
from convbench.bench.statistics import summarise, totals
from convbench.errors import SpecError
from convbench.geometry import BOUNDARIES
from convbench.refusals import NUMPY_DTYPES
from convbench.report.layout import layout_of
from convbench.spec import ConvSpec

FIELD = ("cnn-layers", "filters", "audio-1d", "volume-3d", "large-kernel")
MEMORY_BYTES = 256 * 2**20  # operands and result of one case


def members(suite: str, group: str) -> list[Case]:
    return [case for case in load_suite(suite).cases if case.group == group]


@pytest.mark.parametrize(
    ("suite", "group", "shapes", "convolutions", "gmac"),
    [
        ("cnn-layers", "AlexNet", 5, 5, 0.666),
        ("cnn-layers", "VGG-16", 9, 13, 15.35),
        ("cnn-layers", "ResNet-50", 23, 53, 4.087),
        ("cnn-layers", "GoogLeNet", 47, 55, 1.451),  # but for two layers that are ResNet-50's too
        ("cnn-layers", "MobileNet v1", 19, 27, 0.568),
        ("cnn-layers", "U-Net", 19, 19, 144.797),
        ("cnn-batch16", "", 55, 55, 224.752),
        ("audio-1d", "WaveNet", 10, 30, 0.983),
        ("large-kernel", "RepLKNet-31B", 4, 24, 2.443),
        ("large-kernel", "ConvNeXt-T", 4, 18, 0.105),
        ("volume-3d", "3D-UNet", 8, 8, 6.382),
        ("volume-3d", "3D-UNet, late layers", 4, 4, 27.805),
        ("depthwise", "MobileNet v1", 9, 13, 0.017),
        ("transposed", "U-Net", 4, 4, 1.408),
    ],
)
def test_networks_have_as_many_layers_and_macs_as_published(
    suite: str, group: str, shapes: int, convolutions: int, gmac: float
) -> None:
    layers = members(suite, group)
    assert len(layers) == shapes
    assert sum(case.weight for case in layers) == convolutions
    assert sum(case.weight * case.spec.macs for case in layers) / 1e9 == pytest.approx(
        gmac, abs=0.0005 + 0.005 * (gmac > 10)
    )


def test_layers_of_a_chain_fit_each_other() -> None:
    """Every input of a network but the image is some other layer's output, pooled or not."""
    for suite, group, pools in (
        ("cnn-layers", "VGG-16", (1, 2)),
        ("cnn-layers", "ResNet-50", (1, 2)),
        ("cnn-layers", "MobileNet v1", (1,)),
        ("volume-3d", "3D-UNet", (1, 2)),
        ("audio-1d", "WaveNet", (1,)),
    ):
        layers = [case.spec for case in members(suite, group)]
        made = {(spec.out_channels, *(size // pool for size in spec.output_size)) for spec in layers for pool in pools}
        needed = {(spec.in_channels, *spec.input_size) for spec in layers if spec.in_channels != 3}
        assert needed <= made, group


def test_the_published_strides_and_groups() -> None:
    strided = [case.spec for case in members("cnn-layers", "ResNet-50") if case.spec.stride != (1, 1)]
    # v1.5: the 7×7, and in each of three stages the 3×3 and the shortcut
    assert sorted(spec.kernel_size[0] for spec in strided) == [1, 1, 1, 3, 3, 3, 7]
    assert [case.spec.groups for case in members("cnn-layers", "AlexNet")] == [1, 2, 1, 2, 2]
    for group in ("RepLKNet-31B", "ConvNeXt-T"):
        for spec in (case.spec for case in members("large-kernel", group)):
            assert spec.groups == spec.in_channels == spec.out_channels
            assert spec.output_size == spec.input_size
    dilations = [case.spec.dilation[0] for case in members("audio-1d", "WaveNet")]
    assert dilations == [2**i for i in range(10)]
    for spec in (case.spec for case in members("audio-1d", "WaveNet")):
        assert spec.padding == ((spec.dilation[0], 0),)  # causal
        assert spec.output_size == spec.input_size


def test_filters_are_those_of_image_processing() -> None:
    cases = load_suite("filters").cases
    assert {case.w for case in cases} == {"box", "gaussian", "sobel", "sharpen", "motion", "disk", "rank3"}
    for case in cases:
        assert (case.x, case.spec.in_channels, case.spec.groups, case.spec.dtype) == ("photo", 3, 3, "float32")
        assert case.spec.output_size == case.spec.input_size
        assert case.spec.flip == (case.w in ("motion", "disk"))  # the answer of a lens or a camera is convolved


def test_the_other_suites_reach_where_they_should() -> None:
    audio = [case.spec for case in load_suite("audio-1d").cases]
    assert {spec.ndim for spec in audio} == {1}
    taps = {spec.kernel_size[0] for spec in audio if spec.in_channels == 1}
    assert {65, 257, 1025, 4097} <= taps
    assert max(taps) >= 48_000
    volume = load_suite("volume-3d").cases
    assert {case.spec.ndim for case in volume} == {3}
    assert {1, 3, 64} <= {case.spec.in_channels for case in volume}
    large = load_suite("large-kernel").cases
    assert min(max(case.spec.kernel_size) for case in large) == 7
    assert max(max(case.spec.kernel_size) for case in large) == 101
    assert {case.spec.kernel_size[0] for case in large if case.spec.groups > 1} == {7, *range(13, 24, 2), 27, 29, 31}


def test_image_filters_have_every_size_of_kernel_once_general_once_separable_once_box() -> None:
    cases = load_suite("image-filter").cases
    grey = [case for case in cases if case.spec.in_channels == 1 and case.spec.input_size == (1024, 1024)]
    for weights in ("random", "gaussian", "box"):
        sizes = [case.spec.kernel_size[0] for case in grey if case.w == weights]
        assert sizes == [3, 5, 7, 9, 11, 15, 21, 31, 51, 101]
    assert {(case.spec.in_channels, case.spec.input_size) for case in cases} == {
        (channels, size) for channels in (1, 3) for size in ((1024, 1024), (2160, 3840))
    }
    assert {case.spec.groups == case.spec.in_channels == case.spec.out_channels for case in cases} == {True}


def test_what_deepbench_has_at_batch_16_is_at_batch_1_among_the_layers_of_networks() -> None:
    known = {case.spec for case in load_suite("cnn-layers").cases}
    assert {case.spec.replace(batch=1) for case in load_suite("cnn-batch16").cases} <= known


def test_a_suite_at_another_batch_and_dtype_has_the_same_layers() -> None:
    suite = load_suite("cnn-layers")
    changed = suite.at(batch=16, dtype="float16")
    assert (changed.name, changed.title) == ("cnn-layers-batch16-float16", "cnn-layers at batch 16 in float16")
    assert {(case.spec.batch, case.spec.dtype) for case in changed.cases} == {(16, "float16")}
    assert [(case.spec.replace(batch=1, dtype="float32"), case.weight, case.group) for case in changed.cases] == [
        (case.spec, case.weight, case.group) for case in suite.cases
    ]
    assert suite.at() is suite


def test_a_suite_that_cannot_be_changed_says_which_case() -> None:
    with pytest.raises(SpecError, match=r"suite dtypes.* is the same as '.*' in float32"):
        load_suite("dtypes").at(dtype="float32")
    with pytest.raises(SpecError, match=r"suite pooling.*cannot be in complex64: dtype"):
        load_suite("pooling").at(dtype="complex64")


VARIANTS = ("gradients", "variants", "boundaries", "transposed", "depthwise", "dtypes", "cnn-batch16", "image-filter")


def test_every_layer_of_gradients_has_all_three_operations() -> None:
    groups: defaultdict[str, list[ConvSpec]] = defaultdict(list)
    for case in load_suite("gradients").cases:
        groups[case.group].append(case.spec)
    assert len(groups) == 14
    for layers in groups.values():
        assert [spec.op for spec in layers] == ["forward", "input_grad", "weight_grad"]
        assert len({spec.replace(op="forward") for spec in layers}) == 1
        assert len({spec.macs for spec in layers}) == 1


def test_variants_do_equal_work_with_ever_more_weights() -> None:
    groups: defaultdict[str, list[ConvSpec]] = defaultdict(list)
    for case in load_suite("variants").cases:
        groups[case.group].append(case.spec)
    for layers in groups.values():
        assert layers[0].tile is None
        assert layers[-1].tile == layers[-1].output_size
        assert len({spec.macs for spec in layers}) == 1
        weights = [prod(spec.weight_shape) for spec in layers]
        assert weights == sorted(set(weights))


def test_boundaries_and_dtypes_are_all_there() -> None:
    assert {case.spec.boundary for case in load_suite("boundaries").cases} == set(BOUNDARIES)
    for group in ("image filter", "layer"):
        dtypes = {case.spec.dtype for case in members("dtypes", group)}
        assert dtypes == set(NUMPY_DTYPES) - {"uint16", "uint32", "uint64"}


def test_transposed_layers_enlarge() -> None:
    for case in load_suite("transposed").cases:
        assert case.spec.op == "input_grad"
        assert all(size >= 2 * out for size, out in zip(case.spec.input_size, case.spec.output_size, strict=True))
        exact = zip(case.spec.input_size, case.spec.output_size, case.spec.stride, strict=True)
        assert all(size == out * stride for size, out, stride in exact)  # no sample is left over


@pytest.mark.parametrize("name", FIELD + VARIANTS)
def test_every_case_can_be_made_within_memory(name: str) -> None:
    for case in load_suite(name).cases:
        assert case.spec.bytes_min <= MEMORY_BYTES
        data = case.data()
        assert data.nbytes == sum(map(prod, case.spec.operand_shapes)) * case.spec.itemsize
        assert np.isfinite(data.first).all()
        assert np.isfinite(data.second).all()
        assert np.count_nonzero(data.second)


def test_all_of_them_take_about_an_hour() -> None:
    suites = [load_suite(name) for name in FIELD]
    assert 55 * 60 <= sum(suite.budget_s for suite in suites) <= 65 * 60
    for suite in suites:
        assert layout_of(str(case) for case in suite.cases).varies is None  # a list of cases, not a sweep of one number


def test_a_case_of_two_suites_counts_the_same_in_both() -> None:
    """They run as one if both suites are asked for, and a total must not lose a layer."""
    seen: defaultdict[Case, set[tuple[str, int]]] = defaultdict(set)
    for name in list_suites():
        for case in load_suite(name).cases:
            seen[case].add((case.group, case.weight))
    assert [str(case) for case, roles in seen.items() if len(roles) > 1] == []


def test_groups_and_counts_go_from_the_suite_to_the_totals(tmp_path: Path) -> None:
    path = tmp_path / "net.txt"
    path.write_text("#: group = Net\ni20x20 k3 f32 count=3\ni20x20 k5 f32\n#: group =\ni99 k3 f32\n", encoding="utf-8")
    records = benchmark(str(path), ["direct-numpy"], passes=1, threads=1, twins=0, isolate=False)
    roles = records[records["pass"] == 1][["group", "weight"]].itertuples(index=False, name=None)
    assert sorted(roles) == [("", 1), ("Net", 1), ("Net", 3)]
    summary = summarise(records)
    times = dict(zip(summary["case"], summary["time_s"], strict=True))
    own = totals(summary).set_index("backend").loc["direct-numpy"]
    assert (own["group"], own["layers"], own["occurrences"]) == ("Net", 2, 4)
    expected_s = 3 * times["n1 c1 o1 i20x20 k3 f32"] + times["n1 c1 o1 i20x20 k5 f32"]
    assert own["time_s"] == pytest.approx(expected_s)
