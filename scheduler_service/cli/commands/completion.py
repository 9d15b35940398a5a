"""`backburner completion`: the script that makes a shell complete commands, options and names."""

from __future__ import annotations

import click
from click.shell_completion import get_completion_class

from scheduler_service.cli.errors import CliError

_VARIABLE = "_BACKBURNER_COMPLETE"


@click.command("completion")
@click.argument("shell", type=click.Choice(["bash", "zsh", "fish"]))
@click.pass_context
def completion_command(ctx: click.Context, *, shell: str) -> None:
    """Print the completion script for SHELL. Processes, runs and effects complete too, by asking the scheduler.

    \b
    Examples:
      eval "$(backburner completion bash)"                     in ~/.bashrc
      eval "$(backburner completion zsh)"                      in ~/.zshrc, after compinit
      backburner completion fish > ~/.config/fish/completions/backburner.fish
    """
    known = get_completion_class(shell)
    if known is None:
        raise CliError(f"no completion is known for {shell}")
    click.echo(known(ctx.find_root().command, {}, "backburner", _VARIABLE).source())
