"""How errors look in the journal: RunError messages of failed and parked runs."""

from __future__ import annotations

import asyncio
import traceback
from collections.abc import Iterator
from typing import Any, Final

from scheduler_service.authoring.bounds import FAIL_DATA, bounded
from scheduler_service.authoring.errors import DeterminismError, EffectError, Fail, FanInError, failure_kind
from scheduler_service.authoring.results import SESSION_FIELDS
from scheduler_service.authoring.values import InvalidValue
from scheduler_service.replay.recorded import Divergence

TRACEBACK_BYTES_MAX: Final = 16 * 1024
MESSAGE_CHARACTERS_MAX: Final = 2_000
#: Most entries of a list of details: outcomes of a fan-in, both sides of a divergence.
DETAILS_MAX: Final = 100
#: Most errors of a group that its message tells.
LEAVES_MAX: Final = 5
_CANCELLED_ITSELF: Final = (
    "CancelledError left the process, but nobody asked for the run's cancel: process code awaited a task or a future "
    "that it had cancelled itself; catch it where it is awaited, or wait with asyncio.wait"
)
_OURS: Final = ("scheduler_service/replay/", "scheduler_service/authoring/", "/asyncio/")


class StepBlocked(BaseException):
    """Raised into process code that does not come to rest, by the watchdog. Not an Exception: nobody handles it."""


def run_error(error: BaseException, kind: str = "") -> dict[str, Any]:
    """The RunError of an exception, as proto3 JSON. `kind` defaults to what a failed run's would be."""
    data = {
        "kind": kind or failure_kind(error),
        "message": _clean(_message(error))[:MESSAGE_CHARACTERS_MAX],
        "exception_type": _type_name(error),
        "traceback": _traceback(error),
        "effect_key": getattr(error, "key", "") if isinstance(error, EffectError) else "",
    }
    details, session = _details(error), _session(error)
    return (
        {name: value for name, value in data.items() if value}
        | ({} if details is None else {"data": details})
        | ({"session": session} if session else {})
    )


def _message(error: BaseException) -> str:
    if isinstance(error, BaseExceptionGroup):  # its own words say only how many they are
        leaves = [f"{type(leaf).__name__}: {_message(leaf)}" for leaf in _leaves(error)]
        more = f"; and {len(leaves) - LEAVES_MAX} more" if len(leaves) > LEAVES_MAX else ""
        return f"{_words(error)}: {'; '.join(leaves[:LEAVES_MAX])}{more}"
    if isinstance(error, asyncio.CancelledError):  # a run that was asked to end is cancelled, and has no error
        return _CANCELLED_ITSELF
    return _words(error) or type(error).__name__


def _words(error: BaseException) -> str:
    try:
        return str(error)
    except Exception as problem:  # noqa: BLE001 - the author's __str__ must not stand for the error itself
        return f"{type(error).__name__} (its text cannot be had: {type(problem).__name__})"


def _leaves(error: BaseException) -> Iterator[BaseException]:
    if isinstance(error, BaseExceptionGroup):
        for inner in error.exceptions:
            yield from _leaves(inner)
    else:
        yield error


def _session(error: BaseException) -> dict[str, str]:
    """The harness session of an effect's error, as proto3 JSON: who started the run can carry it on."""
    session = error.session if isinstance(error, EffectError) else None
    return {name: value for name in SESSION_FIELDS if session and (value := getattr(session, name))}


def parked_error(error: BaseException) -> dict[str, Any]:
    """The RunError of what parks a run: an exception of process code, or one that `feed` or `replay` raised."""
    return run_error(error, parked_kind(error))


def parked_kind(error: BaseException) -> str:
    """The RunError.kind of an error that parks a run."""
    if isinstance(error, Divergence):
        return "DIVERGENCE"
    if isinstance(error, StepBlocked):
        return "BLOCKED"
    if isinstance(error, BaseExceptionGroup) and any(parked_kind(e) == "DETERMINISM" for e in error.exceptions):
        return "DETERMINISM"
    return "DETERMINISM" if isinstance(error, DeterminismError) else "EXCEPTION"


def _details(error: BaseException) -> Any:
    if isinstance(error, Divergence):
        return {name: _first(value) if isinstance(value, list) else value for name, value in error.details.items()}
    if isinstance(error, FanInError):
        shown = [{"key": o.key, "ok": o.ok, "reason": o.error.reason if o.error else ""} for o in error.outcomes]
        return _first(shown)
    if isinstance(error, Fail) and error.data is not None:
        try:
            return bounded(error.data, "data", FAIL_DATA)
        except InvalidValue as problem:  # changed since it was checked; the run has failed as the author said
            return {"invalid": str(problem)}
    return None


def _first(items: list[Any]) -> list[Any]:
    more = len(items) - DETAILS_MAX
    return [*items[:DETAILS_MAX], f"and {more} more"] if more > 0 else items


def _type_name(error: BaseException) -> str:
    cls = type(error)
    return cls.__qualname__ if cls.__module__ == "builtins" else f"{cls.__module__}.{cls.__qualname__}"


def _traceback(error: BaseException) -> str:
    shown = traceback.TracebackException.from_exception(error)
    for part in _parts(shown, set()):
        kept = [frame for frame in part.stack if not any(ours in frame.filename for ours in _OURS)]
        part.stack = traceback.StackSummary.from_list(kept)
    text = _clean("".join(shown.format())).encode(errors="replace")
    return text[-TRACEBACK_BYTES_MAX:].decode(errors="ignore")  # its end names the error


def _parts(shown: traceback.TracebackException, seen: set[int]) -> Iterator[traceback.TracebackException]:
    if id(shown) in seen:
        return
    seen.add(id(shown))
    yield shown
    for part in (shown.__cause__, shown.__context__, *(shown.exceptions or ())):
        if part is not None:
            yield from _parts(part, seen)


def _clean(text: str) -> str:
    return text.replace("\x00", "\ufffd").encode(errors="replace").decode()
