"""The demo's report and its evidence as tables."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.text import Text

from backburner.scheduler.v1 import scheduler_service_pb2 as pb
from scheduler_service.cli import text
from scheduler_service.cli.output import details, put, table
from scheduler_service.journal.evidence import Overlap


def print_report(out: Console, report: Mapping[str, Any], run: pb.Run) -> None:
    """What the process returned."""
    took = text.span((text.moment(run.end_time) - text.moment(run.create_time)).total_seconds())
    out.print(Text(f"\nReport ({took}, {run.effect_counts.succeeded} effects succeeded)\n", "bold"))
    background = table("IN THE BACKGROUND", "FOUND")
    for finding in report["findings"]:
        background.add_row(escape(finding["what"]), escape(finding["verdict"]))
    for skipped in report["skipped"]:
        what, _, why = skipped.partition(": ")
        background.add_row(escape(what), Text(f"skipped: {why}", "yellow"))
    put(out, background)
    out.print()
    put(out, details(_foreground(report)))


def _foreground(report: Mapping[str, Any]) -> list[tuple[str, object]]:
    running = ", ".join(report["running_after_files"]) or "nothing"
    broken = report["broken"]
    return [
        ("in the foreground", f"{report['files_checked']} of {report['files']} files, {report['lines']:,} lines"),
        ("", ""),
        ("functions", f"{report['functions']:,}; the longest: {report['longest']}, {report['longest_lines']} lines"
         if report["longest"] else ""),
        ("marks", f"{report['marks']} TODO, FIXME, XXX"),
        ("broken files", "\n".join(broken) if broken else "none"),
        ("then still running", running),
        ("polls", f"{report['polls']}, one a second"),
        ("race", report["race"]),
        ("approval", report["answer"]),
    ]  # fmt: skip


def print_evidence(out: Console, sql: str, run_id: str, evidence: Sequence[Overlap], *, holds: bool) -> None:
    """The query, and the journal's answer."""
    out.print(
        Text("\nEvidence: foreground effects that were requested AND settled under each background effect", "bold")
    )
    out.print(Text(sql.replace("%(run_id)s", f"'{run_id}'"), "dim"))
    rows = table("BACKGROUND", "SEQ", "OPEN FOR", "FOREGROUND", "THE FIRST AND THE LAST OF THEM", right=("FOREGROUND",))
    for item in evidence:
        span = f"{item.requested} to {item.settled}"
        some = ", ".join([*item.first_keys, "…", item.last_key]) if item.foreground > 3 else ", ".join(item.first_keys)
        rows.add_row(*map(escape, (item.key, span, text.span(item.seconds), str(item.foreground), some)))
    put(out, rows)
    out.print(_verdict(evidence, holds=holds))


def _verdict(evidence: Sequence[Overlap], *, holds: bool) -> Text:
    if holds:
        least = min(item.foreground for item in evidence)
        return Text(f"\nThe loop never waited: at least {least} foreground effects under each background one.", "green")
    return Text("\nThe evidence does not hold: under some background effect the foreground stood still.", "bold red")
