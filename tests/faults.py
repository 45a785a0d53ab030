"""Backends that are wrong on purpose, one fault each: what the battery must catch."""

from __future__ import annotations

import time
from dataclasses import dataclass
from math import prod
from typing import Any, ClassVar

import numpy as np

from convbench import oracle
from convbench.arrays import numpy_namespace
from convbench.backend import Backend, FunctionBackend, Plan
from convbench.bounds import ErrorBound
from convbench.errors import UnsupportedWeights
from convbench.refusals import WHOLE_FAMILY, refuse
from convbench.spec import ConvSpec


def _right(spec: ConvSpec, first: Any, second: Any, bias: Any) -> Any:
    result = numpy_namespace().empty_laid_out(spec)
    result[...] = oracle.conv(spec, first, second, bias)
    return result


def _workspace(spec: ConvSpec) -> int:
    sizes = (*spec.operand_shapes, spec.result_shape)
    return 500_000 + 160 * sum(map(prod, sizes)) + 16 * spec.macs // min(spec.kernel_size)


#: A backend without fault that takes the whole family.
RIGHT = FunctionBackend(
    name="right",
    summary="the oracle",
    function=_right,
    takes_bias=True,
    limits=WHOLE_FAMILY,
    workspace=_workspace,
)


class Harmless:
    """A plan that hands everything on; each fault below overrides one thing."""

    caught_by: ClassVar[tuple[str, ...]] = ()

    def __init__(self, inner: Backend, name: str, spec: ConvSpec, threads: int | None) -> None:
        self.spec, self.backend = spec, name
        self.inner = inner.plan(self.respec(spec), threads=threads)
        self.calls = 0

    def respec(self, spec: ConvSpec) -> ConvSpec:
        return spec

    @property
    def threads(self) -> int:
        return self.inner.threads

    @property
    def workspace_bytes(self) -> int:
        return self.inner.workspace_bytes

    @property
    def prepared_bytes(self) -> int:
        return self.inner.prepared_bytes

    @property
    def flops(self) -> int:
        return self.inner.flops

    @property
    def accumulate_dtype(self) -> str:
        return self.inner.accumulate_dtype

    def prepare(self, w: Any, /) -> Any:
        return self.inner.prepare(self.change_weights(w))

    def __call__(self, x: Any, weights: Any, bias: Any = None, out: Any = None) -> Any:
        self.calls += 1
        y = self.inner(self.change_input(x), weights, bias, out)
        self.spoil(y)
        return y

    def change_input(self, x: Any) -> Any:
        return x

    def change_weights(self, w: Any) -> Any:
        return w

    def spoil(self, y: Any) -> None:
        """Change a right result in place."""

    @staticmethod
    def why_not(inner: Backend, spec: ConvSpec) -> str | None:
        return inner.why_not(spec)


@dataclass(frozen=True)
class Faulty:
    """The backend around a faulty plan."""

    inner: Backend
    fault: type[Harmless]
    kind: str = "own"
    device: str = "cpu"

    @property
    def name(self) -> str:
        return f"{self.inner.name}+{self.fault.__name__}"

    @property
    def implementation(self) -> str:
        return self.inner.implementation

    def unavailable(self) -> str | None:
        return self.inner.unavailable()

    def why_not(self, spec: ConvSpec) -> str | None:
        return self.fault.why_not(self.inner, spec)

    def plan(self, spec: ConvSpec, *, threads: int | None = None) -> Plan:
        return self.fault(self.inner, self.name, spec, threads)

    def error_bound(self, spec: ConvSpec) -> ErrorBound:
        return self.inner.error_bound(spec)


# -- wrong indices ------------------------------------------------------------------------------


class FlippedKernel(Harmless):
    caught_by = ("small-integers-are-exact", "gaussian-errors-are-within-the-bound")

    def change_weights(self, w: Any) -> Any:
        return np.flip(w, tuple(range(-self.spec.ndim, 0)))


class IgnoresFlip(Harmless):
    caught_by = ("small-integers-are-exact", "flipping-the-kernel-turns-one-operation-into-the-other")

    def respec(self, spec: ConvSpec) -> ConvSpec:
        return spec.replace(flip=False)


class PadOffByOne(Harmless):
    caught_by = ("small-integers-are-exact", "gaussian-errors-are-within-the-bound")

    def respec(self, spec: ConvSpec) -> ConvSpec:
        return spec.replace(padding=[(a + 1, b - 1) for a, b in spec.padding])


class StrideOffByOne(Harmless):
    caught_by = ("small-integers-are-exact", "a-stride-keeps-every-sth-output")

    def respec(self, spec: ConvSpec) -> ConvSpec:
        shift = [int(s > 1) for s in spec.stride]
        return spec.replace(padding=[(a + i, b - i) for (a, b), i in zip(spec.padding, shift, strict=True)])


class AxesSwapped(Harmless):
    caught_by = (
        "small-integers-are-exact",
        "full-convolution-commutes",
        "one-axis-after-the-other-is-the-outer-product",
    )

    def change_weights(self, w: Any) -> Any:
        return w.swapaxes(-1, -2).reshape(w.shape) if self.spec.ndim > 1 else w


class GroupOrder(Harmless):
    caught_by = ("small-integers-are-exact", "groups-are-separate-runs")

    def change_input(self, x: Any) -> Any:
        groups = np.split(x, self.spec.groups, axis=1)
        return np.concatenate(groups[::-1], axis=1)


class WrongLastRow(Harmless):
    caught_by = (
        "small-integers-are-exact",
        "a-shifted-input-shifts-the-output",
        "a-rolled-circular-input-rolls-the-output",
        "zeros-in-bias-out",
    )

    def spoil(self, y: Any) -> None:
        y[:, :, -1] += y.dtype.type(1)


class TiledIsOther(Harmless):
    caught_by = ("small-integers-are-exact", "a-tile-of-one-is-shared", "equal-tiles-are-shared")

    def spoil(self, y: Any) -> None:
        if self.spec.tile:
            y *= y.dtype.type(2)


class BiasDropped(Harmless):
    caught_by = ("small-integers-are-exact", "gaussian-errors-are-within-the-bound", "zeros-in-bias-out")

    def __call__(self, x: Any, weights: Any, bias: Any = None, out: Any = None) -> Any:
        return super().__call__(x, weights, None if bias is None else np.zeros_like(bias), out)


class Zeros(Harmless):
    caught_by = ("small-integers-are-exact", "gaussian-errors-are-within-the-bound")

    def spoil(self, y: Any) -> None:
        y[...] = 0


class AddsOne(Harmless):
    caught_by = ("linear-in-each-operand", "zeros-in-bias-out")

    def spoil(self, y: Any) -> None:
        y += y.dtype.type(1)


# -- wrong gradients ----------------------------------------------------------------------------


class FoldMissing(Harmless):
    """What the boundary shows of a sample is not added to its gradient."""

    caught_by = ("small-integers-are-exact", "gradients-are-the-adjoint")

    def respec(self, spec: ConvSpec) -> ConvSpec:
        return spec.replace(boundary="zero") if spec.op == "input_grad" else spec


class ConjugateMissing(Harmless):
    caught_by = ("small-integers-are-exact", "gradients-are-the-adjoint")

    def change_weights(self, w: Any) -> Any:
        return np.conj(w) if self.spec.op == "input_grad" else w

    def change_input(self, x: Any) -> Any:
        return np.conj(x) if self.spec.op == "weight_grad" else x


class WrongResidueOfTheStride(Harmless):
    caught_by = ("gradients-are-the-adjoint", "a-stride-keeps-every-sth-output")

    def respec(self, spec: ConvSpec) -> ConvSpec:
        shift = [int(s > 1 and spec.op == "input_grad") for s in spec.stride]
        return spec.replace(padding=[(a + i, b - i) for (a, b), i in zip(spec.padding, shift, strict=True)])


class TileEntryOffByOne(Harmless):
    caught_by = ("gradients-are-the-adjoint", "a-period-of-the-output-size-is-unshared")

    def change_weights(self, w: Any) -> Any:
        return np.roll(w, 1, axis=1) if self.spec.tile and self.spec.op == "input_grad" else w

    def spoil(self, y: Any) -> None:
        if self.spec.tile and self.spec.op == "weight_grad":
            y[...] = np.roll(y, 1, axis=1)


class UnusedKernelsLeftAsTheyWere(Harmless):
    """Memory that no output writes to must still be set to zero in ∂J/∂w."""

    caught_by = ("small-integers-are-exact", "a-period-of-the-output-size-is-unshared")

    def spoil(self, y: Any) -> None:
        if self.spec.tile and self.spec.op == "weight_grad":
            y[:, self.spec.output_size[0] :] = 1


class FirstImageOnly(Harmless):
    """∂J/∂w is not summed over the images."""

    caught_by = ("gradients-are-the-adjoint", "images-are-separate-runs")

    def change_input(self, x: Any) -> Any:
        if self.spec.op != "weight_grad":
            return x
        x = x.copy()
        x[1:] = 0
        return x


class GroupsMixed(Harmless):
    caught_by = ("gradients-are-the-adjoint", "groups-are-separate-runs")

    def change_input(self, x: Any) -> Any:
        return x if self.spec.op == "forward" else np.roll(x, x.shape[1] // self.spec.groups, axis=1)


class FlippedInputGradient(Harmless):
    """A kernel that is flipped once too often, or once too little."""

    caught_by = ("small-integers-are-exact", "gradients-are-the-adjoint")

    def change_weights(self, w: Any) -> Any:
        return np.flip(w, tuple(range(-self.spec.ndim, 0))) if self.spec.op == "input_grad" else w


class OverlapOverwritten(Harmless):
    """Where windows overlap, the last one's part of ∂J/∂x is written over the others'."""

    caught_by = ("small-integers-are-exact", "gradients-are-the-adjoint")

    def change_weights(self, w: Any) -> Any:
        if self.spec.op != "input_grad":
            return w
        w = w.copy()
        w[..., self.spec.stride[-1] :] = 0
        return w


class WeightGradientPadOffByOne(Harmless):
    caught_by = ("small-integers-are-exact", "gradients-are-the-adjoint")

    def respec(self, spec: ConvSpec) -> ConvSpec:
        shift = int(spec.op == "weight_grad")
        return spec.replace(padding=[(a + shift, b - shift) for a, b in spec.padding])


class PhaseOfLaterBlocks(Harmless):
    """Gradients are summed block by block, and tiles begin anew in each block: only large specs have a second one."""

    caught_by = ("small-integers-are-exact", "gaussian-errors-are-within-the-bound")
    rows = 62  # of a block

    @property
    def spoils(self) -> bool:
        return self.spec.op != "forward" and self.spec.tile is not None and self.spec.output_size[0] > self.rows

    def prepare(self, w: Any, /) -> Any:
        return [self.inner.prepare(np.roll(w, shift, axis=1)) for shift in ((0, self.rows) if self.spoils else (0,))]

    def __call__(self, x: Any, weights: Any, bias: Any = None, out: Any = None) -> Any:
        gives_x = self.spec.op == "input_grad"
        weights = weights if self.spec.operand_names[1] == "w" else [weights]
        if not self.spoils:
            return super().__call__(x, weights[0], bias, out)
        g = np.asarray(x if gives_x else weights[0])
        first, later = g.copy(), g.copy()
        first[:, :, self.rows :], later[:, :, : self.rows] = 0, 0
        if gives_x:
            parts = [self.inner(part, matrix) for part, matrix in zip((first, later), weights, strict=True)]
        else:
            parts = [self.inner(x, first), np.roll(self.inner(x, later), -self.rows, axis=1)]
        parts[0] += parts[1]
        if out is None:
            return parts[0]
        out[...] = parts[0]
        return out


# -- lost precision, rare numbers ---------------------------------------------------------------


class Float32InsideFloat64(Harmless):
    caught_by = ("gaussian-errors-are-within-the-bound",)

    def change_input(self, x: Any) -> Any:
        return x.astype("float32").astype("float64") if x.dtype == np.float64 else x


class ReducedPrecision(Harmless):
    """TF32: ten bits of mantissa, which hold every small integer."""

    caught_by = ("gaussian-errors-are-within-the-bound",)

    def change_input(self, x: Any) -> Any:
        if x.dtype != np.float32:
            return x
        return ((np.ascontiguousarray(x).view(np.uint32) + np.uint32(0x1000)) & np.uint32(0xFFFFE000)).view(np.float32)


class ClipsLargeSamples(Harmless):
    caught_by = ("magnitudes-may-differ-widely",)

    def change_input(self, x: Any) -> Any:
        return np.clip(x, -1e9, 1e9) if x.dtype.kind == "f" else x


class NormalisesByTheMaximum(Harmless):
    """1/max|x| overflows where all samples are denormal."""

    caught_by = ("denormals-do-no-harm",)

    def change_input(self, x: Any) -> Any:
        if x.dtype.kind != "f" or not x.size:
            return x
        largest = np.abs(x).max() or x.dtype.type(1)
        return np.ldexp(x * np.exp2(-np.ceil(np.log2(largest))).astype(x.dtype), int(np.ceil(np.log2(largest))))


class SpreadsNaN(Harmless):
    caught_by = ("nan-and-infinity-stay-in-their-windows",)

    def __call__(self, x: Any, weights: Any, bias: Any = None, out: Any = None) -> Any:
        y = super().__call__(x, weights, bias, out)
        if not np.isfinite(x).all():
            y[...] = np.nan
        return y


class HidesNaN(Harmless):
    caught_by = ("nan-and-infinity-stay-in-their-windows",)

    def change_input(self, x: Any) -> Any:
        return np.nan_to_num(x) if x.dtype.kind in "fc" else x


class HidesNaNInWeights(Harmless):
    caught_by = ("nan-in-one-channel-stays-in-it",)

    def change_weights(self, w: Any) -> Any:
        return np.nan_to_num(w) if w.dtype.kind in "fc" else w


class RefusesWeightsWithoutReason(Harmless):
    caught_by = ("weights-are-taken-or-refused-with-a-reason", "small-integers-are-exact")

    def change_weights(self, w: Any) -> Any:
        raise UnsupportedWeights("I would rather not")


class RefusesAllWeights(Harmless):
    caught_by = ("weights-are-taken-or-refused-with-a-reason",)

    def change_weights(self, w: Any) -> Any:
        raise UnsupportedWeights("weights: none will do")


# -- broken promises ----------------------------------------------------------------------------


class StaleOutput(Harmless):
    """Returns the first result for ever."""

    caught_by = ("many-calls-of-one-plan-are-all-right",)
    first: Any = None

    def __call__(self, x: Any, weights: Any, bias: Any = None, out: Any = None) -> Any:
        if self.first is None:
            self.first = super().__call__(x, weights, bias, out).copy()
        if out is None:
            return self.first.copy()
        out[...] = self.first
        return out


class ReusedOutput(Harmless):
    """Every result lies in the same buffer."""

    caught_by = ("many-calls-of-one-plan-are-all-right",)
    buffer: Any = None

    def __call__(self, x: Any, weights: Any, bias: Any = None, out: Any = None) -> Any:
        if self.buffer is None:
            self.buffer = np.empty(self.spec.result_shape, self.spec.result_dtype)
        return super().__call__(x, weights, bias, self.buffer if out is None else out)


class LastPreparedWeights(Harmless):
    """Runs with the weights prepared last, whichever are given."""

    caught_by = ("many-calls-of-one-plan-are-all-right",)
    last: Any = None

    def prepare(self, w: Any, /) -> Any:
        self.last = super().prepare(w)
        return self.last

    def __call__(self, x: Any, weights: Any, bias: Any = None, out: Any = None) -> Any:
        return super().__call__(x, self.last, bias, out)


class WrongOnFifthCall(Harmless):
    caught_by = ("many-calls-of-one-plan-are-all-right",)

    def spoil(self, y: Any) -> None:
        if self.calls == 5:
            y += y.dtype.type(1)


class NeverTheSame(Harmless):
    """Right, but the last bit changes from call to call."""

    caught_by = ("runs-repeat-bit-for-bit",)

    def spoil(self, y: Any) -> None:
        if self.calls % 2 and y.dtype.kind == "f":
            y[...] = np.nextafter(y, y.dtype.type(np.inf))


class InputOverwritten(Harmless):
    caught_by = ("inputs-are-untouched",)

    def __call__(self, x: Any, weights: Any, bias: Any = None, out: Any = None) -> Any:
        y = super().__call__(x, weights, bias, out)
        if x.flags.writeable:
            x[...] = 0
        return y


class WeightsOverwritten(Harmless):
    caught_by = ("inputs-are-untouched",)

    def prepare(self, w: Any, /) -> Any:
        prepared = super().prepare(w.copy())
        if w.flags.writeable:
            w *= w.dtype.type(2)
        return prepared


class ContiguousOnly(Harmless):
    """Reads the memory in its order, whatever the strides."""

    caught_by = ("any-strides-will-do",)

    def change_input(self, x: Any) -> Any:
        return x.ravel(order="K").reshape(x.shape)


class OutIgnored(Harmless):
    caught_by = ("out-is-honoured",)

    def __call__(self, x: Any, weights: Any, bias: Any = None, out: Any = None) -> Any:
        return super().__call__(x, weights, bias)


class OutAddedTo(Harmless):
    """Takes for granted that out holds zeros."""

    caught_by = ("out-is-honoured",)

    def __call__(self, x: Any, weights: Any, bias: Any = None, out: Any = None) -> Any:
        y = super().__call__(x, weights, bias)
        if out is None:
            return y
        out += y
        return out


class WritesBesideOut(Harmless):
    caught_by = ("out-is-honoured",)

    def spoil(self, y: Any) -> None:
        if y.base is not None and y.base.size > y.size:
            y.base.flat[0] = 7


class NotThreadSafe(Harmless):
    """Keeps a call's input in the plan."""

    caught_by = ("two-threads-may-call-one-plan",)
    x: Any = None

    def change_input(self, x: Any) -> Any:
        self.x = x
        time.sleep(2e-4)
        return self.x


class WrongWithTwoThreads(Harmless):
    caught_by = ("two-threads-give-the-same-as-one",)

    def __init__(self, inner: Backend, name: str, spec: ConvSpec, threads: int | None) -> None:
        super().__init__(inner, name, spec, threads)
        self.given = threads

    def spoil(self, y: Any) -> None:
        if self.given == 2:
            y[..., -1] += y.dtype.type(1)


class ChannelsFirstInMemory(Harmless):
    caught_by = ("results-are-laid-out-as-the-spec-says",)

    def __call__(self, x: Any, weights: Any, bias: Any = None, out: Any = None) -> Any:
        y = super().__call__(x, weights, bias, out)
        return np.ascontiguousarray(y) if out is None else y


class LiesAboutSums(Harmless):
    caught_by = ("why-not-agrees-with-plan",)

    @property
    def accumulate_dtype(self) -> str:
        return "float64"


class LiesAboutThreads(Harmless):
    caught_by = ("why-not-agrees-with-plan", "two-threads-give-the-same-as-one")

    @property
    def threads(self) -> int:
        return 64


class LiesAboutWorkspace(Harmless):
    caught_by = ("workspace-is-declared-honestly",)

    def change_input(self, x: Any) -> Any:
        np.ones(2**17 + 2**15)  # 1.25 MiB
        return x

    @property
    def workspace_bytes(self) -> int:
        return 0


class LeaksWithTwoThreads(Harmless):
    """Declares one thread's workspace where it uses two."""

    caught_by = ("workspace-is-declared-honestly",)

    def __init__(self, inner: Backend, name: str, spec: ConvSpec, threads: int | None) -> None:
        super().__init__(inner, name, spec, threads)
        self.given = threads or 1

    @property
    def threads(self) -> int:
        return self.given

    def change_input(self, x: Any) -> Any:
        if self.given == 2:
            np.ones(2**22)  # 32 MiB
        return x


class KeepsUndeclaredWorkspace(Harmless):
    """Allocates when it is planned."""

    caught_by = ("workspace-is-declared-honestly",)

    def __init__(self, inner: Backend, name: str, spec: ConvSpec, threads: int | None) -> None:
        super().__init__(inner, name, spec, threads)
        self.kept = np.ones(2**17 + 2**15)

    @property
    def workspace_bytes(self) -> int:
        return 0


class HoardsWhenPreparing(Harmless):
    """Keeps more than it declares, of weights that could stay as they are."""

    caught_by = ("prepared-weights-are-declared-honestly",)

    def prepare(self, w: Any, /) -> Any:
        self.hoard = np.ones(2**17 + 2**15)  # 1.25 MiB
        return super().prepare(w)


class OverstatesWhatItKeeps(Harmless):
    caught_by = ("prepared-weights-are-declared-honestly",)

    def prepare(self, w: Any, /) -> Any:
        self.kept = np.ones(2**17)  # 1 MiB
        return super().prepare(w)

    @property
    def prepared_bytes(self) -> int:
        return 2**22


class HidesBehindItsMemory(Harmless):
    """Declares so much that the battery would leave it out."""

    caught_by = ("small-integers-are-exact", "why-not-agrees-with-plan")

    @property
    def prepared_bytes(self) -> int:
        return 2**29


class AcceptsAnyShape(Harmless):
    caught_by = ("malformed-operands-raise",)

    def change_input(self, x: Any) -> Any:
        return x[tuple(map(slice, self.spec.operand_shapes[0]))]


class AcceptsAnyDtype(Harmless):
    caught_by = ("malformed-operands-raise",)

    def change_input(self, x: Any) -> Any:
        return x.astype(self.spec.dtype)


class SaysYesToAll(Harmless):
    """why_not says None where plan raises."""

    caught_by = ("why-not-agrees-with-plan",)

    @staticmethod
    def why_not(inner: Backend, spec: ConvSpec) -> str | None:
        return None


class SaysNoButPlans(Harmless):
    caught_by = ("refusal-agrees-with-plan",)

    @staticmethod
    def why_not(inner: Backend, spec: ConvSpec) -> str | None:
        return refuse("stride", "not today") if set(spec.stride) != {1} else inner.why_not(spec)


class SaysNoInItsOwnWords(Harmless):
    caught_by = ("refusal-agrees-with-plan",)

    @staticmethod
    def why_not(inner: Backend, spec: ConvSpec) -> str | None:
        return None if inner.why_not(spec) is None else "unsupported"


class CrashesOnWhyNot(Harmless):
    caught_by = ("refusal-agrees-with-plan",)

    @staticmethod
    def why_not(inner: Backend, spec: ConvSpec) -> str | None:
        raise KeyError(spec.op)


FAULTS = tuple(Harmless.__subclasses__())
