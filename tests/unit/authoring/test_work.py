"""What effects and options may hold: refused at the line in Python's words, never a row that no reader can parse."""

import datetime as dt
from collections.abc import Callable
from typing import Any

import pytest
from google.protobuf import json_format

import scheduler_service.authoring as bb
from backburner.journal.v1 import journal_pb2
from scheduler_service.api import effect_specs
from scheduler_service.api.checks import checked
from scheduler_service.authoring import durations, options, work
from scheduler_service.authoring.errors import REASONS
from scheduler_service.authoring.options import spec_fields

LATEST = options.TIME_MAX


def spec_of(effect: bb.Effect[Any], **given: Any) -> dict[str, Any]:
    return {"name": effect.name, effect.kind: effect.work, **spec_fields(given)}  # type: ignore[arg-type]


REFUSED: list[tuple[Callable[[], Any], str]] = [
    (lambda: bb.shell("x", env={"PORT": 80}), "shell: env['PORT']: expected text, got 80"),  # type: ignore[dict-item]
    (lambda: bb.shell("x", env={"A=B": "1"}), "shell: env: 'A=B' is no name of a variable"),
    (lambda: bb.shell("x", stdin=5), "shell: stdin: expected text, got 5"),  # type: ignore[arg-type]
    (lambda: bb.shell("x", check="no"), "shell: check: expected True or False, got 'no'"),  # type: ignore[arg-type]
    (lambda: bb.shell("x", output_bytes_max=-1), "shell: output_bytes_max: expected 0 to 33554432 bytes, got -1"),
    (lambda: bb.shell([""]), "shell: argv: expected a program and its arguments, got ['']"),
    (lambda: bb.shell("x", label="l" * 257), "shell: name (label=): expected 1 to 256 bytes of text, got 'lll"),
    (lambda: bb.shell("x", label="a\x00"), "shell: name (label=): text holds a NUL character, which cannot be stored"),
    (lambda: bb.external("?", data=[1]), "external: data: expected an object (a dict), got [1]"),  # type: ignore[arg-type]
    (lambda: bb.external("?", choices=["a", ""]), "external: choices[1]: expected 1 to 256 bytes of text, got ''"),
    (lambda: bb.external("?", choices=["a", "a"]), "external: choices: expected distinct names, got ['a', 'a']"),
    (lambda: bb.approval("?", choices="yes"), "choices and assignees: expected a list of names, got 'yes'"),
    (lambda: bb.approval("?", assignees="ops"), "choices and assignees: expected a list of names, got 'ops'"),
    (lambda: bb.agent("h", prompt="p", options=[1]), "agent: options: expected an object (a dict), got [1]"),  # type: ignore[call-overload]
    (lambda: bb.agent("h", prompt="p", workspace="/r"), "agent: workspace: expected bb.worktree(...), bb.copy_of("),  # type: ignore[call-overload]
    (lambda: bb.agent("h", prompt="p", cwd="/c", workspace=bb.exclusive("/r")), "agent: give either cwd or workspace"),
    (lambda: bb.worktree("repo"), "workspace.source: must be an absolute path on the executor, got 'repo'"),
    (lambda: bb.worktree("/r", base="-x"), "workspace.base: must be the name of a branch, tag or commit, got '-x'"),
    (lambda: bb.worktree("/r", base=1), "workspace.base: expected text, got 1"),  # type: ignore[arg-type]
    (lambda: bb.copy_of("/r", keep="yes"), "workspace: keep: expected on_failure, always or never, got 'yes'"),
    (lambda: bb.Workspace("CLOUD", "/r"), "workspace.kind: expected DIRECTORY, WORKTREE, COPY, got 'WORKSPACE_KIND"),
    (lambda: bb.Workspace("COPY", "/r", "main"), "workspace.base: is for worktrees only, got 'main'"),
    (lambda: bb.merge("r", []), "merge: repo: expected an absolute path on the executor, got 'r'"),
    (
        lambda: bb.merge("/r", [5]),
        "merge: results[0]: expected an AgentResult, an Outcome, a WorkspaceResult or the id",
    ),
    (lambda: bb.agent("h", prompt="a {{b}}", inputs={"c": 1}), "agent: prompt: {{b}} names nothing in the inputs"),
    (lambda: bb.agent("h", prompt="a", attach="abc"), "agent: attach: expected a list of paths, or a dict of paths by"),
    (lambda: bb.agent("h", prompt="a", attach=[""]), "agent: attachments[0]: it has no path"),
    (lambda: bb.agent("h", prompt="a", secrets={"A": "a/b"}), "agent: secrets['A'] must be a secret's name: 1 to 128"),
    (lambda: bb.agent("h", prompt="a", secrets={"A=": "b"}), "agent: secrets: 'A=' is no name of a variable"),
    (lambda: bb.shell("x", env={"A": "1"}, secrets={"A": "b"}), "shell: secrets['A'] is in env too"),
    (lambda: bb.agent("h", prompt=5), "agent: prompt: expected text, got 5"),  # type: ignore[call-overload]
    (lambda: bb.function("f" * 257), "function: name (label=): expected 1 to 256 bytes of text, got 'fff"),
    (lambda: bb.timer("2026"), "timer: fire_at: expected a datetime with a time zone, such as ctx.now() + ..."),  # type: ignore[arg-type]
    (lambda: bb.Effect("pigeon", "p", {}, lambda _s: None), "effect 'p': kind 'pigeon' is none of shell, function"),
    (lambda: bb.Effect("timer", "p", {"at": 1}, lambda _s: None), "timer: unknown field 'at'; there are: fire_at"),
]
REFUSED_OPTIONS: list[tuple[dict[str, Any], str]] = [
    ({"retry": 1001}, "retry.max_attempts=1001: expected an integer from 1 to 1000"),
    ({"retry": bb.Retry(2, backoff="2")}, "retry.backoff='2': expected a factor from 1"),  # type: ignore[arg-type]
    ({"retry": bb.Retry(2, non_retryable=["NOPE"])}, "retry.non_retryable=['NOPE']: expected names of"),
    ({"retry": bb.Retry(2, non_retryable="RAISED")}, "retry.non_retryable='RAISED': expected names of reasons"),
    ({"kill_grace": 61}, "kill_grace=61: expected 0 to 60 seconds"),
    ({"timeout": 0}, "timeout=0: expected more than 0 and at most 315360000 seconds"),
    ({"group": bb.group("g" * 257, 1)}, "group: id: expected 1 to 256 bytes of text, got 'ggg"),
    ({"labels": {str(n): "" for n in range(33)}}, "labels={'0': '', "),
    ({"labels": {"a b": "v"}}, "labels['a b']: the name must be at most 63 of A-Z a-z 0-9 . _ / -, a letter"),
    ({"labels": {"a": "v" * 256}}, "labels['a']: more than 255 bytes"),
    ({"executor_labels": ["a"]}, "executor_labels=['a']: expected a dict of at most 32 labels"),
    ({"fallbacks": ["h"] * 11}, "fallbacks=['h', "),
    ({"on_quota": "wait"}, "on_quota='wait': expected fail_over or park or fail"),
    ({"on_run_end": []}, "on_run_end=[]: expected wait or cancel or detach"),
    ({"sleep_until": LATEST + dt.timedelta(microseconds=1)}, "sleep_until=datetime.datetime(9999, 12, 29, "),
    ({"continue_from": bb.Session(effect_id="x")}, "continue_from=Session("),
    ({"continue_from": bb.Session(session_id=5)}, "continue_from: session_id: expected text, got 5"),  # type: ignore[arg-type]
]  # fmt: skip


@pytest.mark.parametrize(("build", "said"), REFUSED, ids=[said for _build, said in REFUSED])
def test_work_that_cannot_be_is_refused_where_it_is_built(build: Callable[[], Any], said: str) -> None:
    with pytest.raises((bb.OptionError, bb.InvalidValue)) as caught:
        build()
    assert str(caught.value).startswith(said)


@pytest.mark.parametrize(("given", "said"), REFUSED_OPTIONS, ids=[said for _given, said in REFUSED_OPTIONS])
def test_an_option_that_cannot_be_is_refused_where_it_is_given(given: dict[str, Any], said: str) -> None:
    with pytest.raises((bb.OptionError, bb.InvalidValue)) as caught:
        spec_of(bb.shell("x"), **given)
    assert str(caught.value).startswith(said)


MOST = [
    spec_of(bb.shell(["x"] * 3, env={"A": "1"}, stdin="", check=False, output_bytes_max=32 << 20, label="l" * 256)),
    spec_of(bb.shell("\u00e9" * 200), kill_grace=0, timeout=0.001, total_timeout=durations.DURATION_SECONDS_MAX),
    spec_of(bb.agent("h" * 256, prompt="p", model="m", options={"a": [1]}, output_schema={"type": "object"})),
    spec_of(bb.agent("h", prompt="p", workspace=bb.worktree("/r", base="main", keep="always"))),
    spec_of(bb.agent("h", prompt="p", workspace=bb.copy_of("/d", keep="never"))),
    spec_of(bb.agent("h", prompt="{{a.b}}", inputs={"a": {"b": 1}}, attach={"n": "x"}, secrets={"A": "a.b"})),
    spec_of(bb.agent("h", prompt="p", inputs={}, attach=["x", "/y"])),
    spec_of(bb.shell("x", secrets={"A": "a"})),
    spec_of(bb.agent("h", prompt="p", workspace=bb.exclusive("/d"))),
    spec_of(bb.merge("/r", ["1" * 40, bb.AgentResult("t"), None], into="x", base="main", update_checkout=True)),
    spec_of(bb.external("?", choices=[str(n) for n in range(work.ITEMS_MAX)], assignees=["ops"], data={"a": 1})),
    spec_of(bb.function("f" * 256, 1, [2], a={"b": None}), retry=bb.Retry(1000, non_retryable=REASONS), priority=-100),
    spec_of(bb.run("p", x=[1]), on_run_end="detach", labels={f"a/{n}.b_c-d": "v" * 255 for n in range(32)}),
    spec_of(bb.timer(LATEST)),
    spec_of(bb.shell("x"), sleep_until=LATEST),
    spec_of(
        bb.shell("x"), group=bb.group("g" * 256, 2**31 - 1, "adaptive"), fallbacks=["h" * 256] * 10, on_quota="park"
    ),
    spec_of(bb.shell("x"), continue_from=bb.Session("h", "s", "x", "/w", "0190b3a0-0000-7000-8000-000000000001")),
]


@pytest.mark.parametrize("spec", MOST, ids=range(len(MOST)))
def test_what_may_be_built_can_be_read_and_a_client_may_ask_for_it_too(spec: dict[str, Any]) -> None:
    message = json_format.ParseDict(spec, journal_pb2.EffectSpec())
    with checked() as check:
        effect_specs.check_spec(check, "spec", message)


def test_the_reasons_that_authors_name_are_those_of_the_protocol() -> None:
    known = [name.removeprefix("EFFECT_REASON_") for name in journal_pb2.EffectReason.keys()]  # noqa: SIM118
    assert ["UNSPECIFIED", *REASONS] == known
