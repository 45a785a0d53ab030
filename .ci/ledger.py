"""What README.md says has run on which GPU: write it between its markers, or check that it follows from the ledger.

    python .ci/ledger.py            # write
    python .ci/ledger.py --check

Either prints what has changed since it was verified.
"""

from __future__ import annotations

import sys
import textwrap
from pathlib import Path

from convbench.cuda.ledger import changes, standing
from convbench.registry import _built_in, get_backend

README = Path(__file__).parents[1] / "README.md"
BEGIN, END = "<!-- ledger -->\n", "<!-- /ledger -->\n"


def _wrapped(item: str) -> str:
    return textwrap.fill(item, 120, subsequent_indent="  ", break_on_hyphens=False, break_long_words=False)


def main() -> None:
    """Write or check."""
    if sys.argv[1:] not in ([], ["--check"]):
        sys.exit(__doc__)
    backends = [backend for backend in map(get_backend, _built_in()) if backend.device == "cuda"]
    names: dict[str | None, list[str]] = {}
    for backend in backends:
        names.setdefault(standing(backend), []).append(f"`{backend.name}`")
    for said, those in names.items():
        print(f"{said}: {', '.join(those)}")
    for name, changed in changes(backends).items():
        print(f"{name}: changed since it was verified:", *changed, sep="\n    ")
    items = [f"- {said}: {', '.join(those)}." for said, those in names.items()]
    wanted = "\n" + "\n".join(_wrapped(item) for item in items) + "\n\n"
    head, begin, rest = README.read_text(encoding="utf-8").partition(BEGIN)
    written, end, tail = rest.partition(END)
    if not begin or not end:
        sys.exit(f"README.md: no {BEGIN.strip()} … {END.strip()}")
    if sys.argv[1:] != ["--check"]:
        README.write_text(head + begin + wanted + end + tail, encoding="utf-8")
    elif written != wanted:
        sys.exit("README.md's word on GPUs is not what follows from the ledger: 'python .ci/ledger.py' writes it")


if __name__ == "__main__":
    main()
