"""Names that are near one that is not there: what a person may have meant."""

from __future__ import annotations

from collections.abc import Iterable
from difflib import get_close_matches
from typing import TYPE_CHECKING, Final

from backburner.scheduler.v1 import scheduler_service_pb2 as pb
from scheduler_service.cli.names import KEY_PREFIX

if TYPE_CHECKING:
    from scheduler_service.cli.client import Client

_LOOKED_AT_MAX: Final = 1000
_NAMED_MAX: Final = 3
_LIKENESS: Final = 0.75


def near(name: str, known: Iterable[str]) -> list[str]:
    """The few of the known names that are most like it, the nearest first."""
    return get_close_matches(name, list(dict.fromkeys(known)), n=_NAMED_MAX, cutoff=_LIKENESS)


def did_you_mean(names: Iterable[str]) -> str:
    """The question, or nothing when there are no names."""
    said = " or ".join(names)
    return f"did you mean {said}?" if said else ""


async def near_runs(client: Client, run_id: str, key: str) -> list[str]:
    """Runs among the newest whose id or key is like the one given."""
    newest = client.list_runs(pb.ListRunsRequest(page_size=_LOOKED_AT_MAX), _LOOKED_AT_MAX)
    if key:
        return [f"{KEY_PREFIX}{found}" for found in near(key, [run.key async for run in newest if run.key])]
    return near(run_id, [run.run_id async for run in newest])


async def near_effects(client: Client, run_id: str, key: str) -> list[str]:
    """Effects of the run whose key is like the one given; none when the run is not there either."""
    request = pb.ListEffectsRequest(run_id=run_id, page_size=_LOOKED_AT_MAX)
    keys = [effect.key async for effect in client.list_effects(request, _LOOKED_AT_MAX)]
    return [f"{run_id}/{found}" for found in near(key, keys)]
