"""``integral-image``: means and norms from a summed-area table."""

from __future__ import annotations

from convbench.pooling import bounds
from convbench.pooling.backend import PoolLimits, PoolRegistrant
from convbench.pooling.integral_image import IntegralImage, why_not
from convbench.pooling.spec import FLOATS

BACKEND = PoolRegistrant(
    name="integral-image",
    summary="summed-area tables in float64, one a band",
    algorithm=IntegralImage,
    limits=PoolLimits(kinds=("mean", "l2"), grads=("mean", "l2"), dtypes=FLOATS, also=why_not),
    bound=bounds.summed_area,
)
