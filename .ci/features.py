"""The support matrix of README.md: write it between its markers, or check that it is what the backends say.

    python .ci/features.py            # write
    python .ci/features.py --check

Rows of backends whose library is not installed here stay as they are, and are not checked.
"""

from __future__ import annotations

import sys
import textwrap
from pathlib import Path

from convbench.features import NOTES, with_device
from convbench.registry import _built_in, get_backend, what_is_missing
from convbench.report.features import feature_grids

README = Path(__file__).parents[1] / "README.md"
BEGIN, END = "<!-- features -->\n", "<!-- /features -->\n"


def matrix(written: str) -> str:
    """Return the tables, with the rows of ``written`` for what is not installed."""
    tables = []
    for title, grid in feature_grids().items():
        stands = written.partition(f"**{title}**\n\n")[2].partition("\n\n")[0].splitlines()
        row_of = {_name(line): line for line in stands}
        head, rule, *rows = grid.markdown().splitlines()
        rows = [row for row in rows if _name(row) in _built_in()]  # not those of other distributions
        rows = [row if _installed(_name(row)) else row_of.get(_name(row), row) for row in rows]
        tables.append("\n".join([f"**{title}**", "", head, rule, *rows]))
    return "\n" + "\n\n".join([*tables, *map(textwrap.fill, NOTES)]) + "\n\n"


def _name(row: str) -> str:
    return row.split("|")[1].strip()


def _installed(name: str) -> bool:
    return what_is_missing(with_device(get_backend(name))) is None


def main() -> None:
    """Write or check."""
    if sys.argv[1:] not in ([], ["--check"]):
        sys.exit(__doc__)
    head, begin, rest = README.read_text(encoding="utf-8").partition(BEGIN)
    written, end, tail = rest.partition(END)
    if not begin or not end:
        sys.exit(f"README.md: no {BEGIN.strip()} … {END.strip()}")
    wanted = matrix(written)
    if sys.argv[1:] == ["--check"]:
        if written != wanted:
            other = sorted(set(wanted.splitlines()) ^ set(written.splitlines()))
            rows = "\n".join(["README.md's support matrix is not what the backends say; rows that differ:", *other])
            sys.exit(f"{rows}\n'python .ci/features.py' writes it")
    else:
        README.write_text(head + begin + wanted + end + tail, encoding="utf-8")


if __name__ == "__main__":
    main()
