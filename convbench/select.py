"""``backend="auto"``: for now the first willing backend of a stated order."""

from __future__ import annotations

from convbench.backend import Backend
from convbench.errors import UnsupportedSpec
from convbench.registry import get_backend
from convbench.spec import ConvSpec

__all__ = ["AUTO_ORDER", "choose"]

#: Own backends that take any weights, the most generally fast first; then SciPy's.
AUTO_ORDER = ("im2col", "direct-numpy", "fft", "scipy-direct", "scipy-fft")


def choose(spec: ConvSpec, *, finite: bool = True) -> Backend:
    """Return the first backend of :data:`AUTO_ORDER` that takes ``spec``.

    Parameters
    ----------
    finite : bool
        False if the data may hold NaN or infinity: backends that would spread them are passed over.

    Raises
    ------
    UnsupportedSpec
        If none is willing, with each one's reason.
    """
    reasons = []
    for name in AUTO_ORDER:
        backend = get_backend(name)
        reason = backend.why_not(spec)
        if reason is None and not finite and backend.error_bound(spec).spreads_nonfinite:
            reason = "spreads NaN and infinity"
        if reason is None:
            return backend
        reasons.append(f"{name}: {reason}")
    raise UnsupportedSpec(f"no backend takes {spec} ({'; '.join(reasons)})")
