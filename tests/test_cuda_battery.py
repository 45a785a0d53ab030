"""Every kernel's own source on the CPU, through the battery: the same checks that all other backends pass."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
from cuda_cpu import COUNTS, ORDERS, Mode, compiler_problem, on_cpu

from convbench.backends._cuda import CudaBackend
from convbench.checks import REFUSAL, battery
from convbench.checks.specs import EDGE_LINES
from convbench.registry import all_backends
from convbench.spec import ConvSpec

pytestmark = pytest.mark.skipif(compiler_problem() is not None, reason=compiler_problem() or "")

#: All rules are tried on these.
WHOLE = (
    "n2 c3 o4 i9x8 k3 psame bias=channel f32",
    "n2 c4 o6 i8x7 k3x2 p1x0 s2x1 g2 flip f64",
    "n1 c5 o5 i11x10 k5 p2 d2 g5 boundary=reflect f32",
    "n2 c2 o3 i7x5 k3x2 s2x1 p2 boundary=replicate bias=location f16",
    "n2 c3 o3 i9x8 k2x3 s2x1 p1:0x2:1 d1x2 g3 t3x2 flip bias=location f32",
    "n1 c8 o8 i10x9 k3 p1 bias=channel layout=channels_last f32",
    "n1 c3 o2 i5x6x7 k2x3x3 p1 f32",
    "n2 c2 o3 i70 k9 pfull boundary=circular f32",
    "op=input_grad n2 c4 o2 i6x5 k3x2 s2x1 p2:1 g2 f32",
    "op=weight_grad n2 c2 o4 i8x7 k3x2 p1 g2 f64",
)

#: Beyond one tile of everything that kernels have tiles of: these are tried by the rules of :data:`NUMERICS` only.
TILES = (
    "n1 c37 o70 i7x8 k3 p1 bias=channel f32",
    "n1 c17 o35 i6x5 k3 s2 p1 f64",
    "n1 c40 o36 i12x11 k3 p1 f16",
    "n1 c64 o64 i10 k3 psame layout=channels_last f16",
    "n1 c48 o40 i7x9 k1 f32",
    "n1 c16 o32 i9x9 k5 p2 g2 layout=channels_last f32",
    "n1 c35 o35 i9x37 k3 psame g35 f32",
    "n1 c6 o12 i40x43 k7 s2 p3 g6 bias=channel f32",
    "n1 c2 o2 i25x70 k21x17 psame g2 f32",
    "n1 c1 o1 i75x140 k5 psame boundary=reflect f32",
    "n1 c1 o1 i60x90 k15 psame boundary=circular f64",
    "n2 c1 o1 i700 k33 psame boundary=replicate f32",
    "n1 c5 o9 i400 k9 s3 p4 d2 f32",
    "n1 c3 o5 i9x19x21 k3 p1 f32",
    "n1 c1 o1 i12x20x40 k5x3x7 psame f16",
    "n3 c3 o19 i21x18 k3 p1 flip f32",
    "n1 c9 o12 i26x25 k3 p1 f32",
    "n1 c1 o1 i260x40 k3 psame f32",
    "op=input_grad n1 c20 o36 i10x9 k3 s2 p1 f32",
    "op=weight_grad n2 c20 o36 i10x9 k3 p1 f32",
    "op=weight_grad n2 c12 o12 i15x14 k3 p1 g12 f32",
)

#: In check mode, where each access costs a call.
CHECKED = (*WHOLE, *TILES[:3], TILES[5], TILES[12], TILES[15], *TILES[19:])

#: Each backend is tried on every so manieth of the lines at the edges, beginning with another one.
EVERY = 2

NUMERICS = frozenset((
    "small-integers-are-exact",
    "gaussian-errors-are-within-the-bound",
    "nan-and-infinity-stay-in-their-windows",
    "any-strides-will-do",
    "weights-are-taken-or-refused-with-a-reason",
    REFUSAL,
))  # fmt: skip


#: Those that have no kernels of their own, and call a library that has no counterpart here.
LIBRARIES_ONLY = frozenset({"matrix-sparse-cupy"})


#: Those that launch what another launches, with other tiles or another type: in one order only.
ALIKE = frozenset({"fft-tiled-cupy", "im2col-bf16-cupy", "im2col-f16-cupy"})


def backends() -> Iterator[CudaBackend]:
    """Return all that launch kernels."""
    for backend in all_backends().values():
        if isinstance(backend, CudaBackend) and backend.name not in LIBRARIES_ONLY:
            yield backend


def run(backend: Any, lines: tuple[str, ...], rules: Callable[[str], bool]) -> tuple[int, list[str]]:
    """Return how many checks passed, and what those that failed said."""
    passed, failures = 0, []
    for check in battery(backend, specs=[ConvSpec.parse(line) for line in lines]):
        if rules(check.name):
            result = check.run()
            passed += result.status == "passed"
            failures += [result.message] * (result.status == "failed")
    return passed, failures


MODES = [*(Mode(order) for order in ORDERS), Mode("shuffled", check=True)]


def cases() -> Iterator[Any]:
    for backend in backends():
        for mode in MODES[:1] if backend.name in ALIKE else MODES:
            yield pytest.param(backend, mode, id=f"{backend.name}-{mode.order}{'-checked' * mode.check}")


@pytest.mark.parametrize(("backend", "mode"), list(cases()))
def test_battery(backend: CudaBackend, mode: Mode, record_property: Callable[[str, object], None]) -> None:
    before = dict(COUNTS)
    there = on_cpu(backend, mode)
    if mode.check:
        passed, failures = run(there, CHECKED, NUMERICS.__contains__)
    elif mode.order == "forward":
        passed, failures = run(there, WHOLE, lambda rule: True)
        begin = [each.name for each in backends()].index(backend.name) % EVERY
        more_passed, more_failures = run(there, (*EDGE_LINES, *TILES)[begin::EVERY], NUMERICS.__contains__)
        passed, failures = passed + more_passed, failures + more_failures
    else:  # half of them in either order
        lines = (*WHOLE, *TILES)[mode.order == "shuffled" :: 2]
        passed, failures = run(there, lines, NUMERICS.__contains__)
    assert failures == []
    assert passed > 0
    ran = [kernel for kernel, launches in COUNTS.items() if launches > before.get(kernel, 0)]
    launches = sum(COUNTS[kernel] - before.get(kernel, 0) for kernel in ran)
    record_property("kernels run on the CPU", (passed, launches, [f"{k.file} {k.instance}" for k in ran]))
