"""Whom a breaker stops when executors say which account they have; and what an executor finds later in its session."""

import itertools
import json
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from scheduler_service.journal.breakers import breaker_of
from tests.integration.journal.desk import Desk, Row
from tests.integration.journal.functions.test_breakers import breakers, later, reset, waits
from tests.integration.journal.functions.test_parking import CODEX, agent, fails

MINE, OTHER = "openai:aaaaaaaa", "openai:bbbbbbbb"


def check(account: str, **more: str) -> Row:
    """What an executor found of codex."""
    return (
        {"name": "codex", "found": True, "login": "HARNESS_LOGIN_FOUND"}
        | ({"account": account} if account else {})
        | more
    )


async def found(at: Desk, *checks: Row, executor_id: str = "e1", session_no: int | None = None) -> bool:
    """An executor has found that."""
    said = {"executor_id": executor_id, "session_no": session_no or at.session_no, "capabilities": [CODEX],
            "harness_checks": list(checks)}  # fmt: skip
    [row] = await at.rows("SELECT backburner.executor_found_v1(%s::jsonb) AS noted", json.dumps(said))
    return bool(row["noted"])


async def second(at: Desk, account: str) -> dict[str, Any]:
    """Another executor with this account; what its claims name."""
    session = await at.hello("e2", incarnation="another", harness_checks=[check(account)])
    return {"session_no": session, "executor_id": "e2", "incarnation": "another"}


async def opened(at: Desk, why: str = "QUOTA_EXHAUSTED", **fields: Any) -> None:
    """A breaker of the account of e1, opened by an attempt there."""
    fields = {"account": MINE} | fields
    await found(at, check(fields["account"]))
    await fails(at, await agent(at), why, **fields)


@pytest.mark.parametrize(("account", "goes_on"), [(OTHER, True), (MINE, False), ("", False)])
async def test_a_spent_quota_stops_those_that_share_the_account_and_no_other(
    at: Desk, account: str, goes_on: bool
) -> None:
    """Nor those of which nobody knows which account they have."""
    await opened(at, retry_after_s=600)
    other = await second(at, account)
    await waits(at)
    assert await at.claim() == []
    assert len(await at.claim(**other)) == goes_on
    await waits(at)
    await at.one("reset_breakers_v1", reset(account=MINE))
    assert len(await at.claim(**other)) == 1 + (not goes_on)


async def test_an_account_that_no_executor_says_it_has_stops_all(at: Desk) -> None:
    """A key that the effect brought itself: who shares it is not known."""
    await opened(at, retry_after_s=600, account=MINE)
    await at.one("reset_breakers_v1", reset())
    await fails(at, await agent(at), "QUOTA_EXHAUSTED", retry_after_s=600, account="openai:theirs")
    await waits(at)
    assert await at.claim(**await second(at, OTHER)) == []
    assert await at.claim() == []


async def test_who_has_another_account_does_not_try_a_half_open_breaker(at: Desk) -> None:
    await opened(at)
    other = await second(at, OTHER)
    await later(at, 61)
    for _ in range(3):
        await waits(at)
    assert len(await at.claim(**other)) == 3
    [breaker] = await breakers(at)
    assert breaker["probe_until"] is None
    for _ in range(2):
        await waits(at)
    assert len([row for row in await at.claim(known=True) if row["token_index"] >= 0]) == 1
    [breaker] = await breakers(at)
    assert breaker["probe_until"] is not None


async def test_a_new_account_of_the_executor_lets_it_go_on(at: Desk) -> None:
    await opened(at, retry_after_s=600)
    await waits(at)
    assert await at.claim() == []
    assert await found(at, check(OTHER))
    assert len(await at.claim()) == 1
    assert len(await breakers(at)) == 1, "the quota of the other one is spent all the same"


@pytest.mark.parametrize(("account", "now", "closed"), [
    (MINE, {"login_id": "2"}, True), (MINE, {}, False), ("", {"login": "HARNESS_LOGIN_FOUND", "login_id": "1"}, True),
    (MINE, {"version": "2"}, False),
])  # fmt: skip
async def test_a_new_login_closes_the_breaker_of_the_one_that_was_refused(
    at: Desk, account: str, now: Row, closed: bool
) -> None:
    before = (
        check(account, login_id="1") if account else {"name": "codex", "found": True, "login": "HARNESS_LOGIN_MISSING"}
    )
    await found(at, before)
    await fails(at, await agent(at), "AUTHENTICATION", account=account)
    assert len(await breakers(at)) == 1
    await found(at, {"name": "codex", "looking": True})
    await found(at, before)
    assert len(await breakers(at)) == 1, "a look that has not ended says nothing"
    await found(at, before | now)
    assert len(await breakers(at)) == (0 if closed else 1)


@pytest.mark.parametrize(("now", "closed"), [({"login_id": "2"}, True), ({}, False)])
async def test_a_login_while_the_executor_was_away_or_its_program_was_gone_closes_it(
    at: Desk, now: Row, closed: bool
) -> None:
    """A restart looks at everything anew, and while a program is exchanged nothing can be said of its login."""
    before = check(MINE, login_id="1")
    await found(at, before)
    await fails(at, await agent(at), "AUTHENTICATION", account=MINE)
    await found(at, {"name": "codex", "remedy": "no codex on PATH"})
    at.session_no = await at.hello(harness_checks=[{"name": "codex", "looking": True}])
    at.session_no = await at.hello(harness_checks=[{"name": "codex", "looking": True}])
    assert len(await breakers(at)) == 1
    await found(at, before | now)
    assert len(await breakers(at)) == (0 if closed else 1)


async def test_a_login_that_is_gone_closes_nothing(at: Desk) -> None:
    """A CLI takes away its login itself when that is refused: the next attempt would fail as well."""
    before = check(MINE, login_id="1")
    await found(at, before)
    await fails(at, await agent(at), "AUTHENTICATION", account=MINE)
    await found(at, {"name": "codex", "found": True, "login": "HARNESS_LOGIN_MISSING"})
    [breaker] = await breakers(at)
    await waits(at)
    assert (await at.claim(), breaker["reason"]) == ([], "AUTHENTICATION")
    await found(at, before | {"login_id": "2"})
    assert await breakers(at) == []


@pytest.mark.parametrize(("mine", "closed"), [(MINE, True), ("", False)])
async def test_a_key_that_one_effect_brought_does_not_slow_down_those_with_another_for_ever(
    at: Desk, mine: str, closed: bool
) -> None:
    """Nobody has that account to try it: what an executor does with its own one shows that it need not be stopped."""
    await opened(at, account=mine)
    await at.one("reset_breakers_v1", reset())
    await fails(at, await agent(at), "QUOTA_EXHAUSTED", account="openai:theirs")
    await later(at, 61)
    run_id = await waits(at)
    [probe] = await at.claim(known=True)
    assert (await at.settle(run_id, "a", account=MINE))["outcome"] == "ok", probe
    assert len(await breakers(at)) == (0 if closed else 1)


async def test_what_an_older_session_found_is_not_taken(at: Desk) -> None:
    old = at.session_no
    at.session_no = await at.hello(harness_checks=[check(OTHER)])
    assert not await found(at, check(MINE), session_no=old)
    [row] = await at.rows("SELECT harness_checks FROM backburner.executors")
    assert row["harness_checks"][0]["account"] == OTHER


async def test_the_rule_in_code_is_the_one_of_the_database(at: Desk) -> None:
    await at.hello("e2", incarnation="another")
    now = datetime.now(UTC)
    cases = itertools.product(("", MINE, OTHER), ("", "e1", "e2"), (False, True), (False, True), ("", MINE))
    for account, executor, selective, known, mine in cases:
        await found(at, check(mine))
        await at.connection.execute("DELETE FROM backburner.provider_breakers")
        for until in (now + timedelta(hours=1), now - timedelta(hours=1)):
            await at.connection.execute(
                "INSERT INTO backburner.provider_breakers VALUES ('default', 'codex', %s, %s, 'QUOTA_EXHAUSTED', '', "
                "now(), now(), %s, %s, 1, NULL, %s) ON CONFLICT (namespace, harness, account, executor_id) "
                "DO UPDATE SET until = excluded.until", [account, executor, until, known, selective],
            )  # fmt: skip
            [row] = await breakers(at)
            [said] = await at.rows("SELECT backburner.is_broken('default', 'codex', 'e1') AS broken")
            assert breaker_of(row).stops("default", "codex", "e1", mine, now) is said["broken"], (row, mine)
