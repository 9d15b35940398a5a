"""What this replica counts of itself. Times come from where they are measured already (`recent.py`)."""

import time
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, Final

import grpc
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, ProcessCollector, disable_created_metrics

from scheduler_service.iteration.engine import Engine
from scheduler_service.metrics.catalog import PROCESS, Series

#: From a loopback commit to a call that waits; what takes longer counts in the last.
_SECONDS: Final = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0)


class ProcessMetrics:
    """The series of `catalog.PROCESS`, in a registry of their own."""

    def __init__(self, version: str) -> None:
        disable_created_metrics()  # type: ignore[no-untyped-call]  # a gauge beside each counter, which nobody asks for
        self.registry = CollectorRegistry()
        self._by_name: Mapping[str, Any] = {series.name: _made(series, self.registry) for series in PROCESS}
        ProcessCollector(registry=self.registry)
        self._by_name["backburner_build_info"].labels(version).set(1)
        self._calls = self._by_name["backburner_grpc_calls_total"]
        self._call_seconds = self._by_name["backburner_grpc_call_seconds"]

    def watch(self, engine: Engine) -> None:
        """Counts from now on what an engine does."""
        journal, by_name = engine.journal, self._by_name
        journal.commits.on_note = by_name["backburner_commit_seconds"].observe
        journal.readers.waits.on_note = by_name["backburner_read_wait_seconds"].observe
        engine.threads.waits.on_note = by_name["backburner_iteration_wait_seconds"].observe
        engine.shards.losses.on_note = partial(_count, by_name["backburner_shards_lost_total"])
        engine.dispatcher.on_sent = self._dispatched
        engine.news.on_ended = self._settled
        for name, look in _gauges(engine).items():
            by_name[name].set_function(look)

    def _dispatched(self, pool: str) -> None:
        self._by_name["backburner_dispatches_total"].labels(pool).inc()

    def _settled(self, outcome: str) -> None:
        self._by_name["backburner_settlements_total"].labels(outcome).inc()

    def call_begins(self, method: str, context: grpc.aio.ServicerContext[Any, Any]) -> None:
        """A call of a method that there is; `/package.Service/Method`. It counts when it is over, however it ends."""
        ended = partial(self._call_ended, method, time.monotonic())
        context.add_done_callback(ended)  # type: ignore[arg-type]  # its stub wants a keyword

    def _call_ended(self, method: str, began: float, context: grpc.aio.ServicerContext[Any, Any]) -> None:
        _, service, name = method.split("/")
        self._calls.labels(service, name, _code(context)).inc()
        self._call_seconds.labels(service, name).observe(time.monotonic() - began)


def _made(series: Series, registry: CollectorRegistry) -> Counter | Gauge | Histogram:
    if series.kind == "histogram":
        return Histogram(series.name, series.meaning, series.labels, registry=registry, buckets=_SECONDS)
    kind = Counter if series.kind == "counter" else Gauge
    return kind(series.name, series.meaning, series.labels, registry=registry)


def _gauges(engine: Engine) -> Mapping[str, Callable[[], float]]:
    """Looked at by the thread of a scrape: each is one look, which needs no turn of the event loop."""
    return {
        "backburner_reads_waiting": lambda: engine.journal.readers.waiting,
        "backburner_shards_owned": lambda: len(engine.shards.epochs),
        "backburner_sessions": lambda: len(engine.sessions),
        "backburner_runs_owned": lambda: len(engine.loop.runs),
    }


def _count(counter: Counter, _sample: float) -> None:
    counter.inc()


def _code(context: grpc.aio.ServicerContext[Any, Any]) -> str:
    """The status of a call that is over; one that is over before it was answered has been cancelled."""
    code = context.code()
    if isinstance(code, grpc.StatusCode):
        return str(code.name)
    if code:
        return _CODES.get(code, grpc.StatusCode.UNKNOWN.name)
    return "OK" if context.done() else "CANCELLED"


_CODES: Final = {code.value[0]: code.name for code in grpc.StatusCode}
