"""The definition, evaluated as it is written: slow, obviously right, never tuned."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import product
from typing import Any

import numpy as np
from numpy.typing import NDArray

from convbench.errors import SpecError
from convbench.geometry import boundary_index
from convbench.spec import ConvSpec

__all__ = ["MAX_MACS", "bias_grad", "conv"]

#: Above this many multiply–accumulates the loops take seconds; the backend ``reference`` refuses.
MAX_MACS = 10**6

Index = tuple[int, ...]


def conv(spec: ConvSpec, first: NDArray[Any], second: NDArray[Any], bias: NDArray[Any] | None = None) -> NDArray[Any]:
    """Return the operation that ``spec.op`` names, one loop an index.

    The operation is y[n,o,p] = Σ_{c,k} x[n, c, p·s + k·d − a] · w[o, (p mod t), c, k] + bias. Its gradients sum the
    same products in another way: each term adds g·conj(w) to the sample of x that it read, wherever the boundary put
    that sample, or conj(x)·g to its weight.

    Parameters
    ----------
    spec : ConvSpec
    first, second : numpy.ndarray
        ``forward``: x and w. ``input_grad``: g and w. ``weight_grad``: x and g. Of the shapes that ``spec`` derives.
    bias : numpy.ndarray, optional
        Of ``spec.bias_shape``; gradients have none.

    Returns
    -------
    numpy.ndarray
        Shape ``spec.result_shape``, dtype ``spec.result_dtype``. Sums are formed in Python's int (exact),
        float (float64) or complex (complex128), and rounded once.

    Raises
    ------
    OverflowError
        If an exact integer result does not fit 64 bits.

    Notes
    -----
    O(MACs) steps of the interpreter. Source: *Deep Learning*, eqs. 9.6–9.13.

    Examples
    --------
    >>> spec = ConvSpec(input_size=4, kernel_size=2)
    >>> w = np.float32([[[1, 10]]])
    >>> conv(spec, np.float32([[[1, 2, 3, 4]]]), w)
    array([[[21., 32., 43.]]], dtype=float32)
    >>> conv(spec.replace(op="input_grad"), np.float32([[[1, 2, 3]]]), w)
    array([[[ 1., 12., 23., 30.]]], dtype=float32)
    """
    if bias is not None and spec.op != "forward":
        raise SpecError("bias", f"shape {bias.shape}", f"must be None: {spec.op} does not depend on it")
    a, b = first.astype(object), second.astype(object)  # Python's own numbers
    result = np.zeros(spec.result_shape, dtype=object)
    if bias is not None:
        for n, o, *p in np.ndindex(spec.output_shape):
            result[(n, o, *p)] = bias[_bias_index(spec, o, tuple(p))].item()
    for at_x, at_w, at_y in _terms(spec):
        if spec.op == "forward":
            result[at_y] += _sample(a, at_x) * b[at_w]
        elif spec.op == "weight_grad":
            result[at_w] += _sample(a, at_x).conjugate() * b[at_y]
        elif at_x is not None:
            result[at_x] += a[at_y] * b[at_w].conjugate()
    return result.astype(spec.result_dtype)


def bias_grad(spec: ConvSpec, g: NDArray[Any]) -> NDArray[Any]:
    """Return ∂J/∂bias: each entry gathers g = ∂J/∂y wherever the bias was added, in exact sums rounded once.

    Parameters
    ----------
    spec : ConvSpec
        The forward operation, with a bias.
    g : numpy.ndarray, shape ``spec.output_shape``

    Returns
    -------
    numpy.ndarray
        Shape ``spec.bias_shape``, dtype ``spec.result_dtype``.

    Examples
    --------
    >>> bias_grad(ConvSpec(input_size=3, kernel_size=1, bias="channel"), np.float32([[[1, 2, 3]]]))
    array([6.], dtype=float32)
    """
    if spec.bias_shape is None:
        raise SpecError("bias", spec.bias, f"has no gradient: {spec} adds none")
    result = np.zeros(spec.bias_shape, dtype=object)
    for n, o, *p in np.ndindex(spec.output_shape):
        result[_bias_index(spec, o, tuple(p))] += g[(n, o, *p)].item()
    return result.astype(spec.result_dtype)


def _terms(spec: ConvSpec) -> Iterator[tuple[Index | None, Index, Index]]:
    """Yield where in x, w and y each product x·w of the forward operation belongs; None for a zero beside the input."""
    channels_per_group = spec.in_channels // spec.groups
    outputs_per_group = spec.out_channels // spec.groups
    for n, o in product(range(spec.batch), range(spec.out_channels)):
        first_channel = (o // outputs_per_group) * channels_per_group
        for p in product(*map(range, spec.output_size)):
            tile = _tile_index(spec, p)
            for k in product(*map(range, spec.kernel_size)):
                position = _input_position(spec, p, k)
                tap = tuple(size - 1 - i for size, i in zip(spec.kernel_size, k, strict=True)) if spec.flip else k
                for c in range(channels_per_group):
                    sample = None if position is None else (n, first_channel + c, *position)
                    yield sample, (o, *tile, c, *tap), (n, o, *p)


def _input_position(spec: ConvSpec, p: Index, k: Index) -> Index | None:
    """Return the input index that output ``p`` and tap ``k`` meet at, or None where zeros lie."""
    position = []
    for axis in range(spec.ndim):
        raw = p[axis] * spec.stride[axis] + k[axis] * spec.dilation[axis] - spec.padding[axis][0]
        inside = boundary_index(raw, spec.input_size[axis], spec.boundary)
        if inside is None:
            return None
        position.append(inside)
    return tuple(position)


def _tile_index(spec: ConvSpec, p: Index) -> Index:
    """Return which of the kernels that are cycled through meets output ``p``: p mod t, or () for shared weights."""
    return tuple(i % t for i, t in zip(p, spec.tile, strict=True)) if spec.tile else ()


def _bias_index(spec: ConvSpec, o: int, p: Index) -> Index:
    """Return the entry of the bias that output channel ``o`` has at position ``p``."""
    return {"channel": (o,), "tile": (o, *_tile_index(spec, p)), "location": (o, *p)}[spec.bias]


def _sample(x: NDArray[Any], at: Index | None) -> Any:
    return 0 if at is None else x[at]
