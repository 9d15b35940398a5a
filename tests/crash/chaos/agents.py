"""Coding agents under chaos: the harnesses that executors have, and what processes ask of them.

All of them run one small program (`agent_program.py`) by the adapter `command`; which name an effect gives decides how
usage is told and whose breaker opens.
"""

import json
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import backburner as bb

#: `total` tells usage in all, and cannot go on with a session; providers of the others refuse when a script says so.
AGENT, TOTAL, QUOTA, BUSY, LOGIN = "chaos-agent", "chaos-total", "chaos-quota", "chaos-busy", "chaos-login"
NAMES: Final = (AGENT, TOTAL, QUOTA, BUSY, LOGIN)
#: Directories that agents have to themselves, one at a time.
EXCLUSIVE_MAX: Final = 8
#: What the program asks for at most between two looks, in tokens.
REQUEST_TOKENS_MAX: Final = 1_600
_USAGE: Final = {"input": "usage.in", "output": "usage.out"}


def describe(folder: Path) -> Path:
    """Makes the folders that agents need, and writes the file that describes the harnesses to an executor."""
    for name in ("ledger", "in_use", *(f"exclusive/{number}" for number in range(EXCLUSIVE_MAX))):
        (folder / name).mkdir(parents=True, exist_ok=True)
    path = folder / "harnesses.json"
    path.write_text(json.dumps({name: _described(folder, name) for name in NAMES}))
    return path


def _described(folder: Path, name: str) -> dict[str, Any]:
    program = [sys.executable, "-S", "-E", str(Path(__file__).with_name("agent_program.py")), "--name", name]
    return {
        "argv": [*program, *(["--totals"] if name == TOTAL else [])],
        "env": {"CHAOS_FOLDER": str(folder), "CHAOS_HOME": "{home}"},
        **({} if name == TOTAL else {"resume": ["--session={session}"], "session_lost": "^no session "}),
        "session": "session", "text": "text", "tool": "tool.name", "tool_input": "tool.input", "turn": {"type": "turn"},
        "usage": _USAGE, "usage_is_total": name == TOTAL,
        "success": {"type": "done", "ok": True}, "failure": {"type": "done", "ok": False}, "error": "error",
    }  # fmt: skip


@dataclass
class Answer:
    """What agents are asked for that answer in a schema."""

    word: str
    turn: int


class Agents:
    """Steps of plans that agents do."""

    ctx: bb.Context
    folder: str

    async def agent(self, key: str, step: Mapping[str, Any]) -> object:
        """One agent, as the step says; where it misfits first, the answer has a schema."""
        if "misfit" in step["script"]:
            return (await self.ctx.run(self._typed(step), key=key, **_options(step))).turn
        return (await self.ctx.run(self._asked(step), key=key, **_options(step))).text

    async def again(self, key: str, step: Mapping[str, Any]) -> object:
        """One that goes on with the session of another, however that one ended."""
        first = self.ctx.start(self._asked(step), key=f"{key}/first", **_options(step))
        try:
            await first
        except bb.EffectError:
            self.ctx.log.info("goes on with what failed")
        second = self._asked(step)
        return (await self.ctx.run(second, key=f"{key}/second", continue_from=first, **_options(step))).session_lost

    async def team(self, key: str, step: Mapping[str, Any]) -> object:
        """Some at a time, in the background."""
        handles = [
            self.ctx.start(self._asked(step), key=f"{key}/{number}", **_options(step))
            for number in range(step["count"])
        ]
        return sum(outcome.ok for outcome in await bb.best_effort(handles))

    def _asked(self, step: Mapping[str, Any]) -> bb.Effect[bb.AgentResult]:
        place = self._workspace(step.get("workspace", ""))
        return bb.agent(step["harness"], prompt=_prompt(step), workspace=place, env=step.get("env"))

    def _typed(self, step: Mapping[str, Any]) -> bb.Effect[Answer]:
        return bb.agent(step["harness"], prompt=_prompt(step), output=Answer)

    def _workspace(self, kind: str) -> Any:
        kind, _, more = kind.partition(":")
        if kind == "worktree":
            return bb.worktree(f"{self.folder}/repo", base="main", keep=more)
        if kind == "copy":
            return bb.copy_of(f"{self.folder}/repo", keep=more)
        return bb.exclusive(f"{self.folder}/exclusive/{more}") if kind == "exclusive" else None


def _prompt(step: Mapping[str, Any]) -> str:
    return f"work {json.dumps(step['script'])}"


def _options(step: Mapping[str, Any]) -> dict[str, Any]:
    given: dict[str, Any] = {
        "retry": bb.Retry(int(step.get("attempts", 1)), initial=0.05, backoff=1.5, max_interval=0.5),
        "kill_grace": 0.3,
        "timeout": 60,
    }
    given |= {name: step[name] for name in ("fallbacks", "on_quota", "retry_session") if name in step}
    return given | ({"budget": bb.budget(tokens=step["tokens"])} if "tokens" in step else {})
