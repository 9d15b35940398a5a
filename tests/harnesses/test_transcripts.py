"""What people read of captured streams: through parser and scribe of the executor, drawn by the command line."""

import io
import json
from pathlib import Path
from typing import Final

import pytest
from rich.console import Console

from executor_service.harness.child import ChildEnd
from executor_service.harness.cli.adapter import Task
from executor_service.harness.cli.builtin import ADAPTERS
from executor_service.harness.cli.events import Tokens
from executor_service.harness.cli.scribe import Scribe
from executor_service.output import TRANSCRIPT
from scheduler_service.cli.pretty import Pretty
from tests.unit.executor.fakes import invocation

CAPTURES: Final = Path(__file__).with_name("captures")
USED: Final = {"input_tokens": 1_200, "output_tokens": 34}

DRAWN: Final = {
    "claude-code-tasks": """\
> do it
▸ TaskCreate  one
│ Task #1 created successfully: one
☐ 0/1 todos
▸ TaskUpdate  {"taskId":"1","status":"completed"}
│ Updated task #1 status
☐ 1/1 todos
▸ Bash  false
✗ Bash failed
│ Exit code 1
ok
✓ done
its program exited with code 1
used 1.2k tokens (1.2k in, 34 out) · cost unknown
""",
    "codex": """\
> do it
error Model metadata for `fake-model` not found. Defaulting to fallback metadata; this can degrade performance and cause issues.
── turn 1
▸ shell  /bin/bash -lc 'echo hi'
│ hi
── turn 2
All done: hi
✓ done
its program exited with code 1
used 1.2k tokens (1.2k in, 34 out) · cost unknown
""",  # noqa: E501 - the CLI's words
}


def drawn(capture: str) -> list[str]:
    """The lines that people see, without the times, and without the session, which has a random id."""
    [adapter] = [adapter for adapter in ADAPTERS if capture.startswith(adapter.name)]
    parser = adapter.parser(Task("do it", CAPTURES, CAPTURES, CAPTURES, {}), Tokens())
    attempt = invocation("e")
    scribe = Scribe(attempt, adapter.name, "1.0")
    scribe.begin("do it", resumed=False)
    for line in (CAPTURES / f"{capture}.jsonl").read_text().splitlines():
        for event in parser.take(json.loads(line)):
            scribe.hear(event)
    scribe.end(ChildEnd(1, death_proven=True), USED)
    taken = attempt.captures[TRANSCRIPT].take(1 << 20)
    assert taken is not None
    file = io.StringIO()
    pretty = Pretty(Console(file=file, highlight=False))
    pretty.feed(taken[1])
    pretty.close()
    return [said for line in file.getvalue().splitlines() if " · session " not in (said := line[9:])]


@pytest.mark.parametrize("capture", DRAWN)
def test_a_captured_stream_is_read_as_people_want_it(capture: str) -> None:
    assert drawn(capture) == DRAWN[capture].splitlines()


@pytest.mark.parametrize("capture", ["claude-code-err429", "codex-err429"])
def test_refusals_and_how_it_ended_are_told(capture: str) -> None:
    said = drawn(capture)
    assert any(line.startswith("error ") and "it tries again" in line for line in said)
    [ended] = [line for line in said if line.startswith("✗ ")]
    assert ended.startswith("✗ RATE_LIMITED: ")
