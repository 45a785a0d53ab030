"""The support matrix as tables: backends by rows, what :mod:`convbench.features` asks of them by columns."""

from __future__ import annotations

from convbench.features import FEATURES, supported, with_device
from convbench.registry import all_backends, what_is_missing
from convbench.report.text import DASH, Column, Grid, Row

__all__ = ["feature_grids"]


def feature_grids() -> dict[str, Grid]:
    """Return title → table, one for each group of features."""
    grids = {
        group: Grid([Column("backend", right=False), *(Column(feature, right=False) for feature in features)])
        for group, features in FEATURES.items()
    }
    for name, backend in zip(all_backends(), map(with_device, all_backends().values()), strict=True):
        missing = what_is_missing(backend)
        answers = supported(backend) if missing is None else {}
        for group, grid in grids.items():
            if missing is None:
                marks = ("✓" if answers[feature] else DASH for feature in FEATURES[group])
                grid.rows.append(Row((name, *marks)))
            else:
                grid.rows.append(Row((name,), f"unavailable: {missing}", style="dim"))
    return grids
