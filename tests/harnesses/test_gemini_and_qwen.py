"""The adapters of gemini-cli and qwen-code over captured streams: what they start, and what they make of each line."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from executor_service.assignment import InvalidWork
from executor_service.harness.cli import events
from executor_service.harness.cli.adapter import Adapter, Launch, Program, Task
from executor_service.harness.cli.events import Tokens
from executor_service.harness.cli.gemini_cli import GeminiCli
from executor_service.harness.cli.qwen_code import QwenCode
from executor_service.harness.cli.stream import EventStream

CAPTURES = Path(__file__).with_name("captures")
GEMINI, QWEN = GeminiCli(), QwenCode()
SESSION = "fa542a86-6a95-4439-80aa-4a12d88c3a4c"
KEYS = ("GEMINI_API_KEY", "GOOGLE_GENAI_USE_VERTEXAI", "OPENAI_API_KEY", "ANTHROPIC_API_KEY")


@pytest.fixture(autouse=True)
def no_keys(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in KEYS:
        monkeypatch.delenv(name, raising=False)


def task(folder: Path, **more: Any) -> Task:
    home, scratch = folder / "home", folder / "scratch"
    for one in (home, scratch):
        one.mkdir(exist_ok=True)
    plain: dict[str, Any] = {"prompt": "Do it.", "workspace": folder, "scratch": scratch, "home": home, "env": {}}
    return Task(**plain | more)


def started(adapter: Adapter, folder: Path, **more: Any) -> tuple[Launch, dict[str, Any]]:
    """How it is started, and the settings it is given."""
    launch = adapter.launch(Program("/cli", ["/cli"]), task(folder, **more))
    return launch, next(json.loads(text) for path, text in launch.files.items() if path.name == "settings.json")


def play(adapter: Adapter, lines: Sequence[bytes], folder: Path, before: Tokens | None = None) -> EventStream:
    stream = EventStream(lambda _: None, lambda _: None, price=lambda _model, _tokens: None, turns_max=0)
    stream.begin(adapter.parser(task(folder), before or Tokens()))
    for line in lines:
        stream.take(line)
    return stream


def capture(name: str) -> list[bytes]:
    return (CAPTURES / f"{name}.jsonl").read_bytes().splitlines()


def failed(stream: EventStream) -> tuple[str, float | None]:
    assert stream.ended is not None
    assert not stream.ended.ok
    assert stream.ended.failure is not None
    return stream.ended.failure.reason, stream.ended.failure.retry_after_s


def result(message: str) -> bytes:
    return json.dumps({"type": "result", "status": "error", "error": {"message": message}}).encode()


@pytest.mark.parametrize(
    ("adapter", "name", "text"),
    [(GEMINI, "gemini-cli", "All done: hi"), (QWEN, "qwen-code", "All done: hi")],
    ids=["gemini-cli", "qwen-code"],
)
def test_a_tool_call_and_an_answer_are_two_turns(adapter: Adapter, name: str, text: str, tmp_path: Path) -> None:
    stream = play(adapter, capture(name), tmp_path)
    assert stream.ended is not None
    assert (stream.ended.ok, stream.text, stream.turns, stream.tools_used) == (True, text, 2, 1)
    assert stream.tokens == Tokens(200, 40, 80)
    assert stream.session_id


def test_a_list_of_things_to_do_is_progress(tmp_path: Path) -> None:
    assert play(GEMINI, capture("gemini-cli-todos"), tmp_path).todos == events.Todos(1, 2)
    assert play(QWEN, capture("qwen-code-todos"), tmp_path).todos == events.Todos(1, 2)


def test_qwen_counts_its_session_and_earlier_turns_are_taken_off(tmp_path: Path) -> None:
    stream = play(QWEN, capture("qwen-code-resume"), tmp_path, before=Tokens(200, 40, 80))
    assert stream.tokens == Tokens(200, 40, 80)


def test_gemini_has_no_last_word_when_it_was_ended(tmp_path: Path) -> None:
    assert play(GEMINI, capture("gemini-cli-sigterm"), tmp_path).ended is None


def test_gemini_says_success_of_a_run_that_it_broke_off(tmp_path: Path) -> None:
    stream = play(GEMINI, capture("gemini-cli-loop"), tmp_path)
    assert failed(stream)[0] == "HARNESS_ERROR"
    assert stream.trouble == events.Trouble("Loop detected, stopping execution")


def test_a_tool_that_gemini_leaves_out_is_denied(tmp_path: Path) -> None:
    started = {"type": "tool_use", "tool_name": "run_shell_command", "tool_id": "t", "parameters": {"command": "ls"}}
    error = {"type": "tool_not_registered", "message": 'Tool "run_shell_command" not found.'}
    ended = {"type": "tool_result", "tool_id": "t", "status": "error", "error": error}
    stream = play(GEMINI, [json.dumps(line).encode() for line in (started, ended)], tmp_path)
    assert stream.denials == [events.Denied("run_shell_command", "ls")]


def test_an_error_that_gemini_went_on_after_is_no_failure(tmp_path: Path) -> None:
    lines = capture("gemini-cli")
    error = b'{"type":"error","severity":"error","message":"Model stream ended without a finish reason."}'
    stream = play(GEMINI, [*lines[:-2], error, *lines[-2:]], tmp_path)
    assert stream.ended is not None
    assert stream.ended.ok


@pytest.mark.parametrize(
    ("message", "reason", "pause"),
    [
        ("[API Error: You exceeded your current quota.\nSuggested retry after 34s.]\nPlease wait and try again later. "
         "To increase your limits, request a quota increase through AI Studio, or switch to another /auth method",
         "RATE_LIMITED", 34.0),
        ("[API Error: You have exhausted your daily quota on this model.]\nPlease wait and try again later. To ...",
         "QUOTA_EXHAUSTED", None),
        ('[API Error: {"error":{"code":401,"message":"Request had invalid authentication credentials."}}]',
         "AUTHENTICATION", None),
        ('[API Error: {"error":{"code":400,"message":"The input token count (9) exceeds the maximum number of tokens '
         'allowed (1)."}}]', "CONTEXT_OVERFLOW", None),
        ("[API Error: The model is overloaded. Please try again later.]", "OVERLOADED", None),
        ("Reached max session turns for this session. Increase the number", "MAX_TURNS", None),
        ("", "HARNESS_ERROR", None),
    ],
)  # fmt: skip
def test_what_gemini_says_of_a_refusal_has_its_class(
    message: str, reason: str, pause: float | None, tmp_path: Path
) -> None:
    assert failed(play(GEMINI, [result(message)], tmp_path)) == (reason, pause)


def test_gemini_limits_are_not_taken_for_a_login_by_the_advice_it_adds(tmp_path: Path) -> None:
    assert failed(play(GEMINI, capture("gemini-cli-err429"), tmp_path))[0] == "RATE_LIMITED"


def qwen_says(text: str, billed: int) -> list[bytes]:
    usage = {"input_tokens": billed, "output_tokens": 0}
    message = {"type": "assistant", "message": {"content": [{"type": "text", "text": text}], "usage": usage}}
    end = {"type": "result", "subtype": "success", "is_error": False, "result": text, "usage": usage}
    return [json.dumps(line).encode() for line in (message, end)]


def test_qwen_says_success_of_what_the_provider_refused(tmp_path: Path) -> None:
    assert failed(play(QWEN, capture("qwen-code-err500"), tmp_path))[0] == "HARNESS_ERROR"
    said = qwen_says("[API Error: 401 Incorrect API key provided]", 0)
    assert failed(play(QWEN, said, tmp_path))[0] == "AUTHENTICATION"
    broken_off = qwen_says("a b [API Error: Model stream ended without a finish reason.]", 0)
    assert failed(play(QWEN, broken_off, tmp_path))[0] == "HARNESS_ERROR"


def test_qwen_limits_are_not_taken_for_a_quota_by_the_advice_it_adds(tmp_path: Path) -> None:
    advice = "Possible quota limitations in place or slow response times detected. Please wait and try again later."
    for before in ("", "a b "):
        said = qwen_says(f"{before}[API Error: 429 Rate limit reached on tokens: Limit 30000, Used 30000]\n{advice}", 0)
        assert failed(play(QWEN, said, tmp_path))[0] == "RATE_LIMITED"
    said = qwen_says(f"[API Error: 429 You exceeded your current quota, please check your plan]\n{advice}", 0)
    assert failed(play(QWEN, said, tmp_path))[0] == "QUOTA_EXHAUSTED"


def test_qwen_paid_for_earlier_turns_but_not_for_the_one_that_failed(tmp_path: Path) -> None:
    turn = b'{"type":"stream_event","event":{"type":"message_start"}}'
    failing = qwen_says("a b [API Error: 503 overloaded]", 0)
    stream = play(QWEN, [turn, qwen_says("First.", 100)[0], turn, *failing], tmp_path)
    assert (failed(stream)[0], stream.turns) == ("OVERLOADED", 2)


def test_qwen_that_was_cancelled_has_said_no_last_word(tmp_path: Path) -> None:
    usage = {"input_tokens": 0, "output_tokens": 0}
    cancelled = {"type": "result", "subtype": "error_during_execution", "is_error": True, "usage": usage}
    line = json.dumps(cancelled | {"error": {"message": "CANCELLED"}}).encode()
    stream = play(QWEN, [qwen_says("First.", 100)[0], line], tmp_path)
    assert (stream.ended, stream.tokens.input) == (None, 100)


def test_qwen_may_speak_of_errors_in_an_answer_that_was_paid_for(tmp_path: Path) -> None:
    stream = play(QWEN, qwen_says("It printed [API Error: 500]", 100), tmp_path)
    assert stream.ended is not None
    assert stream.ended.ok


def test_gemini_gets_the_users_settings_with_those_of_the_attempt_over_them(tmp_path: Path) -> None:
    mine = tmp_path / "home" / ".gemini"
    mine.mkdir(parents=True)
    (mine / "oauth_creds.json").write_text("{}")
    (mine / "settings.json").write_text(
        '{ // mine\n "ui": {"theme": "a // b"}, "general": {"vimMode": true, "maxAttempts": 9} /* so */ }'
    )
    more = {"max_turns": 7, "mcp_servers": {"s": {"command": "c"}}, "options": {"retries": 1, "settings": {"x": 1}}}
    launch, settings = started(GEMINI, tmp_path, env={"GEMINI_API_KEY": "k"}, **more)
    assert settings["ui"] == {"theme": "a // b"}
    assert (settings["general"]["vimMode"], settings["general"]["maxAttempts"]) == (True, 2)
    assert settings["security"] == {"auth": {"selectedType": "gemini-api-key"}}
    assert (settings["model"], settings["x"]) == ({"maxSessionTurns": 7}, 1)
    assert settings["mcpServers"] == {"s": {"command": "c"}}
    own = Path(launch.env["GEMINI_CLI_HOME"], ".gemini")
    assert (own / "oauth_creds.json").read_text() == "{}"
    (own / "tmp" / "kept").touch()
    assert (mine / "tmp" / "kept").exists(), "sessions are kept in the home"
    assert not (own / "settings.json").is_symlink()


def test_gemini_without_a_key_uses_the_account_that_the_user_has_chosen(tmp_path: Path) -> None:
    _, settings = started(GEMINI, tmp_path)
    assert "security" not in settings


def test_settings_that_cannot_be_read_are_named(tmp_path: Path) -> None:
    (tmp_path / "home" / ".gemini").mkdir(parents=True)
    (tmp_path / "home" / ".gemini" / "settings.json").write_text("{")
    with pytest.raises(InvalidWork, match=r"\.gemini/settings\.json, cannot be read"):
        started(GEMINI, tmp_path)


@pytest.mark.parametrize(
    ("adapter", "modes"),
    [(GEMINI, ("yolo", "auto_edit", "default")), (QWEN, ("yolo", "auto-edit", "plan"))],
    ids=["gemini-cli", "qwen-code"],
)
def test_what_is_allowed_is_a_mode_and_the_prompt_is_no_argument(
    adapter: Adapter, modes: Sequence[str], tmp_path: Path
) -> None:
    for permissions, mode in zip(("full", "edit", "read_only"), modes, strict=True):
        launch, _ = started(adapter, tmp_path, permissions=permissions, prompt="--help", session_id=SESSION, model="m")
        flags = dict(zip(launch.argv, launch.argv[1:], strict=False))
        assert (flags["--approval-mode"], flags["--resume"], flags["-m"]) == (mode, SESSION, "m")
        assert "--help" not in launch.argv
        assert launch.stdin == "--help"


def test_a_system_prompt_is_said(tmp_path: Path) -> None:
    assert started(GEMINI, tmp_path, system_prompt="Be brief.")[0].stdin == "Be brief.\n\nDo it."
    argv = list(started(QWEN, tmp_path, system_prompt="Be brief.")[0].argv)
    assert argv[argv.index("--append-system-prompt") + 1] == "Be brief."


def test_qwen_gets_turns_servers_and_the_account_of_the_key(tmp_path: Path) -> None:
    more = {"max_turns": 3, "mcp_servers": {"s": {"command": "c"}}, "env": {"OPENAI_API_KEY": "k"}}
    launch, settings = started(QWEN, tmp_path, options={"retries": 0}, **more)
    argv = list(launch.argv)
    assert argv[argv.index("--max-session-turns") + 1] == "3"
    assert argv[argv.index("--auth-type") + 1] == "openai"
    assert json.loads(launch.files[Path(argv[argv.index("--mcp-config") + 1])]) == {"mcpServers": more["mcp_servers"]}
    assert settings["model"]["generationConfig"] == {"maxRetries": 0}
    assert "--auth-type" not in started(QWEN, tmp_path)[0].argv


def test_an_unknown_option_is_refused(tmp_path: Path) -> None:
    for adapter in (GEMINI, QWEN):
        with pytest.raises(InvalidWork, match="unknown options"):
            started(adapter, tmp_path, options={"retires": 1})


def test_a_gemini_session_is_counted_by_its_file_each_message_once(tmp_path: Path) -> None:
    work = task(tmp_path, session_id=SESSION)
    assert (GEMINI.session_exists(work), GEMINI.consumed(work, SESSION)) == (False, None)
    chats = work.home / ".gemini" / "tmp" / "w" / "chats"
    chats.mkdir(parents=True)
    other = chats / "session-2026-11-27T12-33-fa542a86.jsonl"
    other.write_text('{"sessionId":"fa542a86-0000-0000-0000-000000000000"}\n')
    first = (
        '{"id":"1","type":"gemini","tokens":{"input":101,"output":23,"cached":40,"thoughts":5,"tool":0,"total":129}}'
    )
    second = '{"id":"2","type":"gemini","tokens":{"input":157,"output":11,"cached":99,"thoughts":0,"tool":2}}'
    lines = [f'{{"sessionId":"{SESSION}"}}', first, '{"$set":{}}', first, second, '{"id":"3","tokens":{"in']
    (chats / "session-2026-11-27T12-34-fa542a86.jsonl").write_text("\n".join(lines))
    assert GEMINI.session_exists(work)
    assert GEMINI.consumed(work, SESSION) == Tokens(260, 39, 139, 0, 5)
    (chats / SESSION).mkdir()
    (chats / SESSION / "helper.jsonl").write_text('{"id":"9","type":"gemini","tokens":{"input":7,"output":3}}')
    assert GEMINI.consumed(work, SESSION) == Tokens(267, 42, 139, 0, 5)
    assert not GEMINI.session_exists(task(tmp_path, session_id="../x"))


def test_a_qwen_session_is_counted_by_its_file(tmp_path: Path) -> None:
    work = task(tmp_path, session_id=SESSION)
    assert (QWEN.session_exists(work), QWEN.consumed(work, SESSION)) == (False, None)
    chats = work.home / ".qwen" / "projects" / "-w" / "chats"
    chats.mkdir(parents=True)
    told = {"input_token_count": 101, "output_token_count": 23, "cached_content_token_count": 40}
    line = json.dumps({"type": "system", "subtype": "ui_telemetry", "systemPayload": {"uiEvent": told}})
    (chats / f"{SESSION}.jsonl").write_text(f'{line}\n{{"type":"user"}}\n{line}\n{line[:-9]}')
    assert QWEN.session_exists(work)
    assert QWEN.consumed(work, SESSION) == Tokens(202, 46, 80)
    assert not QWEN.session_exists(task(tmp_path, session_id="../x"))
