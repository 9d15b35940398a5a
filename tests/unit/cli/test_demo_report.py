import io

from rich.console import Console

from scheduler_service.cli.demo.report import print_evidence
from scheduler_service.journal.evidence import OVERLAP_SQL, OVERLAP_SQL_IN_SHORT, Overlap


def squeezed(text: str) -> str:
    return " ".join(text.split())


def test_the_query_that_is_shown_is_the_query_that_is_run() -> None:
    whole = squeezed(OVERLAP_SQL)
    position = 0
    for part in OVERLAP_SQL_IN_SHORT.split("…"):
        for line in part.splitlines():
            found = whole.find(squeezed(line).rstrip(","), position)
            assert found >= position, line
            position = found


def test_evidence_shows_the_query_and_its_answer() -> None:
    file = io.StringIO()
    item = Overlap("tests", 3, 90, 12.5, 41, ["size/a.py", "size/b.py", "size/c.py"], "pulse/9")
    print_evidence(Console(file=file, width=200), OVERLAP_SQL_IN_SHORT, "run-1", [item], holds=True)
    shown = file.getvalue()
    assert "asked.run_id = 'run-1'" in shown
    assert "3 to 90" in shown
    assert "size/c.py, …, pulse/9" in shown
    assert "at least 41 foreground effects" in shown
    assert all(line == line.rstrip() for line in shown.splitlines())


def test_evidence_that_does_not_hold_says_so() -> None:
    file = io.StringIO()
    item = Overlap("tests", 3, 4, 0.1, 0, [], "")
    print_evidence(Console(file=file, width=200), OVERLAP_SQL_IN_SHORT, "run-1", [item], holds=False)
    assert "does not hold" in file.getvalue()
