"""What one start command asks for: identity, secret and limits of an attempt, and its work, read from the wire once."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final

import orjson

from backburner.journal.v1 import journal_pb2
from backburner.scheduler.v1 import dispatch_service_pb2 as pb

Ref = tuple[str, int]

KILL_GRACE_SECONDS: Final = 5.0
KILL_GRACE_SECONDS_MAX: Final = 60.0


class InvalidWork(Exception):
    """The work cannot be done as asked: what is asked for is missing here, or malformed. Trying again will not help."""


class NotStarted(Exception):
    """The work cannot begin now, and nothing of it has: another effect works in its workspace. Later it may."""


@dataclass(frozen=True, slots=True)
class Limits:
    """Bounds of an attempt in seconds. None: no such bound."""

    start_to_close_s: float | None = None
    silence_s: float | None = None
    total_s: float | None = None
    kill_grace_s: float = KILL_GRACE_SECONDS


@dataclass(frozen=True, slots=True)
class Bound:
    """What one budget leaves to an attempt. `what` is TOKENS, COST_USD, WALL_SECONDS or TURNS."""

    #: Whose budget: `effect <key>`, `run <id>`, `label <name>=<value>`.
    of: str
    what: str
    limit: float
    left: float
    #: True: at the bound the effect waits for somebody to raise it.
    asks: bool


@dataclass(frozen=True, slots=True)
class Assignment:
    """One attempt as the scheduler assigned it."""

    run_id: str
    effect_id: str
    effect_key: str
    attempt: int
    #: The attempt's secret, hex. Never logged: it is what fences the attempt's writes.
    token: str = field(repr=False)
    harness: str
    pool: str
    background: bool
    name: str
    namespace: str
    session_no: int
    expected_s: float | None
    total_remaining_s: float | None
    spec_json: bytes = field(repr=False)
    #: HarnessSession that an earlier attempt left, to go on with; None: there is none.
    resume: Mapping[str, str] | None = None
    #: Why it must not go on with any session. Empty: it may.
    fresh_because: str = ""
    #: What budgets leave to it.
    bounds: tuple[Bound, ...] = ()

    @property
    def ref(self) -> Ref:
        """Its identity: effect and number."""
        return self.effect_id, self.attempt

    def read_spec(self) -> tuple[Mapping[str, Any], Limits]:
        """The spec as JSON with proto field names, and the limits in it. Raises InvalidWork when it is malformed."""
        try:
            spec = orjson.loads(self.spec_json)
            return spec, _limits(spec.get("timeouts"), self.total_remaining_s)
        except (ValueError, TypeError, AttributeError) as error:
            raise InvalidWork(f"the effect's spec cannot be read: {error}") from error


def assignment_from(start: pb.StartAttempt, session_no: int) -> Assignment:
    """The assignment of a start command."""
    return Assignment(
        run_id=start.run_id,
        effect_id=start.effect_id,
        effect_key=start.effect_key,
        attempt=start.attempt,
        token=start.token.hex(),
        harness=start.harness,
        pool=start.pool,
        background=start.background,
        name=start.name,
        namespace=start.namespace,
        session_no=session_no,
        expected_s=_duration(start, "expected_duration"),
        total_remaining_s=_duration(start, "total_remaining"),
        spec_json=start.spec_json,
        resume=_session(start.resume) if start.HasField("resume") else None,
        fresh_because=start.fresh_because,
        bounds=tuple(_bound(bound) for bound in start.budget_bounds),
    )


def _bound(bound: pb.BudgetBound) -> Bound:
    asks = bound.on_spent == journal_pb2.BUDGET_ACTION_ASK
    return Bound(bound.of, bound.what, bound.limit, bound.left, asks)


def _duration(start: pb.StartAttempt, name: Any) -> float | None:
    return getattr(start, name).ToNanoseconds() / 1e9 if start.HasField(name) else None


def _session(session: journal_pb2.HarnessSession) -> Mapping[str, str]:
    return {field.name: value for field, value in session.ListFields()}


def _limits(timeouts: Mapping[str, Any] | None, total_remaining_s: float | None) -> Limits:
    if not timeouts:
        return _NO_LIMITS if total_remaining_s is None else Limits(total_s=total_remaining_s)
    grace = seconds(timeouts.get("kill_grace"))
    return Limits(
        start_to_close_s=seconds(timeouts.get("start_to_close")),
        silence_s=seconds(timeouts.get("silence")),
        total_s=total_remaining_s,
        kill_grace_s=KILL_GRACE_SECONDS if grace is None else min(grace, KILL_GRACE_SECONDS_MAX),
    )


_NO_LIMITS: Final = Limits()


def seconds(duration: str | None) -> float | None:
    """Seconds of a Duration in proto3 JSON (`3.500s`). Raises ValueError when it is none."""
    if duration is None:
        return None
    if not duration.endswith("s"):
        raise ValueError(f"{duration!r} is no duration")
    return float(duration[:-1])
