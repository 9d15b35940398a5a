"""The reviewer's interleaving: a commit whose answer was lost, and another append that its owner numbers alike."""

import pytest

from tests.integration.journal import items
from tests.integration.journal.desk import Desk

LOG = items.row("PROCESS_LOG", 1, message="one")


@pytest.mark.invariant("I6", "I14")
async def test_another_append_with_the_same_number_is_not_taken_for_a_repetition(at: Desk) -> None:
    run_id = await at.create()
    item = at.appending(run_id, LOG)
    first = await at.one("append_v1", item | {"append_id": "a"})
    assert first["outcome"] == "ok"
    assert (await at.one("append_v1", item | {"append_id": "a"}))["outcome"] == "already"
    assert (await at.one("append_v1", item | {"append_id": "b"}))["outcome"] == "stale_iteration"
