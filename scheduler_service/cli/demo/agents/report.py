"""What `backburner demo agents` says: who will do what, and in the end who did what, what is merged, and why not."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

from rich.console import Console
from rich.markup import escape
from rich.text import Text

from backburner.journal.v1 import journal_pb2 as journal
from backburner.scheduler.v1 import scheduler_service_pb2 as pb
from scheduler_service.cli import text
from scheduler_service.cli.demo.agents.plan import Part
from scheduler_service.cli.demo.agents.seen import Seen
from scheduler_service.cli.demo.report import print_evidence
from scheduler_service.cli.output import details, put, table
from scheduler_service.journal.evidence import OVERLAP_SQL_IN_SHORT, Overlap

_PLAINLY: Final = """
What a stand-in says and does is written in a script: it shows the machinery, and judges no code. Nobody is charged for
it, whatever cost its CLI makes up. Log in with an agent CLI, or give a key, for the real thing.
"""
_MAY: Final = {"review": "reads only", "fix": "edits files of its worktree", "document": "edits files of its worktree"}


@dataclass(frozen=True)
class Outcome:
    """The run as it ended, what was seen of each agent, and what the journal says of the foreground."""

    run: pb.Run
    parts: list[Part]
    seen: dict[str, Seen]
    evidence: list[Overlap]

    @property
    def holds(self) -> bool:
        """True when the run is completed, no agent failed, and the loop went on under every background effect."""
        if self.run.state != journal.RUN_STATE_COMPLETED or not self.evidence:
            return False
        work = text.payload(self.run.result)["work"]
        return not any(item["failed"] for item in work) and all(item.foreground > 0 for item in self.evidence)


def print_plan(out: Console, parts: Sequence[Part], what: str, test: str, budget_usd: float) -> None:
    """Who will do what, with whose account, before anything is done."""
    out.print(Text.assemble("\nThree agents on ", (what, "bold")))
    out.print(Text(f"tests: {test}\n", "dim"))
    rows = table("ROLE", "HARNESS", "ANSWERED BY", "MAY")
    for part in parts:
        style = "bold" if part.real else "yellow"
        most = f", for at most ${budget_usd:.2f} a task" if part.real else ""
        rows.add_row(part.role, escape(part.who), Text(f"{part.model}{most}", style), _MAY[part.role])
    put(out, rows)
    if not all(part.real for part in parts):
        out.print(Text(_PLAINLY, "yellow"))


def print_result(out: Console, outcome: Outcome, repository: Path | None, kept: Path | None) -> None:
    """The report, the evidence, and how to look closer."""
    run, evidence = outcome.run, outcome.evidence
    report = text.payload(run.result)
    took = text.span((text.moment(run.end_time) - text.moment(run.create_time)).total_seconds())
    out.print(Text(f"\nReport ({took})\n", "bold"))
    _print_agents(out, report, outcome.seen, {part.role for part in outcome.parts if part.real})
    _print_work(out, report)
    put(out, details(list(_foreground(report, evidence))))
    _print_branches(out, report, repository)
    if evidence:
        holds = all(item.foreground > 0 for item in evidence)
        print_evidence(out, OVERLAP_SQL_IN_SHORT, run.run_id, evidence, holds=holds)
    _print_ways(out, run, report, kept)


def _print_agents(out: Console, report: Mapping[str, Any], seen: Mapping[str, Seen], real: set[str]) -> None:
    rows = table(
        "IN THE BACKGROUND", "ENDED", "TIME", "TURNS", "TOOLS", "TOKENS IN/OUT", "COST", "ANSWERED BY",
        right=("TIME", "TURNS", "COST"),
    )  # fmt: skip
    for work in report["work"]:
        for key in filter(seen.__contains__, work["keys"]):
            one, paid = seen[key], work["role"] in real
            state = one.state.lower() + (", same session" if one.continued else "")
            rows.add_row(
                escape(key), Text(state, text.style(one.state)), text.span(one.seconds), str(one.turns or "?"),
                _tools(one), _tokens(one), _cost(one, real=paid),
                escape(one.model or "?") if paid else Text("STAND-IN", "yellow"),
            )  # fmt: skip
    put(out, rows)
    out.print()


def _tools(seen: Seen) -> str:
    return ", ".join(f"{name} {count}" for name, count in sorted(seen.tools.items())) or "none"


def _tokens(seen: Seen) -> str:
    known = seen.input_tokens or seen.output_tokens
    return f"{text.count(seen.input_tokens)}/{text.count(seen.output_tokens)}" if known else "unknown"


def _cost(seen: Seen, *, real: bool) -> str:
    if not real:
        return "nothing"  # whatever its CLI thinks: nobody is charged for a script
    return "unknown" if seen.cost_usd is None else text.dollars(seen.cost_usd)


def _print_work(out: Console, report: Mapping[str, Any]) -> None:
    rows = table("ROLE", "CHANGED", "TESTS WITH IT", "MERGED", "WHY")
    for work in report["work"]:
        files = f"{work['files']} file{'s' if work['files'] > 1 else ''}"
        changed = f"{files}, +{work['insertions']} -{work['deletions']}" if work["files"] else "nothing"
        merged = Text("yes", "green") if work["merged"] else Text("no", "red" if work["failed"] else "yellow")
        rows.add_row(work["role"], changed, escape(work["tests"] or "-"), merged, escape(work["why"]))
    put(out, rows)
    for work in report["work"]:
        if work["answer"]:
            said = text.one_line(work["answer"], 300)
            out.print(Text.assemble(("\n" + work["role"], "bold"), f": {said}"))
        for finding in work["findings"]:
            place = f"{finding['file']}:{finding['line']}"
            out.print(Text(f"  {finding['severity']:<6} {place}  {text.one_line(finding['message'], 300)}"))
    out.print()


def _foreground(report: Mapping[str, Any], evidence: Sequence[Overlap]) -> Iterator[tuple[str, object]]:
    meanwhile = sum(item.foreground for item in evidence)
    yield "in the foreground", f"{report['test_runs']} runs of the tests, merges, {report['polls']} polls, one a second"
    if evidence:
        yield "meanwhile", f"{meanwhile} foreground effects were asked for and done under background ones"
    for when in ("before", "after"):
        passed = "pass" if report[f"passed_{when}"] else "FAIL"
        yield f"tests {when}", f"{passed}: {report[when]}"


def _print_branches(out: Console, report: Mapping[str, Any], repository: Path | None) -> None:
    where = "the sample repository" if repository is None else str(repository)
    for branch in report["branches"]:
        left = next((work["role"] for work in report["work"] if branch.endswith(f"-{work['role']}")), "")
        what = f"what {left} did, not merged" if left else "what is merged"
        out.print(Text.assemble((f"\nnew branch {branch}", "bold"), f" in {where}: {what}"))
        if repository is not None:
            out.print(Text(f"  git -C {repository} diff {report['commit'][:12]} {branch}", "dim"))
    if not report["branches"]:
        out.print(Text("\nNothing was merged: no branch was made.", "yellow"))


def _print_ways(out: Console, run: pb.Run, report: Mapping[str, Any], kept: Path | None) -> None:
    if kept is None:
        out.print(
            Text("\nLook closer: run it with --keep, and everything stays: journal, transcripts, worktrees.", "dim")
        )
        return
    out.print(Text.assemble("\nLook closer; everything is kept in ", (str(kept), "bold"), ":"))
    out.print(Text(f"  backburner dev --data-dir {kept}     # then, in another terminal:", "dim"))
    out.print(Text(f"  backburner show {run.run_id}", "dim"))
    for work in report["work"]:
        for key in work["keys"]:
            out.print(Text(f"  backburner logs --pretty {run.run_id}/{key}", "dim"))


def as_json(outcome: Outcome) -> str:
    """All of it on one line."""
    return text.compact_json({
        "run": text.as_dict(outcome.run),
        "parts": [asdict(part) for part in outcome.parts],
        "seen": {key: asdict(one) for key, one in outcome.seen.items()},
        "evidence": [asdict(item) for item in outcome.evidence],
        "holds": outcome.holds,
    })  # fmt: skip
