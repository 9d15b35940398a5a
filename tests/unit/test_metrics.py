"""Metrics without services: addresses, the bound of series, what is counted, and the alerts that go with them."""

import re
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from prometheus_client import CollectorRegistry

import executor_service.metrics.endpoint as executor_endpoint
import scheduler_service.metrics.endpoint as scheduler_endpoint
from backburner.scheduler.v1 import scheduler_service_pb2 as pb
from executor_service import settings as executor_settings
from executor_service.assignment import Assignment
from executor_service.invocation import Invocation
from executor_service.metrics import catalog as executor_catalog
from executor_service.metrics.counting import MODELS_MAX, Counting
from executor_service.outcome import Outcome
from scheduler_service import settings as scheduler_settings
from scheduler_service.api.findings import REMEDIES
from scheduler_service.metrics import catalog as scheduler_catalog
from scheduler_service.metrics.samples import OTHER, Sample, bounded
from scheduler_service.recent import Recent
from tests.support.eventually import eventually
from tests.support.scraping import scrape
from tests.unit.executor.fakes import FakeHolder

ROOT = Path(__file__).parents[2]
ENDPOINTS = pytest.mark.parametrize("endpoint", [scheduler_endpoint, executor_endpoint])


@ENDPOINTS
@pytest.mark.parametrize(
    ("address", "parsed"),
    [("127.0.0.1:0", ("127.0.0.1", 0)), ("[::1]:9464", ("::1", 9464)), ("a.local:65535", ("a.local", 65535))],
)  # fmt: skip
def test_an_address_has_a_host_and_a_port(endpoint: Any, address: str, parsed: tuple[str, int]) -> None:
    assert endpoint.parse_address(address) == parsed


@pytest.mark.parametrize(
    "address", ["9464", ":9464", "host", "host:", "host:-1", "host:65536", "::1:9464", "h:٣", "h:x"]
)
@pytest.mark.parametrize("settings", [scheduler_settings, executor_settings])
def test_a_bad_address_is_an_error_of_the_settings_that_names_the_variable(settings: Any, address: str) -> None:
    with pytest.raises(settings.SettingsError, match=r"BACKBURNER_METRICS_ADDRESS: .*(HOST:PORT|65535)"):
        settings.settings_from_env({"DATABASE_URL": "db", "BACKBURNER_METRICS_ADDRESS": address})


@pytest.mark.invariant("I11")
def test_what_users_name_beyond_the_bound_is_added_up() -> None:
    samples = [Sample("s", (f"namespace-{n}", cause), 1.0) for n in range(1000) for cause in ("SLOTS_FULL", "HOLD")]
    kept = bounded(samples, 50, named=1)
    assert len(kept) == 102, "50 namespaces and other, each with two causes"
    assert sum(sample.value for sample in kept) == 2000
    assert {sample.value for sample in kept if sample.labels[0] == OTHER} == {950.0}
    assert bounded([Sample("s", ("a",), 1.0), Sample("s", ("a",), 5.0)], 50, named=1, merge=max)[0].value == 5.0


def test_samples_of_vitals_are_counted_where_they_are_taken() -> None:
    recent, heard = Recent(), list[float]()
    recent.on_note = heard.append
    recent.note(0.25)
    assert (heard, recent.values()) == ([0.25], [0.25])


def ended(harness: str = "agent/codex", pool: str = "agents", spec: bytes = b"{}", **usage: Any) -> Invocation:
    assignment = Assignment(
        "run", "effect", "key", 1, "ab", harness, pool, False, "codex", "default", 1, None, None, spec
    )
    invocation = Invocation(assignment, "incarnation", FakeHolder())
    invocation.started(1)
    invocation.progress.usage = usage or None
    invocation.outcome = Outcome()
    return invocation


def value(counting: Counting, name: str, **labels: str) -> float | None:
    return counting.registry.get_sample_value(name, labels)


def test_an_unknown_cost_is_counted_and_is_not_0() -> None:
    counting = Counting("v", {"codex"}.__contains__)
    counting.recorded(ended(input_tokens=10, output_tokens=2, model="m", turns=3), "ok")
    counting.recorded(ended(input_tokens=5, cost_usd=0.5, model="m"), "already")
    names = {"harness": "codex", "model": "m"}
    assert value(counting, "backburner_executor_tokens_total", **names, kind="input") == 15
    assert value(counting, "backburner_executor_tokens_total", **names, kind="output") == 2
    assert value(counting, "backburner_executor_cost_usd_total", **names) == 0.5
    assert value(counting, "backburner_executor_costs_unknown_total", **names) == 1
    assert value(counting, "backburner_executor_turns_total", harness="codex") == 3


def test_an_agent_that_told_nothing_counts_under_the_model_that_was_asked_for() -> None:
    counting = Counting("v", {"codex"}.__contains__)
    counting.recorded(ended(spec=b'{"agent": {"model": "asked"}}'), "ok")
    unknown = "backburner_executor_costs_unknown_total"
    assert value(counting, unknown, harness="codex", model="asked") == 1
    counting.recorded(ended("function/f", "functions"), "ok")
    assert value(counting, unknown, harness="other", model="") is None, "functions that tell nothing are left out"


def test_what_the_journal_did_not_take_counts_as_superseded_and_consumed_nothing() -> None:
    counting = Counting("v", {"codex"}.__contains__)
    counting.recorded(ended(input_tokens=10, model="m"), "superseded")
    ends = "backburner_executor_attempts_ended_total"
    assert value(counting, ends, harness="codex", outcome="superseded", reason="") == 1
    assert value(counting, "backburner_executor_tokens_total", harness="codex", model="m", kind="input") is None


@pytest.mark.invariant("I11")
def test_models_reasons_and_harnesses_that_anybody_may_name_are_bounded() -> None:
    counting = Counting("v", {"codex"}.__contains__)
    for number in range(500):
        invocation = ended(f"agent/h{number}", input_tokens=1, model=f"model-{number}")
        invocation.outcome = Outcome().fail(f"REASON_{number}", "no")
        counting.recorded(invocation, "ok")
    families = {family.name: family.samples for family in counting.registry.collect()}
    tokens = families["backburner_executor_tokens"]
    assert len(tokens) == MODELS_MAX + 1
    assert sum(sample.value for sample in tokens) == 500
    [end] = families["backburner_executor_attempts_ended"]
    assert (end.labels, end.value) == ({"harness": "other", "outcome": "failed", "reason": "other"}, 500)


@pytest.fixture
def hangers_on() -> Iterator[list[socket.socket]]:
    connected: list[socket.socket] = []
    yield connected
    for connection in connected:
        connection.close()


@ENDPOINTS
@pytest.mark.invariant("I11")
async def test_connections_that_ask_for_nothing_are_bounded_and_cut_off(
    endpoint: Any, hangers_on: list[socket.socket], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(endpoint._Handler, "seconds", 2.0)
    served = endpoint.Endpoint("127.0.0.1:0", CollectorRegistry())
    host, _, port = served.address.rpartition(":")
    try:
        hangers_on += [socket.create_connection((host, int(port)), 30) for _ in range(endpoint.CONNECTIONS_MAX + 1)]
        assert hangers_on[-1].recv(1) == b"", "one too many is closed at once"
        first, *others = hangers_on[:-1]
        await eventually(lambda: _trickles_no_more(first), message="who asks byte by byte has a place for ever")
        for connection in others:
            assert connection.recv(1) == b"", "they do not ask"
        await scrape(served.address)
    finally:
        await served.aclose()


def _trickles_no_more(connection: socket.socket) -> bool:
    try:
        connection.send(b"G")
    except ConnectionError:
        return True
    return False


@ENDPOINTS
async def test_an_address_in_use_is_not_had(endpoint: Any) -> None:
    first = endpoint.Endpoint("127.0.0.1:0", CollectorRegistry())
    try:
        with pytest.raises(OSError, match="in use"):
            endpoint.Endpoint(first.address, CollectorRegistry())
    finally:
        await first.aclose()


def test_alerts_name_series_and_labels_that_there_are() -> None:
    text = (ROOT / "deploy" / "alerts.yaml").read_text()
    known = {series.name: series for series in (*scheduler_catalog.ALL, *executor_catalog.ALL)}
    expressions = re.findall(r"^        expr: (.+)$", text, re.MULTILINE)
    assert len(expressions) == text.count("- alert: ") == text.count("          action: ") >= 10
    for expression in expressions:
        found = re.findall(r"(backburner_\w+)(?:\{(\w+)[=!~])?", expression)
        assert found, expression
        for name, label in found:
            series = known[re.sub(r"_(bucket|count|sum)$", "", name)]
            assert not label or label in series.labels, expression
            grouped = re.search(r"by \(([\w, ]+)\)", expression)
            by = grouped[1].split(", ") if grouped and series.kind != "histogram" else []
            assert set(by) <= set(series.labels), expression


def alert(name: str) -> str:
    """The expression of an alert."""
    text = (ROOT / "deploy" / "alerts.yaml").read_text()
    found = re.search(rf"- alert: {name}\n +expr: (.+)\n", text)
    assert found, name
    return found[1]


def test_alerts_name_causes_and_findings_that_there_are() -> None:
    text = (ROOT / "deploy" / "alerts.yaml").read_text()
    causes = {cause.name.removeprefix("CAUSE_") for cause in pb.WaitingOn.Cause.DESCRIPTOR.values}
    for label, known in (("waiting_on", causes), ("code", REMEDIES.keys())):
        named = re.findall(rf'{label}(?:=|!=|=~|!~)"([^"]+)"', text)
        assert named
        assert {one for names in named for one in names.split("|")} <= known


def test_the_alert_of_a_long_queue_leaves_out_what_somebody_holds_back_and_what_others_tell() -> None:
    found = re.search(r'waiting_on!~"([^"]+)"', alert("BackburnerQueueAge"))
    assert found
    meant = {"HOLD", "HALTED", "PROCESS_ERROR", "BREAKER", "BUDGET", "GROUP_LIMIT", "NO_EXECUTOR"}
    assert set(found[1].split("|")) == meant


def test_the_alert_of_executors_that_are_gone_ends_with_what_it_tells_to_do() -> None:
    """An executor that `backburner expire` has declared dead is EXECUTOR_LOST for as long as it is known: a day."""
    assert "EXECUTOR_LOST" not in alert("BackburnerExecutorsAway")


def test_without_any_scheduler_there_is_an_alert() -> None:
    assert alert("BackburnerNoScheduler") == "absent(backburner_journal_up)"
