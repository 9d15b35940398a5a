"""A client program that a test kills: `python -m tests.crash.client_steps ADDRESS KEY FOLDER STEPS`.

Many small steps, one after the other, beside a background effect; then the end. It keeps nothing: started again, it is
answered from the journal. It says each step that it has seen done, and how it was refused.
"""

import asyncio
import sys
from collections.abc import Awaitable, Callable
from functools import partial
from typing import Any

import grpc
from google.rpc import error_details_pb2  # type: ignore[import-untyped]
from grpc_status import rpc_status

from backburner.scheduler.v1 import scheduler_service_pb2_grpc as pb_grpc
from tests.support.client_program import ClientProgram, spec

#: Exit code of a program that another start of it has replaced.
SUPERSEDED = 9


async def patiently(call: Callable[[], Awaitable[Any]]) -> Any:
    """Repeats a call while nobody answers, which is always safe."""
    while True:
        try:
            return await call()
        except grpc.aio.AioRpcError as error:
            if error.code() is not grpc.StatusCode.UNAVAILABLE:
                raise
            await asyncio.sleep(0.1)


async def steps(address: str, key: str, folder: str, count: int) -> None:
    """The program."""
    async with grpc.aio.insecure_channel(address) as channel:
        stub = pb_grpc.SchedulerServiceStub(channel)
        program = await patiently(lambda: ClientProgram.start(stub, key))
        print(f"epoch {program.epoch} created {program.created}", flush=True)
        release = f"echo $$ >> {folder}/slow; while [ ! -e {folder}/release ]; do sleep 0.02; done"
        slow = spec(shell={"command_line": release}, background=True)
        await patiently(lambda: program.request({"slow": slow}))
        for number in range(count):
            name = f"mark-{number}"
            mark = {name: spec(shell={"command_line": f"echo $$ >> {folder}/{name}; echo {name}"})}
            await patiently(partial(program.request, mark))
            [done] = await patiently(partial(program.wait, name))
            assert done.result.stdout.tail == f"{name}\n", done
            print(name, flush=True)
        await patiently(lambda: program.wait("slow"))
        await patiently(lambda: program.finish({"steps": count}))


def reason_of(error: grpc.aio.AioRpcError) -> str:
    """Reason of the error's ErrorInfo."""
    info = error_details_pb2.ErrorInfo()
    status = rpc_status.from_call(error)  # type: ignore[arg-type]
    found = status is not None and any(packed.Unpack(info) for packed in status.details)
    return str(info.reason) if found else f"{error.code()}: {error.details()}"


def main() -> int:
    """Runs the program; its exit code."""
    _, address, key, folder, count = sys.argv
    try:
        asyncio.run(steps(address, key, folder, int(count)))
    except grpc.aio.AioRpcError as error:
        reason = reason_of(error)
        print(reason, flush=True)
        return SUPERSEDED if reason == "CLIENT_SUPERSEDED" else 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
