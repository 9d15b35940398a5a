"""What a process holds: the Context it asks by, and the handles of the effects it asked for.

Abstract on purpose: process code depends on these classes only; the concrete ones live in `replay`.
"""

from __future__ import annotations

import datetime as dt
import uuid
from abc import ABC, abstractmethod
from collections.abc import AsyncIterator, Callable, Generator
from contextlib import AbstractContextManager
from contextvars import ContextVar
from typing import TYPE_CHECKING, Any, Final, Generic, NoReturn, TypeVar, Unpack

from scheduler_service.authoring.effects import Effect
from scheduler_service.authoring.options import EffectOptions
from scheduler_service.authoring.results import Outcome, Progress, Session, WorkspaceResult
from scheduler_service.authoring.seeded import Random

if TYPE_CHECKING:
    import asyncio

T = TypeVar("T")
T_co = TypeVar("T_co", covariant=True)


class EffectHandle(ABC, Generic[T_co]):
    """An effect that was asked for. Await it for its result; everything it shows is a function of the events fed.

    Not a Future on purpose: cancelling a task that awaits a background handle only stops the waiting (`cancel` stops
    the effect), so handles may be raced, gathered and shielded at will.
    """

    key: str
    effect_id: str
    background: bool

    @abstractmethod
    def __await__(self) -> Generator[Any, None, T_co]:
        """Wait for the result. Raises EffectFailed, EffectTimedOut or EffectCancelled when it did not succeed."""

    @property
    @abstractmethod
    def status(self) -> str:
        """State of the effect: QUEUED, DISPATCHED, RUNNING, WAITING, PARKED, CANCELLING or a terminal one."""

    @property
    @abstractmethod
    def progress(self) -> Progress:
        """The last durable progress; empty before the first."""

    @property
    @abstractmethod
    def session(self) -> Session | None:
        """The harness session that the effect left, however it settled; None before, and for effects without one."""

    @property
    @abstractmethod
    def workspace(self) -> WorkspaceResult | None:
        """What became of the effect's workspace, however it settled; None before, and for effects without one."""

    @property
    @abstractmethod
    def attempts(self) -> int:
        """Number of the last attempt, from 1; 0 before the first."""

    @abstractmethod
    def done(self) -> bool:
        """True when the effect has settled."""

    @abstractmethod
    def result(self) -> T_co:
        """The result. Raises the effect's error, or asyncio.InvalidStateError while it is open."""

    @abstractmethod
    def exception(self) -> BaseException | None:
        """The effect's error, None when it succeeded. Raises asyncio.InvalidStateError while it is open."""

    @abstractmethod
    def cancelled(self) -> bool:
        """Always False, as of a Future whose task was not cancelled: a cancelled effect has an EffectCancelled."""

    @abstractmethod
    def outcome(self) -> Outcome[T_co]:
        """Result or error as a value. Raises asyncio.InvalidStateError while the effect is open."""

    @abstractmethod
    def cancel(self, reason: str = "", *, lost_to: str = "") -> None:
        """Ask for the effect's cancel; it settles later, with proof of death. `lost_to`: key that won a race."""

    @abstractmethod
    def add_done_callback(self, fn: Callable[[Any], object], *, context: Any = None) -> None:
        """Call `fn(handle)` by the loop once the effect has settled."""

    @abstractmethod
    def remove_done_callback(self, fn: Callable[[Any], object]) -> int:
        """Take the callback back; gives how many were removed."""

    @abstractmethod
    def future(self) -> asyncio.Future[T_co]:
        """A Future of the result, for code that wants one; cancelling it does not touch the effect."""

    @abstractmethod
    def updates(self, every: float = 0) -> AsyncIterator[Progress]:
        """Progress as it is recorded, at most one each `every` seconds of the run's time; ends when settled."""


class Log(ABC):
    """Writes PROCESS_LOG rows. Messages are cut at 8 KiB, `%` arguments as in logging; fields may have any name and
    are JSON, at most 64 KiB of it."""

    @abstractmethod
    def log(self, level: str, message: str, /, *args: object, **fields: object) -> None:
        """Write a line at `level`: DEBUG, INFO, WARNING or ERROR."""

    def debug(self, message: str, /, *args: object, **fields: object) -> None:
        """Write a line at DEBUG."""
        self.log("DEBUG", message, *args, **fields)

    def info(self, message: str, /, *args: object, **fields: object) -> None:
        """Write a line at INFO."""
        self.log("INFO", message, *args, **fields)

    def warning(self, message: str, /, *args: object, **fields: object) -> None:
        """Write a line at WARNING."""
        self.log("WARNING", message, *args, **fields)

    def error(self, message: str, /, *args: object, **fields: object) -> None:
        """Write a line at ERROR."""
        self.log("ERROR", message, *args, **fields)


class Context(ABC):
    """The one way from a process to the world. All of it is durable and the same on replay."""

    run_id: str

    @abstractmethod
    async def run(self, effect: Effect[T], *, key: str | None = None, **options: Unpack[EffectOptions]) -> T:
        """Ask for an effect in the foreground and wait for its result.

        The await owns the effect: cancelling it asks for the effect's cancel and raises CancelledError when that has
        settled; a second cancel stops the waiting. Raises EffectError; OptionError and KeyReused at the line.
        """

    @abstractmethod
    def start(
        self, effect: Effect[T], *, background: bool = True, key: str | None = None, **options: Unpack[EffectOptions]
    ) -> EffectHandle[T]:
        """Ask for an effect and go on at once. All requests of one step are one commit at its end.

        `key` is 1 to 256 characters of `A-Z a-z 0-9 . _ / # : @ + -`, unique in the run, default `name#occurrence`.
        Raises OptionError and KeyReused at the line.
        """

    @abstractmethod
    def now(self) -> dt.datetime:
        """Time of the event that is being fed, in UTC. Stands still within a step and never goes back."""

    @property
    @abstractmethod
    def random(self) -> Random:
        """A generator seeded by run, scope and occurrence: keep it to draw more than once."""

    @abstractmethod
    def uuid4(self) -> uuid.UUID:
        """A UUID derived from run, scope and occurrence."""

    @property
    @abstractmethod
    def log(self) -> Log:
        """Log lines into the journal."""

    @abstractmethod
    def report(self, percent: float | None = None, label: str = "", data: dict[str, Any] | None = None) -> None:
        """Say how far the run has come; `percent` is 0 to 100."""

    @abstractmethod
    def scope(self, prefix: str) -> AbstractContextManager[None]:
        """Prefix the keys asked for within the `with` block, in tasks started there too.

        In an async generator it holds between two `yield`s for who iterates as well, as context variables do.
        """

    @abstractmethod
    def patched(self, patch_id: str) -> bool:
        """True for runs that reach this line for the first time with the new code, False for older histories."""

    @abstractmethod
    async def signal(self, name: str) -> Any:
        """Wait for the next signal of that name and take it."""

    @abstractmethod
    def signals(self, name: str) -> AsyncIterator[Any]:
        """The signals of that name, each taken once, for ever."""

    @abstractmethod
    async def halt(self, reason: str = "") -> None:
        """Pause the run until an operator resumes it."""

    @abstractmethod
    async def continue_as_new(self, *args: Any, **kwargs: Any) -> NoReturn:
        """End this run and go on as a new one of the same process and key, with these arguments.

        Raises InvalidValue, TypeError or TooLarge for arguments that the new run could not take, OptionError while
        foreground effects are open, and CancelledError once the run's cancel was asked for.
        """

    @property
    @abstractmethod
    def cancel_reason(self) -> str | None:
        """Why the run's cancel was asked for; None when it was not."""

    @property
    @abstractmethod
    def history_length(self) -> int:
        """Number of journal events fed so far."""


CURRENT: Final[ContextVar[Context]] = ContextVar("backburner_context")


def current() -> Context:
    """The context of the process that calls. Raises RuntimeError outside of a process."""
    context = CURRENT.get(None)
    if context is None:
        raise RuntimeError("no process is running here: bb.current() is for code called by a process")
    return context
