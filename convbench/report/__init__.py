"""Tables and plots of a run: pure functions of its records."""

from __future__ import annotations

import re
import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from convbench.errors import MissingDependency

if TYPE_CHECKING:
    import pandas as pd

    from convbench.spec import ConvSpec

__all__ = ["PAGE_FILE", "machine", "matrix_specs", "run_title", "write_report"]

PAGE_FILE = "index.html"
_MATRIX_FILE = "matrix.md"


def write_report(
    folder: str | Path,
    *,
    baseline: str | None = None,
    matrices: Sequence[ConvSpec] = (),
    note: Callable[[str], None] = warnings.warn,
) -> list[Path]:
    """Write table.md, table.csv, overview.md, the plots (SVG and PNG) and index.html of a run beside its records.

    A run in which nothing was timed has accuracy.md, accuracy.csv and their plot instead.

    Parameters
    ----------
    folder : path
        A run's folder.
    baseline : str, optional
        The backend over which speed-ups are reckoned; without results of it there are none. None: see
        :func:`convbench.report.tables.usual_baseline`.
    matrices : sequence of ConvSpec
        Specs whose figures as a matrix go into matrix.md; they need no results. See :func:`matrix_specs`.
    note : callable
        Receives one line for each part that a missing library costs.

    Returns
    -------
    list of Path
        What was written.

    Raises
    ------
    SpecError
        If the folder holds no records.
    OSError
        If a file cannot be written.
    """
    from convbench.bench.record import load_results, read

    folder = Path(folder)
    written = _write_matrices(matrices, folder)
    read(folder)  # a folder without records is an error with or without pandas
    try:
        records = load_results(folder)
    except MissingDependency as missing:
        note(str(missing))
        return written
    if records.empty:
        note("no pair was finished, so there are no tables")
        return written
    from convbench.report.accuracy import is_untimed, write_accuracy

    if is_untimed(records):
        written += write_accuracy(records, folder, note)
        return [*written, _write_page(records, folder, None, matrices, written)]
    from convbench.report.tables import figures, usual_baseline

    baseline = baseline or usual_baseline(records)
    table = figures(records, baseline)
    environment = records.attrs.get("environment", {})
    written += _write_tables(table, environment, folder, baseline)
    from convbench.report.plots import save_plots
    from convbench.report.roofline import save_roofline

    try:
        written += save_plots(table, folder)
        written += save_roofline(table, environment.get("limits"), folder)
    except MissingDependency as missing:
        note(str(missing))
    return [*written, _write_page(records, folder, baseline, matrices, written)]


def matrix_specs(folder: str | Path) -> list[ConvSpec]:
    """Return the specs of a run's matrix.md; none if there is no such file."""
    from convbench.spec import ConvSpec

    path = Path(folder) / _MATRIX_FILE
    page = path.read_text(encoding="utf-8") if path.is_file() else ""
    return [ConvSpec.parse(line) for line in re.findall("^## `(.*)`$", page, re.MULTILINE)]


def run_title(folder: str | Path) -> str:
    """Name a run: the suites in its folder's name, without the time.

    >>> run_title("results/20261121T075917Z-cnn-layers+filters"), run_title("results/reference-kernel-size")
    ('cnn-layers + filters', 'reference-kernel-size')
    """
    name = Path(folder).resolve().name
    return re.sub(r"^\d{8}T\d{6}Z-", "", name).replace("+", " + ")


def machine(environment: Mapping[str, Any]) -> str:
    """Say in one line what a run ran on.

    >>> machine({"host": {"cpu": {"model": "A CPU", "usable_cores": 2}}, "threads": 2, "libraries": {"numpy": "2.4.0"}})
    'A CPU, 2 of its cores usable · threads: 2 · numpy 2.4.0'
    """
    cpu = environment.get("host", {}).get("cpu", {})
    libraries = environment.get("libraries", {})
    cuda = environment.get("cuda") or {}
    gpu = f"{cuda.get('device')}, CUDA {cuda.get('runtime_cuda')}, CuPy {cuda.get('cupy')}" if cuda else ""
    versions = [f"{name} {libraries[name]}" for name in ("python", "numpy", "scipy", "pyfftw") if libraries.get(name)]
    parts = [
        f"{cpu.get('model') or 'unknown CPU'}, {cpu.get('usable_cores', '?')} of its cores usable",
        gpu,
        f"threads: {environment.get('threads', '?')}",
        ", ".join(versions),
    ]
    return " · ".join(part for part in parts if part)


def _write_tables(table: pd.DataFrame, environment: Mapping[str, Any], folder: Path, baseline: str) -> list[Path]:
    from convbench.bench.environment import thread_note
    from convbench.report import tables

    common = tables.layout_of_table(table).common
    head = [machine(environment)] if environment else []
    head += filter(None, [thread_note(environment)])
    head += [f"All cases: `{common}`"] if common else []
    legend = "\n".join(f"- {name}: {text}" for name, text in tables.legend(table, baseline).items())
    summary = tables.overview(table)
    pages = {
        "table.md": ["# Results", *head, legend, tables.comparison(table).markdown()],
        "overview.md": ["# Overview", *head, *[tables.MARK] * bool(summary.grids), summary.markdown()],
        "table.csv": [tables.csv_text(table).rstrip("\n")],
    }
    written = []
    for name, parts in pages.items():
        path = folder / name
        path.write_text("\n\n".join(parts) + "\n", encoding="utf-8")
        written.append(path)
    return written


def _write_page(
    records: pd.DataFrame, folder: Path, baseline: str | None, matrices: Sequence[ConvSpec], written: Sequence[Path]
) -> Path:
    """Write index.html, with the plots among what was written; without a baseline it is about errors alone."""
    from convbench.bench.record import overhead, read
    from convbench.report.matrix import matrix_table
    from convbench.report.page import Page, method_notes, page
    from convbench.report.tables import figures

    content = Page(
        title=run_title(folder),
        table=figures(records, baseline),
        baseline=baseline or "",
        environment=records.attrs.get("environment", {}),
        plots={path.stem: path.read_text(encoding="utf-8") for path in written if path.suffix == ".svg"},
        extras={f"The same operation seen as a matrix: {spec}": matrix_table(spec) for spec in matrices},
        unread=records.attrs.get("problems", ()),
        timed=baseline is not None,
        method=method_notes(records, overhead(read(folder))),
    )
    path = folder / PAGE_FILE
    path.write_text(page(content), encoding="utf-8")
    return path


def _write_matrices(specs: Sequence[ConvSpec], folder: Path) -> list[Path]:
    from convbench.report.matrix import matrix_table

    if not specs:
        return []
    parts = ["# The same operation seen as a matrix"]
    parts += [part for spec in specs for part in (f"## `{spec}`", matrix_table(spec).markdown())]
    path = folder / _MATRIX_FILE
    path.write_text("\n\n".join(parts) + "\n", encoding="utf-8")
    return [path]
