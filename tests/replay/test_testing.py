"""`bb.testing.run`: what authors test their processes with."""

import asyncio
import datetime as dt
import itertools
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass
from typing import Any

import pytest

import backburner as bb
from tests.support.checks import Verdict, lint
from tests.support.six_processes import deploy, over_files, poll, release_check, review, supervise

testing = bb.testing


def process(body: Any) -> Any:
    return bb.ProcessDefinition("body", body)


# --- the six processes of the API ------------------------------------------------------------------------------------


def test_release_check_with_a_slow_background_command() -> None:
    effects = {"tests": testing.after(90, 2), "lint": lambda path: {"problems": len(path)}}
    run = testing.run(release_check, {"repo": "/r", "files": ["a", "bc"]}, effects)
    assert run.result.exit_code == 2
    assert [report.problems for report in run.result.found] == [1, 2]
    assert run.duration == 90
    assert run.report == {"label": "tests at None"}
    assert list(run.effects) == ["tests", "lint/a", "lint/bc"]
    assert (run.effects["tests"].settled_at, run.effects["tests"].spec["background"]) == (90, True)


@pytest.mark.parametrize(
    ("votes", "said"), [("yyn", "approved by review/claude-code, review/codex"), ("ynn", "rejected: 3")]
)
def test_review_is_decided_by_the_answers_of_harnesses(votes: str, said: str) -> None:
    fakes = {
        name: Verdict(vote == "y") for name, vote in zip(("claude-code", "codex", "gemini-cli"), votes, strict=True)
    }
    slow = {name: testing.after(n, fake) for n, (name, fake) in enumerate(fakes.items())}
    run = testing.run(review, ["diff"], slow)
    assert run.result == said
    if votes == "yyn":
        lost = run.effects["review/gemini-cli"]
        assert (lost.state, lost.reason, lost.settled_at) == ("CANCELLED", "RACE_LOST", 1)


def test_poll_sees_the_progress_of_an_async_generator() -> None:
    async def codex(prompt: str) -> AsyncIterator[Any]:
        for percent in range(10, 100, 10):
            await asyncio.sleep(10)
            yield bb.Progress(percent, step=prompt)
        await asyncio.sleep(10)
        yield testing.result("done")

    run = testing.run(poll, {"prompt": "p"}, {"codex": codex})
    assert run.result == "done"
    assert [report["percent"] for report in run.reports] == [10, 70]
    assert run.duration == 100


def test_deploy_reminds_each_hour_until_it_is_approved() -> None:
    reminded: list[str] = []
    effects = {"approve": testing.after(9000, bb.Approval("yes", "ann")), "notify.remind": reminded.append}
    run = testing.run(deploy, {"tag": "1.4"}, effects)
    assert run.result is True
    assert reminded == [run.journal[1].effect_id] * 2
    assert run.duration == 9000


def test_map_runs_eight_at_a_time_and_retries_each() -> None:
    busy, most, tried = 0, 0, dict[str, int]()

    async def codex(prompt: str) -> str:
        nonlocal busy, most
        busy, most = busy + 1, max(most, busy + 1)
        await asyncio.sleep(1)
        busy -= 1
        tried[prompt] = tried.get(prompt, 0) + 1
        if prompt == "Mend f7" or (prompt == "Mend f8" and tried[prompt] < 3):
            raise bb.EffectFailed("overloaded", key="", reason="OVERLOADED")
        return prompt.upper()

    run = testing.run(over_files, {"files": [f"f{n}" for n in range(20)]}, {"codex": codex})
    assert run.result["fix/f6"] == "MEND F6"
    assert (run.result["fix/f8"], run.effects["fix/f8"].attempts) == ("MEND F8", 3)
    assert (run.result["fix/f7"], run.effects["fix/f7"].attempts) == ("OVERLOADED", 3)
    assert most == 8
    assert sum(event.type == "EFFECT_ATTEMPT_FAILED" for event in run.journal) == 4


def test_supervisor_carries_the_session_of_a_failed_child_on() -> None:
    given: list[Any] = []

    def worker(name: str, session: Any) -> str:
        given.append(session)
        if len(given) == 1:
            raise bb.EffectFailed("no", key="", session=bb.Session("codex", "s1"))
        return name

    no_more = testing.Signal("scale", "", at=1, settled="w/2")
    run = testing.run(supervise, {"spec": {"names": ["w"]}, "sessions": {}}, {"worker": worker}, signals=[no_more])
    assert run.state == "COMPLETED"
    assert given[0] is None
    assert given[1]["session_id"] == "s1"
    assert run.effects["w/1"].reason == "CHILD_RUN_FAILED"
    assert run.duration == 3


# --- finding a fake --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["lint/a.py", "lint/*", "l?nt/*", "tests.support.checks.lint", "lint", "function"])
def test_a_fake_is_found_by_key_pattern_name_or_kind(name: str) -> None:
    async def body(ctx: bb.Context) -> int:
        return (await ctx.run(lint("a.py"), key="lint/a.py")).problems

    assert testing.run(process(body), effects={name: {"problems": 3}}).result == 3


def test_the_most_telling_name_goes_first() -> None:
    async def body(ctx: bb.Context) -> Any:
        sh = [bb.shell("make all"), bb.shell(["make"], label="build"), bb.shell("other")]
        named = [await ctx.run(effect) for effect in sh]
        return [*(r.stdout_tail for r in named), (await ctx.run(bb.shell("make"), key="k/1")).stdout_tail]

    effects = {"shell": "kind", "make": "name", "build": "label", "k/*": "pattern"}
    assert testing.run(process(body), effects=effects).result == ["name", "label", "kind", "pattern"]
    assert testing.run(process(body), effects={**effects, "k/1": "key"}).result[-1] == "key"


def test_a_missing_fake_names_the_effect_its_line_and_what_to_add() -> None:
    async def body(ctx: bb.Context) -> None:
        await ctx.run(lint("a.py"), key="first")

    with pytest.raises(testing.NoFake) as caught:
        testing.run(process(body), effects={"lnit": 1})
    line = body.__code__.co_firstlineno + 1
    assert str(caught.value) == (
        f"no fake for the effect asked for at {__file__}:{line}:\n"
        "  first: tests.support.checks.lint('a.py')\n"
        "Give run(...) one by any of its names, such as\n"
        "  effects={'lint': lambda *args: None}\n"
        "Names that would do: 'first', 'tests.support.checks.lint', 'lint', 'function'; there are: 'lnit'"
    )


@pytest.mark.parametrize(
    ("effect", "fake", "said"),
    [
        (bb.shell("make"), lambda: 0, r"cannot be called for make#1: shell make\('make'\): too many positional"),
        (bb.shell("make"), [1], "give an exit code, text for stdout, or a bb.ShellResult"),
        (bb.approval("ok?"), "perhaps", "give one of 'yes', 'no'"),
        (bb.function("f"), {1, 2}, "cannot be stored: result: a set has no order"),
        (bb.function("f"), lambda: iter_of(3, {}), "yield a bb.Progress, a percent or a step's name"),
    ],
)
def test_a_fake_that_does_not_fit_ends_the_test(effect: Any, fake: Any, said: str) -> None:
    async def body(ctx: bb.Context) -> None:
        await ctx.run(effect)

    with pytest.raises(testing.FakeMisused, match=said):
        testing.run(process(body), effects={"shell": fake, "approval": fake, "f": fake})


def iter_of(*steps: Any) -> Iterator[Any]:
    yield from steps


def test_what_a_fake_asserts_ends_the_test() -> None:
    async def body(ctx: bb.Context) -> None:
        await bb.best_effort([ctx.start(bb.function("f", 1))])

    def fake(number: int) -> None:
        assert number == 2, "the wrong number"

    with pytest.raises(AssertionError, match="the wrong number"):
        testing.run(process(body), effects={"f": fake})


# --- what fakes give -------------------------------------------------------------------------------------------------


async def one(ctx: bb.Context) -> Any:
    """The outcome of an effect, in words."""
    handle = ctx.start(bb.shell("make"), key="it", timeout=60, total_timeout=200, silence_timeout=20, retry=bb.Retry(2))
    try:
        return await handle
    except bb.EffectError as error:
        return [type(error).__name__, error.reason, error.attempts, error.exit_code, error.stderr_tail]


def raises(error: Exception) -> Any:
    def fake(_command: Any) -> Any:
        raise error

    return fake


@pytest.mark.parametrize(
    ("fake", "outcome", "seconds"),
    [
        (0, {"exit_code": 0, "stdout_tail": "", "stderr_tail": "", "output": None, "signal": None}, 0),
        (3, ["EffectFailed", "EXITED_NONZERO", 2, 3, ""], 1),
        (bb.ShellResult(None, stderr_tail="oh", signal=9), ["EffectFailed", "KILLED_BY_SIGNAL", 2, None, "oh"], 1),
        (raises(KeyError("k")), ["EffectFailed", "RAISED", 2, None, ""], 1),
        (
            raises(bb.EffectTimedOut("", key="", reason="TIMEOUT_SILENCE", exit_code=1, stderr_tail="x")),
            ["EffectTimedOut", "TIMEOUT_SILENCE", 2, 1, "x"],
            1,
        ),
        (raises(bb.EffectCancelled("by hand", key="")), ["EffectCancelled", "CANCELLED_BY_USER", 1, None, ""], 0),
        (testing.NEVER, ["EffectTimedOut", "TIMEOUT_SILENCE", 2, None, ""], 41),
    ],
)
def test_how_a_fake_ends_an_effect(fake: Any, outcome: Any, seconds: float) -> None:
    run = testing.run(process(one), effects={"it": fake})
    assert run.result == outcome
    assert run.duration == pytest.approx(seconds, abs=0.01)


async def talks(until: float, every: float) -> AsyncIterator[Any]:
    for number in range(int(until / every)):
        yield f"step {number}"
        await asyncio.sleep(every)
    yield testing.result("said")


def test_progress_keeps_silence_away_until_the_attempt_takes_too_long() -> None:
    fine = testing.run(process(one), effects={"it": lambda _c: talks(50, 10)})
    assert fine.result["stdout_tail"] == "said"
    late = testing.run(process(one), effects={"it": lambda _c: talks(500, 10)})
    assert late.result[:3] == ["EffectTimedOut", "TIMEOUT_START_TO_CLOSE", 2]
    assert late.duration == 121


def test_the_total_timeout_ends_retries() -> None:
    async def body(ctx: bb.Context) -> Any:
        effect = bb.function("f")
        outcome = (
            await bb.best_effort([ctx.start(effect, key="f", total_timeout=100, retry=bb.Retry(99, initial=30))])
        )[0]
        return [outcome.error.reason, outcome.error.attempts] if outcome.error else None

    def fails() -> None:
        raise ValueError("v")

    assert testing.run(process(body), effects={"f": fails}).result == ["RAISED", 3]  # at 0, 30 and 90 s
    run = testing.run(process(body), effects={"f": testing.NEVER})
    assert run.result == ["TIMEOUT_TOTAL", 1]
    assert run.duration == 100


def test_a_cancelled_foreground_effect_may_clean_up_and_dies_proven() -> None:
    cleaned: list[float] = []

    async def fake(_command: Any) -> None:
        try:
            await asyncio.sleep(1000)
        finally:
            cleaned.append(asyncio.get_running_loop().time())

    async def body(ctx: bb.Context) -> Any:
        try:
            async with asyncio.timeout(30):
                await ctx.run(bb.shell("make"), key="it")
        except TimeoutError:
            return "late"

    run = testing.run(process(body), effects={"it": fake})
    assert run.result == "late"
    assert cleaned == [30]
    assert (run.effects["it"].state, run.effects["it"].reason) == ("CANCELLED", "AWAIT_CANCELLED")


def test_usage_and_session_of_an_agent() -> None:
    async def body(ctx: bb.Context) -> Any:
        first = ctx.start(bb.agent("codex", prompt="p"), key="first")
        answer = await first
        second = ctx.start(bb.agent("codex", prompt="q"), key="second", continue_from=first)
        assert answer.usage is not None
        return [answer.text, answer.usage.cost_usd, first.session, (await second).session_lost]

    session = bb.Session("codex", "s1", "e1", "/w")
    answer = bb.AgentResult("hi", usage=bb.Usage(10, 20, cost_usd=0.5), session=session)
    lost = bb.AgentResult("again", session_lost=True)
    run = testing.run(process(body), effects={"first": answer, "second": lost})
    assert run.result[:2] == ["hi", 0.5]
    assert run.result[2]["session_id"] == "s1"
    assert run.result[3] is True
    assert run.effects["second"].spec["continue_session"]["session_id"] == "s1"


def test_effects_that_nobody_needs_to_answer() -> None:
    async def body(ctx: bb.Context) -> Any:
        await ctx.run(bb.timer(ctx.now() + dt.timedelta(seconds=30)))
        await ctx.run(bb.function("f"), sleep_until=ctx.now() + dt.timedelta(seconds=30))
        return await ctx.run(bb.external("?", output=int))

    run = testing.run(process(body), effects={"f": None, "external": 5})
    assert (run.result, run.duration) == (5, 60)


def test_what_nobody_executes_has_one_bound_in_time() -> None:
    async def body(ctx: bb.Context) -> Any:
        with pytest.raises(bb.EffectTimedOut) as late:
            await ctx.run(bb.approval("?"), timeout=5, total_timeout=60)
        return late.value.reason

    run = testing.run(process(body), effects={"approval": testing.NEVER})
    assert (run.result, run.duration) == ("TIMEOUT_TOTAL", 5)


# --- child runs, signals, cancel, the end ----------------------------------------------------------------------------


@dataclass
class Row:
    name: str


@bb.process("testing-child")
async def child(ctx: bb.Context, row: Row, fail: bool = False) -> str:
    await asyncio.sleep(60)
    if fail:
        raise bb.Fail(f"no {row.name}")
    with ctx.scope(row.name):
        return await ctx.run(bb.function("work", row.name))


def test_a_child_run_runs_its_process_in_the_same_time() -> None:
    async def body(ctx: bb.Context) -> Any:
        handles = [ctx.start(bb.run(child, Row(n), fail=n == "c"), key=n) for n in "abc"]
        return [o.value if o.error is None else str(o.error) for o in await bb.best_effort(handles)]

    run = testing.run(process(body), effects={"work": str.upper})
    assert run.result[:2] == ["A", "B"]
    assert run.result[2].endswith("failed: no c")
    assert run.duration == 60
    assert [c.state for c in run.children] == ["COMPLETED", "COMPLETED", "FAILED"]
    assert run.children[0].effects["a/work#1"].value == "A"


def test_a_cancelled_child_run_is_asked_to_end() -> None:
    async def body(ctx: bb.Context) -> Any:
        async with asyncio.timeout(10):
            await ctx.run(bb.run(child, Row("a")), key="child")

    run = testing.run(process(body))
    assert (run.state, run.children[0].state, run.duration) == ("FAILED", "CANCELLED", 10)
    assert run.error is not None
    assert run.error["kind"] == "TIMEOUT"


def test_signals_come_at_their_times() -> None:
    async def body(ctx: bb.Context) -> Any:
        work = ctx.start(bb.function("f"), key="work")
        seen = [[await ctx.signal("go"), (ctx.now() - started).total_seconds()] for started in [ctx.now()] * 3]
        return [*seen, await work]

    signals = [
        testing.Signal("go", "third", at=1, settled="work"),
        testing.Signal("go", "second", at=2, asked="work"),
        testing.Signal("go", "first"),
    ]
    run = testing.run(process(body), effects={"work": testing.after(10, "done")}, signals=signals)
    assert run.result == [["first", 0], ["second", 2], ["third", 11], "done"]


def test_a_run_is_cancelled_and_cleans_up() -> None:
    async def body(ctx: bb.Context) -> Any:
        try:
            await ctx.run(bb.shell("sleep 300"), key="nap")
        finally:
            ctx.log.info("cleaning %s", ctx.cancel_reason, after="nap")
            await ctx.run(bb.function("clean"))

    effects = {"nap": testing.NEVER, "clean": testing.after(5)}
    run = testing.run(process(body), effects=effects, cancel=testing.Cancel(at=10, asked="nap", reason="enough"))
    assert (run.state, run.duration) == ("CANCELLED", 15)
    assert run.log == [testing.LogLine("INFO", "cleaning enough", {"after": "nap"}, 10)]
    with pytest.raises(testing.NotCompleted, match="body is CANCELLED"):
        _ = run.result
    assert testing.run(process(body), effects=effects, cancel=3.0).duration == 8


def test_a_run_that_goes_on_as_new_runs_is_seen_as_its_last() -> None:
    @bb.process("testing-rounds")
    async def rounds(ctx: bb.Context, left: int) -> str:
        await asyncio.sleep(10)
        if left:
            await ctx.continue_as_new(left - 1)
        return str(await ctx.signal("end"))

    run = testing.run(rounds, [2], signals=[testing.Signal("end", "over", at=25)])
    assert run.result == "over"
    assert [earlier.state for earlier in run.earlier] == ["CONTINUED", "CONTINUED"]


def test_a_halted_run_is_resumed() -> None:
    async def body(ctx: bb.Context) -> Any:
        await ctx.halt("look")
        return "went on"

    assert testing.run(process(body)).result == "went on"


def test_failures_and_bugs_are_outcomes() -> None:
    async def fails(ctx: bb.Context) -> Any:
        raise bb.Fail("no bread", {"shelf": 3})

    async def breaks(ctx: bb.Context) -> Any:
        raise KeyError("bug")

    failed = testing.run(process(fails))
    assert failed.state == "FAILED"
    assert failed.error is not None
    assert (failed.error["message"], failed.error["data"]) == ("no bread", {"shelf": 3})
    broken = testing.run(process(breaks))
    assert broken.state == "PROCESS_ERROR"
    with pytest.raises(
        testing.NotCompleted, match=r"(?s)body is PROCESS_ERROR: Traceback .*KeyError: 'bug'.*RUN_CREATED"
    ):
        _ = broken.result


def test_a_run_that_waits_for_ever_says_for_what() -> None:
    async def body(ctx: bb.Context) -> Any:
        ctx.start(bb.function("f"), key="open")
        await ctx.signal("never")

    run = testing.run(process(body), effects={"f": testing.NEVER})
    assert run.state == "RUNNING"
    with pytest.raises(testing.NotCompleted, match="body waits for what never comes; open effects: open"):
        _ = run.result


def test_a_run_without_an_end_is_stopped() -> None:
    async def body(ctx: bb.Context) -> Any:
        while True:  # noqa: ASYNC110 - what such a process does
            await asyncio.sleep(3600)

    with pytest.raises(testing.StillRunning, match=r"(?s)within 500 events.*TIMER_FIRED"):
        testing.run(process(body), events_max=500)


def test_wrong_arguments_name_the_field() -> None:
    with pytest.raises(bb.InvalidValue, match=r"row\.name: expected"):
        testing.run(child, {"row": {"name": 3}})
    with pytest.raises(TypeError, match="missing a required argument: 'row'"):
        testing.run(child)


# --- replay ----------------------------------------------------------------------------------------------------------


@pytest.mark.invariant("I8")
def test_code_that_is_not_deterministic_is_found_by_the_replay() -> None:
    count = itertools.count()

    async def body(ctx: bb.Context) -> Any:
        await ctx.run(bb.function("f", next(count)), key="k")  # state outside of the run

    with pytest.raises(testing.NotRepeatable) as caught:
        testing.run(process(body), effects={"f": None})
    line = body.__code__.co_firstlineno + 1
    assert str(caught.value).startswith(
        "body is not deterministic; a replay of its own journal asked for something else:\n"
        "replay diverged at seq 1 (RUN_CREATED): args of k changed: "
        'recorded {"function":{"args":[0],"function":"f"}} (seq 2); '
        f'asked {{"function":{{"args":[1],"function":"f"}}}} at {__file__}:{line}. '
    )


async def test_it_works_within_a_running_loop() -> None:
    loop = asyncio.get_running_loop()
    assert testing.run(child, {"row": {"name": "a"}}, {"work": "w"}).result == "w"
    assert asyncio.get_running_loop() is loop
    await asyncio.sleep(0)


def test_fakes_may_do_what_processes_may_not() -> None:
    async def body(ctx: bb.Context) -> str:
        return await ctx.run(bb.function("f"))

    def reads_itself() -> str:
        with open(__file__) as file:  # noqa: PTH123 - what a guard would see
            return file.read(20)

    assert testing.run(process(body), effects={"f": reads_itself}).result == '"""`bb.testing.run`:'


def test_the_journal_can_be_read() -> None:
    run = testing.run(child, {"row": {"name": "a"}}, {"work": "w"})
    assert str(run).splitlines()[:4] == [
        "testing-child: COMPLETED after 60 s",
        '    1      0.000s  RUN_CREATED                                  {"input":{"row":{"name":"a"}},'
        '"namespace":"default","process":"testing-child"}',
        "    2      0.000s  TIMER_SET                                    "
        '{"fire_at":"2026-01-01T00:01:00Z","ordinal":1}',
        '    3     60.000s  TIMER_FIRED                                  {"ordinal":1}',
    ]
