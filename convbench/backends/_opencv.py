"""What the backends from OpenCV share: borders, thread control, lines as images of one row."""

from __future__ import annotations

from functools import partial
from importlib import metadata
from typing import Any

from convbench.arrays import Array
from convbench.backend import FunctionBackend
from convbench.backends._planes import Frame, planes_limits
from convbench.spec import ConvSpec
from convbench.threads import Pool

__all__ = ["BOUNDARIES", "LIMITS", "anchor", "as_image", "dft_taps", "pad", "rival"]

#: OpenCV's names; BORDER_WRAP is there for padding, but the filters do not take it.
BOUNDARIES = {"zero": "BORDER_CONSTANT", "reflect": "BORDER_REFLECT_101", "replicate": "BORDER_REPLICATE"}
LIMITS = planes_limits(tuple(BOUNDARIES), (1, 2))

#: The same library comes under four names.
_DISTRIBUTIONS = ("opencv-python-headless", "opencv-python", "opencv-contrib-python-headless", "opencv-contrib-python")


def _distribution() -> str:
    for name in _DISTRIBUTIONS:
        try:
            metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
        return name
    return _DISTRIBUTIONS[0]


REQUIRES = {"cv2": _distribution()}


class _Threads:
    """OpenCV's pool under the names that :class:`Pool` knows."""

    @staticmethod
    def get_num_threads() -> int:
        import cv2

        return int(cv2.getNumThreads())

    @staticmethod
    def set_num_threads(threads: int) -> None:
        import cv2

        cv2.setNumThreads(threads)


#: One pool a process. Of calls from several threads OpenCV runs one in parallel, the others each in its own thread.
POOL = Pool(lambda: (_Threads,))


def as_image(plane: Array) -> Array:
    """A line becomes an image of one row."""
    return plane[None] if plane.ndim == 1 else plane


def dft_taps(spec: ConvSpec) -> int:
    """Return from how many taps ``filter2D`` transforms.

    ``dftFilter2D`` in OpenCV's filter.dispatch.cpp; the manual's "11 x 11".
    """
    return 130 if spec.dtype == "float32" else 50


def anchor(frame: Frame) -> tuple[int, int]:
    """OpenCV's points are (column, row)."""
    *row, column = frame.anchor
    return column, row[0] if row else 0


def pad(spec: ConvSpec, plane: Array, margins: tuple[tuple[int, int], ...]) -> Array:
    """Use ``copyMakeBorder``."""
    import cv2

    rows, columns = ((0, 0), *margins)[-2:]
    padded: Any = cv2.copyMakeBorder(as_image(plane), *rows, *columns, getattr(cv2, BOUNDARIES[spec.boundary]))
    return padded[0] if plane.ndim == 1 else padded


#: A :class:`FunctionBackend` with what all have in common filled in.
rival = partial(FunctionBackend, kind="rival", pool=POOL.held, requires=REQUIRES, limits=LIMITS)
