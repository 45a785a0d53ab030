"""What the rivals from ``scipy.ndimage`` share: boundaries, and weights that SciPy would quietly change.

``cupyx.scipy.ndimage`` has the same functions for CuPy's arrays, and changes no weights.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from convbench.arrays import Array
from convbench.backends._planes import Frame
from convbench.errors import UnsupportedWeights
from convbench.refusals import refuse
from convbench.spec import ConvSpec

__all__ = ["MODES", "check_taps", "filter_by", "origin", "pad"]

MODES = {"zero": "constant", "circular": "wrap", "reflect": "mirror", "replicate": "nearest"}
_NUMPY_MODES = {"zero": "constant", "circular": "wrap", "reflect": "reflect", "replicate": "edge"}
_DBL_EPSILON = 2.0**-52


def check_taps(taps: Array) -> None:
    """Refuse a real kernel that SciPy's C code (``ni_filters.c``) would not apply as it is.

    Along several axes it leaves out taps of at most DBL_EPSILON, whatever the kernel's scale. Along one axis it takes a
    kernel for symmetric or antisymmetric, and reads one half of it, if it is so within DBL_EPSILON. A NaN fails all
    these comparisons.
    """
    import numpy as np

    if np.isnan(taps).any():
        raise UnsupportedWeights(refuse("weights", "NaN among them, which ndimage takes for zero"))
    if taps.ndim > 1 and ((taps != 0) & (np.abs(taps) <= _DBL_EPSILON)).any():
        raise UnsupportedWeights(refuse("weights", "taps of at most 2⁻⁵² in size, which ndimage leaves out"))
    if taps.ndim == 1 and taps.size % 2:
        before, after = taps[: taps.size // 2], taps[: taps.size // 2 : -1]
        for difference in (before - after, before + after):
            if (np.abs(difference) <= _DBL_EPSILON).all():
                if difference.any():
                    raise UnsupportedWeights(refuse("weights", "symmetric within 2⁻⁵² only, which ndimage evens out"))
                break


def origin(anchor: int, taps: int) -> int:
    """SciPy counts from the middle tap."""
    return anchor - taps // 2


def pad(spec: ConvSpec, plane: Array, margins: tuple[tuple[int, int], ...], xp: Any = None) -> Array:
    """Use ``np.pad``, or CuPy's."""
    import numpy as np

    with_margins: Any = (xp or np).pad  # its stubs want the mode as a literal
    return with_margins(plane, margins, _NUMPY_MODES[spec.boundary])


def filter_by(ndimage: Callable[[], Any]) -> Callable[[Array, tuple[Array, ...], Frame, Array], None]:
    """Return a filter of planes by a module like ``scipy.ndimage``; in one axis its 1-D function."""

    def filter_plane(plane: Array, kernel: tuple[Array, ...], frame: Frame, out: Array) -> None:
        (taps,), mode, library = kernel, MODES[frame.boundary], ndimage()
        origins = list(map(origin, frame.anchor, taps.shape))
        if plane.ndim == 1:
            library.correlate1d(plane, taps, output=out, mode=mode, origin=origins[0])
        else:
            library.correlate(plane, taps, output=out, mode=mode, origin=origins)

    return filter_plane
