"""The command line's entry point: errors become one line and an exit code (the commands: convbench.commands)."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence

from convbench.errors import ConvbenchError

__all__ = ["main"]

OK, TROUBLE, BAD_INPUT, INTERRUPTED, PIPE_CLOSED = 0, 1, 2, 130, 141


def main(arguments: Sequence[str] | None = None) -> int:
    """Run ``convbench`` and return its exit code.

    0 done; 1 a result is wrong, failed, timed out, outgrew its memory or crashed, or a check failed; 2 bad
    input, or a library is missing; 130 interrupted; 141 the reader of the output went away.
    """
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="replace")  # an ASCII terminal costs the × and µ, not the run
    try:
        return _run(arguments)
    except ConvbenchError as error:
        return _complain(str(error))
    except KeyboardInterrupt:
        _complain("interrupted")
        return INTERRUPTED
    except BrokenPipeError:
        # Python would complain once more when it flushes on exit
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return PIPE_CLOSED


def _run(arguments: Sequence[str] | None) -> int:
    try:
        import click

        from convbench.commands import cli
    except ModuleNotFoundError as error:
        library = (error.name or "").partition(".")[0]
        if library in ("", "convbench"):
            raise
        return _complain(f"the command line needs {library}: pip install {library}")
    try:
        code = cli.main(args=arguments, prog_name="convbench", standalone_mode=False)
        sys.stdout.flush()
        return code if isinstance(code, int) else OK
    except click.Abort:
        raise KeyboardInterrupt from None
    except click.UsageError as error:
        hint = f" ('{error.ctx.command_path} --help' shows what is allowed)" if error.ctx else ""
        return _complain(error.format_message() + hint)
    except click.ClickException as error:
        return _complain(error.format_message())


def _complain(message: str) -> int:
    print("convbench:", " ".join(message.split()), file=sys.stderr)
    return BAD_INPUT


if __name__ == "__main__":
    sys.exit(main())
