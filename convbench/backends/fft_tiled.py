"""``fft-tiled``: overlap-save by FFTs compiled for this CPU, lanes being independent transforms."""

from __future__ import annotations

from dataclasses import replace
from math import prod

from convbench import bounds
from convbench.algorithms.tiling import Tiling, overlap, reach_of, values_summed
from convbench.arrays import Namespace
from convbench.backend import Algorithm
from convbench.backends._compiled import CompiledBackend
from convbench.bounds import ErrorBound
from convbench.ops import front_doors
from convbench.refusals import FLOATS, WHOLE_FAMILY, refuse
from convbench.spec import ConvSpec


def _algorithm(ns: Namespace, spec: ConvSpec, threads: int) -> Algorithm:
    from convbench.algorithms.overlap_save import NothingToDo, OverlapSave

    return NothingToDo() if 0 in spec.result_shape else OverlapSave(ns, spec, threads)


def _tiling(spec: ConvSpec) -> Tiling | None:
    from convbench.algorithms.overlap_save import choose_tiles
    from convbench.jit.target import host_target

    tiles = choose_tiles(spec, host_target())
    return None if tiles is None else Tiling(tiles.outputs, tiles.size)


def _why_not(spec: ConvSpec) -> str | None:
    if 0 in spec.result_shape or _tiling(spec) is not None:
        return None
    return refuse("kernel size", f"{'x'.join(map(str, spec.kernel_size))} given, which no tile holds")


def _bound(spec: ConvSpec) -> ErrorBound:
    tiling = _tiling(spec)
    if tiling is None:
        return bounds.fft(spec, 2)
    reach, summed = reach_of(spec, tiling), values_summed(spec, tiling)
    return bounds.fft(spec, prod(tiling.size), reach, overlap(tiling), summed)


BACKEND = CompiledBackend(
    name="fft-tiled",
    summary="overlap-save FFT, compiled",
    algorithm=_algorithm,
    bound=_bound,
    limits=replace(WHOLE_FAMILY, dtypes=FLOATS, axes=(1, 2), also=_why_not),
)
__getattr__ = front_doors("fft-tiled")
