"""What stands in where there is no account: a model that is a script, and where there is no agent CLI, a small one.

A real CLI that has no key talks to the scripted model server, each role by a key of its own, which says what is played.
Nothing that a stand-in says comes from a model.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

from scheduler_service.cli.demo.agents import sample
from scheduler_service.cli.demo.agents.model_server import Bash, ModelServer, Scenario, Tool, Turn, Usage, Write
from scheduler_service.cli.demo.agents.process import Agent

DEMO_AGENT: Final = "demo-agent"
MODEL: Final = "scripted"
# Words come one by one, as from a model, so that there is something to see.
_WORD_SECONDS: Final = 0.06
_USAGE: Final = (Usage(input=1800, cached=0, output=60), Usage(input=2100, cached=1800, output=90))
_PLAINLY: Final = "This is a stand-in: a script, no model."

# By these Claude Code would go to an account in spite of the key.
_OTHER_ACCOUNTS: Final = (
    "ANTHROPIC_AUTH_TOKEN", "CLAUDE_CODE_OAUTH_TOKEN", "CLAUDE_CODE_USE_BEDROCK", "CLAUDE_CODE_USE_VERTEX",
)  # fmt: skip


def describe_demo_agent(path: Path) -> Path:
    """Write the file that makes the small CLI a harness; the docstring of the adapter `command` says what is in it."""
    program = Path(__file__).with_name("agent_cli.py")
    described = {
        "argv": [
            sys.executable, "-P", str(program), "--model={model}", "--max-turns={max_turns}",
            "--permissions={permissions}",
        ],
        "resume": ["--session={session}"],
        "session": "session",
        "text": "text",
        "tool": "tool.name",
        "tool_input": "tool.input",
        "turn": {"type": "turn"},
        "usage": {"input": "usage.in", "output": "usage.out", "cached": "usage.cached"},
        "usage_is_total": False,
        "success": {"type": "done", "ok": True},
        "failure": {"type": "done", "ok": False},
        "error": "error",
    }  # fmt: skip
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({DEMO_AGENT: described}))
    return path


def price_stand_ins(path: Path, given: str) -> Path:
    """Write a table of prices in which the script costs nothing, over that of who runs the demo (`given`; empty: none).

    One that cannot be read is left to the executor, which says what is wrong with it: then its path is the answer.
    """
    try:
        table = json.loads(Path(given).read_text()) if given else {"models": {}}
        priced = {**table, "models": {**table["models"], MODEL: [0, 0, 0, 0]}}
    except (OSError, ValueError, TypeError, KeyError):
        return Path(given)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(priced))
    return path


def can_stand_in(harness: str) -> bool:
    """Whether the CLI can be led to the scripted model."""
    return harness in _LED


def stand_in(agent: Agent, server: ModelServer, home: Path, *, in_sample: bool) -> Agent:
    """The agent, led to the scripted model; what that says fits the sample, or else does no harm anywhere."""
    key, again = f"stand-in-{agent.role}", f"stand-in-{agent.role}-again"
    server.play(_scenario(agent, _edits(agent.role, in_sample=in_sample), in_sample=in_sample), key=key)
    server.play(_scenario(agent, sample.FIX_AGAIN if in_sample else {}, in_sample=in_sample), key=again)
    lead = _LED[agent.harness]
    led, env_again = lead(server.url, key, home), lead(server.url, again, home)["env"]
    return replace(agent, model=MODEL, env=led["env"], env_again=env_again, options=led.get("options", {}))


def _edits(role: str, *, in_sample: bool) -> Mapping[str, str]:
    if role == "review":
        return {}
    if in_sample:
        return sample.FIX if role == "fix" else sample.DOCUMENT
    return {f"NOTES-{role}.md": f"# {role}\n\n{_PLAINLY} It was asked to {role} this repository, and only left this.\n"}


def _scenario(agent: Agent, edits: Mapping[str, str], *, in_sample: bool) -> Scenario:
    turns: list[Turn] = []
    for path in ["README.md", "tally/money.py", "tally/ledger.py"] if in_sample and not edits else edits:
        if in_sample:
            turns.append(Turn(text=f"I am a script, and look into {path} as a model would.", call=_look(agent, path)))
        if path in edits:
            turns.append(Turn(text=f"Now I write {path}, as it stands in my script.", call=Write(path, edits[path])))
    return Scenario(
        (*turns, Turn(text=_last_words(agent.role, in_sample=in_sample))), _USAGE, chunk_delay=_WORD_SECONDS
    )


def _look(agent: Agent, path: str) -> Bash | Tool:
    if agent.harness == "claude-code":
        return Tool("Read", {"file_path": path})
    return Tool("read_file", {"path": path}) if agent.harness == DEMO_AGENT else Bash(f"cat {path}")


def _last_words(role: str, *, in_sample: bool) -> str:
    if role != "review":
        return f"Done. {_PLAINLY}"
    found: Mapping[str, Any] = (
        sample.REVIEW if in_sample else {"summary": f"{_PLAINLY} It read nothing.", "findings": []}
    )
    return json.dumps(found)


def _claude_code(url: str, key: str, home: Path) -> dict[str, Any]:
    led = {"ANTHROPIC_BASE_URL": url, "ANTHROPIC_API_KEY": key, "CLAUDE_CONFIG_DIR": str(home / ".claude")}
    return {"env": led | dict.fromkeys(_OTHER_ACCOUNTS, "")}


def _codex(url: str, key: str, home: Path) -> dict[str, Any]:
    provider = {
        "name": MODEL, "base_url": f"{url}/v1", "wire_api": "responses", "env_key": "STAND_IN_KEY",
        "request_max_retries": 0, "stream_max_retries": 0,
    }  # fmt: skip
    return {
        "env": {"STAND_IN_KEY": key, "CODEX_HOME": str(home / ".codex")},
        "options": {"config": {"model_provider": MODEL, f"model_providers.{MODEL}": provider}},
    }


def _demo_agent(url: str, key: str, home: Path) -> dict[str, Any]:
    return {"env": {"DEMO_AGENT_URL": f"{url}/v1", "DEMO_AGENT_KEY": key, "DEMO_AGENT_HOME": str(home / DEMO_AGENT)}}


#: How each CLI is led to the scripted model: what a user with a gateway would put into an effect.
_LED: Final[Mapping[str, Callable[[str, str, Path], dict[str, Any]]]] = {
    "claude-code": _claude_code, "codex": _codex, DEMO_AGENT: _demo_agent,
}  # fmt: skip
LED: Final[Sequence[str]] = tuple(_LED)
