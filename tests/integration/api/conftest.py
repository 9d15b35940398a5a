"""Fixtures of the API's tests."""

from collections.abc import AsyncIterator

import pytest

from tests.integration.api.scene import Scene, scene


@pytest.fixture
async def at(database_url: str) -> AsyncIterator[Scene]:
    async with scene(database_url) as made:
        yield made
