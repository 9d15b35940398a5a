"""What agents do and consume, in words. Pure."""

from __future__ import annotations

from typing import Final

from backburner.journal.v1 import journal_pb2 as journal
from scheduler_service.cli import text

_MODEL_WIDTH: Final = 60
_NOW_WIDTH: Final = 120


def describe_usage(usage: journal.Usage) -> str:
    """All of it: `12.3k tokens (10.1k in, 8.0k of them cached, 2.2k out) · $0.08 · 4 turns · model-x`."""
    if usage == journal.Usage():
        return ""
    cached = f", {text.count(usage.cached_input_tokens)} of them cached" if usage.cached_input_tokens else ""
    parts = f"{text.count(usage.input_tokens)} in{cached}, {text.count(usage.output_tokens)} out"
    said = [f"{text.count(usage.input_tokens + usage.output_tokens)} tokens ({parts})", describe_cost(usage)]
    if usage.turns:
        said.append(f"{usage.turns} turn{'s' if usage.turns > 1 else ''}")
    model = text.one_line(text.plain(usage.model), _MODEL_WIDTH)
    return " · ".join([*said, *([model] if model else [])])


def describe_cost(usage: journal.Usage) -> str:
    """What it cost; one that is not known is no $0: `$1.20 + 3 attempts of unknown cost`."""
    if not usage.HasField("cost_usd"):
        return "cost unknown"
    plural = "s" if usage.costs_unknown > 1 else ""
    unknown = f" + {usage.costs_unknown} attempt{plural} of unknown cost" if usage.costs_unknown else ""
    return text.dollars(usage.cost_usd) + unknown


def describe_workspace(workspace: journal.WorkspaceResult) -> str:
    """What became of it: `2 files, +3 -1 · commit 3f2a9c1b7d4e on backburner/x · kept in /path`."""
    said = []
    if workspace.files_changed:
        files = f"{workspace.files_changed} file{'s' if workspace.files_changed > 1 else ''}"
        said.append(f"{files}, +{workspace.insertions} -{workspace.deletions}")
    if workspace.result_commit:
        on = f" on {text.plain(workspace.branch)}" if workspace.branch else ""
        said.append(f"commit {text.plain(workspace.result_commit)[:12]}{on}")
    if workspace.kept:
        said.append(f"kept in {text.plain(workspace.path)}")
    if workspace.problem:
        said.append(text.one_line(text.plain(workspace.problem), _NOW_WIDTH))
    return " · ".join(said)


def doing(progress: journal.Progress) -> list[str]:
    """What an agent, or any child, does now: `turn 4/20`, `Bash: pytest -q`."""
    said = []
    if progress.turns:
        said.append(f"turn {progress.turns}/{progress.turns_max}" if progress.turns_max else f"turn {progress.turns}")
    step = "" if progress.step == f"turn {progress.turns}" else progress.step  # that is said already
    if now := ": ".join(part for part in (progress.tool, step) if part):
        said.append(text.one_line(text.plain(now), _NOW_WIDTH))
    return said


def spent(usage: journal.Usage) -> list[str]:
    """What was consumed so far, in short: `12.3k tokens`, `$0.08`; empty: nothing is known."""
    tokens = usage.input_tokens + usage.output_tokens
    said = [f"{text.count(tokens)} tokens"] if tokens else []
    return [*said, describe_cost(usage)] if tokens or usage.HasField("cost_usd") else said


def todos(progress: journal.Progress) -> list[str]:
    """How far its to-do list is: `3/7 todos`."""
    return [f"{progress.todos_done}/{progress.todos} todos"] if progress.todos else []
