"""gemini-cli: Google's CLI, `@google/gemini-cli`.

Runs `gemini --output-format stream-json` in its own process: it starts itself anew otherwise, and its first process
does not hear signals. Its exit code is 0 after SIGTERM and several failures: only its `result` counts, and not even
that when the line before it is an error. Tools outlive it whatever the signal; the sweep of the executor ends them.

The prompt is on stdin. Of settings it takes none in a folder below /tmp but those of its home, so each attempt has one:
the user's settings with the attempt's over them, and links to all else that is in HOME/.gemini. It has no flag for a
system prompt: that comes first in the prompt. `edit` and `read_only` are its approval modes auto_edit and default, in
which it does not offer the tools that would have to be approved. A session belongs to its directory.

It does not tell a refusal (SAFETY) or an answer cut off by its length from a good one when they hold any text.

Options: `args` (list of further flags), `retries` (tries of one request by itself, default 2), `settings` (object over
the settings of the attempt).
"""

import json
import os
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any, Final

import orjson

from executor_service.assignment import InvalidWork
from executor_service.harness.cli import events
from executor_service.harness.cli.adapter import Adapter, Launch, Program, Silence, Task
from executor_service.harness.cli.events import Denied, Event, Fields, Tokens
from executor_service.harness.cli.failures import failure, reset_in
from executor_service.harness.cli.options import Options, merged
from executor_service.outcome import Failure

_SETTINGS: Final = "settings.json"
_SESSIONS: Final = ("tmp", "history")
#: Which project has which folder it finds out anew, by a file in each.
_OWN: Final = (_SETTINGS, "projects.json")
#: A text of JSON, which is kept, or a comment.
_COMMENT: Final = re.compile(r'("(?:[^"\\]|\\.)*")|//[^\n]*|/\*.*?\*/', re.S)
#: Tools that these modes leave out: whoever calls one is told that there is none of that name.
_LEFT_OUT: Final = ("run_shell_command", "write_file", "replace")
_MODES: Final = {"full": "yolo", "edit": "auto_edit", "read_only": "default"}
#: What says which account it uses, without a login of the user.
_ACCOUNTS: Final = {"GOOGLE_GENAI_USE_VERTEXAI": "vertex-ai", "GEMINI_API_KEY": "gemini-api-key"}
#: The provider's words, and the advice that it adds to those of a limit: of other accounts and limits, not the cause.
_WORDS: Final = re.compile(r"\[API Error: (.*)\](\nPlease wait and try again later\..*)?", re.S)
#: The provider says the same words of a quota for a minute and of one for a day: what is added tells them apart.
_FOR_A_MINUTE: Final = re.compile(r"Suggested retry after (\d+(?:\.\d+)?)s")
_FOR_LONG: Final = re.compile(r"exhausted your (?:\w+ )?quota")
_MAX_TURNS: Final = re.compile(r"maximum session turns|max session turns", re.I)
_QUIET: Final = {"GEMINI_CLI_NO_RELAUNCH": "true", "GEMINI_TELEMETRY_ENABLED": "false", "TERM": "xterm-256color"}


class GeminiCli(Adapter):
    """Runs Gemini CLI."""

    name = "gemini-cli"
    programs = ("gemini",)
    provider = "google"
    credentials = (
        "GEMINI_API_KEY", "GOOGLE_API_KEY", "GOOGLE_GENAI_USE_VERTEXAI", "GOOGLE_CLOUD_PROJECT",
        "GOOGLE_CLOUD_LOCATION", "GOOGLE_APPLICATION_CREDENTIALS", "GOOGLE_GEMINI_BASE_URL",
    )  # fmt: skip
    logins = (".gemini/oauth_creds.json",)
    identities = ((".gemini/google_accounts.json", ("active",)),)
    login_remedy = "run `gemini` once and log in, or give the executor GEMINI_API_KEY"
    silence = Silence(output=600, tool=3600, retry=600)  # it says nothing while it tries again
    counts_in_files = True
    session_lost = re.compile(r"Error resuming session|Invalid session identifier")
    exits: Mapping[int, str] = MappingProxyType(
        {41: "AUTHENTICATION", 42: "BAD_REQUEST", 52: "BAD_REQUEST", 53: "MAX_TURNS", 55: "BAD_REQUEST"}
    )

    def launch(self, program: Program, task: Task) -> Launch:
        """One turn, headless; the prompt is on stdin."""
        options = Options(task, {"args", "retries", "settings"})
        argv = [*program.argv, "--output-format", "stream-json", "--skip-trust"]
        argv += ["--approval-mode", _MODES[task.permissions]]
        argv += options.flag("-m", task.model) + options.flag("--resume", task.session_id) + options.args()
        own = task.scratch / "gemini"
        _link(task.home / ".gemini", own / ".gemini")
        settings = merged(_settings_of_user(task.home), _settings(task, options.retries()))
        files = {own / ".gemini" / _SETTINGS: json.dumps(merged(settings, options.table("settings")))}
        env = _QUIET | {"GEMINI_CLI_HOME": str(own)}
        prompt = f"{task.system_prompt}\n\n{task.prompt}" if task.system_prompt else task.prompt
        return Launch(argv, env, prompt, files)

    def parser(self, _task: Task, _before: Tokens) -> "GeminiParser":
        """Reads its events; the tokens that it tells are those of this run."""
        return GeminiParser()

    def session_exists(self, task: Task) -> bool:
        """Its file is below a directory of its project."""
        return self._chat(task, task.session_id) is not None

    def consumed(self, task: Task, session_id: str) -> Tokens | None:
        """What its file counts, and those of its helpers. A message stands there each time that it changed."""
        path = self._chat(task, session_id)
        if path is None:
            return None
        counts: dict[str, Tokens] = {}
        for chat in (path, *(path.parent / session_id).glob("*.jsonl")):
            with chat.open("rb") as lines:
                for line in lines:
                    if b'"tokens"' in line:
                        counts |= _counts(line)
        return sum(counts.values(), Tokens())

    @staticmethod
    def _chat(task: Task, session_id: str) -> Path | None:
        start = session_id.partition("-")[0]
        if not start.isalnum():
            return None
        found = (task.home / ".gemini" / "tmp").glob(f"*/chats/session-*-{start}.jsonl")
        return next((path for path in found if _is_of(path, session_id)), None)


def _is_of(path: Path, session_id: str) -> bool:
    with path.open("rb") as lines:
        return session_id.encode() in lines.readline()


def _counts(line: bytes) -> dict[str, Tokens]:
    try:
        message = Fields(orjson.loads(line))
    except orjson.JSONDecodeError:  # the last line of a session whose CLI was killed
        return {}
    told = message.of("tokens")
    if not told or not message.text("id"):
        return {}
    thoughts = told.number("thoughts")
    tokens = Tokens(
        told.number("input") + told.number("tool"),
        told.number("output") + thoughts,
        told.number("cached"),
        0.0,
        thoughts,
    )
    return {message.text("id"): tokens}


def _settings(task: Task, retries: int) -> dict[str, Any]:
    """What holds whatever the user has set. Without an account chosen it does not start, though there is a key."""
    model = {"model": {"maxSessionTurns": task.max_turns}} if task.max_turns else {}
    servers = {"mcpServers": dict(task.mcp_servers)} if task.mcp_servers else {}
    quiet = {
        "privacy": {"usageStatisticsEnabled": False},
        "telemetry": {"enabled": False},
        "general": {"enableAutoUpdate": False, "enableAutoUpdateNotification": False, "maxAttempts": retries + 1},
    }
    kind = next((kind for name, kind in _ACCOUNTS.items() if task.env.get(name) or os.environ.get(name)), "")
    account = {"security": {"auth": {"selectedType": kind}}} if kind else {}
    return quiet | model | servers | account


def _link(shared: Path, own: Path) -> None:
    """The attempt's folder with the user's things in it. Where sessions are is there from the start."""
    for name in _SESSIONS:
        (shared / name).mkdir(parents=True, exist_ok=True, mode=0o700)
    own.mkdir(parents=True, exist_ok=True, mode=0o700)
    for entry in shared.iterdir():
        link = own / entry.name
        if entry.name not in _OWN and not os.path.lexists(link):
            link.symlink_to(entry)


def _settings_of_user(home: Path) -> dict[str, Any]:
    """They may have comments."""
    path = home / ".gemini" / _SETTINGS
    if not path.exists():
        return {}
    try:
        found = json.loads(_COMMENT.sub(lambda match: match[1] or "", path.read_text()))
    except (OSError, ValueError) as error:
        raise InvalidWork(f"the settings of gemini-cli, {path}, cannot be read: {error}") from error
    return found if isinstance(found, dict) else {}


class GeminiParser:
    """Reads the events of one run."""

    def __init__(self) -> None:
        self._asked = True
        self._error = ""
        self._tools: dict[str, Denied] = {}

    def take(self, line: Any) -> Iterator[Event]:
        """One line."""
        said = Fields(line)
        kind = said.text("type")
        if reader := _READERS.get(kind):
            yield from reader(self, said)
        if kind not in ("error", "result"):
            self._error = ""  # it went on after it

    def close(self, _status: int) -> Iterator[Event]:
        """Its `result` was its last word."""
        return iter(())

    def _init(self, said: Fields) -> Iterator[Event]:
        yield events.SessionKnown(said.text("session_id"), said.text("model"))

    def _message(self, said: Fields) -> Iterator[Event]:
        if said.text("role") == "assistant":
            yield from self._turn()
            yield events.Text(said.text("content"), delta=said.raw("delta") is True)

    def _tool(self, said: Fields) -> Iterator[Event]:
        yield from self._turn()
        name, given = said.text("tool_name"), said.of("parameters")
        self._tools[said.text("tool_id")] = Denied(name, events.summary(said.raw("parameters")))
        yield events.tool(said.text("tool_id"), name, said.raw("parameters"))
        if name == "write_todos" and isinstance(given.raw("todos"), list):
            yield events.todos(given.each("todos"))

    def _tool_end(self, said: Fields) -> Iterator[Event]:
        self._asked = True
        error, tool = said.of("error"), self._tools.pop(said.text("tool_id"), None)
        output = said.text("output") or error.text("message")
        yield events.ToolEnded(said.text("tool_id"), said.text("status") == "success", output)
        left_out = error.text("type") == "tool_not_registered" and tool is not None and tool.tool in _LEFT_OUT
        if tool is not None and (left_out or error.text("type") == "policy_violation"):
            yield tool

    def _turn(self) -> Iterator[Event]:
        """The first word after a question or after results of tools is the model's next turn."""
        if self._asked:
            self._asked = False
            yield events.TurnStarted()

    def _trouble(self, said: Fields) -> Iterator[Event]:
        self._error = said.text("message") or "an error without words"
        yield events.Trouble(self._error)

    def _result(self, said: Fields) -> Iterator[Event]:
        stats = said.of("stats")
        if stats:
            models = stats.raw("models")
            if isinstance(models, dict) and models:  # several have no one price
                yield events.SessionKnown("", "+".join(sorted(name for name in models if isinstance(name, str))))
            yield events.Spent(_tokens(stats), total=True)
        if said.text("status") == "success" and not self._error:
            yield events.Ended(True)
        else:
            yield events.Ended(False, None, _failure(said.of("error").text("message") or self._error))


_READERS: Final = {
    "init": GeminiParser._init,
    "message": GeminiParser._message,
    "tool_use": GeminiParser._tool,
    "tool_result": GeminiParser._tool_end,
    "error": GeminiParser._trouble,
    "result": GeminiParser._result,
}


def _tokens(stats: Fields) -> Tokens:
    """Its output leaves out what the model thought; the total has it."""
    given, spoken = stats.number("input_tokens"), stats.number("output_tokens")
    thought = max(0.0, stats.number("total_tokens") - given - spoken)
    return Tokens(given, spoken + thought, stats.number("cached"), 0.0, thought)


def _failure(message: str) -> Failure:
    if _MAX_TURNS.search(message):
        return Failure("MAX_TURNS", message[:2000])
    found = _WORDS.fullmatch(message)
    words, limited = (found[1].strip(), bool(found[2])) if found else (message, False)
    if _FOR_LONG.search(words):
        return Failure("QUOTA_EXHAUSTED", words[:2000], retry_after_s=reset_in(words))
    if pause := _FOR_A_MINUTE.search(words):
        return Failure("RATE_LIMITED", words[:2000], retry_after_s=float(pause[1]))
    return failure(words, 429 if limited else 0)
