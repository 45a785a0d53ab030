"""Frames as plain rows: what every reckoning on a run's records begins with."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from convbench.errors import MissingDependency

if TYPE_CHECKING:
    from pandas import DataFrame

__all__ = ["Row", "Rows", "by_case", "is_timed", "pandas", "rows_of"]

Row = Mapping[str, Any]
Rows = Sequence[Row]


def rows_of(frame: DataFrame) -> list[dict[str, Any]]:
    """Return a dict for each row, at once: pandas copies ``attrs``, the environment, with every part of a frame."""
    return [{str(name): value for name, value in row.items()} for row in frame.to_dict("records")]


def by_case(rows: Iterable[Row]) -> dict[str, list[Row]]:
    """Return the rows of each case, in order of appearance."""
    cases: dict[str, list[Row]] = {}
    for row in rows:
        cases.setdefault(row["case"], []).append(row)
    return cases


def is_timed(row: Row) -> bool:
    """Return whether a row of a summary has a time: NaN is none, and neither is 0, below what its clock can see."""
    return bool(row["status"] == "ok" and row["time_s"] > 0)


def pandas() -> Any:
    """Return the module.

    Raises
    ------
    MissingDependency
        If there is none.
    """
    try:
        import pandas
    except ImportError:
        raise MissingDependency("summaries need pandas: pip install pandas") from None
    return pandas
