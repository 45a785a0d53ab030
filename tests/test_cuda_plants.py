"""Faults planted in convbench's own kernels: whatever barrier is taken out of whatever source, a test must notice."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from typing import Any

import pytest
from cuda_cpu import ORDERS, Mode, compiler_problem, cpu_kernels, cuda_cpu_namespace, on_cpu

from convbench.checks import battery
from convbench.cuda.kernel import Kernel, Launch, all_kernels, source_text
from convbench.registry import get_backend
from convbench.spec import ConvSpec

pytestmark = pytest.mark.skipif(compiler_problem() is not None, reason=compiler_problem() or "")

#: Each source with barriers: a backend that launches it, and specs that between them need every barrier.
SOURCES = {
    "direct_lines.cu": ("direct-cupy", "n2 c2 o3 i70 k9 pfull f32", "n2 c1 o1 i700 k33 psame f32"),
    "direct_planes.cu": (
        "direct-cupy",
        "n1 c2 o2 i11x10 k3 p1 f32",
        "n1 c1 o1 i60x90 k15 psame boundary=circular f64",
        "n1 c1 o1 i12x20x40 k5x3x7 psame f32",
    ),
    "direct_tiles.cu": ("direct-cupy", "n3 c3 o19 i21x18 k3 p1 f32", "n1 c37 o70 i7x8 k3 p1 f32"),
    "direct_weights.cu": (
        "direct-cupy",
        "op=weight_grad n2 c12 o12 i15x14 k3 p1 g12 f32",
        "op=weight_grad n2 c20 o36 i10x9 k3 p1 f32",
        "op=weight_grad n1 c10 o110 i9x33 k3 p1 f32",
    ),
    "fft.cu": ("fft-cupy", "n2 c2 o3 i70 k9 pfull f32", "n2 c3 o4 i9x8 k3 psame bias=channel f32"),
    "implicit_gemm.cu": ("im2col-cupy", "n1 c9 o12 i26x25 k3 p1 f32", "n1 c37 o70 i7x8 k3 p1 f32"),
    "implicit_gemm_tc.cu": (
        "im2col-tf32-cupy",
        "n1 c8 o8 i10x9 k3 p1 layout=channels_last f32",
        "n1 c16 o32 i9x9 k5 p2 g2 layout=channels_last f32",
        "n1 c37 o70 i7x8 k3 p1 f32",
    ),
    "separable.cu": ("separable-cupy", "n1 c3 o3 i40x70 k5 psame g3 f32", "n1 c3 o2 i21x18 k3 s2 p1 f32"),
    "unfold.cu": (
        "im2col-full-cupy",
        "n1 c6 o8 i20x21 k3 p1 g2 layout=channels_last f32",
        "op=weight_grad n1 c6 o8 i20x21 k3 p1 g2 f32",
    ),
    "weight_gradient.cu": ("im2col-cupy", "op=weight_grad n2 c20 o36 i10x9 k3 p1 f32"),
    "winograd.cu": ("winograd-cupy", "n1 c9 o12 i26x25 k3 p1 f32", "n1 c37 o70 i7x8 k3 p1 bias=channel f32"),
}

#: What makes threads wait for each other or for a copy.
_WAITS = re.compile(r"(__syncthreads|__syncwarp|__pipeline_wait_prior)\(\w*\);")

#: Lines of a source whose wait may go, each with the reason why nothing breaks.
SPARE = {
    ("direct_weights.cu", "__syncthreads();  // the last tile's samples have been used"): (
        "the tables written next were last read before arrived(), and samples are written after one more barrier"
    ),
}

#: Their blocks along z take turns at the groups, of which no test has more than a grid: it is made one block deep.
SHALLOW = {"unfold.cu"}


@dataclass(frozen=True)
class Changed(Kernel):
    """A kernel whose text is changed."""

    text: str = ""

    def source(self) -> str:
        return self.text


@dataclass(frozen=True)
class Plant:
    """A changed source."""

    file: str
    name: str
    text: str


def without_a_wait() -> Iterator[Plant]:
    for file in SOURCES:
        text = source_text(file)
        for number, wait in enumerate(_WAITS.finditer(text)):
            line = text[wait.start() :].partition("\n")[0]
            if (file, line) in SPARE:
                continue
            changed = text[: wait.start()] + ";" + text[wait.end() :]
            yield Plant(file, f"{wait[1].strip('_')}-{number}", changed)


#: Name → what to replace wherever it stands in a source, by what.
SHIFTS = {
    "sample-past-the-end": ("< static_cast<unsigned>(size)", "<= static_cast<unsigned>(size)"),
    "halo-off-by-one": ("c.before[1]", "(c.before[1] + 1)"),
    "neighbouring-image": ("+ image * c.x[0]", "+ (image + 1) * c.x[0]"),
}


def shifted() -> Iterator[Plant]:
    for file in SOURCES:
        text = source_text(file)
        for name, (old, new) in SHIFTS.items():
            if old in text:
                yield Plant(file, name, text.replace(old, new))


def changed_backend(plant: Plant, mode: Mode) -> Any:
    def kernels(kernel: Kernel) -> Launch:
        if kernel.file != plant.file:
            return cpu_kernels(kernel, mode)
        launch = cpu_kernels(Changed(**asdict(kernel), text=plant.text), mode)
        return (lambda grid, arguments: launch((*grid[:2], 1), arguments)) if plant.file in SHALLOW else launch

    namespace = replace(cuda_cpu_namespace(mode), kernels=kernels)
    return replace(on_cpu(get_backend(SOURCES[plant.file][0]), mode), ns=lambda: namespace)


def noticed(plant: Plant) -> str | None:
    """Return the first complaint."""
    for mode in (Mode("shuffled", check=True), *map(Mode, ORDERS)):
        backend = changed_backend(plant, mode)
        for line in SOURCES[plant.file][1:]:
            for check in battery(backend, specs=[ConvSpec.parse(line)]):
                if check.name == "small-integers-are-exact":
                    result = check.run()
                    if result.status == "failed":
                        return result.message
    return None


@pytest.mark.parametrize("plant", [*without_a_wait(), *shifted()], ids=lambda plant: f"{plant.file}-{plant.name}")
def test_a_fault_planted_in_a_kernel_is_noticed(plant: Plant) -> None:
    complaint = noticed(plant)
    assert complaint is not None
    assert "does not compile" not in complaint


@pytest.mark.parametrize("file", SOURCES)
def test_without_a_fault_nothing_is_noticed(file: str) -> None:
    assert noticed(Plant(file, "none", source_text(file) + "\n")) is None


def test_every_spare_wait_is_still_there() -> None:
    assert [line for file, line in SPARE if line not in source_text(file)] == []


def test_every_source_with_a_barrier_has_specs() -> None:
    files = sorted({kernel.file for kernel in all_kernels()})
    assert [file for file in files if _WAITS.search(source_text(file)) and file not in SOURCES] == []
