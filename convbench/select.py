"""``backend="auto"``: for now the first willing backend of a stated order; and what each has to say to a spec."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from convbench import refusals
from convbench.backend import Backend
from convbench.errors import MissingDependency, SpecError, UnsupportedSpec, one_line
from convbench.registry import all_backends, get_backend, refusal_of
from convbench.spec import ConvSpec
from convbench.threads import resolve

if TYPE_CHECKING:
    from pandas import DataFrame

__all__ = ["AUTO_ORDER", "choose", "explain"]

#: Own backends that take any weights, the most generally fast first; then SciPy's.
AUTO_ORDER = ("im2col", "direct-numpy", "fft", "scipy-direct", "scipy-fft")

#: Of operands and result: beyond it :func:`explain` plans nothing.
MEMORY_LIMIT_BYTES = 2 * 2**30


def choose(spec: ConvSpec, *, finite: bool = True) -> Backend:
    """Return the first backend of :data:`AUTO_ORDER` that takes ``spec``.

    Parameters
    ----------
    finite : bool
        False if the data may hold NaN or infinity: backends that would spread them are passed over.

    Raises
    ------
    UnsupportedSpec
        If none is willing, with each one's reason.
    """
    reasons = []
    for name in AUTO_ORDER:
        backend = get_backend(name)
        reason = backend.why_not(spec)
        if reason is None and not finite and backend.error_bound(spec).spreads_nonfinite:
            reason = "spreads NaN and infinity"
        if reason is None:
            return backend
        reasons.append(f"{name}: {reason}")
    raise UnsupportedSpec(f"no backend takes {spec} ({'; '.join(reasons)})")


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
