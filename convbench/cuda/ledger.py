"""What has run on which GPU: ``ledger.json``, and what is said of a backend because of it.

A backend is verified on a GPU once the whole battery has passed there, and each of its kernels was launched on the way:
by the cases of :mod:`convbench.cuda.variants`, if not by the battery. Its entry keeps digests of all that decides what
runs and what is let pass: of each kernel that was launched (source, options, instance, block), of the modules that
launch them, and of the errors' bounds. Once one of these changes, what is said changes too. Entries are written by
``convbench check --gpu --ledger`` alone, on a GPU that works.
"""

from __future__ import annotations

import json
import os
import re
import tempfile
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cache
from hashlib import blake2b
from pathlib import Path
from typing import TYPE_CHECKING, Any

from convbench.cuda.kernel import Kernel
from convbench.cuda.variants import kernels_of
from convbench.errors import BackendUnavailable, SpecError, one_line
from convbench.revision import git_revision, utc_now

if TYPE_CHECKING:
    from convbench.backend import Backend
    from convbench.checks import CheckResult

__all__ = ["LEAST_SPECS", "LEDGER", "Code", "Entry", "changes", "code_of", "read_ledger", "record", "standing"]

LEDGER = Path(__file__).parent / "ledger.json"

#: Random specs without which a battery is not the whole one.
LEAST_SPECS = 60

_FORMAT = 1
_PACKAGE = Path(__file__).parents[1]

#: Where modules decide what is computed on the device and what error is let pass; those of them that only watch.
_FOLLOWED = re.compile(r"convbench\.(cuda\.|algorithms\.|backends\.|arrays$|bounds$|transforms$)")
_WATCHING = frozenset(
    f"convbench.cuda.{name}" for name in ("device", "ledger", "nvidia_smi", "nvrtc", "resources", "timing")
)
_IMPORT = re.compile(r"^\s*(?:from|import) (convbench[\w.]*)(?: import (\([^)]*\)|.*))?", re.MULTILINE)

#: Which algorithms without gradients of their own go through, and which a backend has bounds of if it names none.
_FOR_ALL = ("convbench.algorithms.rewriting", "convbench.bounds")


# -- what would run ---------------------------------------------------------------------------------


@dataclass(frozen=True)
class Code:
    """Digests of what a backend runs.

    Attributes
    ----------
    launch : str
        Of the text of the modules that prepare and launch, and of those that bound the error.
    kernels : mapping of str to str
        Of each kernel that it may launch, by its name.
    tensor_cores : bool
        Whether any kernel multiplies on tensor cores.
    """

    launch: str
    kernels: Mapping[str, str]
    tensor_cores: bool = False


def code_of(backend: str) -> Code | None:
    """Return the digests of a backend of this package; None for a plug-in's."""
    module = f"convbench.backends.{backend.replace('-', '_')}"
    return _code_of(backend, module) if _file(module) else None


@cache
def _code_of(backend: str, module: str) -> Code:
    from convbench.registry import get_backend

    texts = (part for name in _reached(module) for part in (name, _text(name)))
    launch = blake2b("\0".join(texts).encode(), digest_size=16).hexdigest()
    kernels = kernels_of(get_backend(backend))
    return Code(launch, {_name(k): k.fingerprint for k in kernels}, any(k.tensor_cores for k in kernels))


def _name(kernel: Kernel) -> str:
    block = "x".join(map(str, kernel.block))
    return f"{kernel.file}: {kernel.instance}, block {block}" + f", {kernel.shared_bytes} B" * bool(kernel.shared_bytes)


def _reached(module: str) -> tuple[str, ...]:
    """Return a module and all those that decide what is computed, which it imports, or which they import."""
    found: set[str] = set()
    left = [module, *_FOR_ALL]
    while left:
        name = left.pop()
        if name not in found:
            found.add(name)
            left += _imported(name)
    return tuple(sorted(found))


@cache
def _imported(module: str) -> tuple[str, ...]:
    """Return those modules that decide what is computed which a module's text imports, wherever in it that stands."""
    names: set[str] = set()
    for origin, imported in _IMPORT.findall(_text(module)):
        names.update((origin, *(f"{origin}.{name}" for name in re.findall(r"\w+", imported))))
    return tuple(sorted(n for n in names - _WATCHING if _FOLLOWED.match(n) and _file(n)))


def _file(module: str) -> Path | None:
    path = _PACKAGE.joinpath(*module.split(".")[1:]).with_suffix(".py")
    return path if path.is_file() else None


@cache
def _text(module: str) -> str:
    path = _file(module)
    return path.read_text(encoding="utf-8") if path else ""


# -- what has run -----------------------------------------------------------------------------------


@dataclass(frozen=True)
class Entry:
    """One backend on one GPU.

    Attributes
    ----------
    gpu, compute_capability : str
    driver : str or None
        Its version, where nvidia-smi tells it.
    cuda, cupy, nvrtc : str
        Versions: of the runtime that CuPy uses, of CuPy, of the compiler.
    date : str
        When the battery had passed, in UTC.
    convbench : str
        Its version.
    git_revision : str or None
        Of the checkout, with ``+changes`` if files differed from it.
    specs, seed : int
        Of the battery.
    checks_passed : int
    error_max_eps : float or None
        The largest error that any check found, in units of the dtype's eps.
    launch_code : str
        As in :class:`Code`.
    kernels : mapping of str to str
        Of those that were launched.
    """

    gpu: str
    compute_capability: str
    driver: str | None
    cuda: str
    cupy: str
    nvrtc: str
    date: str
    convbench: str
    git_revision: str | None
    specs: int
    seed: int
    checks_passed: int
    error_max_eps: float | None
    launch_code: str
    kernels: Mapping[str, str]

    def differs_from(self, code: Code) -> list[str]:
        """Name what has changed since: kernels, or what launches and judges them."""
        names = [name for name, digest in self.kernels.items() if code.kernels.get(name, digest) != digest]
        gone = [f"{name} (gone)" for name in self.kernels if name not in code.kernels]
        return [*names, *gone, *["what launches or judges them"] * (self.launch_code != code.launch)]

    def words(self, code: Code) -> str:
        """Say what it says of code that does not differ."""
        launched, listed = len(self.kernels), len(code.kernels)
        part = f" in part ({launched} of {listed} kernels)" * (launched < listed)
        return f"verified{part} on {self.gpu}, {self.date[:10]}"


#: Backend → its entries, one for each kind of GPU, the newest last.
Ledger = dict[str, list[Entry]]


def read_ledger(path: Path = LEDGER) -> Ledger:
    """Return all entries; none if there is no such file.

    Raises
    ------
    SpecError
        If the file is not a ledger of this format.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        if content["format"] != _FORMAT:
            raise SpecError(
                "ledger", str(path), f"is of format {content['format']!r}, not {_FORMAT}: upgrade convbench"
            )
        return {name: [Entry(**entry) for entry in entries] for name, entries in content["backends"].items()}
    except FileNotFoundError:
        return {}
    except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
        if isinstance(error, SpecError):
            raise
        raise SpecError("ledger", str(path), f"cannot be read ({one_line(error)})") from None


def standing(backend: Backend, path: Path = LEDGER) -> str | None:
    """Say whether a backend has been verified on a GPU; None for those of the CPU and for plug-ins.

    "verified on NVIDIA H200, 2026-11-22", "verified in part (7 of 9 kernels) on …" where some have not been launched,
    "changed since it was verified on …", or what was proved without a GPU. Where several entries hold, the one of most
    kernels counts, the newest of them.
    """
    code = code_of(backend.name) if backend.device == "cuda" else None
    if code is None:
        return None
    try:
        entries = read_ledger(path).get(backend.name, [])
    except SpecError as error:
        return str(error)
    holding = [entry for entry in reversed(entries) if not entry.differs_from(code)]
    if holding:
        return max(holding, key=lambda entry: len(entry.kernels)).words(code)
    if entries:
        return f"changed since it was verified on {entries[-1].gpu}, {entries[-1].date[:10]}"
    return ", ".join(filter(None, (_proved_without(backend, code), "never run on a GPU")))


def _proved_without(backend: Backend, code: Code) -> str:
    """Say what the tests prove of it where there is no GPU."""
    if backend.kind == "rival":
        return ""
    if not code.kernels:
        return "CPU-executed"  # array operations alone: with other libraries' arrays
    return "compiled and CPU-executed" + " (tensor cores emulated)" * code.tensor_cores


def changes(backends: Iterable[Backend], path: Path = LEDGER) -> dict[str, list[str]]:
    """Return, for each backend that was verified once and is not now, what has changed since."""
    ledger = read_ledger(path)
    found = {}
    for backend in backends:
        entries, code = ledger.get(backend.name, []), code_of(backend.name)
        if entries and code and all(entry.differs_from(code) for entry in entries):
            found[backend.name] = entries[-1].differs_from(code)
    return found


# -- writing ----------------------------------------------------------------------------------------


def record(
    backend: str,
    results: Sequence[CheckResult],
    launched: Collection[Kernel],
    *,
    specs: int,
    seed: int,
    path: Path = LEDGER,
) -> str | None:
    """Enter a backend whose battery has passed as a whole on this machine's GPU.

    Parameters
    ----------
    backend : str
    results : sequence of CheckResult
        What came of its battery and its variants, run just now.
    launched : collection of Kernel
        Those that ran on the way, as :func:`~convbench.cuda.launch.launched_kernels` counted them.
    specs, seed : int
        Of the battery.
    path : Path

    Returns
    -------
    str or None
        Why it is not entered; None if it is.

    Raises
    ------
    BackendUnavailable
        If no kernel can run here: nothing is written.
    SpecError
        If the battery was not the whole one, or the file cannot be read or written.
    """
    if specs < LEAST_SPECS:
        raise SpecError("specs", specs, f"must be ≥ {LEAST_SPECS} for the ledger: the whole battery")
    surroundings = _surroundings()
    code = code_of(backend)
    if code is None:
        return "it is a plug-in's, and the ledger is of convbench's own files"
    names = {_name(kernel) for kernel in launched}
    problem = _not_wholly_passed(results) or _not_as_listed(names, code)
    if problem:
        return problem
    entry = Entry(
        **surroundings,
        specs=specs,
        seed=seed,
        checks_passed=sum(result.status == "passed" for result in results),
        error_max_eps=_largest_error(results),
        launch_code=code.launch,
        kernels={name: digest for name, digest in code.kernels.items() if name in names},
    )
    ledger = read_ledger(path)
    ledger[backend] = [*(kept for kept in ledger.get(backend, []) if kept.gpu != entry.gpu), entry]
    _write(ledger, path)
    return None


def writable(path: Path) -> None:
    """Raise SpecError if the ledger could not be written in the end, before hours of checks are spent."""
    if path.is_dir():
        raise SpecError("--ledger-file", str(path), "is a folder; a file in it may be named")
    read_ledger(path)
    if not os.access(path.parent, os.W_OK | os.X_OK):
        raise SpecError("--ledger-file", str(path), "its folder cannot be written; --ledger-file PATH names another")


def _surroundings() -> dict[str, Any]:
    """Ask the device itself what it is; without one there is nothing to write about."""
    from convbench.cuda.device import cuda_version, gpu_problem

    problem = gpu_problem()
    if problem:
        raise BackendUnavailable(f"the ledger is written where a kernel has run: {problem}")
    import cupy
    from cupy_backends.cuda.libs import nvrtc

    from convbench import __version__
    from convbench.cuda.nvidia_smi import gpu_at, query

    device, runtime = cupy.cuda.Device(), cupy.cuda.runtime
    properties = runtime.getDeviceProperties(device.id)
    driver = gpu_at(device.pci_bus_id, query(("bus_id", "driver"))) or {}
    return {
        "gpu": properties["name"].decode(),
        "compute_capability": f"{properties['major']}.{properties['minor']}",
        "driver": driver.get("driver"),
        "cuda": cuda_version(runtime.runtimeGetVersion()),
        "cupy": cupy.__version__,
        "nvrtc": "{}.{}".format(*nvrtc.getVersion()),
        "date": utc_now().isoformat(timespec="seconds"),
        "convbench": __version__,
        "git_revision": git_revision(),
    }


def _not_wholly_passed(results: Sequence[CheckResult]) -> str | None:
    failed = sum(result.status == "failed" for result in results)
    if failed:
        return f"{failed} checks failed"
    passed = sum(result.status == "passed" and result.spec is not None for result in results)
    return None if passed else "no check was passed"


def _not_as_listed(launched: Collection[str], code: Code) -> str | None:
    unlisted = sorted(set(launched) - set(code.kernels))
    if unlisted:
        return f"it launched what none of its variants names: {unlisted[0]}"
    return "none of its kernels was launched" if code.kernels and not launched else None


_ERROR = re.compile(r"\berror ([\d.e+-]+) eps\b")


def _largest_error(results: Iterable[CheckResult]) -> float | None:
    """Return the largest error that the remarks of passed checks tell, in eps."""
    found = (match[1] for result in results if result.status == "passed" for match in _ERROR.finditer(result.message))
    return max(map(float, found), default=None)


def _write(ledger: Ledger, path: Path) -> None:
    """Write the file, whole or not at all."""
    backends = {name: [asdict(entry) for entry in entries] for name, entries in sorted(ledger.items())}
    text = json.dumps({"format": _FORMAT, "backends": backends}, indent=1) + "\n"
    try:
        with tempfile.NamedTemporaryFile("w", encoding="utf-8", dir=path.parent, suffix=".tmp", delete=False) as draft:
            draft.write(text)
        os.chmod(draft.name, 0o644)
        os.replace(draft.name, path)
    except OSError as error:
        rule = f"cannot be written ({error.strerror}); --ledger-file PATH names another"
        raise SpecError("--ledger-file", str(path), rule) from None
