"""The definition, evaluated as it is written: slow, obviously right, never tuned."""

from __future__ import annotations

from itertools import product
from typing import Any

import numpy as np
from numpy.typing import NDArray

from convbench.errors import UnsupportedSpec
from convbench.geometry import boundary_index
from convbench.spec import ConvSpec

__all__ = ["MAX_MACS", "conv"]

#: Above this many multiply–accumulates the loops take seconds; the backend ``reference`` refuses.
MAX_MACS = 10**6


def conv(spec: ConvSpec, x: NDArray[Any], w: NDArray[Any], bias: NDArray[Any] | None = None) -> NDArray[Any]:
    """Return y[n,o,p] = Σ_{c,k} x[n, c, p·s + k·d − a] · w[o, (p mod t), c, k] + bias, one loop an index.

    Parameters
    ----------
    spec : ConvSpec
        Any spec with ``op="forward"``.
    x, w, bias : numpy.ndarray
        Of the shapes that ``spec`` derives.

    Returns
    -------
    numpy.ndarray
        Shape ``spec.output_shape``, dtype ``spec.result_dtype``. Sums are formed in Python's int (exact),
        float (float64) or complex (complex128), and rounded once.

    Raises
    ------
    UnsupportedSpec
        For another ``op``.
    OverflowError
        If an exact integer result does not fit 64 bits.

    Notes
    -----
    O(MACs) steps of the interpreter. Source: *Deep Learning*, eqs. 9.6–9.10.

    Examples
    --------
    >>> conv(ConvSpec(input_size=4, kernel_size=2), np.float32([[[1, 2, 3, 4]]]), np.float32([[[1, 10]]]))
    array([[[21., 32., 43.]]], dtype=float32)
    """
    if spec.op != "forward":
        raise UnsupportedSpec(f"op: {spec.op} is not in forward")
    exact_x, exact_w = x.astype(object), w.astype(object)  # Python's own numbers
    y = np.zeros(spec.output_shape, dtype=object)
    channels_per_group = spec.in_channels // spec.groups
    outputs_per_group = spec.out_channels // spec.groups
    for n, o in product(range(spec.batch), range(spec.out_channels)):
        first_channel = (o // outputs_per_group) * channels_per_group
        for p in product(*map(range, spec.output_size)):
            tile = tuple(i % t for i, t in zip(p, spec.tile, strict=True)) if spec.tile else ()
            total = _bias_at(spec, bias, o, p)
            for k in product(*map(range, spec.kernel_size)):
                position = _input_position(spec, p, k)
                tap = tuple(size - 1 - i for size, i in zip(spec.kernel_size, k, strict=True)) if spec.flip else k
                for c in range(channels_per_group):
                    sample = 0 if position is None else exact_x[(n, first_channel + c, *position)]
                    total += sample * exact_w[(o, *tile, c, *tap)]
            y[(n, o, *p)] = total
    return y.astype(spec.result_dtype)


def _bias_at(spec: ConvSpec, bias: NDArray[Any] | None, o: int, p: tuple[int, ...]) -> Any:
    """Return the bias of output channel ``o`` at position ``p`` as a Python number."""
    if bias is None:
        return 0
    tile = tuple(i % t for i, t in zip(p, spec.tile or p, strict=True)) if spec.bias == "tile" else ()
    index = {"channel": (o,), "tile": (o, *tile), "location": (o, *p)}[spec.bias]
    return bias[index].item()


def _input_position(spec: ConvSpec, p: tuple[int, ...], k: tuple[int, ...]) -> tuple[int, ...] | None:
    """Return the input index that output ``p`` and tap ``k`` meet at, or None where zeros lie."""
    position = []
    for axis in range(spec.ndim):
        raw = p[axis] * spec.stride[axis] + k[axis] * spec.dilation[axis] - spec.padding[axis][0]
        inside = boundary_index(raw, spec.input_size[axis], spec.boundary)
        if inside is None:
            return None
        position.append(inside)
    return tuple(position)
