"""Stored journals against the code that is loaded: would a run go on, or be parked?"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Final, Literal

from scheduler_service.authoring.definitions import AnyProcess
from scheduler_service.replay.events import Command, Event
from scheduler_service.replay.execution import replay
from scheduler_service.replay.recorded import Divergence
from scheduler_service.replay.states import IllegalTransition

Verdict = Literal["FINE", "PARKED", "DIVERGED", "BROKEN", "UNCHECKED"]

_BY_OWNER: Final = ("PROCESS_RUNTIME_ERROR", "RUN_RESUMED")


@dataclass(frozen=True, slots=True)
class Checked:
    """One journal that was replayed.

    FINE: the code asks for what was recorded. PARKED: the run is parked by an error, and this code does not mend it.
    DIVERGED and BROKEN: it would be parked, by a divergence or by an error that it has not had. UNCHECKED: it could not
    be replayed. `message` says why in all cases but FINE.
    """

    run_id: str
    process: str
    events: int
    verdict: Verdict
    message: str = ""

    @property
    def parks(self) -> bool:
        """True when this code would park a run that goes on now."""
        return self.verdict in ("DIVERGED", "BROKEN")

    def as_json(self) -> dict[str, Any]:
        """Its fields."""
        return asdict(self)


def check_history(
    processes: Mapping[str, AnyProcess],
    run_id: str,
    events: Sequence[Event],
    on_step: Callable[[], object] = lambda: None,
) -> Checked:
    """Replay a whole journal. Never raises for what process code does; `on_step` is called before each event."""
    name = str(events[0].data.get("process", "")) if events else ""

    def checked(verdict: Verdict, message: str = "") -> Checked:
        return Checked(run_id, name, len(events), verdict, message)

    hindered = _hindered(processes, name, events)
    if hindered:
        return checked("UNCHECKED", hindered)
    try:
        execution, pending = replay(processes[name], run_id, events, watch_calls=False, on_step=on_step)
    except Divergence as divergence:
        return checked("DIVERGED", str(divergence))
    except (IllegalTransition, ValueError, KeyError) as problem:
        return checked("UNCHECKED", f"the journal cannot be replayed: {problem}")
    execution.evict()
    error = _error(pending)
    if error is None:
        return checked("FINE")
    last = next((event.type for event in reversed(events) if event.type in _BY_OWNER), "")
    message = f"{error.get('message', '')}\n{error.get('traceback', '')}".strip()
    return checked("PARKED" if last == "PROCESS_RUNTIME_ERROR" else "BROKEN", message)


def _hindered(processes: Mapping[str, AnyProcess], name: str, events: Sequence[Event]) -> str:
    """Why a journal cannot be replayed here; empty when it can."""
    if not events or events[0].type != "RUN_CREATED" or events[0].seq != 1:
        return "it does not begin with RUN_CREATED at seq 1: export the whole journal"
    if events[0].data.get("client_driven"):
        return "it is driven by a client: there is no process to replay"
    if name not in processes:
        known = ", ".join(sorted(processes)) or "none"
        return f"no process {name!r} is loaded (--process-module); there are: {known}"
    large = next((event.seq for event in events if _is_large(event)), 0)
    # An export has none; those of a database were given to us, unless they are gone.
    return (
        f"the value at seq {large} is a large one, and is not here: of an export, check it with --run" if large else ""
    )


def _is_large(event: Event) -> bool:
    # Of effects only: the result of a run is never fed to it.
    given = event.data.get("result") or event.data.get("partial") or {}
    return event.type.startswith("EFFECT_") and "blob" in (given.get("value") or {})


def _error(pending: Sequence[Command]) -> Mapping[str, Any] | None:
    last = pending[-1] if pending else None
    if last is None or last.type != "PROCESS_RUNTIME_ERROR":
        return None
    error: Mapping[str, Any] = last.data["error"]
    return error
