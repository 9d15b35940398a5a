"""`backburner journal`: the rows that everything else is derived from."""

from __future__ import annotations

import json

import click
from rich.console import Console
from rich.text import Text

from backburner.journal.v1 import journal_pb2 as journal
from backburner.scheduler.v1 import scheduler_service_pb2 as pb
from scheduler_service.cli import text
from scheduler_service.cli.address import Target
from scheduler_service.cli.client import CALL_SECONDS, Client, connect
from scheduler_service.cli.complete import run_names
from scheduler_service.cli.options import asynchronous, with_json, with_target
from scheduler_service.cli.output import console
from scheduler_service.cli.watching import watch_run

_TYPE_STYLES = {
    "EFFECT_RESOLVED": "green",
    "EFFECT_CANCELLED": "yellow",
    "RUN_COMPLETED": "bold green",
    "RUN_FAILED": "bold red",
    "PROCESS_RUNTIME_ERROR": "bold red",
    "EFFECT_ATTEMPT_FAILED": "red",
    "EFFECT_ATTEMPT_LOST": "red",
    "EFFECT_REQUESTED": "cyan",
}


@click.command("journal")
@click.argument("run", metavar="RUN", shell_complete=run_names())
@click.option("--after", type=click.IntRange(min=0), default=0, metavar="SEQ", help="Only what follows SEQ.")
@click.option("--follow", "-f", is_flag=True, help="Go on with new rows until the run ends.")
@click.option("--full", is_flag=True, help="Print the data of each row whole.")
@with_json
@with_target
@asynchronous
async def journal_command(*, run: str, after: int, follow: bool, full: bool, as_json: bool, target: Target) -> None:
    """Print the journal of a run: every event, in order.

    \b
    Examples:
      backburner journal key:release-1.4.2
      backburner journal RUN --json > run.jsonl    # for `backburner replay-check run.jsonl`, too
    """
    async with connect(target) as client:
        found = await client.find_run(run)
        printer = _Printer(console(), found.run_id, as_json=as_json, full=full)
        last = await _print_pages(client, found.run_id, after, printer)
        if follow:
            async for frame in watch_run(client, found.run_id, last, lambda said: click.echo(said, err=True)):
                if frame.WhichOneof("frame") == "event":
                    printer.event(frame.event)


async def _print_pages(client: Client, run_id: str, after: int, printer: _Printer) -> int:
    request = pb.ReadJournalRequest(run_id=run_id, namespace=client.namespace, after_seq=after, page_size=1000)
    while True:
        page = await client.runs.ReadJournal(request, timeout=CALL_SECONDS)
        for event in page.events:
            printer.event(event)
        if not page.events or page.next_after_seq >= page.head_seq:
            return max(request.after_seq, page.next_after_seq)
        request.after_seq = page.next_after_seq


class _Printer:
    """One line an event."""

    def __init__(self, out: Console, run_id: str, *, as_json: bool, full: bool) -> None:
        self._out = out
        self._run_id = run_id
        self._as_json = as_json
        # Without a terminal nothing is cut: the reader is a program or a file.
        self._data_width = 10_000_000 if full or not out.is_terminal else max(out.width - 78, 24)

    def event(self, event: journal.JournalEvent) -> None:
        """Print the event."""
        if self._as_json:
            # An event does not say whose it is; `replay-check` must know.
            click.echo(json.dumps({"run_id": self._run_id, **text.as_dict(event)}, ensure_ascii=False))
            return
        name = text.event_type(event.type)
        subject = f"{event.effect_key} #{event.attempt}" if event.attempt > 1 else event.effect_key
        line = Text.assemble(
            (f"{event.seq:>5}  ", "dim"),
            f"{text.clock(event.recorded_at)}  ",
            (f"{name:<24}", _TYPE_STYLES.get(name, "")),
            (f"{subject:<24}", "bold"),
            (f"  {self._data(event)}", "dim"),
        )
        self._out.print(line, soft_wrap=True)

    def _data(self, event: journal.JournalEvent) -> str:
        kind = event.WhichOneof("data")
        if kind is None:
            return ""
        data = json.dumps(text.as_dict(getattr(event, kind)), ensure_ascii=False, separators=(",", ":"))
        return "" if data == "{}" else text.one_line(data, self._data_width)
