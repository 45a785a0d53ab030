"""Every kernel of every backend is run on the CPU and judged: by construction, one test for each of its variants.

A variant is a convolution that is small, and a form that is forced (:mod:`convbench.cuda.variants`). ``convbench check
--gpu --ledger`` runs the same ones on a GPU.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest
from cuda_cpu import COUNTS, compiler_problem, cuda_cpu_namespace, on_cpu

from convbench.backends._cuda import CudaBackend
from convbench.checks import specs_to_try
from convbench.cuda.kernel import Kernel, all_kernels
from convbench.cuda.ledger import code_of
from convbench.cuda.variants import Variant, kernels_of, with_shared_bytes
from convbench.registry import all_backends
from convbench.spec import ConvSpec

#: Instances that are not run on the CPU, and why.
NOT_RUN = {"hold": "it waits until a clock of the GPU has gone on, and computes nothing"}

BACKENDS = [backend for backend in all_backends().values() if isinstance(backend, CudaBackend) and backend.variants]


def cases() -> Iterator[Any]:
    """Return each backend with each of its variants."""
    for backend in BACKENDS:
        for number, variant in enumerate(backend.variants):
            kernel = variant.kernels[0]
            yield pytest.param(backend, variant, id=f"{backend.name}-{number}-{kernel.instance}-{kernel.shared_bytes}")


@pytest.mark.skipif(compiler_problem() is not None, reason=compiler_problem() or "")
@pytest.mark.parametrize(("backend", "variant"), list(cases()))
def test_variant(backend: CudaBackend, variant: Variant) -> None:
    before = dict(COUNTS)
    results = variant.check(on_cpu(backend))
    assert [result.message for result in results if result.status != "passed"] == []
    assert len(results) == 2
    ran = {kernel for kernel, launches in COUNTS.items() if launches > before.get(kernel, 0)}
    assert set(variant.kernels) <= ran <= set(kernels_of(backend))


def test_variants_cover_every_kernel() -> None:
    covered = {kernel for backend in BACKENDS for kernel in kernels_of(backend)}
    assert {kernel.instance for kernel in set(all_kernels()) - covered} == set(NOT_RUN)
    assert covered <= set(all_kernels())


def test_every_backend_that_launches_kernels_lists_them() -> None:
    """Those of others, whose modules are imported for what they share, are not among them."""
    counts = {backend.name: len(kernels_of(backend)) for backend in BACKENDS}
    assert counts.keys() == {
        "direct-cupy", "direct-naive-cupy", "fft-cupy", "fft-tiled-cupy", "im2col-cupy", "im2col-full-cupy",
        "im2col-bf16-cupy", "im2col-f16-cupy", "im2col-tf32-cupy", "separable-cupy", "winograd-cupy",
    }  # fmt: skip
    for name, dtype in {"im2col-tf32-cupy": "float", "im2col-bf16-cupy": "float", "im2col-f16-cupy": "__half"}.items():
        (backend,) = (backend for backend in BACKENDS if backend.name == name)
        for kernel in kernels_of(backend):
            assert kernel.tensor_cores or kernel.instance == f"add_up<{dtype}>"
    for backend in BACKENDS:
        code = code_of(backend.name)
        assert code is not None
        assert len(code.kernels) == counts[backend.name]


@pytest.mark.parametrize("backend", BACKENDS, ids=lambda backend: backend.name)
def test_what_is_planned_is_listed(backend: CudaBackend) -> None:
    """Of large convolutions too, which no test could run on the CPU."""
    asked: set[Kernel] = set()

    def record(kernel: Kernel) -> Any:
        asked.add(kernel)
        return lambda grid, arguments: None

    ns = replace(cuda_cpu_namespace(), kernels=record)
    there = replace(on_cpu(backend), ns=lambda: ns)
    large = ("n16 c512 o512 i7x7 k3 p1", "n16 c64 o64 g64 i56x56 k9 p4", "i1080x1920 k7 psame", "i480000 k1025")
    lines = [f"{line} {dtype}" for line in large for dtype in ("float32", "float64", "float16")]
    for spec in [*map(ConvSpec.parse, lines), *specs_to_try(20, 7)]:
        if there.why_not(spec) is None:
            there.plan(spec)
    assert asked
    assert asked <= set(kernels_of(backend))


def test_shared_memory_is_only_ever_added() -> None:
    given: list[int] = []

    def record(kernel: Kernel) -> Any:
        given.append(kernel.shared_bytes)

    def algorithm(ns: Any, spec: ConvSpec, threads: int) -> None:
        for shared_bytes in (0, 100, 300):
            ns.kernels(Kernel("x.cu", "x", (1, 1, 1), shared_bytes))

    ns = replace(cuda_cpu_namespace(), kernels=record)
    with_shared_bytes(algorithm, 200)(ns, ConvSpec.parse("i9 k3"), 1)
    assert given == [0, 200, 300]
