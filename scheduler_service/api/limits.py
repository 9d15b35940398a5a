"""Every limit of the API, in one place; `GetServerInfo.limits` answers this table.

A limit is named with its unit. Limits that an operator may choose stand in the settings.
"""

from collections.abc import Mapping
from typing import Final

from scheduler_service.authoring import bounds, options

NAMESPACE_BYTES_MAX: Final = 63
KEY_BYTES_MAX: Final = options.KEY_BYTES_MAX
NAME_BYTES_MAX: Final = bounds.NAME_BYTES_MAX
LABELS_MAX: Final = bounds.LABELS_MAX
LABEL_NAME_BYTES_MAX: Final = bounds.LABEL_NAME_BYTES_MAX
LABEL_VALUE_BYTES_MAX: Final = bounds.LABEL_VALUE_BYTES_MAX
REASON_BYTES_MAX: Final = bounds.TEXT.bytes_max
ACTOR_BYTES_MAX: Final = 128
INPUT_BYTES_MAX: Final = bounds.NEXT_INPUT.bytes_max
VALUE_BYTES_MAX: Final = 1 << 20
SIGNAL_BYTES_MAX: Final = 64 << 10
SPEC_BYTES_MAX: Final = bounds.SPEC.bytes_max
ERROR_BYTES_MAX: Final = 16 << 10
ERROR_DATA_BYTES_MAX: Final = bounds.FAIL_DATA.bytes_max
#: Of an input or a spec as a protobuf message, beside its limit as JSON.
MESSAGE_BYTES_MAX: Final = bounds.MESSAGE_BYTES_MAX
REQUEST_EFFECTS_MAX: Final = 1000
REQUEST_BYTES_MAX: Final = 4 << 20
#: Of one client-driven run; `open_effects_max()` of the schema is the one that counts.
OPEN_EFFECTS_MAX: Final = 20_000
IDLE_SECONDS_DEFAULT: Final = 86_400.0
IDLE_SECONDS_MIN: Final = 1.0
IDLE_SECONDS_MAX: Final = 365 * 86_400.0
FILTER_VALUES_MAX: Final = 100
PAGE_SIZE_DEFAULT: Final = 100
PAGE_SIZE_MAX: Final = 1000
PAGE_TOKEN_BYTES_MAX: Final = 1024
WAIT_KEYS_MAX: Final = 1000
WAIT_SECONDS_DEFAULT: Final = 30.0
WAIT_SECONDS_MAX: Final = 55.0
#: An answer that says "timed out" leaves so long before the caller's deadline, so that it still arrives.
DEADLINE_MARGIN_SECONDS: Final = 0.5
CLEANUP_SECONDS_DEFAULT: Final = options.CLEANUP_SECONDS_DEFAULT
CLEANUP_SECONDS_MAX: Final = 3600.0
#: Clients in Go, Java and JavaScript refuse messages beyond 4 MiB by default.
ANSWER_BYTES_MAX: Final = 3_670_016
JOURNAL_PAGE_BYTES_MAX: Final = 3 << 20
SNAPSHOT_EFFECTS_MAX: Final = 1000
OUTPUT_CHUNK_BYTES_MAX: Final = 64 << 10
OUTPUT_POSITIONS_MAX: Final = 1000

LIMITS: Final[Mapping[str, float]] = {
    "namespace_bytes_max": NAMESPACE_BYTES_MAX,
    "key_bytes_max": KEY_BYTES_MAX,
    "name_bytes_max": NAME_BYTES_MAX,
    "labels_max": LABELS_MAX,
    "label_name_bytes_max": LABEL_NAME_BYTES_MAX,
    "label_value_bytes_max": LABEL_VALUE_BYTES_MAX,
    "reason_bytes_max": REASON_BYTES_MAX,
    "actor_bytes_max": ACTOR_BYTES_MAX,
    "input_bytes_max": INPUT_BYTES_MAX,
    "value_bytes_max": VALUE_BYTES_MAX,
    "signal_bytes_max": SIGNAL_BYTES_MAX,
    "spec_bytes_max": SPEC_BYTES_MAX,
    "error_bytes_max": ERROR_BYTES_MAX,
    "error_data_bytes_max": ERROR_DATA_BYTES_MAX,
    "message_bytes_max": MESSAGE_BYTES_MAX,
    "request_effects_max": REQUEST_EFFECTS_MAX,
    "request_bytes_max": REQUEST_BYTES_MAX,
    "open_effects_max": OPEN_EFFECTS_MAX,
    "idle_seconds_default": IDLE_SECONDS_DEFAULT,
    "idle_seconds_min": IDLE_SECONDS_MIN,
    "idle_seconds_max": IDLE_SECONDS_MAX,
    "filter_values_max": FILTER_VALUES_MAX,
    "page_size_default": PAGE_SIZE_DEFAULT,
    "page_size_max": PAGE_SIZE_MAX,
    "wait_keys_max": WAIT_KEYS_MAX,
    "wait_seconds_default": WAIT_SECONDS_DEFAULT,
    "wait_seconds_max": WAIT_SECONDS_MAX,
    "cleanup_seconds_default": CLEANUP_SECONDS_DEFAULT,
    "cleanup_seconds_max": CLEANUP_SECONDS_MAX,
    "answer_bytes_max": ANSWER_BYTES_MAX,
    "journal_page_bytes_max": JOURNAL_PAGE_BYTES_MAX,
    "snapshot_effects_max": SNAPSHOT_EFFECTS_MAX,
    "output_chunk_bytes_max": OUTPUT_CHUNK_BYTES_MAX,
    "output_positions_max": OUTPUT_POSITIONS_MAX,
}
