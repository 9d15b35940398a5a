"""`backburner replay-check`: stored journals against code that is the same, that has changed, that hangs on hashes."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import backburner as bb
from scheduler_service.replay.events import Event
from tests.e2e.commands import Cli
from tests.support.eventually import eventually
from tests.support.journals import journal_of
from tests.support.services import ROOT, Stack

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(300)]

RUN_ID = "0190b3a0-0000-7000-8000-000000000001"
CODE = """
import asyncio
import backburner as bb

@bb.process("mended")
async def mended(ctx: bb.Context, files: list[str]) -> list[str]:
    found = [await ctx.run(bb.function("lint", file), key=f"lint/{file}") for file in ORDER(files)]
    await asyncio.sleep(60)
    print("this goes nowhere")
    return found
"""


def mended(order: str, tail: str = "") -> str:
    return CODE.replace("ORDER", order).replace("    print", f"{tail}    print")


def exported(events: list[Event], run_id: str = RUN_ID) -> str:
    """What `backburner journal --json` prints."""
    lines = []
    for event in events:
        row: dict[str, Any] = {
            "run_id": run_id, "seq": str(event.seq), "type": f"EVENT_TYPE_{event.type}",
            "recorded_at": event.recorded_at.isoformat().replace("+00:00", "Z"),
        }  # fmt: skip
        row |= {"cause": str(event.cause)} if event.cause else {}
        row |= {"effect_key": event.effect_key, "effect_id": event.effect_id} if event.effect_key else {}
        lines.append(json.dumps({**row, event.type.lower(): dict(event.data)}))
    return "\n".join(lines) + "\n"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder with the export of a run of the process as it was."""
    scope: dict[str, Any] = {"__name__": "recorded"}
    exec(compile(mended("sorted"), "recorded.py", "exec"), scope)  # not registered twice: another module each time
    definition = bb.ProcessDefinition("mended", scope["mended"].fn)
    run = bb.testing.run(definition, [["a", "b", "c", "d"]], {"lint": str.upper})
    assert run.result == ["A", "B", "C", "D"]
    (tmp_path / "run.jsonl").write_text(exported(list(run.journal)))
    return tmp_path


def check(folder: Path, code: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    (folder / "code_now.py").write_text(code)
    command = [
        sys.executable,
        "-m",
        "scheduler_service.cli",
        "replay-check",
        "--process-module",
        "code_now",
        *arguments,
    ]
    env = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "proto" / "gen")])}
    env.pop("DATABASE_URL", None)
    return subprocess.run(command, cwd=folder, env=env, capture_output=True, text=True, timeout=200, check=False)


@pytest.mark.invariant("I8")
def test_the_same_code_is_fine_under_both_seeds(folder: Path) -> None:
    done = check(folder, mended("sorted"), "run.jsonl")
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout == "1 journal, 20 events under 2 hash seeds: 1 fine\n"


@pytest.mark.invariant("I8")
def test_changed_code_is_told_word_for_word_with_its_line(folder: Path) -> None:
    code = mended("sorted").replace('"lint", file', '"lint", file, strict=True')
    line = next(number for number, text in enumerate(code.splitlines(), 1) if "strict=True" in text)
    done = check(folder, code, "run.jsonl")
    assert done.returncode == 1
    assert done.stdout.splitlines() == [
        f"DIVERGED: run {RUN_ID} of mended",
        "  replay diverged at seq 1 (RUN_CREATED): args of lint/a changed: "
        'recorded {"function":{"args":["a"],"function":"lint"}} (seq 2); '
        'asked {"function":{"args":["a"],"function":"lint","kwargs":{"strict":true}}} '
        f"at {folder}/code_now.py:{line}. "
        "Restore the code, or keep the old way for old runs: if ctx.patched(id): new code, else: old code",
        "1 journal, 20 events under 2 hash seeds: 1 diverged",
    ]


@pytest.mark.invariant("I8")
def test_code_that_hangs_on_the_order_of_a_set_is_found_by_the_two_seeds(folder: Path) -> None:
    done = check(folder, mended("set"), "run.jsonl", "--json")
    assert done.returncode == 1
    verdicts = [json.loads(line) for line in done.stdout.splitlines()]
    assert verdicts[0]["verdict"] == "DIVERGED"
    # One that is right under the first seed by luck: the second one finds it.
    lucky = "(lambda files: sorted(files) if hash('a') == FIRST else set(files))"
    first = subprocess.run(
        [sys.executable, "-c", "print(hash('a'))"],
        env={"PYTHONHASHSEED": "0"},
        capture_output=True,
        text=True,
        check=True,
    ).stdout.strip()
    done = check(folder, mended(lucky.replace("FIRST", first)), "run.jsonl")
    assert done.returncode == 1
    assert "only under PYTHONHASHSEED=1: the code hangs on the order of a set or of hashes; use sorted" in done.stdout
    assert "replay diverged at seq" in done.stdout
    assert done.stdout.endswith("2 hash seeds: 1 diverged\n")


def test_an_error_that_the_run_has_not_had_is_told_with_its_traceback(folder: Path) -> None:
    lines = (folder / "run.jsonl").read_text().splitlines(keepends=True)
    (folder / "run.jsonl").write_text("".join(lines[:-1]))  # before its end
    done = check(folder, mended("sorted", "    {}['bug']\n"), "run.jsonl")
    assert done.returncode == 1
    assert f"BROKEN: run {RUN_ID} of mended" in done.stdout
    assert 'code_now.py", line' in done.stdout
    assert "KeyError: 'bug'" in done.stdout


def test_what_cannot_be_checked_is_said_and_is_not_fine(folder: Path) -> None:
    other = check(folder, mended("sorted").replace('"mended"', '"other"'), "run.jsonl")
    assert (other.returncode, "no process 'mended' is loaded" in other.stdout) == (2, True)
    torn = folder / "torn.jsonl"
    torn.write_text((folder / "run.jsonl").read_text().partition("\n")[2])
    assert check(folder, mended("sorted"), "torn.jsonl").returncode == 2
    torn.write_text("{}\n")
    said = check(folder, mended("sorted"), "torn.jsonl")
    assert (said.returncode, "torn.jsonl:1 is no line of an exported journal" in said.stderr) == (2, True)
    broken = check(folder, "import nothing_like_it", "run.jsonl")
    assert (broken.returncode, "cannot import process module 'code_now'" in broken.stderr) == (2, True)
    assert check(folder, mended("sorted")).returncode == 2


def test_several_journals_in_one_file(folder: Path) -> None:
    one = (folder / "run.jsonl").read_text()
    (folder / "many.jsonl").write_text("".join(one.replace(RUN_ID, f"{RUN_ID[:-2]}{n}") for n in range(10, 60)))
    done = check(folder, mended("sorted"), "many.jsonl", "run.jsonl", "--json")
    assert json.loads(done.stdout) == {"journals": 51, "events": 51 * 20, "fine": 51}


async def test_runs_of_the_database_and_their_export(stack: Stack, cli: Cli) -> None:
    run_id = await cli.detached("cli.returns", "n=4")
    assert (await cli("watch", run_id)).code == 0
    waiting = await cli.detached("cli.asks")
    module = ("--process-module", "tests.e2e.cli_processes")
    database = ("--database-url", stack.dsn)
    for source in (("--run", run_id), ("--live",)):
        *bad, counts = await cli.json("replay-check", *module, *database, *source)
        assert [item for item in bad if item["verdict"] != "PARKED"] == []  # other tests leave parked runs
        assert counts["journals"] == counts["fine"] + counts.get("parked", 0) >= 1
    (cli.folder / "export.jsonl").write_text((await cli("journal", run_id, "--json")).out)
    assert (await cli("replay-check", *module, "export.jsonl")).code == 0
    changed = "import backburner as bb\n\n@bb.process('cli.asks')\nasync def asks(ctx): await ctx.signal('never')\n"
    (cli.folder / "changed_processes.py").write_text(changed)
    said = await cli("replay-check", "--process-module", "changed_processes", *database, "--live")
    assert said.code == 1, said
    assert f"DIVERGED: run {waiting} of cli.asks" in said.out
    assert f"asked nothing, process code waits at {cli.folder}/changed_processes.py:4. Restore the code" in said.out
    unknown = await cli("replay-check", *module, *database, "--run", RUN_ID)
    assert (unknown.code, "1 of the runs are not here" in unknown.err) == (2, True)
    await cli("cancel", waiting)


@pytest.mark.invariant("I8")
async def test_all_runs_of_a_process(stack: Stack, cli: Cli) -> None:
    """`--process` takes its runs, ended or live, and no others; with `--live` those that have not ended."""
    ended = await cli.detached("cli.checked", "n=0")
    assert (await cli("watch", ended)).code == 0
    waiting = await cli.detached("cli.checked", "n=5")
    await eventually(lambda: _asked(stack, waiting), timeout=30)
    only = ("--database-url", stack.dsn, "--process", "cli.checked")
    same = ("--process-module", "tests.e2e.cli_processes")
    [counts] = await cli.json("replay-check", *same, *only)
    assert (counts["journals"], counts["fine"]) == (2, 2)
    [counts] = await cli.json("replay-check", *same, *only, "--live")
    assert (counts["journals"], counts["fine"]) == (1, 1)

    changed = "import backburner as bb\n\n@bb.process('cli.checked')\nasync def checked(ctx, n: int):\n"
    (cli.folder / "checked_now.py").write_text(f"{changed}    return await ctx.run(bb.function('sub', n), key='add')\n")
    said = await cli("replay-check", "--process-module", "checked_now", *only)
    assert said.code == 1, said
    for run_id, n in ((ended, 0), (waiting, 5)):
        assert f"DIVERGED: run {run_id} of cli.checked" in said.out
        assert f'asked {{"function":{{"args":[{n}],"function":"sub"}}}} at {cli.folder}/checked_now.py:5.' in said.out
    assert said.out.endswith("under 2 hash seeds: 2 diverged\n")

    typo = await cli("replay-check", *same, "--database-url", stack.dsn, "--process", "cli.checkd")
    assert (typo.code, "no process 'cli.checkd' is loaded; there are: " in typo.err) == (2, True)
    await cli("cancel", waiting)


async def _asked(stack: Stack, run_id: str) -> bool:
    return any(row.type == "EFFECT_RESOLVED" for row in await journal_of(stack.dsn, run_id))
