"""Processes of the golden journals in `histories/`, and the command that records a new one.

The journals were written once, by `python -m tests.replay.golden NAME`, and must replay for ever: a change that breaks
one breaks runs that are alive in somebody's database. Record a new one beside it; never record one again.
"""

import asyncio
import datetime as dt
import json
import sys
from pathlib import Path
from typing import Any

import scheduler_service.authoring as bb
from scheduler_service.replay.events import Event
from scheduler_service.replay.harness import RUN_ID, Reply, drive
from tests.replay.answers import by_key, fails_after

HISTORIES = Path(__file__).parent / "histories"


@bb.process("golden.release")
async def release(ctx: bb.Context, files: list[str]) -> Any:
    tests = ctx.start(bb.shell("make test", cwd="/src", check=False), key="tests", timeout=3600, retry=bb.Retry(2))
    async with asyncio.TaskGroup() as group:
        found = [group.create_task(ctx.run(bb.function("lint", file), key=f"lint/{file}")) for file in files]
    ctx.log.info("linted %d", len(files), first=files[0])
    ctx.report(50, "tests")
    await tests
    with ctx.scope("deploy"):
        ask = ctx.start(bb.approval("Deploy?", choices=["yes", "no"]), key="approve", on_run_end="detach")
        try:
            async with asyncio.timeout(60):
                await ask
        except TimeoutError:
            await ctx.run(bb.function("remind", ask.effect_id))
    return [[task.result() for task in found], str(ctx.uuid4()), round(ctx.random.random(), 9)]


@bb.process("golden.race")
async def race(ctx: bb.Context) -> Any:
    handles = [ctx.start(bb.agent(name, prompt="fix"), key=f"fix/{name}") for name in ("codex", "claude-code", "other")]
    won = await bb.first_success(handles)
    name = await ctx.signal("name")
    mode = "new" if ctx.patched("mode") else "old"
    return [won.key, name, mode]


@bb.process("golden.cancelled")
async def cancelled(ctx: bb.Context) -> Any:
    try:
        async with asyncio.TaskGroup() as group:
            for name in ("a", "b", "c"):
                group.create_task(ctx.run(bb.shell([name]), key=name))
    finally:
        await ctx.run(bb.function("clean"))


@bb.process("golden.changed")
async def changed(ctx: bb.Context) -> Any:
    # Recorded with lint("a.py") and without the sleep: the journal must be refused, with what differs.
    await asyncio.sleep(1)
    return await ctx.run(bb.function("lint", "b.py"))


def record(name: str) -> Any:
    """Drive the process whose journal is called `name`."""
    answers: dict[str, Any] = {
        "release": by_key({"tests": 30.0, "deploy/approve": None, "lint/b": 2.0}),
        "race": by_key({"fix/claude-code": 5.0, "fix/other": None}, **{"fix/codex": fails_after(1)}),
        "cancelled": by_key({"a": 1.0, "b": None, "c": None}),
    }
    outside = {"race": [Reply("SIGNAL_RECEIVED", {"name": "name", "value": {"value": "x"}}, 9)]}
    outside["cancelled"] = [Reply("RUN_CANCEL_REQUESTED", {"reason": "enough"}, 3)]
    inputs = {"release": {"files": ["a", "b"]}}
    process = bb.processes()[f"golden.{name}"]
    return drive(process, inputs.get(name, {}), answers[name], outside=outside.get(name, []))


def load(path: Path) -> tuple[dict[str, Any], list[Event]]:
    """A golden journal: its head (process, expected divergence) and its events."""
    stored = json.loads(path.read_text())
    events = [
        Event(**{**row, "recorded_at": dt.datetime.fromisoformat(row["recorded_at"])}) for row in stored["events"]
    ]
    return stored, events


def row(event: Event) -> dict[str, Any]:
    """An event as it is stored: fields at their default are left out."""
    shown = {name: getattr(event, name) for name in ("seq", "type", "cause", "effect_id", "effect_key", "attempt")}
    kept = {name: value for name, value in shown.items() if value}
    return {**kept, "recorded_at": event.recorded_at.isoformat(), "data": dict(event.data)}


if __name__ == "__main__":
    target = HISTORIES / f"{sys.argv[1]}.json"
    rows = ",\n".join(f"  {json.dumps(row(event))}" for event in record(sys.argv[1]).events)
    head = f'"process": "golden.{sys.argv[1]}", "run_id": "{RUN_ID}", "diverges_at": null'
    with target.open("x") as file:  # "x": a golden journal is never written again
        file.write(f'{{{head}, "events": [\n{rows}\n]}}\n')
