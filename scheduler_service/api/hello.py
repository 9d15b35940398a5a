"""The hello of an executor, checked: everything in it ends in the database or in the memory of this replica."""

from collections.abc import Iterable, Sequence
from typing import Final

from backburner.scheduler.v1 import dispatch_service_pb2 as pb
from scheduler_service.api import limits
from scheduler_service.api.checks import Checks, checked

_POOLS_MAX: Final = 16
_SLOTS_MAX: Final = 10_000
_NAMES_MAX: Final = 10_000
_ATTEMPTS_MAX: Final = 100_000
_CHECKS_MAX: Final = 200
_VERSIONS_MAX: Final = 50
#: Bytes of a path, and of what is to be done about a harness.
_WORDS_BYTES_MAX: Final = 4096


def check_hello(hello: pb.Hello) -> None:
    """Raises InvalidRequest with every violation."""
    with checked() as check:
        check.required("hello.executor_id", hello.executor_id, 128)
        check.required("hello.incarnation", hello.incarnation, 64)
        check.namespace(hello.namespace, "hello.namespace")
        check.labels("hello.labels", hello.labels)
        check.at_most("hello.attempts", hello.attempts, _ATTEMPTS_MAX)
        if hello.HasField("clock_time"):
            check.time("hello.clock_time", hello.clock_time)
        for field in ("version", "address"):
            check.text(f"hello.{field}", getattr(hello, field), limits.NAME_BYTES_MAX)
        for field in ("succeeds", "functions"):
            _names(check, f"hello.{field}", getattr(hello, field))
        _names(check, "hello.harnesses", (harness.name for harness in hello.harnesses))
        _pools(check, hello)
        _harness_checks(check, "hello", hello.harness_checks)


def check_found(found: pb.HarnessesFound) -> None:
    """The same for what an executor says of its harnesses later."""
    with checked() as check:
        _names(check, "harnesses.harnesses", (harness.name for harness in found.harnesses))
        _harness_checks(check, "harnesses", found.harness_checks)


def _names(check: Checks, field: str, names: Iterable[str]) -> None:
    given = list(names)
    check.at_most(field, given, _NAMES_MAX)
    for index, name in enumerate(given[:_NAMES_MAX]):
        check.required(f"{field}[{index}]", name, limits.NAME_BYTES_MAX)


def _pools(check: Checks, hello: pb.Hello) -> None:
    check.at_most("hello.pools", hello.pools, _POOLS_MAX)
    for index, pool in enumerate(hello.pools[:_POOLS_MAX]):
        path = f"hello.pools[{index}]"
        check.required(f"{path}.name", pool.name, limits.NAME_BYTES_MAX)
        if not 0 <= pool.slots <= _SLOTS_MAX:
            check.refuse(f"{path}.slots", f"must be from 0 to {_SLOTS_MAX}")
        if not 0 <= pool.background_slots <= max(0, pool.slots):
            check.refuse(f"{path}.background_slots", "must be from 0 to slots")


def _harness_checks(check: Checks, frame: str, checks: Sequence[pb.HarnessCheck]) -> None:
    check.at_most(f"{frame}.harness_checks", checks, _CHECKS_MAX)
    for index, found in enumerate(checks[:_CHECKS_MAX]):
        path = f"{frame}.harness_checks[{index}]"
        check.required(f"{path}.name", found.name, limits.NAME_BYTES_MAX)
        for field in ("version", "account", "login_id", "known_versions"):
            check.text(f"{path}.{field}", getattr(found, field), limits.NAME_BYTES_MAX)
        check.at_most(f"{path}.tested_versions", found.tested_versions, _VERSIONS_MAX)
        for version in found.tested_versions[:_VERSIONS_MAX]:
            check.text(f"{path}.tested_versions", version, limits.NAME_BYTES_MAX)
        for field in ("path", "remedy"):
            check.text(f"{path}.{field}", getattr(found, field), _WORDS_BYTES_MAX)
