"""How each provider refuses a request, in its own words: status, body and headers as clients know them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any, ClassVar, Final


@dataclass(frozen=True)
class Fault:
    """A refusal on `on_turn` (None: on each request) of the first `times` requests there; None is all.

    By `kind` it is worded as the provider does (`quota` is want of money, `usage_limit` holds for a time); status,
    type and message, when given, replace its own. `retry_after` is in seconds and `resets_at` in seconds since 1970:
    both go where the provider puts them.
    """

    KINDS: ClassVar[tuple[str, ...]] = (
        "authentication", "invalid_key", "rate_limit", "usage_limit", "quota", "overloaded", "server",
        "context_overflow", "bad_request", "unknown_model",
    )  # fmt: skip

    kind: str = ""
    status: int = 0
    type: str = ""
    message: str = ""
    headers: Mapping[str, str] = field(default_factory=dict)
    retry_after: float | None = None
    resets_at: float | None = None
    on_turn: int | None = 0
    times: int | None = None

    def worded(self, words: Mapping[str, Words]) -> Words:
        """These words, with what this fault says for itself."""
        said = words[self.kind or _KINDS_OF.get(self.status, "server" if self.status >= 500 else "bad_request")]
        return Words(self.status or said.status, self.type or said.type, self.message or said.message, said.code)

    def all_headers(self, of_provider: Mapping[str, str]) -> dict[str, str]:
        """The headers of the answer: the common one, the provider's, and last this fault's own."""
        common = {} if self.retry_after is None else {"retry-after": f"{self.retry_after:g}"}
        return {**common, **of_provider, **self.headers}


@dataclass(frozen=True)
class Words:
    """How a provider words one kind of refusal."""

    status: int
    type: str
    message: str
    code: str | None = None


_KINDS_OF: Final = {
    401: "authentication", 403: "authentication", 404: "unknown_model", 429: "rate_limit", 503: "overloaded",
    529: "overloaded",
}  # fmt: skip

ANTHROPIC: Final = {
    "authentication": Words(401, "authentication_error", "invalid x-api-key"),
    "invalid_key": Words(401, "authentication_error", "invalid x-api-key"),
    "rate_limit": Words(429, "rate_limit_error", "This request would exceed your organization's rate limit"),
    "usage_limit": Words(429, "rate_limit_error", "You have reached the usage limit of your plan"),
    "quota": Words(400, "invalid_request_error", "Your credit balance is too low to access the Anthropic API."),
    "overloaded": Words(529, "overloaded_error", "Overloaded"),
    "server": Words(500, "api_error", "Internal server error"),
    "context_overflow": Words(400, "invalid_request_error", "prompt is too long: 210000 tokens > 200000 maximum"),
    "bad_request": Words(400, "invalid_request_error", "messages: at least one message is required"),
    "unknown_model": Words(404, "not_found_error", "model: unknown"),
}

OPENAI: Final = {
    "authentication": Words(401, "invalid_request_error", "Incorrect API key provided", "invalid_api_key"),
    "invalid_key": Words(401, "invalid_request_error", "Incorrect API key provided", "invalid_api_key"),
    "rate_limit": Words(
        429, "tokens", "Rate limit reached on tokens per min (TPM): Limit 30000, Used 30000", "rate_limit_exceeded"
    ),
    "usage_limit": Words(429, "usage_limit_reached", "The usage limit has been reached"),
    "quota": Words(
        429, "insufficient_quota", "You exceeded your current quota, please check your plan and billing details.",
        "insufficient_quota",
    ),
    "overloaded": Words(
        503, "service_unavailable_error", "Our servers are currently overloaded. Please try again later.",
        "server_is_overloaded",
    ),
    "server": Words(500, "server_error", "The server had an error while processing your request."),
    "context_overflow": Words(
        400, "invalid_request_error",
        "This model's maximum context length is 128000 tokens. However, your messages resulted in 130000 tokens. "
        "Please reduce the length of the messages.",
        "context_length_exceeded",
    ),
    "bad_request": Words(400, "invalid_request_error", "Invalid value in the request.", "invalid_value"),
    "unknown_model": Words(404, "invalid_request_error", "The model does not exist", "model_not_found"),
}  # fmt: skip

GEMINI: Final = {
    "authentication": Words(401, "UNAUTHENTICATED", "Request had invalid authentication credentials."),
    "invalid_key": Words(400, "INVALID_ARGUMENT", "API key not valid. Please pass a valid API key.", "API_KEY_INVALID"),
    "rate_limit": Words(429, "RESOURCE_EXHAUSTED", "You exceeded your current quota.", "PerMinute"),
    "usage_limit": Words(429, "RESOURCE_EXHAUSTED", "You exceeded your current quota.", "PerDay"),
    "quota": Words(429, "RESOURCE_EXHAUSTED", "You exceeded your current quota.", "PerDay"),
    "overloaded": Words(503, "UNAVAILABLE", "The model is overloaded. Please try again later."),
    "server": Words(500, "INTERNAL", "An internal error has occurred."),
    "context_overflow": Words(
        400, "INVALID_ARGUMENT",
        "The input token count (1048999) exceeds the maximum number of tokens allowed (1048576).",
    ),
    "bad_request": Words(400, "INVALID_ARGUMENT", "Request contains an invalid argument."),
    "unknown_model": Words(404, "NOT_FOUND", "models/unknown is not found for API version v1beta"),
}  # fmt: skip


@dataclass(frozen=True)
class Refusal:
    """A refusal as it goes over the wire."""

    status: int
    body: Mapping[str, Any]
    headers: Mapping[str, str]


def by_anthropic(fault: Fault) -> Refusal:
    """Its error object; the time of a reset is in a header."""
    words = fault.worded(ANTHROPIC)
    headers: dict[str, str] = {}
    if fault.resets_at is not None:
        moment = datetime.fromtimestamp(fault.resets_at, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
        headers = {"anthropic-ratelimit-requests-reset": moment, "anthropic-ratelimit-tokens-reset": moment}
        headers["anthropic-ratelimit-unified-reset"] = f"{fault.resets_at:.0f}"
    if fault.kind == "usage_limit":
        headers["anthropic-ratelimit-unified-status"] = "rejected"
    error = {"type": words.type, "message": words.message}
    body = {"type": "error", "error": error, "request_id": "req_scripted"}
    return Refusal(words.status, body, fault.all_headers(headers))


def by_openai(fault: Fault) -> Refusal:
    """Its error object; the time of a reset is beside the message, as plans with usage limits have it."""
    words = fault.worded(OPENAI)
    error: dict[str, Any] = {"message": words.message, "type": words.type, "param": None, "code": words.code}
    if fault.resets_at is not None:
        error["resets_at"] = int(fault.resets_at)
    return Refusal(words.status, {"error": error}, fault.all_headers({}))


def by_gemini(fault: Fault) -> Refusal:
    """Its error object with details: which quota was exceeded, and when to come again."""
    words = fault.worded(GEMINI)
    details: list[dict[str, Any]] = []
    if words.type == "RESOURCE_EXHAUSTED":
        quota = {"quotaMetric": "generate_content_requests", "quotaId": f"GenerateRequests{words.code}PerProject"}
        details.append({"@type": "type.googleapis.com/google.rpc.QuotaFailure", "violations": [quota]})
    elif words.code:
        info = {"reason": words.code, "domain": "googleapis.com"}
        details.append({"@type": "type.googleapis.com/google.rpc.ErrorInfo", **info})
    if fault.retry_after is not None:
        delay = f"{fault.retry_after:g}s"
        details.append({"@type": "type.googleapis.com/google.rpc.RetryInfo", "retryDelay": delay})
    error = {"code": words.status, "message": words.message, "status": words.type, "details": details}
    return Refusal(words.status, {"error": error}, fault.all_headers({}))
