"""Effects: values that say what is wanted. Building one runs nothing; `ctx.run` and `ctx.start` ask for it."""

from __future__ import annotations

import datetime as dt
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import PurePath
from typing import Any, Final, Generic, TypeVar

from scheduler_service.authoring import results
from scheduler_service.authoring.decoding import decode
from scheduler_service.authoring.errors import OptionError
from scheduler_service.authoring.options import point_in_time
from scheduler_service.authoring.results import Approval, Settled, ShellResult
from scheduler_service.authoring.values import digest, encode
from scheduler_service.authoring.work import check_work, refuse

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
    secrets: Mapping[str, str] | None = None,
    label: str = "",
) -> Effect[ShellResult]:
    """A child process on an executor: a list is run as argv, text by `/bin/sh -c`.

    With `check` (the default) a non-zero exit raises EffectFailed, else it is a result with that exit code. `cwd` is
    a directory on the executor (default: a fresh one), `env` is set on top of the executor's allow-list, `label` is the
    name shown to people. `secrets` gives the child variables with the values of secrets of the executor, by their
    names; what it says has them masked. Raises OptionError for an empty command.
    """
    work: dict[str, Any] = (
        {"command_line": cmd} if isinstance(cmd, str) else {"argv": [os.fspath(part) for part in cmd]}
    )
    if not cmd or (isinstance(cmd, str) and not cmd.strip()):
        raise OptionError("shell: the command is empty")
    work |= set_fields(cwd=os.fspath(cwd), env=dict(env or {}), check=check, output_bytes_max=output_bytes_max)
    work |= set_fields(secrets=dict(secrets or {}))
    if stdin is not None:
        work["stdin"] = stdin  # optional in the proto: an empty text is not the same as none
    return Effect("shell", label or _command_name(cmd), encode(work, "shell"), results.shell_result)


def set_fields(**fields: Any) -> dict[str, Any]:
    """The fields that are set."""
    # proto3 JSON leaves default values out, and the digest must not depend on who wrote the spec.
    return {name: value for name, value in fields.items() if value}


def _command_name(cmd: str | Sequence[str]) -> str:
    # Not shlex: it takes time quadratic in the length of a word, and a here-document may be a megabyte.
    first = cmd.split(maxsplit=1)[0].strip("'\"") if isinstance(cmd, str) else os.fspath(cmd[0])
    return PurePath(first).name.encode(errors="replace")[:NAME_LENGTH_MAX].decode(errors="ignore") or "shell"


def decoder_of(annotation: Any) -> Callable[[Settled], Any]:
    """Reads the value of a settled effect as this type."""
    return lambda settled: decode(settled.value, annotation, "result")


def function_effect(name: str, args: Sequence[Any], kwargs: Mapping[str, Any], returns: Any = Any) -> Effect[Any]:
    """A call of a Python function that an executor has loaded under `name`; its result is read as `returns`."""
    if not name:
        raise OptionError("function: the name is empty")
    work = {"function": name} | set_fields(args=list(args), kwargs=dict(kwargs))
    return Effect("function", name, encode(work, "function"), decoder_of(returns))


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
    work = {"prompt": prompt} | set_fields(choices=_several(choices), assignees=_several(assignees), data=data)
    return Effect("external", label or "external", encode(work, "external"), decoder_of(output))


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
    work = {"prompt": prompt} | set_fields(choices=_several(choices), assignees=_several(assignees), data=data)
    return Effect("external", label or "approval", encode(work, "approval"), results.approval_result)


def run_effect(process: str, given: Mapping[str, Any], returns: Any = Any) -> Effect[Any]:
    """A child run of `process` with the input object `given`; its result is read as `returns`."""
    if not process:
        raise OptionError("run: the process name is empty")
    return Effect("run", process, encode({"process": process} | set_fields(input=given), "run"), decoder_of(returns))


def timer(fire_at: dt.datetime) -> Effect[None]:
    """An effect that settles at `fire_at` (with a time zone). In a process, `asyncio.sleep` is the simpler way."""
    if not isinstance(fire_at, dt.datetime) or fire_at.tzinfo is None:
        refuse("timer: fire_at", "a datetime with a time zone, such as ctx.now() + ...", fire_at)
    return Effect("timer", "timer", {"fire_at": point_in_time(fire_at, "timer: fire_at")}, lambda _settled: None)
