"""The six processes that the API was decided by, as authors write them; they type-check and they run."""

import asyncio
import itertools
from dataclasses import dataclass
from typing import Any

import backburner as bb
from scheduler_service.replay.harness import Reply, check_prefixes, drive, failed, succeeded


@dataclass
class LintReport:
    problems: int


@dataclass
class Verdict:
    approve: bool


@dataclass
class Report:
    exit_code: int | None
    found: list[LintReport]


@bb.function
def lint(path: str) -> LintReport:
    return LintReport(len(path))


@bb.process("release-check")
async def release_check(ctx: bb.Context, repo: str, files: list[str]) -> Report:
    tests = ctx.start(bb.shell("make test", cwd=repo, check=False), key="tests", timeout=3600)
    async with asyncio.TaskGroup() as tg:
        found = [tg.create_task(ctx.run(lint(f), key=f"lint/{f}")) for f in files]
    if not tests.done():
        ctx.report(label=f"tests at {tests.progress.percent}")
    out = await tests
    return Report(out.exit_code, [t.result() for t in found])


@bb.process("review")
async def review(ctx: bb.Context, diff: str) -> str:
    harnesses = ("claude-code", "codex", "gemini-cli")
    hs = [ctx.start(bb.agent(h, prompt=diff, output=Verdict), key=f"review/{h}") for h in harnesses]
    try:
        won = await bb.quorum(hs, k=2, accept=lambda o: o.ok and o.value.approve)
    except bb.QuorumNotReached as e:
        return f"rejected: {len(e.outcomes)}"
    return "approved by " + ", ".join(o.key for o in won)


@bb.process("poll")
async def poll(ctx: bb.Context, prompt: str) -> str:
    h = ctx.start(bb.agent("codex", prompt=prompt), key="long")
    async for p in h.updates(every=60):
        ctx.report(percent=p.percent, label=p.step)
    return (await h).text


@bb.process("deploy")
async def deploy(ctx: bb.Context, tag: str) -> bool:
    ask = ctx.start(bb.approval(f"Deploy {tag}?", choices=["yes", "no"], assignees=["ops"]), key="approve")
    while True:
        try:
            async with asyncio.timeout(3600):
                return (await ask).choice == "yes"
        except TimeoutError:
            await ctx.run(bb.function("notify.remind", ask.effect_id))


@bb.process("map")
async def over_files(ctx: bb.Context, files: list[str]) -> dict[str, str]:
    group = bb.group("fix", max_concurrency=8)
    outs = await bb.best_effort(
        ctx.start(bb.agent("codex", prompt=f), key=f"fix/{f}", group=group, retry=bb.Retry(3, initial=5)) for f in files
    )
    return {o.key: o.error.reason if o.error else o.value.text for o in outs}


@bb.process("supervisor")
async def supervise(ctx: bb.Context, names: list[str], sessions: dict[str, bb.Session]) -> None:
    async def keep(name: str) -> Any:  # noqa: RET503 - itertools.count never ends
        for n in itertools.count(1):
            try:
                return await ctx.run(bb.run("worker", name=name, session=sessions.get(name)), key=f"{name}/{n}")
            except bb.EffectFailed as e:
                if e.session is not None:
                    sessions[name] = e.session
                await asyncio.sleep(min(2**n, 300))

    async with asyncio.TaskGroup() as tg:
        for n in names:
            tg.create_task(keep(n), name=n)


def test_release_check() -> None:
    def answer(command: Any) -> list[Reply]:
        if command.effect_key == "tests":
            return succeeded(exit_code=2, after=9)
        return succeeded({"problems": 1})

    run = drive(release_check, {"repo": "/r", "files": ["a", "b"]}, answer)
    assert run.result == {"exit_code": 2, "found": [{"problems": 1}, {"problems": 1}]}
    assert [event.cause for event in run.rows("EFFECT_REQUESTED")] == [1, 1, 1]  # one commit
    check_prefixes(run)


def test_review() -> None:
    approving = drive(review, {"diff": "d"}, lambda _c: succeeded({"approve": True}))
    assert approving.result == "approved by review/claude-code, review/codex"
    assert drive(review, {"diff": "d"}, lambda _c: succeeded({"approve": False})).result == "rejected: 2"


def test_poll_writes_no_timer() -> None:
    def answer(_command: Any) -> list[Reply]:
        rows = [Reply("EFFECT_PROGRESS", {"progress": {"percent": n, "step": "s"}}, n * 10.0) for n in range(1, 10)]
        return [*rows, *succeeded("text", after=200)]

    run = drive(poll, {"prompt": "p"}, answer)
    assert run.result == "text"
    assert [row.data["percent"] for row in run.rows("RUN_REPORTED")] == [1, 7]
    assert run.rows("TIMER_SET") == []


def test_deploy_reminds_until_it_is_answered() -> None:
    def answer(command: Any) -> list[Reply]:
        data = {"state": "EFFECT_STATE_SUCCEEDED", "result": {"choice": "yes"}, "resolved_by": "ann"}
        return [Reply("EFFECT_RESOLVED", data, 9000)] if command.effect_key == "approve" else succeeded()

    run = drive(deploy, {"tag": "1"}, answer)
    assert run.result is True
    assert [row.effect_key for row in run.rows("EFFECT_REQUESTED")] == ["approve", "notify.remind#1", "notify.remind#2"]


def test_map_over_500_files_is_one_commit() -> None:
    files = [f"f{n}" for n in range(500)]
    run = drive(over_files, {"files": files}, lambda c: failed() if c.effect_key == "fix/f7" else succeeded("ok"))
    assert {event.cause for event in run.rows("EFFECT_REQUESTED")} == {1}
    assert run.result["fix/f7"] == "RAISED"
    assert run.result["fix/f8"] == "ok"


def test_supervisor_carries_the_session_on() -> None:
    def answer(command: Any) -> list[Reply]:
        if command.effect_key != "w/1":
            return succeeded()
        error = {"reason": "EFFECT_REASON_CHILD_RUN_FAILED"}
        result = {"session": {"harness": "codex", "session_id": "s1"}}
        return [Reply("EFFECT_RESOLVED", {"state": "EFFECT_STATE_FAILED", "error": error, "result": result})]

    run = drive(supervise, {"names": ["w"], "sessions": {}}, answer)
    second = run.rows("EFFECT_REQUESTED")[1]
    assert second.data["spec"]["run"]["input"]["session"]["session_id"] == "s1"
    check_prefixes(run)
