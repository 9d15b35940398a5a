"""Values at their bounds and past them, through both services, with the scheduler killed in the middle."""

import hashlib
from pathlib import Path

import psycopg
import pytest
from google.protobuf import json_format

from backburner.journal.v1 import journal_pb2
from backburner.scheduler.v1 import scheduler_service_pb2 as pb
from tests.crash.large_processes import RESULT_BYTES_MAX, numbers
from tests.support.eventually import eventually
from tests.support.journals import check_journal, journal_of, of_type
from tests.support.postgres import DisposablePostgres
from tests.support.services import Stack, running_stack

pytestmark = [pytest.mark.crash, pytest.mark.timeout(600)]  # 16 MiB, twice: minutes on a loaded machine

MODULES = "tests.crash.large_processes"


async def _has(stack: Stack, run_id: str, kind: str, key: str = "") -> bool:
    return bool(of_type(await journal_of(stack.dsn, run_id), kind, key=key or None))


async def _reads_blobs(watcher: psycopg.AsyncConnection[tuple[int]]) -> bool:
    """True when somebody waits to read the table that the test holds."""
    waiting = await watcher.execute(
        "SELECT 1 FROM pg_locks WHERE relation = 'backburner.blobs'::regclass AND NOT granted"
    )
    return await waiting.fetchone() is not None


@pytest.mark.invariant("I2", "I8")
async def test_the_largest_result_arrives_whole_when_the_scheduler_is_killed_while_it_loads_it(
    postgres_server: DisposablePostgres, tmp_path: Path
) -> None:
    await postgres_server.migrate()
    expected = hashlib.sha256(f'"{numbers()}"'.encode()).hexdigest()
    async with running_stack(postgres_server.dsn, tmp_path, MODULES) as stack:
        run_id = await stack.create("large.returns", folder=str(tmp_path))
        await eventually(lambda: _has(stack, run_id, "EFFECT_RESOLVED", "letters"), timeout=60)
        stack.scheduler.kill()  # maybe before it has begun; the next one certainly while it loads
        async with (
            await psycopg.AsyncConnection.connect(stack.dsn, autocommit=True) as watcher,
            await psycopg.AsyncConnection.connect(stack.dsn) as holder,
        ):
            await holder.execute("LOCK TABLE backburner.blobs IN ACCESS EXCLUSIVE MODE")
            stack.scheduler.start()
            await eventually(lambda: _reads_blobs(watcher), timeout=60, message=lambda: stack.scheduler.tail)
            stack.scheduler.kill()
        stack.scheduler.start()
        (tmp_path / "release").touch()
        run = await stack.result(run_id)
        assert run.state == journal_pb2.RUN_STATE_COMPLETED, run
        assert (run.result.blob.digest, run.result.blob.size_bytes) == (expected, RESULT_BYTES_MAX)
        whole = hashlib.sha256()
        async for piece in stack.client.ReadBlob(pb.ReadBlobRequest(run_id=run_id, digest=expected)):
            whole.update(piece.data)
        assert whole.hexdigest() == expected
        rows = await journal_of(stack.dsn, run_id)
    check_journal(rows)
    # What process code was given is what the function returned.
    [report] = of_type(rows, "RUN_REPORTED")
    assert report.data["label"] == hashlib.sha256(numbers().encode()).hexdigest()


@pytest.mark.invariant("I8", "I11")
async def test_what_is_written_past_its_bound_fails_or_parks_the_run_and_never_loops(
    postgres_server: DisposablePostgres, tmp_path: Path
) -> None:
    await postgres_server.migrate()
    async with running_stack(postgres_server.dsn, tmp_path, MODULES) as stack:
        caught = await stack.create("large.writes", folder=str(tmp_path), caught=True)
        bare = await stack.create("large.writes", folder=str(tmp_path), caught=False)
        for run_id, kind in ((caught, "EFFECT_DISPATCHED"), (bare, "PROCESS_RUNTIME_ERROR")):
            await eventually(lambda: _has(stack, run_id, kind), timeout=60)  # noqa: B023 - called at once
        stack.scheduler.kill()
        stack.scheduler.start()
        (tmp_path / "release").touch()
        failed, parked = await stack.result(caught), await stack.result(bare)
        assert (failed.state, failed.error.kind) == (journal_pb2.RUN_STATE_FAILED, "FAIL")
        remedy = "is 65537 bytes; at most 65536 fit: let an effect write it to a file and give the path"
        said = [f"data of ctx.report: {remedy}", f"fields of ctx.log: {remedy}"]
        assert json_format.MessageToDict(failed.error.data) == {"said": said}
        assert (parked.state, parked.error.kind) == (journal_pb2.RUN_STATE_PROCESS_ERROR, "EXCEPTION")
        assert parked.error.message == said[0]
        assert "write()" in parked.error.traceback
        await stack.client.ResumeRun(pb.ResumeRunRequest(run_id=bare), timeout=30)
        await eventually(lambda: _parked_again(stack, bare), timeout=60)
        for run_id in (caught, bare):
            check_journal(await journal_of(stack.dsn, run_id))


async def _parked_again(stack: Stack, run_id: str) -> bool:
    """Resumed with the same code it is parked with the same error, once."""
    rows = await journal_of(stack.dsn, run_id)
    errors = [row.data["error"]["message"] for row in of_type(rows, "PROCESS_RUNTIME_ERROR")]
    assert len(set(errors)) == 1
    return len(errors) == 2
