"""What waits to go up the control stream: notices, answers to starts, and whatever the next frame can carry.

One writer takes all of it at a time, so that everything queued since the last write travels in one message. Notices
survive a broken stream within bounds; the scheduler finds what was lost by its own poll.
"""

import asyncio
import contextlib
from collections import deque
from collections.abc import Iterable, Iterator
from typing import Any, Final

from backburner.scheduler.v1 import dispatch_service_pb2 as pb
from executor_service import failpoints
from executor_service.assignment import Ref
from executor_service.invocation import Invocation

#: Notices that wait for a stream; the oldest are left to the scheduler's poll.
NOTICES_MAX: Final = 10_000
#: Other frames that wait, which are heartbeats above all: a later one says what an older one said, and more.
FRAMES_MAX: Final = 100
#: Rows in one message, and bytes of their data: below the 4 MiB that receivers accept by default.
EVENTS_PER_MESSAGE: Final = 1_000
EVENT_BYTES_PER_MESSAGE: Final = 2 * 1024 * 1024


class Outbox:
    """Frames up."""

    def __init__(self) -> None:
        self._events: deque[pb.JournaledEvent] = deque(maxlen=NOTICES_MAX)
        self._rejected: list[pb.RejectedAttempt] = []
        self._accepted: list[Ref] = []
        self._frames: deque[pb.ConnectRequest] = deque(maxlen=FRAMES_MAX)
        self._found: pb.HarnessesFound | None = None
        self._wake = asyncio.Event()

    def publish(self, events: Iterable[pb.JournaledEvent]) -> None:
        """Committed rows."""
        self._events.extend(events)
        self._wake.set()

    def reject(self, rejected: Iterable[pb.RejectedAttempt]) -> None:
        """Refused starts."""
        self._rejected.extend(rejected)
        self._wake.set()

    def accept(self, refs: Iterable[Ref]) -> None:
        """Starts that were taken."""
        self._accepted.extend(refs)
        if self._accepted:
            self._wake.set()

    def found(self, harnesses: Iterable[pb.Harness], checks: Iterable[pb.HarnessCheck]) -> None:
        """What there is of harnesses now; only the last of these is sent."""
        self._found = pb.HarnessesFound(harnesses=harnesses, harness_checks=checks)
        self._wake.set()

    def send(self, frame: pb.ConnectRequest) -> None:
        """Any other frame."""
        self._frames.append(frame)
        self._wake.set()

    def new_session(self) -> None:
        """What belonged to the last session is void: a hello says all of it anew."""
        self._rejected.clear()
        self._accepted.clear()
        self._frames.clear()
        self._found = None

    def forget_events(self) -> None:
        """They may be of a life of the database that is over: what there is now the scheduler finds by its poll."""
        self._events.clear()

    def wake(self) -> None:
        """Lets the writer look again."""
        self._wake.set()

    async def wait(self) -> None:
        """Waits until something is queued."""
        await self._wake.wait()
        self._wake.clear()

    async def until_empty(self, seconds: float) -> None:
        """Waits until the notices are on their way, or the time is over."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                while self._events:  # noqa: ASYNC110 - once, at the end of the service
                    await asyncio.sleep(0.005)

    def take(self) -> Iterator[pb.ConnectRequest]:
        """Everything that is queued, many to a message. A frame not consumed stays queued."""
        while self._frames:
            yield self._frames.popleft()
        if self._found is not None:
            found, self._found = self._found, None
            yield pb.ConnectRequest(harnesses=found)
        if self._rejected:
            rejected, self._rejected = self._rejected, []
            yield pb.ConnectRequest(rejected=pb.Rejected(attempts=rejected))
        if self._accepted:
            accepted, self._accepted = self._accepted, []
            refs = [pb.AttemptRef(effect_id=effect_id, attempt=attempt) for effect_id, attempt in accepted]
            yield pb.ConnectRequest(accepted=pb.Accepted(attempts=refs))
        while self._events:
            failpoints.hit("notice", "send")
            yield pb.ConnectRequest(journaled=pb.Journaled(events=self._some_events()))

    def _some_events(self) -> list[pb.JournaledEvent]:
        events: list[pb.JournaledEvent] = []
        size = 0
        while self._events and len(events) < EVENTS_PER_MESSAGE:
            size += len(self._events[0].data_json)
            if events and size > EVENT_BYTES_PER_MESSAGE:
                break
            events.append(self._events.popleft())
        return events


def notice(invocation: Invocation, row: tuple[Any, ...], *, frees_slot: bool = False) -> pb.JournaledEvent:
    """The notice of a committed row."""
    _, _, seq, kind, recorded_at_us, data, effect_key = row
    a = invocation.assignment
    return pb.JournaledEvent(
        run_id=a.run_id,
        seq=seq,
        type=kind,
        recorded_at_us=recorded_at_us,
        effect_id=a.effect_id,
        effect_key=effect_key or a.effect_key,
        attempt=a.attempt,
        data_json=(data or "{}").encode(),
        frees_slot=frees_slot,
    )
