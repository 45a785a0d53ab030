"""``python -m convbench``: the same as the command ``convbench``."""

import sys

from convbench.cli import main

if __name__ == "__main__":
    sys.exit(main())
