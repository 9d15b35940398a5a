"""What comes to a run from outside in a test: signals and a cancel, each at its time."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True, kw_only=True)
class _When:
    """`at` seconds of virtual time: from the start, or from when the effect `asked` was asked for or `settled` settled.

    `asked` and `settled` are keys; at most one is given. An effect that never comes to it means that nothing happens.
    """

    at: float = 0.0
    asked: str = ""
    settled: str = ""

    def __post_init__(self) -> None:
        if self.asked and self.settled:
            raise ValueError(f"asked={self.asked!r} and settled={self.settled!r}: give one of them")
        if self.at < 0:
            raise ValueError(f"at={self.at!r}: seconds from 0")

    @property
    def since(self) -> tuple[str, str]:
        """The moment that `at` counts from (asked, settled, or empty for the start), and the key."""
        return ("asked", self.asked) if self.asked else ("settled", self.settled) if self.settled else ("", "")


@dataclass(frozen=True, slots=True)
class Signal(_When):
    """A message to the run: what `ctx.signal(name)` and `ctx.signals(name)` give is `value`."""

    name: str
    value: Any = None


@dataclass(frozen=True, slots=True)
class Cancel(_When):
    """The cancel of the run, as by `backburner cancel`."""

    reason: str = ""
