"""Checks of request fields: every violation of a request is collected, and all are raised at once.

    with checked() as check:
        namespace = check.namespace(request.namespace)
        run_id = check.uuid("run_id", request.run_id)

The block's end raises InvalidRequest when anything was wrong; a check that fails answers a harmless stand-in, so that
the checks after it can go on.
"""

import re
import uuid
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from typing import Any, Final

from google.protobuf.duration_pb2 import Duration
from google.protobuf.timestamp_pb2 import Timestamp

from scheduler_service.api import limits
from scheduler_service.authoring.options import TIME_MAX, TIME_MIN
from scheduler_service.errors import InvalidRequest, PayloadTooLarge, Violation

DEFAULT_NAMESPACE: Final = "default"
_NIL: Final = str(uuid.UUID(int=0))
_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)
_KEY: Final = re.compile(r"[A-Za-z0-9._/#:@+-]+")
_NAMESPACE: Final = re.compile(r"[a-z0-9]([a-z0-9-]*[a-z0-9])?")
_LABEL_NAME: Final = re.compile(r"[A-Za-z0-9]([A-Za-z0-9._/-]*[A-Za-z0-9])?")
_UUID: Final = re.compile(r"[0-9a-fA-F]{8}(-[0-9a-fA-F]{4}){3}-[0-9a-fA-F]{12}")
_SECONDS_MIN: Final = TIME_MIN.timestamp()
_SECONDS_MAX: Final = TIME_MAX.timestamp()


class Checks:
    """Collects the violations of one request."""

    def __init__(self) -> None:
        self.violations: list[Violation] = []
        self._too_large = False

    def refuse(self, field: str, problem: str, *, too_large: bool = False) -> None:
        """Notes a violation."""
        self.violations.append(Violation(field, problem))
        self._too_large |= too_large

    def error(self) -> InvalidRequest | None:
        """The error that names all violations; None when there are none."""
        kind = PayloadTooLarge if self._too_large else InvalidRequest
        return kind(self.violations) if self.violations else None

    def text(self, field: str, value: str, bytes_max: int) -> str:
        """Free text, possibly empty."""
        if "\x00" in value:
            self.refuse(field, "holds a NUL character, which cannot be stored")
        elif len(value.encode()) > bytes_max:
            self.refuse(field, f"is longer than {bytes_max} bytes")
        return value

    def required(self, field: str, value: str, bytes_max: int) -> str:
        """Free text that must be given."""
        if not value:
            self.refuse(field, "is required")
        return self.text(field, value, bytes_max)

    def namespace(self, value: str, field: str = "namespace") -> str:
        """A namespace; empty is `default`."""
        name = value or DEFAULT_NAMESPACE
        if len(name) > limits.NAMESPACE_BYTES_MAX or not _NAMESPACE.fullmatch(name):
            self.refuse(field, f"must be at most {limits.NAMESPACE_BYTES_MAX} of a-z, 0-9 and inner hyphens")
            return DEFAULT_NAMESPACE
        return name

    def uuid(self, field: str, value: str) -> str:
        """A UUID in its usual form, answered in lower case."""
        if not value:
            self.refuse(field, "is required")
        elif not _UUID.fullmatch(value):
            self.refuse(field, "must be a UUID like 01890a5d-ac96-774b-bcce-b302099a8057")
        else:
            return value.lower()
        return _NIL

    def optional_uuid(self, field: str, value: str) -> str:
        """A UUID, or empty."""
        return self.uuid(field, value) if value else ""

    def key(self, field: str, value: str) -> str:
        """A key of a run or of an effect."""
        if not value:
            self.refuse(field, "is required")
        elif len(value) > limits.KEY_BYTES_MAX or not _KEY.fullmatch(value):
            self.refuse(field, f"must be at most {limits.KEY_BYTES_MAX} bytes of A-Za-z0-9._/#:@+-")
        return value

    def optional_key(self, field: str, value: str) -> str:
        """A key, or empty."""
        return self.key(field, value) if value else ""

    def labels(self, field: str, value: Mapping[str, str]) -> dict[str, str]:
        """Labels: names and values of limited size and number."""
        if len(value) > limits.LABELS_MAX:
            self.refuse(field, f"has {len(value)} entries, more than {limits.LABELS_MAX}")
            return {}
        for name, text in value.items():
            if len(name) > limits.LABEL_NAME_BYTES_MAX or not _LABEL_NAME.fullmatch(name):
                self.refuse(f"{field}[{name!r}]", f"the name must be at most {limits.LABEL_NAME_BYTES_MAX} of "
                            "A-Za-z0-9._/- and begin and end with a letter or digit")  # fmt: skip
            self.text(f"{field}[{name!r}]", text, limits.LABEL_VALUE_BYTES_MAX)
        return dict(value)

    def page_size(self, value: int) -> int:
        """A page size; 0 is the default, too large is the most."""
        if value < 0:
            self.refuse("page_size", "must not be negative")
            return 1
        return min(value or limits.PAGE_SIZE_DEFAULT, limits.PAGE_SIZE_MAX)

    def not_negative(self, field: str, value: int) -> int:
        """An offset, a seq or a count."""
        if value < 0:
            self.refuse(field, "must not be negative")
        return max(0, value)

    def seconds(self, field: str, value: Duration, seconds_max: float, seconds_min: float = 0.0) -> float:
        """A duration in seconds, from `seconds_min` to `seconds_max`."""
        seconds = value.seconds + value.nanos / 1e9
        whole = abs(value.nanos) < 1_000_000_000 and value.seconds * value.nanos >= 0  # both parts have one sign
        if not whole or not seconds_min <= seconds <= seconds_max:
            self.refuse(field, f"must be from {seconds_min:g} to {seconds_max:.10g} s")
            return seconds_min
        return seconds

    def max_wait(self, value: Duration | None) -> float:
        """How long a call may wait; too long is the most."""
        if value is None:
            return limits.WAIT_SECONDS_DEFAULT
        return min(self.seconds("max_wait", value, 1e9), limits.WAIT_SECONDS_MAX)

    def time(self, field: str, value: Timestamp) -> datetime:
        """A point in time."""
        if not _SECONDS_MIN <= value.seconds <= _SECONDS_MAX or not 0 <= value.nanos < 1_000_000_000:
            self.refuse(field, "must be a time between the years 1 and 9999")
            return _EPOCH
        return value.ToDatetime(tzinfo=UTC)

    def enum(self, field: str, value: int, kind: Any, *, required: bool = False) -> int:
        """A value of an enum that this release knows; 0 is "not given"."""
        if value not in kind.values():
            self.refuse(field, f"{value} is no value of {kind.DESCRIPTOR.name}")
        elif required and value == 0:
            self.refuse(field, f"must not be {kind.Name(0)}")
        return value

    def enums(self, field: str, values: Sequence[int], kind: Any, prefix: str) -> tuple[str, ...]:
        """Filter values of an enum, answered as names without their prefix."""
        self.at_most(field, values, limits.FILTER_VALUES_MAX)
        for index, value in enumerate(values[: limits.FILTER_VALUES_MAX]):
            self.enum(f"{field}[{index}]", value, kind, required=True)
        return tuple(kind.Name(value).removeprefix(prefix) for value in values if value in kind.values())

    def names(self, field: str, values: Sequence[str]) -> tuple[str, ...]:
        """Filter values that are names."""
        self.at_most(field, values, limits.FILTER_VALUES_MAX)
        for index, value in enumerate(values[: limits.FILTER_VALUES_MAX]):
            self.required(f"{field}[{index}]", value, limits.NAME_BYTES_MAX)
        return tuple(values)

    def at_most(self, field: str, values: Collection[object], count_max: int) -> None:
        """A list of limited length."""
        if len(values) > count_max:
            self.refuse(field, f"has {len(values)} entries, more than {count_max}")


@contextmanager
def checked() -> Iterator[Checks]:
    """Collects violations; raises InvalidRequest with all of them at the end of the block."""
    check = Checks()
    yield check
    error = check.error()
    if error is not None:
        raise error
