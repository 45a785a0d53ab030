"""``opencv``: OpenCV's ``dilate``, ``boxFilter`` and ``sqrBoxFilter``, then every s-th value."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from convbench.backends._opencv import POOL, REQUIRES
from convbench.bounds import ErrorBound
from convbench.pooling import bounds
from convbench.pooling.backend import PoolLimits, PoolRegistrant
from convbench.pooling.backends._planes import by_planes, unlike
from convbench.pooling.spec import PoolSpec

_DTYPES = ("float32", "float64", "uint8", "uint16", "int16")


def _filter(spec: PoolSpec, plane: NDArray[Any]) -> NDArray[Any]:
    """``anchor`` is the output's place in its window; sizes are width by height. Borders are −∞, or zeros."""
    import cv2

    (rows, columns), ((above, _), (left, _)) = spec.kernel_size, spec.padding
    plane = np.ascontiguousarray(plane)
    if spec.kind == "max":
        window = np.ones((rows, columns), np.uint8)
        # its own border of floats is the least finite one; that of integers is their least
        border: dict[str, Any] = {}
        if plane.dtype.kind == "f":
            border = {"borderType": cv2.BORDER_CONSTANT, "borderValue": (-np.inf,) * 4}
        result: NDArray[Any] = cv2.dilate(plane, window, anchor=(left, above), **border)
        return result
    call = cv2.boxFilter if spec.kind == "mean" else cv2.sqrBoxFilter
    means: NDArray[Any] = call(
        plane, -1, (columns, rows), anchor=(left, above), normalize=spec.kind == "mean", borderType=cv2.BORDER_CONSTANT
    )
    return means if spec.kind == "mean" else np.sqrt(np.maximum(means, 0))


def _bound(spec: PoolSpec) -> ErrorBound:
    """Columns' sums run down in double: as :func:`convbench.pooling.bounds.running_sums`."""
    return bounds.direct(spec) if spec.kind == "max" else bounds.running_sums(spec)


BACKEND = PoolRegistrant(
    name="opencv",
    summary="dilate, boxFilter and sqrBoxFilter, one plane after the other",
    kind="rival",
    requires=REQUIRES,
    algorithm=by_planes("opencv", _filter, POOL.held),
    limits=PoolLimits(grads=(), dtypes=_DTYPES, axes=(2,), adaptive=False, also=unlike),
    bound=_bound,
)
