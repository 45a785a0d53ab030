"""What a backend and a plan are, and the two adapters that make one from an algorithm or from a plain function."""

from __future__ import annotations

import importlib
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field, replace
from functools import cache
from importlib import metadata
from math import prod
from typing import Any, Generic, NamedTuple, Protocol, TypeVar, runtime_checkable

from convbench import bounds
from convbench.arrays import Array, Namespace, numpy_namespace
from convbench.bounds import ErrorBound
from convbench.errors import BackendUnavailable, SpecError, UnsupportedSpec
from convbench.refusals import Limits, memory, refuse
from convbench.spec import DTYPES, ConvSpec
from convbench.threads import resolve

__all__ = [
    "MOST_BYTES",
    "Algorithm",
    "AlgorithmBackend",
    "Backend",
    "DeclaredBackend",
    "FunctionBackend",
    "Plan",
    "Prepared",
    "import_problem",
    "overlap",
    "second_operand",
    "version_of",
]


#: A result beyond this is refused before anything is allocated: no machine has the memory.
MOST_BYTES = 2**44

Spec = TypeVar("Spec", contravariant=True)
Made = TypeVar("Made", covariant=True)


@runtime_checkable
class Plan(Protocol):
    """One spec made ready on one backend: plan once, prepare once a set of weights, run as often as you like.

    A plan may be called from several threads at once.
    """

    @property
    def spec(self) -> ConvSpec: ...
    @property
    def backend(self) -> str: ...
    @property
    def threads(self) -> int:
        """Threads that a run may use: as asked for, or 1 where the backend has no threads."""
        ...

    @property
    def workspace_bytes(self) -> int:
        """Memory beyond the operands, the prepared weights and the result."""
        ...

    @property
    def prepared_bytes(self) -> int:
        """Memory of prepared weights beyond ``w`` itself."""
        ...

    @property
    def flops(self) -> int:
        """Floating-point operations really done (``spec.flops`` is the nominal count)."""
        ...

    @property
    def accumulate_dtype(self) -> str:
        """What sums are formed in."""
        ...

    def prepare(self, w: Array, /) -> Any:
        """Do what depends on the weights alone (kernel spectrum, packing, factors)."""
        ...

    def __call__(self, first: Array, second: Any, bias: Array | None = None, out: Array | None = None) -> Array:
        """Forward ``plan(x, weights, bias, out)``; gradients ``plan(g, weights, out=…)`` and ``plan(x, g, out=…)``."""
        ...


@runtime_checkable
class Backend(Protocol):
    """One implementation of the spec, under one name."""

    @property
    def name(self) -> str: ...
    @property
    def kind(self) -> str:
        """Either "own" or "rival"."""
        ...

    @property
    def device(self) -> str:
        """Either "cpu" or "cuda"."""
        ...

    @property
    def implementation(self) -> str:
        """What stands behind the name now, libraries and versions included."""
        ...

    def unavailable(self) -> str | None:
        """Return what is missing and how to install it, or None."""
        ...

    def why_not(self, spec: ConvSpec, /) -> str | None:
        """Return the reason why this spec is not done here, or None for "I can"."""
        ...

    def plan(self, spec: ConvSpec, /, *, threads: int | None = None) -> Plan: ...

    def error_bound(self, spec: ConvSpec, /) -> ErrorBound: ...


class Prepared(NamedTuple):  # a frozen dataclass takes three times as long to make, and conv makes one a call
    """Weights as one backend wants them. Opaque: made by ``plan.prepare``, taken by the plan."""

    spec: ConvSpec
    backend: str
    source: Any  # w itself, of which the value may be a view: leave it as it is while in use
    value: Any
    flops: int | None = None  # the work of a run with these weights, where it depends on them

    def __eq__(self, other: object) -> bool:
        """Tell whether it is the same object: arrays have no single answer."""
        return self is other

    def __hash__(self) -> int:
        return id(self)

    def __repr__(self) -> str:
        return f"Prepared(spec={self.spec!r}, backend={self.backend!r}, flops={self.flops!r})"


class Algorithm(Protocol):
    """One algorithm planned for one spec and thread count, in one namespace; see :mod:`convbench.algorithms`.

    Arrays come with their groups split off: x (N, G, C/g, *input_size), w (G, O/g, [*tile,] C/g, *kernel_size), and y
    and g (N, G, O/g, *output_size).
    """

    workspace_bytes: int
    prepared_bytes: int
    flops: int

    def prepare(self, w: Array) -> tuple[Any, int | None]:
        """Return what ``run`` takes as ``second``, but for weight_grad, and its FLOPs if they depend on the weights."""
        ...

    def run(self, first: Array, second: Any, bias: Array | None, out: Array) -> None:
        """Write the whole result, bias included, into ``out``, whatever its strides."""
        ...


def second_operand(plan: Plan, array: Array) -> Any:
    """Return what a plan takes as its second operand: prepared weights, or for the weight gradient g as it is."""
    return array if plan.spec.op == "weight_grad" else plan.prepare(array)


class _CheckedPlan(ABC):
    """Checks operands against the spec; what is beneath sees only what it was planned for.

    Whatever does not change from call to call is worked out once, here: for tiny arrays a call is all there is.
    """

    accumulate_dtype: str

    def __init__(self, spec: ConvSpec, backend: str, threads: int, ns: Namespace) -> None:
        self.spec, self.backend, self.threads = spec, backend, threads
        self._preparer = backend  # whose weights it takes; those packed for other vectors are not its own
        self.accumulate_dtype = spec.accumulate_dtype
        self._ns = ns
        self._dtype, self._result_dtype = ns.dtype(spec.dtype), ns.dtype(spec.result_dtype)
        self._array_type: Any = ns.array_type
        self._may_overflow = "int" in spec.accumulate_dtype  # sums that a float holds exactly fit into 64 bits
        self._names, (self._first_shape, self._second_shape) = spec.operand_names, spec.operand_shapes
        self._bias_shape, self._result_shape = spec.bias_shape, spec.result_shape
        self._prepares = spec.op != "weight_grad"

    @property
    @abstractmethod
    def workspace_bytes(self) -> int: ...

    @property
    def prepared_bytes(self) -> int:
        return 0

    @property
    @abstractmethod
    def flops(self) -> int: ...

    @abstractmethod
    def _prepare(self, w: Array) -> tuple[Any, int | None]: ...

    @abstractmethod
    def _run(self, first: Array, second: Any, bias: Array | None, out: Array | None) -> Array: ...

    def prepare(self, w: Array) -> Prepared:
        """Return the weights as this plan wants them; they may share memory with ``w``.

        Raises
        ------
        SpecError
            If ``w`` has another shape or dtype than the spec, or the spec is a weight gradient.
        UnsupportedWeights
            If the algorithm needs structure that ``w`` has not.
        """
        if not self._prepares:
            raise SpecError("op", self.spec.op, "has no weights to prepare: call plan(x, g)")
        self._check("w", w, self._second_shape, self._dtype)
        return Prepared(self.spec, self._preparer, w, *self._prepare(w))

    def __call__(self, first: Array, second: Any, bias: Array | None = None, out: Array | None = None) -> Array:
        """Return the result, of shape ``spec.result_shape``.

        Parameters
        ----------
        first : array
            x, or g for the input gradient. Any strides, read-only too; never written.
        second : Prepared or array
            From :meth:`prepare` of a plan for the same spec and backend; for the weight gradient g itself.
        bias : array, shape ``spec.bias_shape``, or None as the spec says
        out : array, shape ``spec.result_shape``, optional
            Receives the result and is returned; must not share memory with an operand.
        """
        self._check(self._names[0], first, self._first_shape, self._dtype)
        source = self._source(second)
        if bias is not None or self._bias_shape is not None:
            self._check_bias(bias)
        if self._may_overflow:
            self._refuse_overflow(first, source, bias)
        if out is not None:
            self._check("out", out, self._result_shape, self._result_dtype)
            self._check_out(out, first, source, bias)
        return self._run(first, second.value if self._prepares else second, bias, out)

    def _source(self, second: Any) -> Array:
        """Return the second operand as it was given."""
        if not self._prepares:
            self._check(self._names[1], second, self._second_shape, self._dtype)
            return second
        if type(second) is not Prepared:
            raise SpecError("weights", type(second).__name__, "must come from plan.prepare(w)")
        if second.backend != self._preparer or (second.spec is not self.spec and second.spec != self.spec):
            made_for = f"{second.backend}: {second.spec}"
            raise SpecError("weights", made_for, f"were prepared for another plan than {self._preparer}: {self.spec}")
        return second.source

    def _check_bias(self, bias: Array | None) -> None:
        if self._bias_shape is None:
            reason = "bias='none'" if self.spec.op == "forward" else f"op={self.spec.op}"
            raise SpecError("bias", type(bias).__name__, f"must be None: the plan was made with {reason}")
        if bias is None:
            raise SpecError("bias", None, f"must have shape {self._bias_shape}: the spec says bias={self.spec.bias}")
        self._check("bias", bias, self._bias_shape, self._dtype)

    def _check(self, name: str, array: Array, shape: tuple[int, ...], dtype: Any) -> None:
        if type(array) is self._array_type and array.shape == shape and array.dtype == dtype:
            return
        self._check_closely(name, array, shape, dtype)

    def _check_closely(self, name: str, array: Array, shape: tuple[int, ...], dtype: Any) -> None:
        """Say what is wrong with an operand, unless it is a subclass's and as it should be."""
        if not self._ns.is_array(array):
            raise SpecError(name, type(array).__name__, f"must be an array of {self._ns.name}")
        if array.shape != shape:
            raise SpecError(name, array.shape, f"must have shape {shape} for {self.spec}")
        if array.dtype != dtype:
            raise SpecError(
                name, str(array.dtype), f"must have dtype {getattr(dtype, '__name__', dtype)} for {self.spec}"
            )

    def _refuse_overflow(self, first: Array, second: Array, bias: Array | None) -> None:
        """Integers are exact or refused: no sum may leave the result's 64 bits."""
        xp = self._ns.xp
        largest = [
            max(abs(int(xp.max(a))), abs(int(xp.min(a)))) if 0 not in a.shape else 0
            for a in (first, second, bias)
            if a is not None
        ]
        total = largest[0] * largest[1] * self.spec.terms + sum(largest[2:])
        if total > int(xp.iinfo(self._result_dtype).max):
            raise UnsupportedSpec(
                f"{self.backend}: "
                + refuse(
                    "dtype",
                    f"max|{self._names[0]}|·max|{self._names[1]}|·terms"
                    f"{' + max|bias|' * (bias is not None)} = {total:.3g} could overflow "
                    f"{self.spec.result_dtype}; convert to float64 or scale down",
                )
            )

    def _check_out(self, out: Array, first: Array, second: Array, bias: Array | None) -> None:
        flags = getattr(out, "flags", None)
        if flags is None:
            return
        if not getattr(flags, "writeable", True):  # CuPy has no read-only arrays
            raise SpecError("out", "a read-only array", "must be writeable")
        if overlap(out, first) or overlap(out, second) or (bias is not None and overlap(out, bias)):
            shares = (name for name, array in zip(self._names, (first, second), strict=True) if overlap(out, array))
            raise SpecError("out", f"memory shared with {next(shares, 'bias')}", "must be an array of its own")


def overlap(a: Array, b: Array) -> bool:
    """Tell whether two arrays share an element, or may do so where finding out would take long, as on a device."""
    if a is not b and a.flags.owndata and b.flags.owndata:
        return False
    import numpy as np

    if not isinstance(a, np.ndarray):
        import cupy

        return bool(cupy.may_share_memory(a, b))

    if not np.may_share_memory(a, b):
        return False
    try:
        return np.shares_memory(a, b, max_work=100_000)  # type: ignore[arg-type]  # the stubs know 0 and −1 only
    except np.exceptions.TooHardError:
        return True


class _AlgorithmPlan(_CheckedPlan):
    def __init__(self, spec: ConvSpec, backend: str, threads: int, ns: Namespace, algorithm: Algorithm) -> None:
        super().__init__(spec, backend, threads, ns)
        self._algorithm, self._reshape, self._new_result = algorithm, ns.reshape, ns.allocator(spec)
        packing = getattr(algorithm, "packing", None)
        if packing:
            self._preparer = f"{backend} for {packing}"
        groups, (_, *weights) = spec.groups, spec.weight_shape
        x = (spec.batch, groups, spec.in_channels // groups, *spec.input_size)
        w = (groups, spec.out_channels // groups, *weights)
        y = (spec.batch, groups, spec.out_channels // groups, *spec.output_size)
        grouped = {"forward": (x, w, y), "input_grad": (y, w, x), "weight_grad": (x, y, w)}[spec.op]
        self._first_grouped, self._second_grouped, self._result_grouped = grouped

    @property
    def workspace_bytes(self) -> int:
        return self._algorithm.workspace_bytes

    @property
    def prepared_bytes(self) -> int:
        return self._algorithm.prepared_bytes

    @property
    def flops(self) -> int:
        return self._algorithm.flops

    def _prepare(self, w: Array) -> tuple[Any, int | None]:
        return self._algorithm.prepare(self._reshape(w, self._second_grouped))

    def _run(self, first: Array, second: Any, bias: Array | None, out: Array | None) -> Array:
        if out is None:
            out = self._new_result()
        reshape = self._reshape
        if not self._prepares:
            second = reshape(second, self._second_grouped)
        self._algorithm.run(reshape(first, self._first_grouped), second, bias, reshape(out, self._result_grouped))
        return out


class _FunctionPlan(_CheckedPlan):
    def __init__(self, spec: ConvSpec, owner: FunctionBackend, threads: int) -> None:
        super().__init__(spec, owner.name, threads if owner.pool else 1, owner.ns())
        self._owner, self.accumulate_dtype = owner, owner.accumulates(spec)

    @property
    def workspace_bytes(self) -> int:
        return self._owner.workspace(self.spec)

    @property
    def prepared_bytes(self) -> int:
        return self._owner.prepared(self.spec)

    @property
    def flops(self) -> int:
        return self._owner.work(self.spec)

    def _prepare(self, w: Array) -> tuple[Any, int | None]:
        return (self._owner.prepare(self.spec, w) if self._owner.prepare else w), None

    def _run(self, first: Array, second: Any, bias: Array | None, out: Array | None) -> Array:
        spec, owner = self.spec, self._owner
        with owner.pool(self.threads) if owner.pool else nullcontext():
            y = owner.function(spec, first, second, bias) if owner.takes_bias else owner.function(spec, first, second)
        if self._ns.is_array(y) and y.shape == self._result_shape and y.dtype == self._result_dtype:
            if bias is not None and not owner.takes_bias:
                y = self._add_bias(y, first, bias)
            if out is None:
                return y
            out[...] = y
            return out
        given = f"{type(y).__name__} of shape {getattr(y, 'shape', None)} and dtype {getattr(y, 'dtype', None)}"
        wanted = f"{spec.result_dtype} array of shape {self._result_shape}"
        raise SpecError("function", given, f"must return a {wanted} for {spec}")

    def _add_bias(self, y: Array, x: Array, bias: Array) -> Array:
        from convbench.algorithms.blocking import GroupedBias

        if overlap(y, x):  # a function may return a view of its argument
            y = self._ns.xp.asarray(y, copy=True)
        spec = self.spec
        grouped = (spec.batch, spec.groups, spec.out_channels // spec.groups, *spec.output_size)
        GroupedBias(self._ns, spec, bias).add(self._ns.reshape(y, grouped))
        return y


class _Declares(Protocol[Spec]):
    def why_not(self, spec: Spec, /) -> str | None: ...


@dataclass(frozen=True, kw_only=True)
class DeclaredBackend(ABC, Generic[Spec, Made]):
    """A backend that says once what it is, what it needs and what it takes; the specs it takes may be of any family.

    Attributes
    ----------
    name, kind, device : str
    summary : str
        The method in a few words; ``implementation`` adds the libraries' versions.
    limits : Limits, or PoolLimits
    bound : callable
        ``bound(spec) -> ErrorBound``; the default is that of direct summation.
    requires : mapping of str to str
        Module → distribution that pip installs it from.
    """

    name: str
    summary: str
    kind: str = "own"
    device: str = "cpu"
    limits: _Declares[Spec]
    bound: Callable[[Spec], ErrorBound]
    requires: Mapping[str, str] = field(default_factory=dict)

    @property
    def implementation(self) -> str:
        """The method, and the version of each library behind it."""
        libraries = [f"{name} {version_of(name)}" for name in ("numpy", *self.requires.values())]
        return f"{self.summary} ({', '.join(libraries)})"

    def unavailable(self) -> str | None:
        """Return what is missing and how to install it, or None."""
        for module, distribution in self.requires.items():
            problem = import_problem(module)
            if problem is not None:
                return refuse("not installed", f"needs {distribution}: pip install {distribution}{problem}")
        return None

    def why_not(self, spec: Spec) -> str | None:
        """Return the reason why this spec is not done here, or None for "I can"."""
        return self.unavailable() or self.limits.why_not(spec) or memory(_result_bytes(spec), MOST_BYTES)

    def error_bound(self, spec: Spec) -> ErrorBound:
        """Return the a-priori bound of this algorithm's error for ``spec``."""
        return self.bound(spec)

    def plan(self, spec: Spec, *, threads: int | None = None) -> Made:
        """Make ``spec`` ready to run.

        Raises
        ------
        BackendUnavailable
            If a library is missing.
        UnsupportedSpec
            With the reason that ``why_not`` gives.
        """
        count = resolve(threads)
        missing = self.unavailable()
        if missing:
            raise BackendUnavailable(f"{self.name}: {missing}")
        reason = self.why_not(spec)
        if reason:
            raise UnsupportedSpec(f"{self.name}: {reason}")
        return self._plan(spec, count)

    @abstractmethod
    def _plan(self, spec: Spec, threads: int) -> Made: ...


@dataclass(frozen=True, kw_only=True)
class _ConvolutionBackend(DeclaredBackend[ConvSpec, Plan]):
    """A declared backend of convolution.

    Attributes
    ----------
    ns : callable
        Returns the :class:`~convbench.arrays.Namespace` of its arrays.
    """

    summary: str = "a function"
    limits: Limits = Limits()
    bound: Callable[[ConvSpec], ErrorBound] = bounds.direct
    ns: Callable[[], Namespace] = numpy_namespace


def forward_and_shared(spec: ConvSpec) -> bool:
    """Tell whether a spec is a forward operation with one set of weights for all positions."""
    return spec.op == "forward" and spec.tile is None


@dataclass(frozen=True, kw_only=True)
class AlgorithmBackend(_ConvolutionBackend):
    """Binds an :class:`Algorithm` to a namespace.

    Attributes
    ----------
    algorithm : callable
        ``algorithm(ns, spec, threads) -> Algorithm``.
    native : callable
        ``native(spec)``: does the algorithm do this itself? What else ``limits`` takes is rewritten as convolutions
        that it does (:mod:`convbench.algorithms.rewriting`), to each of which ``limits.also`` and ``bound`` apply.
    """

    algorithm: Callable[[Namespace, ConvSpec, int], Algorithm]
    native: Callable[[ConvSpec], bool] = forward_and_shared

    def why_not(self, spec: ConvSpec) -> str | None:
        """Return the reason why this spec is not done here, or None for "I can"."""
        if self.native(spec):
            return super().why_not(spec)
        from convbench.algorithms import rewriting

        return (
            self.unavailable()
            or replace(self.limits, also=None).why_not(spec)
            or memory(_result_bytes(spec), MOST_BYTES)
            or rewriting.why_not(spec, self.native, self.limits.also)
        )

    def error_bound(self, spec: ConvSpec) -> ErrorBound:
        """Return the a-priori bound of this algorithm's error for ``spec``."""
        if self.native(spec):
            return self.bound(spec)
        from convbench.algorithms import rewriting

        return rewriting.bound(spec, self.native, self.bound)

    def _plan(self, spec: ConvSpec, threads: int) -> Plan:
        ns = self.ns()
        threads = threads if ns.threaded else 1
        return _AlgorithmPlan(spec, self.name, threads, ns, self._realised(ns, spec, threads))

    def _realised(self, ns: Namespace, spec: ConvSpec, threads: int) -> Algorithm:
        if self.native(spec):
            return self.algorithm(ns, spec, threads)
        from convbench.algorithms.rewriting import Rewritten

        return Rewritten(ns, spec, threads, self._realised)


@dataclass(frozen=True, kw_only=True)
class FunctionBackend(_ConvolutionBackend):
    """Turns a pure function ``function(spec, x, w) -> y`` into a full backend.

    For the gradients, where ``limits.ops`` has them, it is called as ``function(spec, g, w)`` and
    ``function(spec, x, g)``.

    The adapter checks operands, adds the bias (unless the function does), honours ``out=`` (by a copy) and reports
    limits.

    Attributes
    ----------
    function : callable
        Returns a new array of shape ``spec.result_shape``; must not keep or change its arguments.
    takes_bias : bool
        The function is called as ``function(spec, x, w, bias)``, with None for no bias, and adds it itself.
    prepare : callable, optional
        ``prepare(spec, w)``: what depends on the weights alone; the function gets its result in place of ``w``. May
        raise UnsupportedWeights.
    prepared : callable
        ``prepared(spec)``: bytes of what ``prepare`` keeps beyond ``w``. The battery checks it.
    workspace : callable
        ``workspace(spec)``: bytes allocated beyond operands and result. The battery checks it.
    work : callable
        ``work(spec)``: FLOPs really done; the default is the nominal count.
    accumulates : callable
        ``accumulates(spec)``: the dtype in which the function forms its sums; the default is ``spec.accumulate_dtype``.
    pool : callable, optional
        ``pool(threads)``: a context in which the library uses that many threads. Without it the function
        counts as single-threaded.

    Examples
    --------
    >>> import numpy as np
    >>> from convbench import ConvSpec, FunctionBackend
    >>> from convbench.refusals import Limits
    >>> def dot(spec, x, w):
    ...     return np.einsum("ncp,oc->nop", x, w[:, :, 0])
    >>> pointwise = FunctionBackend(
    ...     name="pointwise",
    ...     function=dot,
    ...     limits=Limits(axes=(1,), groups=False, stride=False, also=lambda s: (
    ...         None if s.kernel_size == (1,) and s.padding == ((0, 0),) else "kernel size: only 1")),
    ... )
    >>> pointwise.why_not(ConvSpec.parse("c3 o2 i8 k3"))
    'kernel size: only 1'
    >>> plan = pointwise.plan(ConvSpec.parse("c3 o2 i8 k1"))
    >>> plan(np.ones((1, 3, 8), "f4"), plan.prepare(np.ones((2, 3, 1), "f4"))).shape
    (1, 2, 8)
    """

    function: Callable[..., Array]
    takes_bias: bool = False
    prepare: Callable[[ConvSpec, Array], Any] | None = None
    prepared: Callable[[ConvSpec], int] = lambda spec: 0
    workspace: Callable[[ConvSpec], int] = lambda spec: 0
    work: Callable[[ConvSpec], int] = lambda spec: spec.flops
    accumulates: Callable[[ConvSpec], str] = lambda spec: spec.accumulate_dtype
    pool: Callable[[int], AbstractContextManager[Any]] | None = None

    def _plan(self, spec: ConvSpec, threads: int) -> Plan:
        return _FunctionPlan(spec, self, threads)


@cache
def import_problem(module: str) -> str | None:
    """Try to import; return None, "" if it is not there, or what went wrong."""
    try:
        importlib.import_module(module)
    except ModuleNotFoundError as error:
        return "" if error.name in (module, module.partition(".")[0]) else f" ({error})"
    except Exception as error:  # a broken installation may raise anything; it must cost one backend, not the run
        return f" --force-reinstall (importing {module} failed: {error})"
    return None


@cache
def version_of(distribution: str) -> str:
    """Return the version of an installed distribution."""
    try:
        return metadata.version(distribution)
    except metadata.PackageNotFoundError:
        return "not installed"


def _result_bytes(spec: Any) -> int:
    elements: int = prod(spec.result_shape)
    return elements * DTYPES[spec.result_dtype]
