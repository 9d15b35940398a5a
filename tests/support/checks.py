"""What the six processes import: types, prompts, and functions that leave a trace outside of the database.

A file that is worked on is watched by its neighbours: each start of work on `a.py` adds a line to `a.py.starts`, and
while there is an `a.py.hold`, the work waits. So a test can stop a run anywhere and count what was started.
"""

import asyncio
import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import backburner as bb

HOLD_SECONDS = 120
#: Where reminders leave their traces, and workers too. Read here: process code may not ask for the environment.
REMINDERS = os.environ.get("REMINDERS", "")


@dataclass
class LintReport:
    problems: int


@dataclass
class Verdict:
    approve: bool


@dataclass
class Report:
    exit_code: int | None
    found: list[LintReport]


@dataclass
class Spec:
    names: list[str]


@bb.function
async def lint(path: str) -> LintReport:
    """One problem a line."""
    await work_on(path)
    return LintReport(len(Path(path).read_text().splitlines()))  # noqa: ASYNC240 - a look at a small local file


@bb.function(name="notify.remind")
async def remind(effect_id: str) -> None:
    """Reminds somebody of an approval."""
    await work_on(str(Path(REMINDERS, effect_id)))


def ask(diff: str) -> str:
    """What reviewers are asked."""
    return f"Is this right? {diff}"


def p(path: str) -> str:
    """What an agent is asked to do with a file."""
    return f"Mend {path}"


def task(name: str, session: bb.Session | None) -> str:
    """What a worker is asked to do: the first try comes to nothing."""
    if session is None:
        return scripted(f"Begin {name}", fail={"reason": "HARNESS_ERROR", "message": "not today"})
    return scripted(f"Go on with {name}", **starts_and_holds(Path(REMINDERS, name)))


def scripted(prompt: str, **script: Any) -> str:
    """A prompt that tells the scripted agents what to do."""
    return f"{prompt} {json.dumps(script, sort_keys=True)}"


def starts_and_holds(path: Path) -> dict[str, str]:
    """The script of an agent that works on a file as `work_on` does."""
    return {"starts": f"{path}.starts", "hold": f"{path}.hold"}


async def work_on(path: str) -> None:
    """Leaves a line a start, and waits while the file is held."""
    with Path(f"{path}.starts").open("a") as starts:  # noqa: ASYNC230
        starts.write(f"{os.getpid()}\n")
    hold = Path(f"{path}.hold")
    for _ in range(HOLD_SECONDS * 100):
        if not hold.exists():  # noqa: ASYNC240
            return
        await asyncio.sleep(0.01)
    raise TimeoutError(hold)
