"""The harness of child processes: argv, or a command line run by `/bin/sh -c`."""

from collections.abc import Mapping
from typing import Any

from executor_service.assignment import InvalidWork
from executor_service.harness.base import Attempt
from executor_service.harness.child import END_SECONDS_MAX, ChildEnd, Children, ChildWork, spawn_failed
from executor_service.outcome import Outcome
from executor_service.process_group import SpawnFailed
from executor_service.secret_values import Secrets, secret_values


class ShellHarness:
    """Runs child processes."""

    name = "shell"
    version = ""
    pool = "shell"
    end_seconds_max = END_SECONDS_MAX

    def __init__(self, children: Children, secrets: Secrets) -> None:
        self._children = children
        self._secrets = secrets

    async def run(self, spec: Mapping[str, Any], attempt: Attempt) -> Outcome:
        """Runs the child to its end and everything it started with it."""
        work = spec.get("shell")
        if not isinstance(work, dict) or bool(work.get("argv")) == bool(work.get("command_line")):
            raise InvalidWork("a shell effect needs exactly one of argv and command_line")
        values = await secret_values(self._secrets, work, attempt)
        try:
            end = await self._children.run(_child_work(work, values), attempt)
        except SpawnFailed as error:
            return spawn_failed(error, attempt)
        return _outcome(end, check=bool(work.get("check")))


def _child_work(work: Mapping[str, Any], secrets: Mapping[str, str]) -> ChildWork:
    argv = work.get("argv") or ["/bin/sh", "-c", work["command_line"]]
    size = int(work.get("output_bytes_max") or 0)
    return ChildWork(argv, work.get("cwd") or "", {**(work.get("env") or {}), **secrets}, work.get("stdin"), size)


def _outcome(end: ChildEnd, *, check: bool) -> Outcome:
    outcome = end.outcome()
    outcome.value_json = end.result_json
    if end.status < 0 or (end.status and check):
        if end.failure is not None:
            return outcome.fail_as(end.failure)
        return outcome.fail("KILLED_BY_SIGNAL" if end.status < 0 else "EXITED_NONZERO", end.describe())
    if end.result_error:
        return outcome.fail("INVALID_RESULT", end.result_error, final=True)
    return outcome
