"""The command that measures a pair again, in the way it was measured."""

from __future__ import annotations

import shlex
from collections.abc import Iterator, Mapping
from typing import Any

from convbench.bench.options import Options
from convbench.report.text import missing

__all__ = ["reproduce"]


def reproduce(figure: Mapping[str, Any], options: Mapping[str, Any] | None = None) -> str:
    """Return the command, quoted for a shell.

    Parameters
    ----------
    figure : mapping
        Of the pair: ``case``, ``backend``, and ``threads`` if known.
    options : mapping, optional
        Those of its run, as environment.json has them. What is usual is left out of the command.

    Examples
    --------
    >>> reproduce({"case": "i64 k3 f32", "backend": "fft", "threads": 2}, {"mode": "cold", "passes": 10})
    "convbench run --spec 'i64 k3 f32' --backends fft --threads 2 --mode cold --passes 10"
    """
    words = ["convbench", "run", "--spec", figure["case"], "--backends", figure["backend"]]
    return shlex.join([*words, *_how(figure, options or {})])


def _how(figure: Mapping[str, Any], options: Mapping[str, Any]) -> Iterator[str]:
    threads = options.get("threads") if missing(figure.get("threads")) else figure.get("threads")
    if threads is not None:
        yield from ("--threads", f"{threads:.0f}")
    given = {name: options.get(name, getattr(Options, name)) for name in (*_USUAL, "timed", "isolate", "budget_s")}
    unusual = {name for name in given if given[name] != getattr(Options, name)}
    for name, option in _USUAL.items():
        if name in unusual and (given["timed"] or name not in _OF_TIMES):
            yield from (option, _number(given[name]))
    if given["time_limit_s"] > (Options.budget_s or 0):  # else the budget would end it first
        yield from ("--budget", _number(given["budget_s"] or given["time_limit_s"]))
    if not given["timed"]:
        yield "--accuracy"
    if not given["isolate"]:
        yield "--one-process"


#: Options of a run that decide what comes of a single pair → how they are given.
_USUAL = {
    "mode": "--mode",
    "passes": "--passes",
    "time_limit_s": "--time-limit",
    "memory_limit_bytes": "--memory-limit",
}
_OF_TIMES = ("mode", "passes")


def _number(value: float | str) -> str:
    return value if isinstance(value, str) else f"{value:.15g}"
