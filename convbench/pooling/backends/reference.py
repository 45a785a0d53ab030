"""``reference``: the definition in plain loops."""

from __future__ import annotations

from typing import Any

from numpy.typing import NDArray

from convbench.pooling import reference
from convbench.pooling.backend import PoolFunction, PoolLimits, PoolRegistrant
from convbench.pooling.spec import PoolSpec
from convbench.refusals import refuse


def _few(spec: PoolSpec) -> str | None:
    if spec.samples <= reference.MAX_SAMPLES:
        return None
    return refuse("work", f"{spec.samples:.3g} samples in all windows, the limit is {reference.MAX_SAMPLES:.3g}")


def _pool(spec: PoolSpec, *operands: NDArray[Any]) -> NDArray[Any]:
    return reference.pool(spec, *operands).astype(spec.dtype)


BACKEND = PoolRegistrant(
    name="reference",
    summary="the definition as loops, in Python's floats",
    algorithm=PoolFunction.algorithm(_pool, workspace=lambda spec: 8 * spec.bytes_min + 512 * spec.terms),
    limits=PoolLimits(also=_few),
    threaded=False,
)
