"""Fan-in: decided at the deciding event, losers cancelled with the winner's name, input order kept."""

import asyncio
from typing import Any

import pytest

import scheduler_service.authoring as bb
from scheduler_service.replay.harness import Driven, check_prefixes, drive
from tests.replay.answers import by_key, fails_after

KEYS = ["a", "b", "c", "d"]


def start(ctx: bb.Context, keys: list[str] | None = None) -> list[bb.EffectHandle[Any]]:
    return [ctx.start(bb.function("work", key), key=key) for key in keys or KEYS]


def run(body: Any, delays: dict[str, Any], **fixed: Any) -> Driven:
    driven = drive(bb.ProcessDefinition("body", body), {}, by_key(delays, **fixed))
    check_prefixes(driven)
    return driven


def losers(driven: Driven) -> list[tuple[str, str, str]]:
    rows = driven.rows("EFFECT_CANCEL_REQUESTED")
    return [(r.effect_key, r.data["reason"].removeprefix("EFFECT_REASON_"), r.data.get("winner_key", "")) for r in rows]


def test_all_gives_results_in_input_order() -> None:
    async def body(ctx: bb.Context) -> Any:
        return await bb.all(start(ctx))

    assert run(body, {"a": 4.0, "b": 3.0, "c": 2.0, "d": 1.0}).result == KEYS


def test_all_raises_the_first_failure_and_cancels_the_rest() -> None:
    async def body(ctx: bb.Context) -> Any:
        try:
            await bb.all(start(ctx))
        except bb.EffectFailed as error:
            return error.key, ctx.history_length

    driven = run(body, {"a": 1.0, "b": None, "d": None}, c=fails_after(2))
    assert losers(driven) == [("b", "RACE_LOST", "c"), ("d", "RACE_LOST", "c")]
    assert driven.result[0] == "c"


def test_first_success_skips_failures_and_cancels_losers_at_the_deciding_event() -> None:
    async def body(ctx: bb.Context) -> Any:
        return (await bb.first_success(start(ctx))).value

    driven = run(body, {"b": 2.0, "c": None, "d": 3.0}, a=fails_after(1))
    assert driven.result == "b"
    assert losers(driven) == [("c", "RACE_LOST", "b"), ("d", "RACE_LOST", "b")]
    decided = next(e for e in driven.events if e.type == "EFFECT_RESOLVED" and e.effect_key == "b")
    assert {e.cause for e in driven.rows("EFFECT_CANCEL_REQUESTED", "RUN_CLOSING")} == {decided.seq}


def test_all_failed_holds_every_outcome() -> None:
    async def body(ctx: bb.Context) -> Any:
        with pytest.raises(bb.AllFailed) as caught:
            await bb.first_success(start(ctx, ["a", "b"]))
        return [(outcome.key, outcome.ok) for outcome in caught.value.outcomes]

    assert run(body, {}, a=fails_after(2), b=fails_after(1)).result == [["a", False], ["b", False]]


def test_quorum_counts_accepted_ones_and_keeps_input_order() -> None:
    async def body(ctx: bb.Context) -> Any:
        won = await bb.quorum(start(ctx), 2, accept=lambda outcome: outcome.ok and outcome.value != "b")
        return [outcome.key for outcome in won]

    driven = run(body, {"a": 3.0, "b": 1.0, "c": 2.0, "d": None})
    assert driven.result == ["a", "c"]
    assert losers(driven) == [("d", "RACE_LOST", "a")]


def test_quorum_gives_up_as_soon_as_it_is_out_of_reach() -> None:
    async def body(ctx: bb.Context) -> Any:
        with pytest.raises(bb.QuorumNotReached) as caught:
            await bb.quorum(start(ctx), 3)
        return [outcome.key for outcome in caught.value.outcomes], (ctx.now().timestamp() % 60)

    driven = run(body, {"c": None, "d": None}, a=fails_after(1), b=fails_after(2))
    assert driven.result == [["a", "b"], 2]
    assert [key for key, _reason, _winner in losers(driven)] == ["c", "d"]


def test_best_effort_never_raises_and_a_timeout_cancels_what_is_open() -> None:
    async def body(ctx: bb.Context) -> Any:
        outcomes = await bb.best_effort(start(ctx), timeout=5)
        return [(o.key, o.ok, o.error.reason if o.error else "") for o in outcomes]

    driven = run(body, {"b": None}, c=fails_after(1, "HARNESS_ERROR"))
    assert driven.result == [
        ["a", True, ""], ["b", False, "TIMEOUT_WAIT"], ["c", False, "HARNESS_ERROR"], ["d", True, ""],
    ]  # fmt: skip
    assert losers(driven) == [("b", "CANCELLED_BY_PROCESS", "")]


def test_drain_waits_for_the_proof_of_death() -> None:
    async def body(ctx: bb.Context) -> Any:
        handles = start(ctx)
        await bb.first_success(handles, drain=True)
        return [handle.status for handle in handles]

    driven = run(body, {"a": 1.0, "b": None, "c": None, "d": None})
    assert driven.result == ["SUCCEEDED", "CANCELLED", "CANCELLED", "CANCELLED"]


def test_wait_and_as_completed_cancel_nothing() -> None:
    async def body(ctx: bb.Context) -> Any:
        handles = start(ctx)
        done, pending = await bb.wait(handles, return_when=asyncio.FIRST_COMPLETED)
        late, still = await bb.wait(pending, timeout=0.5)
        order = [handle.key async for handle in bb.as_completed(handles)]
        return [h.key for h in done], len(late), len(still), order

    driven = run(body, {"a": 4.0, "b": 3.0, "c": 1.0, "d": 2.0})
    assert driven.result == [["c"], 0, 3, ["c", "d", "b", "a"]]
    assert losers(driven) == []


def test_an_error_of_accept_is_raised_where_it_was_given() -> None:
    async def body(ctx: bb.Context) -> Any:
        with pytest.raises(ZeroDivisionError):
            await bb.quorum(start(ctx), 1, accept=lambda _outcome: bool(1 // 0))

    run(body, {})


def test_mistakes_are_refused() -> None:
    async def body(ctx: bb.Context) -> Any:
        handles = start(ctx)
        with pytest.raises(bb.OptionError, match="k=5 of 4"):
            await bb.quorum(handles, 5)
        with pytest.raises(bb.OptionError, match="given twice"):
            await bb.all([handles[0], handles[0]])
        with pytest.raises(TypeError, match="no effect handle"):
            await bb.all([bb.shell("x")])  # type: ignore[arg-type]
        assert await bb.all([]) == []

    run(body, {})
