"""Specs of effects that clients send: every field checked, then brought into the one form in which specs are stored.

That form is the one in which process code writes them: proto3 JSON with proto field names, numbers canonical, default
values absent. So an equal spec has an equal digest, whoever wrote it in whichever language.
"""

from collections.abc import Callable, Mapping, Sequence
from pathlib import PurePath
from typing import Any, Final

from google.protobuf import json_format
from google.protobuf.message import Message

from backburner.journal.v1 import journal_pb2
from scheduler_service.api import inputs, limits
from scheduler_service.api.budget_checks import check_budget
from scheduler_service.api.checks import Checks
from scheduler_service.authoring.durations import DURATION_SECONDS_MAX
from scheduler_service.authoring.errors import REASONS
from scheduler_service.authoring.options import (
    ATTEMPTS_MAX,
    BACKOFF_MAX,
    FALLBACKS_MAX,
    KILL_GRACE_SECONDS_MAX,
    KINDS_WITHOUT_EXECUTOR,
    OF_EXECUTORS,
    PRIORITY_MAX,
    without_executor,
)
from scheduler_service.authoring.results import SESSION_FIELDS
from scheduler_service.authoring.schema_shape import schema_problems
from scheduler_service.authoring.templates import (
    ATTACHMENTS_MAX,
    SECRETS_MAX,
    secret_problems,
    template_problems,
)
from scheduler_service.authoring.values import canonical_json, digest, encode
from scheduler_service.authoring.work import ITEMS_MAX, OUTPUT_BYTES_MAX, TURNS_MAX, workspace_problems

_SESSION_LOST: Final = ("", "fresh", "fail")
_RETRY_SESSION: Final = ("", "continue", "fresh")

Spec = journal_pb2.EffectSpec


def check_spec(check: Checks, path: str, spec: Spec) -> None:
    """Notes everything that is wrong with a spec; `path` is where it stands in the request."""
    kind = spec.WhichOneof("work")
    check.text(f"{path}.name", spec.name, limits.NAME_BYTES_MAX)
    if kind is None:
        check.refuse(f"{path}.work", f"is required: one of {', '.join(_WORK)}")
    else:
        _WORK[kind](check, f"{path}.{kind}", getattr(spec, kind))
    if spec.HasField("timeouts"):
        _timeouts(check, f"{path}.timeouts", spec.timeouts)
    if spec.HasField("retry"):
        _retry(check, f"{path}.retry", spec.retry)
    if spec.HasField("group"):
        _group(check, f"{path}.group", spec.group)
    _hints(check, path, spec)
    if spec.HasField("budget"):
        check_budget(check, f"{path}.budget", spec.budget)
    if kind in KINDS_WITHOUT_EXECUTOR:
        _no_executor(check, path, kind, spec)


def stored_spec(spec: Spec) -> dict[str, Any]:
    """The spec as it is stored: with a name, canonical. It must have passed `check_spec`."""
    stored: dict[str, Any] = encode(json_format.MessageToDict(spec, preserving_proto_field_name=True), "spec")
    kind = str(spec.WhichOneof("work"))
    return stored | {"name": spec.name or _name(kind, getattr(spec, kind))}


def spec_digest(stored: Mapping[str, Any]) -> str:
    """Digest that a repeated key is checked against: it covers name and work, not the hints."""
    kind = next(kind for kind in _WORK if kind in stored)
    return digest(stored["name"], {kind: stored[kind]})


def check_size(check: Checks, path: str, stored: Mapping[str, Any]) -> None:
    """Notes a spec that is too large."""
    size = len(canonical_json(stored))
    if size > limits.SPEC_BYTES_MAX:
        check.refuse(path, f"is {size} bytes as JSON, more than {limits.SPEC_BYTES_MAX}", too_large=True)
    else:
        inputs.check_sent(check, path, stored)


def _shell(check: Checks, path: str, work: journal_pb2.ShellWork) -> None:
    if bool(work.argv) == bool(work.command_line):
        check.refuse(path, "give either argv or command_line")
    elif (work.argv and not work.argv[0]) or (work.command_line and not work.command_line.strip()):
        check.refuse(path, "names no program")
    for field in ("command_line", "cwd", "stdin"):
        check.text(f"{path}.{field}", getattr(work, field), limits.SPEC_BYTES_MAX)
    for index, argument in enumerate(work.argv):
        check.text(f"{path}.argv[{index}]", argument, limits.SPEC_BYTES_MAX)
    _environment(check, f"{path}.env", work.env)
    _secrets(check, path, work)
    if not 0 <= work.output_bytes_max <= OUTPUT_BYTES_MAX:
        check.refuse(f"{path}.output_bytes_max", f"must be from 0 to {OUTPUT_BYTES_MAX}")


def _function(check: Checks, path: str, work: journal_pb2.FunctionWork) -> None:
    check.required(f"{path}.function", work.function, limits.NAME_BYTES_MAX)
    inputs.json_list(check, work.args, f"{path}.args", limits.SPEC_BYTES_MAX)
    inputs.json_object(check, work.kwargs, f"{path}.kwargs", limits.SPEC_BYTES_MAX)


def _agent(check: Checks, path: str, work: journal_pb2.AgentWork) -> None:
    check.required(f"{path}.harness", work.harness, limits.NAME_BYTES_MAX)
    check.required(f"{path}.prompt", work.prompt, limits.SPEC_BYTES_MAX)
    check.text(f"{path}.cwd", work.cwd, limits.SPEC_BYTES_MAX)
    check.text(f"{path}.model", work.model, limits.NAME_BYTES_MAX)
    _environment(check, f"{path}.env", work.env)
    schema = inputs.json_object(check, work.output_schema, f"{path}.output_schema", limits.SPEC_BYTES_MAX)
    for field, problem in schema_problems(schema or {}, f"{path}.output_schema"):
        check.refuse(field, problem)
    inputs.json_object(check, work.options, f"{path}.options", limits.SPEC_BYTES_MAX)
    inputs.json_object(check, work.mcp_servers, f"{path}.mcp_servers", limits.SPEC_BYTES_MAX)
    check.text(f"{path}.system_prompt", work.system_prompt, limits.SPEC_BYTES_MAX)
    check.enum(f"{path}.permissions", work.permissions, journal_pb2.AgentPermissions)
    if not 0 <= work.max_turns <= TURNS_MAX:
        check.refuse(f"{path}.max_turns", f"must be from 0 to {TURNS_MAX}")
    _prompt(check, path, work)
    _secrets(check, path, work)
    if work.HasField("workspace"):
        if work.cwd:
            check.refuse(f"{path}.cwd", "give either cwd or workspace")
        _workspace(check, f"{path}.workspace", work.workspace)


def _prompt(check: Checks, path: str, work: journal_pb2.AgentWork) -> None:
    """Prompt and system prompt, with the inputs for their places and the files that belong to them."""
    if work.HasField("inputs"):
        given = inputs.json_object(check, work.inputs, f"{path}.inputs", limits.SPEC_BYTES_MAX)
        for field in ("prompt", "system_prompt"):
            for problem in template_problems(getattr(work, field), given or {}):
                check.refuse(f"{path}.{field}", problem)
    check.at_most(f"{path}.attachments", work.attachments, ATTACHMENTS_MAX)
    for index, attachment in enumerate(work.attachments[:ATTACHMENTS_MAX]):
        check.text(f"{path}.attachments[{index}].name", attachment.name, limits.NAME_BYTES_MAX)
        check.required(f"{path}.attachments[{index}].path", attachment.path, limits.SPEC_BYTES_MAX)


def _secrets(check: Checks, path: str, work: journal_pb2.ShellWork | journal_pb2.AgentWork) -> None:
    _environment(check, f"{path}.secrets", work.secrets)
    check.at_most(f"{path}.secrets", work.secrets, SECRETS_MAX)
    for variable, problem in secret_problems(work.secrets, work.env):
        check.refuse(f"{path}.secrets[{variable!r}]", problem)


def _workspace(check: Checks, path: str, work: journal_pb2.Workspace) -> None:
    check.enum(f"{path}.kind", work.kind, journal_pb2.WorkspaceKind)
    check.enum(f"{path}.keep", work.keep, journal_pb2.WorkspaceKeep)
    check.required(f"{path}.source", work.source, limits.SPEC_BYTES_MAX)
    check.text(f"{path}.base", work.base, limits.NAME_BYTES_MAX)
    known = work.kind in journal_pb2.WorkspaceKind.values()
    kind = journal_pb2.WorkspaceKind.Name(work.kind).removeprefix("WORKSPACE_KIND_") if known else ""
    for field, problem in workspace_problems(kind, work.source, work.base).items():
        if work.source or field != "source":
            check.refuse(f"{path}.{field}", problem)


def _external(check: Checks, path: str, work: journal_pb2.ExternalWork) -> None:
    check.text(f"{path}.prompt", work.prompt, limits.SPEC_BYTES_MAX)
    for field, values in (("choices", work.choices), ("assignees", work.assignees)):
        check.at_most(f"{path}.{field}", values, ITEMS_MAX)
        for index, value in enumerate(values[:ITEMS_MAX]):
            check.required(f"{path}.{field}[{index}]", value, limits.NAME_BYTES_MAX)
    if len(set(work.choices)) < len(work.choices):
        check.refuse(f"{path}.choices", "are not distinct")
    inputs.json_object(check, work.data, f"{path}.data", limits.SPEC_BYTES_MAX)


def _run(check: Checks, path: str, work: journal_pb2.RunWork) -> None:
    check.required(f"{path}.process", work.process, limits.NAME_BYTES_MAX)
    inputs.json_object(check, work.input, f"{path}.input", limits.INPUT_BYTES_MAX)


def _timer(check: Checks, path: str, work: journal_pb2.TimerWork) -> None:
    if not work.HasField("fire_at"):
        check.refuse(f"{path}.fire_at", "is required")
    else:
        check.time(f"{path}.fire_at", work.fire_at)


_WORK: Final[Mapping[str, Callable[[Checks, str, Any], None]]] = {
    "shell": _shell, "function": _function, "agent": _agent, "external": _external, "run": _run, "timer": _timer,
}  # fmt: skip


def _environment(check: Checks, path: str, env: Mapping[str, str]) -> None:
    for name, value in env.items():
        if not name or "=" in name or "\x00" in name:
            check.refuse(f"{path}[{name!r}]", "is no name of a variable")
        check.text(f"{path}[{name!r}]", value, limits.SPEC_BYTES_MAX)


def _timeouts(check: Checks, path: str, timeouts: journal_pb2.Timeouts) -> None:
    for field in ("schedule_to_start", "start_to_close", "silence", "total"):
        _duration(check, path, timeouts, field)
    _duration(check, path, timeouts, "kill_grace", zero=True, seconds_max=KILL_GRACE_SECONDS_MAX)


def _duration(
    check: Checks,
    path: str,
    message: Message,
    field: str,
    *,
    zero: bool = False,
    seconds_max: float = DURATION_SECONDS_MAX,
) -> None:
    if not message.HasField(field):
        return
    before = len(check.violations)
    seconds = check.seconds(f"{path}.{field}", getattr(message, field), seconds_max)
    if seconds == 0 and not zero and len(check.violations) == before:
        check.refuse(f"{path}.{field}", "must not be 0: leave it out for no bound")


def _retry(check: Checks, path: str, retry: journal_pb2.RetryPolicy) -> None:
    if not 0 <= retry.max_attempts <= ATTEMPTS_MAX:
        check.refuse(f"{path}.max_attempts", f"must be from 0 to {ATTEMPTS_MAX}")
    if retry.backoff and not 1 <= retry.backoff <= BACKOFF_MAX:
        check.refuse(f"{path}.backoff", f"must be a factor from 1 to {BACKOFF_MAX:g}")
    _duration(check, path, retry, "initial", zero=True)
    _duration(check, path, retry, "max_interval")
    for index, reason in enumerate(retry.non_retryable):
        if reason not in REASONS:
            check.refuse(f"{path}.non_retryable[{index}]", "is no EffectReason, without its prefix")


def _group(check: Checks, path: str, group: journal_pb2.Group) -> None:
    check.required(f"{path}.id", group.id, limits.KEY_BYTES_MAX)
    check.not_negative(f"{path}.max_concurrency", group.max_concurrency)
    check.enum(f"{path}.strategy", group.strategy, journal_pb2.GroupStrategy)
    if group.strategy == journal_pb2.GROUP_STRATEGY_ADAPTIVE and not group.max_concurrency:
        check.refuse(f"{path}.max_concurrency", "is required: an adaptive group starts at it")


def _hints(check: Checks, path: str, spec: Spec) -> None:
    if abs(spec.priority) > PRIORITY_MAX:
        check.refuse(f"{path}.priority", f"must be from -{PRIORITY_MAX} to {PRIORITY_MAX}")
    if spec.HasField("sleep_until"):
        check.time(f"{path}.sleep_until", spec.sleep_until)
    _fallbacks(check, f"{path}.fallbacks", spec.fallbacks)
    check.enum(f"{path}.on_quota", spec.on_quota, journal_pb2.OnQuota)
    check.labels(f"{path}.labels", spec.labels)
    check.labels(f"{path}.executor_labels", spec.executor_labels)
    check.enum(f"{path}.on_run_end", spec.on_run_end, journal_pb2.OnRunEnd)
    _duration(check, path, spec, "poll_interval")
    check.optional_uuid(f"{path}.continue_from", spec.continue_from)
    for field in SESSION_FIELDS:
        check.text(f"{path}.continue_session.{field}", getattr(spec.continue_session, field), limits.SPEC_BYTES_MAX)
    if spec.if_session_lost not in _SESSION_LOST:
        check.refuse(f"{path}.if_session_lost", "must be fresh or fail")
    if spec.retry_session not in _RETRY_SESSION:
        check.refuse(f"{path}.retry_session", "must be continue or fresh")


def _no_executor(check: Checks, path: str, kind: str, spec: Spec) -> None:
    given = {field.name for field, _ in spec.ListFields()}
    given |= {f"timeouts.{field.name}" for field, _ in spec.timeouts.ListFields()}
    for field in OF_EXECUTORS:
        if field in given:
            check.refuse(f"{path}.{field}", f"is {without_executor(kind)}")


def _fallbacks(check: Checks, path: str, harnesses: Sequence[str]) -> None:
    check.at_most(path, harnesses, FALLBACKS_MAX)
    for index, harness in enumerate(harnesses[:FALLBACKS_MAX]):
        check.required(f"{path}[{index}]", harness, limits.NAME_BYTES_MAX)


def _name(kind: str, work: Any) -> str:
    """The name of an effect that was given none, as process code names it."""
    match kind:
        case "shell":
            first = work.argv[0] if work.argv else work.command_line.split(maxsplit=1)[0].strip("'\"")
            return PurePath(first).name[:128] or kind
        case "function" | "agent":
            return str(work.function if kind == "function" else work.harness)
        case "run":
            return str(work.process)
        case _:
            return kind
