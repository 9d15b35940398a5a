"""What holds for every journal at every moment, as rules that name what breaks them. Pure.

The rows are judged by themselves, and the projections against the rows: the state tables of `replay/states.py` are
folded over the journal, so that three statements of the same facts (tables in code, functions in SQL, stored rows)
cannot drift apart unnoticed.
"""

from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, NamedTuple

from scheduler_service.journal.verify import groups, times
from scheduler_service.replay.events import COMMAND_TYPES
from scheduler_service.replay.states import (
    EFFECT_TRANSITIONS,
    RUN_TERMINAL,
    RUN_TRANSITIONS,
    EffectState,
    IllegalTransition,
    RunState,
    apply,
    first_state,
    trigger,
)

Row = Mapping[str, Any]

SETTLING: Final = ("EFFECT_RESOLVED", "EFFECT_CANCELLED", "EFFECT_REUSED")
ENDING: Final = tuple(f"RUN_{state}" for state in RunState if state in RUN_TERMINAL)
_OVER: Final = ("EFFECT_ATTEMPT_FAILED", "EFFECT_ATTEMPT_LOST", "EFFECT_PARKED", *SETTLING)
_OF_ATTEMPT: Final = (
    "EFFECT_STARTED", "EFFECT_PROGRESS", "EFFECT_ATTEMPT_FAILED", "EFFECT_ATTEMPT_LOST", "EFFECT_PARKED",
)  # fmt: skip
#: What waits in the queue for its dispatch.
_WAITING: Final = ("QUEUED", "PARKED")


class Violation(NamedTuple):
    """One broken rule. `seq` 0: it is about a projection, not about one row; `key`: the effect's, or empty."""

    run_id: str
    rule: str
    key: str
    seq: int
    message: str


@dataclass(frozen=True)
class Recorded:
    """All that is stored of one run: its journal in order, and the projections. Rows as they lie in the tables."""

    run_id: str
    journal: Sequence[Row]
    effects: Sequence[Row]
    head: Row
    run: Row
    queued: frozenset[Any] = frozenset()
    timers: frozenset[int] = frozenset()
    groups: Sequence[Row] = ()
    #: Blobs that are not as the rows say, each with its problem.
    blobs: Sequence[Row] = ()
    usage: Sequence[Row] = ()
    by_effect: Mapping[Any, list[Row]] = field(init=False)

    def __post_init__(self) -> None:
        rows = defaultdict(list)
        for row in self.journal:
            if row["effect_id"] is not None:
                rows[row["effect_id"]].append(row)
        object.__setattr__(self, "by_effect", rows)


#: What a rule yields: key of the effect, seq, what is wrong.
Found = Iterator[tuple[str, int, str]]


def _dense(run: Recorded) -> Found:
    for place, row in enumerate(run.journal, 1):
        if row["seq"] != place:
            yield "", row["seq"], f"seq {row['seq']} stands where {place} belongs"
            return


def _time(run: Recorded) -> Found:
    for before, row in zip(run.journal, run.journal[1:], strict=False):
        if row["recorded_at"] < before["recorded_at"]:
            yield "", row["seq"], f"recorded at {row['recorded_at']}, after a row of {before['recorded_at']}"


def _created_first(run: Recorded) -> Found:
    for row in run.journal:
        if (row["type"] == "RUN_CREATED") != (row["seq"] == 1):
            yield "", row["seq"], f"a journal does not have {row['type']} at {row['seq']}"


def _ends_once(run: Recorded) -> Found:
    ended = 0
    for row in run.journal:
        if ended and not row["type"].startswith("EFFECT_"):
            yield "", row["seq"], f"{row['type']} after the run's end at {ended}"
        if row["type"] in ENDING:
            ended = row["seq"]


def _cause(run: Recorded) -> Found:
    for row in run.journal:
        if not 0 <= row["cause"] < row["seq"]:
            yield row["effect_key"] or "", row["seq"], f"caused by {row['cause']}, which does not come before it"


def _causes_forward(run: Recorded) -> Found:
    """Process code is fed in order, by one owner at a time: what it asked for never answers an earlier row."""
    last = 0
    for row in run.journal:
        if row["type"] not in COMMAND_TYPES or not row["cause"]:
            continue
        if row["cause"] < last:
            yield row["effect_key"] or "", row["seq"], f"answers {row['cause']}, after one that answers {last}"
        last = row["cause"]


def _requested_first(run: Recorded) -> Found:
    for rows in run.by_effect.values():
        if rows[0]["type"] != "EFFECT_REQUESTED":
            yield rows[0]["effect_key"], rows[0]["seq"], f"begins with {rows[0]['type']}"


def _settles_once(run: Recorded) -> Found:
    for rows in run.by_effect.values():
        settled = [row["seq"] for row in rows if row["type"] in SETTLING]
        if len(settled) > 1:
            yield rows[0]["effect_key"], settled[1], f"settled at {settled}"


def _numbered(run: Recorded) -> Found:
    for rows in run.by_effect.values():
        numbers = [row["attempt"] for row in rows if row["type"] == "EFFECT_DISPATCHED"]
        if numbers != list(range(1, len(numbers) + 1)):
            yield rows[0]["effect_key"], rows[0]["seq"], f"attempts are dispatched as {numbers}"


def _dispatched_before(run: Recorded) -> Found:
    """Nothing of an attempt before its dispatch, and no dispatch while the attempt before may still run."""
    for rows in run.by_effect.values():
        live = known = 0
        for row in rows:
            number = row["attempt"]
            if row["type"] == "EFFECT_DISPATCHED":
                if live:
                    yield row["effect_key"], row["seq"], f"attempt {number} is dispatched while {live} may run"
                live = known = number
            elif row["type"] in _OF_ATTEMPT and number > known:
                yield row["effect_key"], row["seq"], f"{row['type']} of attempt {number}, which was not dispatched"
            if row["type"] in _OVER:
                live = 0


def _bounded_starts(run: Recorded) -> Found:
    for effect in run.effects:
        starts, most = 0, max(effect["max_attempts"], 0)
        for row in run.by_effect.get(effect["effect_id"], []):
            starts = _starts_after(row, starts)
            if row["type"] == "EFFECT_PARKED" and not row["data"].get(
                "due"
            ):  # for a budget: a raise lets one more start
                most = max(most, starts + 1)
            if starts > most:
                told = f"started {starts} times, at most {effect['max_attempts']} were asked for"
                yield effect["key"], row["seq"], told


def _starts_after(row: Row, starts: int) -> int:
    """Starts of a harness that count. What was refused before anything was done does not; a fallback begins anew."""
    if row["type"] == "EFFECT_DISPATCHED":
        return starts + 1
    if row["data"].get("next_harness"):
        return 0
    return starts - bool(row["data"].get("never_started") or row["data"].get("untouched"))


def _effect_states(run: Recorded) -> Found:
    """Each row may follow the one before it, and the projection says where they lead."""
    for effect in run.effects:
        rows = run.by_effect.get(effect["effect_id"], [])
        if not rows or rows[0]["type"] != "EFFECT_REQUESTED":
            yield effect["key"], 0, "has no request in the journal"
            continue
        try:
            state = _fold_effect(rows)
        except IllegalTransition as error:
            yield effect["key"], error.seq, str(error)
            continue
        settled = next((row["seq"] for row in rows if row["type"] in SETTLING), None)
        attempt = max((row["attempt"] for row in rows if row["type"] == "EFFECT_DISPATCHED"), default=0)
        said = (effect["state"], effect["settled_seq"], effect["attempt"], effect["requested_seq"])
        if said != (state, settled, attempt, rows[0]["seq"]):
            told = (str(state), settled, attempt, rows[0]["seq"])
            yield effect["key"], 0, f"(state, settled, attempt, requested) is {said}; the journal says {told}"


def _fold_effect(rows: Sequence[Row]) -> EffectState:
    state = first_state(rows[0]["data"]["spec"])
    for row in rows[1:]:
        name = trigger(row["type"], row["data"])
        state = apply(EFFECT_TRANSITIONS, state, name, subject=row["effect_key"] or "", seq=row["seq"])
    return state


def _projected(run: Recorded) -> Found:
    known = {effect["effect_id"] for effect in run.effects}
    for effect_id, rows in run.by_effect.items():
        if effect_id not in known:
            yield rows[0]["effect_key"], rows[0]["seq"], "is in the journal and not among the effects"


def _queue(run: Recorded) -> Found:
    """What waits for a slot is in the queue, or nobody would ever send it; what does not wait is not."""
    for effect in run.effects:
        waits = effect["state"] in _WAITING and (run.head["open"] or effect["on_run_end"] == "DETACH")
        if waits and effect["effect_id"] not in run.queued:
            yield effect["key"], 0, f"is {effect['state']} and not in the queue: nobody will send it"
        if effect["effect_id"] in run.queued and effect["state"] not in _WAITING:
            yield effect["key"], 0, f"is {effect['state']} and still in the queue"


def _timers(run: Recorded) -> Found:
    if not run.head["open"]:
        return
    ordinals = dict.fromkeys(("TIMER_SET", "TIMER_FIRED"), frozenset[int]())
    for type_ in ordinals:
        ordinals[type_] = frozenset(int(row["data"]["ordinal"]) for row in run.journal if row["type"] == type_)
    for ordinal in sorted((ordinals["TIMER_SET"] - ordinals["TIMER_FIRED"]) ^ run.timers):
        yield "", 0, f"timer {ordinal} is open in the journal or among the timers, not in both"


def _run_state(run: Recorded) -> Found:
    try:
        state = _fold_run(run)
    except IllegalTransition as error:
        yield "", error.seq, str(error)
        return
    ended = next((row["seq"] for row in run.journal if row["type"] in ENDING), None)
    if (run.run["state"], run.head["state"], run.run["end_seq"]) != (state, state, ended):
        said = f"run {run.run['state']}, head {run.head['state']}, end {run.run['end_seq']}"
        yield "", 0, f"{said}; the journal says {state}, end {ended}"


def _fold_run(run: Recorded) -> RunState:
    state = RunState.RUNNING
    for row in run.journal[1:]:
        name = row["type"]
        if name == "PROCESS_RUNTIME_ERROR" or (name.startswith("RUN_") and name != "RUN_REPORTED"):
            state = apply(RUN_TRANSITIONS, state, trigger(name, row["data"]), subject="the run", seq=row["seq"])
    return state


def _head(run: Recorded) -> Found:
    last, head = run.journal[-1], run.head
    if (head["seq"], head["recorded_at"]) != (last["seq"], last["recorded_at"]):
        place = f"the head is at {head['seq']} of {head['recorded_at']}"
        yield "", 0, f"{place}, the journal at {last['seq']} of {last['recorded_at']}"
    unsettled = sum(effect["settled_seq"] is None for effect in run.effects)
    if head["open_effects"] != unsettled:
        yield "", 0, f"the head counts {head['open_effects']} open effects, there are {unsettled}"
    if head["open"] != (run.run["ended_at"] is None):
        yield "", 0, f"the head says open={head['open']}, the run ended at {run.run['ended_at']}"


def _settled_at_end(run: Recorded) -> Found:
    """A run ends when what it waits for and what it cancelled is settled: only detached effects outlive it."""
    if run.head["open"]:
        return
    for effect in run.effects:
        if effect["settled_seq"] is None and effect["on_run_end"] != "DETACH":
            yield effect["key"], 0, f"is {effect['state']} though its run has ended, and was not detached"


def _groups(run: Recorded) -> Found:
    effects = {effect["effect_id"]: effect for effect in run.effects}
    yield from groups.broken(iter(run.journal), effects, {group["group_id"]: group for group in run.groups})


def _early(run: Recorded) -> Found:
    return times.early(iter(run.journal))


def _blobs(run: Recorded) -> Found:
    for row in run.blobs:
        yield row["effect_key"], row["seq"], f"blob {row['digest']} {row['problem']}"


def _usage(run: Recorded) -> Found:
    for row in run.usage:
        yield row["effect_key"], row["seq"], row["problem"]


class Rule(NamedTuple):
    """What must hold, which invariant says so, and what finds the exceptions."""

    says: str
    invariant: str
    find: Callable[[Recorded], Found]


#: Rules by name, in the order in which they are checked.
RULES: Final[Mapping[str, Rule]] = {
    "dense_seq": Rule("seq is dense from 1", "I4", _dense),
    "time_forward": Rule("time in a run never goes back", "I12", _time),
    "created_first": Rule("a journal begins with RUN_CREATED, once", "I4", _created_first),
    "ends_once": Rule("nothing but effects' rows after the end", "I4", _ends_once),
    "cause_before": Rule("a row's cause comes before it", "I8", _cause),
    "causes_forward": Rule("process code answers rows in their order: owners never interleave", "I5", _causes_forward),
    "requested_first": Rule("an effect begins with its request", "I1", _requested_first),
    "settles_once": Rule("an effect settles once", "I2", _settles_once),
    "attempts_numbered": Rule("attempts are numbered from 1", "I3", _numbered),
    "dispatched_before": Rule("an attempt begins with its dispatch; one at a time", "I1, I3", _dispatched_before),
    "starts_bounded": Rule("no more starts than max_attempts", "I3", _bounded_starts),
    "effect_state": Rule("the effect's state is what its rows lead to", "I2", _effect_states),
    "effect_known": Rule("every effect of the journal has its row", "I6", _projected),
    "queue": Rule("what is QUEUED or PARKED is in the queue, and nothing else", "I6, I13", _queue),
    "timers": Rule("open timers of the journal are in `timers`", "I6", _timers),
    "not_early": Rule("nothing fires, wakes or is tried again before its time", "I12", _early),
    "run_state": Rule("the run's state is what its rows lead to", "I5", _run_state),
    "head": Rule("the head is the journal's last row", "I4", _head),
    "groups": Rule("a group runs no more than its limit, and the limit is what its outcomes lead to", "I11", _groups),
    "blobs": Rule("each large value is kept whole, with the row that refers to it", "I6", _blobs),
    "usage": Rule("what ended attempts consumed is counted, each once", "I14", _usage),
    "settled_at_end": Rule("a run ends after what it waits for", "I7", _settled_at_end),
}


def violations(run: Recorded) -> list[Violation]:
    """Every violation of every rule by a run."""
    if not run.journal:
        return [Violation(run.run_id, "created_first", "", 0, "the run has no journal")]
    return [
        Violation(run.run_id, name, key, seq, message)
        for name, rule in RULES.items()
        for key, seq, message in rule.find(run)
    ]
