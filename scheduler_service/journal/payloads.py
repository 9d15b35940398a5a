"""Large values: stored beside the journal as blobs, referred to by it, and put back before process code sees them."""

import hashlib
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence, Set
from dataclasses import replace
from typing import Any, Final

import orjson

from scheduler_service.authoring.values import dumps
from scheduler_service.journal.errors import JournalError
from scheduler_service.replay.events import Event

#: A larger value, as JSON, is a blob.
INLINE_BYTES_MAX: Final = 64 << 10
#: Most bytes of blobs that are loaded with one run: they are in memory while it is replayed.
RUN_BLOB_BYTES_MAX: Final = 256 << 20

_SHOWN_MAX: Final = 5

Payload = Mapping[str, Any]
#: Reads the contents of blobs of a run by digest.
ReadBlobs = Callable[[str, Sequence[str]], Awaitable[Mapping[str, bytes]]]


class BlobsUnreadable(JournalError):
    """The large results of a run cannot be given to it; `kind` is the RunError.kind with which that parks it."""

    kind = "HISTORY_LIMIT"


class TooManyBlobs(BlobsUnreadable):
    """They are more than what is loaded of one run."""


class BlobsMissing(BlobsUnreadable):
    """Some are gone: nothing of ours takes a blob from a run that is there."""

    kind = "BLOBS_MISSING"


def stored(payload: Payload) -> tuple[Payload, str | None]:
    """A payload as its row has it, and the JSON text of its blob when it is one."""
    content = dumps(payload["value"]) if "value" in payload else b""
    if len(content) <= INLINE_BYTES_MAX:
        return payload, None
    digest = hashlib.sha256(content).hexdigest()
    blob = {"digest": digest, "size_bytes": len(content), "media_type": "application/json"}
    return {"blob": blob}, content.decode()


async def loaded(run_id: str, events: Sequence[Event], read: ReadBlobs, *, before: int = 0) -> Sequence[Event]:
    """The events with their large values in place, each row with a value of its own: process code may change it.

    `before`: bytes of the large values that the run has been given already. Raises BlobsUnreadable, and what `read`
    raises.
    """
    digests = {blob["digest"] for event in events for blob in _blobs(event)}
    if not digests:
        return events
    total = before + large_bytes(events)
    if total > RUN_BLOB_BYTES_MAX:
        raise TooManyBlobs(
            f"the large results of this run are {total} bytes; at most {RUN_BLOB_BYTES_MAX} are loaded: let "
            "effects write to files and return paths, or use ctx.continue_as_new"
        )
    contents = await read(run_id, sorted(digests))
    if missing := digests - contents.keys():
        raise BlobsMissing(_missing(run_id, events, missing))
    return [_filled(event, contents) for event in events]


def _missing(run_id: str, events: Sequence[Event], digests: Set[str]) -> str:
    lost = [event for event in events if any(blob["digest"] in digests for blob in _blobs(event))]
    shown = ", ".join(f"{event.effect_key} (seq {event.seq})" for event in lost[:_SHOWN_MAX])
    more = f" and {len(lost) - _SHOWN_MAX} more" if len(lost) > _SHOWN_MAX else ""
    return (
        f"the stored result of {shown}{more} is gone from table blobs: put its rows back from a backup and resume the "
        f"run; or cancel it, and start it again with reuse_from={run_id}, which runs again what is gone"
    )


def large_bytes(events: Iterable[Event]) -> int:
    """Bytes of the large values that these events refer to, a value that is referred to twice counted twice."""
    return sum(int(blob["size_bytes"]) for event in events for blob in _blobs(event))


def is_loaded(events: Iterable[Event]) -> bool:
    """True when no event refers to a blob."""
    return not any(blob for event in events for blob in _blobs(event))


def _blobs(event: Event) -> Iterable[Mapping[str, Any]]:
    if not event.effect_id:
        return  # what a run itself gives is a payload, not the result of an effect, and no process code sees it
    for field in _RESULTS:
        blob = (((event.data.get(field) or {}).get("value")) or {}).get("blob")
        if blob:
            yield blob


def _filled(event: Event, contents: Mapping[str, bytes]) -> Event:
    if not any(_blobs(event)):
        return event
    data = dict(event.data)
    for field in _RESULTS:
        blob = (((data.get(field) or {}).get("value")) or {}).get("blob")
        if blob:
            data[field] = {**data[field], "value": {"value": orjson.loads(contents[blob["digest"]])}}
    return replace(event, data=data)


#: Fields of an effect's row that hold an EffectResult.
_RESULTS: Final = ("result", "partial")
