"""Claude Code itself under chaos, against the scripted model server, whose ledger says what was handed out.

Only where it is installed (`python -m tests.support.harnesses`); each effect has a key of its own at the server.
"""

import contextlib
import random
import uuid
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Final

from tests.crash.chaos.agent_records import Effect, Records
from tests.support.harnesses import CLIS
from tests.support.model_server import Bash, ModelServer, Scenario, Turn, Usage

NAME: Final = "claude-code"
_KEY: Final = "ANTHROPIC_API_KEY"
_ANSWER: Final = "All of it is done."
_USAGE: Final = Usage(input=700, cached=300, output=50)
_SCENARIO: Final = Scenario(
    (Turn(call=Bash("echo one >> notes.txt")), Turn(call=Bash("sleep 0.3")), Turn(text=_ANSWER)), (_USAGE,)
)


class Real:
    """The server, and the CLI."""

    def __init__(self, server: ModelServer, program: Path) -> None:
        self._server = server
        self.program = program

    def settings(self, env: Mapping[str, str]) -> Mapping[str, str]:
        """What an executor with these settings needs beside them to have it."""
        return {
            "BACKBURNER_AGENTS": f"{env['BACKBURNER_AGENTS']},{NAME}",
            "BACKBURNER_HARNESS_PATHS": f"{NAME}={self.program}",
        }

    def step(self, draw: random.Random) -> dict[str, Any]:
        """A step of a plan."""
        env = {
            "ANTHROPIC_BASE_URL": self._server.url,
            _KEY: f"chaos-{uuid.UUID(int=draw.getrandbits(128))}",
        }
        place = draw.choice(("", "worktree:never"))
        return {"kind": "agent", "harness": NAME, "attempts": 4, "script": {}, "env": env, "workspace": place}

    def wrong(self, records: Records) -> Iterator[str]:
        """What is wrong with its effects."""
        for effect in records.effects.values():
            if effect.row["harness"] == NAME:
                yield from (f"{effect.name}: {problem}" for problem in self._wrong(effect))

    def _wrong(self, effect: Effect) -> Iterator[str]:
        """Never more is counted than was handed out, and of what nobody disturbed exactly that."""
        requests = [request for request in self._server.requests() if request.key == effect.spec["env"][_KEY]]
        charged = sum(request.usage.input + request.usage.output for request in requests if request.usage)
        begun = len(requests) * (_USAGE.input + _USAGE.output)
        counted = sum(attempt.counted or 0 for attempt in effect.attempts.values())
        ended = effect.ended()
        well = ended is not None and ended["data"].get("state") == "EFFECT_STATE_SUCCEEDED"
        if counted > begun or (well and len(effect.attempts) == 1 and counted != charged):
            yield f"{counted:.0f} tokens are counted, {charged} to {begun} were handed out in {len(requests)} requests"
        if well and ended is not None and ended["data"]["result"].get("value") != {"value": _ANSWER}:
            yield f"succeeded with {ended['data']['result'].get('value')}"


@contextlib.contextmanager
def real() -> Iterator[Real | None]:
    """The CLI with its server; None where it is not installed."""
    cli = CLIS[NAME]
    if cli.why_not() or cli.executable is None:
        yield None
        return
    with ModelServer(_SCENARIO) as server:
        yield Real(server, cli.executable)
