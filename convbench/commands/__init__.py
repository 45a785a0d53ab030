"""The commands of ``convbench``: they read arguments, call the library and show what it returns."""

from __future__ import annotations

import click

import convbench
from convbench.commands.check import check
from convbench.commands.compare import compare
from convbench.commands.completion import completion
from convbench.commands.crossover import crossover
from convbench.commands.doctor import doctor
from convbench.commands.explain import explain
from convbench.commands.gpu import gpu
from convbench.commands.listing import list_command
from convbench.commands.map import map_command
from convbench.commands.parameters import EXIT_CODES
from convbench.commands.report import report
from convbench.commands.rivals import rivals
from convbench.commands.run import run

__all__ = ["cli"]


#: Purpose → its commands, as the help lists them.
_PURPOSES = {
    "Measure": ("run", "crossover", "map", "gpu"),
    "Look at results": ("report", "rivals", "compare"),
    "Ask": ("explain", "list"),
    "Check": ("check", "doctor"),
    "Set up": ("completion",),
}
_EXAMPLES = """\b
Examples:
  convbench run                        kernel sizes 3 to 101, in five minutes
  convbench run --spec "n1 c64 o64 i56x56 k{3,5,7} psame f32"
  convbench explain "n1 c64 o64 i56x56 k3 p1 f32"
  convbench list suites
'convbench COMMAND --help' has more of each."""


class _ByPurpose(click.Group):
    """Lists its commands by what they are for."""

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write a section for each purpose, one line a command."""
        known = {name: command for name, command in self.commands.items() if not command.hidden}
        placed = [name for names in _PURPOSES.values() for name in names]
        others = {"Further commands": tuple(name for name in known if name not in placed)}
        width = max(len(name) for name in known)
        for purpose, names in (_PURPOSES | others).items():
            rows = [(name.ljust(width), known[name].get_short_help_str(80)) for name in names if name in known]
            if rows:
                with formatter.section(purpose):
                    formatter.write_dl(rows)


@click.group(
    cls=_ByPurpose,
    invoke_without_command=True,
    context_settings={"help_option_names": ["-h", "--help"]},
    epilog=f"{_EXAMPLES}\n\n{EXIT_CODES}",
)
@click.version_option(convbench.__version__, prog_name="convbench")
@click.pass_context
def cli(context: click.Context) -> None:
    """Compare convolution algorithms: each is proved right before it is timed."""
    if context.invoked_subcommand is None:
        print(context.get_help())


for command in (
    run, crossover, map_command, gpu, report, rivals, compare, check, explain, doctor, list_command, completion
):  # fmt: skip
    cli.add_command(command)
