"""The figures of the journal for whoever scrapes: read at most so often, with a deadline, by the event loop."""

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Iterable, Sequence
from concurrent.futures import CancelledError
from typing import Final

from prometheus_client.core import GaugeMetricFamily
from prometheus_client.registry import Collector

from scheduler_service.journal.errors import JournalError
from scheduler_service.metrics.catalog import JOURNAL, Series
from scheduler_service.metrics.samples import Sample

log = logging.getLogger(__name__)

#: How long what was read, or could not be, answers further scrapes.
FRESH_SECONDS: Final = 5.0
#: Longest that a scrape waits for the journal; Prometheus itself gives up after 10 s by default.
READ_SECONDS: Final = 3.0
#: Beyond that: how long the event loop may be busy with something else.
_LOOP_SECONDS: Final = 1.0

Read = Callable[[], Awaitable[Sequence[Sample]]]


class JournalFigures(Collector):
    """Asked by threads of the metrics' server; reads on the event loop on which it was made."""

    def __init__(self, read: Read) -> None:
        self._read = read
        self._loop = asyncio.get_running_loop()
        self._reading: asyncio.Task[Sequence[Sample] | None] | None = None
        self._read_at = 0.0

    def describe(self) -> Iterable[GaugeMetricFamily]:
        """The series, without values."""
        return [_family(series) for series in JOURNAL]

    def collect(self) -> Iterable[GaugeMetricFamily]:
        """The series with their values; of what cannot be read, none but that it is so."""
        families = {series.name: _family(series) for series in JOURNAL}
        samples = self._ask()
        for sample in samples or ():
            families[sample.name].add_metric(sample.labels, sample.value)
        families["backburner_journal_up"].add_metric((), 0.0 if samples is None else 1.0)
        return families.values()

    def _ask(self) -> Sequence[Sample] | None:
        asking = self.now()
        try:
            answer = asyncio.run_coroutine_threadsafe(asking, self._loop)
        except RuntimeError:  # the service has stopped
            asking.close()
            return None
        try:
            return answer.result(READ_SECONDS + _LOOP_SECONDS)
        except (TimeoutError, CancelledError):
            answer.cancel()
            return None

    async def now(self) -> Sequence[Sample] | None:
        """The samples; None: the journal cannot be read. All who ask meanwhile share one reading."""
        if self._reading is None or (self._reading.done() and time.monotonic() - self._read_at > FRESH_SECONDS):
            self._reading = asyncio.create_task(self._once(), name="metrics")
        return await asyncio.shield(self._reading)

    async def _once(self) -> Sequence[Sample] | None:
        try:
            async with asyncio.timeout(READ_SECONDS):
                return await self._read()
        except (JournalError, TimeoutError) as error:
            log.warning("metrics are without those of the journal: %s", str(error) or "it takes too long")
            return None
        except Exception:
            log.exception("metrics are without those of the journal, by a bug")  # the replica's own are needed then
            return None
        finally:
            self._read_at = time.monotonic()

    async def aclose(self) -> None:
        """Ends what is being read."""
        if self._reading is not None:
            self._reading.cancel()
            await asyncio.gather(self._reading, return_exceptions=True)


def _family(series: Series) -> GaugeMetricFamily:
    return GaugeMetricFamily(series.name, series.meaning, labels=series.labels)
