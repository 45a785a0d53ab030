"""Names, laziness, and plug-ins: good ones are found, bad ones cost one line."""

from __future__ import annotations

import subprocess
import sys
import types
from collections.abc import Callable, Iterator
from importlib import metadata
from typing import Any

import numpy as np
import pytest
from scipy import signal

import convbench as cb
from convbench import BackendUnavailable, FunctionBackend, UnknownBackend, registry
from convbench.backend import Backend
from convbench.registry import all_backends, get_backend

SPEC = cb.ConvSpec.parse("i8 k3")
BUILT_IN = set(registry._built_in())


class FakeDistribution(metadata.Distribution):
    """Just enough of an installed package to name an entry point's origin."""

    def __init__(self, name: str) -> None:
        self._name = name

    def read_text(self, filename: str) -> str | None:
        return f"Name: {self._name}\nVersion: 1.0\n" if filename == "METADATA" else None

    def locate_file(self, path: Any) -> Any:
        raise FileNotFoundError(path)


Install = Callable[..., None]


@pytest.fixture
def install(monkeypatch: pytest.MonkeyPatch) -> Iterator[Install]:
    """Return ``install(name, value, distribution)``, which pretends that a package with that entry point is there."""
    entries: list[metadata.EntryPoint] = []
    monkeypatch.setattr(registry.metadata, "entry_points", lambda *, group: [e for e in entries if e.group == group])

    def add(name: str, value: str, distribution: str = "stranger") -> None:
        entry = metadata.EntryPoint(name, value, registry.ENTRY_POINT_GROUP)
        entries.append(entry._for(FakeDistribution(distribution)))  # type: ignore[attr-defined]
        registry._plug_ins.cache_clear()

    registry._plug_ins.cache_clear()
    yield add
    registry._plug_ins.cache_clear()


@pytest.fixture
def plug_in_module(monkeypatch: pytest.MonkeyPatch) -> types.ModuleType:
    """An importable module that defines backends."""
    module = types.ModuleType("stranger_backends")
    monkeypatch.setitem(sys.modules, module.__name__, module)
    return module


def twice(spec: cb.ConvSpec, x: Any, w: Any) -> Any:
    return np.zeros(spec.output_shape, spec.dtype)


def test_built_in_names(install: Install) -> None:
    assert set(all_backends()) >= BUILT_IN
    for name, backend in all_backends().items():
        assert backend.name == name
        assert isinstance(backend, Backend)
        assert registry.protocol_problem(backend) is None
        assert get_backend(name) is backend
        assert backend.kind in ("own", "rival")
        assert backend.device in ("cpu", "cuda")
        assert backend.implementation


def test_module_names_are_backend_names() -> None:
    """``from convbench.backends import fft; fft.conv(...)`` works for every name, with ``_`` for ``-``."""
    for name in BUILT_IN:
        module = __import__(f"convbench.backends.{name.replace('-', '_')}", fromlist=["conv"])
        assert module.BACKEND is get_backend(name)
        if module.BACKEND.unavailable():
            continue
        axes = 1 if name == "numpy-convolve" else 2
        x, w = np.ones((1, 1, 2, 3), "f4")[:, :, -1 if axes == 1 else slice(None)], np.ones((1, 1, *(3,) * axes), "f4")
        y = module.conv(x, w, padding="same")
        np.testing.assert_allclose(y, [[[2, 3, 2]]] if axes == 1 else [[[[4, 6, 4], [4, 6, 4]]]], rtol=1e-6)
        a = np.arange(6, dtype="f4").reshape(2, 3)
        v = np.outer(np.array([1, 2, 3], "f4"), np.array([1, 5, 25], "f4"))  # of rank one, for `separable`
        if axes == 1:
            a, v = a[1], v[0]
        if name.startswith("box"):
            v = np.full((3, 3), 2, "f4")
        np.testing.assert_allclose(module.convolve(a, v), signal.convolve(a, v), rtol=1e-5, atol=1e-3)
        np.testing.assert_allclose(module.correlate(a, v), signal.correlate(a, v), rtol=1e-5, atol=1e-3)
        assert module.plan("i4 k3" if axes == 1 else "i4x4 k3", threads=1).backend == name


def test_only_the_backend_asked_for_is_imported() -> None:
    program = """
import sys, convbench
convbench.get_backend("reference")
loaded = {m for m in sys.modules if m.startswith("convbench.backends.")}
assert loaded == {"convbench.backends.reference"}, loaded
"""
    subprocess.run([sys.executable, "-c", program], check=True)


@pytest.mark.parametrize(
    ("name", "part"),
    [
        ("ftf", "did you mean fft?"),
        ("im2cul", "did you mean im2col"),
        ("zzzz", "known are "),
        ("", "known are"),
    ],
)
def test_unknown_names(name: str, part: str, install: Install) -> None:
    with pytest.raises(UnknownBackend) as caught:
        get_backend(name)
    message = str(caught.value)
    assert repr(name) in message
    assert part in message
    assert "convbench list backends" in message
    assert "\n" not in message
    assert isinstance(caught.value, LookupError)


def test_a_plug_in_is_a_backend_like_any_other(install: Install, plug_in_module: Any) -> None:
    plug_in_module.BACKEND = FunctionBackend(name="twice", function=twice)
    install("twice", "stranger_backends:BACKEND")
    assert get_backend("twice") is all_backends()["twice"] is plug_in_module.BACKEND
    y = cb.conv(np.ones((1, 1, 4), "f4"), np.ones((1, 1, 3), "f4"), backend="twice")
    assert y.tolist() == [[[0, 0]]]


def nothing_there(module: Any) -> None:
    """The module exists; the attribute does not."""


def a_plain_function(module: Any) -> None:
    module.BACKEND = twice


def another_name(module: Any) -> None:
    module.BACKEND = FunctionBackend(name="other", function=twice)


def incomplete(module: Any) -> None:
    module.BACKEND = types.SimpleNamespace(name="broken", kind="own", device="cpu", implementation="x")


def wrong_types(module: Any) -> None:
    names = ("unavailable", "why_not", "plan", "error_bound")
    module.BACKEND = types.SimpleNamespace(
        name="broken", kind="own", device=0, implementation="x", **dict.fromkeys(names, print)
    )


def not_callable(module: Any) -> None:
    names = ("unavailable", "plan", "error_bound")
    module.BACKEND = types.SimpleNamespace(
        name="broken", kind="own", device="cpu", implementation="x", why_not=None, **dict.fromkeys(names, print)
    )


class Instantiable:
    name, kind, device, implementation = "broken", "own", "cpu", "x"
    unavailable = why_not = plan = error_bound = print


def a_class(module: Any) -> None:
    module.BACKEND = Instantiable


def of_no_known_kind(module: Any) -> None:
    module.BACKEND = Instantiable()
    module.BACKEND.kind = "ours"


def speechless(module: Any) -> None:
    class Speechless(Instantiable):
        @property
        def implementation(self) -> str:  # type: ignore[override]
            raise RuntimeError("no\n driver")

    module.BACKEND = Speechless()


@pytest.mark.parametrize(
    ("prepare", "part"),
    [
        (nothing_there, "stranger_backends:BACKEND of stranger 1.0: loading it raised AttributeError"),
        (a_plain_function, "is not a backend: it has no name"),
        (another_name, "its name is 'other', not that of its entry point"),
        (incomplete, "it has no unavailable, why_not, plan, error_bound"),
        (wrong_types, "its device must be str"),
        (not_callable, "its why_not must be callable"),
        (a_class, "it is a class, and an instance is needed: Instantiable()"),
        (of_no_known_kind, "its kind must be own or rival, got 'ours'"),
        (speechless, "its implementation raised RuntimeError: no driver"),
    ],
)
def test_a_broken_plug_in_is_listed_with_the_reason(
    prepare: Callable[[Any], None], part: str, install: Install, plug_in_module: Any
) -> None:
    prepare(plug_in_module)
    install("broken", "stranger_backends:BACKEND")
    backend = all_backends()["broken"]
    reason = backend.unavailable()
    assert reason is not None
    assert part in reason
    assert reason.endswith("(pip install --upgrade stranger, or ask its authors)")
    assert backend.why_not(SPEC) == reason
    with pytest.raises(BackendUnavailable, match="broken: not installed"):
        backend.plan(SPEC)
    with pytest.raises(BackendUnavailable):
        backend.error_bound(SPEC)
    with pytest.raises(BackendUnavailable):
        cb.plan("i8 k3", backend="broken")
    assert set(all_backends()) >= BUILT_IN  # it costs nobody else anything


TROUBLES = ("raise RuntimeError('driver too old')", "import no_such_library", "1/0", "def (", "raise SystemExit(3)")


@pytest.mark.parametrize("trouble", TROUBLES)
def test_a_plug_in_that_fails_to_import(trouble: str, install: Install, tmp_path: Any, monkeypatch: Any) -> None:
    (tmp_path / "troubled_plug_in.py").write_text(trouble)
    monkeypatch.syspath_prepend(str(tmp_path))
    install("troubled", "troubled_plug_in:BACKEND")
    reason = all_backends()["troubled"].unavailable()
    assert reason is not None
    assert reason.startswith("not installed: troubled_plug_in:BACKEND of stranger 1.0: loading it raised ")
    assert "\n" not in reason
    sys.modules.pop("troubled_plug_in", None)


def test_a_taken_name_is_not_taken_over(install: Install, plug_in_module: Any) -> None:
    genuine = get_backend("fft")
    plug_in_module.FFT = FunctionBackend(name="fft", function=twice)
    plug_in_module.BACKEND = FunctionBackend(name="twice", function=twice)
    install("fft", "stranger_backends:FFT")
    install("twice", "stranger_backends:BACKEND", "first")
    install("twice", "stranger_backends:BACKEND", "second")
    found = all_backends()
    assert get_backend("fft") is found["fft"] is genuine
    assert found["twice"] is plug_in_module.BACKEND
    for name in ("fft@stranger", "twice@second"):
        reason = found[name].unavailable()
        assert reason is not None
        assert "is taken already" in reason
        assert f"pip uninstall {name.partition('@')[2]}" in reason


def test_protocol_problem_accepts_every_built_in() -> None:
    assert [registry.protocol_problem(get_backend(name)) for name in sorted(BUILT_IN)] == [None] * len(BUILT_IN)


def test_a_plug_in_is_loaded_when_it_is_asked_for(install: Install, tmp_path: Any, monkeypatch: Any) -> None:
    """Neither names, nor a backend beside it, nor a wrong name, nor "auto" import it; all backends do."""
    (tmp_path / "slow_plug_in.py").write_text("BACKEND = 42")
    monkeypatch.syspath_prepend(str(tmp_path))
    install("slow", "slow_plug_in:BACKEND")
    assert registry.backend_names() == [*registry._built_in(), "slow"]
    get_backend("im2col")
    cb.conv(np.ones((1, 1, 4), "f4"), np.ones((1, 1, 3), "f4"))
    with pytest.raises(UnknownBackend, match="did you mean slow"):
        get_backend("slo")
    assert "slow_plug_in" not in sys.modules
    assert list(all_backends()) == registry.backend_names()
    assert sys.modules.pop("slow_plug_in").BACKEND == 42


class Raising:
    """Raises whatever it is asked."""

    def __init__(self, error: BaseException) -> None:
        self.error = error

    def unavailable(self) -> str | None:
        raise self.error

    def why_not(self, spec: cb.ConvSpec) -> str | None:
        raise self.error

    @property
    def implementation(self) -> str:
        raise self.error


class Untold(Exception):
    def __str__(self) -> str:
        raise ValueError("no text")


@pytest.mark.parametrize(
    ("error", "text"),
    [
        (RuntimeError("two\n  lines"), "RuntimeError: two lines"),
        (SystemExit(3), "SystemExit: 3"),
        (Untold(), "Untold: (its text cannot be shown: ValueError)"),
    ],
)
def test_whatever_is_raised_is_one_line(error: BaseException, text: str) -> None:
    backend: Any = Raising(error)
    assert registry.what_is_missing(backend) == f"unavailable() raised {text}"
    assert registry.refusal_of(backend, SPEC) == f"why_not() raised {text}"
    assert registry.implementation_of(backend) == f"implementation raised {text}"


def test_ctrl_c_is_no_answer() -> None:
    with pytest.raises(KeyboardInterrupt):
        registry.what_is_missing(Raising(KeyboardInterrupt()))  # type: ignore[arg-type]


def test_auto_never_needs_structure() -> None:
    """Whatever the spec, "auto" chooses among backends that take any weights."""
    from convbench.select import AUTO_ORDER

    rng = np.random.default_rng(0)
    for line in ("c2 o3 i9x8 k3 psame f64", "i40 k5 f32", "c2 o2 i5x6x4 k3x2x3 f32", "i9x9 k5 s2 d2 f32"):
        spec = cb.ConvSpec.parse(line)
        w = rng.standard_normal(spec.weight_shape).astype(spec.dtype)
        willing = [get_backend(name) for name in AUTO_ORDER if get_backend(name).why_not(spec) is None]
        assert willing
        for backend in willing:
            backend.plan(spec).prepare(w)  # or raises UnsupportedWeights
