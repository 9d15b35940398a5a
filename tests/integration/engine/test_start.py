"""A scheduler that starts while Postgres comes and goes."""

import pytest

from scheduler_service.journal import Journal, JournalUnavailable
from scheduler_service.journal.leases import Leases
from tests.integration.engine.world import world


@pytest.mark.parametrize(
    ("owner", "call"),
    [(Journal, "known_durations"), (Journal, "read_clock"), (Leases, "renew"), (Leases, "replicas"), (Leases, "claim")],
)
async def test_a_start_waits_for_a_database_that_went_away_in_the_middle_of_it(
    database_url: str, monkeypatch: pytest.MonkeyPatch, owner: type, call: str
) -> None:
    """Found by chaos: a restart of Postgres at the wrong moment ended a scheduler that was starting."""
    real, failures = getattr(owner, call), [JournalUnavailable("restarted")] * 2

    async def fails_at_first(self: object, *args: object, **kwargs: object) -> object:
        if failures:
            raise failures.pop()
        return await real(self, *args, **kwargs)

    monkeypatch.setattr(owner, call, fails_at_first)
    async with world(database_url) as at:
        assert not failures
        assert len(at.engine.shards.epochs) == 16
