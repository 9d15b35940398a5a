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
from scheduler_service.authoring.options import point_in_time
from scheduler_service.authoring.results import AgentResult, Approval, Settled, ShellResult
from scheduler_service.authoring.schema import schema_of
from scheduler_service.authoring.schema_shape import schema_problems
from scheduler_service.authoring.values import digest, encode
from scheduler_service.authoring.work import Workspace, check_work, refuse

T = TypeVar("T")
T_co = TypeVar("T_co", covariant=True)

NAME_LENGTH_MAX: Final = 128  # bytes, of a name taken from a command


@dataclass(frozen=True, slots=True)
class Effect(Generic[T_co]):
    """One piece of outside work, not asked for yet.

    `kind` is the work field of the EffectSpec (`shell`, `function`, ...), `work` that message as canonical proto3 JSON
    with proto field names, `name` its name for people, `decode` reads a settled effect's result. Raises OptionError for
    what no such effect can be.
    """

    kind: str
    name: str
    work: Mapping[str, Any]
    decode: Callable[[Settled], T_co]

    def __post_init__(self) -> None:
        check_work(self.kind, self.name, self.work)

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
    return PurePath(first).name.encode(errors="replace")[:NAME_LENGTH_MAX].decode(errors="ignore") or "shell"


@overload
def agent(
    harness: str,
    *,
    prompt: str,
    output: type[T],
    cwd: str | os.PathLike[str] = "",
    workspace: Workspace | None = None,
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
    workspace: Workspace | None = None,
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
    workspace: Workspace | None = None,
    model: str = "",
    env: Mapping[str, str] | None = None,
    output_schema: Mapping[str, Any] | None = None,
    options: Mapping[str, Any] | None = None,
    label: str = "",
) -> Effect[Any]:
    """A coding-agent CLI, headless. With `output` the answer is read as that type, else it is an AgentResult.

    `output_schema` is the JSON schema asked of the harness, by default that of `output`; an answer that does not fit
    it fails the attempt with INVALID_RESULT. A schema that is none raises OptionError here. The session to go on with
    is on the AgentResult, on the handle, and on the error of an effect that did not succeed: give it, or the handle, as
    `continue_from=`.

    It works in `cwd`, a directory on the executor, or in a `workspace`: `bb.worktree(repo)`, `bb.copy_of(directory)`,
    `bb.exclusive(directory)`; by default in a fresh directory, removed afterwards.
    """
    if not harness or not prompt:
        raise OptionError("agent: harness and prompt are required")
    if workspace is not None and not isinstance(workspace, Workspace):
        refuse("agent: workspace", "bb.worktree(...), bb.copy_of(...) or bb.exclusive(...)", workspace)
    if workspace is not None and os.fspath(cwd):
        raise OptionError("agent: give either cwd or workspace")
    schema = output_schema or (schema_of(output) if output is not None else None)
    work = {"harness": harness, "prompt": prompt}
    work |= _given(cwd=os.fspath(cwd), model=model, env=env, output_schema=schema, options=options)
    work |= _given(workspace=workspace and workspace.work())
    decoder = results.agent_result if output is None else _decoder(output)
    stored = encode(work, "agent")
    if problems := schema_problems(stored.get("output_schema", {}), "output_schema"):
        raise OptionError("agent: " + "; ".join(f"{path} {problem}" for path, problem in problems))
    return Effect("agent", label or harness, stored, decoder)


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
    work = {"prompt": prompt} | _given(choices=_several(choices), assignees=_several(assignees), data=data)
    return Effect("external", label or "external", encode(work, "external"), _decoder(output))


def _several(names: Sequence[str]) -> list[str]:
    if isinstance(names, str):  # else it would be one name a letter
        refuse("choices and assignees", "a list of names", names)
    return list(names)


def approval(
    prompt: str,
    *,
    choices: Sequence[str] = ("yes", "no"),
    assignees: Sequence[str] = (),
    data: Mapping[str, Any] | None = None,
    label: str = "",
) -> Effect[Approval]:
    """A question to a person, answered by ResolveEffect with one of `choices`."""
    if not choices:
        raise OptionError("approval: choices are empty")
    work = {"prompt": prompt} | _given(choices=_several(choices), assignees=_several(assignees), data=data)
    return Effect("external", label or "approval", encode(work, "approval"), results.approval_result)


def run_effect(process: str, given: Mapping[str, Any], returns: Any = Any) -> Effect[Any]:
    """A child run of `process` with the input object `given`; its result is read as `returns`."""
    if not process:
        raise OptionError("run: the process name is empty")
    return Effect("run", process, encode({"process": process} | _given(input=given), "run"), _decoder(returns))


def timer(fire_at: dt.datetime) -> Effect[None]:
    """An effect that settles at `fire_at` (with a time zone). In a process, `asyncio.sleep` is the simpler way."""
    if not isinstance(fire_at, dt.datetime) or fire_at.tzinfo is None:
        refuse("timer: fire_at", "a datetime with a time zone, such as ctx.now() + ...", fire_at)
    return Effect("timer", "timer", {"fire_at": point_in_time(fire_at, "timer: fire_at")}, lambda _settled: None)
