"""Two runs against each other: what became slower, what is gone, and whether the two can be compared at all.

Ratios between runs are unpaired: their passes have nothing to do with each other, so that intervals are Welch's over
the logarithms of the passes' medians (:func:`convbench.bench.ratios.unpaired_ratio`). They know of what differs between
the passes of a run; a machine that was in another state as a whole looks like another program. Hence a threshold: a
regression is what is slower beyond doubt **and** by more than that.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from difflib import get_close_matches
from itertools import combinations
from operator import attrgetter
from typing import TYPE_CHECKING, Any, NamedTuple

from convbench.bench.families import family_of
from convbench.bench.frames import Row, is_timed, pandas, rows_of
from convbench.bench.noise import Noise, noise
from convbench.bench.ratios import WIN_CONFIDENCE, Ratio, row_ratio, samples_ratio, unpaired_ratio
from convbench.bench.record import plain
from convbench.bench.standings import best_of
from convbench.bench.summaries import summarise
from convbench.bench.sweeps import split_tokens
from convbench.cuda.nvidia_smi import gpu_at
from convbench.errors import SpecError

if TYPE_CHECKING:
    from pandas import DataFrame

__all__ = ["THRESHOLD", "Comparison", "Orders", "Renamed", "compare"]

THRESHOLD = 0.05

#: What a pair may come to, those that make a comparison fail first.
VERDICTS = ("lost", "slower", "unclear", "same", "faster", "gained", "reference", "untimed")

Pair = tuple[str, str]  # (case, backend)


class Renamed(NamedTuple):
    """A case of the first run that is missing and one of the second that is new."""

    before: str
    after: str


class Orders(NamedTuple):
    """How two runs order the backends of their common cases, two at a time: a ranking that holds is the same in both.

    Attributes
    ----------
    both, one, neither : int
        Comparisons of two backends on a case that both runs decide, that only one decides, and that are a tie in both.
    turned : tuple of (case, backend, backend)
        Of those that both decide, the ones that they decide differently: the first is faster before, the second after.
    """

    both: int
    one: int
    neither: int
    turned: tuple[tuple[str, str, str], ...]


@dataclass(frozen=True)
class Comparison:
    """What :func:`compare` found out.

    Attributes
    ----------
    pairs : pandas.DataFrame
        A row for each pair of both runs: ``case``, ``backend``, ``status_before``, ``status_after``, ``reason`` (of the
        latter), ``time_before_s``, ``time_after_s``, ``ratio`` (after over before) with ``low`` and ``high``,
        ``passes``, ``method`` (see :class:`convbench.bench.ratios.Ratio`), ``verdict``, ``regression``.

        Verdicts: "same" (the whole interval is within the threshold, whether or not it reaches 1), else "slower" and
        "faster" (it does not reach 1), else "unclear", as is whatever rests on samples of single processes; "lost" (it
        was ok, or had a time, and is not any more) and "gained"; "untimed" (there is nothing to compare); "reference"
        (what the others are measured by, see ``relative``). "regression": slower, and by more than the threshold.
    backends : pandas.DataFrame
        A row for each backend: the geometric mean of its pairs' ratios, ``mean``, and how many have which verdict.
    mean : Ratio
        Of all pairs; the interval is that of the means of passes which have all of them.
    missing, new : tuple of (case, backend)
        Pairs that were ok before and are not in the second run; pairs that are only there.
    renamed : tuple of Renamed
        Cases that mean the same, written in another way: their pairs are compared, not missing and new.
    alike : tuple of Renamed
        Cases of the same spec whose data have like names. Perhaps they are the same; their pairs are missing and new.
    orders : Orders
    notes : tuple of str
        What else differs between the runs: machine, libraries, threads, mode, implementations; and how they were timed.
    relative : bool
        The runs are of different machines: times over the reference of the same run are compared, not times.
    threshold, confidence : float
    noise_before, noise_after : Noise
    """

    pairs: DataFrame
    backends: DataFrame
    mean: Ratio
    missing: tuple[Pair, ...]
    new: tuple[Pair, ...]
    renamed: tuple[Renamed, ...]
    alike: tuple[Renamed, ...]
    orders: Orders
    notes: tuple[str, ...]
    relative: bool
    threshold: float
    confidence: float
    noise_before: Noise
    noise_after: Noise

    @property
    def regressions(self) -> DataFrame:
        """The pairs that are slower beyond doubt and by more than the threshold, the worst first."""
        return self.pairs[self.pairs["regression"].astype(bool)].sort_values("ratio", ascending=False)

    @property
    def lost(self) -> DataFrame:
        """The pairs that were ok, or had a time, and are not any more."""
        return self.pairs[self.pairs["verdict"] == "lost"]

    @property
    def compared(self) -> int:
        """The number of pairs that have a time in both runs, so that there is a ratio."""
        return int(self.pairs["ratio"].notna().sum())

    @property
    def told(self) -> int:
        """The number of them that are the same, slower or faster."""
        return self.compared - len(self.unclear)

    @property
    def unclear(self) -> DataFrame:
        """The pairs with a ratio of which nothing can be said."""
        return self.pairs[self.pairs["verdict"] == "unclear"]

    def failed(self, fail_on_missing: bool = True) -> bool:
        """Return whether anything became slower or was lost, or whether no time at all could be compared.

        Or, unless that does not count, is missing or renamed.
        """
        gone = bool(self.missing or self.renamed) and fail_on_missing
        return gone or not self.compared or not self.regressions.empty or not self.lost.empty

    def to_dict(self) -> dict[str, Any]:
        """Return all of it as JSON has it; what is not known is None."""
        content = {
            "relative": self.relative,
            "threshold": self.threshold,
            "confidence": self.confidence,
            "compared": self.compared,
            "told": self.told,
            "mean": {"ratio": self.mean.value, "low": self.mean.low, "high": self.mean.high},
            "pairs": rows_of(self.pairs),
            "backends": rows_of(self.backends),
            "missing": self.missing,
            "new": self.new,
            "renamed": [entry._asdict() for entry in self.renamed],
            "alike": [entry._asdict() for entry in self.alike],
            "orders": self.orders._asdict(),
            "notes": self.notes,
            "noise_before": asdict(self.noise_before),
            "noise_after": asdict(self.noise_after),
            "failed": self.failed(),
        }
        return {name: plain(value) for name, value in content.items()}


def compare(
    before: DataFrame,
    after: DataFrame,
    *,
    threshold: float = THRESHOLD,
    confidence: float = WIN_CONFIDENCE,
    relative: bool | None = None,
) -> Comparison:
    """Compare the pairs of two runs.

    Parameters
    ----------
    before, after : pandas.DataFrame
        From :func:`convbench.load_results` or :func:`convbench.benchmark`.
    threshold : float
        Above 0 and below 1. A change by less than this fraction is no regression; an interval within it is "same".
    confidence : float
        Of the intervals, two-sided, from 0.5. With it a hundredth of all pairs that did not change is called slower or
        faster, at 0.99, before the threshold.
    relative : bool, optional
        Compare times over those of the same run's reference; None: if the runs are known to be of different machines.
        The reference is the family's usual baseline where both runs timed it, else the first run's fastest of the case.

    Raises
    ------
    SpecError
        If a run is empty, the runs are of different families, or a number is out of range.

    Examples
    --------
    >>> from convbench.bench.record import Record, to_frame
    >>> def run(time_s):
    ...     common = {"run_id": "r", "case": "i8 k3", "spec": "i8 k3", "backend": "fft"}
    ...     return to_frame([Record(**common, pass_=n, samples_s=[time_s * (1 + n / 500)]) for n in range(1, 7)])
    >>> found = compare(run(1.0), run(1.2))
    >>> found.pairs["verdict"].tolist(), round(found.mean.value, 2), found.failed()
    (['slower'], 1.2, True)
    """
    _check(before, after, threshold, confidence)
    old, new = (_by_pair(records) for records in (before, after))
    renamed = _renamed(old, new)
    names = dict(renamed)
    old = {(names.get(case, case), backend): row for (case, backend), row in old.items()}
    environments = [records.attrs.get("environment", {}) for records in (before, after)]
    if relative is None:
        relative = _are_of_different_machines(*environments)
    common = [pair for pair in new if pair in old]
    references = _references(old, new) if relative else {}
    sides = {pair: _sides(pair, old, new, references) for pair in common}
    rows = [_compared(pair, old[pair], new[pair], sides[pair], threshold, confidence) for pair in common]
    pairs: DataFrame = pandas().DataFrame(rows, columns=_COLUMNS)
    weights = {pair: float(new[pair]["weight"]) for pair in common}
    return Comparison(
        pairs=pairs,
        backends=_by_backend(pairs, sides, weights, confidence),
        mean=_mean({pair: side for pair, side in sides.items() if side}, weights, confidence),
        missing=tuple(pair for pair, row in old.items() if pair not in new and row["status"] == "ok"),
        new=tuple(pair for pair in new if pair not in old),
        renamed=renamed,
        alike=_alike(old, new),
        orders=_orders(old, new, confidence),
        notes=tuple(_notes(old, new, environments, relative, references, pairs, confidence)),
        relative=relative,
        threshold=threshold,
        confidence=confidence,
        noise_before=noise(before),
        noise_after=noise(after),
    )


def _check(before: DataFrame, after: DataFrame, threshold: float, confidence: float) -> None:
    if not 0 < threshold < 1:
        raise SpecError("threshold", threshold, "must be above 0 and below 1, such as 0.05")
    if not 0.5 <= confidence < 1:
        raise SpecError("confidence", confidence, "must be at least 0.5 and below 1, such as 0.99")
    families = []
    for name, records in (("before", before), ("after", after)):
        if records.empty:
            raise SpecError(name, "a run without records", "has nothing to compare")
        families.append(family_of(records["spec"].iloc[0]).name)
    if families[0] != families[1]:
        raise SpecError("after", f"a run of {families[1]}", f"cannot be compared with one of {families[0]}")


def _by_pair(records: DataFrame) -> dict[Pair, dict[str, Any]]:
    return {(row["case"], row["backend"]): row for row in rows_of(summarise(records))}


def _orders(old: Mapping[Pair, Row], new: Mapping[Pair, Row], confidence: float) -> Orders:
    """Return how both runs order the backends of each case."""
    timed: dict[str, list[str]] = {}
    for case, backend in new:
        if (case, backend) in old and is_timed(old[case, backend]) and is_timed(new[case, backend]):
            timed.setdefault(case, []).append(backend)
    decided, turned = Counter[int](), []
    for case, backends in timed.items():
        for a, b in combinations(backends, 2):
            verdicts = [row_ratio(rows[case, a], rows[case, b], confidence).verdict for rows in (old, new)]
            decided[sum(verdict != "tie" for verdict in verdicts)] += 1
            if set(verdicts) == {"faster", "slower"}:
                turned.append((case, a, b) if verdicts[0] == "faster" else (case, b, a))
    return Orders(decided[2], decided[1], decided[0], tuple(turned))


# -- one pair ---------------------------------------------------------------------------------------


class _Sides(NamedTuple):
    """What is compared of a pair: by pass, before and after; and for want of passes the ratio of what samples say."""

    before: Mapping[int, float]
    after: Mapping[int, float]
    from_samples: Ratio


_COLUMNS = [
    "case", "backend", "status_before", "status_after", "reason", "time_before_s", "time_after_s", "ratio", "low",
    "high", "passes", "method", "verdict", "regression",
]  # fmt: skip


def _sides(
    pair: Pair, old: Mapping[Pair, Row], new: Mapping[Pair, Row], references: Mapping[str, str]
) -> _Sides | None:
    """Return None if there is nothing to compare."""
    before, after = old[pair], new[pair]
    if not (is_timed(before) and is_timed(after)):
        return None
    if not references:
        late, early = ((float(row["win_low_s"]), float(row["win_high_s"])) for row in (after, before))
        from_samples = samples_ratio(after["time_s"] / before["time_s"], late, early)
        return _Sides(before["pass_medians_s"], after["pass_medians_s"], from_samples)
    reference = pair[0], references.get(pair[0], pair[1])
    if reference == pair or reference not in old or reference not in new:
        return None
    now, then = row_ratio(after, new[reference]), row_ratio(before, old[reference])
    from_samples = samples_ratio(now.value / then.value, (now.low, now.high), (then.low, then.high))
    return _Sides(_over(before, old[reference]), _over(after, new[reference]), from_samples)


_before, _after = attrgetter("before"), attrgetter("after")


def _over(row: Row, reference: Row) -> dict[int, float]:
    own, its = row["pass_medians_s"], reference["pass_medians_s"]
    return {number: own[number] / its[number] for number in own if number in its}


def _ratio(sides: _Sides, confidence: float) -> Ratio:
    ratio = unpaired_ratio(list(sides.after.values()), list(sides.before.values()), confidence)
    if ratio.is_telling or not ratio.passes:
        return ratio if ratio.passes else sides.from_samples
    return replace(sides.from_samples, value=ratio.value)


def _compared(
    pair: Pair, before: Row, after: Row, sides: _Sides | None, threshold: float, confidence: float
) -> dict[str, Any]:
    ratio = _ratio(sides, confidence) if sides else Ratio(math.nan, math.nan, math.nan, 0, "")
    verdict = _verdict(before, after, ratio, threshold)
    cells = (
        *pair, before["status"], after["status"], after["reason"] or "", before["time_s"], after["time_s"],
        ratio.value, ratio.low, ratio.high, ratio.passes, ratio.method, verdict,
        verdict == "slower" and ratio.value > 1 + threshold,
    )  # fmt: skip
    return dict(zip(_COLUMNS, cells, strict=True))


def _verdict(before: Row, after: Row, ratio: Ratio, threshold: float) -> str:
    if before["status"] != after["status"] and "ok" in (before["status"], after["status"]):
        return "lost" if before["status"] == "ok" else "gained"
    if is_timed(before) != is_timed(after):
        return "lost" if is_timed(before) else "gained"
    if math.isnan(ratio.value):
        return "reference" if is_timed(before) else "untimed"
    if ratio.is_telling and ratio.low >= 1 / (1 + threshold) and ratio.high <= 1 + threshold:
        return "same"
    return ratio.verdict if ratio.verdict != "tie" else "unclear"


# -- all pairs --------------------------------------------------------------------------------------


def _mean(sides: Mapping[Pair, _Sides | None], weights: Mapping[Pair, float], confidence: float) -> Ratio:
    """Return the weighted geometric mean of the ratios; its interval from the means of passes that have all pairs."""
    known = {pair: side for pair, side in sides.items() if side}
    if not known:
        return Ratio(math.nan, math.nan, math.nan, 0, "unpaired")
    whole = math.fsum(weights[pair] for pair in known)
    logs = (weights[pair] * math.log(_ratio(side, confidence).value) for pair, side in known.items())
    value = math.exp(math.fsum(logs) / whole)
    late, early = (
        _means_by_pass({pair: medians(side) for pair, side in known.items()}, weights) for medians in (_after, _before)
    )
    interval = unpaired_ratio(late, early, confidence)
    off = value / interval.value  # passes that lack a pair count in its own ratio
    return Ratio(value, interval.low * off, interval.high * off, interval.passes, "unpaired")


def _means_by_pass(by_pass: Mapping[Pair, Any], weights: Mapping[Pair, float]) -> list[float]:
    whole = math.fsum(weights[pair] for pair in by_pass)
    common = set.intersection(*(set(medians) for medians in by_pass.values()))
    return [
        math.exp(math.fsum(weights[pair] * math.log(medians[number]) for pair, medians in by_pass.items()) / whole)
        for number in sorted(common)
    ]


def _by_backend(
    pairs: DataFrame, sides: Mapping[Pair, _Sides | None], weights: Mapping[Pair, float], confidence: float
) -> DataFrame:
    rows = []
    for backend in dict.fromkeys(pairs["backend"]):
        own = pairs[pairs["backend"] == backend]
        mean = _mean({pair: side for pair, side in sides.items() if pair[1] == backend}, weights, confidence)
        counts = own["verdict"].value_counts()
        rows.append(
            {
                "backend": backend,
                "pairs": len(own),
                "mean": mean.value,
                "low": mean.low,
                "high": mean.high,
                **{verdict: int(counts.get(verdict, 0)) for verdict in VERDICTS},
                "regressions": int(own["regression"].sum()),
            }
        )
    frame: DataFrame = pandas().DataFrame(rows)
    return frame


# -- what is not in both ----------------------------------------------------------------------------


def _renamed(old: Iterable[Pair], new: Iterable[Pair]) -> tuple[Renamed, ...]:
    """Match the cases that one run alone has and that mean the same."""
    gone, come = _alone(old, new)
    meanings = {_meaning(case): case for case in come}
    same = ((case, meanings.pop(_meaning(case), None)) for case in gone)
    return tuple(Renamed(case, other) for case, other in same if other is not None)


def _alike(old: Iterable[Pair], new: Iterable[Pair]) -> tuple[Renamed, ...]:
    """Match those of the same spec whose data have like names, each with the nearest: it may be the same file."""
    gone, come = _alone(old, new)
    found = []
    for case in gone:
        candidates = [other for other in come if _meaning(other)[0] == _meaning(case)[0]]
        if close := get_close_matches(case, candidates, n=1, cutoff=0.8):
            found.append(Renamed(case, close[0]))
            come.remove(close[0])
    return tuple(found)


def _alone(old: Iterable[Pair], new: Iterable[Pair]) -> tuple[list[str], list[str]]:
    """Return the cases that only the first run has, and those that only the second has."""
    before, after = (dict.fromkeys(case for case, _ in pairs) for pairs in (old, new))
    return [case for case in before if case not in after], [case for case in after if case not in before]


def _meaning(case: str) -> tuple[object, ...]:
    """Return what a line says, however it is written. It is not parsed as a case: files may be on another machine."""
    tokens = split_tokens(case)
    data = tuple(sorted(token for token in tokens if token.startswith(("x=", "w=", "seed="))))
    line = " ".join(token for token in tokens if token not in data)
    try:
        return family_of(line).parse_spec(line), data
    except SpecError:  # of another version
        return line, data


# -- what else differs ------------------------------------------------------------------------------


def _are_of_different_machines(before: Mapping[str, Any], after: Mapping[str, Any]) -> bool:
    prints = [_fingerprint(environment) for environment in (before, after)]
    return None not in prints and prints[0] != prints[1]


def _fingerprint(environment: Mapping[str, Any]) -> Any:
    return environment.get("host", {}).get("fingerprint")


def _references(old: Mapping[Pair, Row], new: Mapping[Pair, Row]) -> dict[str, str]:
    """Return for each case the backend by which the others are measured: one for as many cases as can be."""
    both = [pair for pair in new if pair in old and is_timed(old[pair]) and is_timed(new[pair])]
    if not both:
        return {}
    usual = family_of(next(iter(old.values()))["spec"]).baselines
    counts = {name: sum(backend == name for _, backend in both) for name in usual}
    baseline = max(usual, key=lambda name: counts[name])
    quickest = best_of({**old[pair], "case": pair[0]} for pair in both)
    return {case: baseline if (case, baseline) in both else str(row["backend"]) for case, row in quickest.items()}


def _notes(
    old: Mapping[Pair, Row],
    new: Mapping[Pair, Row],
    environments: Sequence[Mapping[str, Any]],
    relative: bool,
    references: Mapping[str, str],
    pairs: DataFrame,
    confidence: float,
) -> Iterable[str]:
    yield from _machine_notes(*environments)
    if relative:
        yield f"compared are times over those of {', '.join(dict.fromkeys(references.values()))} in the same run"
    for name, meaning in (("threads", "numbers of threads"), ("mode", "modes")):
        sides = [sorted({str(row[name]) for row in rows.values() if row[name]}) for rows in (old, new)]
        if all(sides) and sides[0] != sides[1]:
            yield f"{name}: {' and '.join(sides[0])} → {' and '.join(sides[1])}: times of different {meaning} differ"
    changed: dict[str, tuple[str, str]] = {}
    for pair in (pair for pair in new if pair in old):
        said = str(old[pair]["implementation"] or ""), str(new[pair]["implementation"] or "")
        if all(said) and said[0] != said[1]:
            changed.setdefault(pair[1], said)
    yield from (f"{backend}: another implementation: {was} → {now}" for backend, (was, now) in changed.items())
    ratios = pairs[pairs["ratio"].notna()]
    within = int((ratios["method"] == "samples").sum())
    compared = len(ratios) - within
    if compared > 1:
        chance = (1 - confidence) * compared
        yield (
            f"at {100 * confidence:g} % about {chance:.2g} of {compared} pairs that did not change would be called "
            "slower or faster, before the threshold"
        )
    if within:
        yield (
            f"{within} of {len(ratios)} ratios rest on fewer than four passes of both runs together, and so "
            "on samples of single processes: whatever they say they are unclear"
        )


def _machine_notes(before: Mapping[str, Any], after: Mapping[str, Any]) -> Iterable[str]:
    prints = [_fingerprint(environment) for environment in (before, after)]
    if None in prints:
        yield "whether the machine is the same is not known: a run does not say what it ran on"
    elif prints[0] != prints[1]:
        models = " → ".join(
            f"{environment['host'].get('cpu', {}).get('model') or 'unknown CPU'} ({print_})"
            for environment, print_ in zip((before, after), prints, strict=True)
        )
        yield f"different machines: {models}: their times cannot be compared"
    libraries = [environment.get("libraries", {}) for environment in (before, after)]
    names = [name for name in {**libraries[0], **libraries[1]} if libraries[0].get(name) != libraries[1].get(name)]
    if names and all(libraries):
        versions = (f"{name} {libraries[0].get(name) or 'none'} → {libraries[1].get(name) or 'none'}" for name in names)
        yield f"libraries: {', '.join(versions)}"
    yield from _gpu_notes(before, after)
    for key in ("git_revision", "thread_pool_problems"):
        if before and after and before.get(key) != after.get(key):
            yield f"{key.replace('_', ' ')}: {before.get(key) or 'none'} → {after.get(key) or 'none'}"


#: Keys of ``environment["cuda"]`` on which times depend, and what a note calls them.
_CUDA = {
    "device": "GPU",
    "compute_capability": "compute capability",
    "driver_cuda": "the driver's CUDA",
    "runtime_cuda": "CUDA runtime",
    "nvrtc": "NVRTC",
    "cufft": "cuFFT",
    "cupy": "CuPy",
}


def _gpu_notes(before: Mapping[str, Any], after: Mapping[str, Any]) -> Iterable[str]:
    """Say what differs of the GPU and of CUDA, where both runs had one."""
    sides = [environment.get("cuda") or {} for environment in (before, after)]
    if not all(sides):
        return
    facts = [{text: side.get(key) for key, text in _CUDA.items()} for side in sides]
    for known, environment, side in zip(facts, (before, after), sides, strict=True):
        gpu = gpu_at(side.get("bus_id"), environment.get("gpus") or [])
        known["driver"] = None if gpu is None else gpu.get("driver")
    was, now = facts
    changed = [f"{name} {was[name] or 'unknown'} → {now[name] or 'unknown'}" for name in was if was[name] != now[name]]
    if changed:
        yield f"GPU and CUDA: {', '.join(changed)}"
