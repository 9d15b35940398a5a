"""`backburner completion`: the script that makes a shell complete commands, options and names."""

from __future__ import annotations

from typing import Final

import click
from click.shell_completion import BashComplete, FishComplete, ShellComplete, ZshComplete

_VARIABLE: Final = "_BACKBURNER_COMPLETE"
# Bash takes a word apart at colons, equals signs and at signs, which names of runs and effects have. So the line is
# read whole, and from the answers that part of the last word is taken off which bash has set aside.
_BASH: Final = r"""
%(complete_func)s() {
    local line=${COMP_LINE:0:COMP_POINT} words current aside answer kind value
    read -ra words <<< "$line"
    [[ $line == *[[:space:]] ]] && words+=("")
    current=${words[-1]}
    aside=${current%%"${current##*[:=@]}"}
    COMPREPLY=()
    while IFS=, read -r kind value; do
        case $kind in
            dir) compopt -o dirnames ;;
            file) compopt -o default ;;
            plain) COMPREPLY+=("${value#"$aside"}") ;;
        esac
    done < <(COMP_WORDS=$line COMP_CWORD=$((${#words[@]} - 1)) %(complete_var)s=bash_complete "$1")
}
complete -o nosort -F %(complete_func)s %(prog_name)s
"""


class _Bash(BashComplete):
    source_template = _BASH


_SHELLS: Final[dict[str, type[ShellComplete]]] = {"bash": _Bash, "zsh": ZshComplete, "fish": FishComplete}


@click.command("completion")
@click.argument("shell", type=click.Choice(list(_SHELLS)))
@click.pass_context
def completion_command(ctx: click.Context, *, shell: str) -> None:
    """Print the completion script for SHELL. Processes, runs and effects complete too, by asking the scheduler.

    \b
    Examples:
      eval "$(backburner completion bash)"                     in ~/.bashrc
      eval "$(backburner completion zsh)"                      in ~/.zshrc, after compinit
      backburner completion fish > ~/.config/fish/completions/backburner.fish
    """
    click.echo(_SHELLS[shell](ctx.find_root().command, {}, "backburner", _VARIABLE).source())
