"""What each kernel takes of a multiprocessor, and the committed table of it, ``resources.tsv``.

::

    python -m convbench.cuda.resources            # compile everything, compare with the table: 1 if they differ
    python -m convbench.cuda.resources --write    # rewrite the table; reasons written into it by hand stay

No GPU is needed, but NVRTC is. A kernel that spills is a fault unless its row has a reason; so is one that needs more
shared memory than every card of this decade has. What no card could launch has no excuse.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path

from convbench.cuda.kernel import Kernel, all_kernels
from convbench.cuda.nvrtc import (
    ARCHITECTURES,
    Code,
    CompilationError,
    Program,
    compiler,
    nvrtc_problem,
    programs,
)

__all__ = ["REWRITE", "TABLE", "Multiprocessor", "Resources", "faults", "occupancy", "read_table", "resources_of"]

TABLE = Path(__file__).parent / "resources.tsv"

#: What to type once a difference is meant.
REWRITE = "python -m convbench.cuda.resources --write"

#: Shared memory of a block on compute capabilities 8.6, 8.9 and 12.x: the least of all cards with ``cp.async``.
_PORTABLE_SHARED_BYTES = 99 * 1024
_RESERVED_SHARED_BYTES = 1024  # by the driver, in each block
_MOST_REGISTERS, _MOST_THREADS = 65536, 1024  # of a block

#: Of a row: file, instance, block, dynamic shared memory, architecture.
Key = tuple[str, str, str, int, int]


@dataclass(frozen=True)
class Multiprocessor:
    """What the blocks on one multiprocessor share: CUDA C++ Programming Guide, "Compute Capabilities", its last table.

    Attributes
    ----------
    shared_bytes : int
        Of all blocks together.
    block_shared_bytes : int
        Of one block, if it asks for more than 48 KB.
    registers, warps, blocks : int
    """

    shared_bytes: int
    block_shared_bytes: int
    registers: int = 65536
    warps: int = 64
    blocks: int = 32


MULTIPROCESSORS = {80: Multiprocessor(164 * 1024, 163 * 1024), 90: Multiprocessor(228 * 1024, 227 * 1024)}


def occupancy(
    threads: int, registers: int, shared_bytes: int, multiprocessor: Multiprocessor
) -> tuple[int, float, str]:
    """Return how many blocks a multiprocessor holds, which share of its warps these are, and what limits them.

    The rules are those of ``cuda_occupancy.h`` for compute capability 8 and 9: each quarter of a multiprocessor gives
    registers to whole warps, 256 at a time, and shared memory is given out by 128 bytes.

    Parameters
    ----------
    threads : int
        Of a block.
    registers : int
        Of a thread.
    shared_bytes : int
        Of a block, static and dynamic.
    multiprocessor : Multiprocessor

    Examples
    --------
    >>> occupancy(256, 64, 40 * 1024, MULTIPROCESSORS[90])
    (4, 0.5, 'registers')
    """
    warps = -(-threads // 32)
    of_a_warp = _up(registers * 32, 256)
    by_registers = multiprocessor.registers // 4 // of_a_warp * 4 // warps
    if of_a_warp * _up(warps, 4) > _MOST_REGISTERS:
        by_registers = 0  # the hardware counts the warps of the fullest quarter in all four
    shared = _up(shared_bytes + _RESERVED_SHARED_BYTES, 128)
    by_shared = multiprocessor.shared_bytes // shared if shared_bytes <= multiprocessor.block_shared_bytes else 0
    limits = {
        "threads": multiprocessor.warps // warps if threads <= _MOST_THREADS else 0,
        "registers": by_registers,
        "shared memory": by_shared,
        "blocks": multiprocessor.blocks,
    }
    limit = min(limits, key=lambda name: limits[name])
    return limits[limit], limits[limit] * warps / multiprocessor.warps, limit


def _up(value: int, unit: int) -> int:
    return -(-value // unit) * unit


@dataclass(frozen=True)
class Resources:
    """A row of the table: one kernel on one architecture.

    Attributes
    ----------
    file, instance, block : str
        The kernel; its block as ``32x8x1``.
    architecture : int
    registers, stack_bytes, spill_bytes : int
        Of a thread.
    static_shared_bytes, dynamic_shared_bytes : int
        Of a block.
    blocks : int
        That a multiprocessor holds at a time.
    occupancy : str
        Which share of its warps these are: ``50%``.
    limit : str
        What keeps it from holding more.
    reason : str
        Why a spill is put up with, or shared memory that not every card has; written by hand.
    """

    file: str
    instance: str
    block: str
    architecture: int
    registers: int
    stack_bytes: int
    spill_bytes: int
    static_shared_bytes: int
    dynamic_shared_bytes: int
    blocks: int
    occupancy: str
    limit: str
    reason: str = ""

    @property
    def key(self) -> Key:
        """What it is a row of."""
        return self.file, self.instance, self.block, self.dynamic_shared_bytes, self.architecture

    def __str__(self) -> str:
        shared = f" and {self.dynamic_shared_bytes} B" * bool(self.dynamic_shared_bytes)
        return f"{self.file}: {self.instance}, block {self.block}{shared}, sm_{self.architecture}"


def resources_of(kernel: Kernel, code: Code, architecture: int) -> Resources:
    """Return the row of a kernel, without a reason."""
    shared = code.shared_bytes + kernel.shared_bytes
    blocks, share, limit = occupancy(kernel.threads, code.registers, shared, MULTIPROCESSORS[architecture])
    return Resources(
        file=kernel.file,
        instance=kernel.instance,
        block="x".join(map(str, kernel.block)),
        architecture=architecture,
        registers=code.registers,
        stack_bytes=code.stack_bytes,
        spill_bytes=code.spill_bytes,
        static_shared_bytes=code.shared_bytes,
        dynamic_shared_bytes=kernel.shared_bytes,
        blocks=blocks,
        occupancy=f"{share:.0%}",
        limit=limit,
    )


def rows_of(program: Program, kernels: Iterable[Kernel]) -> list[Resources]:
    """Compile a program and return the rows of those of the kernels that it has."""
    codes = program.compile()
    return [
        resources_of(kernel, codes[kernel.instance], program.architecture)
        for kernel in kernels
        if kernel.file == program.file and kernel.instance in codes
    ]


def faults(row: Resources) -> list[str]:
    """Return what is wrong with a kernel, whatever the table says of it."""
    threads = 1
    for extent in row.block.split("x"):
        threads *= int(extent)
    shared, most = row.static_shared_bytes + row.dynamic_shared_bytes, MULTIPROCESSORS[row.architecture]
    found = []
    if threads > _MOST_THREADS:
        found.append(f"{threads} threads a block, at most {_MOST_THREADS} can be launched")
    if threads * row.registers > _MOST_REGISTERS:
        found.append(f"{threads} threads × {row.registers} registers a block, at most {_MOST_REGISTERS} can be had")
    if shared > most.block_shared_bytes:
        found.append(f"{shared} bytes of shared memory a block, at most {most.block_shared_bytes} can be had")
    elif shared > _PORTABLE_SHARED_BYTES and not row.reason:
        found.append(f"{shared} bytes of shared memory a block, more than {_PORTABLE_SHARED_BYTES} without a reason")
    if not found and not row.blocks:
        found.append("no multiprocessor holds even one block")
    if row.spill_bytes and not row.reason:
        found.append(f"spills {row.spill_bytes} bytes a thread without a reason")
    return [f"{row}: {problem}" for problem in found]


# -- the table --------------------------------------------------------------------------------------


def read_table(path: Path = TABLE) -> tuple[str, dict[Key, Resources]]:
    """Return which compiler the table is of, and its rows."""
    first, header, *lines = path.read_text(encoding="utf-8").splitlines()
    columns = header.split("\t")
    readers: dict[str, Callable[[str], str | int]] = {
        field.name: int if field.type == "int" else str for field in fields(Resources)
    }
    found = {}
    for line in lines:
        cells = zip(columns, line.split("\t"), strict=True)
        row = Resources(**{name: readers[name](cell.removeprefix("-")) for name, cell in cells})  # type: ignore[arg-type]
        found[row.key] = row
    return first.removeprefix("# ").partition(";")[0], found


def write_table(rows: Iterable[Resources], path: Path = TABLE) -> None:
    """Write rows in the order of their names."""
    lines = [f"# {compiler()}; rewritten by: {REWRITE}", "\t".join(field.name for field in fields(Resources))]
    lines += ["\t".join(str(v) or "-" for v in asdict(row).values()) for row in sorted(rows, key=lambda row: row.key)]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")


def with_reason(row: Resources, table: Mapping[Key, Resources]) -> Resources:
    """Return the row with the reason that the table has for it or for another launch of its code, if it needs one."""
    if not faults(row):
        return row
    *code, architecture = row.key[:2] + row.key[-1:]
    alike = (
        kept for kept in table.values() if [kept.file, kept.instance] == code and kept.architecture == architecture
    )
    reasons = [kept.reason for kept in (table.get(row.key, row), *alike) if kept.reason]
    return replace(row, reason=reasons[0]) if reasons else row


#: NVRTC 13.0 does not always give the same code the same registers: two cold compilations differed by 2.
_SAME_REGISTERS = 4
_BY_REGISTERS = {"registers", "blocks", "occupancy", "limit"}


def difference(row: Resources, table: Mapping[Key, Resources]) -> str | None:
    """Return in what a row is not as the table has it; None if it is."""
    kept = table.get(row.key)
    if kept is None:
        return f"{row}: not in the table"
    now, then = asdict(row), asdict(kept)
    left_out = {"reason"} | (_BY_REGISTERS if abs(row.registers - kept.registers) <= _SAME_REGISTERS else set())
    changes = [f"{name} {then[name]} → {now[name]}" for name in now if now[name] != then[name] and name not in left_out]
    return f"{row}: {', '.join(changes)}" if changes else None


def gone(there: Collection[Key], table: Mapping[Key, Resources], broken: Collection[str] = ()) -> list[str]:
    """Name the rows of the table that are of no kernel, those of files that do not compile left out."""
    missing = (row for key, row in table.items() if key not in there and row.file not in broken)
    return [f"{row}: in the table, but there is no such kernel" for row in missing]


# -- the command ------------------------------------------------------------------------------------

_SHOWN = 20  # lines of a kind


def measure(kernels: Sequence[Kernel]) -> tuple[list[Resources], dict[str, str]]:
    """Compile all kernels, in as many processes as there are cores; return rows, and NVRTC's complaint by file."""
    from concurrent.futures import ProcessPoolExecutor
    from multiprocessing import get_context

    rows: list[Resources] = []
    broken: dict[str, str] = {}
    with ProcessPoolExecutor(mp_context=get_context("spawn")) as pool:
        futures = {program: pool.submit(rows_of, program, kernels) for program in programs(kernels)}
        for program, future in futures.items():
            try:
                rows += future.result()
            except CompilationError as error:
                broken[program.file] = str(error)
    return rows, broken


def main(arguments: Sequence[str]) -> int:
    """Compare with the table, or rewrite it; print what was compiled and what is wrong."""
    if list(arguments) not in ([], ["--write"]):
        print(__doc__, file=sys.stderr)
        return 2
    problem = nvrtc_problem()
    if problem:
        print(f"kernels NOT compiled: {problem}")
        return 2
    kernels = all_kernels()
    rows, broken = measure(kernels)
    kept_by, table = read_table() if TABLE.exists() else (compiler(), {})
    rows = [with_reason(row, table) for row in rows]
    print(summary(kernels))
    errors = [*broken.values(), *(fault for row in rows for fault in faults(row))]
    changes: list[str] = []
    if arguments:  # what does not compile keeps its rows
        write_table([*rows, *(row for row in table.values() if row.file in broken)])
    elif kept_by != compiler():
        print(f"figures NOT compared: the table is of {kept_by}")
    else:
        changes += filter(None, (difference(row, table) for row in rows))
        changes += gone({row.key for row in rows}, table, set(broken))
    for texts in (errors, changes):
        print(*texts[:_SHOWN], sep="\n", end="\n" * bool(texts))
        if len(texts) > _SHOWN:
            print(f"… and {len(texts) - _SHOWN} more like these")
    if changes:
        print(f"if these changes are meant: {REWRITE}")
    return int(bool(errors or changes))


def summary(kernels: Sequence[Kernel]) -> str:
    """Say how much was compiled: "7 sources, 41 instances, 49 kernels, for sm_80 and sm_90 by NVRTC 13.0.88"."""
    sources = {kernel.file for kernel in kernels}
    instances = {(kernel.file, kernel.instance) for kernel in kernels}
    cores = sum(kernel.tensor_cores for kernel in kernels)
    named = " and ".join(f"sm_{architecture}" for architecture in ARCHITECTURES)
    return (
        f"compiled: {len(sources)} sources, {len(instances)} instances, {len(kernels)} kernels with their blocks "
        f"({cores} on tensor cores), for {named} by {compiler()}"
    )


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
