"""codex: OpenAI's CLI, `@openai/codex`.

Runs `codex exec --json`, its native binary rather than the wrapper. SIGINT ends its tools with it. The tokens that it
tells when a turn is done are those of the whole thread, but for turns that were killed: so each answer is counted by
the thread's own file, live, and also of a turn that was cut off; so are those of the helpers that it starts, which are
threads of their own and told of nowhere else.

Where nobody is logged in and there is no CODEX_API_KEY, it gets OPENAI_API_KEY under that name: it takes no other. Nor
does it read OPENAI_BASE_URL, so that goes into its configuration. It has no bound of turns, so the parser ends it; a
turn is over when no tool of it runs any more.

Options: `args` (list of further flags), `retries`, `config` (object: keys of its config.toml, as `-c key=value`).
"""

import json
import os
import re
import signal
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import orjson

from executor_service.harness.cli import events
from executor_service.harness.cli.accounts import fingerprint, is_there
from executor_service.harness.cli.adapter import Adapter, Launch, Program, Task
from executor_service.harness.cli.events import Event, Fields, Tokens
from executor_service.harness.cli.failures import failure
from executor_service.harness.cli.options import Options, platform_binary

#: Look-ups of plugins and apps on the network, before any work.
_QUIET: Final = ("--disable", "plugins", "--disable", "remote_plugin", "--disable", "apps")
_SANDBOX: Final = {"edit": "workspace-write", "read_only": "read-only"}
#: In a line of a thread's file that counts.
_COUNT: Final = b'"token_usage_record"'
#: In a line of a thread's file that names helpers of it.
_HELPERS: Final = b'"CollabAgentToolCall"'
#: What it says while it goes on.
_PASSING: Final = "Reconnecting"


class Codex(Adapter):
    """Runs Codex."""

    name = "codex"
    programs = ("codex",)
    provider = "openai"
    credentials = ("OPENAI_API_KEY", "OPENAI_BASE_URL", "CODEX_API_KEY", "CODEX_HOME")
    logins = (".codex/auth.json",)
    own_folder = ("CODEX_HOME", ".codex")
    identities = ((".codex/auth.json", ("tokens", "account_id")), (".codex/auth.json", ("OPENAI_API_KEY",)))
    login_remedy = "run `codex login`, or give the executor CODEX_API_KEY or OPENAI_API_KEY"
    first_signal = signal.SIGINT
    counts_in_files = True
    session_lost = re.compile(r"no rollout found|failed to (?:load|find) .{0,40}(?:session|thread|rollout)", re.I)

    def locate(self, program: Path) -> Sequence[str]:
        """The native binary of the package that the wrapper belongs to."""
        return platform_binary(program, "@openai", "codex-{system}-{cpu}", "vendor", "*", "bin", "codex")

    def launch(self, program: Program, task: Task) -> Launch:
        """One turn, headless; the prompt is on stdin, which ends with it."""
        options = Options(task, {"args", "retries", "config"})
        flags = ["--json", "--skip-git-repo-check", *_QUIET]
        if task.permissions == "full":
            flags.append("--dangerously-bypass-approvals-and-sandbox")
        else:
            flags += ["-c", f"sandbox_mode={json.dumps(_SANDBOX[task.permissions])}"]
        flags += options.flag("-m", task.model)
        settings: dict[str, Any] = {
            "check_for_update_on_startup": False,
            "analytics.enabled": False,
            "feedback.enabled": False,
        }
        if address := _variable(task, "OPENAI_BASE_URL"):
            settings["openai_base_url"] = address
        flags += _settings(settings | _servers(task.mcp_servers) | dict(options.table("config")))
        if task.system_prompt:
            flags += _settings({"developer_instructions": task.system_prompt})
        resume = ["resume", task.session_id] if task.session_id else []
        argv = [*program.argv, "exec", *resume, *flags, *options.args(), "-"]
        home = self._home(task)
        home.mkdir(parents=True, exist_ok=True, mode=0o700)  # it does not make it
        return Launch(argv, {"CODEX_HOME": str(home), **_account(task, home)}, stdin=task.prompt)

    def parser(self, task: Task, before: Tokens) -> "CodexParser":
        """Reads its events; tokens of earlier turns of the thread are not this one's."""
        return CodexParser(before, task.model, task.max_turns)

    def session_exists(self, task: Task) -> bool:
        """Its file is among the home's sessions."""
        return self._rollout(task, task.session_id) is not None

    def consumed(self, task: Task, session_id: str) -> Tokens | None:
        """The sum of what its file and its helpers' have of each answer. Its own total forgets killed turns."""
        if self._rollout(task, session_id) is None:
            return None
        answers: dict[str, Tokens] = {}
        threads = [session_id]
        for thread in threads:  # grows by the helpers that each one has
            if (path := self._rollout(task, thread)) is None:
                continue
            with path.open("rb") as lines:
                for line in lines:
                    if _COUNT in line:
                        answers |= _counted(line)
                    elif _HELPERS in line:
                        threads += [helper for helper in _helpers(line) if helper not in threads]
        return sum(answers.values(), Tokens())

    def account(self, env: Mapping[str, str], home: Path, task: Task | None) -> str:
        """As in `_account`: a login goes before OPENAI_API_KEY, CODEX_API_KEY before both."""
        if env.get("CODEX_API_KEY") or not any(map(is_there, self.login_files(env, home))):
            return fingerprint(env.get("CODEX_API_KEY") or env.get("OPENAI_API_KEY") or "")
        return super().account({name: env[name] for name in env if not name.endswith("KEY")}, home, task)

    @staticmethod
    def _home(task: Task) -> Path:
        given = task.env.get("CODEX_HOME") or os.environ.get("CODEX_HOME")
        return Path(given) if given else task.home / ".codex"

    def _rollout(self, task: Task, session_id: str) -> Path | None:
        if not session_id or "/" in session_id or "*" in session_id:
            return None
        return next(iter((self._home(task) / "sessions").rglob(f"*{session_id}.jsonl")), None)


def _account(task: Task, home: Path) -> dict[str, str]:
    key = _variable(task, "OPENAI_API_KEY")
    if not key or _variable(task, "CODEX_API_KEY") or (home / "auth.json").exists():
        return {}
    return {"CODEX_API_KEY": key}


def _variable(task: Task, name: str) -> str:
    return task.env.get(name) or os.environ.get(name) or ""


def _settings(table: Mapping[str, Any]) -> list[str]:
    return [part for key, value in table.items() for part in ("-c", f"{key}={_toml(value)}")]


def _servers(servers: Mapping[str, Any]) -> dict[str, Any]:
    return {f"mcp_servers.{name}": server for name, server in servers.items()}


def _toml(value: Any) -> str:
    """A value of TOML: of objects it wants `=`, else it is like JSON."""
    if isinstance(value, dict):
        return "{" + ",".join(f"{json.dumps(name)}={_toml(item)}" for name, item in value.items()) + "}"
    if isinstance(value, list):
        return "[" + ",".join(map(_toml, value)) + "]"
    if isinstance(value, float) and value.is_integer():
        return str(int(value))
    return json.dumps(value)


def _counted(line: bytes) -> dict[str, Tokens]:
    """What one answer consumed, by its id."""
    try:
        said = Fields(orjson.loads(line))
    except orjson.JSONDecodeError:  # the last line of a thread whose CLI was killed
        return {}
    payload = said.of("payload")
    if said.text("type") != "token_usage_record" or not payload.of("usage"):
        return {}
    return {payload.text("response_id"): _tokens(payload.of("usage"))}


def _helpers(line: bytes) -> list[str]:
    """The threads of the helpers that a line names."""
    try:
        receivers = Fields(orjson.loads(line)).of("payload").of("item").raw("receiver_thread_ids")
    except orjson.JSONDecodeError:
        return []
    return [thread for thread in receivers if isinstance(thread, str)] if isinstance(receivers, list) else []


def _tokens(usage: Fields) -> Tokens:
    return Tokens(
        usage.number("input_tokens"), usage.number("output_tokens"), usage.number("cached_input_tokens"),
        usage.number("cache_write_input_tokens"), usage.number("reasoning_output_tokens"),
    )  # fmt: skip


class CodexParser:
    """Reads the events of one turn."""

    def __init__(self, before: Tokens, model: str, max_turns: int) -> None:
        self._before = before
        self._model = model
        self._max_turns = max_turns
        self._turns = 0
        self._tools: set[str] = set()
        self._text: str | None = None
        self._over = False

    def take(self, line: Any) -> Iterator[Event]:
        """One line."""
        said = Fields(line)
        reader = _CODEX_READERS.get(said.text("type"))
        if reader is not None and not self._over:
            yield from reader(self, said)

    def close(self, _status: int) -> Iterator[Event]:
        """`turn.completed` or `turn.failed` was its last word."""
        return iter(())

    def _thread(self, said: Fields) -> Iterator[Event]:
        yield events.SessionKnown(said.text("thread_id"), self._model)

    def _turn(self, _said: Fields) -> Iterator[Event]:
        self._turns += 1
        yield events.TurnStarted()

    def _started(self, said: Fields) -> Iterator[Event]:
        item = said.of("item")
        tool = _tool(item)
        if tool is not None:
            self._tools.add(item.text("id"))
            given = item.raw("arguments")
            yield events.ToolStarted(item.text("id"), *tool, given if isinstance(given, dict) else None)
        yield from _todos(item)

    def _updated(self, said: Fields) -> Iterator[Event]:
        yield from _todos(said.of("item"))

    def _completed(self, said: Fields) -> Iterator[Event]:
        item = said.of("item")
        kind = item.text("type")
        if kind == "agent_message":
            self._text = item.text("text")
            yield events.Text(self._text)
        elif kind == "error":
            yield events.Trouble(item.text("message"))
        elif _tool(item) is not None:
            yield events.ToolEnded(item.text("id"), item.text("status") == "completed", _output(item))
            self._tools.discard(item.text("id"))
            if not self._tools:
                yield from self._next_turn()
        yield from _todos(item)

    def _next_turn(self) -> Iterator[Event]:
        if self._max_turns and self._turns >= self._max_turns:
            self._over = True
            yield events.out_of_turns(self._turns)
        else:
            self._turns += 1
            yield events.TurnStarted()

    def _error(self, said: Fields) -> Iterator[Event]:
        message = said.text("message")
        if message.startswith(_PASSING):
            yield events.Retrying(message)
        else:
            yield events.Trouble(message)

    def _done(self, said: Fields) -> Iterator[Event]:
        if usage := said.of("usage"):
            yield events.Spent(_tokens(usage).minus(self._before), total=True)
            yield events.Ended(True, self._text)

    def _failed(self, said: Fields) -> Iterator[Event]:
        yield events.Ended(False, None, failure(said.of("error").text("message")))


_CODEX_READERS: Final = {
    "thread.started": CodexParser._thread,
    "turn.started": CodexParser._turn,
    "item.started": CodexParser._started,
    "item.updated": CodexParser._updated,
    "item.completed": CodexParser._completed,
    "error": CodexParser._error,
    "turn.completed": CodexParser._done,
    "turn.failed": CodexParser._failed,
}


def _tool(item: Fields) -> tuple[str, str] | None:
    """Name and summary of an item that is the use of a tool; None: it is not."""
    kind = item.text("type")
    if kind == "command_execution":
        return "shell", " ".join(item.text("command").split())[: events.SUMMARY_LENGTH_MAX]
    if kind == "file_change":
        return "edit", ", ".join(change.text("path") for change in item.each("changes"))[: events.SUMMARY_LENGTH_MAX]
    if kind == "mcp_tool_call":
        return f"{item.text('server')}.{item.text('tool')}", events.summary(item.raw("arguments"))
    if kind == "collab_tool_call":
        return item.text("tool"), events.summary(item.text("prompt"))
    if kind == "web_search":
        return "web_search", item.text("query")[: events.SUMMARY_LENGTH_MAX]
    return None


def _output(item: Fields) -> str:
    """What a tool gave: a command's output, or an MCP tool's texts, or why there are none."""
    texts = "\n".join(part.text("text") for part in item.of("result").each("content") if part.text("text"))
    return item.text("aggregated_output") or texts or item.of("error").text("message")


def _todos(item: Fields) -> Iterator[Event]:
    if item.text("type") == "todo_list" and isinstance(item.raw("items"), list):
        entries = list(item.each("items"))
        yield events.Todos(sum(entry.raw("completed") is True for entry in entries), len(entries))
