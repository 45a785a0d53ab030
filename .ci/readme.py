"""The commands of README.md: print those of a marked block, or check that they are what the gate ran.

    python .ci/readme.py test                 # the block after the line <!-- ci:test -->, one command a line
    python .ci/readme.py --check RAN          # RAN: a file with the commands that were run, one a line

A marked block is run as it stands. Commands in other ``sh`` blocks are not run, being slow or naming files of the
reader's; but each ``convbench`` command among them must be one that its parser accepts.
"""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
from pathlib import Path

README = Path(__file__).parents[1] / "README.md"
BLOCK = re.compile(r"^(?:<!-- ci:(?P<name>\w+) -->\n+)?```sh\n(?P<body>.*?)^```$", re.MULTILINE | re.DOTALL)
MARKER = re.compile(r"<!--\s*ci:(\w+)")
RUN = ("test", "smoke")  # every marked block, in the order of the gate


def blocks() -> tuple[dict[str, list[str]], list[str]]:
    """Return the commands of marked blocks by name, and all others."""
    text = README.read_text(encoding="utf-8")
    marked: dict[str, list[str]] = {}
    others: list[str] = []
    for match in BLOCK.finditer(text):
        commands = [line.strip() for line in match["body"].splitlines()]
        commands = [line for line in commands if line and not line.startswith("#")]
        if any(line.endswith("\\") for line in commands):
            sys.exit("README.md: a command goes on over several lines; write it on one")
        if match["name"] is None:
            others += commands
        elif match["name"] in marked:
            sys.exit(f"README.md: two blocks are marked ci:{match['name']}")
        else:
            marked[match["name"]] = commands
    names = MARKER.findall(text)
    if sorted(names) != sorted(RUN) or sorted(marked) != sorted(RUN):
        sys.exit(f"README.md: the marked sh blocks must be {', '.join(RUN)}, each once; found {names} ({list(marked)})")
    return marked, others


def check(ran: list[str]) -> None:
    """Exit with a message unless README.md's commands are those that were run."""
    marked, others = blocks()
    wanted = [command for name in RUN for command in marked[name]]
    if ran != wanted:
        sys.exit("\n  ".join(["the gate did not run what README.md says; README.md:", *wanted, "ran:", *ran]))
    for needed in ("torch==2.13.0", "pytest", "convbench run smoke", "pytest suites"):
        if not any(needed in command for command in wanted):
            sys.exit(f"README.md: no marked command has {needed!r}")
    for command in others:
        words = shlex.split(command, comments=True)
        if words[:1] != ["convbench"]:
            continue
        help_ = subprocess.run([*words, "--help"], capture_output=True, text=True, check=False)
        if help_.returncode:
            sys.exit(f"README.md: {command!r} is not accepted: {help_.stderr.strip()}")
    print(f"README.md: its {len(wanted)} marked commands are those that were run; {len(others)} others are well-formed")


def main() -> None:
    """Print a block's commands, or check them."""
    arguments = sys.argv[1:]
    if len(arguments) == 2 and arguments[0] == "--check":
        check(Path(arguments[1]).read_text(encoding="utf-8").splitlines())
    elif len(arguments) == 1 and arguments[0] in RUN:
        print("\n".join(blocks()[0][arguments[0]]))
    else:
        sys.exit(__doc__)


if __name__ == "__main__":
    main()
