"""JSON values that callers send: inputs of runs, results of external effects.

They are brought into the canonical form before anything is stored, and an input is bound to the signature of its
process before the run exists, so that a wrong one is refused with the path of the field (`input.files[2]`).
"""

import hashlib
from typing import Any

from google.protobuf.struct_pb2 import ListValue, Struct, Value

from scheduler_service.api import limits
from scheduler_service.api.checks import Checks
from scheduler_service.authoring.bounds import sent_bytes
from scheduler_service.authoring.definitions import AnyProcess
from scheduler_service.authoring.values import InvalidValue, canonical_json, encode, problems_of
from scheduler_service.errors import InvalidRequest, Violation


def input_object(check: Checks, message: Struct, bytes_max: int) -> dict[str, Any]:
    """The canonical JSON object of an input."""
    value = _canonical(check, _object(message), "input", bytes_max)
    check_sent(check, "input", value)
    return value if isinstance(value, dict) else {}


def check_sent(check: Checks, field: str, value: Any) -> None:
    """Notes a canonical value that is too large for the message that its row of the journal is sent in."""
    size = sent_bytes(value, len(canonical_json(value)))
    if size > limits.MESSAGE_BYTES_MAX:
        check.refuse(field, f"is {size} bytes as a message, more than {limits.MESSAGE_BYTES_MAX}", too_large=True)


def json_object(check: Checks, message: Struct, field: str, bytes_max: int) -> Any:
    """The canonical JSON object of a field."""
    return _canonical(check, _object(message), field, bytes_max)


def json_list(check: Checks, message: ListValue, field: str, bytes_max: int) -> Any:
    """The canonical JSON array of a field."""
    return _canonical(check, [_plain(item) for item in message.values], field, bytes_max)


def json_value(check: Checks, message: Value, field: str, bytes_max: int) -> Any:
    """The canonical JSON value of a field."""
    return _canonical(check, _plain(message), field, bytes_max)


def bind(process: AnyProcess, given: dict[str, Any]) -> None:
    """Checks that an input fits the signature of its process. Raises InvalidRequest."""
    try:
        process.bind_input(given)
    except InvalidValue as error:
        raise InvalidRequest([Violation(one.path, one.problem) for one in problems_of(error)]) from error
    except Exception as error:
        said = f"does not fit process {process.name!r}: {type(error).__name__}: {error}"
        raise InvalidRequest([Violation("input", said)]) from error


def input_digest(process: str, given: dict[str, Any]) -> str:
    """Digest that a repeated key is checked against: SHA-256 of process and input, lower-case hex.

    A client-driven run has the process ``.
    """
    return hashlib.sha256(canonical_json({"process": process, "input": given})).hexdigest()


def _canonical(check: Checks, value: Any, field: str, bytes_max: int) -> Any:
    try:
        encoded = encode(value, field)
    except InvalidValue as error:
        check.refuse(error.path, error.problem)
        return None
    size = len(canonical_json(encoded))
    if size > bytes_max:
        check.refuse(field, f"is {size} bytes as JSON, more than {bytes_max}", too_large=True)
    return encoded


def _object(message: Struct) -> dict[str, Any]:
    return {name: _plain(value) for name, value in message.fields.items()}


def _plain(value: Value) -> Any:
    match value.WhichOneof("kind"):
        case "struct_value":
            return _object(value.struct_value)
        case "list_value":
            return [_plain(item) for item in value.list_value.values]
        case "number_value":
            return value.number_value
        case "string_value":
            return value.string_value
        case "bool_value":
            return value.bool_value
        case _:
            return None
