"""``backend="auto"``: the first willing backend, in an order that depends on the spec; and what each says to it."""

from __future__ import annotations

from math import log2, prod
from typing import TYPE_CHECKING, Any

from convbench import refusals
from convbench.backend import Backend
from convbench.errors import MissingDependency, SpecError, UnsupportedSpec, one_line
from convbench.refusals import FLOATS
from convbench.registry import all_backends, get_backend, refusal_of
from convbench.spec import ConvSpec
from convbench.threads import resolve

if TYPE_CHECKING:
    from pandas import DataFrame

__all__ = ["AUTO_ORDER", "CUDA_ORDER", "choose", "explain", "preferred"]

#: Own backends that take any weights, the most generally fast first; then SciPy's. :func:`preferred` comes before them.
AUTO_ORDER = ("direct", "im2col", "direct-numpy", "fft", "scipy-direct", "scipy-fft")

#: The same for operands on a GPU. Nothing has been measured there yet: the order is by counted FLOPs and bytes.
CUDA_ORDER = ("im2col-cupy", "direct-cupy", "fft-cupy", "direct-naive-cupy")

#: Of operands and result: beyond it :func:`explain` plans nothing.
MEMORY_LIMIT_BYTES = 2 * 2**30


def choose(spec: ConvSpec, *, finite: bool = True, device: str = "cpu") -> Backend:
    """Return the first backend that takes ``spec``: those that :func:`preferred` names, then :data:`AUTO_ORDER`.

    Parameters
    ----------
    finite : bool
        False if the data may hold NaN or infinity: backends that would spread them are passed over.
    device : {"cpu", "cuda"}
        Where the operands are.

    Raises
    ------
    UnsupportedSpec
        If none is willing, with each one's reason.
    """
    reasons = []
    order = (*preferred(spec), *AUTO_ORDER) if device == "cpu" else (*_preferred_on_gpu(spec), *CUDA_ORDER)
    for name in dict.fromkeys(order):
        backend = get_backend(name)
        reason = backend.why_not(spec)
        if reason is None and not finite and backend.error_bound(spec).spreads_nonfinite:
            reason = "spreads NaN and infinity"
        if reason is None:
            return backend
        reasons.append(f"{name}: {reason}")
    raise UnsupportedSpec(f"no backend takes {spec} ({'; '.join(reasons)})")


def preferred(spec: ConvSpec) -> tuple[str, ...]:
    """Return which backends are clearly better for ``spec`` than the first of :data:`AUTO_ORDER`, if any are.

    >>> [preferred(ConvSpec.parse(line)) for line in ("i1024x1024 k3", "i1024x1024 k101", "c64 o64 i56x56 k3 p1")]
    [(), ('fft-tiled',), ('winograd',)]
    """
    if spec.tile is not None:
        return ()
    plain = spec.dtype in FLOATS and spec.op != "weight_grad" and set(spec.stride) | set(spec.dilation) == {1}
    if plain and spec.ndim <= 2 and _tiles_pay(spec):
        return ("fft-tiled",)
    if plain and _winograd_pays(spec):
        return ("winograd",)
    return ("fft-pocketfft", "fft") if _transforms_pay(spec) else ()  # FFTW plans for a second what takes 10 ms


def _preferred_on_gpu(spec: ConvSpec) -> tuple[str, ...]:
    """Return what should be better than the first of :data:`CUDA_ORDER`, if anything: by counts, as there.

    A GEMM of one row or column wastes its tiles: one channel a group is for ``direct-cupy``; from 32 × 32 taps on
    transforms do less, however well the sums go.
    """
    if spec.tile is not None or spec.op == "weight_grad":
        return ()
    if prod(spec.kernel_size) >= 1024 and all(p >= k for p, k in zip(spec.output_size, spec.kernel_size, strict=True)):
        return ("fft-tiled-cupy", "fft-cupy")
    if min(spec.in_channels, spec.out_channels) // spec.groups < 4:
        return ("direct-cupy",)
    return ("winograd-cupy",) if set(spec.kernel_size) == {3} and _winograd_pays(spec) else ()


def _tiles_pay(spec: ConvSpec) -> bool:
    """Tell whether tiles of FFTs should beat sums in registers: many taps, and outputs enough to fill tiles.

    Measured, one thread of an AVX-512 machine, float32: level at 15×15 for one channel, 7×7 for many, 129 along one
    axis.
    """
    dense = min(spec.in_channels, spec.out_channels) // spec.groups >= 8
    fewest = 129 if spec.ndim == 1 else 49 if dense else 256
    fills = all(p >= k for p, k in zip(spec.output_size, spec.kernel_size, strict=True))
    return prod(spec.kernel_size) >= fewest and fills and spec.macs > 0


def _winograd_pays(spec: ConvSpec) -> bool:
    """Tell whether there are channels enough for transforms to be cheap, and taps enough to save; see FINDINGS.md."""
    channels = min(spec.in_channels, spec.out_channels) // spec.groups
    most = max(spec.kernel_size)
    return spec.ndim == 2 and channels >= 16 and 3 <= most <= 5 and min(spec.kernel_size) > 1


def _transforms_pay(spec: ConvSpec) -> bool:
    """Tell whether whole-image FFTs should take less than half the time of sums.

    Measured, one thread of an AVX-512 machine, float32: a call 50 µs, transforms and products 16 GFLOP/s. ``direct``
    does 80 GMAC/s, its weight gradients in proportion where they fill less than 16 lanes; im2col by NumPy, which takes
    the other dtypes, 4 GMAC/s for each output channel of a group up to 10, as columns are read once for all of them.
    """
    outputs, channels = spec.out_channels // spec.groups, spec.in_channels
    points = prod(n + max(0, a) + max(0, b) for n, (a, b) in zip(spec.input_size, spec.padding, strict=True))
    transforms = spec.batch * (channels + spec.out_channels) + channels * outputs
    flops = points * (2.5 * log2(max(2, points)) * transforms + 4 * spec.batch * channels * outputs)
    macs_per_s = 4e9 * min(outputs, 10)
    if spec.dtype in FLOATS:
        macs_per_s = 80e9 * (min(outputs, 16) / 16 if spec.op == "weight_grad" else 1)
    return 2 * (50e-6 + flops / 16e9) < spec.macs / macs_per_s


def explain(spec: ConvSpec | str, *, threads: int | None = None) -> DataFrame:
    """Return what every backend makes of ``spec``.

    The expected time is scaled from a small probe that is run now; the FLOPs are those of weights without
    structure, so ``separable`` is as good as its plan says. Where operands and result exceed 2 GiB nothing is
    planned: that is refused for memory.

    Parameters
    ----------
    spec : ConvSpec or str
        A string is parsed as a line.
    threads : int, optional
        None: every core.

    Returns
    -------
    pandas.DataFrame
        One row a backend, the unavailable too: backend, kind, willing (bool), reason ("" if willing), flops,
        workspace_bytes, expected_s (NaN where not known).

    Raises
    ------
    MissingDependency
        Without pandas.
    SpecError
        If ``spec`` is neither, or ``threads`` is not a count.
    """
    try:
        from pandas import DataFrame
    except ImportError:
        raise MissingDependency("explain() needs pandas: pip install pandas") from None
    if isinstance(spec, str):
        spec = ConvSpec.parse(spec)
    elif not isinstance(spec, ConvSpec):
        raise SpecError("spec", spec, "must be a ConvSpec or its line, such as 'i8x8 k3'")
    count = resolve(threads)
    columns = ["backend", "kind", "willing", "reason", "flops", "workspace_bytes", "expected_s"]
    rows = [_explain_row(backend, spec, count) for backend in all_backends().values()]
    return DataFrame(rows, columns=columns).astype({"flops": "Int64", "workspace_bytes": "Int64"})


def _explain_row(backend: Backend, spec: ConvSpec, threads: int) -> dict[str, Any]:
    from convbench.bench.predict import expected_seconds

    row: dict[str, Any] = {"backend": backend.name, "kind": backend.kind, "willing": False}
    reason = refusal_of(backend, spec)
    if reason is None:
        reason = refusals.memory(spec.bytes_min, MEMORY_LIMIT_BYTES)
    if reason is not None:
        return row | {"reason": reason}
    try:
        plan = backend.plan(spec, threads=threads)
        figures = {"flops": int(plan.flops), "workspace_bytes": int(plan.workspace_bytes)}
        expected_s = expected_seconds(backend, spec, threads, flops=figures["flops"])
    except (Exception, SystemExit) as error:  # promised by why_not, and yet not done: say so
        return row | {"reason": f"planning failed: {type(error).__name__}: {one_line(error)}"}
    return row | {"willing": True, "reason": "", **figures, "expected_s": expected_s}
