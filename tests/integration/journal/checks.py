"""What holds for every journal at every moment: the rows by themselves, and the projections against the rows.

The projections are compared with the state tables of `replay/states.py`, folded over the journal: three statements of
the same facts (tables in code, functions in SQL, rows) cannot drift apart unnoticed.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Final

from scheduler_service.replay.states import (
    EFFECT_TRANSITIONS,
    RUN_TRANSITIONS,
    EffectState,
    RunState,
    apply,
    first_state,
    trigger,
)

Row = Mapping[str, Any]

SETTLING: Final = ("EFFECT_RESOLVED", "EFFECT_CANCELLED")
ENDING: Final = ("RUN_COMPLETED", "RUN_FAILED", "RUN_CANCELLED", "RUN_CONTINUED")

ROWS: Final = "SELECT * FROM backburner.journal WHERE run_id = %s ORDER BY seq"
EFFECTS: Final = "SELECT * FROM backburner.effects WHERE run_id = %s"
HEAD: Final = (
    "SELECT h.*, r.state AS run_state, r.ended_at, "
    "ARRAY(SELECT q.effect_id FROM backburner.dispatch_queue q WHERE q.run_id = h.run_id) AS queue "
    "FROM backburner.run_heads h JOIN backburner.runs r USING (run_id) WHERE run_id = %s"
)


def check(journal: Sequence[Row], effects: Sequence[Row], head: Row) -> None:
    """Asserts I2, I3, I4, I12, and that every projection says what the rows say."""
    _check_order(journal)
    for effect in effects:
        rows = [row for row in journal if row["effect_id"] == effect["effect_id"]]
        _check_effect(effect, rows)
        assert (effect["effect_id"] in head["queue"]) == (effect["state"] == "QUEUED"), f"{effect['key']}: queue"
    _check_head(journal, effects, head)


def _check_order(journal: Sequence[Row]) -> None:
    assert [row["seq"] for row in journal] == list(range(1, len(journal) + 1)), "seq is not dense"
    times = [row["recorded_at"] for row in journal]
    assert times == sorted(times), "time went back"
    assert journal[0]["type"] == "RUN_CREATED"
    assert sum(row["type"] in ENDING for row in journal) <= 1, "the run ended twice"


def _check_effect(effect: Row, rows: list[Row]) -> None:
    key = effect["key"]
    assert rows[0]["type"] == "EFFECT_REQUESTED", f"{key} begins with {rows[0]['type']}"
    assert rows[0]["seq"] == effect["requested_seq"]
    settling = [row["seq"] for row in rows if row["type"] in SETTLING]
    assert len(settling) <= 1, f"{key} settled at {settling}"
    assert [effect["settled_seq"]] == (settling or [None]), f"{key}: settled_seq"
    attempts = [row["attempt"] for row in rows if row["type"] == "EFFECT_DISPATCHED"]
    assert attempts == list(range(1, len(attempts) + 1)), f"{key} was dispatched as {attempts}"
    assert effect["attempt"] == len(attempts), f"{key}: attempt"
    assert effect["state"] == _fold_effect(rows), f"{key}: state"


def _fold_effect(rows: Iterable[Row]) -> EffectState:
    state: EffectState | None = None
    for row in rows:
        if state is None:
            state = first_state(row["data"]["spec"])
            continue
        name = trigger(row["type"], row["data"])
        state = apply(EFFECT_TRANSITIONS, state, name, subject=row["effect_key"], seq=row["seq"])
    assert state is not None
    return state


def _check_head(journal: Sequence[Row], effects: Sequence[Row], head: Row) -> None:
    assert head["seq"] == len(journal)
    assert head["recorded_at"] == journal[-1]["recorded_at"]
    assert head["open_effects"] == sum(effect["settled_seq"] is None for effect in effects), "open_effects"
    state = _fold_run(journal)
    assert head["run_state"] == head["state"] == state
    assert (
        head["open"] == (head["ended_at"] is None) == (state not in {"COMPLETED", "FAILED", "CANCELLED", "CONTINUED"})
    )


def _fold_run(journal: Sequence[Row]) -> RunState:
    state = RunState.RUNNING
    for row in journal[1:]:
        name = row["type"]
        if name == "PROCESS_RUNTIME_ERROR" or (name.startswith("RUN_") and name != "RUN_REPORTED"):
            name = trigger(name, row["data"])
            state = apply(RUN_TRANSITIONS, state, name, subject=str(row["run_id"]), seq=row["seq"])
    return state
