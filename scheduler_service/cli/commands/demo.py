"""`backburner demo`: the main job on a real repository, from one command."""

from __future__ import annotations

import subprocess
import tempfile
from pathlib import Path

import click


@click.command("demo")
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

    \b
    Examples:
      backburner demo
      backburner demo ~/src/other --keep
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
