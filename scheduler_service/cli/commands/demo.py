"""`backburner demo`: the main job on a real repository, from one command."""

from __future__ import annotations

import subprocess
import tempfile
from pathlib import Path
from typing import Any

import click


class _Demo(click.Command):
    """`demo` with a path or none, and `demo agents`, which is a command of its own; `./agents` is a path."""

    def make_context(
        self, info_name: str | None, args: list[str], parent: click.Context | None = None, **extra: Any
    ) -> click.Context:
        if args[:1] == ["agents"]:
            return agents_command.make_context(f"{info_name} agents", args[1:], parent, **extra)
        return super().make_context(info_name, args, parent, **extra)


@click.command("demo", cls=_Demo)
@click.argument(
    "path", required=False, type=click.Path(exists=True, file_okay=False, resolve_path=True, path_type=Path)
)
@click.option("--keep", is_flag=True, help="Keep the database and the logs, and say where they are.")
@click.option("--json", "as_json", is_flag=True, help="Print the run and the evidence as one line of JSON.")
def demo_command(path: Path | None, *, keep: bool, as_json: bool) -> int:
    """Check the git repository at PATH: in the background and in the foreground at the same time.

    Starts a Postgres, a scheduler and an executor of its own (DATABASE_URL is used when set) and runs the example
    process scheduler_service/cli/demo/process.py: unit tests, type check and a walk of the history in the background;
    meanwhile short checks of every file, a race, an approval. At the end the journal proves, by SQL, that the loop
    went on under every background effect: that is what exit code 0 means.

    PATH defaults to the repository you stand in. Its unit tests and its type check are run if it has any; nothing is
    written into it.

    `backburner demo agents` is the demo with coding agents: see its --help.

    \b
    Examples:
      backburner demo
      backburner demo ~/src/other --keep
      backburner demo agents
    """
    from scheduler_service.cli.demo.driver import run_demo

    repository = path or _repository_here() or _own_repository()
    data_dir = Path(tempfile.mkdtemp(prefix="backburner-demo-"))
    return run_demo(repository, data_dir, keep=keep, as_json=as_json)


def _repository_here() -> Path | None:
    try:
        found = subprocess.run(["git", "rev-parse", "--show-toplevel"], capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return None
    return Path(found.stdout.strip())


def _own_repository() -> Path:
    # The folder that holds the packages: a checkout, a tarball, or site-packages' copy of this one.
    return Path(__file__).resolve().parents[3]


@click.command("agents")
@click.argument(
    "path", required=False, type=click.Path(exists=True, file_okay=False, resolve_path=True, path_type=Path)
)
@click.option("--test", metavar="COMMAND", default="", help="How the tests are run. Default: guessed.")
@click.option("--harness", "harnesses", metavar="NAME", multiple=True, help="Agent CLI to use; repeatable, in turn.")
@click.option(
    "--harness-path", "harness_paths", metavar="NAME=PATH", multiple=True,
    help="Program of an agent CLI, when not on PATH. Repeatable.",
)  # fmt: skip
@click.option("--stand-ins", is_flag=True, help="Use no account, whoever is logged in: all answers are a script.")
@click.option(
    "--budget-usd", type=click.FloatRange(min=0, min_open=True), default=0.5, show_default=True, metavar="USD",
    help="Most that an agent may cost a task; to be sent back is another task.",
)  # fmt: skip
@click.option("--yes", "-y", is_flag=True, help="Use accounts without asking.")
@click.option("--keep", is_flag=True, help="Keep database, logs and worktrees; always done when an account was used.")
@click.option("--json", "as_json", is_flag=True, help="Print run, agents and evidence as one line of JSON.")
def agents_command(
    *,
    path: Path | None,
    test: str,
    harnesses: tuple[str, ...],
    harness_paths: tuple[str, ...],
    stand_ins: bool,
    budget_usd: float,
    yes: bool,
    keep: bool,
    as_json: bool,
) -> int:
    """Let three coding agents fix, review and document the git repository at PATH in the background.

    Each works in a git worktree of its own. The foreground runs the tests meanwhile, tries how they go with each change
    as it comes in, and merges what passes; who breaks them is told so, once, in the same session. Conflicts are
    reported, not made. It runs the process scheduler_service/cli/demo/agents/process.py.

    Without PATH a small sample repository is made: that works on any machine with git. With PATH your checkout stays as
    it is: agents work in a clone of its last commit, and what is merged becomes a new branch, which the report names.

    Agent CLIs that are installed and logged in are used with your account, for at most --budget-usd a task, after you
    have agreed. A CLI without a login talks to a scripted model instead, and where there are fewer than three CLIs, a
    very small one takes the place: the demo says so plainly. A stand-in shows the machinery; on your own repository it
    only leaves a file of notes.

    \b
    Exit codes: 0 no agent failed and the foreground never waited, 1 not so, 130 interrupted.

    \b
    Examples:
      backburner demo agents
      ANTHROPIC_API_KEY=... OPENAI_API_KEY=... backburner demo agents .
      backburner demo agents ~/src/other --test 'make check' --harness claude-code --budget-usd 2 --yes
    """
    from scheduler_service.cli.demo.agents.driver import Wanted, run_agents_demo

    wanted = Wanted(
        path, test, harnesses, harness_paths, accounts=not stand_ins, budget_usd=budget_usd, yes=yes, keep=keep,
        as_json=as_json,
    )  # fmt: skip
    return run_agents_demo(wanted, Path(tempfile.mkdtemp(prefix="backburner-agents-")))
