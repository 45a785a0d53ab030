"""Leaves the interpreter when it is imported."""

import sys

sys.exit("this plug-in needs a licence")
