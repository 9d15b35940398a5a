"""pi: `@mariozechner/pi-coding-agent`.

Runs `pi --mode json -p`, prompt on stdin. SIGTERM ends its tools with it. It exits with 0 whatever happens: what counts
is its last message. It has no bound of turns, so the parser ends it; no MCP; and no permissions but which tools there
are, so `edit` and `read_only` leave out the shell and all extensions.

Its settings of this turn are in a folder of their own, which points to everything else of the user's: logins, sessions,
skills. Who is logged in and gives no `retries`, `config` or `providers` has the user's folder itself, because copies of
pi must not renew one login at a time.

Options: `args` (list of further flags), `retries`, `provider`, `config` (object: on top of its settings.json),
`providers` (object: on top of those in its models.json).
"""

import json
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import orjson

from executor_service.assignment import InvalidWork
from executor_service.harness.cli import events
from executor_service.harness.cli.adapter import Adapter, Launch, Program, Task
from executor_service.harness.cli.events import Event, Fields, Tokens
from executor_service.harness.cli.failures import failure
from executor_service.harness.cli.options import Options, keys_of
from executor_service.outcome import Failure

_TOOLS: Final = {"edit": "read,grep,find,ls,edit,write", "read_only": "read,grep,find,ls"}
#: Tools that these leave out: whoever calls one is told that there is none of that name.
_LEFT_OUT: Final = ("bash", "edit", "write")
#: Files of its folder that a turn has as its own.
_OWN: Final = ("settings.json", "models.json")


class Pi(Adapter):
    """Runs pi."""

    name = "pi"
    programs = ("pi",)
    provider = "pi"
    many_providers = True
    credentials = (
        "ANTHROPIC_API_KEY", "ANTHROPIC_OAUTH_TOKEN", "OPENAI_API_KEY", "GEMINI_API_KEY", "GROQ_API_KEY", "XAI_API_KEY",
        "OPENROUTER_API_KEY", "MISTRAL_API_KEY", "DEEPSEEK_API_KEY", "AI_GATEWAY_API_KEY", "PI_CODING_AGENT_DIR",
    )  # fmt: skip
    logins = (".pi/agent/auth.json", ".pi/agent/models.json")
    own_folder = ("PI_CODING_AGENT_DIR", ".pi/agent")
    login_remedy = "run `pi` once and log in, or give the executor the key of a provider, as ANTHROPIC_API_KEY"

    def login_files(self, env: Mapping[str, str], home: Path) -> Iterator[Path]:
        """Its logins, and its models when one of their providers brings its own key."""
        for file in super().login_files(env, home):
            if file.name != "models.json" or _brings_key(file):
                yield file

    def keys(self, task: Task) -> Sequence[str]:
        """Those of the provider that is given, or that stands before the model's name."""
        first, _, model = task.model.partition("/")
        return keys_of(task.options.get("provider") or (first if model else ""), super().keys(task))

    def launch(self, program: Program, task: Task) -> Launch:
        """One turn, headless; the prompt is on stdin, which ends with it."""
        options = Options(task, {"args", "retries", "provider", "config", "providers"})
        if task.mcp_servers:
            raise InvalidWork("mcp_servers: pi has no MCP; give the effect another harness")
        argv = [*program.argv, "--mode", "json", "-p", "--offline"]
        argv += options.flag("--provider", options.text("provider")) + options.flag("--model", task.model)
        if task.permissions != "full":
            argv += ["--tools", _TOOLS[task.permissions], "--no-extensions"]
        argv += self._resumed(task)
        files = {}
        if task.system_prompt:
            path = task.scratch / "system-prompt.md"
            files[path] = task.system_prompt
            argv += ["--append-system-prompt", str(path)]
        env = {"PI_OFFLINE": "1", "PI_TELEMETRY": "0", "PI_CODING_AGENT_DIR": str(self._home(task))}
        if _has_own(task) or not (self._home(task) / "auth.json").exists():
            own = task.scratch / "pi"
            files |= _settings(self._home(task), own, options)
            env["PI_CODING_AGENT_DIR"] = str(own)
        return Launch([*argv, *options.args()], env, task.prompt, files)

    def parser(self, task: Task, _before: Tokens) -> "PiParser":
        """Reads its events."""
        return PiParser(task.max_turns)

    def session_exists(self, task: Task) -> bool:
        """Its file is among the home's sessions. One without an answer of the model has none yet."""
        return self._session(task) is not None

    def _resumed(self, task: Task) -> list[str]:
        """It works where a session was begun: another directory gets a copy of the session."""
        path = self._session(task) if task.session_id else None
        if path is None:
            return []
        with path.open("rb") as lines:
            cwd = _header(lines.readline(64 * 1024)).text("cwd")
        here = os.path.realpath(cwd) == os.path.realpath(task.workspace)
        return ["--session" if here else "--fork", str(path)]

    def _session(self, task: Task) -> Path | None:
        if not task.session_id or set(task.session_id) & set("/*?["):
            return None
        return next(iter((self._home(task) / "sessions").glob(f"*/*_{task.session_id}.jsonl")), None)

    @staticmethod
    def _home(task: Task) -> Path:
        given = task.env.get("PI_CODING_AGENT_DIR") or os.environ.get("PI_CODING_AGENT_DIR")
        return Path(given) if given else task.home / ".pi" / "agent"


def _has_own(task: Task) -> bool:
    return any(name in task.options for name in ("retries", "config", "providers"))


def _settings(base: Path, own: Path, options: Options) -> Mapping[Path, str]:
    """Makes a folder that points to everything in the user's; the files that are the turn's own."""
    retries = options.retries()
    retry = {"enabled": retries > 0, "maxRetries": retries, "provider": {"maxRetries": 0}}
    settings = {"retry": retry, "quietStartup": True, **options.table("config")}
    own.mkdir(parents=True, exist_ok=True, mode=0o700)
    (base / "sessions").mkdir(parents=True, exist_ok=True, mode=0o700)
    for entry in base.iterdir():
        if entry.name not in _OWN and not os.path.lexists(own / entry.name):
            (own / entry.name).symlink_to(entry)
    models = _read(base / "models.json")
    providers = {**_object(models.get("providers")), **options.table("providers")}
    return {
        own / "settings.json": json.dumps({**_read(base / "settings.json"), **settings}),
        own / "models.json": json.dumps({**models, "providers": providers}),
    }


def _read(path: Path) -> Mapping[str, Any]:
    """A file of the user's. Raises InvalidWork when there is one that is no JSON object."""
    try:
        found = orjson.loads(path.read_bytes())
    except FileNotFoundError:
        return {}
    except (OSError, orjson.JSONDecodeError) as error:
        raise InvalidWork(f"pi's {path} cannot be read: {error}") from error
    return _object(found)


def _brings_key(models: Path) -> bool:
    try:
        providers = _object(_read(models).get("providers"))
    except InvalidWork:  # pi could not read it either
        return False
    return any(_object(provider).get("apiKey") for provider in providers.values())


def _object(value: Any) -> Mapping[str, Any]:
    return value if isinstance(value, dict) else {}


def _header(line: bytes) -> Fields:
    try:
        return Fields(orjson.loads(line))
    except orjson.JSONDecodeError:
        return Fields(None)


class PiParser:
    """Reads the events of one run."""

    def __init__(self, max_turns: int) -> None:
        self._max_turns = max_turns
        self._turns = 0
        self._again = False
        self._last = Fields(None)
        self._failed: Failure | None = None
        self._requests: dict[str, str] = {}
        self._over = False

    def take(self, line: Any) -> Iterator[Event]:
        """One line."""
        said = Fields(line)
        reader = _PI_READERS.get(said.text("type"))
        if reader is not None and not self._over:
            yield from reader(self, said)

    def close(self, _status: int) -> Iterator[Event]:
        """With an error it ends as with a success: only that it does not go on tells that it was the last."""
        if self._failed is not None and not self._over:
            yield events.Ended(False, None, self._failed)

    def _session(self, said: Fields) -> Iterator[Event]:
        yield events.SessionKnown(said.text("id"))

    def _turn(self, _said: Fields) -> Iterator[Event]:
        self._last, self._failed = Fields(None), None
        if not self._again:  # the same turn once more is none
            self._turns += 1
            yield events.TurnStarted()
        self._again = False

    def _update(self, said: Fields) -> Iterator[Event]:
        event = said.of("assistantMessageEvent")
        if event.text("type") == "text_delta":
            yield events.Text(event.text("delta"), delta=True)

    def _message(self, said: Fields) -> Iterator[Event]:
        message = said.of("message")
        if message.text("role") != "assistant":
            return
        self._last = message
        yield events.SessionKnown("", message.text("model"))
        yield events.Spent(_tokens(message.of("usage")))
        if words := _words(message):
            yield events.Text(words)
        if message.text("stopReason") == "error":
            yield events.Trouble(message.text("errorMessage"))

    def _tool(self, said: Fields) -> Iterator[Event]:
        self._requests[said.text("toolCallId")] = events.summary(said.raw("args"))
        yield events.tool(said.text("toolCallId"), said.text("toolName"), said.raw("args"))

    def _tool_end(self, said: Fields) -> Iterator[Event]:
        ok = said.raw("isError") is not True
        words, tool = _words(said.of("result")), said.text("toolName")
        yield events.ToolEnded(said.text("toolCallId"), ok, words)
        request = self._requests.pop(said.text("toolCallId"), "")
        if not ok and tool in _LEFT_OUT and words == f"Tool {tool} not found":
            yield events.Denied(tool, request)

    def _turn_end(self, said: Fields) -> Iterator[Event]:
        wants_more = said.of("message").text("stopReason") == "toolUse"
        if wants_more and self._max_turns and self._turns >= self._max_turns:
            self._over = True
            yield events.out_of_turns(self._turns)

    def _agent_end(self, said: Fields) -> Iterator[Event]:
        last = list(said.each("messages"))[-1:]
        stop = last[0].text("stopReason") if last and last[0].text("role") == "assistant" else ""
        if stop == "stop" and self._last.text("stopReason") == "stop":
            self._over = True
            yield events.Ended(True, _words(self._last))
        else:
            self._failed = _failure(last[0] if stop else self._last)

    def _retry(self, said: Fields) -> Iterator[Event]:
        self._again, self._failed = True, None
        yield events.Retrying(said.text("errorMessage"), 0, said.number("delayMs") / 1000)

    def _retry_end(self, said: Fields) -> Iterator[Event]:
        if said.raw("success") is False:
            self._over = True
            yield events.Ended(False, None, failure(said.text("finalError")))


_PI_READERS: Final = {
    "session": PiParser._session,
    "turn_start": PiParser._turn,
    "message_update": PiParser._update,
    "message_end": PiParser._message,
    "tool_execution_start": PiParser._tool,
    "tool_execution_end": PiParser._tool_end,
    "turn_end": PiParser._turn_end,
    "agent_end": PiParser._agent_end,
    "auto_retry_start": PiParser._retry,
    "auto_retry_end": PiParser._retry_end,
}


def _failure(message: Fields) -> Failure:
    stop = message.text("stopReason")
    if stop == "error":
        return failure(message.text("errorMessage"))
    if stop == "length":
        return Failure("HARNESS_ERROR", "the answer was cut off at the output limit of the model")
    return Failure("HARNESS_ERROR", f"it stopped with {stop or 'no reason'} instead of an answer")


def _tokens(usage: Fields) -> Tokens:
    """Tokens of one request: its input excludes what was cached. Without a price it says that all was for nothing."""
    cached, written = usage.number("cacheRead"), usage.number("cacheWrite")
    cost = usage.of("cost").cost("total") or None
    tokens = Tokens(usage.number("input") + cached + written, usage.number("output"), cached, written)
    return tokens if tokens == Tokens() else events.priced(tokens, cost)


def _words(message: Fields) -> str:
    return "\n".join(block.text("text") for block in message.each("content") if block.text("type") == "text")
