"""The state tables: every pair of state and event is either a row or refused."""

import itertools
from typing import Any

import pytest

from scheduler_service.replay.states import (
    EFFECT_TERMINAL,
    EFFECT_TRANSITIONS,
    RUN_TERMINAL,
    RUN_TRANSITIONS,
    EffectState,
    IllegalTransition,
    RunState,
    apply,
    first_state,
    mermaid,
    trigger,
)

TRIGGERS = sorted({name for _state, name in EFFECT_TRANSITIONS})


@pytest.mark.invariant("I2")
@pytest.mark.parametrize(("state", "name"), [*itertools.product(EffectState, TRIGGERS)])
def test_every_pair_is_a_row_or_refused(state: EffectState, name: str) -> None:
    if (state, name) in EFFECT_TRANSITIONS:
        after = apply(EFFECT_TRANSITIONS, state, name)
        assert state not in EFFECT_TERMINAL or after is state  # nothing leaves a terminal state
        return
    with pytest.raises(IllegalTransition) as caught:
        apply(EFFECT_TRANSITIONS, state, name, subject="effect k", seq=7)
    assert str(caught.value) == f"effect k at seq 7: {name} cannot follow state {state}"


def test_a_settled_effect_cannot_settle_again() -> None:
    for state, name in itertools.product(EFFECT_TERMINAL, TRIGGERS):
        settles = name.startswith(("EFFECT_RESOLVED", "EFFECT_REUSED")) or name == "EFFECT_CANCELLED"
        assert not settles or (state, name) not in EFFECT_TRANSITIONS


def test_every_state_is_reached_and_every_open_one_is_left() -> None:
    starts = {EffectState.QUEUED, EffectState.WAITING}
    assert set(EFFECT_TRANSITIONS.values()) | starts == set(EffectState)
    assert set(RUN_TRANSITIONS.values()) | {RunState.RUNNING} == set(RunState)
    for run_state in set(RunState) - RUN_TERMINAL:
        assert any(state is run_state and to is not state for (state, _name), to in RUN_TRANSITIONS.items())


@pytest.mark.parametrize(
    ("spec", "state"), [({"shell": {}}, "QUEUED"), ({"run": {}}, "WAITING"), ({"timer": {}}, "WAITING")]
)
def test_first_state_is_of_the_kind(spec: dict[str, Any], state: str) -> None:
    assert first_state(spec) == state


def test_resolved_is_told_apart_by_its_state() -> None:
    assert trigger("EFFECT_RESOLVED", {"state": "EFFECT_STATE_TIMED_OUT"}) == "EFFECT_RESOLVED:TIMED_OUT"
    assert trigger("EFFECT_CANCELLED", {}) == "EFFECT_CANCELLED"


def test_the_diagram_shows_each_transition_once() -> None:
    drawn = mermaid(RUN_TRANSITIONS, [RunState.RUNNING])
    assert drawn.startswith("stateDiagram-v2\n    [*] --> RUNNING\n")
    assert "    CLOSING --> COMPLETED: COMPLETED" in drawn
    assert drawn.count("RUNNING --> CLOSING") == 1
    assert drawn.endswith("FAILED --> [*]")
