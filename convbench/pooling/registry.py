"""Pooling backends by name: the files of convbench/pooling/backends; none is imported before it is asked for."""

from __future__ import annotations

import importlib
from difflib import get_close_matches
from functools import cache
from pkgutil import iter_modules

from convbench.errors import UnknownBackend
from convbench.pooling.backend import PoolBackend

__all__ = ["all_pool_backends", "get_pool_backend", "pool_backend_names"]


@cache
def _modules() -> dict[str, str]:
    """Return name → module: a file ``foo_bar.py`` that defines ``BACKEND`` is ``foo-bar``, unless it begins with _."""
    import convbench.pooling.backends as package

    names = (module.name for module in iter_modules(package.__path__))
    return {name.replace("_", "-"): f"{package.__name__}.{name}" for name in names if not name.startswith("_")}


def pool_backend_names() -> list[str]:
    """Return the names of all pooling backends.

    >>> "van-herk" in pool_backend_names()
    True
    """
    return list(_modules())


def all_pool_backends() -> dict[str, PoolBackend]:
    """Return every pooling backend by name, the unavailable included."""
    return {name: get_pool_backend(name) for name in pool_backend_names()}


def get_pool_backend(name: str) -> PoolBackend:
    """Return the pooling backend of that name.

    Raises
    ------
    UnknownBackend
        With the names that come close.
    """
    if isinstance(name, str) and name in _modules():
        backend: PoolBackend = importlib.import_module(_modules()[name]).BACKEND
        return backend
    known = pool_backend_names()
    close = get_close_matches(str(name), known, n=3, cutoff=0.5)
    hint = f"did you mean {' or '.join(close)}?" if close else f"known are {', '.join(known)}"
    raise UnknownBackend(
        f"pooling backend {name!r} is not registered; {hint} ('convbench list backends --pooling' shows all)"
    )
