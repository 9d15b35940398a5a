"""Which rows refer to blobs that process code has to be given."""

import datetime as dt
from typing import Any

import pytest

from scheduler_service.journal.payloads import is_loaded
from scheduler_service.replay.events import Event

NOW = dt.datetime.now(dt.UTC)
BLOB = {"blob": {"digest": "d", "size_bytes": 3}}


@pytest.mark.parametrize("value", [7, "x", [1], None, BLOB])
@pytest.mark.parametrize("kind", ["RUN_CLOSING", "RUN_COMPLETED"])
def test_what_a_run_gives_is_no_result_of_an_effect(kind: str, value: Any) -> None:
    assert is_loaded([Event(2, kind, NOW, data={"outcome": "RUN_STATE_COMPLETED", "result": {"value": value}})])


def test_the_result_of_an_effect_is_looked_at() -> None:
    def resolved(value: Any) -> Event:
        return Event(2, "EFFECT_REUSED", NOW, effect_id="e", data={"result": {"value": value}})

    assert is_loaded([resolved({"value": 7})])
    assert not is_loaded([resolved(BLOB)])
