"""RequestEffects and FinishRun, parsed: every violation at once with its path, each limit at its edge and beyond it."""

from typing import Any

import pytest
from google.protobuf import json_format

from backburner.scheduler.v1 import scheduler_service_pb2 as pb
from scheduler_service.api import limits
from scheduler_service.api.client_requests import effects_asked, finish
from scheduler_service.api.effect_specs import spec_digest
from scheduler_service.authoring import effects as authored
from scheduler_service.errors import InvalidRequest, PayloadTooLarge

RUN = "01890a5d-ac96-774b-bcce-b302099a8057"


def asking(*effects: dict[str, Any], **fields: Any) -> pb.RequestEffectsRequest:
    given = {"run_id": RUN, "client_epoch": 1, "effects": list(effects)} | fields
    return json_format.ParseDict(given, pb.RequestEffectsRequest())


def shell(key: str = "k", **spec: Any) -> dict[str, Any]:
    return {"key": key, "spec": {"shell": {"argv": ["true"]}} | spec}


def paths(request: Any, parse: Any = effects_asked) -> set[str]:
    with pytest.raises(InvalidRequest) as caught:
        parse(request)
    return {item.field for item in caught.value.violations}


def test_all_violations_of_a_batch_are_named_at_once_with_their_paths() -> None:
    request = asking(
        shell("a"),
        shell("a", retry={"max_attempts": -1, "backoff": 0.5, "non_retryable": ["RAISED", "TIRED"]}),
        {"key": "no spaces"},
        {"key": "b", "spec": {"name": "x"}},
        shell("c", timeouts={"total": "0s", "kill_grace": "61s"}, priority=101, group={"max_concurrency": 2}),
        shell("d", labels={"-": "x"}, continue_from="x", if_session_lost="perhaps", retry_session="no", fallbacks=[""]),
        shell("e", on_quota=99),
        namespace="NO",
        client_epoch=0,
    )
    assert paths(request) == {
        "namespace", "client_epoch", "effects[1].key", "effects[1].spec.retry.max_attempts",
        "effects[1].spec.retry.backoff", "effects[1].spec.retry.non_retryable[1]", "effects[2].key", "effects[2].spec",
        "effects[3].spec.work", "effects[4].spec.timeouts.total", "effects[4].spec.timeouts.kill_grace",
        "effects[4].spec.priority", "effects[4].spec.group.id", "effects[5].spec.labels['-']",
        "effects[5].spec.continue_from", "effects[5].spec.if_session_lost", "effects[5].spec.retry_session",
        "effects[5].spec.fallbacks[0]", "effects[6].spec.on_quota",
    }  # fmt: skip


@pytest.mark.parametrize(
    ("work", "path"),
    [
        ({"shell": {}}, "shell"),
        ({"shell": {"argv": ["a"], "command_line": "a"}}, "shell"),
        ({"shell": {"argv": [""]}}, "shell"),
        ({"shell": {"command_line": " "}}, "shell"),
        ({"shell": {"argv": ["a", "b\0"]}}, "shell.argv[1]"),
        ({"shell": {"argv": ["a"], "env": {"A=B": "c"}}}, "shell.env['A=B']"),
        ({"shell": {"argv": ["a"], "output_bytes_max": -1}}, "shell.output_bytes_max"),
        ({"function": {}}, "function.function"),
        ({"function": {"function": "f", "args": ["a\0"]}}, "function.args[0]"),
        ({"function": {"function": "f", "kwargs": {"a": [float("inf")]}}}, "function.kwargs.a[0]"),
        ({"agent": {"harness": "codex"}}, "agent.prompt"),
        (
            {"agent": {"harness": "h", "prompt": "p", "output_schema": {"properties": {"a": {"required": "x"}}}}},
            "agent.output_schema.properties.a.required",
        ),
        ({"agent": {"harness": "h", "prompt": "{{a.b}}", "inputs": {"a": 1}}}, "agent.prompt"),
        ({"agent": {"harness": "h", "prompt": "p", "system_prompt": "{{a", "inputs": {}}}, "agent.system_prompt"),
        ({"agent": {"harness": "h", "prompt": "p", "attachments": [{"name": "n"}]}}, "agent.attachments[0].path"),
        ({"agent": {"harness": "h", "prompt": "p", "secrets": {"A": "../b"}}}, "agent.secrets['A']"),
        ({"shell": {"argv": ["a"], "env": {"A": "1"}, "secrets": {"A": "b"}}}, "shell.secrets['A']"),
        ({"shell": {"argv": ["a"], "secrets": {"A=": "b"}}}, "shell.secrets['A=']"),
        ({"external": {"choices": ["a", "a"]}}, "external.choices"),
        ({"external": {"choices": [""]}}, "external.choices[0]"),
        ({"run": {}}, "run.process"),
        ({"timer": {}}, "timer.fire_at"),
    ],
)
def test_work_that_cannot_be_is_refused_at_its_place(work: dict[str, Any], path: str) -> None:
    assert f"effects[0].spec.{path}" in paths(asking({"key": "k", "spec": work}))


#: What means nothing to an effect that no executor takes, each with a value that another effect may have.
FOR_EXECUTORS: dict[str, Any] = {
    "timeouts": {"schedule_to_start": "1s", "silence": "1s", "kill_grace": "1s"}, "retry": {"max_attempts": 2},
    "priority": 1, "group": {"id": "g"}, "executor_labels": {"a": "b"}, "fallbacks": ["codex"],
    "sleep_until": "2030-01-01T00:00:00Z", "continue_from": RUN, "continue_session": {"session_id": "s"},
    "if_session_lost": "fresh", "retry_session": "continue", "on_quota": "ON_QUOTA_PARK",
}  # fmt: skip


@pytest.mark.parametrize(
    "work", [{"run": {"process": "p"}}, {"external": {}}, {"timer": {"fire_at": "2030-01-01T00:00:00Z"}}]
)
def test_what_no_executor_takes_has_no_options_of_executors(work: dict[str, Any]) -> None:
    effects_asked(asking(shell(**FOR_EXECUTORS)))
    refused = {"timeouts.schedule_to_start", "timeouts.silence", "timeouts.kill_grace", *FOR_EXECUTORS} - {"timeouts"}
    of_all = {"timeouts": {"start_to_close": "1s", "total": "1s"}, "labels": {"a": "b"}, "background": True,
              "on_run_end": "ON_RUN_END_DETACH", "poll_interval": "1s", "name": "n"}  # fmt: skip
    effects_asked(asking({"key": "k", "spec": work | of_all}))
    assert paths(asking({"key": "k", "spec": work | FOR_EXECUTORS})) == {f"effects[0].spec.{name}" for name in refused}


def test_a_timer_beyond_time_is_refused() -> None:
    request = asking({"key": "k", "spec": {"timer": {"fire_at": "2030-01-01T00:00:00Z"}}})
    request.effects[0].spec.timer.fire_at.seconds = 1 << 60
    assert paths(request) == {"effects[0].spec.timer.fire_at"}
    for edge in ("9999-12-31T23:59:59.999999999Z", "0001-01-01T00:00:00Z"):  # beyond it in another zone, or rounded
        both = {"timer": {"fire_at": edge}}, {"shell": {"argv": ["true"]}, "sleep_until": edge}
        asked = asking(*({"key": f"k{n}", "spec": spec} for n, spec in enumerate(both)))
        assert paths(asked) == {"effects[0].spec.timer.fire_at", "effects[1].spec.sleep_until"}


@pytest.mark.invariant("I11")
def test_a_batch_has_at_most_a_thousand_effects() -> None:
    batch = [shell(f"k{n}") for n in range(limits.REQUEST_EFFECTS_MAX + 1)]
    assert len(effects_asked(asking(*batch[:-1])).effects) == limits.REQUEST_EFFECTS_MAX
    assert paths(asking(*batch)) == {"effects"}
    assert paths(asking()) == {"effects"}


@pytest.mark.invariant("I11")
def test_a_batch_and_each_of_its_specs_have_a_size() -> None:
    def of(size: int) -> dict[str, Any]:
        return {"key": "k", "spec": {"shell": {"argv": ["cat"], "stdin": "x" * size}}}

    overhead = len('{"name":"cat","shell":{"argv":["cat"],"stdin":""}}')
    effects_asked(asking(of(limits.SPEC_BYTES_MAX - overhead)))
    with pytest.raises(PayloadTooLarge, match=r"effects\[0\].spec"):
        effects_asked(asking(of(limits.SPEC_BYTES_MAX - overhead + 1)))
    quarter = limits.REQUEST_BYTES_MAX // 4
    five = [of(quarter - 1000) | {"key": f"k{n}"} for n in range(5)]
    with pytest.raises(PayloadTooLarge, match="effects: are"):
        effects_asked(asking(*five))


@pytest.mark.parametrize(
    ("spec", "effect"),
    [
        ({"shell": {"argv": ["/bin/ls", "-l"], "check": True}}, authored.shell(["/bin/ls", "-l"])),
        ({"shell": {"command_line": "a | b", "stdin": ""}}, authored.shell("a | b", stdin="", check=False)),
        (
            {"function": {"function": "f", "args": [1, 2.5, None], "kwargs": {"a": {"b": []}}}},
            authored.function_effect("f", [1, 2.5, None], {"a": {"b": []}}),
        ),
        (
            {"name": "ask", "external": {"prompt": "?", "choices": ["y"]}},
            authored.external("?", choices=["y"], label="ask"),
        ),
        ({"run": {"process": "p", "input": {"n": 1}}}, authored.run_effect("p", {"n": 1})),
    ],
)
def test_a_spec_has_the_digest_that_process_code_would_give_it(spec: dict[str, Any], effect: Any) -> None:
    [asked] = effects_asked(asking({"key": "k", "spec": spec})).effects
    assert (asked.spec["name"], spec_digest(asked.spec)) == (effect.name, effect.digest)


def test_hints_are_not_in_the_digest() -> None:
    hints: dict[str, Any] = {
        "priority": 5,
        "timeouts": {"total": "5s"},
        "background": True,
        "retry": {"max_attempts": 2},
    }
    plain, hinted = (effects_asked(asking(one)).effects[0].spec for one in (shell(), shell(**hints)))
    assert plain != hinted
    assert spec_digest(plain) == spec_digest(hinted)


def test_an_end_is_one_outcome() -> None:
    def ending(**fields: Any) -> pb.FinishRunRequest:
        return json_format.ParseDict({"run_id": RUN, "client_epoch": 1} | fields, pb.FinishRunRequest())

    assert paths(ending(client_epoch=0), finish) == {"outcome", "client_epoch"}
    assert finish(ending(succeeded=None)).data == {"result": {"value": None}}
    asked = finish(ending(failed={"message": "disk full"}, wait=True))
    assert (asked.state, asked.data, asked.wait) == (
        "FAILED",
        {"error": {"kind": "FAIL", "message": "disk full"}},
        True,
    )
    assert paths(ending(failed={"message": "a\0", "traceback": "x" * (limits.ERROR_BYTES_MAX + 1)}), finish) == {
        "failed.message", "failed.traceback",
    }  # fmt: skip
