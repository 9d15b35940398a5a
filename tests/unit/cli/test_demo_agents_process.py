"""The process of `backburner demo agents`, with agents, tests and merges that are played."""

import gc
from collections.abc import Iterator, Mapping
from dataclasses import asdict
from typing import Any

import pytest

from scheduler_service.cli.demo.agents.process import Agent, Order, improve_repository
from scheduler_service.replay.events import Command
from scheduler_service.replay.harness import Driven, Reply, check_prefixes, drive, failed, succeeded

AGENTS = [Agent("fix", "claude-code"), Agent("review", "codex"), Agent("document", "gemini-cli")]
# How long each agent takes, in the run's time.
TOOK = {"fix": 5.0, "review": 2.0, "document": 4.0, "again": 3.0}
REVIEW = {"summary": "fine", "findings": [{"file": "a.py", "line": 3, "severity": "low", "message": "a name"}]}


@pytest.fixture(autouse=True)
def no_callbacks_of_the_collector() -> Iterator[None]:
    # Hypothesis looks at the clock in one; when it runs within a step, that counts as a call of the process.
    kept, gc.callbacks[:] = gc.callbacks[:], []
    yield
    gc.callbacks[:] = kept


class World:
    """A repository as commits that are texts: `c0+fix+document`. The tests pass with those that have all of `needs`."""

    def __init__(
        self, *needs: str, breaks: str = "", conflict: str = "", fails: Mapping[str, str] | None = None
    ) -> None:
        self.needs = needs
        self.breaks = breaks
        self.conflict = conflict
        self.fails = fails or {}
        self.published: dict[str, str] = {}

    def __call__(self, command: Command) -> list[Reply]:
        spec, key = command.data["spec"], command.effect_key
        if "function" in spec:
            return self.function(spec["function"])
        if "shell" in spec:
            return self.tests(spec["shell"]["cwd"])
        role = key.partition("/")[0]
        if role in self.fails:
            return failed(self.fails[role], "no", after=TOOK[role])
        if role == "review":
            return succeeded(REVIEW, after=TOOK[role])
        session = {"harness": spec["agent"]["harness"], "session_id": role}
        if key.endswith("/again"):
            return succeeded("mended", after=TOOK["again"], session=session)
        workspace = {"path": f"/w/{role}", "result_commit": f"c0+{role}", "files_changed": 1, "insertions": 2}
        return succeeded("done", after=TOOK[role], session=session, workspace=workspace)

    def function(self, work: dict[str, Any]) -> list[Reply]:
        args, kwargs = work.get("args", []), work.get("kwargs", {})
        match work["function"]:
            case "demo.agents.clone":
                return succeeded({"path": "/c", "source": args[0], "commit": "c0"})
            case "demo.agents.checkout":
                return succeeded(args[1], after=0.1)
            case "demo.agents.commit":
                return succeeded({"id": f"c0+{args[1]}+again", "files": 2, "insertions": 5, "deletions": 1})
            case "demo.agents.publish":
                self.published = args[2]
                return succeeded(sorted(args[2]))
            case "backburner.merge":
                return self.merge(kwargs["base"], kwargs["commits"][0]["commit"])
        return succeeded(0.5)

    def merge(self, base: str, commit: str) -> list[Reply]:
        name = commit.removeprefix("c0+").removesuffix("+again")
        item: dict[str, Any] = {"status": "merged", "name": name, "commit": commit}
        if name == self.conflict and base != "c0":
            conflicts = [{"path": "a.py", "kind": "contents", "hunks": [[2, 6]]}]
            item |= {"status": "conflict", "conflicts": conflicts}
        merged = {"branch": "trial", "base_commit": base, "commit": base + commit.removeprefix("c0"), "items": [item]}
        return succeeded(merged, after=0.1)

    def tests(self, commit: str) -> list[Reply]:
        have = commit.split("+")
        ok = all(need in have for need in self.needs) and (self.breaks not in have or "again" in have)
        said = "3 passed in 1s" if ok else "E   assert 1 == 2\n1 failed, 2 passed in 1s"
        return succeeded(exit_code=int(not ok), stdout={"tail": said}, after=2.0)


def demo(world: World) -> Driven:
    order = Order("/r", "/p", "make test", "backburner/agents-1")
    return drive(improve_repository, {"order": asdict(order), "agents": [asdict(agent) for agent in AGENTS]}, world)


def work_of(driven: Driven) -> dict[str, dict[str, Any]]:
    return {work["role"]: work for work in driven.result["work"]}


def keys(driven: Driven, type_: str = "EFFECT_REQUESTED") -> list[str]:
    return [event.effect_key for event in driven.events if event.type == type_]


def test_what_passes_the_tests_is_merged_as_it_comes_in() -> None:
    world = World()
    driven = demo(world)
    work = work_of(driven)
    assert {role: one["merged"] for role, one in work.items()} == {"fix": True, "review": False, "document": True}
    assert world.published == {"backburner/agents-1": "c0+document+fix"}
    assert work["review"]["findings"] == REVIEW["findings"]
    assert driven.result["passed_before"]
    assert driven.result["after"] == "3 passed in 1s"


def test_who_breaks_the_tests_is_told_so_in_the_same_session() -> None:
    driven = demo(World(breaks="document"))
    asked = {event.effect_key: event for event in driven.events if event.type == "EFFECT_REQUESTED"}
    again = asked["document/gemini-cli/again"]
    assert again.data["spec"]["continue_from"] == asked["document/gemini-cli"].effect_id
    assert "assert 1 == 2" in again.data["spec"]["agent"]["prompt"]
    assert again.data["spec"]["agent"]["workspace"]["source"] == "/w/document"
    work = work_of(driven)["document"]
    assert (work["merged"], work["files"], work["answer"]) == (True, 2, "mended")
    assert work["keys"] == ["document/gemini-cli", "document/gemini-cli/again"]


def test_what_fails_as_everything_does_waits_for_a_fix() -> None:
    world = World("fix")
    driven = demo(world)
    assert "document/gemini-cli/again" not in keys(driven), "it is not to blame"
    assert not driven.result["passed_before"]
    assert world.published == {"backburner/agents-1": "c0+fix+document"}, "tried again once the tests pass"


def test_a_fix_that_does_not_is_tried_once_more_and_then_left_to_people() -> None:
    world = World("nothing")
    work = work_of(demo(world))
    assert work["fix"]["keys"] == ["fix/claude-code", "fix/claude-code/again"]
    assert {work[role]["why"] for role in ("fix", "document")} == {"the tests fail with it, as without it"}
    assert world.published == {
        "backburner/agents-1-fix": "c0+fix+again",
        "backburner/agents-1-document": "c0+document",
    }


def test_a_conflict_is_reported_and_not_made() -> None:
    world = World(conflict="fix")
    work = work_of(demo(world))["fix"]
    assert not work["merged"]
    assert work["why"] == "in conflict with what was merged before it: a.py (contents, lines 2-6)"
    assert world.published == {"backburner/agents-1": "c0+document", "backburner/agents-1-fix": "c0+fix"}


def test_an_agent_that_fails_keeps_nobody_from_anything() -> None:
    world = World(fails={"fix": "AUTHENTICATION"})
    driven = demo(world)
    work = work_of(driven)["fix"]
    assert (work["failed"], work["why"]) == (True, "AUTHENTICATION: no")
    assert world.published == {"backburner/agents-1": "c0+document"}


def test_the_foreground_goes_on_under_every_agent() -> None:
    events = demo(World(breaks="fix")).events
    asked = {event.effect_key: event.seq for event in events if event.type == "EFFECT_REQUESTED"}
    ended = {event.effect_key: event.seq for event in events if event.type == "EFFECT_RESOLVED"}
    for agent in ("fix/claude-code", "fix/claude-code/again", "review/codex", "document/gemini-cli"):
        quick = [key for key in ended if asked[agent] < asked[key] and ended[key] < ended[agent]]
        assert len(quick) > 2, agent


@pytest.mark.invariant("I8")
@pytest.mark.parametrize("world", [World(breaks="document"), World("fix", conflict="document")])
def test_every_prefix_replays_to_the_same_requests(world: World) -> None:
    check_prefixes(demo(world))
