"""Reports of pytest-benchmark (``pytest suites --benchmark-json=FILE.json``) as runs of convbench."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from convbench.bench.record import ENVIRONMENT_FILE, RECORDS_FILE, Record
from convbench.errors import SpecError

__all__ = ["convert", "read_report"]

_ORIGIN = "converted_from"
_IDENTITY = ("case", "spec", "backend", "status")
_WANTED = "what `pytest suites --benchmark-json=FILE.json` writes"


def convert(file: Path) -> Path:
    """Write a report's records and environment into a folder beside it, ``FILE-report``, and return that.

    A folder made from the same file before is written anew.

    Raises
    ------
    SpecError
        If the file is no such report or holds no benchmark of convbench, if there is a folder of that name with other
        things in it, or if it cannot be written.
    """
    records, environment = read_report(file)
    folder = file.with_name(f"{file.stem}-report")
    if folder.exists() and not _is_from(folder, file):
        rule = f"would go to {folder}, which holds something else; move or rename one of the two"
        raise SpecError("RUN", str(file), rule)
    try:
        folder.mkdir(exist_ok=True)
        text = json.dumps(environment | {_ORIGIN: file.name}, indent=2, ensure_ascii=False)
        (folder / ENVIRONMENT_FILE).write_text(text + "\n", encoding="utf-8")
        lines = "".join(record.to_json() + "\n" for record in records)
        (folder / RECORDS_FILE).write_text(lines, encoding="utf-8")
    except OSError as error:
        raise SpecError("RUN", str(file), f"would go to {folder}, which cannot be written ({error.strerror})") from None
    return folder


def read_report(file: Path) -> tuple[list[Record], dict[str, Any]]:
    """Return a report's records and environment, as a run has them.

    A benchmark is one pass of its pair; the same pair in several suites makes several. pytest-benchmark keeps nothing
    of skipped tests, so that refusals are missing.

    Raises
    ------
    SpecError
        If the file is no such report, or holds no benchmark of convbench or no samples.
    """
    report = _load(file)
    benchmarks = [entry for entry in report["benchmarks"] if isinstance(entry, dict)]
    ours = [entry for entry in benchmarks if _is_ours(entry.get("extra_info"))]
    if not ours:
        rule = f"holds no benchmark of convbench ({len(benchmarks)} others); give {_WANTED}"
        raise SpecError("RUN", str(file), rule)
    run_id = f"pytest-{report.get('datetime', '')}"
    passes: Counter[tuple[str, str]] = Counter()
    records = []
    for entry in ours:
        info, stats = entry["extra_info"], _mapping(entry.get("stats"))
        if not stats.get("data"):
            rule = f"has no samples of {entry.get('name')!r}; --benchmark-json keeps them, and --benchmark-save-data"
            raise SpecError("RUN", str(file), rule)
        pair = info["case"], info["backend"]
        passes[pair] += 1
        timed = {"samples_s": stats["data"], "batch": stats.get("iterations"), "pass": passes[pair], "run_id": run_id}
        records.append(Record.from_json(json.dumps(info | timed)))
    return records, _environment(report, run_id) | {
        "cases": list(dict.fromkeys(record.case for record in records)),
        "backends": list(dict.fromkeys(record.backend for record in records)),
    }


def _load(file: Path) -> dict[str, Any]:
    try:
        report = json.loads(file.read_text(encoding="utf-8"))
    except OSError as error:
        raise SpecError("RUN", str(file), f"cannot be read ({error.strerror})") from None
    except ValueError as error:
        raise SpecError("RUN", str(file), f"is not JSON ({error}); give a run's folder, or {_WANTED}") from None
    if isinstance(report, dict) and isinstance(report.get("benchmarks"), list) and "machine_info" in report:
        return report
    raise SpecError("RUN", str(file), f"is not a report of pytest-benchmark; give a run's folder, or {_WANTED}")


def _is_ours(info: object) -> bool:
    return isinstance(info, dict) and all(isinstance(info.get(name), str) for name in _IDENTITY)


def _is_from(folder: Path, file: Path) -> bool:
    """Return whether a folder is empty or was made from this file."""
    try:
        if not any(folder.iterdir()):
            return True
        environment = json.loads((folder / ENVIRONMENT_FILE).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    return isinstance(environment, dict) and environment.get(_ORIGIN) == file.name


def _environment(report: Mapping[str, Any], run_id: str) -> dict[str, Any]:
    """Return what convbench's plug-in wrote into the report, and what pytest-benchmark did but for the host's name."""
    machine = _mapping(report["machine_info"])
    ours = _mapping(machine.get("convbench"))
    if not ours:  # the plug-in was not loaded
        cpu = _mapping(machine.get("cpu"))
        ours = {
            "host": {"cpu": {"model": cpu.get("brand_raw"), "cores": cpu.get("count")}},
            "libraries": {"python": machine.get("python_version")},
        }
    theirs = {key: value for key, value in machine.items() if key not in ("convbench", "node")}
    named = {key: report.get(key) for key in ("version", "datetime", "commit_info")}
    return {"run_id": run_id, **ours, "pytest_benchmark": {**named, "machine_info": theirs}}


def _mapping(value: object) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}
