"""`make hostile N=10000 SEED=s`: so many random and hostile messages to each rpc of each service, and what came back.

Fails when an rpc answers with an error that is not in the API's words (INTERNAL, UNKNOWN), does not answer in time, or
loses the connection; when a service dies or logs a traceback; when sound calls do not work afterwards.
"""

import argparse
import asyncio
import contextlib
import random
import secrets
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import grpc
from google.protobuf.descriptor import MethodDescriptor
from google.protobuf.message import Message
from google.protobuf.message_factory import GetMessageClass

from backburner.executor.v1 import executor_service_pb2
from backburner.scheduler.v1 import dispatch_service_pb2, operator_service_pb2, scheduler_service_pb2
from scheduler_service.journal.migrate import migrate
from scheduler_service.postgres import EmbeddedPostgres, ServerOptions
from tests.attack.generator import Generator, Known
from tests.attack.target import Target, target

BATCH: Final = 250
CONCURRENCY: Final = 16
#: How long a call may take at most; none is asked to wait for longer than a moment.
_ANSWER_SECONDS: Final = 30.0
_FRAME_SECONDS: Final = 0.03
_FRAMES: Final = 3
#: What gRPC's own client says when the other side ends a stream while something is being written to it.
_CUT_OFF: Final = "Internal error from Core"
#: Answers in the words of the API. Besides these, a stream that was left early counts as OK.
ALLOWED: Final = frozenset({
    "OK", "INVALID_ARGUMENT", "NOT_FOUND", "ALREADY_EXISTS", "FAILED_PRECONDITION", "OUT_OF_RANGE", "UNIMPLEMENTED",
    "RESOURCE_EXHAUSTED", "ABORTED",
})  # fmt: skip
_CLIENTS = (
    scheduler_service_pb2.DESCRIPTOR.services_by_name["SchedulerService"],
    operator_service_pb2.DESCRIPTOR.services_by_name["OperatorService"],
)
_CONNECT = dispatch_service_pb2.DESCRIPTOR.services_by_name["DispatchService"].methods_by_name["Connect"]
_EXECUTOR = executor_service_pb2.DESCRIPTOR.services_by_name["ExecutorService"]
_DRAIN = _EXECUTOR.methods_by_name["Drain"]
#: The attack on Drain comes last: it takes the executor out of service.
METHODS: Final = [method for service in _CLIENTS for method in service.methods] + [_CONNECT, *_EXECUTOR.methods]


@dataclass
class Report:
    """What came back from one rpc."""

    name: str
    sent: int = 0
    seconds: float = 0.0
    codes: Counter[str] = field(default_factory=Counter)
    offences: list[str] = field(default_factory=list)

    def note(self, code: str, detail: str, request: bytes) -> None:
        """Notes an answer."""
        self.sent += 1
        self.codes[code] += 1
        if code not in ALLOWED:
            self.offences.append(f"{self.name}: {code} {detail[:300]}\n  request {request[:400].hex()}")

    def __str__(self) -> str:
        codes = "  ".join(f"{code} {count}" for code, count in self.codes.most_common())
        return f"{self.name:<18}{self.sent:>7} {self.sent / max(self.seconds, 1e-9):>7.0f}/s  {codes}"


class Attack:
    """Sends messages to a target."""

    def __init__(self, victim: Target, seed: int, only: Collection[str] = ()) -> None:
        self._victim = victim
        self._methods = [method for method in METHODS if not only or method.name in only]
        self._draw = random.Random(seed)
        self._stack = AsyncExitStack()
        self._channels: dict[str, grpc.aio.Channel] = {}
        self._known: tuple[Known, Mapping[str, Sequence[Any]]] = {}, {}

    async def run(self, count: int, show: Callable[[str], None]) -> list[Report]:
        """Attacks every rpc with so many messages."""
        async with self._stack:
            reports = []
            for method in self._methods:
                report = Report(method.name)
                for start in range(0, count, BATCH):
                    await self._batch(method, min(BATCH, count - start), report)
                show(str(report))
                reports.append(report)
            return reports

    async def _batch(self, method: MethodDescriptor, count: int, report: Report) -> None:
        if method is not _DRAIN or not report.sent:  # an executor that drains gives no fresh victims
            self._known = await self._victim.known()
        generator = Generator(self._draw, *self._known)
        requests = [self._request(generator, method) for _ in range(count)]
        channel = await self._channel(method)
        begun = time.monotonic()
        waiting = iter(requests)

        async def sender() -> None:
            for request in waiting:
                code, detail = await answer(channel, method, request)
                report.note(code, detail, b"".join(request))

        async with asyncio.TaskGroup() as group:
            for _ in range(CONCURRENCY):
                group.create_task(sender())
        report.seconds += time.monotonic() - begun

    def _request(self, generator: Generator, method: MethodDescriptor) -> list[bytes]:
        if method is _CONNECT:
            return [generator.wire(method.input_type, only="hello"), *self._frames(generator, method)]
        return [generator.wire(method.input_type, finish=no_long_wait)]

    def _frames(self, generator: Generator, method: MethodDescriptor) -> list[bytes]:
        return [generator.wire(method.input_type) for _ in range(self._draw.randint(0, 4))]

    async def _channel(self, method: MethodDescriptor) -> grpc.aio.Channel:
        service = method.containing_service.full_name
        if service not in self._channels:
            of_executor = service == _EXECUTOR.full_name
            address = await self._victim.executor_address() if of_executor else self._victim.stack.address
            channel = grpc.aio.insecure_channel(address, options=[("grpc.max_send_message_length", 64 << 20)])
            self._channels[service] = await self._stack.enter_async_context(channel)
        return self._channels[service]


def no_long_wait(request: Message) -> None:
    """A wait of 55 s is an answer in time too, but not within this attack's."""
    if "max_wait" in request.DESCRIPTOR.fields_by_name:
        wait = request.max_wait  # type: ignore[attr-defined]
        wait.seconds, wait.nanos = min(wait.seconds, 0), min(wait.nanos, 10_000_000)


async def answer(channel: grpc.aio.Channel, method: MethodDescriptor, request: list[bytes]) -> tuple[str, str]:
    """The code with which a call ends, and its message."""
    path = f"/{method.containing_service.full_name}/{method.name}"
    parse: Any = GetMessageClass(method.output_type).FromString
    sent: Any = request[0]
    try:
        async with asyncio.timeout(_ANSWER_SECONDS):
            if method.client_streaming:
                await _session(channel.stream_stream(path, None, parse)(), request)
            elif method.server_streaming:
                await _first_frames(channel.unary_stream(path, None, parse)(sent))
            else:
                await channel.unary_unary(path, None, parse)(sent)
    except grpc.aio.AioRpcError as error:
        cut_off = error.details() == _CUT_OFF and method.client_streaming
        return "OK" if cut_off else error.code().name, str(error.details())
    except TimeoutError:
        return "NO_ANSWER", f"within {_ANSWER_SECONDS:g} s"
    return "OK", ""


async def _session(call: Any, frames: list[bytes]) -> None:
    """Says hello and, when it is let in, sends the rest; raises what the session ended with."""
    await call.write(frames[0])
    async with asyncio.timeout(_ANSWER_SECONDS):
        welcomed = await call.read() is not grpc.aio.EOF
    with contextlib.suppress(asyncio.InvalidStateError):  # it has ended already
        for frame in frames[1:] if welcomed else ():
            await call.write(frame)
    await _first_frames(call)


async def _first_frames(call: Any) -> None:
    """Reads some frames of a stream; what does not come in a moment is not waited for."""
    try:
        for _ in range(_FRAMES):
            async with asyncio.timeout(_FRAME_SECONDS * 2):
                if await call.read() is grpc.aio.EOF:
                    return
    except TimeoutError:
        return
    finally:
        call.cancel()


async def attack(
    dsn: str, folder: Path, *, count: int, seed: int, show: Callable[[str], None], only: Collection[str] = ()
) -> list[Report]:
    """Attacks a target of its own; asserts that no answer was wrong and that nothing was lost."""
    async with target(dsn, folder) as victim:
        reports = await Attack(victim, seed, only).run(count, show)
        offences = [offence for report in reports for offence in report.offences]
        assert not offences, f"{len(offences)} offences, the first:\n" + "\n".join(offences[:10])
        await victim.check()
    return reports


def _show(line: str) -> None:
    print(line, flush=True)


async def _main(count: int, seed: int, only: Collection[str]) -> int:
    print(f"{count} messages to each rpc, seed {seed}")
    server = EmbeddedPostgres(ServerOptions(durable=False))
    begun = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="bb-hostile-") as place:
        dsn = server.start(Path(place) / "postgres")
        try:
            await migrate(dsn, roles=True)
            reports = await attack(dsn, Path(place), count=count, seed=seed, show=_show, only=only)
        finally:
            server.stop("immediate")
    print(f"{sum(report.sent for report in reports)} messages in {time.monotonic() - begun:.0f} s")
    return 0


if __name__ == "__main__":
    arguments = argparse.ArgumentParser(prog="make hostile", description=__doc__)
    arguments.add_argument("--count", type=int, default=10_000, help="messages to each rpc")
    arguments.add_argument("--seed", type=int, default=None, help="what to repeat; printed at the start")
    arguments.add_argument("only", nargs="*", help="rpcs to attack; default: all")
    chosen = arguments.parse_args()
    given = secrets.randbits(32) if chosen.seed is None else chosen.seed
    sys.exit(asyncio.run(_main(chosen.count, given, chosen.only)))
