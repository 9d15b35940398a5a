"""What an attempt of an agent begins with: the session of the attempt before, an earlier effect's, or a fresh one.

A session to go on with may be lost. Which one it was then, or why it is a fresh one, is said to the journal.
"""

from collections.abc import Awaitable, Callable, Iterator, Mapping
from dataclasses import dataclass, fields
from typing import Any, Final, TypeVar

from executor_service.assignment import Assignment
from executor_service.harness.base import Attempt
from executor_service.outcome import storable

T = TypeVar("T")

#: What an agent is told instead of its task when it goes on in the session of an attempt that did not come to its end.
RESUME_PROMPT: Final = (
    "Your work on this task was interrupted before it was finished. The task, and what you did so far, stand above. "
    "Look at what is there now, for a command may have been cut off in the middle. Then go on from where you were, "
    "finish the task as it was given, and give your answer."
)


class SessionLost(Exception):
    """The session to continue is gone; the message says why."""


@dataclass(frozen=True, slots=True)
class Session:
    """A session of a harness, as an earlier attempt or effect left it."""

    harness: str
    session_id: str
    #: Executor that had the session's files.
    executor_id: str = ""
    #: Working directory of the session. Empty: it had a directory of its own attempt, which is gone.
    workspace: str = ""

    def stored(self) -> dict[str, str]:
        """The proto3 JSON of journal.v1.HarnessSession."""
        named = {field.name: getattr(self, field.name) for field in fields(self)}
        return {name: value for name, value in named.items() if value}


@dataclass(frozen=True, slots=True)
class Begun:
    """What an attempt began with."""

    #: Session that it went on with. None: a fresh one.
    session: Session | None
    #: Why it is a fresh one although there was one to go on with.
    fresh_because: str = ""

    def fields(self) -> dict[str, str]:
        """The fields of EffectResult that say so."""
        continued = "" if self.session is None else self.session.session_id
        said = {"continued_session_id": storable(continued), "fresh_because": storable(self.fresh_because)}
        return {name: value for name, value in said.items() if value}


@dataclass(frozen=True, slots=True)
class Place:
    """Where the attempt runs."""

    harness: str
    executor_id: str


#: In a spec that an executor gives on: the workspace, when nobody has worked in it before.
MADE_ANEW: Final = "workspace_made_anew"
#: Does the work in a session, or in a fresh one (None); True: it is the session of an attempt that did not finish.
Run = Callable[[Session | None, bool], Awaitable[T]]


async def in_a_session(spec: Mapping[str, Any], attempt: Attempt, place: Place, run: Run[T]) -> tuple[T, Begun]:
    """Does the work in the first session that is not lost, else in a fresh one.

    Raises SessionLost when none is left and the effect wants no fresh one in its place (if_session_lost).
    """
    assignment = attempt.assignment
    lost = assignment.fresh_because
    for session, resumed in () if lost else _to_go_on_with(spec, assignment):
        try:
            _check(session, place, spec)
            attempt.goes_on(session.stored())
            return await run(session, resumed), Begun(session)
        except SessionLost as error:
            lost = lost or _why(error, session, place)
    lost = lost or _nothing_left(spec, assignment)
    if lost and continues(spec) and spec.get("if_session_lost") == "fail":
        raise SessionLost(lost)
    attempt.goes_on(None, lost)
    return await run(None, False), Begun(None, lost)


def continues(spec: Mapping[str, Any]) -> bool:
    """True for an effect that is to go on with an earlier one's session."""
    return bool(spec.get("continue_from") or spec.get("continue_session"))


def _to_go_on_with(spec: Mapping[str, Any], assignment: Assignment) -> Iterator[tuple[Session, bool]]:
    """The sessions in the order in which they are tried, and whether it is one that an attempt of this effect left."""
    left = None if spec.get("retry_session") == "fresh" else _session(assignment.resume)
    earlier = _session(spec.get("continue_session"))
    if left is not None:
        yield left, True
    if earlier is not None and (left is None or left.session_id != earlier.session_id):
        yield earlier, False


def _session(stored: Mapping[str, Any] | None) -> Session | None:
    if not stored or not stored.get("session_id"):
        return None
    return Session(**{field.name: str(stored.get(field.name, "")) for field in fields(Session)})


def _check(session: Session, place: Place, spec: Mapping[str, Any]) -> None:
    if session.workspace and session.workspace == spec.get(MADE_ANEW):
        raise SessionLost("its workspace was removed, and the session would go on as if its work were still there")
    if session.harness != place.harness:
        raise SessionLost(f"the session to continue is one of {session.harness!r}, not of {place.harness!r}")


def _why(error: SessionLost, session: Session, place: Place) -> str:
    elsewhere = session.executor_id not in ("", place.executor_id)
    return f"{error} (executor {session.executor_id} had it)" if elsewhere else str(error)


def _nothing_left(spec: Mapping[str, Any], assignment: Assignment) -> str:
    if continues(spec) and _session(spec.get("continue_session")) is None:
        return "the effect to continue left no session"
    return "retry_session is fresh" if assignment.resume and spec.get("retry_session") == "fresh" else ""
