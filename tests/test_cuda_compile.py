"""Every kernel compiles for every architecture, as CuPy would compile it, and takes what the committed table says."""

from __future__ import annotations

import re
import shutil
import subprocess
from dataclasses import replace
from itertools import product
from pathlib import Path

import pytest

from convbench.cuda import nvrtc, resources
from convbench.cuda.kernel import OPTIONS, SOURCES, Kernel, all_kernels, source_text
from convbench.cuda.nvrtc import ARCHITECTURES, Code, CompilationError, Program, compiler, nvrtc_problem, programs
from convbench.cuda.resources import (
    MULTIPROCESSORS,
    REWRITE,
    difference,
    faults,
    gone,
    occupancy,
    read_table,
    resources_of,
    rows_of,
    with_reason,
    write_table,
)

PROGRAMS = programs(all_kernels())
SOURCES_USED = tuple(dict.fromkeys(kernel.file for kernel in all_kernels()))


@pytest.fixture
def _nvrtc() -> None:
    problem = nvrtc_problem()
    if problem:
        pytest.skip(problem)


compiles = pytest.mark.usefixtures("_nvrtc")


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Keep code in a folder of the test's own."""
    monkeypatch.setenv("CONVBENCH_CACHE", str(tmp_path))
    return tmp_path / "nvrtc"


def _planted(text: str, instance: str = "planted", architecture: int = 90) -> Program:
    return Program("planted.cu", text, (instance,), architecture)


def _row(kernel: Kernel, code: Code, architecture: int = 80) -> resources.Resources:
    return resources_of(kernel, code, architecture)


PLANTED = Kernel("planted.cu", "planted", (256, 1, 1))
MODEST = Code(registers=32, stack_bytes=0, spill_bytes=0, shared_bytes=1024, opcodes=frozenset())

# -- the kernels of this package --------------------------------------------------------------------


@compiles
@pytest.mark.parametrize("program", PROGRAMS, ids=lambda p: f"{p.instances[0]}-sm_{p.architecture}")
def test_it_compiles_without_spills_and_takes_what_the_table_says(program: Program) -> None:
    """A difference that is meant is written into the table by the command that the message names."""
    made_by, table = read_table()
    rows = [with_reason(row, table) for row in rows_of(program, all_kernels())]
    assert {row.instance for row in rows} == set(program.instances)
    assert [fault for row in rows for fault in faults(row)] == []
    if made_by == compiler():
        assert list(filter(None, (difference(row, table) for row in rows))) == [], f"if that is meant: {REWRITE}"


def test_the_table_has_no_rows_of_kernels_that_are_gone() -> None:
    keys = {_row(kernel, MODEST, architecture).key for kernel in all_kernels() for architecture in ARCHITECTURES}
    assert gone(keys, read_table()[1]) == [], f"if that is meant: {REWRITE}"


@compiles
def test_the_table_is_of_the_compiler_that_the_tests_install() -> None:
    """Where another is installed, kernels are compiled and held to the limits, but figures are not compared."""
    assert read_table()[0] == compiler() or not compiler().startswith("NVRTC 13.0.")


def test_every_source_is_some_kernels() -> None:
    assert {path.name for path in SOURCES.glob("*.cu")} == {kernel.file for kernel in all_kernels()}


@pytest.mark.parametrize("kernel", all_kernels(), ids=lambda k: f"{k.file}: {k.instance} {k.block} {k.shared_bytes}")
def test_a_block_has_whole_warps(kernel: Kernel) -> None:
    assert kernel.threads == 1 or kernel.threads % 32 == 0
    assert kernel.shared_bytes % 16 == 0


# -- the algorithm, from the PTX --------------------------------------------------------------------

PROGRAMS_OF = {file: [p for p in PROGRAMS if p.file == file and p.architecture == 80] for file in SOURCES_USED}
#: Transforms of weights, prepared once: in doubles, so that they are rounded once.
_WEIGHTS_ONCE = ("winograd_pack<", "winograd_matrices<")
_SUMS = re.compile(r"(add|sub|mul|fma|mad)\.")


def _opcodes(file: str, pattern: str) -> dict[str, list[str]]:
    """Return instance → its opcodes that match."""
    matching = re.compile(pattern)
    codes = (item for program in PROGRAMS_OF[file] for item in program.compile().items())
    return {name: sorted(filter(matching.match, code.opcodes)) for name, code in codes}


_by_file = pytest.mark.parametrize("file", SOURCES_USED)


@compiles
@_by_file
def test_who_says_tensor_cores_multiplies_on_them_and_nobody_else(file: str) -> None:
    """A kernel that only rounds for them may say so too."""
    found = {name for name, opcodes in _opcodes(file, r"(wmma\.mma|mma)\.").items() if opcodes}
    said = {kernel.instance for kernel in all_kernels() if kernel.file == file and kernel.tensor_cores}
    assert found <= said
    assert bool(found) == bool(said)


@compiles
@_by_file
def test_no_precision_is_lost_or_wasted(file: str) -> None:
    """Kernels of doubles sum up doubles; others have no double in them, on which a gaming card spends 64 times."""
    for name, opcodes in _opcodes(file, r".*\.f(32|64)$").items():
        sums = [opcode for opcode in opcodes if _SUMS.match(opcode)]
        if "double" in name:
            assert not [opcode for opcode in sums if opcode.endswith("f32")], name
        elif not name.startswith(_WEIGHTS_ONCE):
            assert not [opcode for opcode in opcodes if opcode.endswith("f64")], name


@compiles
@_by_file
def test_products_are_fused_with_sums(file: str) -> None:
    found = _opcodes(file, r"(mul|fma)\.(rn\.)?(ftz\.)?f(32|64)$").values()
    assert not any(found) or any(opcode.startswith("fma.") for opcodes in found for opcode in opcodes)


@compiles
@_by_file
def test_who_speaks_of_cp_async_copies_with_it(file: str) -> None:
    own = (SOURCES / file).read_text(encoding="utf-8")
    copies = any(_opcodes(file, r"cp\.async\.c").values())
    assert copies or not re.search(r"cp\.async|__pipeline_memcpy_async", own)


# -- what is caught ---------------------------------------------------------------------------------

HOG = """
template <int N> __global__ void __launch_bounds__(1024) planted(float* x) {
    float kept[N];
#pragma unroll
    for (int i = 0; i < N; ++i) kept[i] = x[threadIdx.x + 1024 * i];
    __syncthreads();
#pragma unroll
    for (int i = 0; i < N; ++i) x[threadIdx.x * N + i] = kept[i] * kept[(i * 7 + 3) % N] + kept[(i * 5 + 1) % N];
}
"""


@compiles
def test_a_register_hog_is_caught(cache: Path) -> None:
    program = _planted(HOG, "planted<200>")
    (row,) = rows_of(program, [Kernel("planted.cu", "planted<200>", (1024, 1, 1))])
    assert row.spill_bytes > 100
    assert faults(row) == [
        f"planted.cu: planted<200>, block 1024x1x1, sm_90: spills {row.spill_bytes} bytes a thread without a reason"
    ]
    assert faults(replace(row, reason="planted")) == []
    assert rows_of(_planted(HOG, "planted<8>"), [Kernel("planted.cu", "planted<8>", (1024, 1, 1))])[0].spill_bytes == 0


@compiles
def test_what_does_not_compile_is_told_with_file_and_line(cache: Path) -> None:
    with pytest.raises(CompilationError, match=r"(?s)planted\.cu for sm_90.*planted\.cu\(2\): error.*undeclared"):
        _planted("\n__global__ void planted(float* x) { x[0] = undeclared; }").compile()
    assert not list(cache.glob("*"))  # nothing is kept of it


@compiles
def test_too_much_static_shared_memory_does_not_compile(cache: Path) -> None:
    text = "__global__ void planted(float* x) {{ __shared__ float s[{}]; s[threadIdx.x] = x[0]; x[1] = s[5]; }}"
    assert _planted(text.format(12288)).compile()["planted"].shared_bytes == 49152
    with pytest.raises(CompilationError, match="shared"):
        _planted(text.format(12289)).compile()


@pytest.mark.parametrize(
    ("kernel", "code", "text"),
    [
        (PLANTED, replace(MODEST, spill_bytes=4), "spills 4 bytes a thread without a reason"),
        (replace(PLANTED, block=(1024, 1, 1)), replace(MODEST, registers=65), "1024 threads × 65 registers a block"),
        (replace(PLANTED, block=(32, 33, 1)), MODEST, "1056 threads a block, at most 1024"),
        (replace(PLANTED, shared_bytes=163 * 1024), MODEST, "167936 bytes of shared memory a block, at most 166912"),
        (replace(PLANTED, shared_bytes=99 * 1024), MODEST, "102400 bytes of shared memory a block, more than 101376"),
        (replace(PLANTED, block=(832, 1, 1)), replace(MODEST, registers=73), "no multiprocessor holds even one block"),
    ],
)
def test_what_cannot_be_launched_everywhere_is_a_fault(kernel: Kernel, code: Code, text: str) -> None:
    assert faults(_row(PLANTED, MODEST)) == []
    assert any(text in fault for fault in faults(_row(kernel, code)))


@pytest.mark.parametrize(
    ("kernel", "code"),
    [
        (replace(PLANTED, shared_bytes=163 * 1024), MODEST),
        (replace(PLANTED, block=(1024, 1, 1)), replace(MODEST, registers=65)),
    ],
)
def test_no_reason_excuses_what_cannot_be_launched(kernel: Kernel, code: Code) -> None:
    assert faults(replace(_row(kernel, code), reason="because"))


def test_more_shared_memory_is_had_on_the_newer_architecture() -> None:
    kernel = replace(PLANTED, shared_bytes=200 * 1024)
    assert "at most" in faults(replace(_row(kernel, MODEST, 80), reason="big tiles"))[0]
    assert faults(replace(_row(kernel, MODEST, 90), reason="big tiles")) == []


# -- occupancy --------------------------------------------------------------------------------------

ORACLE = r"""
#include <stddef.h>
#include <stdio.h>
#include "cuda_occupancy.h"
int main(void) {
    int major, threads, registers, fixed, dynamic; long per_sm, per_block;
    while (scanf("%d %ld %ld %d %d %d %d", &major, &per_sm, &per_block, &threads, &registers, &fixed, &dynamic) == 7) {
        cudaOccDeviceProp p; cudaOccFuncAttributes a; cudaOccDeviceState s; cudaOccResult r;
        p.computeMajor = major; p.computeMinor = 0; p.maxThreadsPerBlock = 1024; p.maxThreadsPerMultiprocessor = 2048;
        p.regsPerBlock = p.regsPerMultiprocessor = 65536; p.warpSize = 32; p.sharedMemPerBlock = 49152;
        p.sharedMemPerMultiprocessor = per_sm; p.numSms = 1; p.sharedMemPerBlockOptin = per_block;
        p.reservedSharedMemPerBlock = 1024;
        a.maxThreadsPerBlock = 1024; a.numRegs = registers; a.sharedSizeBytes = fixed;
        a.partitionedGCConfig = PARTITIONED_GC_OFF; a.shmemLimitConfig = FUNC_SHMEM_LIMIT_OPTIN;
        a.maxDynamicSharedSizeBytes = dynamic; a.numBlockBarriers = 1;
        int e = cudaOccMaxActiveBlocksPerMultiprocessor(&r, &p, &a, &s, threads, dynamic);
        printf("%d\n", e == 0 ? r.activeBlocksPerMultiprocessor : -e);
    }
}
"""


def test_occupancy_is_that_of_cudas_own_header(tmp_path: Path) -> None:
    include = _header()
    if include is None or shutil.which("g++") is None:
        pytest.skip("needs g++ and cuda_occupancy.h, of nvidia-cuda-runtime")
    (tmp_path / "oracle.cpp").write_text(ORACLE, encoding="utf-8")
    program = str(tmp_path / "oracle")
    subprocess.run(["g++", "-w", f"-I{include}", "-o", program, str(tmp_path / "oracle.cpp")], check=True)
    cases = [
        (architecture, threads, registers, fixed, dynamic)
        for architecture, threads, registers, fixed, dynamic in product(
            ARCHITECTURES,
            (32, 64, 96, 128, 160, 256, 384, 512, 544, 800, 1024),
            (16, 24, 32, 40, 56, 64, 72, 96, 128, 168, 255),
            (0, 100, 16384, 40000),
            (0, 1000, 24576, 65536, 100000, 140000, 190000),
        )
    ]
    lines = []
    for architecture, *rest in cases:
        sm = MULTIPROCESSORS[architecture]
        lines.append(" ".join(map(str, (architecture // 10, sm.shared_bytes, sm.block_shared_bytes, *rest))))
    told = subprocess.run([program], input="\n".join(lines), capture_output=True, text=True, check=True).stdout.split()
    ours = [
        occupancy(threads, registers, fixed + dynamic, MULTIPROCESSORS[architecture])[0]
        for architecture, threads, registers, fixed, dynamic in cases
    ]
    assert list(map(int, told)) == ours
    assert 0 in ours
    assert max(ours) == 32


def _header() -> str | None:
    try:
        folders = [option[2:] for option in nvrtc.options(90) if option.startswith("-I")]
    except Exception:
        return None
    return next((folder for folder in folders if (Path(folder) / "cuda_occupancy.h").is_file()), None)


# -- the table --------------------------------------------------------------------------------------


@compiles
def test_a_table_is_read_as_it_was_written(tmp_path: Path) -> None:
    rows = [_row(PLANTED, MODEST, architecture) for architecture in ARCHITECTURES]
    rows[0] = replace(rows[0], reason="planted", spill_bytes=8)
    write_table(rows, tmp_path / "table.tsv")
    made_by, table = read_table(tmp_path / "table.tsv")
    assert made_by == compiler()
    assert list(table.values()) == rows


def test_differences_name_what_changed() -> None:
    row = _row(PLANTED, MODEST)
    table = {row.key: row}
    assert difference(row, table) is None
    other = _row(PLANTED, replace(MODEST, registers=40, spill_bytes=8, shared_bytes=2048))
    text = difference(other, table) or ""
    assert "registers 32 → 40, spill_bytes 0 → 8, static_shared_bytes 1024 → 2048" in text
    assert "not in the table" in (difference(row, {}) or "")
    assert "no such kernel" in gone([], table)[0]
    assert gone([], table, broken=["planted.cu"]) == []


def test_a_reason_stays_as_long_as_it_is_needed() -> None:
    spilling = _row(PLANTED, replace(MODEST, spill_bytes=8))
    table = {spilling.key: replace(spilling, reason="rare shape")}
    assert with_reason(spilling, table).reason == "rare shape"
    other_launch = _row(replace(PLANTED, block=(32, 1, 1)), replace(MODEST, spill_bytes=8))
    assert with_reason(other_launch, table).reason == "rare shape"
    assert with_reason(_row(PLANTED, replace(MODEST, spill_bytes=8), 90), table).reason == ""
    assert with_reason(_row(PLANTED, MODEST), table).reason == ""
    assert with_reason(spilling, {}).reason == ""


@compiles
def test_the_command_says_what_was_compiled_and_what_differs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    kernel = all_kernels()[0]
    monkeypatch.setattr(resources, "all_kernels", lambda: (kernel,))
    monkeypatch.setattr(resources, "TABLE", tmp_path / "table.tsv")
    monkeypatch.setattr(resources.write_table, "__defaults__", (tmp_path / "table.tsv",))
    monkeypatch.setattr(resources.read_table, "__defaults__", (tmp_path / "table.tsv",))
    assert resources.main([]) == 1  # no table
    output = capsys.readouterr().out
    assert "not in the table" in output
    assert "if these changes are meant: python -m convbench.cuda.resources --write" in output
    assert resources.main(["--write"]) == 0
    assert resources.main([]) == 0
    output = capsys.readouterr().out
    assert "compiled: 1 sources, 1 instances, 1 kernels" in output
    assert f"for sm_80 and sm_90 by {compiler()}" in output
    assert resources.main(["--help"]) == 2


# -- as CuPy does it --------------------------------------------------------------------------------


@compiles
def test_the_options_are_cupys_own(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """What CuPy hands to NVRTC for the source of a RawModule, once it knows the device."""
    from cupy._core.core import compile_with_cache
    from cupy.cuda import compiler as cupys

    monkeypatch.setenv("CUPY_CACHE_DIR", str(tmp_path))
    handed: list[tuple[str, ...]] = []

    class Stop(Exception):
        pass

    class Recorder:
        def __init__(self, *_: object, **__: object) -> None: ...

        def compile(self, options: tuple[str, ...], log_stream: object) -> None:
            handed.append(options)
            raise Stop

    monkeypatch.setattr(cupys, "_get_arch_for_options_for_nvrtc", lambda arch=None: (f"-arch=sm_{arch}", "cubin"))
    monkeypatch.setattr(cupys, "_preprocess", lambda *_: "")
    monkeypatch.setattr(cupys, "_NVRTCProgram", Recorder)
    with pytest.raises(Stop):
        compile_with_cache("void k() {}", OPTIONS, "90", prepend_cupy_headers=False, name_expressions=("k",))
    assert handed == [nvrtc.options(90)]


@compiles
def test_headers_that_kernels_may_include_are_found(cache: Path) -> None:
    names = ("cuda_fp16.h", "cuda_bf16.h", "mma.h", "cuda_pipeline.h", "cooperative_groups.h")
    text = "".join(f"#include <{name}>\n" for name in names)
    assert _planted(text + "__global__ void planted(float* x) { x[0] = 1; }").compile()["planted"].registers


def test_launches_find_every_source_inlined() -> None:
    for kernel in all_kernels():
        assert '#include "' not in source_text(kernel.file)


# -- what is kept -----------------------------------------------------------------------------------


@compiles
def test_a_program_is_compiled_once(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    text = "__global__ void planted(float* x) { x[threadIdx.x] *= x[0]; }"
    first = _planted(text).compile()
    (entry,) = cache.glob("*.json")

    def fail(self: Program) -> dict[str, Code]:
        raise AssertionError("compiled again")

    with monkeypatch.context() as patch:
        patch.setattr(Program, "_compile", fail)
        assert _planted(text).compile() == first
        for other in (_planted(text + "\n"), _planted(text, architecture=80)):
            with pytest.raises(AssertionError):
                other.compile()
    entry.write_text("{", encoding="utf-8")
    assert _planted(text).compile() == first
    assert "planted" in entry.read_text(encoding="utf-8")


@compiles
def test_registers_spills_and_opcodes_are_read_from_the_logs() -> None:
    log = """ptxas info    : Compiling entry function '_Z1a' for 'sm_90'
ptxas info    : Function properties for _Z1a
ptxas         .     16 bytes stack frame, 8 bytes spill stores, 12 bytes spill loads
ptxas info    : Used 40 registers, used 1 barriers, 16 bytes cumulative stack size, 1332 bytes smem
ptxas info    : Compiling entry function '_Z1b' for 'sm_90'
ptxas info    : Function properties for _Z1b
ptxas         .     0 bytes stack frame, 0 bytes spill stores, 0 bytes spill loads
ptxas info    : Used 12 registers, used 0 barriers
"""
    ptx = """.visible .entry _Z1b(\n)\n{\n\tret;\n}
.weak .entry _Z1a(\n\t.param .u64 p\n)\n{\n\t@%p1 bra \t$L1;\n\t// begin inline asm
\tcp.async.cg.shared.global [%r1], [%rd1], 16;\n\tfma.rn.ftz.f32 \t%f1, %f2, %f3, %f4;\n\tret;\n}"""
    read = nvrtc.read_code({"a": "_Z1a", "b": "_Z1b"}, log, ptx)
    assert read["a"] == Code(40, 16, 20, 1332, frozenset({"cp.async.cg.shared.global", "fma.rn.ftz.f32"}))
    assert read["b"] == Code(12, 0, 0, 0, frozenset())
    with pytest.raises(ValueError, match="says nothing like"):
        nvrtc.read_code({"a": "_Z1a"}, log.replace("Used", "Took"), ptx)
