"""Plans, made by hand with :func:`plan` or, behind the front doors, made once and remembered."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from threading import Lock
from typing import Any

import numpy as np
from numpy.typing import NDArray

from convbench.backend import Backend, Plan
from convbench.errors import SpecError
from convbench.operands import as_operand, common_dtype
from convbench.registry import get_backend
from convbench.select import choose
from convbench.spec import ConvSpec
from convbench.threads import resolve
from convbench.transfers import bound_to, common_device

__all__ = ["Door", "call", "is_auto", "plan"]

Array = NDArray[Any]

_PLANS: OrderedDict[Any, Plan] = OrderedDict()
_PLANS_LOCK = Lock()
_PLANS_KEPT = 128
_PLANS_KEPT_BYTES = 256 * 2**20  # of workspace, which a plan may keep between calls


def plan(spec: ConvSpec | str, backend: str = "auto", *, threads: int | None = None, finite: bool = True) -> Plan:
    """Make a spec ready: ``weights = plan.prepare(w)`` once, ``plan(x, weights, bias, out)`` often.

    Parameters
    ----------
    spec : ConvSpec or str
        A string is parsed as a line.
    backend : str
        A registered name, or "auto" (see :mod:`convbench.select`).
    threads : int, optional
        None: every core in the affinity mask.
    finite : bool
        With "auto": False if the data may hold NaN or infinity.

    Raises
    ------
    SpecError, UnknownBackend, BackendUnavailable, UnsupportedSpec

    Examples
    --------
    >>> import numpy as np
    >>> p = plan("c2 o4 i8x8 k3 psame f64", backend="im2col", threads=1)
    >>> weights = p.prepare(np.ones((4, 2, 3, 3)))
    >>> p(np.ones((1, 2, 8, 8)), weights).shape
    (1, 4, 8, 8)

    Gradients are called as ``plan(g, weights, out=…)`` and, with nothing to prepare, ``plan(x, g, out=…)``:

    >>> p = plan("op=weight_grad c2 o4 i8x8 k3 psame f64", backend="im2col", threads=1)
    >>> p(np.ones((1, 2, 8, 8)), np.ones((1, 4, 8, 8))).shape
    (4, 2, 3, 3)
    """
    if isinstance(spec, str):
        spec = ConvSpec.parse(spec)
    if not isinstance(spec, ConvSpec):
        raise SpecError("spec", spec, "must be a ConvSpec or a line such as 'n1 c64 o64 i56x56 k3 p1 f32'")
    return _backend_for(spec, backend, _is_finite(finite), "cpu").plan(spec, threads=threads)


def _is_finite(finite: object) -> bool:
    if not isinstance(finite, (bool, np.bool_)):
        raise SpecError("finite", finite, "must be True, or False if the data may hold NaN or infinity")
    return bool(finite)


def _backend_for(spec: ConvSpec, backend: str, finite: bool, device: str) -> Backend:
    return choose(spec, finite=finite, device=device) if is_auto(backend) else get_backend(backend)


def is_auto(backend: object) -> bool:
    """Tell whether this is "auto" and not the name of a backend; refuse what is neither."""
    if not isinstance(backend, str):
        raise SpecError("backend", backend, "must be a name from 'convbench list backends', or 'auto'")
    return backend == "auto"


@dataclass(frozen=True, eq=False)
class Door:
    """One way in: how it reads its operands, and how it calls the plan that is made for them.

    Attributes
    ----------
    names : tuple of str
        Of the operands, for messages: two, or three with a bias.
    spec_of : callable
        ``spec_of(operands, dtype, *options) -> ConvSpec`` for operands of one dtype; says what does not fit.
    run : callable
        ``run(plan, operands, out)``.
    """

    names: tuple[str, ...]
    spec_of: Callable[..., ConvSpec]
    run: Callable[[Plan, tuple[Any, ...], Any], Array]


def call(
    door: Door,
    operands: tuple[Any, ...],
    options: tuple[Any, ...],
    out: Any,
    finite: bool,
    backend: str,
    threads: int | None,
) -> Array:
    """Run a door's operation; its plan is remembered by shapes, dtypes and options."""
    try:
        # types too: 1, 1.0 and True are equal, but not equally good; nor are subclasses of arrays
        arrays = [(type(a), a.shape, a.dtype) if a is not None else None for a in operands]
        signature = (door, *arrays, options, *map(type, options), finite, type(finite), backend, threads, type(threads))
        ready = _PLANS.get(signature)
    except (AttributeError, TypeError):  # not arrays, or a list among the options
        signature, ready = None, None
    if ready is None:
        return _first_call(door, operands, options, out, finite, backend, threads, signature)
    return door.run(ready, operands, out)


def _first_call(
    door: Door,
    given: tuple[Any, ...],
    options: tuple[Any, ...],
    out: Any,
    finite: bool,
    backend: str,
    threads: int | None,
    signature: Any,
) -> Array:
    named = dict(zip(door.names, given, strict=True))
    arrays = {name: as_operand(name, value) for name, value in named.items() if value is not None or name != "bias"}
    dtype = common_dtype(arrays)
    operands = tuple(arrays[name].astype(dtype, copy=False) if name in arrays else None for name in named)
    device, count = common_device(arrays), resolve(threads)
    spec = door.spec_of(operands, dtype.name, *options)
    chosen = _backend_for(spec, backend, _is_finite(finite), device)
    ready = bound_to(chosen.plan(spec, threads=count), chosen, device)
    if signature is not None and all(a.dtype == dtype for a in arrays.values()):
        _keep(signature, ready)
    return door.run(ready, operands, out)


def _keep(signature: Any, ready: Plan) -> None:
    with _PLANS_LOCK:
        _PLANS[signature] = ready
        while len(_PLANS) > _PLANS_KEPT or (
            len(_PLANS) > 1 and sum(kept.workspace_bytes for kept in _PLANS.values()) > _PLANS_KEPT_BYTES
        ):
            _PLANS.popitem(last=False)
