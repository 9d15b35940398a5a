"""The output of an effect's child as if the child ran here: every byte once, in order, each stream to its own.

Live frames may have holes. A hole is filled from what was recorded before anything after it is written, so that the
order within a stream never changes.
"""

from __future__ import annotations

import asyncio
import sys
import time
from collections.abc import AsyncIterator, Callable
from typing import BinaryIO, Final

import grpc
import grpc.aio

from backburner.executor.v1 import executor_service_pb2 as executor
from backburner.journal.v1 import journal_pb2 as journal
from backburner.scheduler.v1 import scheduler_service_pb2 as pb
from scheduler_service.cli.client import Client

# Executors record what a child writes every few moments: a hole that is older than this stays one.
_FILL_SECONDS: Final = 20.0
_RETRY_SECONDS: Final = 0.5
# OUT_OF_RANGE: the attempt is over, and what came live is further than what is recorded so far.
_NOT_YET: Final = (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.OUT_OF_RANGE)

STREAMS: Final = {executor.OUTPUT_STREAM_STDOUT: "stdout", executor.OUTPUT_STREAM_STDERR: "stderr"}

Place = tuple[int, executor.OutputStream.ValueType]
"""An attempt, and one of its streams."""


class ChildOutput:
    """Writes the output of one effect's attempts. `note` says what cannot be written: bytes that nobody kept."""

    def __init__(self, client: Client, effect_id: str, note: Callable[[str], None], *, silent: bool = False) -> None:
        self._client = client
        self._effect_id = effect_id
        self._note = note
        self._silent = silent
        self._positions: dict[Place, int] = {(1, stream): 0 for stream in STREAMS}

    def wanted(self) -> list[pb.OutputPosition]:
        """Where a watch has to go on."""
        return [
            pb.OutputPosition(effect_id=self._effect_id, attempt=attempt, stream=stream, offset=offset)
            for (attempt, stream), offset in self._positions.items()
        ]

    async def take(self, attempt: int, chunk: executor.OutputChunk) -> None:
        """Write a live piece, and before it what is missing."""
        place = (attempt, chunk.stream)
        if chunk.offset > self._positions.get(place, 0):
            await self._fill(place, chunk.offset)
        self._write(place, chunk.offset, chunk.data)

    async def complete(self, attempt: int, result: journal.EffectResult) -> None:
        """Write the rest of an attempt that has ended; forgets the attempt."""
        totals = {
            executor.OUTPUT_STREAM_STDOUT: result.stdout.total_bytes,
            executor.OUTPUT_STREAM_STDERR: result.stderr.total_bytes,
        }
        for stream, total in totals.items():
            await self._fill((attempt, stream), int(total))
        self._positions = {(attempt + 1, stream): 0 for stream in STREAMS}

    async def _fill(self, place: Place, until: int) -> None:
        """Write what was recorded up to `until`."""
        deadline = time.monotonic() + _FILL_SECONDS
        while self._positions.get(place, 0) < until and time.monotonic() < deadline:
            try:
                async with asyncio.timeout_at(asyncio.get_running_loop().time() + deadline - time.monotonic()):
                    async for frame in self._recorded(place):
                        self._take_recorded(place, frame)
                        if self._positions.get(place, 0) >= until:
                            return
            except TimeoutError:
                break
            except grpc.aio.AioRpcError as error:
                if error.code() not in _NOT_YET:
                    raise
                await asyncio.sleep(_RETRY_SECONDS)
        self._skip(place, until)

    async def _recorded(self, place: Place) -> AsyncIterator[pb.StreamOutputResponse]:
        attempt, stream = place
        request = pb.StreamOutputRequest(
            effect=pb.EffectName(effect_id=self._effect_id), namespace=self._client.namespace, attempt=attempt,
            stream=stream, offset=self._positions.get(place, 0), follow=True,
        )  # fmt: skip
        call = self._client.runs.StreamOutput(request)
        try:
            async for frame in call:
                yield frame
        finally:
            call.cancel()

    def _take_recorded(self, place: Place, frame: pb.StreamOutputResponse) -> None:
        kind = frame.WhichOneof("frame")
        if kind == "chunk":
            self._write(place, frame.chunk.offset, frame.chunk.data)
        elif kind == "omitted":
            self._skip(place, frame.omitted.offset + frame.omitted.bytes)

    def _skip(self, place: Place, until: int) -> None:
        missing = until - self._positions.get(place, 0)
        if missing > 0:
            self._note(f"[{missing} bytes of {STREAMS[place[1]]} were not kept]")
            self._positions[place] = until

    def _write(self, place: Place, offset: int, data: bytes) -> None:
        position = self._positions.get(place, 0)
        new = data[max(position - offset, 0) :]
        if not new:
            return
        self._positions[place] = offset + len(data)
        if not self._silent:
            out = _binary(place[1])
            out.write(new)
            out.flush()

    def close(self) -> None:
        """Write nothing more: the reader is gone."""
        self._silent = True


def _binary(stream: executor.OutputStream.ValueType) -> BinaryIO:
    return sys.stderr.buffer if stream == executor.OUTPUT_STREAM_STDERR else sys.stdout.buffer
