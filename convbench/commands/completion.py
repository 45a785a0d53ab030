"""``convbench completion``: the script by which a shell completes names of commands, suites and backends."""

from __future__ import annotations

import click
from click.shell_completion import get_completion_class

from convbench.errors import SpecError

__all__ = ["completion"]

_EXAMPLES = """\b
Examples (put the line into the file that your shell reads first):
  eval "$(convbench completion bash)"                     ~/.bashrc
  eval "$(convbench completion zsh)"                      ~/.zshrc
  convbench completion fish | source                      config.fish"""


@click.command(epilog=_EXAMPLES)
@click.argument("shell", type=click.Choice(["bash", "zsh", "fish"]))
@click.pass_context
def completion(context: click.Context, shell: str) -> None:
    """Print a script by which a shell completes names.

    Those of commands, options, suites and backends.
    """
    found = get_completion_class(shell)
    if found is None:
        raise SpecError("shell", shell, "is not known to this version of click")
    root = context.find_root()
    click.echo(found(root.command, {}, "convbench", "_CONVBENCH_COMPLETE").source())
