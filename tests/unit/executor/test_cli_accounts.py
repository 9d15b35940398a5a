"""The adapters `command` and `codex`: tools and turns in the lines of any CLI, and the key that codex takes."""

import json
from dataclasses import replace
from pathlib import Path

import pytest

from executor_service.errors import StartError
from executor_service.harness.cli import events
from executor_service.harness.cli.adapter import Adapter, Program, Task
from executor_service.harness.cli.codex import Codex
from executor_service.harness.cli.command import load_commands
from executor_service.harness.cli.events import Tokens
from executor_service.harness.cli.opencode import OpenCode
from executor_service.harness.cli.pi import Pi

CONFIG = {
    "argv": ["it"], "success": {"done": True}, "tool": "use.name", "tool_input": "use.on", "turn": {"type": "turn"},
}  # fmt: skip


def task(folder: Path, **env: str) -> Task:
    return Task("p", folder, folder, folder, env)


def test_lines_of_any_cli_tell_turns_and_tools(tmp_path: Path) -> None:
    path = tmp_path / "commands.json"
    path.write_text(json.dumps({"it": CONFIG}))
    [adapter] = load_commands(str(path))
    parser = adapter.parser(task(tmp_path), Tokens())
    lines = [{"type": "turn"}, {"use": {"name": "read", "on": "a.py"}}, {"use": {"name": "write", "on": "b.py"}}]
    said = [event for line in [*lines, {"type": "turn"}, {"done": True}] for event in parser.take(line)]
    assert said == [
        events.TurnStarted(),
        events.tool("1", "read", "a.py"),
        events.ToolEnded("1"),
        events.tool("2", "write", "b.py"),
        events.ToolEnded("2"),
        events.TurnStarted(),
        events.Ended(True),
    ]


@pytest.mark.parametrize(("field", "value"), [("tool", 1), ("tool_input", []), ("turn", "turn")])
def test_what_is_no_path_is_refused(tmp_path: Path, field: str, value: object) -> None:
    path = tmp_path / "commands.json"
    path.write_text(json.dumps({"it": CONFIG | {field: value}}))
    with pytest.raises(StartError, match=f"'it': {field}: expected"):
        load_commands(str(path))


def test_codex_gets_the_key_that_people_have(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in Codex.credentials:
        monkeypatch.delenv(name, raising=False)
    program = Program("codex", ["codex"])

    def key(**env: str) -> str | None:
        return Codex().launch(program, task(tmp_path, **env)).env.get("CODEX_API_KEY")

    assert key() is None
    assert key(OPENAI_API_KEY="a") == "a"
    assert key(OPENAI_API_KEY="a", CODEX_API_KEY="b") is None, "it has one"
    monkeypatch.setenv("OPENAI_API_KEY", "c")
    monkeypatch.setenv("OPENAI_BASE_URL", "http://gateway/v1")
    launch = Codex().launch(program, task(tmp_path))
    assert launch.env["CODEX_API_KEY"] == "c"
    assert 'openai_base_url="http://gateway/v1"' in launch.argv
    (tmp_path / ".codex").mkdir(exist_ok=True)
    (tmp_path / ".codex" / "auth.json").write_text("{}")
    assert key() is None, "somebody is logged in"


@pytest.mark.parametrize("adapter", [OpenCode(), Pi()], ids=lambda adapter: adapter.name)
def test_the_key_of_a_cli_of_many_providers_is_that_of_the_models(adapter: Adapter, tmp_path: Path) -> None:
    def keys(model: str, **options: str) -> list[str]:
        return list(adapter.keys(replace(task(tmp_path), model=model, options=options)))

    assert keys("openai/gpt-5") == ["OPENAI_API_KEY"]
    assert "ANTHROPIC_API_KEY" in keys("anthropic/claude-opus-4")
    assert "GEMINI_API_KEY" in keys("google/gemini-3")
    assert keys("openrouter/anthropic/claude-opus-4") == ["OPENROUTER_API_KEY"]
    assert keys("local/llama") == keys("gpt-5") == keys("") == [], "which key it takes is not known"
    if adapter.name == "pi":
        assert keys("gpt-5", provider="openai") == ["OPENAI_API_KEY"]
