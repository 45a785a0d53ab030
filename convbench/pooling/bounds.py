r"""A-priori error bounds of pooling, stated as :class:`convbench.bounds.ErrorBound`.

.. math:: |ŷ − y| ≤ eps · componentwise · |y|(|x|, |g|) + ∂(eps · normwise · S)

|y|(|x|, |g|) is the same pooling of absolute values, in which nothing cancels. S is what the whole channel adds up to
(Σ|x| for the mean, Σx² for the norm, Σ|g|/number for the gradient of the mean) and ∂(·) what an error of that size in
a window's sum makes of the result: divided by the number, or √S − √(S − δ). The maximum is not computed with: its
bound is 0, and that of its gradient counts the additions.
"""

from __future__ import annotations

from convbench.bounds import ErrorBound, gamma
from convbench.pooling.spec import PoolSpec

__all__ = ["direct", "running_sums", "summed_area"]

_SOURCE = "Higham 2002, eq. 3.5"
_EPS = {"float32": 2.0**-23, "float64": 2.0**-52}


def direct(spec: PoolSpec) -> ErrorBound:
    """Any order of summation, without subtraction."""
    return ErrorBound(source=_SOURCE, componentwise=_additions(spec))


def _additions(spec: PoolSpec) -> float:
    if spec.op == "forward":
        # squares and a division or a root: two roundings more
        return {"max": 0.0, "mean": gamma(spec.terms + 1, spec.dtype), "l2": gamma(spec.terms + 2, spec.dtype)}[
            spec.kind
        ]
    if spec.kind == "l2":  # the norm's error divides every term: then a division, the sum and a product
        return gamma(spec.terms + spec.readers + 5, spec.dtype)
    return gamma(spec.readers + 1, spec.dtype)


def summed_area(spec: PoolSpec) -> ErrorBound:
    """Differences of prefix sums in float64, 2^d a window: γ of the channel's axes, relative to the channel's sum.

    A prefix sums one axis after the other, so that a sample passes ΣH additions at most.
    """
    source = spec.output_size if spec.op == "grad" else spec.input_size
    drift = 2**spec.ndim * gamma(sum(source) + spec.ndim + 2, "float64") * _EPS["float64"] / _EPS[spec.dtype]
    return ErrorBound(
        source=f"{_SOURCE}; differences of prefix sums",
        componentwise=gamma(4, spec.dtype),
        normwise=drift,
        spreads_nonfinite=True,
    )


def running_sums(spec: PoolSpec) -> ErrorBound:
    """One axis after the other, each sum from its neighbour's: add a sample, subtract another, in double.

    After H steps a sum is off by 2H roundings of what has passed, which the channel's sum bounds; between the axes
    results are rounded to the dtype.
    """
    drift = 2 * gamma(2 * max(spec.input_size) + spec.ndim, "float64") * _EPS["float64"] / _EPS[spec.dtype]
    return ErrorBound(
        source=f"{_SOURCE}; running sums",
        componentwise=gamma(3 * spec.ndim + 2, spec.dtype),
        normwise=spec.ndim * drift,
        exact_on_integers=False,
        spreads_nonfinite=True,
    )
