"""Columns in full, shift-GEMM, the convolution's matrix and running sums: what the battery does not see of them."""

from __future__ import annotations

import math
from collections.abc import Callable
from itertools import pairwise
from typing import Any

import numpy as np
import pytest

from convbench import ConvSpec, UnsupportedSpec, UnsupportedWeights, get_backend, oracle, plan, reference
from convbench.algorithms.box import addition_chain, additions_passed
from convbench.algorithms.matrix import dense_bytes, dense_matrices, sparse_arrays, sparse_bytes
from convbench.report.matrix import matrix_figures

Array = np.ndarray[Any, Any]

FAMILY = (
    "n2 c2 o3 i5x4 k3x2 s2x1 p1:0x2:1 flip int64",
    "n2 c4 o2 i7 k3 d2 p2 g2 boundary=circular int64",
    "c2 o2 i4x3 k2x3 p3:1x2:4 boundary=reflect int64",
    "c2 o4 i6x4 k2 s2x1 psame g2 t2x3 boundary=replicate int64",
    "n2 c2 o2 i3x4 k2 p1 tunshared int64",
    "n2 c2 o2 i3x2x4 k2x1x3 p0x0x1 bias=channel int64",
)


def _integers(spec: ConvSpec, seed: int = 0) -> tuple[Array, Array]:
    rng = np.random.default_rng(seed)
    return rng.integers(-9, 10, spec.input_shape), rng.integers(-9, 10, spec.weight_shape)


def _sparse(spec: ConvSpec, w: Array) -> Any:
    from scipy.sparse import csr_array

    values, columns, starts = sparse_arrays(spec, w)
    shape = math.prod(spec.output_shape[1:]), math.prod(spec.input_shape[1:])
    return csr_array((values, columns, starts), shape=shape)


def _whole(spec: ConvSpec, w: Array) -> Array:
    """The matrix of all groups, from the blocks of each."""
    from scipy.linalg import block_diag

    return np.asarray(block_diag(*dense_matrices(spec, w)))


# -- columns and no columns ---------------------------------------------------------------------------


def test_full_columns_hold_one_example_for_each_thread() -> None:
    """Workspace grows with the examples at work, not with the batch; blocks need far less."""
    line = "n6 c8 o8 i64x64 k5 psame f32"
    columns = 8 * 25 * 64 * 64 * 4
    one, two = (plan(line, backend="im2col-full", threads=threads).workspace_bytes for threads in (1, 2))
    assert columns < one < 1.5 * columns
    assert two == 2 * one
    assert plan(line, backend="im2col", threads=1).workspace_bytes < one


def test_kn2row_keeps_no_columns() -> None:
    """Its workspace is that of a block's sums and samples, whatever the kernel; 1×1 is a plain product."""
    small, large = (plan(f"c16 o16 i64x64 k{k} psame f32", backend="kn2row", threads=1) for k in (3, 9))
    assert large.workspace_bytes < 1.6 * small.workspace_bytes
    assert small.flops < 1.05 * small.spec.flops  # the ends of rows
    pointwise = plan("c16 o16 i64x64 k1 f32", backend="kn2row", threads=1)
    assert pointwise.flops == pointwise.spec.flops


@pytest.mark.parametrize("stride", [1, 2])
def test_kn2row_warns_of_nothing(stride: int) -> None:
    """What is computed beyond the ends of rows reads no stale memory, which could hold anything."""
    made = plan(f"c3 o4 i9x11 k3 s{stride} d2 p3 f32", backend="kn2row", threads=1)
    rng = np.random.default_rng(1)
    x, w = (rng.standard_normal(shape).astype("f4") for shape in (made.spec.input_shape, made.spec.weight_shape))
    weights = made.prepare(w)
    with np.errstate(all="ignore"):
        made(np.full_like(x, np.float32(3e38)), weights)  # leaves infinities of either sign in the buffers
    with np.errstate(all="raise", under="ignore"):
        y = made(x, weights)
    np.testing.assert_allclose(y, oracle.conv(made.spec, x, w), rtol=1e-4, atol=1e-4)


# -- the matrix ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("line", FAMILY)
def test_the_matrix_times_an_example_is_the_convolution(line: str) -> None:
    """Dense and sparse hold the same map, and it is the definition's."""
    spec = ConvSpec.parse(line).replace(bias="none")
    x, w = _integers(spec)
    kernel = np.flip(w, tuple(range(-spec.ndim, 0))) if spec.flip else w
    dense, sparse = _whole(spec, kernel), _sparse(spec, kernel)
    np.testing.assert_array_equal(sparse.toarray(), dense)
    expected = reference.conv(spec, x, w).reshape(spec.batch, -1)
    np.testing.assert_array_equal(x.reshape(spec.batch, -1) @ dense.T, expected)


@pytest.mark.parametrize("line", FAMILY)
def test_the_transposed_matrix_is_the_input_gradient(line: str) -> None:
    """⟨conv(e_q, w), g⟩ over all unit inputs e_q is ∂J/∂x (*Deep Learning*, eq. 9.13), with the reference's conv."""
    spec = ConvSpec.parse(line).replace(bias="none", batch=1)
    _, w = _integers(spec, 1)
    g = np.random.default_rng(2).integers(-9, 10, spec.output_shape)
    size = math.prod(spec.input_shape)
    units = np.eye(size, dtype=np.int64).reshape(size, *spec.input_shape[1:])
    gradient = (reference.conv(spec.replace(batch=size), units, w) * g).reshape(size, -1).sum(axis=1)
    kernel = np.flip(w, tuple(range(-spec.ndim, 0))) if spec.flip else w
    np.testing.assert_array_equal(_sparse(spec, kernel).T @ g.ravel(), gradient)
    np.testing.assert_array_equal(_whole(spec, kernel).T @ g.ravel(), gradient)


def test_circular_gives_a_circulant_and_zero_a_toeplitz_matrix() -> None:
    """One dimension: each row is the one above moved by one, around the end or over it."""
    w = np.array([[[1, 2, 3]]])
    around = dense_matrices(ConvSpec.parse("i6 k3 psame boundary=circular int64"), w)[0]
    assert all(np.array_equal(np.roll(row, 1), below) for row, below in pairwise(around))
    assert np.array_equal(np.roll(around[-1], 1), around[0])
    zero = dense_matrices(ConvSpec.parse("i6 k3 psame int64"), w)[0]
    assert np.array_equal(zero[1:, 1:], zero[:-1, :-1])
    assert zero[0].tolist() == [2, 3, 0, 0, 0, 0]


def test_two_dimensions_give_doubly_block_matrices() -> None:
    """Blocks shift as entries do: circulant with circular boundary, Toeplitz with zero."""
    w = np.arange(1, 10).reshape(1, 1, 3, 3)
    for boundary in ("circular", "zero"):
        matrix = dense_matrices(ConvSpec.parse(f"i5x4 k3 psame boundary={boundary} int64"), w)[0]
        blocks = matrix.reshape(5, 4, 5, 4)  # rows (p₁, p₂), columns (q₁, q₂)
        if boundary == "circular":
            np.testing.assert_array_equal(np.roll(blocks, (1, 1), (0, 2)), blocks)
            np.testing.assert_array_equal(np.roll(blocks, (1, 1), (1, 3)), blocks)
        else:
            np.testing.assert_array_equal(blocks[1:, :, 1:], blocks[:-1, :, :-1])
            np.testing.assert_array_equal(blocks[:, 1:, :, 1:], blocks[:, :-1, :, :-1])


def test_the_books_edge_detection_has_178640_numbers() -> None:
    """What is built agrees with the report's figures; the dense matrix is refused with the memory it needs."""
    spec = ConvSpec.parse("i280x320 k1x2 f32")
    _, sparse, dense = matrix_figures(spec)
    made = plan(spec, backend="matrix-sparse", threads=1)
    values, columns, starts = sparse_arrays(spec, np.array([[[[-1, 1]]]], "f4"))
    assert len(values) == len(columns) == sparse.stored == 178_640
    assert made.flops == 2 * 178_640
    assert made.prepared_bytes == sparse_bytes(spec) == values.nbytes + columns.nbytes + starts.nbytes
    assert columns.dtype == np.int32
    assert dense_bytes(spec) == 4 * dense.stored
    with pytest.raises(UnsupportedSpec, match=r"matrix-dense: memory: 29\.8 GiB needed, the limit is 2\.0 GiB"):
        plan(spec, backend="matrix-dense")
    reason = get_backend("matrix-sparse").why_not(ConvSpec.parse("c64 o64 i224x224 k3 p1 f32"))
    assert reason is not None
    assert reason.startswith("memory: ")


@pytest.mark.parametrize("line", [*FAMILY, "n2 c4 o6 i5x4 k3 p1 g2 f64", "i4 k3 p4 f32"])
def test_figures_of_the_report_are_those_of_the_backends(line: str) -> None:
    """Stored numbers, in every member of the family."""
    spec = ConvSpec.parse(line)
    w = np.ones(spec.weight_shape, spec.dtype)
    _, sparse, dense = matrix_figures(spec)
    assert len(sparse_arrays(spec, w)[0]) == sparse.stored
    assert dense_matrices(spec, w).size == dense.stored


@pytest.mark.parametrize("threads", [1, 2, 3])
@pytest.mark.parametrize("line", ["i9x7 k3 p1 f64", "n3 c2 o5 i6 k3 f64", "n0 i5 k3 f64"])
def test_threads_share_the_rows(line: str, threads: int) -> None:
    """However many there are, every output is written, into any memory."""
    made = plan(line, backend="matrix-sparse", threads=threads)
    x, w = (array.astype("f8") for array in _integers(made.spec))
    out = np.full((*made.spec.output_shape, 2), np.nan)[..., 0]
    made(x, made.prepare(w), out=out)
    np.testing.assert_array_equal(out, oracle.conv(made.spec, x, w))


# -- running sums -------------------------------------------------------------------------------------


@pytest.mark.parametrize("taps", [*range(1, 80), 101, 127, 255, 1001])
def test_addition_chains_sum_that_many_neighbours(taps: int) -> None:
    """Few additions, few registers, and each sample exactly once."""
    x = np.random.default_rng(taps).integers(-9, 10, taps + 20)
    registers, lengths, result = {0: x}, {0: len(x)}, 0
    chain = addition_chain(taps)
    for result, left, right, shift in chain:
        reach = min(lengths[left], lengths[right] - shift)
        registers[result] = registers[left][:reach] + registers[right][shift : shift + reach]
        lengths[result] = reach
    np.testing.assert_array_equal(registers[result], np.convolve(x, np.ones(taps, int), "valid"))
    assert len(chain) <= 2 * math.log2(taps)
    assert max((step.target for step in chain), default=0) <= max(1, math.log2(taps))


def test_box_additions_grow_with_the_logarithm() -> None:
    """A hundred taps cost some three times as many FLOPs as three, and pass as many roundings."""
    small, large = (plan(f"i512x512 k{k} psame f32", backend="box-numpy", threads=1) for k in (3, 101))
    assert large.flops < 8 * small.flops  # the halo included
    assert large.flops < large.spec.flops / 500
    assert additions_passed(large.spec) == 2 * additions_passed(ConvSpec.parse("i512 k101")) <= 20


def test_box_does_not_drift() -> None:
    """A loud sample is forgotten as soon as it leaves the window: nothing was subtracted."""
    x = np.ones((1, 1, 4096), "f4")
    x[..., 7] = 1e8
    made = plan("i4096 k9 f32", backend="box-numpy", threads=1)
    y = made(x, made.prepare(np.ones((1, 1, 9), "f4")))
    assert (y[..., 8:] == 9).all()


@pytest.mark.parametrize(
    ("spoil", "reason"),
    [
        (lambda w: w.__setitem__((0, 1, 0, 0), 2), r"weights: taps of 1 of 6 kernels differ"),
        (lambda w: w.__setitem__((0, 1), np.nan), r"weights: NaN or infinity"),
        (lambda w: w.__setitem__(0, np.inf), r"weights: NaN or infinity"),
    ],
)
def test_box_refuses_weights_that_are_not_constant(spoil: Callable[[Array], None], reason: str) -> None:
    """The reason says how many kernels differ; zeros are constant."""
    made = plan("c2 o3 i9x9 k3 f32", backend="box-numpy", threads=1)
    w = np.zeros(made.spec.weight_shape, "f4")
    assert not made(np.ones(made.spec.input_shape, "f4"), made.prepare(w)).any()
    spoil(w)
    with pytest.raises(UnsupportedWeights, match=reason):
        made.prepare(w)


@pytest.mark.parametrize(
    "line",
    [
        "n2 c3 o2 i23x19 k5x7 s3x2 d2x3 p4 int64",
        "c2 o4 i40 k7 s4 d6 p9 g2 int64",
        "i31x5 k3x2 s5x1 p2 int64",  # stride beyond the kernel
        "i9x8x7 k2x3x4 s1x3x2 d1x1x2 p3 int64",
        "c2 o2 i30 k4 s6 d3 p2:7 int64",
    ],
)
def test_box_sums_strided_and_dilated_windows(line: str) -> None:
    """Components, whole taps and the rest: every sample once, in exact integers."""
    made = plan(line, backend="box-numpy", threads=1)
    x, w = _integers(made.spec)
    w[...] = (
        w[..., :1]
        if made.spec.ndim == 1
        else w.reshape(*w.shape[:2], -1)[:, :, :1].reshape(*w.shape[:2], *(1,) * made.spec.ndim)
    )
    np.testing.assert_array_equal(made(x, made.prepare(w)), oracle.conv(made.spec, x, w))
