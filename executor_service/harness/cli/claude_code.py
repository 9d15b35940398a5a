"""claude-code: Anthropic's CLI, `@anthropic-ai/claude-code`.

Runs `claude -p` with a stream of JSON events. It ends its tools on SIGINT, and says how far it was; SIGTERM leaves them
alive. Its `result` counts tokens and dollars of the run; newer releases go on from the sum that the session's file has.

Options: `args` (list of further flags), `retries` (tries of one request by itself, default 2), `max_thinking_tokens`.
"""

import json
import os
import re
import signal
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

import orjson

from executor_service.harness.cli import events
from executor_service.harness.cli.adapter import Adapter, Launch, Program, Silence, Task
from executor_service.harness.cli.events import Event, Fields, Tokens
from executor_service.harness.cli.failures import failure
from executor_service.harness.cli.options import Options, platform_binary
from executor_service.outcome import Failure

_READ_ONLY: Final = "Read,Grep,Glob,LS,TodoWrite,WebFetch,WebSearch,TaskCreate,TaskUpdate"
_EDIT: Final = f"{_READ_ONLY},Edit,Write,MultiEdit,NotebookEdit"
_QUIET: Final = {
    "CLAUDE_CODE_DISABLE_NONESSENTIAL_TRAFFIC": "1", "DISABLE_TELEMETRY": "1", "DISABLE_ERROR_REPORTING": "1",
    "DISABLE_AUTOUPDATER": "1", "DISABLE_BUG_COMMAND": "1",
}  # fmt: skip
#: What begins the line of a session's file that says what it has consumed.
_SUM: Final = b'{"type":"cost-state"'
_SUBTYPES: Final = {"error_max_turns": "MAX_TURNS", "error_max_budget_usd": "BUDGET"}


class ClaudeCode(Adapter):
    """Runs Claude Code."""

    name = "claude-code"
    programs = ("claude",)
    provider = "anthropic"
    credentials = (
        "ANTHROPIC_API_KEY", "ANTHROPIC_AUTH_TOKEN", "ANTHROPIC_BASE_URL", "ANTHROPIC_MODEL", "CLAUDE_CODE_OAUTH_TOKEN",
        "CLAUDE_CONFIG_DIR", "CLAUDE_CODE_USE_BEDROCK", "CLAUDE_CODE_USE_VERTEX", "AWS_PROFILE", "AWS_REGION",
    )  # fmt: skip
    logins = (".claude/.credentials.json",)
    own_folder = ("CLAUDE_CONFIG_DIR", ".claude")
    identities = tuple((name, ("oauthAccount", "accountUuid")) for name in (".claude/.claude.json", ".claude.json"))
    login_remedy = "run `claude` once and log in, or give the executor ANTHROPIC_API_KEY"
    first_signal = signal.SIGINT
    silence = Silence(output=300, tool=3600, retry=900)
    session_lost = re.compile(r"No conversation found with session ID")

    def locate(self, program: Path) -> Sequence[str]:
        """The native binary of the package that a wrapper belongs to."""
        return platform_binary(program, "@anthropic-ai", "claude-code-{system}-{cpu}", "claude")

    def launch(self, program: Program, task: Task) -> Launch:
        """One turn, headless; the prompt is on stdin: arguments are for everybody on the machine to read."""
        options = Options(task, {"args", "retries", "max_thinking_tokens"})
        argv = [*program.argv, "-p", "--output-format", "stream-json", "--verbose", "--include-partial-messages"]
        argv += _permissions(task.permissions)
        argv += options.flag("--model", task.model) + options.flag("--append-system-prompt", task.system_prompt)
        argv += options.flag("--resume", task.session_id)
        argv += options.flag("--max-turns", str(task.max_turns) if task.max_turns else "")
        files = {}
        if task.mcp_servers:
            path = task.scratch / "mcp.json"
            files[path] = json.dumps({"mcpServers": task.mcp_servers})
            argv += ["--mcp-config", str(path), "--strict-mcp-config"]
        argv += options.args()
        env = _QUIET | {"CLAUDE_CODE_MAX_RETRIES": str(options.retries())}
        if os.geteuid() == 0:
            env["IS_SANDBOX"] = "1"  # it refuses to run unattended as root otherwise
        if tokens := options.number("max_thinking_tokens"):
            env["MAX_THINKING_TOKENS"] = str(tokens)
        return Launch(argv, env, task.prompt, files)

    def parser(self, _task: Task, before: Tokens) -> "ClaudeParser":
        """Reads its events; of a release that adds up over a session, what it had consumed is not this turn's."""
        return ClaudeParser(before)

    def session_exists(self, task: Task) -> bool:
        """Its file is below the configuration's `projects`, whatever the project."""
        return self._session(task, task.session_id) is not None

    def consumed(self, task: Task, session_id: str) -> Tokens | None:
        """The last sum in its file: newer releases write one as they end, and the next turn's totals begin there."""
        path = self._session(task, session_id)
        if path is None:
            return None
        last = b""
        with path.open("rb") as lines:
            for line in lines:
                if line.startswith(_SUM):
                    last = line
        return _summed(last) if last else None

    @staticmethod
    def _session(task: Task, session_id: str) -> Path | None:
        if not session_id.replace("-", "").isalnum():
            return None
        given = task.env.get("CLAUDE_CONFIG_DIR") or os.environ.get("CLAUDE_CONFIG_DIR")
        config = Path(given) if given else task.home / ".claude"
        return next((config / "projects").glob(f"*/{session_id}.jsonl"), None)


def _permissions(kind: str) -> list[str]:
    if kind == "full":
        return ["--dangerously-skip-permissions"]
    tools = _EDIT if kind == "edit" else _READ_ONLY
    return ["--permission-mode", "dontAsk", "--allowedTools", tools]


class ClaudeParser:
    """Reads the events of one run."""

    def __init__(self, before: Tokens = Tokens()) -> None:  # noqa: B008 - it cannot be changed
        self._before = before
        #: The request that each agent is at, with its input: helpers, by the tool that started them, and itself.
        self._requests: dict[str, tuple[str, Tokens]] = {}
        self._tasks: dict[str, bool] = {}

    def take(self, line: Any) -> Iterator[Event]:
        """One line."""
        said = Fields(line)
        if reader := _CLAUDE_READERS.get(said.text("type")):
            yield from reader(self, said)

    def close(self, _status: int) -> Iterator[Event]:
        """Its `result` was its last word."""
        return iter(())

    def _system(self, said: Fields) -> Iterator[Event]:
        if said.text("subtype") == "init":
            yield events.SessionKnown(said.text("session_id"), said.text("model").partition("[")[0])
        elif said.text("subtype") == "api_retry":
            status, error = said.whole("error_status"), said.text("error")
            words = f"{error or 'the request failed'} ({status})" if status else error
            yield events.Retrying(words, status, said.number("retry_delay_ms") / 1000)

    def _partial(self, said: Fields) -> Iterator[Event]:
        event, helper = said.of("event"), said.text("parent_tool_use_id")
        kind = event.text("type")
        if kind == "message_start":
            message = event.of("message")
            request, known = message.text("id"), _tokens(message.of("usage"))
            self._requests[helper] = request, known
            if not helper:
                yield events.TurnStarted()
            yield events.Spent(known, request=request)
        elif kind == "message_delta" and (usage := event.of("usage")):
            output = usage.number("output_tokens")
            request, known = self._requests.get(helper, ("", Tokens()))
            yield events.Spent(Tokens(known.input, output, known.cached, known.cache_write), request=request)
        elif event.of("delta").text("type") == "text_delta" and not helper:
            yield events.Text(event.of("delta").text("text"), delta=True)

    def _assistant(self, said: Fields) -> Iterator[Event]:
        message = said.of("message")
        if message.text("model") == "<synthetic>":
            return
        for block in message.each("content"):
            kind, name = block.text("type"), block.text("name")
            if kind == "tool_use":
                yield events.tool(block.text("id"), name, block.raw("input"))
                yield from self._todos(name, block.of("input"))
            elif kind == "text" and not said.text("parent_tool_use_id"):
                yield events.Text(block.text("text"))

    def _user(self, said: Fields) -> Iterator[Event]:
        result = said.of("tool_use_result")
        if task := result.of("task").text("id"):
            self._tasks[task] = False
        elif result.text("taskId"):
            change = result.of("statusChange").text("to")
            if change:
                self._tasks[result.text("taskId")] = change == "completed"
        for block in said.of("message").each("content"):
            if block.text("type") == "tool_result":
                ok = block.raw("is_error") is not True
                yield events.ToolEnded(block.text("tool_use_id"), ok, _content(block.raw("content")))
        if self._tasks and result:
            yield events.Todos(sum(self._tasks.values()), len(self._tasks))

    def _todos(self, tool: str, given: Fields) -> Iterator[Event]:
        if tool == "TodoWrite" and isinstance(given.raw("todos"), list):
            yield events.todos(given.each("todos"))

    def _result(self, said: Fields) -> Iterator[Event]:
        yield events.SessionKnown(said.text("session_id"))
        if said.of("usage") or said.of("modelUsage"):
            yield events.Spent(_consumed(said, self._before), total=True)
        for denial in said.each("permission_denials"):
            yield events.Denied(denial.text("tool_name"), events.summary(denial.raw("tool_input")))
        turns = said.whole("num_turns") or None
        if said.text("subtype") == "success" and said.raw("is_error") is False:
            if said.text("stop_reason") == "refusal":
                yield events.Ended(False, said.text("result"), Failure("REFUSED", said.text("result")), turns)
            else:
                yield events.Ended(True, said.text("result"), turns=turns)
        else:
            yield events.Ended(False, None, _failure(said), turns)


_CLAUDE_READERS: Final = {
    "system": ClaudeParser._system,
    "stream_event": ClaudeParser._partial,
    "assistant": ClaudeParser._assistant,
    "user": ClaudeParser._user,
    "result": ClaudeParser._result,
}


def _failure(said: Fields) -> Failure:
    errors = said.raw("errors")
    words = "; ".join(error for error in errors if isinstance(error, str)) if isinstance(errors, list) else ""
    message = said.text("result") or words or said.text("terminal_reason") or said.text("subtype") or "no reason given"
    if reason := _SUBTYPES.get(said.text("subtype")):
        return Failure(reason, f"stopped after {said.whole('num_turns')} turns: {message}")
    return failure(message, said.whole("api_error_status"))


def _tokens(usage: Fields) -> Tokens:
    """Tokens of one request: its input excludes what was cached."""
    cached, written = usage.number("cache_read_input_tokens"), usage.number("cache_creation_input_tokens")
    return Tokens(usage.number("input_tokens") + cached + written, usage.number("output_tokens"), cached, written)


def _consumed(said: Fields, before: Tokens) -> Tokens:
    """The whole run, helpers of it included: by model where it tells that.

    What it tells by model is of the run, or of the session with what was `before`: `usage` is always of the run.
    """
    own = _tokens(said.of("usage"))
    total = _by_model(said.of("modelUsage"))
    cost = said.cost("total_cost_usd")
    told = replace(own if total == Tokens() else total, cost_usd=cost)
    since = told.minus(before)
    return since if since.input >= own.input and since.output >= own.output else told


def _by_model(usage: Fields) -> Tokens:
    total = Tokens()
    for model in usage.values():
        cached, written = model.number("cacheReadInputTokens"), model.number("cacheCreationInputTokens")
        plain = model.number("inputTokens")
        total = total.plus(Tokens(plain + cached + written, model.number("outputTokens"), cached, written))
    return total


def _summed(line: bytes) -> Tokens | None:
    try:
        said = Fields(orjson.loads(line))
    except orjson.JSONDecodeError:  # it was killed as it wrote it: the next turn begins without it too
        return None
    return replace(_by_model(said.of("modelUsage")), cost_usd=said.cost("totalCostUSD"))


def _content(value: Any) -> str:
    if isinstance(value, str):
        return value
    return "".join(block.text("text") for block in Fields({"blocks": value}).each("blocks"))
