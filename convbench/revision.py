"""When something was done, and with which state of this package's files."""

from __future__ import annotations

import subprocess
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path

__all__ = ["git_revision", "output_of", "utc_now"]


def utc_now() -> datetime:
    """Return the time now, with its zone."""
    return datetime.now(UTC)


def git_revision() -> str | None:
    """Return the commit of the checkout that convbench is imported from, ``+changes`` if files differ from it."""
    folder = Path(__file__).resolve().parents[1]
    if not (folder / ".git").exists():
        return None
    revision = output_of(["git", "-C", str(folder), "rev-parse", "HEAD"])
    changes = output_of(["git", "-C", str(folder), "status", "--porcelain", "--untracked-files=no"])
    return revision and revision + ("+changes" if changes else "")


def output_of(command: Sequence[str]) -> str | None:
    """Return what a command prints, or None if it cannot be run or fails."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=10, check=True)
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip()
