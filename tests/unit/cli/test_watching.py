from collections.abc import AsyncIterator
from typing import Any

import grpc
import grpc.aio
import pytest

from backburner.journal.v1 import journal_pb2 as journal
from backburner.scheduler.v1 import scheduler_service_pb2 as pb
from scheduler_service.cli import watching


def event(seq: int) -> pb.WatchRunResponse:
    return pb.WatchRunResponse(event=journal.JournalEvent(seq=seq))


def end(reason: pb.WatchEnd.Reason.ValueType, resume: int = 0) -> pb.WatchRunResponse:
    return pb.WatchRunResponse(end=pb.WatchEnd(reason=reason, resume_after_seq=resume))


CLOSED = end(pb.WatchEnd.REASON_RUN_CLOSED)


def cut(code: grpc.StatusCode = grpc.StatusCode.UNAVAILABLE) -> grpc.aio.AioRpcError:
    return grpc.aio.AioRpcError(code, grpc.aio.Metadata(), grpc.aio.Metadata(), "cut")


Script = list[pb.WatchRunResponse | Exception]


class Server:
    """Plays one script of frames and errors a stream, and records from where each was asked for."""

    def __init__(self, *scripts: Script) -> None:
        self._scripts = list(scripts)
        self.asked: list[int | None] = []
        self.cancelled = 0

    def open(self, after: int | None) -> "Stream":
        self.asked.append(after)
        return Stream(self, self._scripts.pop(0))


class Stream:
    def __init__(self, server: Server, script: Script) -> None:
        self._server, self._script = server, script

    async def __aiter__(self) -> AsyncIterator[pb.WatchRunResponse]:
        for item in self._script:
            if isinstance(item, Exception):
                raise item
            yield item

    def cancel(self) -> bool:
        self._server.cancelled += 1
        return True


@pytest.fixture(autouse=True)
def no_pause(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(watching, "BACKOFF_FIRST_SECONDS", 0.001)


async def seen(server: Server, after: int | None = None) -> tuple[list[int], list[str]]:
    notes: list[str] = []
    frames = [frame async for frame in watching.resumed(server.open, after, notes.append)]
    return [frame.event.seq for frame in frames if frame.WhichOneof("frame") == "event"], notes


@pytest.mark.invariant("I9")
async def test_after_a_cut_the_watch_goes_on_after_the_last_seq_seen() -> None:
    server = Server([event(1), event(2), cut()], [event(2), event(3), CLOSED])
    seqs, notes = await seen(server, 0)
    assert seqs == [1, 2, 3]
    assert server.asked == [0, 2]
    assert "connection lost (UNAVAILABLE)" in notes[0]
    assert server.cancelled == 2


@pytest.mark.invariant("I9")
async def test_a_stream_that_ends_without_an_end_frame_is_resumed() -> None:
    server = Server([event(1)], [event(2), CLOSED])
    assert (await seen(server, 0))[0] == [1, 2]


@pytest.mark.parametrize("reason", [pb.WatchEnd.REASON_LIFETIME, pb.WatchEnd.REASON_MOVED, pb.WatchEnd.REASON_SLOW])
async def test_an_end_that_is_not_the_runs_end_is_resumed_where_it_says(reason: Any) -> None:
    server = Server([event(1), end(reason, 5)], [event(6), CLOSED])
    assert (await seen(server, 0))[0] == [1, 6]
    assert server.asked == [0, 5]


async def test_a_snapshot_sets_the_position() -> None:
    snapshot = pb.WatchRunResponse(snapshot=pb.RunSnapshot(seq=41))
    server = Server([snapshot, cut()], [event(42), CLOSED])
    assert (await seen(server))[0] == [42]
    assert server.asked == [None, 41]


async def test_nobody_there_at_the_first_try_is_an_error_at_once() -> None:
    with pytest.raises(grpc.aio.AioRpcError):
        await seen(Server([cut()]))


async def test_an_answer_is_not_taken_for_a_cut() -> None:
    with pytest.raises(grpc.aio.AioRpcError):
        await seen(Server([event(1), cut(grpc.StatusCode.NOT_FOUND)]))


async def test_a_parked_run_ends_the_watch() -> None:
    assert (await seen(Server([event(1), end(pb.WatchEnd.REASON_PARKED)]), 0))[0] == [1]


async def test_nobody_answering_for_long_ends_the_watch(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(watching, "GIVE_UP_SECONDS", 0.0)
    with pytest.raises(grpc.aio.AioRpcError):
        await seen(Server([event(1), cut()], [cut()]), 0)
