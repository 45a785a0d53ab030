"""A worker in a process of its own, and the parent that watches it.

The two talk through a pipe that nothing else knows of: what a backend prints goes to a file, of which the last line
is told if the worker dies. Before each stage of a backend the worker says how long it may last; a stage that lasts
longer, or in which the process grows beyond its limit, is ended by killing the worker.
"""

from __future__ import annotations

import contextlib
import ctypes
import faulthandler
import json
import math
import os
import pickle
import signal
import subprocess
import sys
import tempfile
import time
import traceback
from multiprocessing import Pipe
from multiprocessing.connection import Connection
from typing import Any

from convbench.bench.service import DeviceFault, Service, Setup
from convbench.errors import ConvbenchError, MissingDependency, SpecError
from convbench.refusals import human_bytes

__all__ = ["Local", "Lost", "Process", "serve"]

_LOOK_S = 0.05  # between looks at the worker's memory and the clock
_LIBRARIES_BYTES = 2**27  # that a stage may take beside its data: libraries load parts of themselves when first used
_PR_SET_PDEATHSIG = 1  # linux/prctl.h
_START = (
    "import json, sys; sys.path[:] = json.loads(sys.argv[2]); "
    "from convbench.bench.process import serve; serve(int(sys.argv[1]))"
)


class Lost(Exception):
    """The worker is gone.

    Attributes
    ----------
    status, reason : str
        For the record of what it was doing.
    killed : bool
        By a SIGKILL that is not ours: the system's, for want of memory, or a person's.
    """

    def __init__(self, status: str, reason: str, killed: bool = False) -> None:
        super().__init__(reason)
        self.status, self.reason, self.killed = status, reason, killed


def _lost(fault: DeviceFault) -> Lost:
    """A worker without a GPU is as good as dead."""
    return Lost("crashed", str(fault))


class Local:
    """Stands for a worker where there is to be none: does everything here, and nothing is watched."""

    def __init__(self, setup: Setup, memory_limit_bytes: int) -> None:
        self._service = Service(setup, lambda stage, patience_s: None)

    def ask(self, request: str, *arguments: Any) -> Any:
        """Call a method of :class:`Service`; raises :class:`Lost` for a GPU that is lost, which only processes mend."""
        try:
            return getattr(self._service, request)(*arguments)
        except DeviceFault as fault:
            raise _lost(fault) from None

    def close(self) -> None:
        """Let go of everything."""
        self._service.close()


class Process:
    """A worker process.

    Parameters
    ----------
    setup : Setup
    memory_limit_bytes : int
        By which the process may grow within one stage of a backend.

    Raises
    ------
    SpecError
        If a backend cannot be sent to another process.
    MissingDependency
        Without psutil or cloudpickle.
    """

    def __init__(self, setup: Setup, memory_limit_bytes: int) -> None:
        self._limit_bytes = memory_limit_bytes
        self._stage, self._patience_s, self._deadline, self._most_bytes = "starting", math.inf, math.inf, math.inf
        try:
            import psutil
        except ImportError:
            raise MissingDependency("worker processes are watched with psutil: pip install psutil") from None
        self._psutil, message = psutil, _packed(setup)
        self._pipe, theirs = Pipe()
        self._output = tempfile.TemporaryFile()  # noqa: SIM115  # closed with the process
        command = [
            sys.executable,
            "-c",
            _START,
            str(theirs.fileno()),
            json.dumps([os.path.abspath(p) for p in sys.path]),
        ]
        self._process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=self._output,
            stderr=self._output,
            pass_fds=(theirs.fileno(),),
            process_group=0,  # whatever it starts ends with it
            env=os.environ | _thread_variables(setup.threads),
        )
        theirs.close()
        self._look = self._psutil.Process(self._process.pid)
        self._send(message)

    @property
    def pid(self) -> int:
        """The worker's process id."""
        return self._process.pid

    def ask(self, request: str, *arguments: Any) -> Any:
        """Call a method of the worker's :class:`Service`; wait for its result.

        Raises
        ------
        Lost
            If the worker died, hung, outgrew its memory or has lost its GPU.
        ConvbenchError
            As the method does.
        """
        self._send(pickle.dumps((request, arguments)))
        while True:
            kind, content = self._next()
            if kind == "stage":
                self._begin_stage(*content)
            elif kind == "fault":
                raise _lost(content)
            elif kind == "raised":
                raise content
            else:
                self._begin_stage("waiting", math.inf)
                return content

    def close(self) -> None:
        """End it and what it has started, whatever they do."""
        self._kill()
        self._process.wait()
        self._pipe.close()
        self._output.close()

    def _send(self, message: bytes) -> None:
        try:
            self._pipe.send_bytes(message)
        except OSError:
            raise self._gone() from None

    def _next(self) -> tuple[str, Any]:
        try:
            while not self._pipe.poll(_LOOK_S):
                if self._process.poll() is not None and not self._pipe.poll():
                    raise EOFError  # a child that it has forked may hold the pipe
                self._watch()
            kind, content = pickle.loads(self._pipe.recv_bytes())
        except (EOFError, OSError):
            raise self._gone() from None
        return kind, content

    def _begin_stage(self, stage: str, patience_s: float) -> None:
        self._stage, self._patience_s = stage, patience_s
        self._deadline = time.monotonic() + patience_s
        growth_bytes = math.inf if math.isinf(patience_s) else self._limit_bytes + _LIBRARIES_BYTES
        self._most_bytes = self._resident_bytes() + growth_bytes

    def _resident_bytes(self) -> int:
        try:
            return int(self._look.memory_info().rss)
        except self._psutil.Error:
            return 0

    def _watch(self) -> None:
        """End the worker if its stage lasts too long or takes too much."""
        if time.monotonic() > self._deadline:
            self._kill()
            raise Lost("timeout", f"{self._stage} took longer than {self._patience_s:.3g} s; stopped")
        if self._resident_bytes() > self._most_bytes:
            self._kill()
            text = f"{self._stage}: its process grew by more than {human_bytes(self._limit_bytes)}; stopped"
            raise Lost("out-of-memory", text)

    def _kill(self) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)

    def _gone(self) -> Lost:
        """Say how the process ended."""
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(timeout=5)
        code = self._process.poll()
        if code is None:
            self._kill()
        how = "closed its pipe" if code is None else f"exit code {code}"
        if code is not None and code < 0:
            how = signal.Signals(-code).name
        words = self._last_words()
        text = f"{self._stage}: its process died ({how})" + f"; its last words: {words}" * bool(words)
        return Lost("crashed", text, killed=code == -signal.SIGKILL)

    def _last_words(self) -> str:
        """The last line of output before the traceback that faulthandler writes, if any."""
        with contextlib.suppress(OSError, ValueError):
            self._output.seek(max(0, self._output.seek(0, os.SEEK_END) - 4096))
            text = self._output.read().decode("utf-8", errors="replace").partition("Fatal Python error")
            lines = [line.strip() for line in text[0].splitlines() if line.strip()]
            return " ".join(lines[-1].split())[:200] if lines else ""
        return ""


def _packed(setup: Setup) -> bytes:
    try:
        import cloudpickle
    except ImportError:
        raise MissingDependency(
            "worker processes are told what to do with cloudpickle: pip install cloudpickle"
        ) from None
    for backend in setup.backends:
        try:
            cloudpickle.dumps(backend)
        except Exception as error:
            name = backend if isinstance(backend, str) else backend.name
            rule = (
                f"cannot be sent to a process of its own ({type(error).__name__}: {error}); hold nothing in it that "
                "cannot be pickled, or run with isolate=False, where a crash of it ends everything"
            )
            raise SpecError("backends", name, rule) from None
    return bytes(cloudpickle.dumps(setup))


def _thread_variables(threads: int) -> dict[str, str]:
    """Environment variables by which libraries make their pools: also of those that are loaded later."""
    names = ("OMP", "OPENBLAS", "MKL", "BLIS", "NUMEXPR", "NUMBA")
    return dict.fromkeys((*(f"{name}_NUM_THREADS" for name in names), "VECLIB_MAXIMUM_THREADS"), str(threads))


# -- the worker's side ------------------------------------------------------------------------------


def serve(descriptor: int) -> None:
    """Do what the parent asks until it goes away."""
    _die_with_parent()
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the parent, which ends this process
    faulthandler.enable()
    pipe = Connection(descriptor)

    def tell(kind: str, content: Any) -> None:
        pipe.send_bytes(pickle.dumps((kind, content)))

    service = Service(pickle.loads(pipe.recv_bytes()), lambda stage, patience_s: tell("stage", (stage, patience_s)))
    with contextlib.suppress(EOFError, OSError):
        while True:
            request, arguments = pickle.loads(pipe.recv_bytes())
            try:
                answer = getattr(service, request)(*arguments)
            except DeviceFault as fault:
                tell("fault", fault)
            except ConvbenchError as error:
                tell("raised", error)
            except Exception:
                tell("raised", RuntimeError(f"in a worker process:\n{traceback.format_exc()}"))
            else:
                tell("done", answer)


def _die_with_parent() -> None:
    """Have the system kill this process when the parent dies, however that happens and whatever this one does."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
