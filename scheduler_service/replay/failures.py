"""How errors look in the journal: RunError messages of failed and parked runs."""

from __future__ import annotations

import traceback
from collections.abc import Iterator
from typing import Any, Final

from scheduler_service.authoring.errors import DeterminismError, EffectError, Fail, FanInError, failure_kind
from scheduler_service.authoring.values import InvalidValue, encode
from scheduler_service.replay.recorded import Divergence

TRACEBACK_BYTES_MAX: Final = 16 * 1024
MESSAGE_CHARACTERS_MAX: Final = 2_000
_OURS: Final = ("scheduler_service/replay/", "scheduler_service/authoring/", "/asyncio/")


class StepBlocked(BaseException):
    """Raised into process code that does not come to rest, by the watchdog. Not an Exception: nobody handles it."""


def run_error(error: BaseException, kind: str = "") -> dict[str, Any]:
    """The RunError of an exception, as proto3 JSON. `kind` defaults to what a failed run's would be."""
    data = {
        "kind": kind or failure_kind(error),
        "message": _clean(str(error))[:MESSAGE_CHARACTERS_MAX],
        "exception_type": _type_name(error),
        "traceback": _traceback(error),
        "effect_key": getattr(error, "key", "") if isinstance(error, EffectError) else "",
    }
    details = _details(error)
    return {name: value for name, value in data.items() if value} | ({} if details is None else {"data": details})


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
        return error.details
    if isinstance(error, FanInError):
        return [{"key": o.key, "ok": o.ok, "reason": o.error.reason if o.error else ""} for o in error.outcomes]
    if isinstance(error, Fail) and error.data is not None:
        try:
            return encode(error.data, "data")
        except InvalidValue as problem:  # the run has failed as the author said; its data cannot be kept
            return {"invalid": str(problem)}
    return None


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
