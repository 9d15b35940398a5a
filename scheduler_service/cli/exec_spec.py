"""What `backburner exec` asks for: a command or a function, as the spec of an effect."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from backburner.journal.v1 import journal_pb2 as journal
from scheduler_service.cli.errors import UsageProblem
from scheduler_service.cli.names import read_labels, read_text, read_value

# All that an executor keeps at most: the output is to be what the command itself would have written.
_OUTPUT_BYTES_MAX: Final = 16 * 1024 * 1024
_NOT_IN_KEYS: Final = re.compile(r"[^A-Za-z0-9._/#:@+-]+")
_KEY_MAX: Final = 200


@dataclass(frozen=True)
class ExecOptions:
    """The options of `exec` that say what to run, as given. Durations are in seconds."""

    argv: Sequence[str] = ()
    command_line: str | None = None
    function: str | None = None
    args: str | None = None
    cwd: str = ""
    env: Sequence[str] = ()
    stdin: str | None = None
    name: str = ""
    background: bool = False
    timeout: float | None = None
    queue_timeout: float | None = None
    silence_timeout: float | None = None
    total_timeout: float | None = None
    retry: int = 1
    priority: int = 0
    labels: Sequence[str] = ()
    executor_labels: Sequence[str] = ()


def effect_spec(options: ExecOptions) -> journal.EffectSpec:
    """The spec. Raises UsageProblem for what does not fit together."""
    if sum((bool(options.argv), options.command_line is not None, options.function is not None)) != 1:
        raise UsageProblem("nothing to run, or more than one thing", "give a command, -c LINE, or --function NAME")
    spec = journal.EffectSpec(
        name=options.name or _name(options), background=options.background, priority=options.priority,
        labels=read_labels(options.labels), executor_labels=read_labels(options.executor_labels),
    )  # fmt: skip
    if options.function is not None:
        spec.function.CopyFrom(_function(options))
    else:
        spec.shell.CopyFrom(_shell(options))
    for field, seconds in (
        ("start_to_close", options.timeout),
        ("schedule_to_start", options.queue_timeout),
        ("silence", options.silence_timeout),
        ("total", options.total_timeout),
    ):
        if seconds is not None:
            getattr(spec.timeouts, field).FromMicroseconds(round(seconds * 1_000_000))
    if options.retry > 1:
        spec.retry.max_attempts = options.retry
    return spec


def default_key(spec: journal.EffectSpec) -> str:
    """The key of an effect that was given none: its name, in the characters of keys."""
    return _NOT_IN_KEYS.sub("-", spec.name)[:_KEY_MAX]


def _name(options: ExecOptions) -> str:
    if options.function is not None:
        return options.function
    return Path(options.argv[0]).name or options.argv[0] if options.argv else "sh"


def _shell(options: ExecOptions) -> journal.ShellWork:
    if options.args is not None:
        raise UsageProblem("--args goes with --function", "arguments of a command follow it")
    work = journal.ShellWork(
        argv=options.argv, command_line=options.command_line or "", env=_environment(options.env), check=True,
        # The executor's folders are not ours: a relative folder is one of this machine.
        cwd=os.path.abspath(options.cwd) if options.cwd else "",  # noqa: PTH100 - no link is to be followed here
        output_bytes_max=_OUTPUT_BYTES_MAX,
    )  # fmt: skip
    if options.stdin is not None:
        work.stdin = read_text(options.stdin)
    return work


def _environment(given: Iterable[str]) -> dict[str, str]:
    variables = {}
    for pair in given:
        name, equals, value = pair.partition("=")
        if not name or (not equals and name not in os.environ):
            raise UsageProblem(
                f"--env {pair}: no such variable here", "give NAME=VALUE, or the name of one that is set"
            )
        variables[name] = value if equals else os.environ[name]
    return variables


def _function(options: ExecOptions) -> journal.FunctionWork:
    if options.cwd or options.env or options.stdin is not None:
        raise UsageProblem("--cwd, --env and --stdin are for commands, not for --function")
    work, given = journal.FunctionWork(function=options.function or ""), _arguments(options.args)
    if isinstance(given, list):
        work.args.SetInParent()
        work.args.extend(given)
    else:
        work.kwargs.update(given)
    return work


def _arguments(source: str | None) -> list[Any] | dict[str, Any]:
    given = read_value(read_text(source)) if source is not None else []
    if not isinstance(given, list | dict):
        raise UsageProblem("--args is neither an array nor an object", "'[1, 2]' or '{\"name\": 1}'")
    return given
