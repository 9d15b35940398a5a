"""kill -9 of each part in the middle of a run, which then ends with the right result."""

from pathlib import Path

import pytest

from backburner.journal.v1 import journal_pb2
from tests.support.eventually import eventually
from tests.support.journals import SETTLING, JournalRow, check_journal, journal_of, marked_processes, of_type
from tests.support.postgres import DisposablePostgres
from tests.support.services import Stack, result_value, running_stack

pytestmark = [pytest.mark.crash, pytest.mark.timeout(300)]

MODULES = "tests.e2e.processes"
EXPECTED = {
    "total": 780, "pending": True, "stdout": "released\n", "stderr": "done\n", "sums": [2 * i for i in range(10)],
}  # fmt: skip


async def _begun(stack: Stack, folder: Path) -> str:
    """A run of `mixed` whose background effect runs and whose foreground effects have begun."""
    run_id = await stack.create("mixed", folder=str(folder), foreground=40)
    await eventually((folder / "mark-5").exists, timeout=60, message=lambda: stack.scheduler.tail)
    return run_id


async def _ended(stack: Stack, run_id: str, folder: Path) -> list[JournalRow]:
    await eventually((folder / "half-way").exists, timeout=90, message=lambda: stack.scheduler.tail)
    (folder / "release").touch()
    run = await stack.result(run_id)
    assert run.state == journal_pb2.RUN_STATE_COMPLETED, run
    assert result_value(run) == EXPECTED
    rows = await journal_of(stack.dsn, run_id)
    check_journal(rows)
    return rows


def _marks(folder: Path) -> int:
    """How often an effect left its mark outside the database."""
    return sum(len(path.read_text().splitlines()) for path in folder.glob("mark-*"))


@pytest.mark.invariant("I3", "I13")
async def test_kill_of_the_scheduler(postgres_server: DisposablePostgres, tmp_path: Path) -> None:
    """The executor runs on; the restarted scheduler replays and adopts: nothing is run again."""
    await postgres_server.migrate()
    async with running_stack(postgres_server.dsn, tmp_path, MODULES) as stack:
        run_id = await _begun(stack, tmp_path)
        stack.scheduler.kill()
        stack.scheduler.start()
        rows = await _ended(stack, run_id, tmp_path)
    assert not of_type(rows, "EFFECT_ATTEMPT_LOST", key="slow"), "a running attempt was given up inside the grace"
    assert len(of_type(rows, "EFFECT_DISPATCHED", key="slow")) == 1
    starts = _marks(tmp_path)
    lost = [row for row in of_type(rows, "EFFECT_ATTEMPT_LOST") if not row.data.get("never_started")]
    assert starts <= 40 + len(lost), "an effect ran more often than its attempts say"


@pytest.mark.invariant("I10")
async def test_kill_of_the_executor(postgres_server: DisposablePostgres, tmp_path: Path) -> None:
    """Its restart finds and kills its orphans, reports their attempts lost, and they are run again by policy."""
    await postgres_server.migrate()
    async with running_stack(postgres_server.dsn, tmp_path, MODULES) as stack:
        run_id = await _begun(stack, tmp_path)
        orphans = marked_processes(run_id)
        assert orphans, "the background effect has no child"
        stack.executor.kill()
        stack.executor.start()
        rows = await _ended(stack, run_id, tmp_path)
        assert not set(orphans) & set(marked_processes(run_id)), "orphans of the killed executor are alive"
    lost = of_type(rows, "EFFECT_ATTEMPT_LOST", key="slow")
    assert [row.data["reason"] for row in lost] == ["EFFECT_REASON_EXECUTOR_LOST"]
    assert len(of_type(rows, "EFFECT_DISPATCHED", key="slow")) == 2


async def test_kill_of_postgres(postgres_server: DisposablePostgres, tmp_path: Path) -> None:
    """Both services wait and go on; what was acknowledged is there."""
    await postgres_server.migrate()
    async with running_stack(postgres_server.dsn, tmp_path, MODULES) as stack:
        run_id = await _begun(stack, tmp_path)
        before = await journal_of(stack.dsn, run_id)
        postgres_server.kill()
        postgres_server.start()
        rows = await _ended(stack, run_id, tmp_path)
    assert rows[: len(before)] == before, "rows that were read before the crash are gone or different"
    assert len(of_type(rows, *SETTLING, key="slow")) == 1


async def test_stop_of_the_scheduler_hands_its_runs_over(postgres_server: DisposablePostgres, tmp_path: Path) -> None:
    """SIGTERM: exit code 0, leases released, and the next one goes on at once."""
    await postgres_server.migrate()
    async with running_stack(postgres_server.dsn, tmp_path, MODULES) as stack:
        run_id = await _begun(stack, tmp_path)
        assert stack.scheduler.stop() == 0, stack.scheduler.tail
        stack.scheduler.start()
        await _ended(stack, run_id, tmp_path)


async def _dispatched(stack: Stack, run_id: str, key: str) -> bool:
    return bool(of_type(await journal_of(stack.dsn, run_id), "EFFECT_DISPATCHED", key=key))


async def test_what_is_replayed_is_not_printed_again(postgres_server: DisposablePostgres, tmp_path: Path) -> None:
    await postgres_server.migrate()
    async with running_stack(postgres_server.dsn, tmp_path, MODULES) as stack:
        run_id = await stack.create("talks", folder=str(tmp_path))
        # Once the step is committed; before that, printing again would be right.
        await eventually(lambda: _dispatched(stack, run_id, "wait"), timeout=30)
        await eventually(lambda: "printed before" in stack.scheduler.tail, timeout=30)
        stack.scheduler.kill()
        stack.scheduler.start()
        (tmp_path / "release").touch()
        assert result_value(await stack.result(run_id)) == "done"
        assert stack.scheduler.stop() == 0  # writes out what was printed
        said = stack.scheduler.log.read_text()
    assert said.count("printed before") == 1
    assert said.count("logged before") == 1
    assert said.count("printed after") == 1
