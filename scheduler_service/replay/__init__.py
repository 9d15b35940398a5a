"""Replay: process code on a deterministic loop, driven by journal events. Pure: no I/O, no clock, no randomness."""

from scheduler_service.replay.events import Command, Event
from scheduler_service.replay.execution import Execution, replay
from scheduler_service.replay.failures import StepBlocked, parked_error, run_error
from scheduler_service.replay.recorded import Divergence, Recorded

__all__ = [
    "Command",
    "Divergence",
    "Event",
    "Execution",
    "Recorded",
    "StepBlocked",
    "parked_error",
    "replay",
    "run_error",
]
