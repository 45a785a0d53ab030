"""Backends that do what a benchmark must survive; importable, so that a worker process can have them."""

from __future__ import annotations

import ctypes
import os
import signal
import sys
import time
import warnings
from typing import Any

import numpy as np

from convbench import ConvSpec, FunctionBackend, oracle

LINE = "n1 c1 o1 i12x12 k3 psame f32"


def right(spec: ConvSpec, x: Any, w: Any) -> Any:
    return oracle.conv(spec, x, w).astype(spec.result_dtype)


def hangs(spec: ConvSpec, x: Any, w: Any) -> Any:
    time.sleep(1e6)


def segfaults(spec: ConvSpec, x: Any, w: Any) -> Any:
    print("these are my last words")
    sys.stdout.flush()
    ctypes.string_at(0)


def aborts(spec: ConvSpec, x: Any, w: Any) -> Any:
    os.abort()


def exits(spec: ConvSpec, x: Any, w: Any) -> Any:
    os._exit(3)


def kills_itself(spec: ConvSpec, x: Any, w: Any) -> Any:
    os.kill(os.getpid(), signal.SIGKILL)


def allocates(spec: ConvSpec, x: Any, w: Any) -> Any:
    hoard = []
    while True:
        hoard.append(np.ones(2**22))


def prints(spec: ConvSpec, x: Any, w: Any) -> Any:
    for descriptor in (1, 2):
        os.write(descriptor, b"\x00\xff{garbage\n" * 100)
    print("\N{SNOWMAN}", file=sys.stderr)
    return right(spec, x, w)


def raises(spec: ConvSpec, x: Any, w: Any) -> Any:
    raise ValueError("boom\nsecond line")


def overwrites(spec: ConvSpec, x: Any, w: Any) -> Any:
    y = right(spec, x, w)
    x[0, 0, 0, 0] = 0
    return y


class Panic(BaseException):
    """What extensions in other languages raise."""


def panics(spec: ConvSpec, x: Any, w: Any) -> Any:
    raise Panic("at the core")


def speaks_no_unicode(spec: ConvSpec, x: Any, w: Any) -> Any:
    raise ValueError("file \udcff missing")


def forks_and_aborts(spec: ConvSpec, x: Any, w: Any) -> Any:
    """Its child keeps the worker's pipe open."""
    if not os.fork():
        time.sleep(60)
        os._exit(0)
    os.abort()


def changes_the_process(spec: ConvSpec, x: Any, w: Any) -> Any:
    y = right(spec, x, w)
    np.seterr(all="raise")
    warnings.simplefilter("error")
    os.chdir("/")
    return y


class WrongOnCall:
    """Wrong on its nth call on the whole spec since it was planned, and on no other."""

    def __init__(self, n: int) -> None:
        self.n, self.calls = n, 0

    def __call__(self, spec: ConvSpec, x: Any, w: Any) -> Any:
        self.calls += str(spec) == LINE
        return right(spec, x, w) + np.float32(self.calls == self.n)


class Planned:
    """A backend of which every plan begins to count anew."""

    def __init__(self, name: str, n: int) -> None:
        self._n, self._inner = n, FunctionBackend(name=name, function=right)

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_"):
            raise AttributeError(name)
        return getattr(self._inner, name)

    def plan(self, spec: ConvSpec, *, threads: int | None = None) -> Any:
        return FunctionBackend(name=self.name, function=WrongOnCall(self._n)).plan(spec, threads=threads)


def in_worker_only(spec: ConvSpec, x: Any, w: Any) -> Any:
    """Right while it is verified, and then a crash: the third process that it is called in is that of pass 2."""
    folder = os.environ["CONVBENCH_TEST_FOLDER"]
    open(os.path.join(folder, str(os.getpid())), "w").close()
    if len(os.listdir(folder)) > 2:
        os.abort()
    return right(spec, x, w)


def make(name: str, function: Any = right) -> FunctionBackend:
    return FunctionBackend(name=name, function=function)
