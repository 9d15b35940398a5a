"""Answers of people to external effects: checked against what was offered before they are sent."""

from __future__ import annotations

import getpass
from dataclasses import dataclass

from google.protobuf import json_format, struct_pb2

from backburner.scheduler.v1 import scheduler_service_pb2 as pb
from scheduler_service.cli.client import CALL_SECONDS, Client
from scheduler_service.cli.errors import UsageProblem
from scheduler_service.cli.names import read_value


@dataclass(frozen=True)
class Answer:
    """An answer. `value` is JSON text; `comment` becomes the value `{"comment": ...}` when there is no other."""

    choice: str | None = None
    value: str | None = None
    fail: str | None = None
    comment: str = ""
    actor: str | None = None

    @property
    def is_given(self) -> bool:
        """True when there is something to send."""
        return bool(self.choice) or self.value is not None or self.fail is not None


async def resolve(client: Client, effect: pb.Effect, answer: Answer) -> pb.Effect:
    """Send the answer; gives the effect as it is then. Raises UsageProblem for one that was not offered."""
    _check(effect, answer)
    request = pb.ResolveEffectRequest(
        effect=pb.EffectName(effect_id=effect.effect_id),
        namespace=client.namespace,
        actor=answer.actor or getpass.getuser(),
    )
    if answer.fail is not None:
        request.failed.message = answer.fail
    else:
        request.succeeded.choice = answer.choice or ""
        _set_value(request.succeeded, answer)
    return (await client.runs.ResolveEffect(request, timeout=CALL_SECONDS)).effect


def _check(effect: pb.Effect, answer: Answer) -> None:
    choices, prompt = list(effect.spec.external.choices), effect.spec.external.prompt
    if not answer.is_given:
        offered = f"--choice {'|'.join(choices)}" if choices else "--value JSON"
        name = f"{effect.run_id}/{effect.key}"
        raise UsageProblem(
            f"no answer given{f' to: {prompt}' if prompt else ''}",
            f"`backburner resolve {name}` with {offered}, or --fail MESSAGE",
        )
    if answer.choice and choices and answer.choice not in choices:
        raise UsageProblem(f"{answer.choice!r} was not offered", f"choose one of {', '.join(choices)}")


def _set_value(success: pb.ExternalSuccess, answer: Answer) -> None:
    if answer.value is not None:
        success.value.CopyFrom(json_format.ParseDict(read_value(answer.value), struct_pb2.Value()))
    elif answer.comment:
        success.value.struct_value.update({"comment": answer.comment})
