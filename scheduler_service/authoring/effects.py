"""Effects: values that say what is wanted. Building one runs nothing; `ctx.run` and `ctx.start` ask for it."""

from __future__ import annotations

import datetime as dt
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import PurePath
from typing import Any, Final, Generic, TypeVar, overload

from scheduler_service.authoring import results
from scheduler_service.authoring.decoding import decode
from scheduler_service.authoring.errors import OptionError
from scheduler_service.authoring.options import timestamp
from scheduler_service.authoring.results import AgentResult, Approval, Settled, ShellResult
from scheduler_service.authoring.values import digest, encode

T = TypeVar("T")
T_co = TypeVar("T_co", covariant=True)

NAME_LENGTH_MAX: Final = 128


@dataclass(frozen=True, slots=True)
class Effect(Generic[T_co]):
    """One piece of outside work, not asked for yet.

    `kind` is the work field of the EffectSpec (`shell`, `function`, ...), `work` that message as canonical proto3 JSON
    with proto field names, `name` its name for people, `decode` reads a settled effect's result.
    """

    kind: str
    name: str
    work: Mapping[str, Any]
    decode: Callable[[Settled], T_co]

    @property
    def digest(self) -> str:
        """SHA-256 over name and work; a key that comes back with another digest is a divergence."""
        return digest(self.name, {self.kind: self.work})


def shell(
    cmd: str | Sequence[str],
    *,
    cwd: str | os.PathLike[str] = "",
    env: Mapping[str, str] | None = None,
    stdin: str | None = None,
    check: bool = True,
    output_bytes_max: int = 0,
    label: str = "",
) -> Effect[ShellResult]:
    """A child process on an executor: a list is run as argv, text by `/bin/sh -c`.

    With `check` (the default) a non-zero exit raises EffectFailed, else it is a result with that exit code. `cwd` is
    a directory on the executor (default: a fresh one), `env` is set on top of the executor's allow-list, `label` is the
    name shown to people. Raises OptionError for an empty command.
    """
    work: dict[str, Any] = (
        {"command_line": cmd} if isinstance(cmd, str) else {"argv": [os.fspath(part) for part in cmd]}
    )
    if not cmd or (isinstance(cmd, str) and not cmd.strip()):
        raise OptionError("shell: the command is empty")
    work |= _given(cwd=os.fspath(cwd), env=dict(env or {}), check=check, output_bytes_max=output_bytes_max)
    if stdin is not None:
        work["stdin"] = stdin  # optional in the proto: an empty text is not the same as none
    return Effect("shell", label or _command_name(cmd), encode(work, "shell"), results.shell_result)


def _given(**fields: Any) -> dict[str, Any]:
    # proto3 JSON leaves default values out, and the digest must not depend on who wrote the spec.
    return {name: value for name, value in fields.items() if value}


def _command_name(cmd: str | Sequence[str]) -> str:
    # Not shlex: it takes time quadratic in the length of a word, and a here-document may be a megabyte.
    first = cmd.split(maxsplit=1)[0].strip("'\"") if isinstance(cmd, str) else os.fspath(cmd[0])
    return PurePath(first).name[:NAME_LENGTH_MAX] or "shell"


@overload
def agent(
    harness: str,
    *,
    prompt: str,
    output: type[T],
    cwd: str | os.PathLike[str] = "",
    model: str = "",
    env: Mapping[str, str] | None = None,
    output_schema: Mapping[str, Any] | None = None,
    options: Mapping[str, Any] | None = None,
    label: str = "",
) -> Effect[T]: ...
@overload
def agent(
    harness: str,
    *,
    prompt: str,
    cwd: str | os.PathLike[str] = "",
    model: str = "",
    env: Mapping[str, str] | None = None,
    output_schema: Mapping[str, Any] | None = None,
    options: Mapping[str, Any] | None = None,
    label: str = "",
) -> Effect[AgentResult]: ...
def agent(
    harness: str,
    *,
    prompt: str,
    output: Any = None,
    cwd: str | os.PathLike[str] = "",
    model: str = "",
    env: Mapping[str, str] | None = None,
    output_schema: Mapping[str, Any] | None = None,
    options: Mapping[str, Any] | None = None,
    label: str = "",
) -> Effect[Any]:
    """A coding-agent CLI, headless. With `output` the answer is read as that type, else it is an AgentResult.

    `output_schema` is the JSON schema asked of the harness; for `output` classes that have a `model_json_schema`
    (pydantic) it is taken from there.
    """
    if not harness or not prompt:
        raise OptionError("agent: harness and prompt are required")
    schema = output_schema or (output.model_json_schema() if hasattr(output, "model_json_schema") else None)
    work = {"harness": harness, "prompt": prompt}
    work |= _given(cwd=os.fspath(cwd), model=model, env=env, output_schema=schema, options=options)
    decoder = results.agent_result if output is None else _decoder(output)
    return Effect("agent", label or harness, encode(work, "agent"), decoder)


def _decoder(annotation: Any) -> Callable[[Settled], Any]:
    return lambda settled: decode(settled.value, annotation, "result")


def function_effect(name: str, args: Sequence[Any], kwargs: Mapping[str, Any], returns: Any = Any) -> Effect[Any]:
    """A call of a Python function that an executor has loaded under `name`; its result is read as `returns`."""
    if not name:
        raise OptionError("function: the name is empty")
    work = {"function": name} | _given(args=list(args), kwargs=dict(kwargs))
    return Effect("function", name, encode(work, "function"), _decoder(returns))


def external(
    prompt: str,
    *,
    choices: Sequence[str] = (),
    assignees: Sequence[str] = (),
    data: Mapping[str, Any] | None = None,
    output: Any = Any,
    label: str = "",
) -> Effect[Any]:
    """Work outside the system, settled by ResolveEffect; its value is read as `output`."""
    work = {"prompt": prompt} | _given(choices=list(choices), assignees=list(assignees), data=data)
    return Effect("external", label or "external", encode(work, "external"), _decoder(output))


def approval(
    prompt: str,
    *,
    choices: Sequence[str] = ("yes", "no"),
    assignees: Sequence[str] = (),
    data: Mapping[str, Any] | None = None,
    label: str = "",
) -> Effect[Approval]:
    """A question to a person, answered by ResolveEffect with one of `choices`."""
    if len(set(choices)) != len(choices) or not choices:
        raise OptionError(f"approval: choices={list(choices)!r} are empty or not distinct")
    work = {"prompt": prompt} | _given(choices=list(choices), assignees=list(assignees), data=data)
    return Effect("external", label or "approval", encode(work, "approval"), results.approval_result)


def run_effect(process: str, given: Mapping[str, Any], returns: Any = Any) -> Effect[Any]:
    """A child run of `process` with the input object `given`; its result is read as `returns`."""
    if not process:
        raise OptionError("run: the process name is empty")
    return Effect("run", process, encode({"process": process} | _given(input=given), "run"), _decoder(returns))


def timer(fire_at: dt.datetime) -> Effect[None]:
    """An effect that settles at `fire_at` (with a time zone). In a process, `asyncio.sleep` is the simpler way."""
    if fire_at.tzinfo is None:
        raise OptionError(f"timer: fire_at={fire_at!r} has no time zone; use ctx.now() + ...")
    return Effect("timer", "timer", {"fire_at": timestamp(fire_at)}, lambda _settled: None)
