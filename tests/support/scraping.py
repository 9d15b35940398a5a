"""Metrics as Prometheus sees them."""

import asyncio
import urllib.request
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Final

from prometheus_client import Metric
from prometheus_client.parser import text_string_to_metric_families

_SECONDS: Final = 60.0


class Scraped:
    """One answer."""

    def __init__(self, text: str) -> None:
        self.families: Mapping[str, Metric] = {family.name: family for family in text_string_to_metric_families(text)}
        self.samples = [sample for family in self.families.values() for sample in family.samples]

    def all(self, name: str, /, **labels: str) -> list[float]:
        """The values of all samples with these labels, and any others."""
        return [
            sample.value for sample in self.samples if sample.name == name and labels.items() <= sample.labels.items()
        ]

    def value(self, name: str, /, **labels: str) -> float | None:
        """Their sum; None: there are none."""
        found = self.all(name, **labels)
        return sum(found) if found else None


async def scrape(address: str) -> Scraped:
    """Scrapes `host:port`."""
    return await asyncio.to_thread(_scraped, address)


def scrape_while_stuck(address: str) -> Scraped:
    """The same, while the event loop that this is called on gets no turn."""
    with ThreadPoolExecutor(1) as thread:
        return thread.submit(_scraped, address).result()


def _scraped(address: str) -> Scraped:
    with urllib.request.urlopen(f"http://{address}/metrics", timeout=_SECONDS) as answer:
        return Scraped(answer.read().decode())
