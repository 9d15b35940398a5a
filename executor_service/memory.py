"""What an executor remembers of attempts that it took, after they have ended. Bounded; nothing here waits.

A start command carries nothing that is ordered but the number of its attempt, so what is remembered is the highest
attempt of each effect: that one and all before it are refused for as long as the effect is remembered, which is until
`EFFECTS_MAX` others were taken or ended after it.

Beyond that bound this memory is no fence, and none is needed from it: a start of an older session is refused by the
session's number (`intake.py`), and within one session the scheduler sends a start again only after it has read the
effect's row anew, which shows the end that was recorded. Should a forgotten attempt be started all the same, its token
is spent: the journal answers `already` or `stale`, and the result that counts stays the first one.
"""

from collections import OrderedDict
from typing import Final

from backburner.scheduler.v1 import dispatch_service_pb2 as pb
from executor_service.assignment import Ref

#: Effects whose attempts are remembered; 35 MB when full.
EFFECTS_MAX: Final = 200_000
#: Notices of recorded ends that can be repeated, and the bytes of their data.
NOTICES_MAX: Final = 2_000
NOTICE_BYTES_MAX: Final = 8 * 1024 * 1024


class Memory:
    """Attempts that were taken, and how the latest of them were recorded."""

    def __init__(self) -> None:
        self._highest: OrderedDict[str, int] = OrderedDict()
        self._notices: OrderedDict[Ref, pb.JournaledEvent] = OrderedDict()
        self._notice_bytes = 0

    def __contains__(self, ref: Ref) -> bool:
        """True when this attempt, or a later one of its effect, was taken."""
        effect_id, attempt = ref
        return attempt <= self._highest.get(effect_id, 0)

    def __len__(self) -> int:
        return len(self._highest)

    def note(self, ref: Ref) -> None:
        """The attempt was taken, or has ended: from now on the bound counts anew."""
        effect_id, attempt = ref
        self._highest[effect_id] = max(attempt, self._highest.get(effect_id, 0))
        self._highest.move_to_end(effect_id)
        if len(self._highest) > EFFECTS_MAX:
            self._highest.popitem(last=False)

    def keep_notice(self, ref: Ref, event: pb.JournaledEvent) -> None:
        """Keeps the row that ended the attempt, for when the scheduler has not heard of it."""
        self._drop(ref)
        self._notices[ref] = event
        self._notice_bytes += len(event.data_json)
        while self._notice_bytes > NOTICE_BYTES_MAX or len(self._notices) > NOTICES_MAX:
            self._drop(next(iter(self._notices)))

    def notice(self, ref: Ref) -> pb.JournaledEvent | None:
        """The row that ended the attempt, while it is known."""
        return self._notices.get(ref)

    def drop(self, effect_id: str) -> None:
        """The journal knows nothing of the newest attempt of the effect."""
        self._highest.pop(effect_id, None)

    def forget_notices(self) -> None:
        """The rows may be gone from the journal."""
        self._notices.clear()
        self._notice_bytes = 0

    def forget(self) -> None:
        """The attempts may never have been, for the journal, and be started under the same numbers."""
        self.forget_notices()
        self._highest.clear()

    def _drop(self, ref: Ref) -> None:
        event = self._notices.pop(ref, None)
        if event is not None:
            self._notice_bytes -= len(event.data_json)
