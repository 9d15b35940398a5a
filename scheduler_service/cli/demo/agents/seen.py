"""What was seen of an agent, beside what its process made of it: time, turns, tools, tokens, cost."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import grpc
import grpc.aio

from backburner.executor.v1 import executor_service_pb2 as executor
from backburner.journal.v1 import journal_pb2 as journal
from backburner.scheduler.v1 import scheduler_service_pb2 as pb
from scheduler_service.cli import text
from scheduler_service.cli.client import Client
from scheduler_service.cli.transcript import Events, text_of


@dataclass(frozen=True)
class Seen:
    """One effect of an agent. `cost_usd` None: it is unknown."""

    effect_id: str
    state: str
    harness: str
    seconds: float
    attempts: int
    turns: int
    input_tokens: float
    output_tokens: float
    cost_usd: float | None
    model: str
    continued: bool
    repair_turns: int
    tools: Mapping[str, int] = field(default_factory=dict)


async def seen_of(client: Client, effect_id: str) -> Seen:
    """By the effect and its transcript."""
    effect = await client.get_effect(pb.EffectName(effect_id=effect_id))
    usage, result = effect.usage, effect.result
    return Seen(
        effect_id=effect.effect_id,
        state=text.effect_state(effect.state),
        harness=result.harness or effect.harness,
        seconds=(text.moment(effect.settle_time) - text.moment(effect.request_time)).total_seconds(),
        attempts=effect.attempt,
        turns=usage.turns or effect.progress.turns,
        input_tokens=usage.input_tokens,
        output_tokens=usage.output_tokens,
        cost_usd=usage.cost_usd if usage.HasField("cost_usd") else None,
        model=usage.model,
        continued=bool(result.continued_session_id) and not result.session_lost,
        repair_turns=result.repair_turns,
        tools=await _tools(client, effect) if effect.attempt else {},
    )


async def _tools(client: Client, effect: pb.Effect) -> dict[str, int]:
    """How often each tool was used, by the transcript; none where there is no transcript."""
    events, used = Events(), dict[str, int]()
    request = pb.StreamOutputRequest(
        effect=pb.EffectName(effect_id=effect.effect_id),
        namespace=client.namespace,
        stream=executor.OUTPUT_STREAM_TRANSCRIPT,
    )
    try:
        async for frame in client.runs.StreamOutput(request):
            for event in events.feed(frame.chunk.data if frame.WhichOneof("frame") == "chunk" else b""):
                if text_of(event, "type") == "tool":
                    name = text_of(event, "name") or "tool"
                    used[name] = used.get(name, 0) + 1
    except grpc.aio.AioRpcError as error:
        if error.code() != grpc.StatusCode.NOT_FOUND:
            raise
    return used


def is_agent(effect: pb.Effect) -> bool:
    """Whether an agent CLI did it."""
    return effect.kind == journal.EFFECT_KIND_AGENT
