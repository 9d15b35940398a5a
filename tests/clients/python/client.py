"""A client in Python that has the generated stubs and nothing else: the sequences of "Clients in any language"."""

import hashlib
import json
from collections.abc import AsyncIterator, Mapping
from typing import Any

import grpc
from google.protobuf import json_format
from google.rpc import error_details_pb2  # type: ignore[import-untyped]
from grpc_status import rpc_status

from backburner.executor.v1 import executor_service_pb2 as executor_pb
from backburner.journal.v1 import journal_pb2 as journal
from backburner.scheduler.v1 import scheduler_service_pb2 as pb
from tests.support.client_program import ClientProgram, spec

#: What the README gives to paste in.
SERVICE_CONFIG = (
    '{"methodConfig": [{"name": [{"service": "backburner.scheduler.v1.SchedulerService"}], "retryPolicy": '
    '{"maxAttempts": 5, "initialBackoff": "0.2s", "maxBackoff": "5s", "backoffMultiplier": 2, "retryableStatusCodes": '
    '["UNAVAILABLE"]}}]}'
)
_SECONDS = 20.0


def connect(address: str) -> grpc.aio.Channel:
    """A channel that retries what the README says may be retried."""
    return grpc.aio.insecure_channel(address, options=[("grpc.service_config", SERVICE_CONFIG)])


def shell(script: str, **fields: Any) -> journal.EffectSpec:
    """A line for `/bin/sh`."""
    return spec(shell={"command_line": script, "check": True}, **fields)


def refusal(error: grpc.aio.AioRpcError) -> tuple[str, Mapping[str, str]]:
    """Reason and metadata of the error's ErrorInfo."""
    info = error_details_pb2.ErrorInfo()
    status = rpc_status.from_call(error)  # type: ignore[arg-type]
    assert status is not None, error
    assert any(packed.Unpack(info) for packed in status.details), error
    return str(info.reason), dict(info.metadata)


class Client(ClientProgram):
    """A client program that also reads output and large values, cancels and answers questions."""

    __slots__ = ()

    async def value(self, payload: journal.Payload) -> Any:
        """The value of a payload, read by its digest when it is large; its bytes are what the digest says."""
        if payload.HasField("value"):
            return json_format.MessageToDict(payload.value)
        content = b"".join([part async for part in self._blob(payload.blob.digest)])
        assert hashlib.sha256(content).hexdigest() == payload.blob.digest
        assert len(content) == payload.blob.size_bytes
        return json.loads(content)

    async def _blob(self, digest: str, offset: int = 0) -> AsyncIterator[bytes]:
        read = pb.ReadBlobRequest(run_id=self.run_id, digest=digest, offset=offset)
        async for part in self.stub.ReadBlob(read, timeout=_SECONDS):
            assert part.offset == offset
            offset += len(part.data)
            yield part.data

    async def output(self, key: str, offset: int = 0) -> AsyncIterator[bytes]:
        """StreamOutput of stdout of the first attempt from an offset, followed to its end."""
        request = pb.StreamOutputRequest(
            effect=self.name(key), attempt=1, stream=executor_pb.OUTPUT_STREAM_STDOUT, offset=offset, follow=True
        )
        async for frame in self.stub.StreamOutput(request, timeout=_SECONDS):
            if frame.HasField("chunk"):
                assert frame.chunk.offset == offset
                offset += len(frame.chunk.data)
                yield frame.chunk.data

    async def cancel_effect(self, key: str) -> pb.Effect:
        """CancelEffect."""
        request = pb.CancelEffectRequest(effect=self.name(key), reason="no longer wanted")
        return (await self.stub.CancelEffect(request, timeout=_SECONDS)).effect

    async def snapshot(self) -> pb.RunSnapshot:
        """What a new watcher is given first."""
        call = self.stub.WatchRun(pb.WatchRunRequest(run_id=self.run_id), timeout=_SECONDS)
        frame = await call.read()
        call.cancel()
        assert isinstance(frame, pb.WatchRunResponse)
        return frame.snapshot

    def name(self, key: str) -> pb.EffectName:
        """Names an effect of the run."""
        return pb.EffectName(run_id=self.run_id, key=key)


async def inbox(stub: Any) -> list[pb.Effect]:
    """What waits for somebody's answer, in all runs."""
    request = pb.ListEffectsRequest(
        kinds=[journal.EFFECT_KIND_EXTERNAL], states=[journal.EFFECT_STATE_WAITING], page_size=1000
    )
    return list((await stub.ListEffects(request, timeout=_SECONDS)).effects)
