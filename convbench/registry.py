"""Names and what stands behind them: the files of convbench/backends, and entry points for everybody else's."""

from __future__ import annotations

import importlib
from dataclasses import dataclass
from difflib import get_close_matches
from functools import cache
from importlib import metadata
from pkgutil import iter_modules
from typing import Any

from convbench.backend import Backend, Plan
from convbench.bounds import ErrorBound
from convbench.errors import BackendUnavailable, UnknownBackend
from convbench.refusals import refuse
from convbench.spec import ConvSpec

__all__ = ["ENTRY_POINT_GROUP", "BrokenBackend", "all_backends", "get_backend"]

ENTRY_POINT_GROUP = "convbench.backends"


@cache
def _built_in() -> dict[str, str]:
    """Return name → module for every file in convbench/backends; none is imported before it is asked for.

    A file ``foo_bar.py`` there that defines ``BACKEND`` is the backend ``foo-bar``; those with a leading underscore
    hold what several share.
    """
    import convbench.backends

    modules = (module.name for module in iter_modules(convbench.backends.__path__))
    return {name.replace("_", "-"): f"convbench.backends.{name}" for name in modules if not name.startswith("_")}


@dataclass(frozen=True)
class BrokenBackend:
    """Stands for a plug-in that could not be loaded: listed with the reason, never run."""

    name: str
    reason: str
    kind: str = "rival"
    device: str = "cpu"
    implementation: str = "could not be loaded"

    def unavailable(self) -> str | None:
        """Return why it could not be loaded."""
        return self.reason

    def why_not(self, spec: ConvSpec) -> str | None:
        """Return why it could not be loaded."""
        return self.reason

    def plan(self, spec: ConvSpec, *, threads: int | None = None) -> Plan:
        """Raise BackendUnavailable."""
        raise BackendUnavailable(f"{self.name}: {self.reason}")

    def error_bound(self, spec: ConvSpec) -> ErrorBound:
        """Raise BackendUnavailable."""
        raise BackendUnavailable(f"{self.name}: {self.reason}")


def all_backends() -> dict[str, Backend]:
    """Return every registered backend by name, the unavailable and the broken included.

    >>> "im2col" in all_backends()
    True
    """
    return {name: get_backend(name) for name in _built_in()} | _plug_ins()


def get_backend(name: str) -> Backend:
    """Return the backend of that name.

    Raises
    ------
    UnknownBackend
        With the names that come close, and how to list all.
    """
    if not isinstance(name, str):
        raise UnknownBackend(f"backend {name!r} is not a name; 'convbench list backends' shows all")
    if name in _built_in():
        module = importlib.import_module(_built_in()[name])
        backend: Backend = module.BACKEND
        return backend
    plug_ins = _plug_ins()
    if name in plug_ins:
        return plug_ins[name]
    known = [*_built_in(), *plug_ins]
    close = get_close_matches(str(name), known, n=3, cutoff=0.5)
    hint = f"did you mean {' or '.join(close)}?" if close else f"known are {', '.join(known)}"
    raise UnknownBackend(f"backend {name!r} is not registered; {hint} ('convbench list backends' shows all)")


@cache
def _plug_ins() -> dict[str, Backend]:
    found: dict[str, Backend] = {}
    for entry in metadata.entry_points(group=ENTRY_POINT_GROUP):
        name = entry.name
        if name in _built_in() or name in found:
            origin = entry.dist.name if entry.dist else entry.value
            name = f"{entry.name}@{origin}"
            found[name] = BrokenBackend(name, refuse("not installed", f"the name {entry.name!r} is taken already"))
        else:
            found[name] = _load(entry)
    return found


def _load(entry: metadata.EntryPoint) -> Backend:
    try:
        loaded: Any = entry.load()
    except Exception as error:  # whatever a stranger's module raises costs one line in the list
        return BrokenBackend(entry.name, refuse("not installed", f"loading {entry.value} failed: {error!r}"))
    problem = protocol_problem(loaded)
    if problem is None and loaded.name != entry.name:
        problem = f"its name is {loaded.name!r}, not that of its entry point"
    if problem:
        return BrokenBackend(entry.name, refuse("not installed", f"{entry.value} is not a backend: {problem}"))
    backend: Backend = loaded
    return backend


def protocol_problem(candidate: object) -> str | None:
    """Return what keeps an object from being a backend, or None.

    >>> protocol_problem(42)
    'it has no name, kind, device, implementation, unavailable, why_not, plan, error_bound'
    """
    members = ("name", "kind", "device", "implementation", "unavailable", "why_not", "plan", "error_bound")
    missing = [member for member in members if not hasattr(candidate, member)]
    if missing:
        return f"it has no {', '.join(missing)}"
    texts = [m for m in members[:4] if not isinstance(getattr(candidate, m), str)]
    if texts:
        return f"its {', '.join(texts)} must be str"
    uncallable = [m for m in members[4:] if not callable(getattr(candidate, m))]
    return f"its {', '.join(uncallable)} must be callable" if uncallable else None
