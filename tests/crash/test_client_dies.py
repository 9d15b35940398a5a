"""Clients of client-driven runs that die, hang and come back: nothing is run again, the zombie is fenced."""

import asyncio
import random
import secrets
import signal
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from backburner.journal.v1 import journal_pb2 as journal
from backburner.scheduler.v1 import scheduler_service_pb2 as pb
from tests.crash.client_steps import SUPERSEDED
from tests.support.eventually import eventually
from tests.support.journals import check_journal, journal_of, of_type
from tests.support.postgres import DisposablePostgres
from tests.support.services import ROOT, Stack, running_stack

pytestmark = [pytest.mark.crash, pytest.mark.timeout(300)]

MODULES = "tests.e2e.processes"
KEY = "client/steps"
STEPS = 60


class Program:
    """The client as a process of its own."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self.process = process
        self.said: list[str] = []
        self._reading = asyncio.create_task(self._read())

    async def _read(self) -> None:
        assert self.process.stdout is not None
        async for line in self.process.stdout:
            self.said.append(line.decode().strip())

    async def reach(self, step: int) -> None:
        """Waits until it has seen this step done."""
        await eventually(lambda: f"mark-{step}" in self.said, timeout=60, message=lambda: str(self.said))

    async def end(self) -> int:
        """Waits for its end."""
        code = await asyncio.wait_for(self.process.wait(), 60)
        await self._reading
        return code


@asynccontextmanager
async def started(stack: Stack, folder: Path) -> AsyncIterator[Program]:
    """A start of the program, killed at the end."""
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "tests.crash.client_steps", stack.address, KEY, str(folder), str(STEPS),
        cwd=ROOT, stdout=asyncio.subprocess.PIPE, start_new_session=True,
    )  # fmt: skip
    program = Program(process)
    try:
        yield program
    finally:
        if process.returncode is None:
            process.kill()
            await program.end()


async def check_end(stack: Stack, folder: Path) -> None:
    """Every step was done once, in its order, and the run has ended as the client said."""
    run = (await stack.client.GetRun(pb.GetRunRequest(key=KEY))).run
    assert run.state == journal.RUN_STATE_COMPLETED
    assert run.result.value.struct_value.fields["steps"].number_value == STEPS
    rows = await journal_of(stack.dsn, run.run_id)
    check_journal(rows)
    assert [row.key for row in of_type(rows, "EFFECT_REQUESTED")] == ["slow", *(f"mark-{n}" for n in range(STEPS))]
    # A start that the killed scheduler never sent is dispatched anew; the marks below are what was run.
    lost = of_type(rows, "EFFECT_ATTEMPT_LOST")
    assert all(row.data["never_started"] for row in lost), lost
    assert len(of_type(rows, "EFFECT_DISPATCHED")) == STEPS + 1 + len(lost)
    marks = [folder / "slow", *(folder / f"mark-{n}" for n in range(STEPS))]
    assert [len(mark.read_text().splitlines()) for mark in marks] == [1] * (STEPS + 1)


@pytest.mark.invariant("I2", "I3", "I14")
async def test_a_client_that_is_killed_again_and_again_ends_as_if_it_never_was(
    postgres_server: DisposablePostgres, tmp_path: Path
) -> None:
    await postgres_server.migrate()
    seed = secrets.randbits(32)
    print(f"seed {seed}")
    draw = random.Random(seed)
    async with running_stack(postgres_server.dsn, tmp_path, MODULES) as stack:
        for step in sorted(draw.sample(range(STEPS - 10), 3)):
            async with started(stack, tmp_path) as program:
                await program.reach(step)
                await asyncio.sleep(draw.random() * 0.02)  # anywhere in the step that follows
        stack.scheduler.kill()
        async with started(stack, tmp_path) as program:
            stack.scheduler.start()
            await program.reach(STEPS - 1)
            (tmp_path / "release").touch()
            assert await program.end() == 0, program.said
        assert program.said[0] == "epoch 4 created False"
        await check_end(stack, tmp_path)


@pytest.mark.invariant("I5")
async def test_a_client_that_wakes_up_after_its_successor_began_is_refused(
    postgres_server: DisposablePostgres, tmp_path: Path
) -> None:
    await postgres_server.migrate()
    async with running_stack(postgres_server.dsn, tmp_path, MODULES) as stack, started(stack, tmp_path) as zombie:
        await zombie.reach(5)
        zombie.process.send_signal(signal.SIGSTOP)
        async with started(stack, tmp_path) as program:
            await program.reach(STEPS // 2)
            zombie.process.send_signal(signal.SIGCONT)
            assert await zombie.end() == SUPERSEDED, zombie.said
            assert zombie.said[-1] == "CLIENT_SUPERSEDED"
            (tmp_path / "release").touch()
            assert await program.end() == 0, program.said
        await check_end(stack, tmp_path)
