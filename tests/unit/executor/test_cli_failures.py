"""From the words of providers and CLIs to a class of failure and the time of a reset."""

import pytest

from executor_service.harness.cli.failures import classify, reset_in, status_in

#: 2026-11-27 12:00:00 UTC.
NOW = 1795780800.0

SAID = [
    ("Failed to authenticate. API Error: 401 invalid x-api-key", 0, "AUTHENTICATION"),
    ("unexpected status 401 Unauthorized: Incorrect API key provided", 0, "AUTHENTICATION"),
    ("Please run /login", 0, "AUTHENTICATION"),
    ("API Error: Request rejected (429) · slow down", 0, "RATE_LIMITED"),
    ("exceeded retry limit, last status: 429 Too Many Requests", 0, "RATE_LIMITED"),
    ("429 Rate limit reached on tokens per min (TPM): Limit 30000, Used 30000", 0, "RATE_LIMITED"),
    ("Claude AI usage limit reached|1795784400", 0, "QUOTA_EXHAUSTED"),
    ("You've hit your usage limit. Try again in 3 hours 20 minutes.", 0, "QUOTA_EXHAUSTED"),
    ("Your credit balance is too low to access the Anthropic API.", 400, "QUOTA_EXHAUSTED"),
    ("You exceeded your current quota, please check your plan and billing details.", 429, "QUOTA_EXHAUSTED"),
    ("API Error: 529 Overloaded", 0, "OVERLOADED"),
    ("Selected model is at capacity. Please try a different model.", 0, "OVERLOADED"),
    ("503 Service Unavailable", 503, "OVERLOADED"),
    ("prompt is too long: 210000 tokens > 200000 maximum", 400, "CONTEXT_OVERFLOW"),
    ("This model's maximum context length is 128000 tokens.", 400, "CONTEXT_OVERFLOW"),
    (
        "The input token count (1048999) exceeds the maximum number of tokens allowed (1048576).",
        400,
        "CONTEXT_OVERFLOW",
    ),
    ("invalid_request_error: messages must not be empty", 400, "BAD_REQUEST"),
    ("The model does not exist", 404, "BAD_REQUEST"),
    ("API Error: 500 Internal server error", 0, "HARNESS_ERROR"),
    ("something else went wrong", 0, "HARNESS_ERROR"),
    ("the word safety alone is no refusal", 0, "HARNESS_ERROR"),
]


@pytest.mark.parametrize(("said", "status", "reason"), SAID)
def test_the_class_of_what_was_said(said: str, status: int, reason: str) -> None:
    assert classify(said, status) == reason


def test_words_do_not_overrule_a_status_that_says_something_else() -> None:
    assert classify("overloaded with work, but: invalid api key", 401) == "AUTHENTICATION"
    assert classify("rate limit docs: see the authentication error above", 500) == "HARNESS_ERROR"


RESETS = [
    ("Claude AI usage limit reached|1795784400", 3600.0),
    ("Try again in 3 hours 20 minutes.", 12000.0),
    ("Your quota will reset after 2h3m4s.", 7384.0),
    ("Please try again in 20s. Visit ...", 20.0),
    ("Please try again in 1m30s", 90.0),
    ('"retryDelay": "34s"', 34.0),
    ("limit reached, resets 3pm (UTC)", 10800.0),
    ("resets at 11:30 (UTC)", 84600.0),
    ("resets 8am (America/New_York)", 3600.0),
    ("try again in 99999 days", 30 * 86400.0),
    ("Claude AI usage limit reached|1795770000", 0.0),
    ("no time is named", None),
    ("resets at 25:00", None),
    ("wait for it", None),
]


@pytest.mark.parametrize(("said", "seconds"), RESETS)
def test_the_time_of_a_reset(said: str, seconds: float | None) -> None:
    found = reset_in(said, NOW)
    assert found == (None if seconds is None else pytest.approx(seconds))


@pytest.mark.parametrize(("said", "status"), [("API Error: 500 x", 500), ("last status: 429 T", 429), ("line 404", 0)])
def test_a_status_in_words(said: str, status: int) -> None:
    assert status_in(said) == status
