"""The commands of ``convbench``: they read arguments, call the library and show what it returns."""

from __future__ import annotations

import click

import convbench
from convbench.commands.check import check
from convbench.commands.explain import explain
from convbench.commands.listing import list_command
from convbench.commands.parameters import EXIT_CODES
from convbench.commands.report import report
from convbench.commands.run import run

__all__ = ["cli"]


@click.group(invoke_without_command=True, context_settings={"help_option_names": ["-h", "--help"]}, epilog=EXIT_CODES)
@click.version_option(convbench.__version__, prog_name="convbench")
@click.pass_context
def cli(context: click.Context) -> None:
    """Compare convolution algorithms: each is proved right before it is timed."""
    if context.invoked_subcommand is None:
        print(context.get_help())


for command in (run, report, check, explain, list_command):
    cli.add_command(command)
