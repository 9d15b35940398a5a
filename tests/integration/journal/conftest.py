"""Fixtures of the journal's tests."""

from collections.abc import AsyncIterator, Iterator

import pytest

from tests.integration.journal import checks
from tests.integration.journal.desk import Desk, desk
from tests.support.journal_items import Scene, Session, scene_at


@pytest.fixture
async def at(database_url: str) -> AsyncIterator[Desk]:
    """A desk; whatever the test did, at its end every journal of the database is in order."""
    async with desk(database_url) as made:
        yield made
    await checks.check_all(database_url)


@pytest.fixture
def scene(database_url: str) -> Iterator[Scene]:
    """One connection to the functions."""
    with scene_at(database_url) as scene:
        yield scene


@pytest.fixture
def executor(scene: Scene) -> Session:
    """The session of executor e1."""
    return scene.hello()
