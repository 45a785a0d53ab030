"""*Deep Learning* (Goodfellow, Bengio, Courville, 2016), equations 9.4 to 9.13, as they stand there.

Each test writes its equation with the book's letters and indices, which start at 1, and compares it with what every
willing backend of convbench makes of the same numbers: small whole ones, so that equal means equal.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from itertools import product
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

import convbench as cb
from convbench.backend import Plan

Array = NDArray[np.float64]


class FromOne:
    """An array whose indices start at 1, and which is zero beyond them, as the book's functions on ℤ are."""

    def __init__(self, values: Array) -> None:
        self.values = values

    def __getitem__(self, index: tuple[int, ...]) -> float:
        if all(1 <= i <= size for i, size in zip(index, self.values.shape, strict=True)):
            return float(self.values[tuple(i - 1 for i in index)])
        return 0.0


def upto(*sizes: int) -> Any:
    """Return all indices (1, …, 1) to ``sizes``."""
    return product(*(range(1, size + 1) for size in sizes))


def tabulate(f: Callable[..., float], *sizes: int) -> Array:
    """Return the array of f(1, …, 1) to f(sizes)."""
    return np.array([f(*index) for index in upto(*sizes)]).reshape(sizes)


def whole(*shape: int) -> Array:
    """Return small whole numbers, other ones for every shape."""
    return np.random.default_rng(shape).integers(-4, 5, shape).astype(float)


def willing(line: str) -> list[str]:
    """Return the names of the own backends that take a spec and weights of any kind."""
    spec, names = cb.ConvSpec.parse(line), []
    for name, backend in cb.all_backends().items():
        if backend.kind == "own" and backend.why_not(spec) is None:
            try:
                if spec.op != "weight_grad":
                    backend.plan(spec, threads=1).prepare(whole(*spec.weight_shape))
            except cb.UnsupportedWeights:  # box and the like
                continue
            names.append(name)
    assert "reference" in names
    return names


def run(name: str, line: str, first: Array, second: Array) -> Array:
    """Return what a backend makes of a batch of one, rounded where it is exact only after rounding."""
    spec = cb.ConvSpec.parse(line)
    plan: Plan = cb.plan(spec, backend=name, threads=1)
    first, second = (a.reshape(shape) for a, shape in zip((first, second), spec.operand_shapes, strict=True))
    result = plan(first, second if spec.op == "weight_grad" else plan.prepare(second))
    return rounded(name, spec, result)[() if spec.op == "weight_grad" else 0]


def rounded(name: str, spec: cb.ConvSpec, result: Array) -> Array:
    return result if cb.get_backend(name).error_bound(spec).exact_on_integers else np.rint(result)


# -- one channel ------------------------------------------------------------------------------

IMAGE, KERNEL = whole(5, 6), whole(2, 3)
I, K = FromOne(IMAGE), FromOne(KERNEL)
FULL = "i5x6 k2x3 pfull flip f64"
VALID = "i5x6 k2x3 f64"


@pytest.mark.parametrize("name", willing(FULL))
def test_equation_9_4(name: str) -> None:
    """Convolution: S(i, j) = (I ∗ K)(i, j) = Σ_m Σ_n I(m, n) K(i − m, j − n)."""

    def s(i: int, j: int) -> float:
        return sum(I[m, n] * K[i - m, j - n] for m, n in upto(5, 6))

    expected = tabulate(lambda i, j: s(i + 1, j + 1), 6, 8)  # not zero from (2, 2) to (7, 9) at most
    np.testing.assert_array_equal(run(name, FULL, IMAGE, KERNEL)[0], expected)
    spec = cb.ConvSpec.parse(FULL)
    np.testing.assert_array_equal(rounded(name, spec, cb.convolve(IMAGE, KERNEL, backend=name)), expected)


@pytest.mark.parametrize("name", willing(FULL))
def test_equation_9_5(name: str) -> None:
    """It commutes: S(i, j) = (K ∗ I)(i, j) = Σ_m Σ_n I(i − m, j − n) K(m, n)."""

    def s(i: int, j: int) -> float:
        return sum(I[i - m, j - n] * K[m, n] for m, n in upto(2, 3))

    expected = tabulate(lambda i, j: s(i + 1, j + 1), 6, 8)
    np.testing.assert_array_equal(run(name, FULL, IMAGE, KERNEL)[0], expected)
    if cb.get_backend(name).why_not(cb.ConvSpec.parse("i2x3 k5x6 pfull flip f64")) is None:
        np.testing.assert_array_equal(run(name, "i2x3 k5x6 pfull flip f64", KERNEL, IMAGE)[0], expected)


@pytest.mark.parametrize("name", willing(VALID))
def test_equation_9_6(name: str) -> None:
    """Cross-correlation: S(i, j) = (K ∗ I)(i, j) = Σ_m Σ_n I(i + m, j + n) K(m, n)."""

    def s(i: int, j: int) -> float:
        return sum(I[i + m, j + n] * K[m, n] for m, n in upto(2, 3))

    expected = tabulate(lambda i, j: s(i - 1, j - 1), 4, 4)  # where the kernel lies wholly within the image
    np.testing.assert_array_equal(run(name, VALID, IMAGE, KERNEL)[0], expected)
    y = cb.conv(IMAGE[None, None], KERNEL[None, None], backend=name)
    np.testing.assert_array_equal(rounded(name, cb.ConvSpec.parse(VALID), y)[0, 0], expected)


# -- channels ---------------------------------------------------------------------------------

V = FromOne(whole(2, 7, 8))  # observed data: channel l, row j, column k
SHAPE = "c2 o3 i7x8 k2x3"
KERNELS = whole(3, 2, 2, 3)  # K_{i,l,m,n}: output channel i, input channel l, offset (m, n)


def strided(v: Any, k: Any, s: int, i: int, row: int, column: int) -> float:
    """c(K, V, s)_{i,j,k} of equation 9.8."""
    return sum(v[l, (row - 1) * s + m, (column - 1) * s + n] * k[i, l, m, n] for l, m, n in upto(2, 2, 3))


@pytest.mark.parametrize("name", willing(f"{SHAPE} f64"))
def test_equation_9_7(name: str) -> None:
    """Multichannel: Z_{i,j,k} = Σ_{l,m,n} V_{l, j+m−1, k+n−1} K_{i,l,m,n}."""
    w = FromOne(KERNELS)

    def z(i: int, j: int, k: int) -> float:
        return sum(V[l, j + m - 1, k + n - 1] * w[i, l, m, n] for l, m, n in upto(2, 2, 3))

    expected = tabulate(z, 3, 6, 6)
    np.testing.assert_array_equal(run(name, f"{SHAPE} f64", V.values, KERNELS), expected)
    y = cb.conv(V.values[None], KERNELS, backend=name)
    np.testing.assert_array_equal(rounded(name, cb.ConvSpec.parse(f"{SHAPE} f64"), y)[0], expected)


@pytest.mark.parametrize("name", willing(f"{SHAPE} s2 f64"))
def test_equation_9_8(name: str) -> None:
    """With stride: Z_{i,j,k} = c(K, V, s)_{i,j,k} = Σ_{l,m,n} V_{l, (j−1)·s+m, (k−1)·s+n} K_{i,l,m,n}."""
    w = FromOne(KERNELS)
    expected = tabulate(lambda i, j, k: strided(V, w, 2, i, j, k), 3, 3, 3)
    np.testing.assert_array_equal(run(name, f"{SHAPE} s2 f64", V.values, KERNELS), expected)
    y = cb.conv(V.values[None], KERNELS, stride=2, backend=name)
    np.testing.assert_array_equal(rounded(name, cb.ConvSpec.parse(f"{SHAPE} s2 f64"), y)[0], expected)


@pytest.mark.parametrize("name", willing(f"{SHAPE} tunshared f64"))
def test_equation_9_9(name: str) -> None:
    """Unshared: Z_{i,j,k} = Σ_{l,m,n} V_{l, j+m−1, k+n−1} w_{i,j,k,l,m,n}."""
    weights = whole(3, 6, 6, 2, 2, 3)
    w = FromOne(weights)

    def z(i: int, j: int, k: int) -> float:
        return sum(V[l, j + m - 1, k + n - 1] * w[i, j, k, l, m, n] for l, m, n in upto(2, 2, 3))

    np.testing.assert_array_equal(run(name, f"{SHAPE} tunshared f64", V.values, weights), tabulate(z, 3, 6, 6))


@pytest.mark.parametrize(("t", "name"), [(t, name) for t in (1, 2, 4) for name in willing(f"{SHAPE} t{t} f64")])
def test_equation_9_10(t: int, name: str) -> None:
    """Tiled: Z_{i,j,k} = Σ_{l,m,n} V_{l, j+m−1, k+n−1} K_{i,l,m,n, j%t+1, k%t+1}.

    At j = 1 that is the second kernel, where convbench begins with the first: its stack is the book's rolled by one.
    """
    stack = whole(3, 2, 2, 3, t, t)
    w = FromOne(stack)

    def z(i: int, j: int, k: int) -> float:
        return sum(V[l, j + m - 1, k + n - 1] * w[i, l, m, n, j % t + 1, k % t + 1] for l, m, n in upto(2, 2, 3))

    ours = np.moveaxis(np.roll(stack, (-1, -1), (4, 5)), (4, 5), (1, 2)).copy()
    np.testing.assert_array_equal(run(name, f"{SHAPE} t{t} f64", V.values, ours), tabulate(z, 3, 6, 6))


# -- gradients --------------------------------------------------------------------------------

G = FromOne(whole(3, 3, 3))  # G_{i,j,k} = ∂J(V, K)/∂Z_{i,j,k}
TWO = f"{SHAPE} s2 f64"


def loss(v: Array, k: Array) -> float:
    """J(V, K) = Σ G·c(K, V, 2), whose derivative by Z is G."""
    return sum(
        G[i, row, column] * strided(FromOne(v), FromOne(k), 2, i, row, column) for i, row, column in upto(3, 3, 3)
    )


def differences(f: Callable[[Array], float], at: Array) -> Array:
    """Return the derivatives of a linear function: exactly what a step of 1 changes."""
    steps, start = np.eye(at.size).reshape(-1, *at.shape), f(at)
    return np.array([f(at + step) - start for step in steps]).reshape(at.shape)


@cache
def derivative_by_kernel() -> Array:
    return differences(lambda k: loss(V.values, k), KERNELS)


@cache
def derivative_by_input() -> Array:
    return differences(lambda v: loss(v, KERNELS), V.values)


@pytest.mark.parametrize("name", willing(f"op=weight_grad {TWO}"))
def test_equation_9_11(name: str) -> None:
    """By the kernel: g(G, V, s)_{i,j,k,l} = ∂J/∂K_{i,j,k,l} = Σ_{m,n} G_{i,m,n} V_{j, (m−1)·s+k, (n−1)·s+l}."""
    s = 2

    def g(i: int, j: int, k: int, l: int) -> float:
        return sum(G[i, m, n] * V[j, (m - 1) * s + k, (n - 1) * s + l] for m, n in upto(3, 3))

    expected = tabulate(g, 3, 2, 2, 3)
    np.testing.assert_array_equal(derivative_by_kernel(), expected)
    np.testing.assert_array_equal(run(name, f"op=weight_grad {TWO}", V.values, G.values), expected)


@pytest.mark.parametrize("name", willing(f"op=input_grad {TWO}"))
def test_equation_9_12(name: str) -> None:
    """By the input: h(K, G, s)_{i,j,k} = ∂J(V, K)/∂V_{i,j,k}."""
    np.testing.assert_array_equal(run(name, f"op=input_grad {TWO}", G.values, KERNELS), derivative_by_input())


@pytest.mark.parametrize("name", willing(f"op=input_grad {TWO}"))
def test_equation_9_13(name: str) -> None:
    """h(K, G, s)_{i,j,k} = Σ_{l,m : (l−1)·s+m = j} Σ_{n,p : (n−1)·s+p = k} Σ_q K_{q,i,m,p} G_{q,l,n}."""
    s, w = 2, FromOne(KERNELS)

    def h(i: int, j: int, k: int) -> float:
        rows = [(l, m) for l, m in upto(3, 2) if (l - 1) * s + m == j]
        columns = [(n, p) for n, p in upto(3, 3) if (n - 1) * s + p == k]
        return sum(w[q, i, m, p] * G[q, l, n] for l, m in rows for n, p in columns for (q,) in upto(3))

    np.testing.assert_array_equal(run(name, f"op=input_grad {TWO}", G.values, KERNELS), tabulate(h, 2, 7, 8))
