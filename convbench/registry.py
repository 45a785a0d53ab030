"""Names and what stands behind them: the files of convbench/backends, and entry points for everybody else's.

Nothing is imported before it is asked for by name, or all are; and what a stranger's code does wrong costs the
stranger's own line, not the list.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from difflib import get_close_matches
from functools import cache
from importlib import metadata
from pkgutil import iter_modules
from typing import Any

from convbench.backend import Backend, Plan
from convbench.bounds import ErrorBound
from convbench.errors import BackendUnavailable, UnknownBackend, one_line
from convbench.refusals import refuse
from convbench.spec import ConvSpec

__all__ = [
    "ENTRY_POINT_GROUP",
    "BrokenBackend",
    "all_backends",
    "backend_names",
    "get_backend",
    "implementation_of",
    "protocol_problem",
    "refusal_of",
    "what_is_missing",
]

ENTRY_POINT_GROUP = "convbench.backends"


#: Of a backend: texts, then what can be called.
_MEMBERS = ("name", "kind", "device", "implementation", "unavailable", "why_not", "plan", "error_bound")


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
    return {name: get_backend(name) for name in backend_names()}


def backend_names() -> list[str]:
    """Return the names of :func:`all_backends`; nothing is imported.

    >>> "im2col" in backend_names()
    True
    """
    return [*_built_in(), *_plug_ins()]


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
    known = backend_names()
    close = get_close_matches(str(name), known, n=3, cutoff=0.5)
    hint = f"did you mean {' or '.join(close)}?" if close else f"known are {', '.join(known)}"
    raise UnknownBackend(f"backend {name!r} is not registered; {hint} ('convbench list backends' shows all)")


@cache
def _plug_ins() -> Mapping[str, Backend]:
    entries: dict[str, metadata.EntryPoint] = {}
    for entry in metadata.entry_points(group=ENTRY_POINT_GROUP):
        taken = entry.name in _built_in() or entry.name in entries
        entries[f"{entry.name}@{_distribution(entry)}" if taken else entry.name] = entry
    return _PlugIns(entries)


class _PlugIns(Mapping[str, Backend]):
    """What other distributions bring, by name; each is loaded when it is first looked up."""

    def __init__(self, entries: Mapping[str, metadata.EntryPoint]) -> None:
        self._entries = entries
        self._loaded: dict[str, Backend] = {}

    def __getitem__(self, name: str) -> Backend:
        if name not in self._loaded:
            self._loaded[name] = _load(name, self._entries[name])
        return self._loaded[name]

    def __contains__(self, name: object) -> bool:
        return name in self._entries

    def __iter__(self) -> Iterator[str]:
        return iter(self._entries)

    def __len__(self) -> int:
        return len(self._entries)


def _load(name: str, entry: metadata.EntryPoint) -> Backend:
    origin = _distribution(entry)
    advice = f"pip install --upgrade {origin}, or ask its authors"
    if name != entry.name:
        advice = f"ask its authors for another name, or pip uninstall {origin}"
        return _broken(name, entry, f"the name {entry.name!r} is taken already", advice)
    try:
        loaded: Any = entry.load()
    except (Exception, SystemExit) as error:  # whatever a stranger's module raises costs one line in the list
        return _broken(name, entry, f"loading it raised {type(error).__name__}: {one_line(error)}", advice)
    problem = protocol_problem(loaded)
    if problem is None and loaded.name != entry.name:
        problem = f"its name is {loaded.name!r}, not that of its entry point"
    if problem:
        return _broken(name, entry, f"it is not a backend: {problem}", advice)
    backend: Backend = loaded
    return backend


def _broken(name: str, entry: metadata.EntryPoint, problem: str, advice: str) -> BrokenBackend:
    version = f" {entry.dist.version}" if entry.dist else ""
    return BrokenBackend(
        name, refuse("not installed", f"{entry.value} of {_distribution(entry)}{version}: {problem} ({advice})")
    )


def _distribution(entry: metadata.EntryPoint) -> str:
    """Name what pip installed the entry point from."""
    return entry.dist.name if entry.dist else entry.value.partition(":")[0]


# -- what a backend says of itself, as one line even if it cannot say it ---------------------------------------


def what_is_missing(backend: Backend) -> str | None:
    """Return ``backend.unavailable()`` on one line; if it raises, that it does."""
    return _answer("unavailable()", backend.unavailable)


def refusal_of(backend: Backend, spec: ConvSpec) -> str | None:
    """Return ``backend.why_not(spec)`` on one line; if it raises, that it does."""
    return _answer("why_not()", lambda: backend.why_not(spec))


def implementation_of(backend: Backend) -> str:
    """Return ``backend.implementation`` on one line; if it raises, that it does."""
    return _answer("implementation", lambda: backend.implementation) or ""


def _answer(question: str, ask: Callable[[], str | None]) -> str | None:
    try:
        answer = ask()
    except (Exception, SystemExit) as error:
        return f"{question} raised {type(error).__name__}: {one_line(error)}"
    return None if answer is None else one_line(answer)


def protocol_problem(candidate: object) -> str | None:
    """Return what keeps an object from being a backend, or None.

    >>> protocol_problem(42)
    'it has no name, kind, device, implementation, unavailable, why_not, plan, error_bound'
    """
    if isinstance(candidate, type):
        return f"it is a class, and an instance is needed: {candidate.__name__}()"
    found: dict[str, Any] = {}
    for member in _MEMBERS:
        try:
            found[member] = getattr(candidate, member)
        except AttributeError:
            continue
        except Exception as error:
            return f"its {member} raised {type(error).__name__}: {one_line(error)}"
    missing = [member for member in _MEMBERS if member not in found]
    if missing:
        return f"it has no {', '.join(missing)}"
    texts = [member for member in _MEMBERS[:4] if not isinstance(found[member], str)]
    if texts:
        return f"its {', '.join(texts)} must be str"
    uncallable = [member for member in _MEMBERS[4:] if not callable(found[member])]
    if uncallable:
        return f"its {', '.join(uncallable)} must be callable"
    for member, allowed in (("kind", ("own", "rival")), ("device", ("cpu", "cuda"))):
        if found[member] not in allowed:
            return f"its {member} must be {' or '.join(allowed)}, got {found[member]!r}"
    return None
