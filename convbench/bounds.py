"""A-priori error bounds, one function an algorithm family (standard library only).

u is the unit roundoff, eps = 2u, γₙ = n·u/(1 − n·u). Sources: Higham, *Accuracy and Stability of Numerical
Algorithms*, 2nd ed. 2002, chapters 3 and 24.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import log2, prod, sqrt

from convbench.spec import ConvSpec

__all__ = ["ErrorBound", "box", "direct", "fft", "separable", "tensor_core"]

_EPS = {
    "float16": 2.0**-10,
    "bfloat16": 2.0**-7,
    "float32": 2.0**-23,
    "float64": 2.0**-52,
    "complex64": 2.0**-23,
    "complex128": 2.0**-52,
}


@dataclass(frozen=True, kw_only=True)
class ErrorBound:
    r"""What an algorithm promises before it runs.

    .. math:: |ŷ − y| ≤ eps · (componentwise · (|w| ∗ |x| + |bias|) + normwise · ‖w‖₂ · ‖x‖₂)

    with eps the spacing of the dtype at 1 (2u), ‖w‖₂ over one output channel's weights, and ‖x‖₂ over
    the samples named by ``reach``; and for each example n and output channel o, where ``energy`` is given,

    .. math:: ‖ŷ − y‖₂ ≤ eps · (componentwise · ‖ |w| ∗ |x| + |bias| ‖₂ + energy · max_f |ŵ(f)| · ‖x‖₂)

    It holds where nothing overflows; gradual underflow is allowed for by whoever compares.

    Attributes
    ----------
    source : str
        Where the bound comes from.
    componentwise, normwise : float
        Dimensionless factors. Direct methods have no normwise part; transforms have little else.
    reach : tuple of int, optional
        An error depends on the samples under the kernel and on all those up to so many beyond them along each axis,
        on either side. 0 along every axis: on those under the kernel alone. None: on the whole example.
    energy : float
        Factor of the second inequality; 0 where there is none. It is the sharper one for large transforms, whose
        errors spread evenly.
    exact_on_integers : bool
        Small integers in floating-point storage give the exact result bit for bit; otherwise they do
        after rounding to the nearest integer, wherever the bound is below one half.
    spreads_nonfinite : bool
        One NaN or infinity spoils outputs that do not depend on it.
    flushes_denormals : bool
        Operands, products and sums below the smallest normal number may count as zero.
    """

    source: str
    componentwise: float
    normwise: float = 0.0
    energy: float = 0.0
    reach: tuple[int, ...] | None = None
    exact_on_integers: bool = True
    spreads_nonfinite: bool = False
    flushes_denormals: bool = False


def gamma(terms: int, dtype: str) -> float:
    """Return γₙ in units of eps; 0 for integers, whose sums are exact.

    Complex products cost √2·γ₂ more than real ones (Higham, lemma 3.5), covered by two more terms. Half precisions
    are storage: sums are float32 and rounded once.
    """
    if dtype not in _EPS:
        return 0.0
    if dtype in ("float16", "bfloat16"):
        return gamma(terms, "float32") * _EPS["float32"] / _EPS[dtype] + 0.5
    if "complex" in dtype:
        terms += 2
    half = terms / 2
    slack = max(0.5, 1 - half * _EPS[dtype])  # beyond n·u = ½ (2²³ terms of float32) γₙ ends; n·u is still typical
    return half / slack * (sqrt(2) if "complex" in dtype else 1)


def direct(spec: ConvSpec) -> ErrorBound:
    """Any order of summation of the definition's products, bias included: γₙ componentwise (eq. 3.5)."""
    return ErrorBound(source="Higham 2002, eq. 3.5", componentwise=gamma(spec.terms + 1, spec.dtype))


def tensor_core(spec: ConvSpec, significant_bits: int) -> ErrorBound:
    """Products of operands rounded to so many significant bits, summed in float32 by tensor cores, bias included.

    Rounding both operands, each by at most 2⁻ᵖ, puts a product off by at most (2 + 2⁻ᵖ)·2⁻ᵖ; float16 arrays are not
    rounded. A product of two operands is exact, but sums are truncated, not rounded: the addends of a block are shifted
    to the largest exponent among them, and what falls off at the end is lost (Fasi, Higham, Mikaitis and Pranesh 2021,
    "Numerical behavior of NVIDIA tensor cores"). That costs at most one eps of float32, two units roundoff, for each
    addend and each sum of a block, less than two for each term: γ of four times the terms. Small integers are exact
    as long as p bits hold them.
    """
    u = 0.0 if spec.dtype == "float16" else 2.0**-significant_bits
    summed = gamma(4 * (spec.terms + 2), "float32")
    stored = _EPS[spec.dtype]
    return ErrorBound(
        source="Fasi, Higham, Mikaitis and Pranesh 2021, with Higham 2002, eq. 3.5",
        componentwise=((2 + u) * u + (1 + u) ** 2 * summed * _EPS["float32"]) / stored
        + (0.5 if spec.dtype == "float16" else 0.0),
        flushes_denormals=spec.dtype == "float32",
    )


def winograd(
    spec: ConvSpec,
    amplification: float,
    size: tuple[int, ...],
    reach: tuple[int, ...] | None,
    exact: bool,
    summed: int | None = None,
) -> ErrorBound:
    """Minimal filtering by tiles of ``size`` samples.

    Each value is a sum of products of sums, so its relative error is at most γ of their lengths together: t along each
    axis for samples and for outputs, the channels (``summed``), and r for weights (in float32 one: they are rounded
    once). By Cauchy and Schwarz |Σ_f A_if (G_f·w)(B_f·x)| ≤ Σ_f |A_if| ‖G_f‖‖B_f‖ · ‖w‖₂‖x‖₂, the norms over a tile;
    ``amplification`` is the largest such sum, its product over the axes (Kronecker products multiply norms). The weight
    gradient Gᵀ Σ (A g) ⊙ (Bᵀ x) is bounded alike, its sum over tiles by that of their norms.
    """
    summed = spec.in_channels // spec.groups * prod(spec.stride) if summed is None else summed
    lengths = size if spec.op == "weight_grad" else spec.kernel_size  # of the sums in which weights are transformed
    weights = 1 if spec.dtype in ("float32", "complex64") else sum(lengths)
    terms = 2 * sum(size) + weights + summed + 2
    return ErrorBound(
        source="Higham 2002, eq. 3.5, with the transforms' norms",
        componentwise=gamma(1, spec.dtype),
        normwise=amplification * gamma(terms, spec.dtype),
        reach=reach,
        exact_on_integers=exact,
        spreads_nonfinite=True,
    )


def fft(
    spec: ConvSpec,
    points: int,
    reach: tuple[int, ...] | None = None,
    overlap: float = 1.0,
    summed: int | None = None,
) -> ErrorBound:
    """Three transforms of ``points`` points in all and one product a frequency.

    A transform's relative error in the 2-norm is at most η·log₂T, η = u + γ₄(√2 + u) ≈ 6.7u = 3.4 eps (theorem
    24.2, for radix 2; larger radices have fewer, longer stages, and their small sums stay below the stages that
    they replace). By Parseval three of them give 3·3.4·log₂T eps of max|ŵ|·‖x‖₂ in the 2-norm (``energy``), and,
    as |Σ_f X_f W_f|/T ≤ ‖x‖₂‖w‖₂, as many eps of ‖w‖₂‖x‖₂ at each output. A sum of spectra adds √2·γ of its length,
    ``summed``: by default the channels, or the examples of a weight gradient. Of complex data, too, as products of
    spectra are complex in any case. In tiles the norms are over a tile (``reach``), and a sample counts in ``overlap``
    of them.
    """
    eta = 3.4
    real = {"complex64": "float32", "complex128": "float64"}.get(spec.dtype, spec.dtype)
    lengths = {
        "forward": spec.in_channels // spec.groups * prod(spec.stride),
        "input_grad": spec.out_channels // spec.groups,
        "weight_grad": spec.batch,
    }
    summed = lengths[spec.op] if summed is None else summed
    factor = 3 * eta * max(1.0, log2(max(2, points))) + sqrt(2) * gamma(summed + 3, real)
    return ErrorBound(
        source="Higham 2002, theorem 24.2",
        componentwise=gamma(1, spec.dtype),
        normwise=factor * (sqrt(overlap) if reach is None else 1.0),
        energy=factor * sqrt(overlap),
        reach=reach,
        exact_on_integers=False,
        spreads_nonfinite=True,
    )


def separable(spec: ConvSpec, rank: int, truncation: float) -> ErrorBound:
    """A sum of at most ``rank`` products of 1-D passes, the discarded part below ``truncation``·eps·‖w‖_F.

    Rank 1: |u| ⊗ |v| = |w|, so the passes have a componentwise γ of their total length. Beyond, cancellation
    between terms is bounded by ‖Σ|uᵢ|⊗|vᵢ|‖_F ≤ √r·‖w‖_F (orthonormal factors), by Cauchy–Schwarz normwise
    over the window.
    """
    passes = gamma(sum(spec.kernel_size) + (rank + 1) * spec.ndim + spec.in_channels // spec.groups + 1, spec.dtype)
    return ErrorBound(
        source="Higham 2002, eq. 3.5, and Eckart–Young",
        componentwise=passes,
        normwise=sqrt(rank) ** (spec.ndim - 1) * passes * (rank > 1) + truncation,
        reach=(0,) * spec.ndim,
        exact_on_integers=False,
        spreads_nonfinite=True,
    )


def box(spec: ConvSpec, additions: int) -> ErrorBound:
    """Sums of samples, each passing at most ``additions`` additions, then a mixing of the channels and a bias.

    Every product w·x is off by the factors (1 + δ) of the additions that its sample passes, of its multiplication and
    of the sum over the channels, and by nothing else, as nothing is subtracted: γ of their number componentwise
    (section 4.2: for pairwise sums log₂K in place of K).
    """
    rounded = additions + spec.in_channels // spec.groups + 1
    return ErrorBound(source="Higham 2002, section 4.2", componentwise=gamma(rounded, spec.dtype))
