"""Fair shares: each replica computes its own, and all of them together are all shards."""

import pytest

from scheduler_service.iteration.shares import SHARDS, Membership, fair_share


@pytest.mark.parametrize("count", range(1, 20))
def test_the_shares_of_all_replicas_are_all_shards(count: int) -> None:
    names = [f"s{n:02}" for n in range(count)]
    shares = [fair_share(name, set(names) - {name}) for name in names]
    assert sum(shares) == SHARDS
    assert max(shares) - min(shares) <= 1
    assert shares == sorted(shares, reverse=True), "what does not divide goes to the first names"


def test_a_lone_replica_takes_all() -> None:
    assert fair_share("a", []) == SHARDS
    assert fair_share("a", ["a"]) == SHARDS


def test_what_is_worked_on_moves_only_once_the_replicas_have_been_the_same_for_a_while() -> None:
    members = Membership("a", quiet_s=5.0)
    members.note(["b"], now=100.0)
    assert members.share == 8
    assert not members.is_settled(104.9)
    members.note(["b", "c"], now=104.9)  # b was killed, c is its restart under a new name: both count for a lease
    assert not members.is_settled(109.0)
    members.note(["c"], now=109.0)
    assert members.share == 8, "as before: nothing has moved"
    members.note(["c"], now=113.9)
    assert not members.is_settled(113.9)
    assert members.is_settled(114.0)
