"""Circuit breakers: what opens and closes them, whom they stop, and the one attempt that may try."""

import json
from typing import Any

import pytest

from tests.integration.journal import items
from tests.integration.journal.desk import Desk, Row
from tests.integration.journal.functions.test_parking import CHAIN, CODEX, agent, fails

ALL = list(CHAIN)


async def breakers(at: Desk) -> list[Row]:
    return await at.rows("SELECT * FROM backburner.provider_breakers ORDER BY harness, account, executor_id")


async def broken(at: Desk, why: str = "AUTHENTICATION", **fields: Any) -> Row:
    """A breaker of codex, opened by an attempt."""
    await fails(at, await agent(at), why, **fields)
    [breaker] = await breakers(at)
    return breaker


async def waits(at: Desk, *chain: str, **columns: Any) -> str:
    """A run with an effect in the queue."""
    run_id = await at.create()
    columns = {"kind": "AGENT", "harness": "codex", "capabilities": list(chain or (CODEX,))} | columns
    await at.request(run_id, "a", **columns)
    return run_id


async def later(at: Desk, seconds: int) -> None:
    """So much time passes for the breakers."""
    for column in ("until", "probe_until", "failed_at"):
        await at.connection.execute(
            f"UPDATE backburner.provider_breakers SET {column} = {column} - make_interval(secs => {seconds})"
        )


@pytest.mark.parametrize(("why", "retry_after_s", "opens"), [
    ("AUTHENTICATION", None, True), ("QUOTA_EXHAUSTED", None, True), ("QUOTA_EXHAUSTED", 600, True),
    ("RATE_LIMITED", 600, True), ("RATE_LIMITED", 30, False), ("RATE_LIMITED", None, False), ("OVERLOADED", 600, False),
    ("REFUSED", None, False), ("EXITED_NONZERO", 600, False),
])  # fmt: skip
async def test_what_opens_a_breaker(at: Desk, why: str, retry_after_s: float | None, opens: bool) -> None:
    await fails(at, await agent(at), why, retry_after_s=retry_after_s, account="openai:default")
    found = [(b["harness"], b["account"], b["reason"], b["reset_known"]) for b in await breakers(at)]
    assert found == ([("codex", "openai:default", why, retry_after_s is not None)] if opens else [])


async def test_nothing_is_dispatched_into_an_open_breaker_on_either_way(at: Desk) -> None:
    await broken(at, "QUOTA_EXHAUSTED", retry_after_s=600)
    run_id = await waits(at)
    assert await at.claim() == []
    asked = items.requested(run_id, "b", kind="AGENT", harness="codex", capabilities=[CODEX])
    asked["x"]["dispatch"] = items.dispatch(run_id, "b", at.session_no) | {"harness": "codex"}
    assert (await at.append(run_id, asked))["extra"] == []
    assert await at.queued() == {items.effect_id(run_id, key) for key in "ab"}
    await later(at, 601)
    assert {row["effect_key"] for row in await at.claim()} == {"a", "b"}, "a reset that was known lets all go"


async def test_an_alternative_of_the_chain_is_taken(at: Desk) -> None:
    await broken(at, "QUOTA_EXHAUSTED", retry_after_s=600)
    await waits(at)
    run_id = await waits(at, *CHAIN)
    taken = await at.claim(capabilities=ALL)
    assert [(str(row["run_id"]), row["harness"]) for row in taken] == [(run_id, "claude-code")]


async def test_a_login_is_the_executors_and_a_quota_the_accounts(at: Desk) -> None:
    await broken(at, "AUTHENTICATION")
    session = await at.hello("e2", incarnation="another")
    other: dict[str, Any] = {"session_no": session, "executor_id": "e2", "incarnation": "another"}
    await waits(at)
    assert await at.claim() == []
    assert len(await at.claim(**other)) == 1
    await at.one("reset_breakers_v1", reset())
    await broken(at, "QUOTA_EXHAUSTED", retry_after_s=600)
    await waits(at)
    assert await at.claim(**other) == []


async def test_another_namespace_has_another_account(at: Desk) -> None:
    await broken(at, "QUOTA_EXHAUSTED", retry_after_s=600)
    run_id = await at.create(namespace="team")
    await at.request(run_id, "a", kind="AGENT", harness="codex", capabilities=[CODEX])
    session = await at.hello("e2", incarnation="another", namespace="team")
    claimed = await at.claim(session_no=session, executor_id="e2", incarnation="another", namespace="team")
    assert len(claimed) == 1


async def test_without_a_known_reset_one_attempt_tries_and_its_success_lets_all_go(at: Desk) -> None:
    await broken(at)
    for _ in range(3):
        await waits(at)
    assert await at.claim() == []
    await later(at, 61)
    [probe, busy] = await at.claim(known=True)
    assert (probe["token_index"], busy["token_index"]) == (0, -1), "others could be taken: ask again"
    assert await at.claim() == [], "one at a time"
    assert (await at.settle(str(probe["run_id"]), "a"))["outcome"] == "ok"
    assert await breakers(at) == []
    assert len(await at.claim()) == 2


async def test_each_try_in_vain_doubles_the_pause(at: Desk) -> None:
    for failures, pause in enumerate((60, 120, 240), 1):
        run_id = await waits(at)
        [probe] = await at.claim(known=True)
        assert str(probe["run_id"]) == run_id
        await fails(at, run_id, "AUTHENTICATION")
        [breaker] = await breakers(at)
        assert (breaker["failures"], breaker["probe_until"]) == (failures, None)
        assert pause - 1 < (breaker["until"] - breaker["failed_at"]).total_seconds() < pause + 1
        await later(at, pause + 1)
    [longest] = await at.rows("SELECT backburner.breaker_guess(1000000) AS s")
    assert longest["s"] == 3600


async def test_attempts_that_fail_together_count_once(at: Desk) -> None:
    run_ids = [await waits(at) for _ in range(5)]
    assert len(await at.claim(known=True)) == 5
    for run_id in run_ids:
        await fails(at, run_id, "AUTHENTICATION")
    [breaker] = await breakers(at)
    assert breaker["failures"] == 1


async def test_a_probe_that_is_not_taken_is_given_back(at: Desk) -> None:
    await broken(at)
    await later(at, 61)
    await waits(at, pool="agents")  # the claim has no slots of that pool
    assert await at.claim() == []
    [breaker] = await breakers(at)
    assert breaker["probe_until"] is None


@pytest.mark.parametrize("taken_by", ["e2", ""])
async def test_a_claim_gives_back_only_what_it_took(at: Desk, taken_by: str) -> None:
    """Another executor's attempt tries meanwhile, or the one of another claim."""
    await at.connection.execute(
        "INSERT INTO backburner.provider_breakers SELECT 'default', 'codex', '', %s, 'AUTHENTICATION', '', now(), "
        "now(), now() - interval '1 s', false, 1, now() + interval '9 s'", [taken_by],
    )  # fmt: skip
    await at.connection.execute(
        "SELECT backburner.spare_probes('default', 'e1', ARRAY['agent/codex'], clock_timestamp())"
    )
    [breaker] = await breakers(at)
    assert breaker["probe_until"] is not None


async def test_a_claim_that_tries_nothing_locks_no_breakers(at: Desk) -> None:
    """It has locked label budgets by then, and outcomes lock these last."""
    await broken(at)
    async with at.another(autocommit=False) as other:
        assert await at.claim(on=other) == []
        held = "SELECT mode FROM pg_locks WHERE relation = 'backburner.provider_breakers'::regclass"
        assert [row["mode"] for row in await at.rows(held)] == ["AccessShareLock"]


async def test_a_login_with_another_key_closes_the_breaker_of_its_executor(at: Desk) -> None:
    await broken(at, account="openai:old")
    await later(at, 61)
    run_id = await waits(at)
    [probe] = await at.claim(known=True)
    assert str(probe["run_id"]) == run_id
    await at.settle(run_id, "a", account="openai:new")
    assert await breakers(at) == []


async def test_another_account_says_nothing_of_a_quota(at: Desk) -> None:
    await broken(at, "QUOTA_EXHAUSTED", account="openai:old")
    await later(at, 61)
    run_id = await waits(at)
    await at.claim(known=True)
    await at.settle(run_id, "a", account="openai:new")
    assert len(await breakers(at)) == 1


async def test_an_attempt_that_began_before_the_failure_does_not_close(at: Desk) -> None:
    before = await agent(at)
    await broken(at, "QUOTA_EXHAUSTED", retry_after_s=600)
    assert (await at.settle(before, "a"))["type"] == "EFFECT_RESOLVED"
    assert len(await breakers(at)) == 1


async def test_of_two_resets_the_later_counts(at: Desk) -> None:
    first, second = await agent(at), await agent(at)
    await fails(at, first, "QUOTA_EXHAUSTED", retry_after_s=3600)
    await fails(at, second, "QUOTA_EXHAUSTED", retry_after_s=600)
    [breaker] = await breakers(at)
    assert 3590 < (breaker["until"] - breaker["opened_at"]).total_seconds() < 3610


async def test_a_repeated_settlement_opens_nothing_anew(at: Desk) -> None:
    run_id = await agent(at)
    await fails(at, run_id, "AUTHENTICATION")
    await at.one("reset_breakers_v1", reset())
    assert (await at.settle(run_id, "a", "failed", why="AUTHENTICATION"))["outcome"] == "already"
    assert await breakers(at) == []


async def test_an_operator_closes_what_he_names_and_the_audit_says_so(at: Desk) -> None:
    for account in ("one", "two"):
        await fails(at, await agent(at), "QUOTA_EXHAUSTED", account=account)
        await at.connection.execute("UPDATE backburner.provider_breakers SET until = now() - interval '1 s'")
    closed = await at.one("reset_breakers_v1", reset(account="two"))
    assert [b["account"] for b in closed["breakers"]] == ["two"]
    assert [b["account"] for b in await breakers(at)] == ["one"]
    assert (await at.one("reset_breakers_v1", reset(harness="pi")))["breakers"] == []
    [note] = await at.rows("SELECT * FROM backburner.operator_audit")
    assert (note["action"], note["subject"], note["actor"], note["reason"]) == ("RESET_BREAKER", "codex", "ada", "paid")
    assert note["detail"]["account"] == "two"


@pytest.mark.invariant("I11")
async def test_breakers_are_bounded_whatever_executors_say(at: Desk) -> None:
    await at.connection.execute(
        "INSERT INTO backburner.provider_breakers SELECT 'default', 'codex', n::text, '', 'AUTHENTICATION', '', now(), "
        "now(), now() - interval '1 h', true, 1 FROM generate_series(1, 1000) n"
    )
    await fails(at, await agent(at), "AUTHENTICATION", account="x" * 5000, message="y" * 5000)
    breaker = await breakers(at)
    assert len(breaker) == 1000
    assert max(len(b["account"]) for b in breaker) == 200
    assert max(len(b["message"]) for b in breaker) == 500


def reset(**scope: str) -> items.Item:
    """An item of reset_breakers_v1."""
    empty = {"namespace": "", "harness": "", "account": "", "executor_id": ""}
    return json.loads(json.dumps(empty | {"reason": "paid", "actor": "ada"} | scope))  # type: ignore[no-any-return]
