"""Decorators, registries, effect constructors."""

import asyncio
import datetime as dt
from typing import Any

import pytest

import scheduler_service.authoring as bb
from scheduler_service.authoring.definitions import check_annotations
from scheduler_service.authoring.options import spec_fields


@bb.function
def plain(path: str) -> int:
    return len(path)


@bb.function(name="test.named")
async def named(path: str) -> str:
    return path


@bb.process
async def bare(ctx: bb.Context) -> None: ...


@bb.process("test-process", version="3")
async def titled(ctx: bb.Context, name: str, count: int = 1) -> str:
    return name


def test_functions_and_processes_are_found_by_name() -> None:
    name = f"{plain.fn.__module__}.plain"
    assert bb.functions()[name] is plain
    assert (plain.is_async, named.is_async) == (False, True)
    assert plain.fn("abc") == 3
    assert asyncio.iscoroutinefunction(named.fn)
    assert bb.processes()["test-process"] is titled
    assert (titled.code_version, bare.name) == ("3", f"{bare.fn.__module__}.bare")
    with pytest.raises(TypeError):
        bb.processes()["x"] = titled  # type: ignore[index]


def test_calling_a_function_builds_an_effect_and_runs_nothing() -> None:
    effect = plain("x")
    assert (effect.kind, effect.name) == ("function", plain.name)
    assert effect.work == {"function": plain.name, "args": ["x"]}
    assert bb.function(plain.name, "x").digest == effect.digest
    assert bb.function("f", name="n").work == {"function": "f", "kwargs": {"name": "n"}}


def test_names_are_taken_once() -> None:
    with pytest.raises(ValueError, match="defined twice"):

        @bb.process("test-process")
        async def other(ctx: bb.Context) -> None: ...

    with pytest.raises(TypeError, match="async def"):
        bb.process(lambda ctx: None)  # type: ignore[arg-type, return-value]


def test_child_runs_take_their_input_by_signature_or_by_keyword() -> None:
    assert bb.run(titled, "n", count=2).work == {"process": "test-process", "input": {"count": 2, "name": "n"}}
    assert bb.run("worker", name="n").work == {"process": "worker", "input": {"name": "n"}}
    with pytest.raises(TypeError):
        bb.run(titled)  # type: ignore[call-overload]


@pytest.mark.parametrize(
    "group",
    [
        bb.group(""), bb.group("g", -1), bb.group("g", 2**31), bb.group("g", True), bb.group("g", 1.5),  # type: ignore[arg-type]
        bb.group("g", strategy="adaptive"), bb.group("g", 2, "eager"), "g",  # type: ignore[arg-type]
    ],
)  # fmt: skip
def test_a_group_that_cannot_be_is_refused(group: Any) -> None:
    with pytest.raises(bb.OptionError, match="group="):
        spec_fields({"group": group})


def test_an_adaptive_group_starts_at_its_limit() -> None:
    stored = {"id": "g", "strategy": "GROUP_STRATEGY_ADAPTIVE", "max_concurrency": 8}
    assert spec_fields({"group": bb.group("g", 8, "adaptive")}) == {"group": stored}


SESSION = bb.Session("codex", "s-1", "executor-1", "/src", "0190b3a0-0000-7000-8000-00000000000e")


def test_a_session_is_continued_by_the_effect_that_left_it_and_by_what_it_is() -> None:
    stored = {"harness": "codex", "session_id": "s-1", "executor_id": "executor-1", "workspace": "/src"}
    assert spec_fields({"continue_from": SESSION}) == {"continue_from": SESSION.effect_id, "continue_session": stored}
    assert spec_fields({"continue_from": bb.Session("codex", "s-1")}) == {
        "continue_session": {"harness": "codex", "session_id": "s-1"}
    }
    for given in (bb.Session("codex"), "s-1", 3):
        with pytest.raises(bb.OptionError, match="continue_from"):
            spec_fields({"continue_from": given})


@pytest.mark.parametrize(
    ("effect", "kind", "name", "work"),
    [
        (bb.shell("make test"), "shell", "make", {"command_line": "make test", "check": True}),
        (bb.shell(["/bin/ls", "-l"], check=False), "shell", "ls", {"argv": ["/bin/ls", "-l"]}),
        (bb.shell("x", stdin="", env={"B": "1", "A": "2"}, cwd="/s"), "shell", "x",
         {"command_line": "x", "check": True, "stdin": "", "env": {"A": "2", "B": "1"}, "cwd": "/s"}),
        (bb.agent("codex", prompt="p", model="m"), "agent", "codex", {"harness": "codex", "prompt": "p", "model": "m"}),
        (bb.approval("Go?"), "external", "approval", {"prompt": "Go?", "choices": ["yes", "no"]}),
        (bb.external("hook", data={"a": 1}), "external", "external", {"prompt": "hook", "data": {"a": 1}}),
        (bb.timer(dt.datetime(2026, 1, 1, 0, 0, 0, 500_000, dt.UTC)), "timer", "timer",
         {"fire_at": "2026-01-01T00:00:00.500Z"}),
    ],
)  # fmt: skip
def test_constructors_write_proto_json_without_defaults(effect: Any, kind: str, name: str, work: Any) -> None:
    assert (effect.kind, effect.name, effect.work) == (kind, name, work)


@pytest.mark.parametrize(
    "make",
    [
        lambda: bb.shell(""),
        lambda: bb.shell([]),
        lambda: bb.shell("  "),
        lambda: bb.agent("codex", prompt=""),
        lambda: bb.approval("x", choices=["a", "a"]),
    ],
)
def test_empty_effects_are_refused(make: Any) -> None:
    with pytest.raises(bb.OptionError):
        make()


def test_specs_are_the_protos() -> None:
    """What the constructors and options write is read by the generated classes without loss."""
    json_format = pytest.importorskip("google.protobuf.json_format")
    journal = pytest.importorskip("backburner.journal.v1.journal_pb2")
    fields = spec_fields({
        "timeout": 3.5, "queue_timeout": 60, "silence_timeout": dt.timedelta(minutes=1), "total_timeout": 0.0005,
        "kill_grace": 5, "retry": bb.Retry(3, non_retryable=["RAISED"]), "priority": -3, "labels": {"a": "b"},
        "group": bb.group("g", max_concurrency=2, strategy="sequential"), "executor_labels": {"gpu": "1"},
        "fallbacks": ["codex"], "on_quota": "fail", "sleep_until": dt.datetime(2026, 1, 1, tzinfo=dt.UTC),
        "on_run_end": "detach", "poll_interval": 1, "continue_from": SESSION, "if_session_lost": "fail",
        "retry_session": "fresh",
    })  # fmt: skip
    for effect in (
        plain("x"),
        bb.shell("make"),
        bb.agent("codex", prompt="p"),
        bb.approval("Go?"),
        bb.run(titled, "n"),
    ):
        spec = {"name": effect.name, effect.kind: effect.work, **fields, "background": True}
        message = json_format.ParseDict(spec, journal.EffectSpec())
        again = json_format.MessageToDict(message, preserving_proto_field_name=True)
        assert again == spec


def test_annotations_that_name_nothing_are_found_when_a_module_is_loaded() -> None:
    async def wrong(ctx: bb.Context, spec: "Missing") -> None: ...  # type: ignore[name-defined]  # noqa: F821

    definition = bb.ProcessDefinition("wrong", wrong)
    with pytest.raises(TypeError, match=r"annotations of <process wrong>: name 'Missing' is not defined"):
        check_annotations({"wrong": definition})
