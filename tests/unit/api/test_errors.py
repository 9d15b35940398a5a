"""Every error class has one place on the wire, and what it says survives the way there."""

import pickle
from typing import Any
from urllib.parse import quote

import grpc
import pytest
from google.rpc import error_details_pb2  # type: ignore[import-untyped]

from scheduler_service import errors
from scheduler_service.api.status import service_error, status_of
from scheduler_service.journal import JournalUnavailable

EXAMPLES = [
    errors.InvalidRequest([errors.Violation("key", "is required"), errors.Violation("labels", "too many")]),
    errors.PayloadTooLarge([errors.Violation("input", "is 9 bytes")]),
    errors.ProcessNotFound("p", ["a", "b"]),
    errors.RunPruned("default", "r"),
    errors.RunNotFound("default", "r"),
    errors.EffectNotFound("default", effect_id="e"),
    errors.RunKeyConflict("default", "k", "aa", "bb"),
    errors.RequestIdReused("default", "q"),
    errors.RunClosed("r", "COMPLETED"),
    errors.RunHalted("r", "look"),
    errors.RunNotClientDriven("r", "p"),
    errors.ClientSuperseded("r", 1, 2),
    errors.EffectsOpen("r", ["a"], 2),
    errors.EffectKeyConflict("r", [{"key": "a", "recorded_digest": "aa"}], {"a": "bb"}),
    errors.GroupConflict("r", [{"key": "a", "group_id": "g", "strategy": "CONCURRENT", "max_concurrency": 2}]),
    errors.QueueFull("r", 9, 9),
    errors.NotParked("r", "RUNNING"),
    errors.HistoryLimit("r", 200_000),
    errors.EffectSettled("e", "FAILED"),
    errors.EffectHasExecutor("e", "SHELL"),
    errors.CursorAhead("r", 9, 3),
    errors.OffsetAhead("e", 1, 9, 3),
    errors.BlobOffsetAhead("0" * 64, 9, 1),
    errors.BlobNotFound("r", "0" * 64),
    errors.TooManyWatchers(3),
    errors.HoldNotFound("h"),
    errors.ExecutorNotFound("x"),
    errors.ExecutorRestarted("x", "i1", "i2"),
    errors.AttemptSuperseded("e", 1, 2),
    errors.EffectWithoutExecutor("e", "TIMER"),
    errors.TooManyHolds(),
    errors.BudgetNotFound("label team=a"),
    errors.TooManyBudgets(),
    errors.ContractUnsupported(2, "1..1"),
    errors.SessionSuperseded("x", 4, "incarnation"),
    errors.Draining("s"),
    errors.DatabaseUnavailable(),
    errors.InternalError("abc"),
]


def details(error: errors.ServiceError, kind: type[Any]) -> list[Any]:
    found = []
    for packed in status_of(error).details:
        message = kind()
        if packed.Unpack(message):
            found.append(message)
    return found


def test_every_class_stands_in_the_table_and_has_an_example() -> None:
    def subclasses(kind: type[Any]) -> set[type[Any]]:
        return {kind}.union(*(subclasses(sub) for sub in kind.__subclasses__()))

    assert subclasses(errors.ServiceError) - {errors.ServiceError} == set(errors.STATUS)
    assert {type(error) for error in EXAMPLES} == set(errors.STATUS)


@pytest.mark.parametrize("error", EXAMPLES, ids=lambda error: type(error).__name__)
def test_status_carries_one_error_info_with_reason_domain_and_data(error: errors.ServiceError) -> None:
    (info,) = details(error, error_details_pb2.ErrorInfo)
    assert info.domain == "backburner"
    assert info.reason == error.reason
    assert info.reason.isupper()
    assert len(info.reason) <= 63
    assert dict(info.metadata) == error.metadata


@pytest.mark.parametrize("error", EXAMPLES, ids=lambda error: type(error).__name__)
def test_errors_survive_pickling(error: errors.ServiceError) -> None:
    copy = pickle.loads(pickle.dumps(error))
    assert (type(copy), str(copy), copy.metadata, copy.code) == (type(error), str(error), error.metadata, error.code)


def test_only_what_waiting_helps_has_retry_info() -> None:
    with_retry = {type(error) for error in EXAMPLES if details(error, error_details_pb2.RetryInfo)}
    assert with_retry == {errors.TooManyWatchers, errors.QueueFull, errors.Draining, errors.DatabaseUnavailable}


def test_only_two_reasons_are_unavailable() -> None:
    unavailable = {reason for code, reason in errors.STATUS.values() if code is grpc.StatusCode.UNAVAILABLE}
    assert unavailable == {"DRAINING", "DATABASE_UNAVAILABLE"}


def test_all_violations_are_named_with_their_paths() -> None:
    (bad,) = details(EXAMPLES[0], error_details_pb2.BadRequest)
    assert [item.field for item in bad.field_violations] == ["key", "labels"]


def test_many_and_long_violations_still_fit_the_trailers_of_an_answer() -> None:
    error = errors.InvalidRequest([errors.Violation("f" * 5000, "é" * 5000) for _ in range(1000)])
    status = status_of(error)
    assert len(quote(status.message)) + status.ByteSize() * 4 / 3 < 8_000


def test_a_lone_surrogate_in_a_message_does_not_break_the_answer() -> None:
    status = status_of(errors.ProcessNotFound("bad \ud800 name", []))
    assert "ud800" in status.message


def test_database_loss_is_unavailable_and_a_bug_is_internal(caplog: pytest.LogCaptureFixture) -> None:
    assert isinstance(service_error(JournalUnavailable("no route"), "M"), errors.DatabaseUnavailable)
    hidden = service_error(ValueError("the secret"), "M")
    assert isinstance(hidden, errors.InternalError)
    assert "secret" not in status_of(hidden).message
    assert hidden.metadata["incident"] in caplog.text
    assert "the secret" in caplog.text
