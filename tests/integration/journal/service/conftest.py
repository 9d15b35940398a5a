"""Fixtures of the tests of the Python side of the journal."""

from collections.abc import AsyncIterator

import pytest

from scheduler_service.journal import Journal, open_journal
from tests.integration.journal import items
from tests.integration.journal.desk import Desk, desk


@pytest.fixture
async def at(database_url: str) -> AsyncIterator[Desk]:
    async with desk(database_url) as made:
        yield made


@pytest.fixture
async def journal(at: Desk) -> AsyncIterator[Journal]:
    """The journal of the replica that owns the desk's shards."""
    async with open_journal(at.dsn, scheduler_id=items.SCHEDULER) as opened:
        yield opened
