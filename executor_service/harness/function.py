"""The harness of Python functions: async ones on the event loop, blocking ones in a bounded pool of threads."""

import asyncio
import contextlib
import traceback
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any, Final, Protocol

import orjson

from executor_service.assignment import InvalidWork
from executor_service.harness.base import Attempt
from executor_service.harness.threads import Threads
from executor_service.line_protocol import Report
from executor_service.outcome import RESULT_BYTES_MAX, TEXT_BYTES_MAX, Failure, Outcome, storable
from executor_service.reporting import Refused, Reporter, current

#: Calls given up because they ignored their cancellation, that may still hold a thread.
ABANDONED_MAX: Final = 64


class Function(Protocol):
    """What this harness needs of a definition made by `@bb.function`."""

    name: str
    fn: Any
    is_async: bool

    def decode_arguments(self, args: Sequence[Any], kwargs: Mapping[str, Any]) -> tuple[list[Any], dict[str, Any]]:
        """Arguments read by the annotations. Raises TypeError or ValueError."""

    def encode_result(self, value: Any) -> Any:
        """The result as canonical JSON. Raises ValueError."""


class FunctionHarness:
    """Runs Python functions."""

    name = "function"
    version = ""
    pool = "functions"
    end_seconds_max = 0.0  # nothing more can be done about a function that does not end within its grace

    def __init__(self, functions: Mapping[str, Any], slots: int) -> None:
        self._functions: Mapping[str, Function] = functions
        self._threads = Threads(slots + ABANDONED_MAX)

    async def run(self, spec: Mapping[str, Any], attempt: Attempt) -> Outcome:
        """Calls the function and encodes what it returns."""
        function, args, kwargs = self._bind(spec.get("function"))
        attempt.started(0)
        try:
            value = await self._call(function, args, kwargs, attempt)
        except InvalidWork:  # of a function of ours
            raise
        except BaseException as error:
            task = asyncio.current_task()
            if isinstance(error, GeneratorExit) or (task is not None and task.cancelling()):
                raise  # not the function's: this task is being ended
            return _raised(error)
        return _returned(function, value)

    def _bind(self, work: Any) -> tuple[Function, list[Any], dict[str, Any]]:
        name = work.get("function") if isinstance(work, dict) else None
        function = self._functions.get(name or "")
        if function is None:
            raise InvalidWork(f"function {name!r} is not loaded here: start the executor with its --function-module")
        try:
            args, kwargs = function.decode_arguments(work.get("args") or (), work.get("kwargs") or {})
        except (TypeError, ValueError) as error:
            raise InvalidWork(f"the arguments do not fit function {name!r}: {error}") from error
        return function, args, kwargs

    async def _call(self, function: Function, args: list[Any], kwargs: dict[str, Any], attempt: Attempt) -> Any:
        if function.is_async:
            return await _call_async(function, args, kwargs, attempt)
        return await self._call_blocking(function, args, kwargs, attempt)

    async def _call_blocking(
        self, function: Function, args: list[Any], kwargs: dict[str, Any], attempt: Attempt
    ) -> Any:
        loop = asyncio.get_running_loop()
        reporter = Reporter(lambda report: _from_thread(loop, attempt, report))
        token = current.set(reporter)
        try:
            future = self._threads.submit(partial(function.fn, *args, **kwargs))
        finally:
            current.reset(token)
        if future is None:
            raise RuntimeError("functions that ignore their cancellation hold every thread: restart the executor")
        attempt.on_end(partial(setattr, reporter, "ending", True), over=future.done)
        return await future


async def _call_async(function: Function, args: list[Any], kwargs: dict[str, Any], attempt: Attempt) -> Any:
    reporter = Reporter(attempt.report)
    current.set(reporter)  # the context is that of the attempt's own task
    task = asyncio.current_task()
    assert task is not None  # noqa: S101 - a coroutine runs in a task

    def end() -> None:
        reporter.ending = True
        task.cancel()

    attempt.on_end(end)
    try:
        return await function.fn(*args, **kwargs)
    except asyncio.CancelledError:
        if not reporter.ending or task.cancelling() > 1:
            raise  # not ours alone: the executor itself is being cancelled
        return None
    finally:
        if reporter.ending:
            task.uncancel()


def _from_thread(loop: asyncio.AbstractEventLoop, attempt: Attempt, report: Report) -> None:
    with contextlib.suppress(RuntimeError):  # the loop has closed: nobody listens
        loop.call_soon_threadsafe(attempt.report, report)


def _returned(function: Function, value: Any) -> Outcome:
    try:
        encoded = orjson.dumps(function.encode_result(value), option=orjson.OPT_SORT_KEYS)
    except (ValueError, TypeError) as error:
        return Outcome().fail("INVALID_RESULT", f"function {function.name!r}: {error}", final=True)
    if len(encoded) > RESULT_BYTES_MAX:
        message = f"function {function.name!r} returned {len(encoded)} bytes as JSON; at most {RESULT_BYTES_MAX} fit"
        return Outcome().fail("INVALID_RESULT", message, final=True)
    return Outcome(value_json=encoded)


def _raised(error: BaseException) -> Outcome:
    kind = type(error)
    name = kind.__qualname__ if kind.__module__ == "builtins" else f"{kind.__module__}.{kind.__qualname__}"
    message = storable(_text(error), 2048) or name
    outcome = Outcome(exception_type=name, traceback=_traceback(error))
    if isinstance(error, Refused) and error.reason:
        return outcome.fail_as(Failure(error.reason, message, retry_after_s=error.retry_after))
    return outcome.fail("RAISED", f"{kind.__name__}: {message}")


def _text(error: BaseException) -> str:
    try:
        return str(error)
    except Exception:  # noqa: BLE001 - a broken __str__ must not hide that the function raised
        return "(its text cannot be shown)"


def _traceback(error: BaseException) -> str:
    """The traceback from the function's own frames on, its end when it is too long."""
    own = error.__traceback__
    while own is not None and own.tb_frame.f_globals.get("__name__") in (__name__, "executor_service.harness.threads"):
        own = own.tb_next
    lines = traceback.format_exception(type(error), error, own or error.__traceback__, limit=-50)
    return storable("".join(lines), TEXT_BYTES_MAX)
