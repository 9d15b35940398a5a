"""What functions call while they run: say how far they are, ask whether they shall end, say that they are refused.

    @bb.function
    def index(paths: list[str]) -> int:
        for number, path in enumerate(paths):
            bb.progress(percent=100 * number / len(paths), step=path)
            ...

The attempt is found through a context variable, so that this works in async functions, in their tasks, and in
functions that run in a thread. Outside of an attempt, as in a unit test, the calls do nothing.
"""

from collections.abc import Callable, Mapping
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any

from executor_service.line_protocol import BadReport, Report, clean


@dataclass(slots=True)
class Reporter:
    """The attempt as a function sees it. `report` may be called from any thread."""

    report: Callable[[Report], None]
    ending: bool = False


class Refused(Exception):
    """Who does the work for a function refuses for now. Raise one of its subclasses: the attempt fails with its reason.

    `retry_after` is seconds until another attempt makes sense, as far as that was said: the next attempt waits so long
    instead of the retry policy's pause. An adaptive group halves its limit.
    """

    reason = ""

    def __init__(self, message: str, *, retry_after: float | None = None) -> None:
        super().__init__(message)
        self.retry_after = None if retry_after is None else float(retry_after)


class RateLimited(Refused):
    """Too many requests, or a quota is spent."""

    reason = "RATE_LIMITED"


class Overloaded(Refused):
    """The service is overloaded."""

    reason = "OVERLOADED"


current: ContextVar[Reporter | None] = ContextVar("backburner_attempt", default=None)


def progress(
    *,
    percent: float | None = None,
    step: str | None = None,
    step_index: int | None = None,
    step_count: int | None = None,
    eta_s: float | None = None,
    data: Mapping[str, Any] | None = None,
) -> None:
    """Reports how far the running function is; what is left out stays as it was. Raises ValueError for bad values."""
    given = None if data is None else dict(data)
    _send(Report(percent, step, step_index, step_count, eta_s, data=given))


def usage(
    *,
    input_tokens: float = 0,
    output_tokens: float = 0,
    cached_input_tokens: float = 0,
    cost_usd: float | None = None,
    turns: int = 0,
    model: str = "",
) -> None:
    """Reports what the running function has consumed so far. Raises ValueError for bad values."""
    given = {
        "input_tokens": input_tokens,
        "output_tokens": output_tokens,
        "cached_input_tokens": cached_input_tokens,
        "cost_usd": cost_usd,
        "turns": turns,
        "model": model,
    }
    _send(Report(usage={name: value for name, value in given.items() if value or value == cost_usd is not None}))


def cancelled() -> bool:
    """True when the running function shall end. A function in a thread cannot be interrupted: it asks now and then."""
    reporter = current.get()
    return reporter is not None and reporter.ending


def _send(report: Report) -> None:
    reporter = current.get()
    try:
        cleaned = clean(report)
    except BadReport as error:
        raise ValueError(str(error)) from error
    if reporter is not None:
        reporter.report(cleaned)
