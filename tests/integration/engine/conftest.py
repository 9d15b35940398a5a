"""Fixtures of the engine's tests."""

from collections.abc import AsyncIterator

import pytest

from tests.integration.engine.world import World, world


@pytest.fixture
async def at(database_url: str) -> AsyncIterator[World]:
    """A scheduler that gives no executor up, however slow this machine is; who tests the grace restarts it with one."""
    async with world(database_url, grace_seconds=600.0) as made:
        yield made
