"""kill -9 of whoever has a child kept: nobody of its descendants lives on, also those that nothing can be seen on."""

import asyncio
import os
import signal
import sys

import pytest

from tests.support.children import HIDDEN, alive
from tests.support.eventually import eventually
from tests.support.services import ROOT

pytestmark = [pytest.mark.crash, pytest.mark.invariant("I10")]

#: Stands for an executor: has `argv[1]` kept, and hands on what that says on stderr. `argv[2]`: fork, and it has a
#: fork of its own that holds all its sockets.
HOLDER = """
import asyncio, os, sys, time
from executor_service.descendants import Reaper, become_subreaper
from executor_service.keepers import Keepers
from executor_service.process_group import Command, start_group

async def main():
    become_subreaper()
    keepers = Keepers(Reaper())
    keepers.start()
    argv = [sys.executable, "-S", "-E", "-c", sys.argv[1], "stay"]
    sinks = [lambda data: None, lambda data: os.write(1, data), lambda data: None]
    await start_group(Command(argv, "/", {}), "marker/", keepers, "", sinks)
    os.write(1, b"program=%d\\n" % keepers._program.pid)
    if sys.argv[2] == "fork":
        pid = os.fork()
        if pid == 0:
            os.close(1)
            time.sleep(60)
        os.write(1, b"fork=%d\\n" % pid)
    await asyncio.Event().wait()

asyncio.run(main())
"""


@pytest.mark.parametrize("circumstance", ["alone", "fork", "without its program"])
async def test_kill_of_the_executor_takes_hidden_daemons_with_it(circumstance: str) -> None:
    holder = await asyncio.create_subprocess_exec(
        sys.executable, "-c", HOLDER, HIDDEN, circumstance, cwd=ROOT, stdout=asyncio.subprocess.PIPE
    )
    assert holder.stdout is not None
    said: dict[bytes, int] = {}
    try:
        async with asyncio.timeout(60):
            while not {b"pid", b"program"} <= said.keys() or (circumstance == "fork" and b"fork" not in said):
                name, _, value = (await holder.stdout.readline()).partition(b"=")
                said[name] = int(value)
        assert alive(said[b"pid"])
        if circumstance == "without its program":
            os.kill(said[b"program"], signal.SIGKILL)
            await eventually(lambda: not alive(said[b"program"]))
    finally:
        holder.kill()
        await holder.wait()
    try:
        await eventually(lambda: not alive(said[b"pid"]), timeout=30)
    finally:
        for name in (b"pid", b"fork"):
            if name in said and alive(said[name]):
                os.kill(said[name], signal.SIGKILL)
