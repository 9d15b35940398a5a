"""The child of `scripted_agent.py`: stands in for an agent CLI and does what its prompt says. Standard library only.

Called as `scripted_agent_cli.py HARNESS STORE SESSION RESUME`, the prompt on stdin. A session is a file of STORE with a
line for each turn. Prints one JSON object a line: the session, then the answer or the error; progress goes by the line
protocol.
"""

import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

#: Directives that wait: for a file to be there, or to be gone.
_WAITS = {"wait_for": True, "hold": False}


def main(harness: str, store: str, session: str, resume: str) -> int:
    prompt = sys.stdin.read()
    script = directives(prompt)
    script |= script.get("as", {}).get(harness, {})
    turns = Path(store) / session
    turn = len(turns.read_text().splitlines()) + 1 if resume != "new" else 1
    if script.get("session", True):
        with turns.open("a") as file:
            file.write(json.dumps(prompt) + "\n")
        say(type="session", id=session)
    work(script)
    if (command := script.get("sh")) and (status := subprocess.run(["/bin/sh", "-c", command], check=False).returncode):
        say(type="error", reason="TOOL_FAILED", message=f"the command exited with {status}")
        return 1
    fails = script.get("fail_at", turn) == turn and Path(script.get("fail_while", "/")).exists()
    if (failure := script.get("fail")) and fails:
        say(type="error", **failure)
        return 1
    sys.stderr.write(f"turn {turn} is done\n")
    answer = script.get("text", f"turn {turn}{' again' if resume == 'retry' else ''}: {prompt.splitlines()[0][:200]}")
    more = {name: script[name] for name in ("value", "spends") if name in script}
    say(type="answer", text=answer, **more)
    if "spends" in script:
        time.sleep(60)
    return int(script.get("exit", 0))


def directives(prompt: str) -> dict[str, Any]:
    """The JSON object in the prompt, if there is one."""
    start = prompt.find("{")
    if start < 0:
        return {}
    try:
        found = json.JSONDecoder().raw_decode(prompt[start:])[0]
    except ValueError:
        return {}
    return found if isinstance(found, dict) else {}


def work(script: dict[str, Any]) -> None:
    if path := script.get("starts"):
        with Path(path).open("a") as starts:
            starts.write(f"{os.getpid()}\n")
    steps = script.get("steps", [])
    for index, step in enumerate(steps, 1):
        report(step=step, step_index=index, step_count=len(steps), percent=100 * (index - 1) / len(steps))
    for path, text in script.get("write", {}).items():
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        Path(path).write_text(text)
    if usage := script.get("usage"):
        report(usage=usage)
    for given in script.get("reports", []):
        report(**given)
    for _ in range(script.get("times", 1)):
        for event in script.get("transcript", []):
            say(type="event", event=event)
    deadline = time.monotonic() + 60
    while _waits(script) and time.monotonic() < deadline:
        time.sleep(0.01)


def _waits(script: dict[str, Any]) -> bool:
    return any(name in script and Path(script[name]).exists() != until for name, until in _WAITS.items())


def report(**fields: Any) -> None:
    os.write(int(os.environ["BACKBURNER_PROGRESS_FD"]), json.dumps(fields).encode() + b"\n")


def say(**fields: Any) -> None:
    sys.stdout.write(json.dumps(fields) + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
