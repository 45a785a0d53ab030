"""Backends that break the protocol or their word, each in its own way."""

from __future__ import annotations

import sys
from dataclasses import replace
from typing import Any, NoReturn

import numpy as np

import convbench as cb

NUMBER = 42


def mirrored(spec: cb.ConvSpec, x: np.ndarray, w: np.ndarray) -> np.ndarray:
    """Right but for the order of the outputs."""
    plan = cb.plan(spec.replace(bias="none"), backend="direct-numpy", threads=1)
    return np.ascontiguousarray(plan(x, plan.prepare(w))[..., ::-1])


LIMITS = cb.Limits(axes=(1,), dtypes=("float32",))
WRONG = cb.FunctionBackend(name="wrong-results", function=mirrored, limits=LIMITS)
MISNAMED = cb.FunctionBackend(name="a-third-name", function=mirrored)
NAMESAKE = cb.FunctionBackend(name="fft", function=mirrored)


class Careless:
    """Follows the protocol, and passes all on to a sound backend."""

    kind, device, implementation = "own", "cpu", "direct-numpy under another name"

    def __init__(self, name: str) -> None:
        self.name = name
        self._sound = replace(cb.get_backend("direct-numpy"), name=name, limits=LIMITS)

    def unavailable(self) -> str | None:
        return None

    def why_not(self, spec: cb.ConvSpec) -> str | None:
        return self._sound.why_not(spec)

    def plan(self, spec: cb.ConvSpec, *, threads: int | None = None) -> Any:
        return self._sound.plan(spec, threads=threads)

    def error_bound(self, spec: cb.ConvSpec) -> cb.ErrorBound:
        return self._sound.error_bound(spec)


class Odd(Exception):
    """An error that cannot even be shown."""

    def __str__(self) -> str:
        raise TypeError("no text")


class Unspeakable(Careless):
    @property
    def implementation(self) -> str:  # type: ignore[override]
        raise RuntimeError("two lines:\nno driver")


class Uncertain(Careless):
    def unavailable(self) -> NoReturn:
        raise OSError("two lines:\nno driver")


class TongueTied(Careless):
    def why_not(self, spec: cb.ConvSpec) -> NoReturn:
        raise ZeroDivisionError("stride // 0")


class Unbound(Careless):
    def error_bound(self, spec: cb.ConvSpec) -> NoReturn:
        raise NotImplementedError("to do")


class Planless(Careless):
    def plan(self, spec: cb.ConvSpec, *, threads: int | None = None) -> NoReturn:
        raise Odd


class Quitter(Careless):
    def plan(self, spec: cb.ConvSpec, *, threads: int | None = None) -> NoReturn:
        sys.exit("no licence")


class Forgetful(Careless):
    """Its plan's ``workspace_bytes`` should be a property."""

    def plan(self, spec: cb.ConvSpec, *, threads: int | None = None) -> Any:
        plan = self._sound.plan(spec, threads=threads)

        class Plan(type(plan)):  # type: ignore[misc]
            def workspace_bytes(self) -> int:  # type: ignore[override]
                return 0

        plan.__class__ = Plan
        return plan


UNSPEAKABLE = Unspeakable("implementation-raises")
UNCERTAIN = Uncertain("unavailable-raises")
TONGUE_TIED = TongueTied("why-not-raises")
UNBOUND = Unbound("bound-raises")
PLANLESS = Planless("plan-raises")
QUITTER = Quitter("plan-exits")
FORGETFUL = Forgetful("forgetful")
