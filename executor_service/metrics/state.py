"""How the executor is when it is scraped: looked at by the event loop, for the thread that serves the scrape."""

import asyncio
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import CancelledError
from typing import Final

from prometheus_client.core import GaugeMetricFamily
from prometheus_client.registry import Collector

from backburner.scheduler.v1 import dispatch_service_pb2 as pb
from executor_service.assignment import Assignment
from executor_service.attempts import Attempts
from executor_service.metrics.catalog import LOOKED_AT, Series
from executor_service.slots import Pool
from executor_service.spool import Spool

#: Longest that a scrape waits for the event loop.
LOOK_SECONDS: Final = 2.0
SESSIONS: Final = ("connected", "draining", "away", "taken_over")

#: Series, labels, value.
Look = tuple[str, tuple[str, ...], float]


class State(Collector):
    """The series of `catalog.LOOKED_AT`. `session` answers with one of SESSIONS."""

    def __init__(
        self,
        attempts: Attempts,
        spool: Spool,
        *,
        harness_of: Callable[[Assignment], str],
        checks: Callable[[], Sequence[pb.HarnessCheck]],
        session: Callable[[], str],
        journal_up: Callable[[], bool],
    ) -> None:
        self._attempts = attempts
        self._spool = spool
        self._harness_of = harness_of
        self._checks = checks
        self._session = session
        self._journal_up = journal_up
        self._loop = asyncio.get_running_loop()

    def describe(self) -> Iterable[GaugeMetricFamily]:
        """The series, without values."""
        return [_family(series) for series in LOOKED_AT]

    def collect(self) -> Iterable[GaugeMetricFamily]:
        """The series with their values; when the executor does not answer, none but that it is so."""
        families = {series.name: _family(series) for series in LOOKED_AT}
        looks = self._ask()
        for name, labels, value in looks or ():
            families[name].add_metric(labels, value)
        families["backburner_executor_up"].add_metric((), 0.0 if looks is None else 1.0)
        return families.values()

    def _ask(self) -> list[Look] | None:
        asking = self._look()
        try:
            answer = asyncio.run_coroutine_threadsafe(asking, self._loop)
        except RuntimeError:  # the service has stopped
            asking.close()
            return None
        try:
            return answer.result(LOOK_SECONDS)
        except (TimeoutError, CancelledError):
            answer.cancel()
            return None

    async def _look(self) -> list[Look]:
        running = Counter(self._harness_of(held.assignment) for held in self._attempts if held.outcome is None)
        session, spool = self._session(), self._spool
        return [
            *map(_harness_info, self._checks()),
            *(("backburner_executor_attempts_running", (name,), float(count)) for name, count in running.items()),
            *_slots(self._attempts.pools),
            *(("backburner_executor_session", (state,), float(state == session)) for state in SESSIONS),
            ("backburner_executor_journal_up", (), float(self._journal_up())),
            ("backburner_executor_results_waiting", (), float(spool.waiting)),
            ("backburner_executor_spool_files", (), float(spool.kept)),
            ("backburner_executor_spool_bytes", (), float(spool.kept_bytes)),
            ("backburner_executor_spool_taken_bytes", (), float(spool.taken_bytes)),
        ]


def _harness_info(check: pb.HarnessCheck) -> Look:
    return "backburner_executor_harness_info", (check.name, check.version, "true" if check.found else "false"), 1.0


def _slots(pools: Mapping[str, Pool]) -> Iterable[Look]:
    for name, pool in pools.items():
        yield "backburner_executor_slots", (name, "all"), float(pool.slots)
        yield "backburner_executor_slots", (name, "background"), float(pool.background_slots)
        yield "backburner_executor_slots_used", (name, "all"), float(pool.taken)
        yield "backburner_executor_slots_used", (name, "background"), float(pool.background_taken)


def _family(series: Series) -> GaugeMetricFamily:
    return GaugeMetricFamily(series.name, series.meaning, labels=series.labels)
