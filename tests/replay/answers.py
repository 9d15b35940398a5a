"""What the world answers in replay tests: by effect key."""

from collections.abc import Iterable, Mapping
from typing import Any

from scheduler_service.replay.events import Command
from scheduler_service.replay.harness import Reply, failed, succeeded


def by_key(delays: Mapping[str, float | None] | None = None, **fixed: Any) -> Any:
    """Every effect succeeds with its own key as value, after the given seconds; a None delay never answers."""
    chosen = dict(delays or {})

    def answer(command: Command) -> Iterable[Reply]:
        key = command.effect_key
        if key in fixed:
            return fixed[key] if isinstance(fixed[key], list) else succeeded(fixed[key], after=chosen.get(key) or 0.01)
        delay = chosen.get(key, 0.01)
        return [] if delay is None else succeeded(key, after=delay)

    return answer


def fails_after(seconds: float, reason: str = "RAISED") -> list[Reply]:
    """The effect fails for good."""
    return failed(reason, "no", after=seconds)
