"""Figures on their way to a scrape, and the bound of how many of them there are. Pure."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Final

#: Takes the place of what users named, beyond the bound of a series.
OTHER: Final = "other"


@dataclass(frozen=True, slots=True)
class Sample:
    """One value of a series of the catalog; the labels in its order."""

    name: str
    labels: tuple[str, ...]
    value: float


def bounded(
    samples: Iterable[Sample], most: int, named: int, merge: Callable[[float, float], float] = float.__add__
) -> list[Sample]:
    """Samples of one series, those with equal labels merged.

    Their first `named` labels are what users named: beyond the first `most` combinations of these, all are `other`.
    """
    own: dict[tuple[str, ...], None] = {}
    merged: dict[tuple[str, tuple[str, ...]], float] = {}
    for sample in samples:
        names = sample.labels[:named]
        if names not in own and len(own) < most:
            own[names] = None
        labels = sample.labels if names in own else (OTHER,) * named + sample.labels[named:]
        key = (sample.name, labels)
        merged[key] = merge(merged[key], sample.value) if key in merged else sample.value
    return [Sample(name, labels, value) for (name, labels), value in merged.items()]


def labelled(name: str, rows: Iterable[tuple[Sequence[str], float]]) -> list[Sample]:
    """Samples of one series."""
    return [Sample(name, tuple(labels), float(value)) for labels, value in rows]
