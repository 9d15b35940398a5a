"""A very small agent CLI, for machines that have none: a loop of questions to a model and calls of two tools.

`python agent_cli.py --model M [--session ID] [--max-turns N] [--permissions read_only]`, the prompt on stdin, in the
directory to work in. It speaks OpenAI's Chat Completions with what DEMO_AGENT_URL names, and keeps its sessions in
DEMO_AGENT_HOME. It prints JSON lines, which `stand_ins.py` describes to the executor's adapter `command`. It can read
and, unless it is to read only, write files of its directory, and nothing else. Standard library only.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import urllib.error
import urllib.request
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

Json = dict[str, Any]
Does = dict[str, Callable[[Path, Json], str]]

TURNS_MAX: Final = 40
FILE_BYTES_MAX: Final = 200_000
ANSWER_SECONDS_MAX: Final = 120


def main() -> int:
    """Exit code 0: the model has answered; 1: not."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="")
    parser.add_argument("--session", default="")
    parser.add_argument("--max-turns", type=int, default=TURNS_MAX)
    parser.add_argument("--permissions", choices=("full", "edit", "read_only"), default="full")
    parser.add_argument("--version", action="version", version="demo-agent 1.0.0")
    given = parser.parse_args()
    session = given.session or str(uuid.uuid4())
    say(type="session", session=session)
    kept = Path(os.environ["DEMO_AGENT_HOME"]) / f"{session}.json"
    messages = json.loads(kept.read_text()) if kept.exists() else []
    messages.append({"role": "user", "content": sys.stdin.read()})
    try:
        converse(messages, given.model, given.max_turns, read_only=given.permissions == "read_only")
    except (OSError, ValueError, KeyError) as error:
        say(type="done", ok=False, error=f"the model did not answer: {error}")
        return 1
    kept.parent.mkdir(parents=True, exist_ok=True)
    kept.write_text(json.dumps(messages))
    say(type="done", ok=True)
    return 0


def converse(messages: list[Json], model: str, turns_max: int, *, read_only: bool) -> None:
    """Ask, do what is wanted, ask again, until the model wants nothing more. Raises OSError, ValueError, KeyError."""
    does: Does = {"read_file": read_file} if read_only else DOES
    for turn in range(1, turns_max + 1):
        say(type="turn", turn=turn)
        message = ask(messages, model, does)
        messages.append(message)
        if message.get("content"):
            say(type="text", text=message["content"])
        calls = message.get("tool_calls") or []
        if not calls:
            return
        messages += [
            {"role": "tool", "tool_call_id": call["id"], "content": use(call["function"], does)} for call in calls
        ]
    raise ValueError(f"it wants more than {turns_max} turns")


def ask(messages: list[Json], model: str, does: Does) -> Json:
    """One question: the message that the model answers with, as its stream tells it. What it cost is said."""
    tools = [tool for name, tool in TOOLS.items() if name in does]
    asked = {"model": model, "messages": messages, "tools": tools, "stream": True}
    key = os.environ.get("DEMO_AGENT_KEY", "")
    request = urllib.request.Request(  # noqa: S310 - the address is the caller's own
        f"{os.environ['DEMO_AGENT_URL']}/chat/completions",
        data=json.dumps(asked | {"stream_options": {"include_usage": True}}).encode(),
        headers={"content-type": "application/json", "authorization": f"Bearer {key}"},
    )
    text, calls = "", dict[int, Json]()
    with urllib.request.urlopen(request, timeout=ANSWER_SECONDS_MAX) as response:  # noqa: S310
        for line in response:
            if not line.startswith(b"data: {"):
                continue
            told = json.loads(line[6:])
            if usage := told.get("usage"):
                cached = (usage.get("prompt_tokens_details") or {}).get("cached_tokens", 0)
                say(
                    type="usage",
                    usage={"in": usage["prompt_tokens"], "out": usage["completion_tokens"], "cached": cached},
                )
            for choice in told["choices"]:
                text += choice["delta"].get("content") or ""
                for piece in choice["delta"].get("tool_calls") or []:
                    join(calls, piece)
    return {"role": "assistant", "content": text, **({"tool_calls": list(calls.values())} if calls else {})}


def join(calls: dict[int, Json], piece: Json) -> None:
    """A piece of a call: the first of each has its name, the others more of its arguments."""
    if piece["index"] not in calls:
        function = {"name": piece["function"]["name"], "arguments": ""}
        calls[piece["index"]] = {"id": piece["id"], "type": "function", "function": function}
    calls[piece["index"]]["function"]["arguments"] += piece["function"].get("arguments", "")


def use(function: Json, does: Does) -> str:
    """Do what the model wants; what went wrong is an answer, too."""
    name, given = function["name"], json.loads(function["arguments"])
    say(type="tool", tool={"name": name, "input": str(given.get("path", ""))})
    try:
        path = inside(given["path"])
        return does[name](path, given)
    except (KeyError, OSError, ValueError) as error:
        return f"error: {error}"


def inside(given: str) -> Path:
    """A path in the directory; a ValueError for another one."""
    root = Path.cwd().resolve()
    path = (root / given).resolve()
    if not path.is_relative_to(root) or ".git" in path.relative_to(root).parts:
        raise ValueError(f"{given} is not in the directory to work in")
    return path


def read_file(path: Path, _given: Json) -> str:
    """The beginning of a file."""
    with path.open("rb") as file:
        return file.read(FILE_BYTES_MAX).decode(errors="replace")


def write_file(path: Path, given: Json) -> str:
    """A file, whole."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(given["content"])
    return "written"


DOES: Final[Does] = {"read_file": read_file, "write_file": write_file}
_PATH: Final = {"path": {"type": "string"}}
TOOLS: Final = {
    name: {"type": "function", "function": {"name": name, "description": what, "parameters": {
        "type": "object", "properties": properties, "required": list(properties),
    }}}
    for name, what, properties in (
        ("read_file", "Read a file.", _PATH),
        ("write_file", "Write a file whole.", {**_PATH, "content": {"type": "string"}}),
    )
}  # fmt: skip


def say(**fields: Any) -> None:
    """A line for the executor's adapter."""
    print(json.dumps(fields), flush=True)


if __name__ == "__main__":
    sys.exit(main())
