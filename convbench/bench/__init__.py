"""The measuring half of convbench: cases and suites, runs, records, statistics."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import fields
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

from convbench.backend import Backend
from convbench.bench.cases import Case, Suite, list_suites, load_suite
from convbench.bench.record import load_results
from convbench.bench.run import Options, run_cases
from convbench.errors import MissingDependency, SpecError
from convbench.pooling.spec import PoolSpec
from convbench.spec import ConvSpec

if TYPE_CHECKING:
    from pandas import DataFrame

__all__ = ["Case", "Options", "Suite", "benchmark", "list_suites", "load_results", "load_suite", "run_cases"]

Cases = str | Iterable[str | ConvSpec | PoolSpec | Case]


def benchmark(
    cases: Cases,
    backends: str | Sequence[str | Backend] | None = None,
    *,
    folder: str | Path | None = None,
    **options: Any,
) -> DataFrame:
    """Verify, then time, every backend on every case.

    Parameters
    ----------
    cases : str or iterable of str, ConvSpec, PoolSpec or Case
        A suite's name or file, one line of text, or a list of lines and specs. Lines may hold braces, each an axis of
        a sweep: ``"i56x56 k{3,5,7} psame"`` (:mod:`convbench.bench.sweeps`).
    backends : str or sequence of str, Backend or PoolBackend, optional
        One name, or several; None: all that are registered. An object that follows the protocol need not be registered.
    folder : path, optional
        Where to leave the files of the run; None: nowhere.
    **options
        The fields of :class:`Options`: threads, passes, budget_s, time_limit_s, memory_limit_bytes, mode, twins, ….
        A backend that cannot be sent to another process needs ``isolate=False``.

    Returns
    -------
    pandas.DataFrame
        One row a record (see :class:`convbench.bench.record.Record`); :func:`convbench.bench.statistics.summarise`
        makes one row a pair of it.

    Raises
    ------
    SpecError, UnknownBackend
        Before any work.
    MissingDependency
        Without pandas.

    Examples
    --------
    >>> table = benchmark("i64x64 k{3,5} f32", "direct-numpy", passes=1, threads=1, twins=0, isolate=False)
    >>> sorted(table[table["pass"] == 1].case)
    ['n1 c1 o1 i64x64 k3 f32', 'n1 c1 o1 i64x64 k5 f32']
    """
    try:
        import pandas  # noqa: F401  # missing now is better than missing after two minutes
    except ImportError:
        raise MissingDependency("benchmark() needs pandas: pip install pandas") from None

    known = [f.name for f in fields(Options)]
    unknown = [name for name in options if name not in known]
    if unknown:
        raise SpecError("options", unknown[0], f"must be one of {', '.join(known)}")
    chosen = Options(**options)
    wanted = _cases(cases)
    if folder is not None:
        run_cases(wanted, backends, chosen, Path(folder))
        return load_results(folder)
    with TemporaryDirectory(prefix="convbench-") as temporary:
        run_cases(wanted, backends, chosen, Path(temporary))
        return load_results(temporary)


def _cases(cases: Cases) -> list[Case]:
    if isinstance(cases, str):
        is_line = len(cases.split()) > 1 and not Path(cases).is_file()
        return Case.sweep(cases) if is_line else list(load_suite(cases).cases)
    if isinstance(cases, ConvSpec | PoolSpec | Case):
        cases = [cases]
    if not isinstance(cases, Iterable):
        raise _not_cases(cases)
    return [case for given in cases for case in _cases_of(given)]


def _cases_of(given: object) -> list[Case]:
    if isinstance(given, Case):
        return [given]
    if isinstance(given, ConvSpec | PoolSpec):
        return [Case.parse(str(given))]
    if isinstance(given, str):
        return Case.sweep(given)
    raise _not_cases(given)


def _not_cases(given: object) -> SpecError:
    return SpecError("cases", type(given).__name__, "must be lines, ConvSpecs or Cases, or the name of a suite")
