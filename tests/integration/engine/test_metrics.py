"""Metrics of a scheduler over a real journal: what it counts, what it reads, how often, and within which bounds."""

import asyncio
import uuid
from typing import Any

import grpc
import pytest

import scheduler_service.server as server_module
from backburner.journal.v1 import journal_pb2
from backburner.scheduler.v1 import operator_service_pb2 as op
from backburner.scheduler.v1 import scheduler_service_pb2 as pb
from scheduler_service.metrics import catalog, figures, journal_figures
from scheduler_service.metrics.figures import NAMED_MAX, read_figures
from scheduler_service.server import AddressInUse, SchedulerServer
from scheduler_service.settings import Settings
from tests.integration.engine.world import World
from tests.support.eventually import eventually
from tests.support.scraping import Scraped, scrape, scrape_while_stuck

#: What vitals may say of a machine that does much else.
OF_A_SLOW_MACHINE = ("COMMITS_SLOW", "ITERATION_LAG", "POOL_WAITERS", "SHARDS_LOST")
QUOTA = {"outcome": "failed", "reason": "EFFECT_REASON_QUOTA_EXHAUSTED", "account": "openai:test"}


@pytest.fixture
async def measured(at: World) -> World:
    """A scheduler with metrics, which reads the journal for each scrape."""
    await at.restart(metrics_address="127.0.0.1:0")
    return at


@pytest.fixture(autouse=True)
def always_fresh(monkeypatch: pytest.MonkeyPatch) -> None:
    """Read anew each time, and with all the time of a slow machine."""
    monkeypatch.setattr(journal_figures, "FRESH_SECONDS", 0.0)
    monkeypatch.setattr(journal_figures, "READ_SECONDS", 60.0)


async def look(at: World) -> Scraped:
    scraped = await scrape(at.server.metrics_address)
    assert scraped.value("backburner_journal_up") == 1
    return scraped


async def test_what_is_scraped_is_the_catalog(measured: World) -> None:
    scraped = await look(measured)
    kinds = {"counter": "_total"}
    known = {series.name.removesuffix(kinds.get(series.kind, "")): series for series in catalog.ALL}
    families = {name: family for name, family in scraped.families.items() if name.startswith("backburner_")}
    assert families.keys() == known.keys()
    for name, family in families.items():
        assert (family.type, family.documentation) == (known[name].kind, known[name].meaning)
        for sample in family.samples:
            assert set(sample.labels) - {"le"} == set(known[name].labels), sample


async def test_work_is_counted(measured: World) -> None:
    executor = measured.executor(answer=lambda start: {"outcome": "succeeded"})
    await executor.connect()
    run_id = await measured.create("sleeper", seconds=0)
    await measured.result(run_id)
    scraped = await look(measured)
    assert (scraped.value("backburner_commit_seconds_count") or 0) > 0
    assert (scraped.value("backburner_iteration_wait_seconds_count") or 0) > 0
    assert scraped.value("backburner_shards_owned") == 16
    assert scraped.value("backburner_sessions") == 1
    assert scraped.value("backburner_pool_slots", pool="shell") == 10
    created = {"service": "backburner.scheduler.v1.SchedulerService", "method": "CreateRun"}
    assert scraped.value("backburner_grpc_calls_total", **created, code="OK") == 1
    assert scraped.value("backburner_grpc_call_seconds_count", **created) == 1


async def test_calls_count_by_how_they_ended_and_unknown_methods_not_at_all(measured: World) -> None:
    with pytest.raises(grpc.aio.AioRpcError):
        await measured.client.GetRun(pb.GetRunRequest(run_id=str(uuid.uuid4())))
    for number in range(20):
        call: Any = measured.channel.unary_unary(f"/backburner.scheduler.v1.SchedulerService/Made{number}")
        with pytest.raises(grpc.aio.AioRpcError):
            await call(b"")
    run_id = await measured.create("sleeper", seconds=3600)
    watch = measured.client.WatchRun(pb.WatchRunRequest(run_id=run_id))
    await watch.read()
    name = "backburner_grpc_calls_total"
    assert (await look(measured)).value(name, method="WatchRun") is None, "a stream counts at its end"
    watch.cancel()

    async def counted() -> Scraped | None:
        scraped = await look(measured)
        return scraped if scraped.value(name, method="WatchRun", code="CANCELLED") == 1 else None

    scraped = await eventually(counted, timeout=60)
    assert scraped is not None
    assert scraped.value(name, method="GetRun", code="NOT_FOUND") == 1
    methods = {sample.labels["method"] for sample in scraped.samples if sample.name == name}
    assert not [method for method in methods if method.startswith("Made")]
    await measured.cancel(run_id)


async def request(at: World, *keys: str, namespace: str = "default", harness: str = "codex") -> str:
    """A client-driven run that asks for agents; the run's id."""
    created = await at.client.CreateRun(pb.CreateRunRequest(namespace=namespace, client=pb.ClientDriven()))
    spec = journal_pb2.EffectSpec(agent=journal_pb2.AgentWork(harness=harness, prompt="go"))
    asked = pb.RequestEffectsRequest(
        namespace=namespace,
        run_id=created.run.run_id,
        client_epoch=created.client_epoch,
        effects=[pb.EffectRequest(key=key, spec=spec) for key in keys],
    )
    await at.client.RequestEffects(asked)
    return str(created.run.run_id)


def queue_of(scraped: Scraped) -> dict[tuple[str, str, str], float]:
    labels = ("namespace", "harness", "waiting_on")
    return {
        (sample.labels[labels[0]], sample.labels[labels[1]], sample.labels[labels[2]]): sample.value
        for sample in scraped.samples
        if sample.name == "backburner_queue_effects"
    }


async def test_the_queue_says_what_it_waits_for(measured: World) -> None:
    await request(measured, "a", "b")
    await request(measured, "c", namespace="web", harness="gemini-cli")
    await measured.query(
        "UPDATE backburner.dispatch_queue SET enqueued_at = enqueued_at - interval '90 s',"
        " not_before = not_before - interval '90 s' WHERE namespace = 'web' RETURNING 1"
    )
    halted = await request(measured, "d")
    await measured.client.HaltRun(pb.HaltRunRequest(run_id=halted, reason="wait"))
    await measured.query(
        "UPDATE backburner.dispatch_queue SET not_before = clock_timestamp() + interval '1 h' WHERE effect_id ="
        " (SELECT effect_id FROM backburner.effects WHERE key = 'b') RETURNING 1"
    )
    await measured.query(
        "UPDATE backburner.effects SET not_before = clock_timestamp() + interval '1 h' WHERE key = 'b' RETURNING 1"
    )
    scraped = await look(measured)
    assert queue_of(scraped) == {
        ("default", "codex", "NO_EXECUTOR"): 1,
        ("default", "codex", "NOT_BEFORE"): 1,
        ("default", "codex", "HALTED"): 1,
        ("web", "gemini-cli", "NO_EXECUTOR"): 1,
    }
    ages = "backburner_queue_oldest_seconds"
    assert scraped.all(ages, waiting_on="NOT_BEFORE") == [0.0]
    assert 90 <= scraped.all(ages, namespace="web")[0] < 90 + 600
    assert scraped.value("backburner_findings", code="NO_EXECUTOR", severity="CRITICAL") == 1
    assert scraped.value("backburner_runs", namespace="default", state="HALTED") == 1


@pytest.mark.invariant("I11")
async def test_a_queue_of_many_namespaces_and_harnesses_has_few_series_and_all_effects(measured: World) -> None:
    for number in range(70):
        await request(measured, "a", "b", namespace=f"n{number}", harness=f"h{number}")
    scraped = await look(measured)
    queue = queue_of(scraped)
    assert len(queue) == NAMED_MAX + 1
    assert queue["other", "other", "NO_EXECUTOR"] == 2 * (70 - NAMED_MAX)
    assert sum(queue.values()) == 140


async def test_a_queue_of_more_classes_than_are_looked_at_is_counted_whole(
    measured: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(figures, "CLASSES_MAX", 3)
    for number in range(5):
        await request(measured, "a", namespace=f"n{number}")
    queue = queue_of(await look(measured))
    assert queue["other", "other", "UNSPECIFIED"] == 2
    assert sum(queue.values()) == 5


async def test_a_breaker_shows_while_it_is_open(measured: World) -> None:
    executor = measured.executor(harnesses=("codex",), pools={"agents": (4, 3)})
    await executor.connect()
    await request(measured, "a")
    await executor.settle(await executor.start_of("a"), **QUOTA, retry_after_s=3600.0, untouched=True)
    await request(measured, "b")
    breaker = {"namespace": "default", "harness": "codex", "account": "openai:test"}
    scraped = await look(measured)
    assert scraped.value("backburner_breaker_open", **breaker, executor="", reason="QUOTA_EXHAUSTED") == 1
    [(until,)] = await measured.query("SELECT extract(epoch FROM until)::float8 FROM backburner.provider_breakers")
    assert scraped.value("backburner_breaker_until_timestamp_seconds", **breaker) == until
    assert scraped.value("backburner_parked_effects", namespace="default", harness="codex") == 1
    assert queue_of(scraped)["default", "codex", "BREAKER"] == 1
    assert scraped.value("backburner_dispatches_total", pool="agents") == 1
    assert scraped.value("backburner_settlements_total", outcome="PARKED") == 1
    await measured.operator.ResetBreakers(op.ResetBreakersRequest(harness="codex", reason="paid"))
    scraped = await look(measured)
    assert scraped.value("backburner_breaker_open") is None
    assert scraped.value("backburner_breakers_open") == 0


async def test_many_scrapes_read_the_journal_once(measured: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(journal_figures, "FRESH_SECONDS", 600.0)
    readings = 0

    async def counted(reads: Any) -> Any:
        nonlocal readings
        readings += 1
        await asyncio.sleep(0)
        return await read_figures(reads)

    monkeypatch.setattr(server_module, "read_figures", counted)
    many = [asyncio.create_task(look(measured)) for _ in range(10)]
    scraped = await asyncio.gather(*many)
    for _ in range(20):
        await look(measured)
    assert readings == 1
    assert {one.value("backburner_shards_unowned") for one in scraped} == {0.0}


async def test_usage_of_the_hour_is_what_the_journal_has_whatever_models_there_are(measured: World) -> None:
    await measured.query(
        "INSERT INTO backburner.attempt_usage SELECT gen_random_uuid(), 1, gen_random_uuid(), 'n' || n %% 7, 'p',"
        " 'codex', 'model-' || n, '{}', n, 2, 1, CASE WHEN n %% 2 = 0 THEN 0.25 END, n %% 2 = 1, 1, 1,"
        " clock_timestamp() - CASE WHEN n %% 10 = 9 THEN interval '2 h' ELSE interval '1 min' END"
        " FROM generate_series(1, 900) n RETURNING 1"
    )
    [(count, tokens, cost, unknown)] = await measured.query(
        "SELECT count(*)::float8, sum(input_tokens), sum(cost_usd), (count(*) FILTER (WHERE cost_unknown))::float8"
        " FROM backburner.attempt_usage WHERE ended_at > clock_timestamp() - interval '1 h'"
    )
    scraped = await look(measured)
    assert scraped.value("backburner_usage_hour_attempts") == count == 810
    assert scraped.value("backburner_usage_hour_tokens", kind="input") == tokens
    assert scraped.value("backburner_usage_hour_cost_usd") == cost
    assert scraped.value("backburner_usage_hour_costs_unknown") == unknown
    assert len(scraped.all("backburner_usage_hour_cost_usd")) == NAMED_MAX + 1


async def test_a_scheduler_that_is_stuck_is_scraped_all_the_same(
    measured: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(journal_figures, "READ_SECONDS", 0.2)
    monkeypatch.setattr(journal_figures, "_LOOP_SECONDS", 0.2)
    scraped = scrape_while_stuck(measured.server.metrics_address)
    assert scraped.value("backburner_journal_up") == 0
    assert scraped.value("backburner_findings") is None
    assert scraped.value("backburner_shards_owned") == 16


async def test_a_bug_in_what_is_read_of_the_journal_costs_only_that(
    measured: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def broken(reads: Any) -> Any:
        raise KeyError("a column")

    monkeypatch.setattr(server_module, "read_figures", broken)
    scraped = await scrape(measured.server.metrics_address)
    assert scraped.value("backburner_journal_up") == 0
    assert scraped.value("backburner_shards_owned") == 16


async def test_an_address_in_use_is_told_with_the_setting(measured: World) -> None:
    settings = Settings(
        database_url=measured.dsn, listen="127.0.0.1:0", metrics_address=measured.server.metrics_address
    )
    with pytest.raises(AddressInUse, match=r"in use\): choose another address with --metrics-address"):
        await SchedulerServer(settings, {}, "test").start()


async def test_without_an_address_nothing_is_served(at: World) -> None:
    assert at.server.metrics_address == ""


async def test_findings_are_those_of_the_doctor(measured: World) -> None:
    await measured.executor().connect()
    found = (await measured.operator.Diagnose(op.DiagnoseRequest(), timeout=60)).findings
    scraped = await look(measured)
    names = op.Finding.Severity.Name
    said = {(one.code, names(one.severity).removeprefix("SEVERITY_")) for one in found}
    shown = {
        (sample.labels["code"], sample.labels["severity"])
        for sample in scraped.samples
        if sample.name == "backburner_findings"
    }
    assert {one for one in said if one[0] not in OF_A_SLOW_MACHINE} == {
        one for one in shown if one[0] not in OF_A_SLOW_MACHINE
    }
    assert ("EXECUTOR_UNREACHABLE", "INFO") in shown
