"""The contract between an invocation and the harness that does its work."""

from collections.abc import Callable, Mapping
from typing import Any, Protocol

from executor_service.assignment import Assignment
from executor_service.line_protocol import Report
from executor_service.masking import Masks
from executor_service.outcome import Outcome
from executor_service.output import Capture


class Attempt(Protocol):
    """What a harness may do while it works: say how far it is, and hear that it shall end."""

    @property
    def assignment(self) -> Assignment:
        """What was assigned."""

    @property
    def marker(self) -> str:
        """Marker of every descendant of the attempt."""

    @property
    def kill_grace_s(self) -> float:
        """Time between the request to end and force."""

    @property
    def may_go_on(self) -> bool:
        """False once it shall end."""

    def stands(self, outcome: Outcome) -> bool:
        """Whether this outcome of the work is the attempt's own, although it may have been asked to end."""

    @property
    def last_activity(self) -> float:
        """When it was last heard of, by time.monotonic."""

    @property
    def has_started(self) -> bool:
        """True once a child of it runs, or has run."""

    def started(self, pid: int) -> None:
        """The work runs, in a child or (0) without one."""

    def capture(self, stream: int, bytes_max: int) -> Capture:
        """The capture of one of its output streams: the first call makes it, later ones go on with it."""

    def hung(self, message: str) -> None:
        """The work has hung, by what its harness knows of it: it is ended, as by a silence timeout."""

    def report(self, report: Report) -> None:
        """Progress, usage or a result."""

    def goes_on(self, session: Mapping[str, str] | None, fresh_because: str = "") -> None:
        """Which session the work goes on with, a HarnessSession; or why with none although there was one."""

    @property
    def masks(self) -> Masks:
        """The secrets of the attempt."""

    def output(self, capture: Capture, data: bytes) -> None:
        """A piece of output."""

    def on_end(self, callback: Callable[[], None], over: Callable[[], bool] = ...) -> None:
        """Registers what makes the work end; called at most once, at once when that was asked for already.

        `over` says whether the work has ended by itself, though its outcome is still on its way: then it is no longer
        late.
        """


class Harness(Protocol):
    """One kind of work."""

    #: Name, as in `Hello.harnesses`.
    name: str
    #: Version found. Empty: not applicable.
    version: str
    #: Pool whose slots it uses.
    pool: str
    #: How long after the grace the end may take before the attempt is given up as not proven dead.
    end_seconds_max: float

    async def run(self, spec: Mapping[str, Any], attempt: Attempt) -> Outcome:
        """Does the work and says how it ended. Raises InvalidWork when it cannot be done as asked.

        The outcome is that of the work itself: whether it was ended, and why, is the invocation's to add.
        """
