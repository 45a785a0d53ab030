"""Convolution seen as a matrix: what would be stored and computed (*Deep Learning*, section 9.2; no run needed)."""

from __future__ import annotations

from dataclasses import dataclass
from math import prod

from convbench import refusals
from convbench.algorithms.matrix import dense_bytes, shape_of_matrix, why_not_dense
from convbench.errors import UnsupportedSpec
from convbench.geometry import outputs_in_bounds
from convbench.report.text import Column, Grid, Row
from convbench.spec import ConvSpec

__all__ = ["MatrixFigures", "matrix_figures", "matrix_table"]


@dataclass(frozen=True)
class MatrixFigures:
    """One way of storing the same linear map.

    Attributes
    ----------
    way : str
    stored : int
        Numbers stored, the bias aside.
    operations : int
        Multiplications and additions for the whole batch, the bias included.
    note : str
        Why it is refused, or the memory it takes.
    """

    way: str
    stored: int
    operations: int
    note: str = ""


def matrix_figures(spec: ConvSpec) -> list[MatrixFigures]:
    """Return the figures of convolution, of the sparse matrix and of the dense matrix.

    Raises
    ------
    UnsupportedSpec
        For the gradients.

    Notes
    -----
    A row with m entries costs m multiplications and m − 1 additions. The dense matrix is one a group, as the
    backend ``matrix-dense`` holds it. The sparse matrix's indices come on top.

    Examples
    --------
    >>> edges = ConvSpec.parse("i280x320 k1x2 f32")  # the book's example: 320 wide, 280 high
    >>> [(figures.stored, figures.operations) for figures in matrix_figures(edges)]
    [(2, 267960), (178640, 267960), (8003072000, 16006054680)]
    """
    if spec.op != "forward":
        raise UnsupportedSpec(refusals.refuse("op", f"{spec.op} given, the matrix table is for forward only"))
    biases = prod(spec.output_shape) * (spec.bias != "none")
    entries = spec.in_bounds_macs // spec.batch if spec.batch else 0
    rows = spec.out_channels * prod(spec.output_size)
    dense = spec.groups * prod(shape_of_matrix(spec))
    forward = spec.multiplications + spec.additions
    sparse = spec.batch * (2 * entries - _rows_with_entries(spec)) + biases
    return [
        MatrixFigures("convolution", prod(spec.weight_shape), forward),
        MatrixFigures("sparse matrix", entries, sparse),
        MatrixFigures("dense matrix", dense, spec.batch * (2 * dense - rows) + biases, _dense_note(spec)),
    ]


def _rows_with_entries(spec: ConvSpec) -> int:
    """Count the outputs of one example that see at least one sample of the input."""
    if spec.boundary != "zero":
        return spec.out_channels * prod(spec.output_size)
    befores = (before for before, _ in spec.padding)
    axes = (spec.input_size, spec.kernel_size, spec.stride, spec.dilation, befores, spec.output_size)
    return spec.out_channels * prod(map(outputs_in_bounds, *axes))


def _dense_note(spec: ConvSpec) -> str:
    refusal = why_not_dense(spec)
    return f"refused: {refusal}" if refusal else refusals.human_bytes(dense_bytes(spec))


def matrix_table(spec: ConvSpec) -> Grid:
    """Return :func:`matrix_figures` as a table, in full digits."""
    grid = Grid([Column("", right=False), Column("stored numbers"), Column("multiplications + additions"),
                 Column("", right=False)])  # fmt: skip
    for figures in matrix_figures(spec):
        grid.rows.append(Row((figures.way, _digits(figures.stored), _digits(figures.operations), figures.note)))
    return grid


def _digits(number: int) -> str:
    """All digits, and the round figure below the large ones."""
    billions = number // 10**9
    return f"{number:,}" + (f" (> {billions}·10⁹)" if billions else "")
