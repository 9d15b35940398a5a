"""Fixtures of the engine's tests."""

from collections.abc import AsyncIterator

import pytest

from tests.integration.engine.world import World, world


@pytest.fixture
async def at(database_url: str) -> AsyncIterator[World]:
    """A scheduler with a short grace."""
    async with world(database_url, grace_seconds=1.0) as made:
        yield made
