"""Judges agents by their own accounts: tokens, budgets, answers, sessions, transcripts, and who worked where."""

import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Final

from tests.crash.chaos.agent_records import Attempt, Effect, Records, by_run
from tests.crash.chaos.agents import NAMES

#: Longest that an agent may go on once its budget is spent: an executor may be frozen, stopped or busy meanwhile.
SPENT_SECONDS: Final = 30.0
#: Fields of each type of event, as `executor_service/transcript.py` has them; beside `t`, `type` and `cut`.
_EVENTS: Final[Mapping[str, frozenset[str]]] = {
    kind: frozenset(fields.split())
    for kind, fields in {
        "session": "harness session_id model version resumed", "prompt": "text", "turn": "turn turns_max",
        "text": "text", "thinking": "text", "tool": "id name input", "tool_result": "id name text error elapsed_s",
        "todos": "done total items", "error": "reason message retry_after_s final", "note": "text",
        "usage": "input_tokens output_tokens cached_input_tokens cache_write_tokens reasoning_tokens cost_usd model "
        "turns",
        "result": "ok text reason message", "exit": "code signal",
    }.items()
}  # fmt: skip


def wrong(records: Records) -> Iterator[str]:
    """What is wrong with agents of runs that have ended."""
    for effect in records.effects.values():
        for problem in _wrong(effect):
            yield f"{effect.name}: {problem}"
    for budget in records.budgets:
        yield from _run_budget(records, budget)


def _wrong(effect: Effect) -> Iterator[str]:
    if effect.row["harness"] not in NAMES:
        for attempt in effect.attempts.values():
            yield from _transcript(attempt)
        return
    for attempt in effect.attempts.values():
        for problem in (*_starts(attempt), *_tokens(attempt), *_transcript(attempt)):
            yield f"attempt {attempt.number}: {problem}"
        yield from (f"shares {entry['shared']} with {entry['with_']}" for entry in attempt.ledger if "shared" in entry)
    yield from _answer(effect)
    yield from _own_budget(effect)


def _starts(attempt: Attempt) -> Iterator[str]:
    """Each attempt starts its agent at most once, and only what was dispatched."""
    if len(attempt.starts) > 1:
        yield f"started {len(attempt.starts)} times"
    if attempt.starts and attempt.dispatched is None:
        yield "started and never dispatched"
    if attempt.starts and attempt.end is not None and attempt.end["data"].get("never_started"):
        yield "started, and the journal says that it never was"


def _tokens(attempt: Attempt) -> Iterator[str]:
    """What is counted is what was handed out: all that was told of what has reported, else no more than that."""
    counted, done, begun = attempt.counted or 0, attempt.tokens("done"), attempt.tokens("begun")
    if attempt.end is None:
        return
    if counted > begun or (attempt.reported and counted < done):
        end = f"{attempt.end['type']} by {attempt.end['writer']}"
        yield f"{counted:.0f} tokens are counted, it told {done} to {begun} ({end})"


def _answer(effect: Effect) -> Iterator[str]:
    """Who has succeeded has answered, and the result is the last answer."""
    ended = effect.ended()
    if ended is None or ended["data"].get("state") != "EFFECT_STATE_SUCCEEDED" or ended["type"] == "EFFECT_REUSED":
        return
    result = ended["data"]["result"]
    given = result.get("value", {}).get("value")
    said = [entry for entry in effect.attempt(ended["attempt"]).ledger if "answer" in entry]
    if not said or said[-1]["answer"] != given or said[-1]["misfit"]:
        yield f"succeeded with {given!r}; it said {said}"
    if result.get("repair_turns", 0) != sum(entry["misfit"] for entry in said):
        yield f"{result.get('repair_turns', 0)} turns are told to have mended {said}"


def _own_budget(effect: Effect) -> Iterator[str]:
    """No attempt starts once the budget is spent, and none goes on for long."""
    if effect.tokens_most is None:
        return
    used = 0.0
    for number in sorted(effect.attempts):
        attempt = effect.attempts[number]
        left = effect.tokens_most - used
        if attempt.starts and left <= 0:
            yield f"attempt {number} started with {used:.0f} used of {effect.tokens_most:.0f}"
        late = _seconds_beyond(attempt.ledger, left)
        if late > SPENT_SECONDS:
            yield f"attempt {number} went on for {late:.1f} s when its budget was spent"
        used += attempt.counted or 0


def _seconds_beyond(ledger: Sequence[Mapping[str, Any]], left: float) -> float:
    spent_at = None
    for entry in ledger:
        left -= sum(entry.get("done", ()))
        if left <= 0 and spent_at is None:
            spent_at = entry["at"]
    return 0.0 if spent_at is None else max(entry["at"] for entry in ledger) - spent_at


def _run_budget(records: Records, budget: Mapping[str, Any]) -> Iterator[str]:
    """The run's budget has counted each attempt once; what starts found room, and so did what it reserved.

    A budget that was raised is judged by its last limit.
    """
    run_id, most = budget["run_id"], budget["tokens"]
    counted = sum(row["input_tokens"] + row["output_tokens"] for row in by_run(records.usage)[run_id])
    if abs(counted - budget["used"]) > 0.5:
        yield f"budget of run {run_id} has counted {budget['used']:.0f}, its attempts used {counted:.0f}"
    attempts = [(e, a) for e in records.of_run(run_id) for a in e.attempts.values() if a.dispatched is not None]
    for effect, attempt in attempts:
        seq = attempt.dispatched["seq"]  # type: ignore[index]  # as chosen above
        used = sum(a.counted or 0 for _, a in attempts if a.end is not None and a.end["seq"] < seq)
        if used >= most:
            yield f"{effect.name}: attempt {attempt.number} was dispatched with {used:.0f} used of {most:.0f}"
        reserved = [_left(e, a) for e, a in attempts if a is not attempt and _open_at(a, seq) and e.tokens_most]
        if reserved and effect.tokens_most and sum(reserved) + _left(effect, attempt) > most - used:
            yield (
                f"{effect.name}: attempt {attempt.number} reserved {_left(effect, attempt):.0f} beside {reserved}, of "
                f"{most - used:.0f}"
            )


def _open_at(attempt: Attempt, seq: int) -> bool:
    """Whether it was open when that row was written."""
    begun, ended = attempt.dispatched, attempt.end
    return begun is not None and begun["seq"] < seq and (ended is None or ended["seq"] > seq)


def _left(effect: Effect, attempt: Attempt) -> float:
    """What the effect's own budget had left for an attempt."""
    before = sum(other.counted or 0 for other in effect.attempts.values() if other.number < attempt.number)
    return max(0.0, (effect.tokens_most or 0.0) - before)


def _transcript(attempt: Attempt) -> Iterator[str]:
    for line in _lines(attempt.transcript):
        try:
            event = json.loads(line)
        except ValueError:
            yield f"its transcript has the line {line!r}"
            continue
        unknown = set(event) - {"t", "type", "cut"} - _EVENTS.get(event.get("type", ""), frozenset())
        if unknown or "t" not in event or event.get("type") not in _EVENTS:
            yield f"its transcript has an event of another schema ({sorted(unknown)}): {event}"


def _lines(chunks: Sequence[tuple[int, bytes]]) -> Iterator[bytes]:
    """The whole lines of what is kept; where a piece is missing, what it cuts in two is left out."""
    kept, at = b"", 0
    for offset, data in chunks:
        if offset != at:
            yield from kept.splitlines()[: kept.count(b"\n")]
            kept = b""
        kept += data if offset == at else data.partition(b"\n")[2]
        at = offset + len(data)
    yield from kept.splitlines()[: kept.count(b"\n")]
