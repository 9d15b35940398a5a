"""Why a provider or a CLI did not do the work: from an HTTP status and words for people to a class of failure.

CLIs say the same thing in many words. What decides is, in this order: words that only one class uses, the HTTP status,
words that hint. A reset time is read from the words too, because that is where most CLIs give it.
"""

import re
import time
from datetime import UTC, datetime, timedelta, tzinfo
from typing import Final
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

from executor_service.outcome import Failure

#: Longest pause that is believed: what the journal takes.
RESET_SECONDS_MAX: Final = 30 * 86400.0

_SURE: Final = (
    ("CONTEXT_OVERFLOW", re.compile(
        r"prompt is too long|context[_ ]length|context[_ ]window|maximum context|context_length_exceeded|"
        r"input token count .{0,60}exceeds|too many tokens|exceeds? (?:the )?(?:model'?s )?(?:maximum|context)", re.I)),
    ("QUOTA_EXHAUSTED", re.compile(
        r"insufficient[_ ]quota|exceeded your current quota|usage[_ ]limit|quota (?:exceeded|will reset|exhausted)|"
        r"credit balance|out of credits|billing|hit your limit|(?<!rate[ _])limit reached|daily limit|monthly limit|"
        r"quota_exceeded|TerminalQuota|payment required", re.I)),
    ("OVERLOADED", re.compile(r"overloaded|(?:over|at) capacity|high demand|currently unavailable", re.I)),
    ("AUTHENTICATION", re.compile(
        r"invalid (?:x-)?api[- ]key|incorrect api key|authentication[_ ]error|unauthenticated|unauthorized|"
        r"not logged in|please (?:run )?/?log ?in|invalid authentication|auth method|no api key|token (?:has )?expired|"
        r"missing (?:api )?key|permission_error|not authenticated", re.I)),
    ("RATE_LIMITED", re.compile(r"rate[_ ]limit|too many requests|RESOURCE_EXHAUSTED|slow down", re.I)),
    ("REFUSED", re.compile(
        r"stop_reason\W{1,4}refusal|refused to answer|content[_ ]policy|usage policy|prohibited_content|"
        r"blocked .{0,20}safety", re.I)),
    ("BAD_REQUEST", re.compile(
        r"invalid_request_error|INVALID_ARGUMENT|bad request|model[_ ]not[_ ]found|unknown model|does not exist",
        re.I)),
)  # fmt: skip

_BY_STATUS: Final = {
    400: "BAD_REQUEST", 401: "AUTHENTICATION", 402: "QUOTA_EXHAUSTED", 403: "AUTHENTICATION", 404: "BAD_REQUEST",
    413: "CONTEXT_OVERFLOW", 422: "BAD_REQUEST", 429: "RATE_LIMITED", 500: "HARNESS_ERROR", 502: "OVERLOADED",
    503: "OVERLOADED", 504: "OVERLOADED", 529: "OVERLOADED",
}  # fmt: skip
#: Words that do not overrule a status which says something else.
_SAME_STATUS: Final = {
    "CONTEXT_OVERFLOW": (0, 400, 413, 422, 429, 500), "QUOTA_EXHAUSTED": (0, 400, 402, 403, 429),
    "OVERLOADED": (0, 429, 500, 502, 503, 504, 529), "AUTHENTICATION": (0, 400, 401, 403), "RATE_LIMITED": (0, 429),
    "REFUSED": (0, 400), "BAD_REQUEST": (0, 400, 404, 422),
}  # fmt: skip

_STATUS: Final = re.compile(r"(?:status(?: code)?:?|API Error:?|error:?|HTTP|\(|code\"?:)\s*\"?(4\d\d|5\d\d)\b", re.I)
_EPOCH: Final = re.compile(r"\|(\d{10})\b")
_SPAN: Final = re.compile(
    r"(\d+(?:\.\d+)?)\s*(ms|milliseconds?|s|secs?|seconds?|m|mins?|minutes?|h|hrs?|hours?|d|days?)\b"
)
_SPAN_LEAD: Final = re.compile(
    r"(?:again in|retry (?:in|after)|reset(?:s)? (?:after|in)|retry-after:?|wait|retryDelay\"?:)\s*\"?", re.I
)
_CLOCK: Final = re.compile(
    r"(?:resets?|again at|until)\s+(?:at\s+)?(\d{1,2})(?::(\d\d))?\s*(am|pm)?(?:\s*\(([\w/+-]+)\))?", re.I
)
_UNITS: Final = {"ms": 0.001, "mi": 60.0, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}


def classify(message: str, status: int = 0, default: str = "HARNESS_ERROR") -> str:
    """The class (an EffectReason without prefix) of what a CLI said; `status` 0: it is looked for in the words."""
    status = status or status_in(message)
    for reason, words in _SURE:
        if status in _SAME_STATUS[reason] and words.search(message):
            return reason
    return _BY_STATUS.get(status, default)


def failure(message: str, status: int = 0, *, default: str = "HARNESS_ERROR", now: float | None = None) -> Failure:
    """The failure that a CLI's words describe, with the pause until a reset when they name one."""
    reason = classify(message, status, default)
    pause = reset_in(message, now) if reason in ("QUOTA_EXHAUSTED", "RATE_LIMITED", "OVERLOADED") else None
    return Failure(reason, message.strip()[:2000] or "the harness gave no reason", retry_after_s=pause)


def status_in(message: str) -> int:
    """An HTTP status that the words name; 0: none."""
    found = _STATUS.search(message)
    return int(found[1]) if found else 0


def reset_in(message: str, now: float | None = None) -> float | None:
    """Seconds until the provider takes requests again, as far as the words tell; None: they do not."""
    now = time.time() if now is None else now
    if found := _EPOCH.search(message):
        seconds: float | None = float(found[1]) - now
    elif lead := _SPAN_LEAD.search(message):
        seconds = _span(message[lead.end() : lead.end() + 80])
    else:
        seconds = None
    if seconds is None and (clock := _CLOCK.search(message)):
        seconds = _until_clock(clock, now)
    return None if seconds is None else min(max(0.0, seconds), RESET_SECONDS_MAX)


def _span(words: str) -> float | None:
    """The sum of `3 hours 20 minutes` or `2h3m4s`; what follows other words does not count."""
    total, at, any_found = 0.0, 0, False
    while found := _SPAN.match(words, at) or re.compile(r"(\d+(?:\.\d+)?)(ms|s|m|h|d)").match(words, at):
        total += float(found[1]) * _unit(found[2])
        any_found, at = True, found.end()
        while at < len(words) and (words[at] in " ," or words.startswith("and ", at)):
            at += 4 if words.startswith("and ", at) else 1
    return total if any_found else None


def _unit(name: str) -> float:
    name = name.lower()
    return _UNITS["ms"] if name.startswith(("ms", "milli")) else _UNITS[name[0]]


def _until_clock(found: "re.Match[str]", now: float) -> float | None:
    """Until the next time that a clock shows that, in the time zone that is named or in the machine's."""
    hour, minute, half = int(found[1]), int(found[2] or 0), (found[3] or "").lower()
    if not half and not found[2]:
        return None
    if half:
        hour = hour % 12 + (12 if half == "pm" else 0)
    if hour > 23 or minute > 59:
        return None
    here = datetime.fromtimestamp(now, _zone(found[4] or "")).astimezone(_zone(found[4] or ""))
    there = here.replace(hour=hour, minute=minute, second=0, microsecond=0)
    if there <= here:
        there += timedelta(days=1)
    return there.timestamp() - now


def _zone(name: str) -> tzinfo | None:
    if not name:
        return None
    try:
        return ZoneInfo(name)
    except (ZoneInfoNotFoundError, ValueError):
        return UTC
