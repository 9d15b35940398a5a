"""`backburner new process NAME`: a small example with its test, to begin from."""

from __future__ import annotations

import keyword
import re
from pathlib import Path
from string import Template
from typing import Final

import click

from scheduler_service.cli.errors import CliError, UsageProblem

_NAME: Final = re.compile(r"[A-Za-z][A-Za-z0-9_.-]*")

_PROCESS: Final = Template('''"""The process $name, and a function that executors run for it."""

import asyncio
from dataclasses import dataclass
from pathlib import Path

import backburner as bb


@dataclass
class Report:
    """What the run returns. Inputs and results are JSON."""

    words: dict[str, int]
    build: str
    approved: bool


@bb.function(name="$name.count")
def count(path: str) -> int:
    """Runs on an executor: files, network and clocks are fine here, and only here."""
    return len(Path(path).read_text().split())


@bb.process("$name")
async def process(ctx: bb.Context, files: list[str]) -> Report:
    """Runs in the scheduler, and again from its journal after a crash: it only asks."""
    # In the background: returns at once. A failed attempt is followed by another one.
    build = ctx.start(bb.shell("echo built"), key="build", timeout=600, retry=2)
    # In the foreground: all at once, each result in the journal as soon as it is there.
    async with asyncio.TaskGroup() as tasks:
        counting = {
            path: tasks.create_task(ctx.run(count(path), key=f"count/{path}"))
            for path in files
        }
    words = {path: task.result() for path, task in counting.items()}
    ctx.report(percent=50, label=f"{sum(words.values())} words")
    # A person answers this one: `backburner approvals`. The timeout is a durable timer.
    question = bb.approval(f"Publish {len(files)} files?")
    try:
        async with asyncio.timeout(3600):
            answer = await ctx.run(question, key="publish")
    except TimeoutError:
        return Report(words, build="", approved=False)
    built = await build
    return Report(words, built.stdout_tail.strip(), answer.choice == "yes")
''')

_TEST: Final = Template('''"""Tests of $name: no database and no services, and an hour takes no time."""

from typing import Any

import backburner as bb
import pytest

from $module import Report, process

WORDS = {"a.md": 120, "b.md": 80}
FILES = {"files": list(WORDS)}
FAKES: dict[str, Any] = {
    "count": lambda path: WORDS[path],  # called with the arguments of the function
    "build": "built\\n",  # the command's stdout
    "publish": "yes",  # the answer of whoever is asked
}


def test_files_are_counted_built_and_published() -> None:
    run = bb.testing.run(process, FILES, FAKES)
    assert run.result == Report(WORDS, "built", approved=True)
    assert run.report["label"] == "200 words"


def test_nobody_answers() -> None:
    run = bb.testing.run(process, FILES, {**FAKES, "publish": bb.testing.NEVER})
    assert run.result == Report(WORDS, "", approved=False)
    assert run.duration == 3600
    assert run.effects["publish"].state == "CANCELLED"


def test_a_build_that_fails_twice_fails_the_run() -> None:
    run = bb.testing.run(process, FILES, {**FAKES, "build": 1})  # an exit code
    assert (run.state, run.effects["build"].attempts) == ("FAILED", 2)
    with pytest.raises(bb.testing.NotCompleted, match="EXITED_NONZERO"):
        assert run.result
''')


@click.group("new", context_settings={"help_option_names": ["-h", "--help"]})
def new_command() -> None:
    """Write an example to begin from.

    \b
    Examples:
      backburner new process release-notes
      backburner new process nightly --directory jobs
    """


@new_command.command("process")
@click.argument("name", metavar="NAME")
@click.option("--directory", "folder", type=click.Path(file_okay=False, path_type=Path), default=Path(), metavar="DIR",
              help="Where to write it. Default: this folder.")  # fmt: skip
def process_command(name: str, folder: Path) -> None:
    """Write a process called NAME and its test. Files that are there already are left alone.

    \b
    Examples:
      backburner new process release-notes
    """
    module = module_name(name)
    written = {folder / f"{module}.py": _PROCESS, folder / f"test_{module}.py": _TEST}
    there = [str(path) for path in written if path.exists()]
    if there:
        raise UsageProblem(
            f"{' and '.join(there)}: already there, and left alone", "choose another NAME or --directory"
        )
    for path, template in written.items():
        write_new(path, template.substitute(name=name, module=module))
    click.echo(
        f"wrote {' and '.join(map(str, written))}. Next:\n"
        f"  pytest {folder / f'test_{module}.py'}\n"
        f"  backburner dev --process-module {module} --function-module {module}      # in {folder.resolve()}\n"
        f"  backburner run {name} files='[\"{module}.py\"]'      # in another terminal; it asks for an approval:\n"
        f"  backburner approvals"
    )


def module_name(name: str) -> str:
    """The Python module of a process's name. Raises UsageProblem when there can be none."""
    module = re.sub(r"[.-]+", "_", name).lower().strip("_")
    if not _NAME.fullmatch(name) or keyword.iskeyword(module) or keyword.issoftkeyword(module):
        raise UsageProblem(
            f"{name!r} cannot be the name of a process and of its module",
            "use letters, digits, '-', '_' and '.', beginning with a letter: such as release-notes",
        )
    return module


def write_new(path: Path, text: str) -> None:
    """Write a file that is not there yet. Raises CliError when it is, or cannot be written."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("x", encoding="utf-8") as file:
            file.write(text)
    except OSError as error:
        raise CliError(f"{path}: {error.strerror}", "choose another --directory") from error
