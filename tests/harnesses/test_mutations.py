"""The parsers against lines that no CLI would write: mutated, cut, swapped. None raises, none misreads a success.

`make test` gives each parser a few thousand, `make mutations` 100,000.
"""

import copy
import json
import os
import random
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Final

import pytest

from executor_service.harness.cli import events
from executor_service.harness.cli.adapter import Adapter, Task
from executor_service.harness.cli.builtin import ADAPTERS
from executor_service.harness.cli.events import Tokens
from executor_service.harness.cli.stream import EventStream
from executor_service.line_protocol import Report

CAPTURES: Final = Path(__file__).with_name("captures")
LINES: Final = int(os.environ.get("LINES_MUTATED", "3000"))
SEED: Final = int(os.environ.get("SEED", "20261127"))
#: What stands in for a value: of every type, and out of every range.
STRANGE: Final[tuple[Any, ...]] = (
    None, True, False, 0, -1, 1e308, float("nan"), float("inf"), 2**70, -(2**70), "", "\x00", "\ud800", "success",
    "error", [], {}, [[]], [None], {"type": "result"}, {"": {}}, "a" * 5000, [1, "x", {"text": 1}],
)  # fmt: skip


@pytest.mark.parametrize("adapter", ADAPTERS, ids=lambda adapter: adapter.name)
def test_no_line_breaks_a_parser_nor_is_misread_as_success(adapter: Adapter, tmp_path: Path) -> None:
    rng = random.Random(f"{SEED}/{adapter.name}")
    lines = captured(adapter.name)
    assert lines, f"no captures of {adapter.name}"
    fed = 0
    while fed < LINES:
        told: list[events.Event] = []
        stream = EventStream(_take, told.append, price=lambda _model, _tokens: None, turns_max=0)
        stream.begin(adapter.parser(task(tmp_path), Tokens()))
        succeeded = False
        for line in rng.choices(lines, k=40):
            mutated, whole = mutate(rng, line)
            stream.take(mutated)
            succeeded = succeeded or (whole and is_success(adapter, json.loads(mutated)))
            fed += 1
        stream.close(0 if adapter.name == "opencode" and succeeded else 1)
        ended = [event for event in told if isinstance(event, events.Ended) and event.ok]
        assert not ended or succeeded, f"misread as success: {ended}"
        usage = stream.usage()
        assert all(isinstance(value, (int, float, str)) for value in usage.values())
        assert all(0 <= value < 1e15 for value in usage.values() if not isinstance(value, str))


def captured(name: str) -> list[Any]:
    """All lines of the captures of a CLI."""
    files = sorted(CAPTURES.glob(f"{name}*.jsonl"))
    return [json.loads(line) for path in files for line in path.read_text().splitlines() if line.strip()]


def task(folder: Path) -> Task:
    return Task("p", folder, folder, folder, {}, model="m", max_turns=0)


def _take(report: Report) -> None:
    """What is reported can be stored."""
    json.dumps(report.step).encode()
    assert "\x00" not in (report.step or "") + (report.tool or "")


def mutate(rng: random.Random, line: Any) -> tuple[bytes, bool]:
    """A line as bytes, and whether it still is whole JSON."""
    kind = rng.randrange(6)
    if kind == 0:
        return dumped(line), True
    if kind == 1:
        raw = bytearray(dumped(line))
        for _ in range(rng.randint(1, 5)):
            raw[rng.randrange(len(raw))] = rng.randrange(256)
        return bytes(raw).replace(b"\n", b" "), loads(bytes(raw).replace(b"\n", b" "))
    if kind == 2:
        raw_line = dumped(line)[: rng.randrange(1, len(dumped(line)) + 1)]
        return raw_line, loads(raw_line)
    changed = json.loads(json.dumps(line))
    for _ in range(rng.randint(1, 3)):
        changed = change(rng, changed)
    raw_line = dumped(changed)
    return raw_line, loads(raw_line)


def change(rng: random.Random, value: Any) -> Any:
    """Puts something strange somewhere."""
    if isinstance(value, dict) and value and rng.random() < 0.85:
        name = rng.choice(list(value))
        if rng.random() < 0.15:
            del value[name]
        else:
            value[name] = change(rng, value[name])
        return value
    if isinstance(value, list) and value and rng.random() < 0.7:
        index = rng.randrange(len(value))
        value[index] = change(rng, value[index])
        return value
    return copy.deepcopy(rng.choice(STRANGE))


def dumped(value: Any) -> bytes:
    return json.dumps(value).encode()


def loads(raw: bytes) -> bool:
    try:
        json.loads(raw)
    except (ValueError, RecursionError):
        return False
    return True


def is_success(adapter: Adapter, line: Any) -> bool:
    """Whether a line is what this CLI says of success: written anew here, by the CLIs' own documentation."""
    return isinstance(line, dict) and SUCCESS[adapter.name](line)


def _claude(line: dict[str, Any]) -> bool:
    return line.get("type") == "result" and line.get("subtype") == "success" and line.get("is_error") is False


def _qwen(line: dict[str, Any]) -> bool:
    return _claude(line) and not str(line.get("result")).startswith("[API Error:")


def _opencode(line: dict[str, Any]) -> bool:
    part = line.get("part")
    return line.get("type") == "step_finish" and isinstance(part, dict) and part.get("reason") == "stop"


def _pi(line: dict[str, Any]) -> bool:
    messages = line.get("messages")
    last = messages[-1] if line.get("type") == "agent_end" and isinstance(messages, list) and messages else None
    return isinstance(last, dict) and last.get("role") == "assistant" and last.get("stopReason") == "stop"


SUCCESS: Final[Mapping[str, Callable[[dict[str, Any]], bool]]] = {
    "claude-code": _claude,
    "codex": lambda line: line.get("type") == "turn.completed" and isinstance(line.get("usage"), dict),
    "gemini-cli": lambda line: line.get("type") == "result" and line.get("status") == "success",
    "qwen-code": _qwen,
    "opencode": _opencode,
    "pi": _pi,
    "copilot": lambda line: (
        line.get("type") == "result" and type(line.get("exitCode")) is int and line["exitCode"] == 0
    ),
}
