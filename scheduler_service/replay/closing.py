"""The end of a run: what the process's return, error or cancel becomes, and what happens to what is still open.

Asked at quiescence: `advance` is True when it made something ready to run.
"""

from __future__ import annotations

import asyncio
from typing import Any, Final

from scheduler_service.authoring.bounds import RESULT, bounded
from scheduler_service.authoring.errors import is_run_failure
from scheduler_service.authoring.values import InvalidValue
from scheduler_service.replay.context import ContinueAsNew, RunContext
from scheduler_service.replay.failures import run_error
from scheduler_service.replay.handles import Handle
from scheduler_service.replay.outbox import Asking

_UNHEARD: Final = (
    "ctx.continue_as_new was called in task {task!r}, which nobody awaited, and the process has returned: await that "
    "task"
)


class Closing:
    """Follows the main task to its end and beyond, until every waited-for effect has settled."""

    def __init__(self, asking: Asking, context: RunContext) -> None:
        # Constant fields, set with RUN_CREATED.
        self.main: asyncio.Task[Any] | None = None
        # Mutable fields.
        self.ended = False
        self.process_error: BaseException | None = None
        self.error_kind = ""
        self._asking = asking
        self._context = context
        self._outcome = ""  # COMPLETED, FAILED, CANCELLED or CONTINUED, once the main task is done
        self._end: dict[str, Any] = {}  # data of the row that ends the run
        self._waited: set[str] = set()  # keys of the effects that must settle first
        self._announced = False

    def cancel_run(self) -> None:
        """The run's cancel was asked for: CancelledError enters the main task, or the closing run stops waiting."""
        if self._outcome:
            for key in sorted(self._still_open()):
                self._asking.open[key].ask_cancel("RUN_CANCELLED")
        elif self.main is not None:
            self.main.cancel()  # how long cleanup may take is the owner's to bound: it needs a clock

    @property
    def due(self) -> bool:
        """True when the run is over but for the row that says so."""
        return bool(self._outcome) and not (self.ended or self._still_open() or self._asking.loop.tasks)

    def _still_open(self) -> set[str]:
        """Of the effects that must settle first, those that have not: settled, or taken back before they were asked."""
        return self._waited & self._asking.open.keys()

    def advance(self) -> bool:
        """Take the next step towards the end, at quiescence. True when that made something ready to run."""
        if self.ended:
            return False
        if self._outcome:
            self._finish()
            return False
        if self.main is None or not self.main.done():
            return False
        self._decide(self.main)
        if self.process_error is not None:
            return False
        self._wind_up()
        return True

    def _decide(self, main: Any) -> None:
        try:
            result = main.result()
        except asyncio.CancelledError as error:
            self._cancelled(error)
        except BaseException as error:  # noqa: BLE001 - process code: every end is an outcome or parks the run
            self._raised(error)
        else:
            self._returned(result)

    def _returned(self, result: Any) -> None:
        unheard = self._context.continues_unheard()
        if unheard:
            self.process_error = RuntimeError(_UNHEARD.format(task=unheard))
            return
        try:
            self._outcome, self._end = "COMPLETED", {"result": {"value": bounded(result, "result", RESULT)}}
        except InvalidValue as error:
            self.process_error, self.error_kind = error, "INVALID_RESULT"

    def _cancelled(self, error: BaseException) -> None:
        if self._context.cancel_reason is None:  # it cancelled itself: nobody asked for that
            self.process_error = error
            return
        reason = self._context.cancel_reason
        self._outcome, self._end = "CANCELLED", {"reason": reason} if reason else {}

    def _raised(self, error: BaseException) -> None:
        goes_on = _continuing(error)
        if goes_on is not None:
            self._outcome, self._end = "CONTINUED", {"input": goes_on.input_object}
        elif is_run_failure(error):
            self._outcome, self._end = "FAILED", {"error": run_error(error)}
        else:
            self.process_error = error

    def _wind_up(self) -> None:
        """The process is over: cancel the tasks it left behind, as asyncio.run does, and settle the open effects."""
        self._asking.late = []
        for task in list(self._asking.loop.tasks):
            task.cancel()
        for handle in list(self._asking.open.values()):
            self._close_effect(handle)

    def _close_effect(self, handle: Handle[Any]) -> None:
        if handle.on_run_end == "DETACH":
            return
        # An effect in the foreground belongs to an await that is gone; in a run that ends badly nobody waits.
        default = "WAIT" if handle.background else "CANCEL"
        keeps = self._outcome in ("COMPLETED", "CONTINUED")
        if not keeps or (handle.on_run_end or default) == "CANCEL":
            handle.ask_cancel("RUN_CANCELLED" if self._outcome == "CANCELLED" else "RUN_ENDED")
        self._wait_for(handle)

    def _wait_for(self, handle: Handle[Any]) -> None:
        if not handle.done() and handle.on_run_end != "DETACH":
            self._waited.add(handle.key)

    def _finish(self) -> None:
        late, self._asking.late = self._asking.late or [], []
        for handle in late:  # asked for by the cleanup of tasks that were left behind
            self._wait_for(handle)
        if self._still_open() or self._asking.loop.tasks:
            self._announce()
            return
        self.ended = True
        unobserved = self._asking.unobserved_failures
        if self._outcome == "CONTINUED":
            # By reference: values of many signals would make a row that no message can carry.
            untaken = self._context.untaken_signals()
            self._asking.add("RUN_CONTINUED", {**self._end, **({"signal_seqs": untaken} if untaken else {})})
            return
        counted = {"unobserved_failures": unobserved} if unobserved else {}
        self._asking.add(f"RUN_{self._outcome}", {**self._end, **counted})

    def _announce(self) -> None:
        if not self._announced:
            self._announced = True
            self._asking.add("RUN_CLOSING", {"outcome": f"RUN_STATE_{self._outcome}", **self._end})


def _continuing(error: BaseException) -> ContinueAsNew | None:
    # A TaskGroup that it passes through wraps it in a group.
    while isinstance(error, BaseExceptionGroup) and len(error.exceptions) == 1:
        error = error.exceptions[0]
    return error if isinstance(error, ContinueAsNew) else None
