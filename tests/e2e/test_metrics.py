"""Metrics of both services as processes: breakers, usage, Postgres away, and a stop while somebody is connected."""

import asyncio
import contextlib
import json
import socket
import tempfile
import threading
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from backburner.scheduler.v1 import operator_service_pb2 as op
from backburner.scheduler.v1 import scheduler_service_pb2 as pb
from executor_service.metrics import catalog
from scheduler_service.metrics.catalog import JOURNAL
from tests.e2e import agents
from tests.e2e.conftest import services_of_their_own
from tests.support import scripted_agent
from tests.support.eventually import eventually
from tests.support.postgres import DisposablePostgres
from tests.support.scraping import Scraped, scrape
from tests.support.services import Service, Stack, free_port, result_value, running_stack

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(300)]

SECONDS = 60.0


def measured() -> dict[str, dict[str, str]]:
    """Both services with metrics, the executor with scripted agents."""
    harness = {"BACKBURNER_HARNESS_MODULES": scripted_agent.__name__}
    return {
        "scheduler_env": {"BACKBURNER_METRICS_ADDRESS": f"127.0.0.1:{free_port()}"},
        "executor_env": harness | {"BACKBURNER_METRICS_ADDRESS": f"127.0.0.1:{free_port()}"},
    }


@pytest.fixture(scope="module")
async def services() -> AsyncIterator[Stack]:
    async with services_of_their_own(agents.__name__, **measured()) as stack:
        yield stack


async def of(service: Service) -> Scraped:
    return await scrape(service.env["BACKBURNER_METRICS_ADDRESS"])


async def until(service: Service, name: str, value: float | None, **labels: str) -> Scraped:
    """What is scraped once this series has this value."""

    async def there() -> Scraped | None:
        scraped = await of(service)
        return scraped if scraped.value(name, **labels) == value else None

    scraped = await eventually(there, SECONDS, message=f"{name} is not {value}")
    assert scraped is not None
    return scraped


async def one(services: Stack, harness: str, **script: object) -> pb.Run:
    run_id = await services.create("agents.one", harness=harness, prompt=json.dumps(script))
    return await services.result(run_id)


async def test_what_is_scraped_of_an_executor_is_the_catalog(services: Stack) -> None:
    scraped = await of(services.executor)
    known = {series.name.removesuffix("_total"): series for series in catalog.ALL}
    families = {name: family for name, family in scraped.families.items() if name.startswith("backburner_")}
    assert families.keys() == known.keys()
    for name, family in families.items():
        assert (family.type, family.documentation) == (known[name].kind, known[name].meaning)
        assert all(set(sample.labels) == set(known[name].labels) for sample in family.samples)
    assert scraped.value("backburner_executor_session", state="connected") == 1
    assert scraped.value("backburner_executor_session") == 1


async def test_tokens_and_costs_are_those_of_the_journal(services: Stack) -> None:
    used = {"input_tokens": 100, "output_tokens": 7, "cached_input_tokens": 40, "turns": 2, "model": "m-1"}
    await one(services, "codex", usage=used | {"cost_usd": 0.25})
    await one(services, "codex", usage=used | {"cost_usd": 0.5})
    await one(services, "claude-code", usage=used)
    by = pb.ListUsageRequest.GROUP_BY_HARNESS
    answer = await services.client.ListUsage(pb.ListUsageRequest(group_by=by))
    groups = {group.key: group.usage for group in answer.groups}
    counted = await of(services.executor)
    hour = await until(services.scheduler, "backburner_usage_hour_attempts", 3.0)
    for harness, usage in groups.items():
        names = {"harness": harness, "model": "m-1"}
        for kind in ("input", "output", "cached_input"):
            tokens = getattr(usage, f"{kind}_tokens")
            assert tokens > 0
            assert counted.value("backburner_executor_tokens_total", **names, kind=kind) == tokens
            assert hour.value("backburner_usage_hour_tokens", **names, kind=kind) == tokens
        cost = usage.cost_usd if usage.HasField("cost_usd") else None
        assert counted.value("backburner_executor_cost_usd_total", **names) == cost
        assert hour.value("backburner_usage_hour_cost_usd", **names) == (cost or 0)
        assert (counted.value("backburner_executor_costs_unknown_total", **names) or 0) == usage.costs_unknown
        assert hour.value("backburner_usage_hour_costs_unknown", **names) == usage.costs_unknown
        assert counted.value("backburner_executor_turns_total", harness=harness) == usage.turns
    assert groups["claude-code"].costs_unknown == 1
    ended = {"harness": "codex", "outcome": "succeeded", "reason": ""}
    assert counted.value("backburner_executor_attempts_ended_total", **ended) == 2
    assert counted.value("backburner_executor_attempts_started_total", harness="codex") == 2


async def test_a_breaker_opens_with_a_spent_quota_and_closes_when_it_is_reset(services: Stack) -> None:
    refused = {"reason": "QUOTA_EXHAUSTED", "message": "quota spent", "account": "google:test"}
    await one(services, "gemini-cli", fail=refused)
    breaker = {"harness": "gemini-cli", "account": "google:test", "reason": "QUOTA_EXHAUSTED", "executor": ""}
    scraped = await until(services.scheduler, "backburner_breaker_open", 1.0, **breaker)
    assert scraped.value("backburner_breakers_open") == 1
    assert scraped.value("backburner_breaker_until_timestamp_seconds") is None, "nobody knows when it is reset"
    assert scraped.value("backburner_findings", code="BREAKER_OPEN", severity="WARNING") == 1
    ended = {"harness": "gemini-cli", "outcome": "failed", "reason": "QUOTA_EXHAUSTED"}
    assert (await of(services.executor)).value("backburner_executor_attempts_ended_total", **ended) == 1
    waiting = await services.create("agents.one", harness="gemini-cli", prompt="later")
    queued = {"harness": "gemini-cli", "waiting_on": "BREAKER"}
    await until(services.scheduler, "backburner_queue_effects", 1.0, **queued)
    await services.operator.ResetBreakers(op.ResetBreakersRequest(harness="gemini-cli", reason="paid"))
    assert result_value(await services.result(waiting)) == "turn 1: later"
    scraped = await until(services.scheduler, "backburner_breaker_open", None)
    assert scraped.value("backburner_breakers_open") == 0
    assert scraped.value("backburner_queue_effects", **queued) is None


@pytest.mark.parametrize("service", ["scheduler_service", "executor_service"])
async def test_an_address_in_use_is_a_configuration_that_cannot_work(
    services: Stack, service: str, tmp_path: Path
) -> None:
    running = services.scheduler if service == "scheduler_service" else services.executor
    own = {"BACKBURNER_LISTEN": f"127.0.0.1:{free_port()}", "BACKBURNER_STATE_DIR": str(tmp_path / "state")}
    own["BACKBURNER_EXECUTOR_ID"] = "another"
    second = Service(service, {**running.env, **own}, tmp_path / "second.log")
    second.start()
    assert second.process is not None
    try:
        assert await asyncio.to_thread(second.process.wait, SECONDS) == 2
        assert "cannot serve metrics on 127.0.0.1:" in second.tail
        assert "--metrics-address or BACKBURNER_METRICS_ADDRESS" in second.tail
    finally:
        second.kill()


@contextlib.contextmanager
def never_asking(address: str) -> Iterator[None]:
    """Somebody who is connected, and says a byte now and then."""
    host, _, port = address.rpartition(":")
    over = threading.Event()
    with socket.create_connection((host, int(port)), timeout=30) as connection:

        def trickle() -> None:
            with contextlib.suppress(OSError):
                while not over.wait(0.2):
                    connection.send(b"G")

        thread = threading.Thread(target=trickle)
        thread.start()
        try:
            yield
        finally:
            over.set()
            thread.join()


@pytest.fixture
async def treated_badly(postgres_server: DisposablePostgres) -> AsyncIterator[Stack]:
    """The services over a Postgres that the test may stop."""
    await postgres_server.migrate()
    with tempfile.TemporaryDirectory(prefix="bb-e2e-") as folder:
        async with running_stack(postgres_server.dsn, Path(folder), agents.__name__, **measured()) as stack:
            yield stack


async def test_without_postgres_a_scrape_says_so_and_nothing_stale(
    treated_badly: Stack, postgres_server: DisposablePostgres
) -> None:
    """And both services stop when they are told to, though somebody is connected who never asks."""
    scheduler, executor = treated_badly.scheduler, treated_badly.executor
    await until(scheduler, "backburner_executors", 1.0, state="CONNECTED")
    postgres_server.stop("immediate")
    scraped = await until(scheduler, "backburner_journal_up", 0.0)
    journals = {series.name for series in JOURNAL} - {"backburner_journal_up"}
    assert not [sample.name for sample in scraped.samples if sample.name in journals]
    assert scraped.value("backburner_runs_owned") is not None, "what the replica counts of itself is there"
    assert (await of(executor)).value("backburner_executor_up") == 1
    postgres_server.start()
    scraped = await until(scheduler, "backburner_journal_up", 1.0)
    assert scraped.value("backburner_executors") == 1
    for service in (executor, scheduler):
        with never_asking(service.env["BACKBURNER_METRICS_ADDRESS"]):
            assert await asyncio.to_thread(service.stop, SECONDS) == 0
