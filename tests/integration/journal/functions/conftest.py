"""Fixtures of the tests of the SQL functions."""

from collections.abc import AsyncIterator

import pytest

from tests.integration.journal import checks
from tests.integration.journal.desk import Desk, desk


@pytest.fixture
async def at(database_url: str) -> AsyncIterator[Desk]:
    """A desk; whatever the test did, at its end every journal of the database is in order."""
    async with desk(database_url) as made:
        yield made
        for run in await made.rows("SELECT run_id FROM backburner.runs"):
            [head] = await made.rows(checks.HEAD, run["run_id"])
            journal, effects = [await made.rows(q, run["run_id"]) for q in (checks.ROWS, checks.EFFECTS)]
            checks.check(list(journal), list(effects), head)
