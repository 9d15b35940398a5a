"""opencode: `opencode-ai`.

Runs `opencode run --format json`, its native binary rather than the wrapper, prompt on stdin. SIGTERM ends it alone,
its tools are ended by the sweep. It says when a tool has ended, not when it begins, and nothing at all while it tries a
request again (75 s and more, no switch). There is no closing event: success is a step that stopped without a tool, and
no other word nor exit after it. A step that only made its session shorter looks the same, and it goes on after that:
its database tells which one that is. Where the answer itself fills the context, it makes the session shorter after it
and asks the model to go on: what that says is no other answer. What a step consumes is known when its tools have ended.
It has no bound of turns, so the parser ends it. What helpers of it consume only its database tells.

Its configuration of this turn is in a variable, on top of the user's files. `edit` and `read_only` are its own
permissions: what they deny is not offered to the model.

Options: `args` (list of further flags), `agent`, `config` (object: keys of its opencode.json, as `provider`).
"""

import json
import re
import sqlite3
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any, Final

import orjson

from executor_service.assignment import InvalidWork
from executor_service.harness.cli import events
from executor_service.harness.cli.adapter import Adapter, Launch, Program, Silence, Task
from executor_service.harness.cli.events import Event, Fields, Tokens
from executor_service.harness.cli.failures import failure
from executor_service.harness.cli.options import Options, keys_of, platform_binary
from executor_service.outcome import Failure

#: Environment variables are at most this long on Linux; longer ones would not start.
CONFIG_BYTES_MAX: Final = 120 * 1024
_QUIET: Final = {
    "OPENCODE_DISABLE_AUTOUPDATE": "1", "OPENCODE_DISABLE_MODELS_FETCH": "1", "OPENCODE_DISABLE_LSP_DOWNLOAD": "1",
    "OPENCODE_DISABLE_TERMINAL_TITLE": "1",
}  # fmt: skip
_LOOK: Final = dict.fromkeys(("read", "grep", "glob", "list", "todoread", "todowrite", "webfetch", "lsp"), "allow")
_PERMISSIONS: Final[Mapping[str, Any]] = {
    "full": "allow",
    "edit": {"*": "deny", **_LOOK, "edit": "allow", "external_directory": "deny"},
    "read_only": {"*": "deny", **_LOOK, "external_directory": "deny"},
}
_DENIED: Final = re.compile(r"rejected permission|prevents? you from using|permission .{0,20}denied", re.I)
#: Tools that these leave out: whoever calls one is told that it is not available.
_LEFT_OUT: Final = ("bash", "edit", "write", "apply_patch", "task")
_TITLE_LENGTH: Final = 60
#: A session and the sessions of its helpers: what their steps consumed.
_STEPS: Final = """
with recursive tree(id) as (
  select id from session where id = ? union select session.id from session join tree on session.parent_id = tree.id
)
select data from part where session_id in (select id from tree) and data like '%"step-finish"%'
"""
#: Whether a message is a summary that takes the place of the session so far.
_COMPACTION: Final = """
select json_extract(data, '$.agent') = 'compaction' or json_extract(data, '$.summary') = 1 from message where id = ?
"""


class OpenCode(Adapter):
    """Runs opencode."""

    name = "opencode"
    programs = ("opencode",)
    provider = "opencode"
    many_providers = True
    credentials = (
        "ANTHROPIC_API_KEY", "OPENAI_API_KEY", "GEMINI_API_KEY", "GOOGLE_GENERATIVE_AI_API_KEY", "OPENROUTER_API_KEY",
        "GROQ_API_KEY", "XAI_API_KEY", "MISTRAL_API_KEY", "DEEPSEEK_API_KEY", "OPENCODE_API_KEY", "OPENCODE_CONFIG",
        "OPENCODE_CONFIG_DIR",
    )  # fmt: skip
    logins = (".local/share/opencode/auth.json", ".config/opencode/opencode.json", ".config/opencode/opencode.jsonc")
    login_remedy = "run `opencode auth login`, or give the executor the key of a provider, as ANTHROPIC_API_KEY"
    silence = Silence(output=600, tool=3600, retry=600)
    session_lost = re.compile(r"Session not found")
    counts_in_files = True

    def keys(self, task: Task) -> Sequence[str]:
        """Those of the model's provider, which stands before its name."""
        provider, _, model = task.model.partition("/")
        return keys_of(provider if model else "", super().keys(task))

    def locate(self, program: Path) -> Sequence[str]:
        """The native binary of the package that the wrapper belongs to."""
        return platform_binary(program, "", "opencode-{system}-{cpu}", "bin", "opencode")

    def launch(self, program: Program, task: Task) -> Launch:
        """One turn, headless; the prompt is on stdin, which ends with it."""
        options = Options(task, {"args", "agent", "config"})
        if "OPENCODE_CONFIG_CONTENT" in task.env:
            raise InvalidWork("env: OPENCODE_CONFIG_CONTENT is the executor's to set: give option `config`")
        argv = [*program.argv, "run", "--format", "json", *options.flag("-m", task.model)]
        argv += options.flag("--agent", options.text("agent")) + options.flag("--session", task.session_id)
        if not task.session_id:  # else it asks the model for one
            argv += ["--title", " ".join(task.prompt.split())[:_TITLE_LENGTH] or "backburner"]
        files = {}
        config = _config(task, options)
        if task.system_prompt:
            path = task.scratch / "system-prompt.md"
            files[path] = task.system_prompt
            config["instructions"] = [*_list(config.get("instructions")), str(path)]
        content = json.dumps(config)
        if len(content) > CONFIG_BYTES_MAX:
            raise InvalidWork(f"option config: {len(content)} bytes are more than the {CONFIG_BYTES_MAX} there may be")
        return Launch([*argv, *options.args()], _QUIET | {"OPENCODE_CONFIG_CONTENT": content}, task.prompt, files)

    def parser(self, task: Task, _before: Tokens) -> "OpenCodeParser":
        """Reads its events."""
        return OpenCodeParser(task, self._database(task))

    def session_exists(self, task: Task) -> bool:
        """Its database has it; without a database nothing is known."""
        found = _query(self._database(task), "select count(*) from session where id = ?", task.session_id)
        return found is None or found[0][0] > 0

    def consumed(self, task: Task, session_id: str) -> Tokens | None:
        """The steps of the session and of its helpers."""
        rows = _query(self._database(task), _STEPS, session_id)
        if rows is None:
            return None
        total = Tokens()
        for (data,) in rows:
            total = total.plus(_tokens(_part(data)))
        return total

    @staticmethod
    def _database(task: Task) -> Path:
        data = task.env.get("XDG_DATA_HOME")
        return (Path(data) if data else task.home / ".local" / "share") / "opencode" / "opencode.db"


def _config(task: Task, options: Options) -> dict[str, Any]:
    config = {"autoupdate": False, "share": "disabled", **options.table("config")}
    config["permission"] = _PERMISSIONS[task.permissions]
    if task.mcp_servers:
        config["mcp"] = {name: _server(name, server) for name, server in task.mcp_servers.items()}
    return config


def _server(name: str, server: Any) -> dict[str, Any]:
    """An MCP server in its words: from a command with arguments, or a URL."""
    given = Fields(server)
    if url := given.text("url"):
        return {"type": "remote", "url": url, "headers": given.raw("headers") or {}, "enabled": True}
    if command := given.text("command"):
        argv = [command, *_list(given.raw("args"))]
        return {"type": "local", "command": argv, "environment": given.raw("env") or {}, "enabled": True}
    raise InvalidWork(f"mcp_servers.{name}: expected an object with `command` or `url`")


def _list(value: Any) -> list[Any]:
    return value if isinstance(value, list) else []


def _query(path: Path, words: str, *values: str) -> list[Any] | None:
    """Rows of its database, read only; None: there is none that can be read."""
    if not path.exists():
        return None
    try:
        with closing(sqlite3.connect(f"{path.absolute().as_uri()}?mode=ro", uri=True, timeout=5)) as connection:
            return connection.execute(words, values).fetchall()
    except sqlite3.Error:  # of another version, or in the middle of a migration
        return None


def _part(data: Any) -> Fields:
    try:
        part = Fields(orjson.loads(data))
    except (orjson.JSONDecodeError, TypeError):
        return Fields(None)
    return part if part.text("type") == "step-finish" else Fields(None)


class OpenCodeParser:
    """Reads the events of one run."""

    def __init__(self, task: Task, database: Path) -> None:
        self._database = database
        self._max_turns = task.max_turns
        self._model = task.model
        self._turns = 0
        self._stop = ""
        self._used_tools = False
        self._words: list[str] = []
        self._spent = Tokens()
        self._failed: Failure | None = None
        self._answered = False
        self._over = False

    def take(self, line: Any) -> Iterator[Event]:
        """One line."""
        said = Fields(line)
        reader = _OPENCODE_READERS.get(said.text("type"))
        if reader is not None and not self._over:
            yield events.SessionKnown(said.text("sessionID"), self._model)
            yield from reader(self, said)

    def close(self, status: int) -> Iterator[Event]:
        """What it says after its last step, and its exit, may speak against it."""
        if self._over:
            return
        if self._failed is not None:
            yield events.Ended(False, None, self._failed)
        elif status > 0 and self._stop == "stop":
            yield events.Ended(
                False, None, Failure("HARNESS_CRASHED", f"it exited with code {status} when it was done")
            )
        elif status == 0 and self._stop and self._stop != "stop" and not self._answered:
            yield events.Ended(False, None, _unfinished(self._stop))

    def _start(self, _said: Fields) -> Iterator[Event]:
        self._turns += 1
        self._stop = ""
        self._used_tools = False
        self._words = []
        yield events.TurnStarted()

    def _tool(self, said: Fields) -> Iterator[Event]:
        part = said.of("part")
        self._used_tools = True
        state, tool, call = part.of("state"), part.text("tool"), part.text("callID")
        yield events.tool(call, tool, state.raw("input"))
        given = state.of("input")
        if tool == "todowrite" and isinstance(given.raw("todos"), list):
            yield events.todos(given.each("todos"))
        ok = state.text("status") == "completed"
        yield events.ToolEnded(call, ok, state.text("output") or state.text("error"))
        left_out = tool in _LEFT_OUT and "unavailable tool" in state.text("error")
        if not ok and (left_out or _DENIED.search(state.text("error"))):
            yield events.Denied(tool, events.summary(state.raw("input")))

    def _text(self, said: Fields) -> Iterator[Event]:
        if said.of("part").raw("synthetic") is True:  # what it told the model in the user's name
            return
        words = said.of("part").text("text")
        self._words.append(words)
        yield events.Text(words)

    def _finish(self, said: Fields) -> Iterator[Event]:
        part = said.of("part")
        self._stop = part.text("reason")
        self._spent = self._spent.plus(_tokens(part))
        yield events.Spent(self._spent, total=True)
        if self._answered:
            return
        if self._stop == "tool-calls" and self._max_turns and self._turns >= self._max_turns:
            self._over = True
            yield events.out_of_turns(self._turns)
        elif self._is_answer(part.text("messageID")):
            self._answered = True
            yield events.Ended(True, "".join(self._words))

    def _is_answer(self, message: str) -> bool:
        if self._stop != "stop" or not self._turns or self._used_tools or self._failed is not None:
            return False
        found = _query(self._database, _COMPACTION, message)
        return not (found and found[0][0])

    def _error(self, said: Fields) -> Iterator[Event]:
        error = said.of("error")
        data = error.of("data")
        status, words = data.whole("statusCode"), data.text("message") or error.text("message")
        said_more = data.text("responseBody") if error.text("name") == "APIError" else ""
        self._failed = _failure(error.text("name"), words, status, said_more)
        yield events.Trouble(words, status)


_OPENCODE_READERS: Final = {
    "step_start": OpenCodeParser._start,
    "tool_use": OpenCodeParser._tool,
    "text": OpenCodeParser._text,
    "step_finish": OpenCodeParser._finish,
    "error": OpenCodeParser._error,
}
_NAMES: Final = {
    "ProviderAuthError": "AUTHENTICATION", "ContextOverflowError": "CONTEXT_OVERFLOW", "ContentFilterError": "REFUSED",
}  # fmt: skip


def _failure(name: str, words: str, status: int, body: str) -> Failure:
    """By its own name for it, else by the words, those of the provider's answer included."""
    if name in _NAMES:
        return Failure(_NAMES[name], words or name)
    found = failure(f"{words} {body}".strip() or name, status)
    return Failure(found.reason, words or name or found.message, retry_after_s=found.retry_after_s)


def _unfinished(stop: str) -> Failure:
    if stop == "length":
        return Failure("HARNESS_ERROR", "the answer was cut off at the output limit of the model")
    if stop == "content-filter":
        return Failure("REFUSED", "the provider's content filter stopped the answer")
    return Failure("HARNESS_ERROR", f"it exited after a step that ended with {stop}")


def _tokens(part: Fields) -> Tokens:
    """Tokens of one step: input excludes what was cached, output what was thought. No price is a cost of 0."""
    tokens, cache = part.of("tokens"), part.of("tokens").of("cache")
    cached, written, reasoning = cache.number("read"), cache.number("write"), tokens.number("reasoning")
    total = Tokens(
        tokens.number("input") + cached + written, tokens.number("output") + reasoning, cached, written, reasoning
    )
    return total if total == Tokens() else events.priced(total, part.cost("cost") or None)
