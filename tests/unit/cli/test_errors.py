from typing import Any

import grpc
import grpc.aio
import pytest
from google.rpc import error_details_pb2, status_pb2  # type: ignore[import-untyped]

from scheduler_service.cli.errors import CliError, from_rpc
from scheduler_service.cli.exit_codes import ExitCode


def rpc_error(code: grpc.StatusCode, message: str, *details: Any) -> grpc.aio.AioRpcError:
    status = status_pb2.Status(message=message)
    for detail in details:
        status.details.add().Pack(detail)
    trailers = grpc.aio.Metadata(("grpc-status-details-bin", status.SerializeToString()))
    return grpc.aio.AioRpcError(code, grpc.aio.Metadata(), trailers if details else grpc.aio.Metadata(), message)


def shown(error: grpc.RpcError) -> CliError:
    return from_rpc(error, "127.0.0.1:7233", "the default address")


def test_a_refusal_shows_message_reason_and_the_command_that_helps() -> None:
    info = error_details_pb2.ErrorInfo(reason="RUN_NOT_FOUND", domain="backburner")
    error = shown(rpc_error(grpc.StatusCode.NOT_FOUND, "run 'x' does not exist", info))
    assert error.message == "run 'x' does not exist [RUN_NOT_FOUND]"
    assert "backburner ps" in error.remedy
    assert error.code == ExitCode.USAGE


def test_every_violation_is_named_with_its_path_once() -> None:
    request = error_details_pb2.BadRequest()
    request.field_violations.add(field="input.files[2]", description="expected text")
    request.field_violations.add(field="key", description="too long")
    error = shown(rpc_error(grpc.StatusCode.INVALID_ARGUMENT, "the request is invalid: key: too long", request))
    assert error.message == "the request is invalid: key: too long (input.files[2]: expected text)"
    assert error.code == ExitCode.USAGE


def test_nobody_there_says_where_and_what_to_do() -> None:
    error = shown(rpc_error(grpc.StatusCode.UNAVAILABLE, "Connection refused"))
    assert "no scheduler answers at 127.0.0.1:7233 (the default address)" in error.message
    assert "is `backburner dev` running?" in error.remedy
    assert error.code == ExitCode.UNREACHABLE


def test_a_service_that_is_there_but_has_no_database_keeps_its_own_message() -> None:
    info = error_details_pb2.ErrorInfo(reason="DATABASE_UNAVAILABLE", domain="backburner")
    error = shown(rpc_error(grpc.StatusCode.UNAVAILABLE, "the database does not answer", info))
    assert error.message == "the database does not answer [DATABASE_UNAVAILABLE]"
    assert error.code == ExitCode.UNREACHABLE


@pytest.mark.parametrize(
    ("code", "exit_code"),
    [
        (grpc.StatusCode.DEADLINE_EXCEEDED, ExitCode.TIMED_OUT),
        (grpc.StatusCode.FAILED_PRECONDITION, ExitCode.USAGE),
        (grpc.StatusCode.ALREADY_EXISTS, ExitCode.USAGE),
        (grpc.StatusCode.UNIMPLEMENTED, ExitCode.USAGE),
        (grpc.StatusCode.INTERNAL, ExitCode.FAILED),
    ],
)
def test_codes_of_calls_become_exit_codes(code: Any, exit_code: ExitCode) -> None:
    assert shown(rpc_error(code, "no")).code == exit_code


def test_details_that_no_reader_knows_are_passed_over() -> None:
    retry = error_details_pb2.RetryInfo()
    assert shown(rpc_error(grpc.StatusCode.INTERNAL, "broken", retry)).message == "broken"


def test_an_error_reads_as_one_sentence() -> None:
    assert str(CliError("it broke", "mend it")) == "it broke; mend it"
