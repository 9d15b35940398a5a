"""Requests are refused with every violation at once, each with the path of its field."""

import contextlib
import uuid
from collections.abc import Callable
from typing import Any

import pytest
from google.protobuf import struct_pb2
from google.protobuf.duration_pb2 import Duration
from google.protobuf.timestamp_pb2 import Timestamp
from hypothesis import given
from hypothesis import strategies as st

from backburner.executor.v1 import executor_service_pb2 as executor_pb
from backburner.journal.v1 import journal_pb2
from backburner.scheduler.v1 import scheduler_service_pb2 as pb
from scheduler_service.api import effect_requests, effect_specs, inputs, limits, run_requests
from scheduler_service.api.checks import checked
from scheduler_service.api.ids import new_run_id
from scheduler_service.api.pages import decode_token, encode_token
from scheduler_service.authoring.definitions import ProcessDefinition
from scheduler_service.errors import InvalidRequest, PayloadTooLarge

STDOUT = executor_pb.OUTPUT_STREAM_STDOUT
RUN = "01890a5d-ac96-774b-bcce-b302099a8057"


def fields(parse: Callable[[Any], object], request: Any) -> list[str]:
    with pytest.raises(InvalidRequest) as caught:
        parse(request)
    return [item.field for item in caught.value.violations]


def test_all_violations_of_create_run_come_at_once() -> None:
    request = pb.CreateRunRequest(
        namespace="Not Valid",
        key="white space",
        request_id="no-uuid",
        labels={"-bad": "x", "ok": "y" * 300},
        cleanup_timeout=Duration(seconds=-1),
    )
    request.input["n"] = float("inf")
    assert set(fields(run_requests.new_run, request)) == {
        "namespace", "key", "process", "request_id", "labels['-bad']", "labels['ok']", "cleanup_timeout", "input.n",
    }  # fmt: skip


def test_empty_namespace_is_default() -> None:
    assert run_requests.new_run(pb.CreateRunRequest(process="p")).namespace == "default"


def test_a_client_driven_run_has_no_process_and_a_client_that_may_be_silent_for_a_day() -> None:
    client = pb.ClientDriven(idle_timeout=Duration(seconds=0))
    wrong = pb.CreateRunRequest(process="p", client=client, reuse_from="x")
    assert set(fields(run_requests.new_run, wrong)) == {"process", "client.idle_timeout", "reuse_from"}
    new = run_requests.new_run(pb.CreateRunRequest(client=pb.ClientDriven(), key="k", request_id=RUN))
    assert (new.client_driven, new.process, new.idle_timeout_s) == (True, "", 86_400.0)


def test_a_run_is_named_by_id_or_by_key() -> None:
    assert fields(run_requests.run_query, pb.GetRunRequest()) == ["run_id"]
    assert fields(run_requests.run_query, pb.GetRunRequest(run_id=RUN, key="k")) == ["run_id"]
    ref, full = run_requests.run_query(pb.GetRunRequest(run_id=RUN.upper()))
    assert (ref.run_id, full) == (RUN, True)


@pytest.mark.parametrize(
    ("workspace", "bad"),
    [
        ({}, ["source"]),
        ({"source": "repo", "kind": 1}, ["source"]),
        ({"source": "/r", "kind": 99, "keep": 99}, ["keep", "kind"]),
        ({"source": "/r", "kind": 3, "base": "main"}, ["base"]),
        ({"source": "/r", "kind": 2, "base": "-x"}, ["base"]),
        ({"source": "/r\0", "kind": 2}, ["source"]),
        ({"source": "/r", "kind": 2, "base": "main", "keep": 3}, []),
        ({"source": "/r"}, []),
    ],
)
def test_a_workspace_is_checked_by_field(workspace: dict[str, Any], bad: list[str]) -> None:
    work = journal_pb2.AgentWork(harness="h", prompt="p", workspace=journal_pb2.Workspace(**workspace))
    spec = journal_pb2.EffectSpec(agent=work)
    with pytest.raises(InvalidRequest) if bad else contextlib.nullcontext() as caught, checked() as check:
        effect_specs.check_spec(check, "spec", spec)
    found = sorted(item.field for item in caught.value.violations) if caught else []
    assert found == [f"spec.agent.workspace.{field}" for field in bad]


def test_an_agent_works_in_a_directory_or_in_a_workspace() -> None:
    workspace = journal_pb2.Workspace(source="/r")
    work = journal_pb2.AgentWork(harness="h", prompt="p", cwd="/c", workspace=workspace)
    with pytest.raises(InvalidRequest, match=r"agent\.cwd: give either cwd or workspace"), checked() as check:
        effect_specs.check_spec(check, "spec", journal_pb2.EffectSpec(agent=work))


@pytest.mark.parametrize("bad", ["x", "01890a5dac96774bbcceb302099a8057", f"{{{RUN}}}", f"{RUN}\n", "0" * 37])
def test_ids_have_one_spelling(bad: str) -> None:
    assert fields(run_requests.run_wait, pb.WaitRunRequest(run_id=bad)) == ["run_id"]


def test_an_effect_is_named_by_id_or_by_run_and_key() -> None:
    both = pb.EffectName(effect_id=RUN, key="k")
    assert "effect" in fields(effect_requests.effect_query, pb.GetEffectRequest(effect=both))
    assert "effect" in fields(effect_requests.effect_query, pb.GetEffectRequest())
    only_key = pb.EffectName(key="k")
    assert fields(effect_requests.effect_query, pb.GetEffectRequest(effect=only_key)) == ["effect.run_id"]
    asked = effect_requests.effect_query(pb.GetEffectRequest(effect=pb.EffectName(run_id=RUN, key="lint/a b.py")))
    assert asked.effect.key == "lint/a b.py"


def test_waits_are_capped_and_negative_ones_refused() -> None:
    def wait(seconds: int) -> float:
        return run_requests.run_wait(pb.WaitRunRequest(run_id=RUN, max_wait=Duration(seconds=seconds)))[1]

    assert run_requests.run_wait(pb.WaitRunRequest(run_id=RUN))[1] == limits.WAIT_SECONDS_DEFAULT
    assert wait(0) == 0
    assert wait(3600) == limits.WAIT_SECONDS_MAX
    assert fields(run_requests.run_wait, pb.WaitRunRequest(run_id=RUN, max_wait=Duration(seconds=-1))) == ["max_wait"]


def test_page_sizes_are_capped_and_negative_ones_refused() -> None:
    assert run_requests.run_list(pb.ListRunsRequest()).page_size == limits.PAGE_SIZE_DEFAULT
    assert run_requests.run_list(pb.ListRunsRequest(page_size=10**9)).page_size == limits.PAGE_SIZE_MAX
    assert fields(run_requests.run_list, pb.ListRunsRequest(page_size=-1)) == ["page_size"]


def test_unknown_and_unspecified_enum_values_are_refused() -> None:
    states = [journal_pb2.RUN_STATE_RUNNING, 0, 99]
    assert fields(run_requests.run_list, pb.ListRunsRequest(states=states)) == ["states[1]", "states[2]"]  # type: ignore[arg-type]
    assert fields(run_requests.run_list, pb.ListRunsRequest(view=77)) == ["view"]  # type: ignore[arg-type]
    include = pb.WatchRunRequest(run_id=RUN, include=[5])  # type: ignore[list-item]
    assert fields(run_requests.run_watch, include) == ["include[0]"]


def test_times_out_of_range_are_refused() -> None:
    request = pb.ListRunsRequest(created_after=Timestamp(seconds=2**60), created_before=Timestamp(nanos=-1))
    assert fields(run_requests.run_list, request) == ["created_after", "created_before"]


@pytest.mark.parametrize(
    "wall",
    [Duration(nanos=-5), Duration(seconds=7, nanos=-1), Duration(seconds=2**62), Duration(seconds=1, nanos=2**30)],
    ids=str,
)
def test_a_malformed_wall_time_of_a_budget_is_refused(wall: Duration) -> None:
    budget = journal_pb2.Budget(turns=1, wall_time=wall)
    assert fields(run_requests.new_run, pb.CreateRunRequest(process="p", budget=budget)) == ["budget.wall_time"]
    assert run_requests.new_run(pb.CreateRunRequest(process="p", budget=journal_pb2.Budget(turns=1))).budget


def test_a_watch_has_no_transcripts() -> None:
    position = pb.OutputPosition(effect_id=RUN, attempt=1, stream=executor_pb.OUTPUT_STREAM_TRANSCRIPT)
    request = pb.WatchRunRequest(run_id=RUN, output_positions=[position])
    assert fields(run_requests.run_watch, request) == ["output_positions[0].stream"]
    position.stream = STDOUT
    assert run_requests.run_watch(pb.WatchRunRequest(run_id=RUN, output_positions=[position])).positions


def test_negative_positions_are_refused() -> None:
    assert fields(run_requests.run_watch, pb.WatchRunRequest(run_id=RUN, after_seq=-1)) == ["after_seq"]
    assert fields(run_requests.journal_page, pb.ReadJournalRequest(run_id=RUN, after_seq=-1)) == ["after_seq"]
    name = pb.EffectName(effect_id=RUN)
    assert fields(effect_requests.output_query, pb.StreamOutputRequest(effect=name, stream=STDOUT, offset=-1)) == [
        "offset"
    ]
    assert fields(effect_requests.output_query, pb.StreamOutputRequest(effect=name, offset=5)) == ["stream"]


def test_nul_is_refused_wherever_text_is_stored() -> None:
    cancel = pb.CancelRunRequest(run_id=RUN, reason="a\x00b")
    assert fields(run_requests.run_reason, cancel) == ["reason"]
    failed = pb.ResolveEffectRequest(effect=pb.EffectName(effect_id=RUN), failed=pb.ExternalFailure(message="\x00"))
    assert fields(effect_requests.resolution, failed) == ["failed.message"]


def test_a_too_large_input_has_its_own_reason() -> None:
    request = pb.CreateRunRequest(process="p")
    request.input["text"] = "x" * limits.INPUT_BYTES_MAX
    with pytest.raises(PayloadTooLarge):
        run_requests.new_run(request)


async def _process(ctx: object, files: list[str], depth: int = 1) -> None: ...


def test_an_input_is_bound_to_the_signature_with_the_path_of_what_is_wrong() -> None:
    process = ProcessDefinition("p", _process)
    inputs.bind(process, {"files": ["a", "b"]})
    for given_, path in (
        ({"files": ["a", "b", 3]}, "input.files[2]"),
        ({}, "input.files"),
        ({"files": [], "other": 1}, "input.other"),
        ({"files": [], "depth": "x"}, "input.depth"),
    ):
        with pytest.raises(InvalidRequest) as caught:
            inputs.bind(process, given_)
        assert [item.field for item in caught.value.violations] == [path]
    with pytest.raises(InvalidRequest) as caught:
        inputs.bind(process, {"files": ["a", 3, None], "depth": "x", "other": 1})
    told = [item.field for item in caught.value.violations]
    assert told == ["input.files[1]", "input.files[2]", "input.depth", "input.other"], "all at once"


def test_the_digest_of_an_input_does_not_depend_on_its_spelling() -> None:
    one, other = struct_pb2.Struct(), struct_pb2.Struct()
    one.update({"b": 1, "a": [1.0]})
    other.update({"a": [1], "b": 1.0})
    with checked() as check:
        objects = [inputs.input_object(check, item, 1000) for item in (one, other)]
    assert inputs.input_digest("p", objects[0]) == inputs.input_digest("p", objects[1])
    assert inputs.input_digest("p", objects[0]) != inputs.input_digest("q", objects[0])


def test_run_ids_are_uuid7_and_sort_by_time() -> None:
    ids = [new_run_id() for _ in range(100)]
    assert {uuid.UUID(item).version for item in ids} == {7}
    assert {uuid.UUID(item).variant for item in ids} == {uuid.RFC_4122}
    assert len(set(ids)) == 100
    assert [item[:13] for item in ids] == sorted(item[:13] for item in ids)


@given(st.lists(st.text(max_size=20), min_size=1, max_size=3), st.dictionaries(st.text(), st.integers(0, 9)))
def test_page_tokens_round_trip_for_the_same_filter_only(position: list[str], bound_to: dict[str, int]) -> None:
    token = encode_token(position, bound_to)
    with checked() as check:
        assert decode_token(check, token, bound_to) == tuple(position)
    with pytest.raises(InvalidRequest), checked() as check:
        assert decode_token(check, token, {"other": bound_to}) is None


@given(st.integers(0, 200), st.characters(codec="utf-8"))
def test_a_tampered_page_token_is_refused(index: int, letter: str) -> None:
    token = encode_token(["01890a5d", "key"], {"namespace": "default"})
    tampered = token[: index % len(token)] + letter + token[index % len(token) + 1 :]
    if tampered != token:
        with pytest.raises(InvalidRequest), checked() as check:
            decode_token(check, tampered, {"namespace": "default"})


@given(st.text(max_size=60))
def test_any_text_as_page_token_is_refused_cleanly(text: str) -> None:
    if text:
        token = text.encode(errors="ignore").decode() or "x"
        assert fields(run_requests.run_list, pb.ListRunsRequest(page_token=token)) == ["page_token"]
