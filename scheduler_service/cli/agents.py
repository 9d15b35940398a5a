"""What agents do and consume, in words. Pure."""

from __future__ import annotations

from backburner.journal.v1 import journal_pb2 as journal
from scheduler_service.cli import text


def describe_usage(usage: journal.Usage) -> str:
    """All of it: `12.3k tokens (10.1k in, 8.0k of them cached, 2.2k out) · $0.08 · 4 turns · model-x`."""
    if usage == journal.Usage():
        return ""
    cached = f", {text.count(usage.cached_input_tokens)} of them cached" if usage.cached_input_tokens else ""
    parts = f"{text.count(usage.input_tokens)} in{cached}, {text.count(usage.output_tokens)} out"
    said = [f"{text.count(usage.input_tokens + usage.output_tokens)} tokens ({parts})", describe_cost(usage)]
    if usage.turns:
        said.append(f"{usage.turns} turn{'s' if usage.turns > 1 else ''}")
    return " · ".join([*said, *([usage.model] if usage.model else [])])


def describe_cost(usage: journal.Usage) -> str:
    """What it cost; one that is not known is no $0."""
    return text.dollars(usage.cost_usd) if usage.HasField("cost_usd") else "cost unknown"
