r"""The line protocol: how any child reports progress, usage and a result, in any language, with one line of text.

A report is one JSON object on one line. There are two ways to give it:

- **On stdout or stderr**, as a line that begins with `::backburner ` (two colons, the word, one space):

      echo '::backburner {"percent": 40, "step": "compiling", "step_index": 2, "step_count": 5, "eta_s": 30}'

- **On a pipe of its own**, better because it cannot mix with other output: write to the file whose path is in
  `BACKBURNER_PROGRESS`, or to the descriptor whose number is in `BACKBURNER_PROGRESS_FD` (the same pipe; not every
  shell can redirect to a descriptor above 9). There every line is a report, and the prefix may be left out:

      echo '{"step": "testing", "step_index": 3}' >"$BACKBURNER_PROGRESS"

Fields, all optional; what is not given stays as it was, and fields that are not known are skipped:

    percent       number from 0 to 100 (clamped)
    step          what it does now, at most 500 characters
    step_index    whole number from 1
    step_count    whole number from 1
    eta_s         expected seconds to the end
    tool          of an agent: the tool that it uses now, at most 100 characters; `step` says what with. Empty: none
    turns         of an agent: turns so far
    turns_max     of an agent: most turns it was given; 0: no bound is known
    todos         of an agent: entries of its own to-do list; 0: it keeps none
    todos_done    of an agent: entries of that list that it has done
    data          any JSON object of at most 16 KiB: shown to watchers as it is
    usage         object: input_tokens, output_tokens, cached_input_tokens, cache_write_tokens, reasoning_tokens, turns,
                  model, cost_usd (not given: unknown, which is not 0); totals so far
    result        any JSON value of at most 1 MiB: the structured result of the effect; the last one counts
    failure       object: reason (RATE_LIMITED or OVERLOADED), message, retry_after_s: why the child fails, when it does
                  fail (exits with another code than 0, dies by a signal). The next attempt waits for retry_after_s
                  instead of the retry policy's pause; an adaptive group halves its limit. The last one counts

Rules:

- A line is at most 1 MiB + 4 KiB. A longer one is skipped.
- A line that is no JSON object, or has no known field, or a field of the wrong type, is counted and otherwise ignored:
  a report never fails an attempt. One exception: a `result` that cannot be stored (NUL, an integer beyond 2^53, too
  large) fails the attempt with INVALID_RESULT when the child exits well, because silently losing it would be worse.
- Captured output is byte for byte what the child wrote: reports on stdout and stderr stay in it, good or bad.
- Without a `percent` of its own, work that keeps a to-do list is as far as that is done. Turns give no percentage: a
  bound on them says nothing of how many it takes. Else there is none, and the ETA comes from past attempts.
- Every report counts as a sign of life for the silence timeout.
"""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Final

import orjson

from executor_service.masking import Masks
from executor_service.outcome import RESULT_BYTES_MAX, Failure, replace_unstorable

PREFIX: Final = b"::backburner "
#: Most bytes of a result that is reported by a line.
LINE_RESULT_BYTES_MAX: Final = 1024 * 1024
LINE_BYTES_MAX: Final = LINE_RESULT_BYTES_MAX + 4096
STEP_LENGTH_MAX: Final = 500
TOOL_LENGTH_MAX: Final = 100
DATA_BYTES_MAX: Final = 16 * 1024
INTEGER_MAX: Final = 2**53
DEPTH_MAX: Final = 100
#: Longest pause that a child may ask for: what the journal takes.
RETRY_AFTER_SECONDS_MAX: Final = 30 * 86400.0
#: Reasons that a child may give for its failure: those that are about somebody else than the child.
FAILURE_REASONS: Final = ("RATE_LIMITED", "OVERLOADED")

_COUNTS: Final = (
    "input_tokens", "output_tokens", "cached_input_tokens", "cache_write_tokens", "reasoning_tokens",
)  # fmt: skip
#: What texts are cut of. Data and results are masked as a whole, later.
_CUT: Final = ("step", "tool", "usage", "failure")
#: Of a report, what says how far the work is.
PROGRESS_FIELDS: Final = (
    "percent", "step", "step_index", "step_count", "tool", "turns", "turns_max", "todos", "todos_done", "data",
)  # fmt: skip


@dataclass(slots=True)
class Report:
    """What one line, or one call of `progress()`, says. None: not given."""

    percent: float | None = None
    step: str | None = None
    step_index: int | None = None
    step_count: int | None = None
    eta_s: float | None = None
    tool: str | None = None
    turns: int | None = None
    turns_max: int | None = None
    todos: int | None = None
    todos_done: int | None = None
    data: dict[str, Any] | None = None
    usage: dict[str, Any] | None = None
    #: Canonical JSON of the result.
    result_json: bytes | None = None
    #: Why the result cannot be stored.
    result_error: str = ""
    #: Why the child fails, if it does.
    failure: Failure | None = None
    #: The harness's own id of the session that it works in, and the session's working directory: said by harnesses as
    #: soon as they know, for an attempt that follows to go on with. No line says it.
    session_id: str | None = None
    workspace: str = ""

    @property
    def has_progress(self) -> bool:
        """True when it says how far the work is."""
        return any(getattr(self, name) is not None for name in (*PROGRESS_FIELDS, "eta_s"))

    def mask(self, masks: Masks) -> None:
        """Takes secrets out of what it shows."""
        for name in ("step", "tool", "data"):
            setattr(self, name, masks.json(getattr(self, name)))
        self.usage = masks.message(self.usage)


class BadReport(ValueError):
    """A line that is no report."""


def parse(line: bytes, masks: Masks | None = None) -> Report:
    """Reads the JSON of a report. Of what is cut to its length the secrets are taken out before. Raises BadReport."""
    try:
        fields = orjson.loads(line)
    except orjson.JSONDecodeError as error:
        raise BadReport(f"no JSON: {error}") from error
    if not isinstance(fields, dict):
        raise BadReport("no JSON object")
    if masks:
        fields = {name: _without(masks, value) if name in _CUT else value for name, value in fields.items()}
    report = Report()
    known = [read(report, fields[name]) for name, read in _READERS.items() if name in fields]
    if not known:
        raise BadReport("no known field")
    return report


def _without(masks: Masks, value: Any) -> Any:
    try:
        return masks.message(value)
    except RecursionError as error:
        raise BadReport("nested too deeply") from error


def clean(report: Report) -> Report:
    """Brings values that a program gave into the bounds of the protocol. Raises BadReport."""
    for name in (*PROGRESS_FIELDS, "eta_s", "usage"):
        value = getattr(report, name)
        if value is not None:
            _READERS[name](report, value)
    return report


class LineScanner:
    """Finds reports in chunks of a stream, whatever the chunks' borders; memory is bounded by one line.

    With `prefixed` (stdout, stderr) only lines with the prefix are looked at: the rest is passed over at the speed of
    a search for bytes, so that a flood costs little.
    """

    def __init__(self, on_report: Callable[[Report], None], *, prefixed: bool, masks: Masks | None = None) -> None:
        self._on_report = on_report
        self._masks = masks
        self._prefixed = prefixed
        self._partial = b""
        self._skipping = False
        self.bad_lines = 0

    def feed(self, chunk: bytes) -> None:
        """Takes the next bytes of the stream."""
        if self._skipping:
            end = chunk.find(b"\n")
            if end < 0:
                return
            chunk, self._skipping = chunk[end + 1 :], False
        for line in self._lines(self._partial + chunk if self._partial else chunk):
            self._take(line)

    def close(self) -> None:
        """The stream has ended: what came after the last line break is a line too."""
        last, self._partial = self._partial, b""
        if last and not self._skipping:
            self._take(last)

    def _lines(self, data: bytes) -> Iterator[bytes]:
        start = 0
        while (start := self._candidate(data, start)) >= 0:
            end = data.find(b"\n", start)
            if end < 0:
                break
            yield data[start:end]
            start = end + 1
        self._keep(data[start:] if start >= 0 else b"", passed_over=start < 0 and not data.endswith(b"\n"))

    def _candidate(self, data: bytes, start: int) -> int:
        """Where the next line that matters begins, complete or not; -1: nowhere."""
        if not self._prefixed or _may_begin(data, start):
            return start
        found = data.find(b"\n" + PREFIX, start)
        if found >= 0:
            return found + 1
        last = data.rfind(b"\n", start) + 1
        return last if last > start and _may_begin(data, last) else -1

    def _keep(self, rest: bytes, *, passed_over: bool) -> None:
        if passed_over:
            self._skipping = True  # in the middle of a line that does not matter
        elif len(rest) > LINE_BYTES_MAX:
            self.bad_lines += 1
            self._skipping, rest = True, b""
        self._partial = rest

    def _take(self, line: bytes) -> None:
        line = line.strip()
        if line.startswith(PREFIX.rstrip()):
            line = line[len(PREFIX) - 1 :]
        elif self._prefixed or not line:
            return
        try:
            if len(line) > LINE_BYTES_MAX:
                raise BadReport("too long")
            report = parse(line, self._masks)
        except BadReport:
            self.bad_lines += 1
        else:
            self._on_report(report)


def _may_begin(data: bytes, start: int) -> bool:
    """True when what stands at `start` is the prefix, or as much of it as there is."""
    head = data[start : start + len(PREFIX)]
    return head == PREFIX or PREFIX.startswith(head)


def canonical(value: Any, path: str, depth: int = 0, text: "_ReadText | None" = None) -> Any:
    """A parsed JSON value in the form that is stored: integral floats as ints. Raises ValueError naming the path.

    `text` takes each text; without it one that cannot be stored is an error.
    """
    read = text or _text
    if isinstance(value, dict):
        _deeper(path, depth)
        return {read(key, path): canonical(item, f"{path}.{key}", depth + 1, text) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        _deeper(path, depth)
        return [canonical(item, f"{path}[{index}]", depth + 1, text) for index, item in enumerate(value)]
    if isinstance(value, str):
        return read(value, path)
    if isinstance(value, int) and not -INTEGER_MAX <= value <= INTEGER_MAX:
        raise ValueError(f"{path}: integer {value} is beyond 2^53; use a string")
    if isinstance(value, float):
        return int(value) if value.is_integer() and abs(value) <= INTEGER_MAX else value
    return value


def _deeper(path: str, depth: int) -> None:
    if depth > DEPTH_MAX:
        raise ValueError(f"{path}: nested deeper than {DEPTH_MAX} levels")


def _text(value: str, path: str) -> str:
    if "\x00" in value:
        raise ValueError(f"{path}: text holds a NUL character, which cannot be stored")
    return value


def _replaced(value: Any, path: str) -> str:
    if not isinstance(value, str):
        raise ValueError(f"{path}: {value!r} is no text, as names must be")  # noqa: TRY004 - callers catch ValueError
    return replace_unstorable(value)


_ReadText = Callable[[Any, str], str]


def _number(value: Any, name: str) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise BadReport(f"{name} is no number")
    try:
        number = float(value)
    except OverflowError as error:
        raise BadReport(f"{name} is too large") from error
    if not math.isfinite(number):
        raise BadReport(f"{name} is no number")
    return number


def _whole(value: Any, name: str) -> int:
    number = _number(value, name)
    if not number.is_integer() or not 0 <= number <= 2**31 - 1:
        raise BadReport(f"{name} is no whole number")
    return int(number)


def _read_percent(report: Report, value: Any) -> None:
    report.percent = min(100.0, max(0.0, _number(value, "percent")))


def _read_step(report: Report, value: Any) -> None:
    if not isinstance(value, str):
        raise BadReport("step is no text")
    report.step = replace_unstorable(value[:STEP_LENGTH_MAX])


def _read_tool(report: Report, value: Any) -> None:
    if not isinstance(value, str):
        raise BadReport("tool is no text")
    report.tool = replace_unstorable(value[:TOOL_LENGTH_MAX])


def _read_eta(report: Report, value: Any) -> None:
    report.eta_s = min(max(0.0, _number(value, "eta_s")), 10 * 365 * 86400.0)


def _read_data(report: Report, value: Any) -> None:
    if not isinstance(value, dict):
        raise BadReport("data is no object")
    try:
        encoded = orjson.dumps(canonical(value, "data", text=_replaced))
    except (ValueError, TypeError) as error:
        raise BadReport(str(error)) from error
    if len(encoded) > DATA_BYTES_MAX:
        raise BadReport(f"data has {len(encoded)} bytes, at most {DATA_BYTES_MAX} are kept")
    report.data = orjson.loads(encoded)  # a program may have given what is like JSON, and only its encoder takes


def _read_usage(report: Report, value: Any) -> None:
    if not isinstance(value, dict):
        raise BadReport("usage is no object")
    usage: dict[str, Any] = {name: max(0.0, _number(value[name], name)) for name in _COUNTS if name in value}
    if value.get("cost_usd") is not None:
        usage["cost_usd"] = max(0.0, _number(value["cost_usd"], "cost_usd"))
    if "turns" in value:
        usage["turns"] = _whole(value["turns"], "turns")
    if isinstance(value.get("model"), str):
        usage["model"] = replace_unstorable(value["model"][:STEP_LENGTH_MAX])
    report.usage = usage


def encode_result(value: Any, bytes_max: int = RESULT_BYTES_MAX) -> bytes:
    """A structured result as canonical JSON. Raises ValueError when it cannot be stored."""
    try:
        encoded = orjson.dumps(canonical(value, "result"), option=orjson.OPT_SORT_KEYS)
    except TypeError as error:
        raise ValueError(f"result: {error}") from error
    if len(encoded) > bytes_max:
        raise ValueError(f"result: {len(encoded)} bytes as JSON; at most {bytes_max} can be stored")
    return encoded


def _read_result(report: Report, value: Any) -> None:
    try:
        report.result_json = encode_result(value, LINE_RESULT_BYTES_MAX)
    except ValueError as error:
        report.result_error = str(error)


def _read_failure(report: Report, value: Any) -> None:
    if not isinstance(value, dict) or value.get("reason") not in FAILURE_REASONS:
        raise BadReport(f"failure is no object with one of the reasons {', '.join(FAILURE_REASONS)}")
    said = value.get("message") or ""
    if not isinstance(said, str):
        raise BadReport("the failure's message is no text")
    pause = value.get("retry_after_s")
    if pause is not None:
        pause = min(max(0.0, _number(pause, "retry_after_s")), RETRY_AFTER_SECONDS_MAX)
    message = replace_unstorable(said[:STEP_LENGTH_MAX]) or "the child was refused"
    report.failure = Failure(value["reason"], message, retry_after_s=pause)


def _counter(name: str) -> Callable[[Report, Any], None]:
    def read(report: Report, value: Any) -> None:
        setattr(report, name, _whole(value, name))

    return read


_READERS: Final[dict[str, Callable[[Report, Any], None]]] = {
    "percent": _read_percent,
    "step": _read_step,
    "tool": _read_tool,
    **{name: _counter(name) for name in ("step_index", "step_count", "turns", "turns_max", "todos", "todos_done")},
    "eta_s": _read_eta,
    "data": _read_data,
    "usage": _read_usage,
    "result": _read_result,
    "failure": _read_failure,
}
