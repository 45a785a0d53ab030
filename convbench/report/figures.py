"""All that is known of each pair of a run, as one frame: what tables, plots and page are made from."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from convbench.bench import statistics
from convbench.bench.families import family_of
from convbench.bench.frames import Row, rows_of
from convbench.report.layout import Layout, layout_of
from convbench.report.text import missing

if TYPE_CHECKING:
    import pandas as pd

    from convbench.bench.families import Family

__all__ = ["backend_order", "family_of_table", "figures", "layout_of_table", "usual_baseline"]


def figures(records: pd.DataFrame, baseline: str | None) -> pd.DataFrame:
    """Return one row a (case, backend): the summary, rates, and speed-ups over ``baseline``.

    Parameters
    ----------
    records : DataFrame
        As :func:`convbench.load_results` returns it.
    baseline : str or None
        A backend's name; without results of it the speed-ups are NaN.

    Returns
    -------
    DataFrame
        The columns of :func:`convbench.bench.statistics.summarise` and of
        :func:`convbench.bench.statistics.standings`, effective_gflop_per_s, executed_gflop_per_s, attainable_s (the
        least of a case's backends on the CPU, see :func:`convbench.bench.limits.attainable_s`), limit_share (the
        backend's own, on its device, over its time), baseline, speedup, speedup_low, speedup_high (paired, 99 %),
        speedup_with_prepare (of the sums of prepare_s and time_s); cases in the suite's order, the fastest backend
        first, by the ratios to it. ``attrs["noise"]`` is :func:`convbench.bench.statistics.noise`,
        ``attrs["environment"]`` that of the records.
    """
    import pandas as pd

    table = statistics.summarise(records)
    table = statistics.ranked(table)
    present = baseline is not None and baseline in set(table["backend"])
    table["baseline"] = baseline if present else None
    ratios = statistics.ratios_over(table, str(baseline)) if present else []
    for column, values in (
        ("speedup", [ratio.value for ratio in ratios]),
        ("speedup_low", [ratio.low for ratio in ratios]),
        ("speedup_high", [ratio.high for ratio in ratios]),
    ):
        table[column] = values if present else float("nan")
    table.loc[table["backend"] == baseline, ["speedup_low", "speedup_high"]] = float("nan")
    whole = table["time_s"].astype(float) + table["prepare_s"].astype(float)
    own = table["backend"] == baseline
    table["speedup_with_prepare"] = table["case"].map(whole[own].set_axis(table[own]["case"])) / whole
    for rate, flops in (("effective", "flops_nominal"), ("executed", "flops_executed")):
        table[f"{rate}_gflop_per_s"] = table[flops].astype(float) / table["time_s"].astype(float) / 1e9
    limits = records.attrs.get("environment", {}).get("limits")
    attainable = pd.Series([_attainable_s(row, limits) for row in rows_of(table)], table.index, float)
    table["limit_share"] = attainable / table["time_s"].astype(float)
    on_cpu = attainable.where(table["device"] != "cuda")
    table["attainable_s"] = on_cpu.groupby(table["case"]).transform("min")
    order = {case: position for position, case in enumerate(dict.fromkeys(table["case"]))}
    table["position"] = table["case"].map(order)
    table["after"] = table["ratio_method"] != "itself"
    table = table.sort_values(["position", "after", "ratio_to_best"], kind="stable", ignore_index=True)
    table = table.drop(columns=["position", "after"])
    table.attrs["environment"] = records.attrs.get("environment", {})
    table.attrs["cases"] = records.attrs.get("environment", {}).get("cases", [])
    table.attrs["noise"] = statistics.noise(records, table)
    return table


def _attainable_s(row: Row, limits: Mapping[str, Any] | None) -> float:
    from convbench.bench.limits import attainable_s, limits_of

    limits = limits_of(row["device"], limits)
    if row["status"] != "ok" or missing(row["time_s"]):
        return float("nan")
    dtype = row["dtype"] if missing(row["accumulate_dtype"]) else row["accumulate_dtype"]
    return attainable_s(flops=row["flops_executed"], bytes_min=row["bytes_min"], dtype=str(dtype), limits=limits)


def usual_baseline(records: pd.DataFrame) -> str:
    """Return over which backend speed-ups are reckoned unless one is named, see :class:`Family.baselines`."""
    cases = records[records["status"] == "ok"].groupby("backend")["case"].nunique()
    return max(family_of_table(records).baselines, key=lambda name: int(cases.get(name, 0)))


def family_of_table(table: pd.DataFrame) -> Family:
    """Return what kind of operation the run is of."""
    return family_of(next(iter(table["spec"]), ""))


def layout_of_table(table: pd.DataFrame) -> Layout:
    """Arrange the cases of the whole run, of which an interrupted one may not have reached all."""
    return layout_of([*table.attrs.get("cases", []), *table["case"]])


def backend_order(table: pd.DataFrame) -> list[str]:
    """Own backends first, then the rivals, each by name, and the reference last: the same in every table and plot."""
    kinds = dict(zip(table["backend"], table["kind"], strict=True))
    return sorted(kinds, key=lambda name: (name == "reference", kinds[name] != "own", name))
