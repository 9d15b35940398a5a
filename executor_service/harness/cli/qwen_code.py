"""qwen-code: Alibaba's CLI, `@qwen-code/qwen-code`. A fork of gemini-cli whose stream is like claude-code's.

Runs `qwen --output-format stream-json` in its own process. It reports an error of the provider as a success whose text
is the error: that is read as the failure it is. Tokens are told for the whole session, so what earlier turns consumed,
by the session's file, is subtracted. SIGTERM ends its tools with it.

The prompt is on stdin. While it tries a request again it says nothing, and a refused request is tried seven times over
about 80 s whatever the settings; `retries` is for the client below that only. Its configuration is in files of the
attempt that its variables for system settings name. `edit` and `read_only` are its approval modes auto-edit and plan.

Options: `args` (list of further flags), `retries` (default 2), `auth` (`openai`, `anthropic`, `gemini`, `vertex-ai` or
`qwen-oauth`; by the keys there are, else as the user has chosen), `settings` (object over the settings of the attempt).
"""

import json
import os
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any, Final

import orjson

from executor_service.harness.cli import events
from executor_service.harness.cli.adapter import Adapter, Launch, Program, Silence, Task
from executor_service.harness.cli.events import Event, Fields, Tokens
from executor_service.harness.cli.failures import failure
from executor_service.harness.cli.options import Options, merged
from executor_service.outcome import Failure

_MODES: Final = {"full": "yolo", "edit": "auto-edit", "read_only": "plan"}
_ACCOUNTS: Final = {"OPENAI_API_KEY": "openai", "ANTHROPIC_API_KEY": "anthropic", "GEMINI_API_KEY": "gemini"}
_ERROR: Final = "[API Error:"
#: What it says of its end when a signal ended it while a helper was at work.
_CANCELLED: Final = "CANCELLED"
#: The provider's words, and the advice that it adds to those of a limit: of quotas, whatever the cause.
_WORDS: Final = re.compile(r"\[API Error: (.*)\](\n(?:Possible quota|Please wait).*)?", re.S)


class QwenCode(Adapter):
    """Runs Qwen Code."""

    name = "qwen-code"
    programs = ("qwen",)
    provider = "qwen"
    credentials = (
        "OPENAI_API_KEY", "OPENAI_BASE_URL", "OPENAI_MODEL", "DASHSCOPE_API_KEY", "BAILIAN_CODING_PLAN_API_KEY",
        "GEMINI_API_KEY",
    )  # fmt: skip
    logins = (".qwen/oauth_creds.json",)
    login_remedy = "run `qwen auth`, or give the executor OPENAI_API_KEY and OPENAI_BASE_URL"
    silence = Silence(output=600, tool=3600, retry=600)  # it says nothing while it tries again
    session_lost = re.compile(r"No saved session found")
    exits: Mapping[int, str] = MappingProxyType(
        {41: "AUTHENTICATION", 42: "BAD_REQUEST", 52: "BAD_REQUEST", 53: "MAX_TURNS"}
    )

    def launch(self, program: Program, task: Task) -> Launch:
        """One turn, headless; the prompt is on stdin."""
        options = Options(task, {"args", "retries", "auth", "settings"})
        argv = [*program.argv, "--output-format", "stream-json", "--include-partial-messages"]
        argv += ["--approval-mode", _MODES[task.permissions]]
        argv += options.flag("--auth-type", options.text("auth") or _account(dict(os.environ) | dict(task.env)))
        argv += options.flag("-m", task.model) + options.flag("--append-system-prompt", task.system_prompt)
        argv += options.flag("--resume", task.session_id)
        argv += options.flag("--max-session-turns", str(task.max_turns) if task.max_turns else "")
        path = task.scratch / "settings.json"
        files = {path: json.dumps(merged(_settings(options.retries()), options.table("settings")))}
        if task.mcp_servers:
            servers = task.scratch / "mcp.json"
            files[servers] = json.dumps({"mcpServers": dict(task.mcp_servers)})
            argv += ["--mcp-config", str(servers)]
        env = {
            "QWEN_CODE_SYSTEM_SETTINGS_PATH": str(path), "QWEN_CODE_NO_RELAUNCH": "true", "TERM": "xterm-256color",
        }  # fmt: skip
        return Launch([*argv, *options.args()], env, task.prompt, files)

    def parser(self, _task: Task, before: Tokens) -> "QwenParser":
        """Reads its events; tokens of earlier turns of the session are not this one's."""
        return QwenParser(before)

    def session_exists(self, task: Task) -> bool:
        """Its file is below a directory of its project."""
        return self._chat(task, task.session_id) is not None

    def consumed(self, task: Task, session_id: str) -> Tokens | None:
        """The sum of what its file counts of each request."""
        path = self._chat(task, session_id)
        if path is None:
            return None
        total = Tokens()
        with path.open("rb") as lines:
            for line in lines:
                if b'"input_token_count"' in line:
                    total = total.plus(_counted(line))
        return total

    @staticmethod
    def _chat(task: Task, session_id: str) -> Path | None:
        if not session_id.replace("-", "").isalnum():
            return None
        return next((task.home / ".qwen" / "projects").glob(f"*/chats/{session_id}.jsonl"), None)


def _counted(line: bytes) -> Tokens:
    try:
        told = Fields(orjson.loads(line)).of("systemPayload").of("uiEvent")
    except orjson.JSONDecodeError:  # the last line of a session whose CLI was killed
        return Tokens()
    return Tokens(
        told.number("input_token_count"), told.number("output_token_count"), told.number("cached_content_token_count"),
        0.0, told.number("thoughts_token_count"),
    )  # fmt: skip


def _settings(retries: int) -> dict[str, Any]:
    return {
        "privacy": {"usageStatisticsEnabled": False},
        "telemetry": {"enabled": False},
        "general": {"enableAutoUpdate": False, "disableAutoUpdate": True},
        "model": {"generationConfig": {"maxRetries": retries}},
    }


def _account(env: Mapping[str, str]) -> str:
    return next((kind for name, kind in _ACCOUNTS.items() if env.get(name)), "")


class QwenParser:
    """Reads the events of one run."""

    def __init__(self, before: Tokens) -> None:
        self._before = before
        self._billed = False

    def take(self, line: Any) -> Iterator[Event]:
        """One line."""
        said = Fields(line)
        if reader := _READERS.get(said.text("type")):
            yield from reader(self, said)

    def close(self, _status: int) -> Iterator[Event]:
        """Its `result` was its last word."""
        return iter(())

    def _system(self, said: Fields) -> Iterator[Event]:
        if said.text("subtype") == "init":
            yield events.SessionKnown(said.text("session_id"), said.text("model"))

    def _partial(self, said: Fields) -> Iterator[Event]:
        event = said.of("event")
        if said.text("parent_tool_use_id"):
            return
        if event.text("type") == "message_start":
            self._billed = False
            yield events.TurnStarted()
        elif event.of("delta").text("type") == "text_delta":
            yield events.Text(event.of("delta").text("text"), delta=True)

    def _assistant(self, said: Fields) -> Iterator[Event]:
        """One line for each block of a message; the last one has the tokens of the request."""
        message = said.of("message")
        tokens = _tokens(message.of("usage"))
        if tokens != Tokens():
            self._billed = True
            yield events.Spent(tokens)
        for block in message.each("content"):
            kind, name = block.text("type"), block.text("name")
            if kind == "tool_use":
                yield events.tool(block.text("id"), name, block.raw("input"))
                if name == "todo_write" and isinstance(block.of("input").raw("todos"), list):
                    yield events.todos(block.of("input").each("todos"))
            elif kind == "text" and not said.text("parent_tool_use_id"):
                yield events.Text(block.text("text"))

    def _user(self, said: Fields) -> Iterator[Event]:
        for block in said.of("message").each("content"):
            if block.text("type") == "tool_result":
                ok = block.raw("is_error") is not True
                yield events.ToolEnded(block.text("tool_use_id"), ok, block.text("content"))

    def _result(self, said: Fields) -> Iterator[Event]:
        yield events.SessionKnown(said.text("session_id"))
        if said.of("error").text("message") == _CANCELLED:  # no word on the work, and its usage of 0 is none
            return
        if said.of("usage"):
            yield events.Spent(_tokens(said.of("usage")).minus(self._before), total=True)
        for denial in said.each("permission_denials"):
            yield events.Denied(denial.text("tool_name"), events.summary(denial.raw("tool_input")))
        text, turns = said.text("result"), said.whole("num_turns") or None
        if said.text("subtype") == "success" and said.raw("is_error") is False and not self._is_error(text):
            yield events.Ended(True, text, turns=turns)
        else:
            words = text or said.of("error").text("message") or said.text("subtype") or "no reason given"
            yield events.Ended(False, None, _failure(words[max(0, words.rfind(_ERROR)) :]), turns)

    def _is_error(self, text: str) -> bool:
        """Whether an answer is an error of the provider: it begins as one, or has one in it and cost nothing."""
        return text.startswith(_ERROR) or (not self._billed and _ERROR in text)


_READERS: Final = {
    "system": QwenParser._system,
    "stream_event": QwenParser._partial,
    "assistant": QwenParser._assistant,
    "user": QwenParser._user,
    "result": QwenParser._result,
}


def _failure(message: str) -> Failure:
    found = _WORDS.fullmatch(message)
    return failure(found[1].strip(), 429 if found[2] else 0) if found else failure(message)


def _tokens(usage: Fields) -> Tokens:
    """Its input includes what was cached; its total what the model thought."""
    given, spoken = usage.number("input_tokens"), usage.number("output_tokens")
    thought = max(0.0, usage.number("total_tokens") - given - spoken)
    return Tokens(given, spoken + thought, usage.number("cache_read_input_tokens"), 0.0, thought)
