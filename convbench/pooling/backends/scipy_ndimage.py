"""``scipy-ndimage``: ``scipy.ndimage.maximum_filter`` and ``uniform_filter``, then every s-th value."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from convbench.pooling import bounds
from convbench.pooling.backend import PoolLimits, PoolRegistrant
from convbench.pooling.backends._planes import by_planes, unlike
from convbench.pooling.spec import FLOATS, PoolSpec


def _filter(spec: PoolSpec, plane: NDArray[Any]) -> NDArray[Any]:
    """``origin`` moves the window so that its first sample lies ``before`` ahead of the output."""
    from scipy import ndimage

    origin = [before - k // 2 for k, (before, _) in zip(spec.kernel_size, spec.padding, strict=True)]
    lowest = -np.inf if spec.kind == "max" else 0.0
    call = ndimage.maximum_filter if spec.kind == "max" else ndimage.uniform_filter
    result: NDArray[Any] = call(plane, size=spec.kernel_size, mode="constant", cval=lowest, origin=origin)
    return result


BACKEND = PoolRegistrant(
    name="scipy-ndimage",
    summary="ndimage.maximum_filter and uniform_filter, one plane after the other",
    kind="rival",
    requires={"scipy": "scipy"},
    algorithm=by_planes("scipy-ndimage", _filter),
    limits=PoolLimits(kinds=("max", "mean"), grads=(), dtypes=FLOATS, adaptive=False, also=unlike),
    bound=lambda spec: bounds.direct(spec) if spec.kind == "max" else bounds.running_sums(spec),
    threaded=False,
)
