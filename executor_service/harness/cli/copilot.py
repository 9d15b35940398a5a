"""copilot: GitHub's CLI, `@github/copilot`.

Runs its native binary rather than the wrapper, prompt on stdin. SIGTERM ends its tools with it, and it exits with 0
then: success is its own `result` with code 0. It has no bound of turns, so the parser ends it, and no switch for how
often it tries a request again (5 times, up to 15 s). A new session has an id that is given to it, so that one which was
cut off can be gone on with. Tokens are in its session's file alone, one record for each request, where they are read.

`edit` and `read_only` leave out all tools but those for files, and `edit` writes in its directory only.

Options: `args` (list of further flags), `provider` (object: a provider of one's own, as `base_url`, `api_key`, `type`,
`wire_api`; each is COPILOT_PROVIDER_ and its name in capitals), `offline` (true: no network but that provider).
"""

import json
import os
import re
import uuid
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import orjson

from executor_service.assignment import InvalidWork
from executor_service.harness.cli import events
from executor_service.harness.cli.adapter import Adapter, Launch, Program, Task
from executor_service.harness.cli.events import Event, Fields, Tokens
from executor_service.harness.cli.failures import failure
from executor_service.harness.cli.options import Options, platform_binary
from executor_service.harness.cli.versions import is_before
from executor_service.outcome import Failure

_QUIET: Final = (
    "--no-auto-update", "--disable-builtin-mcps", "--no-ask-user", "--no-remote", "--no-color",
)  # fmt: skip
#: Since 1.0.102; a release before it does not start with what it does not know, and tells no tokens.
_NO_TELEMETRY: Final = ("1.0.102", "--disable-client-telemetry")
#: It runs what is installed, and not what it has updated itself to.
_OWN_RELEASE: Final = {"COPILOT_AUTO_UPDATE": "false"}
_LOOK: Final = "view,grep,glob,report_intent"
_PERMISSIONS: Final = {
    "full": ["--allow-all"],
    "edit": [f"--available-tools={_LOOK},create,edit,str_replace,insert,apply_patch", "--allow-all-tools"],
    "read_only": [f"--available-tools={_LOOK}"],
}
#: Tools that these leave out: whoever calls one is told that there is none of that name.
_LEFT_OUT: Final = ("bash", "create", "edit", "str_replace", "insert", "apply_patch")
#: What its configuration says of users; it is there without any, too. It is JSON with comments.
_USERS: Final = re.compile(
    rb'"(?:loggedInUsers|logged_in_users|lastLoggedInUser|last_logged_in_user)"\s*:\s*(?:[\[{]\s*["{]|"[^"])'
)
_CONFIG_BYTES_MAX: Final = 1 << 20
_SESSION: Final = re.compile(r"[0-9A-Za-z-]{8,64}")
_PROVIDER: Final = re.compile(r"[a-z][a-z_]{0,40}")


class Copilot(Adapter):
    """Runs GitHub Copilot."""

    name = "copilot"
    programs = ("copilot",)
    version_env = _OWN_RELEASE  # else it tells a newer one that it has fetched for this HOME
    provider = "github"
    credentials = (
        "COPILOT_GITHUB_TOKEN", "GH_TOKEN", "GITHUB_TOKEN", "GH_HOST", "COPILOT_GH_HOST", "COPILOT_HOME",
        "COPILOT_MODEL", "COPILOT_OFFLINE", "COPILOT_PROVIDER_BASE_URL", "COPILOT_PROVIDER_TYPE",
        "COPILOT_PROVIDER_API_KEY",
        "COPILOT_PROVIDER_BEARER_TOKEN", "COPILOT_PROVIDER_WIRE_API", "COPILOT_PROVIDER_MODEL_ID",
        "COPILOT_PROVIDER_WIRE_MODEL", "COPILOT_PROVIDER_HEADERS", "HTTPS_PROXY",
    )  # fmt: skip
    logins = (".copilot/config.json",)
    own_folder = ("COPILOT_HOME", ".copilot")
    login_remedy = "run `copilot login`, or give the executor COPILOT_GITHUB_TOKEN"
    session_lost = re.compile(r"No session, task, or name matched")
    counts_in_files = True

    def login_files(self, env: Mapping[str, str], home: Path) -> Iterator[Path]:
        """Its configuration, when that names a user who is logged in."""
        return filter(_names_a_user, super().login_files(env, home))

    def locate(self, program: Path) -> Sequence[str]:
        """The native binary of the package that the wrapper belongs to."""
        return platform_binary(program, "@github", "copilot-{system}-{cpu}", "copilot")

    def launch(self, program: Program, task: Task) -> Launch:
        """One turn, headless; the prompt is on stdin, which ends with it."""
        options = Options(task, {"args", "provider", "offline"})
        argv = [*program.argv, "--output-format", "json", *_QUIET, *_PERMISSIONS[task.permissions]]
        since, flag = _NO_TELEMETRY
        argv += [] if is_before(program.version, since) else [flag]
        argv += options.flag("--model", task.model)
        argv.append(f"--resume={task.session_id}" if task.session_id else f"--session-id={_session(task)}")
        files = {}
        if task.mcp_servers:
            path = task.scratch / "mcp.json"
            files[path] = json.dumps({"mcpServers": dict(_servers(task.mcp_servers))})
            argv += ["--additional-mcp-config", f"@{path}"]
        env = {**_OWN_RELEASE, "COPILOT_HOME": str(_home(task)), **_provider(options)}
        prompt = f"{task.system_prompt}\n\n{task.prompt}" if task.system_prompt else task.prompt
        return Launch([*argv, *options.args()], env, prompt, files)

    def parser(self, task: Task, _before: Tokens) -> "CopilotParser":
        """Reads its events."""
        return CopilotParser(task)

    def session_exists(self, task: Task) -> bool:
        """Its file is in the home."""
        return _SESSION.fullmatch(task.session_id) is not None and _file(task, task.session_id).exists()

    def consumed(self, task: Task, session_id: str) -> Tokens | None:
        """What the records of the session add up to."""
        if not _SESSION.fullmatch(session_id) or not (path := _file(task, session_id)).exists():
            return None
        total = Tokens()
        with path.open("rb") as lines:
            for line in lines:
                if b'"session.usage_record"' in line:
                    total = total.plus(_tokens(_record(line)))
        return total


def _session(task: Task) -> str:
    """The id of the task's session. A new one's follows from its scratch folder and prompt."""
    if task.session_id:
        return task.session_id
    return str(uuid.uuid5(uuid.NAMESPACE_URL, f"{task.scratch}\n{task.prompt}"))


def _home(task: Task) -> Path:
    given = task.env.get("COPILOT_HOME") or os.environ.get("COPILOT_HOME")
    return Path(given) if given else task.home / ".copilot"


def _file(task: Task, session_id: str) -> Path:
    return _home(task) / "session-state" / session_id / "events.jsonl"


def _provider(options: Options) -> Mapping[str, str]:
    found = {}
    for name, value in options.table("provider").items():
        if not _PROVIDER.fullmatch(name) or isinstance(value, bool) or not isinstance(value, (str, int, float)):
            raise InvalidWork(f"option provider.{name}: expected a text by a name in small letters, not {value!r}")
        found[f"COPILOT_PROVIDER_{name.upper()}"] = str(
            int(value) if isinstance(value, float) and value.is_integer() else value
        )
    if options.flagged("offline"):
        found["COPILOT_OFFLINE"] = "true"
    return found


def _servers(servers: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    """MCP servers as it wants them: which of their tools may be used is said with each."""
    for name, server in servers.items():
        if not isinstance(server, dict):
            raise InvalidWork(f"mcp_servers.{name}: expected an object with `command` or `url`")
        yield name, {"type": "http" if "url" in server else "local", "tools": ["*"], **server}


def _record(line: bytes) -> Fields:
    try:
        said = Fields(orjson.loads(line))
    except orjson.JSONDecodeError:
        return Fields(None)
    return said.of("data").of("usage") if said.text("type") == "session.usage_record" else Fields(None)


def _tokens(usage: Fields) -> Tokens:
    """Tokens of one request. Its cost is in premium requests, not in dollars."""
    return Tokens(
        usage.number("inputTokens"), usage.number("outputTokens"), usage.number("cacheReadTokens"),
        usage.number("cacheWriteTokens"), usage.number("reasoningTokens"),
    )  # fmt: skip


class CopilotParser:
    """Reads the events of one run."""

    def __init__(self, task: Task) -> None:
        self._task = task
        self._known = False
        self._turns = 0
        self._wants_more = False
        self._aborted = False
        self._status = 0
        self._text: str | None = None
        self._failed: Failure | None = None
        self._tools: dict[str, events.Denied] = {}
        self._over = False

    def take(self, line: Any) -> Iterator[Event]:
        """One line."""
        said = Fields(line)
        reader = _COPILOT_READERS.get(said.text("type"))
        if reader is None or self._over:
            return
        if not self._known:
            self._known = True
            yield events.SessionKnown(_session(self._task), self._task.model)
        yield from reader(self, said, said.of("data"))

    def close(self, _status: int) -> Iterator[Event]:
        """`result` was its last word."""
        return iter(())

    def _turn(self, said: Fields, data: Fields) -> Iterator[Event]:
        if _of_helper(said, data):
            return
        self._turns += 1
        self._wants_more = False
        yield events.TurnStarted()

    def _turn_end(self, said: Fields, data: Fields) -> Iterator[Event]:
        bound = self._task.max_turns
        if bound and self._turns >= bound and self._wants_more and not _of_helper(said, data):
            self._over = True
            yield events.out_of_turns(self._turns)

    def _delta(self, said: Fields, data: Fields) -> Iterator[Event]:
        if not _of_helper(said, data):
            yield events.Text(data.text("deltaContent"), delta=True)

    def _message(self, said: Fields, data: Fields) -> Iterator[Event]:
        if _of_helper(said, data):
            return
        self._wants_more = bool(data.raw("toolRequests"))
        self._text = data.text("content")
        yield events.SessionKnown("", data.text("model"))
        if self._text:
            yield events.Text(self._text)

    def _tool(self, _said: Fields, data: Fields) -> Iterator[Event]:
        name = data.text("toolName")
        self._tools[data.text("toolCallId")] = events.Denied(name, events.summary(data.raw("arguments")))
        yield events.tool(data.text("toolCallId"), name, data.raw("arguments"))

    def _tool_end(self, _said: Fields, data: Fields) -> Iterator[Event]:
        ok, error = data.raw("success") is True, data.of("error")
        words = data.of("result").text("content") or error.text("message")
        yield events.ToolEnded(data.text("toolCallId"), ok, words)
        tool = self._tools.pop(data.text("toolCallId"), events.Denied(data.text("toolName")))
        left_out = tool.tool in _LEFT_OUT and error.text("message") == f"Tool '{tool.tool}' does not exist."
        if left_out or error.text("code") in ("denied", "rejected"):
            yield tool if tool.request else events.Denied(tool.tool, error.text("message"))

    def _call_failed(self, _said: Fields, data: Fields) -> Iterator[Event]:
        self._status = data.whole("statusCode")
        yield events.Trouble(data.text("errorMessage"), self._status)

    def _retry(self, _said: Fields, data: Fields) -> Iterator[Event]:
        reason = data.text("reason") or "the request failed"
        yield events.Retrying(f"{reason} ({self._status})" if self._status else reason, self._status)

    def _error(self, _said: Fields, data: Fields) -> Iterator[Event]:
        status = data.whole("statusCode")
        self._failed = failure(data.text("message"), status)
        yield events.Trouble(data.text("message"), status)

    def _idle(self, _said: Fields, data: Fields) -> Iterator[Event]:
        self._aborted = data.raw("aborted") is True
        return iter(())

    def _result(self, said: Fields, _data: Fields) -> Iterator[Event]:
        code = said.raw("exitCode")
        if isinstance(code, bool) or not isinstance(code, int):
            return
        self._over = True
        yield events.SessionKnown(said.text("sessionId"))
        if code == 0 and not self._aborted and self._text is not None:
            yield events.Ended(True, self._text)
        else:
            what = "it was aborted" if self._aborted else f"it ended with code {code} and gave no reason"
            yield events.Ended(False, None, self._failed or Failure("HARNESS_ERROR", what))


_COPILOT_READERS: Final = {
    "session.skills_loaded": lambda *_: iter(()),  # the first that it says
    "assistant.turn_start": CopilotParser._turn,
    "assistant.turn_end": CopilotParser._turn_end,
    "assistant.message_delta": CopilotParser._delta,
    "assistant.message": CopilotParser._message,
    "tool.execution_start": CopilotParser._tool,
    "tool.execution_complete": CopilotParser._tool_end,
    "model.call_failure": CopilotParser._call_failed,
    "assistant.turn_retry": CopilotParser._retry,
    "session.error": CopilotParser._error,
    "assistant.idle": CopilotParser._idle,
    "result": CopilotParser._result,
}


def _of_helper(said: Fields, data: Fields) -> bool:
    """True for the words of an agent that the agent has started."""
    return bool(said.text("agentId") or data.text("agentId") or data.text("parentToolCallId"))


def _names_a_user(config: Path) -> bool:
    try:
        with config.open("rb") as file:
            return bool(_USERS.search(file.read(_CONFIG_BYTES_MAX)))
    except OSError:  # there is none, or copilot could not read it either
        return False
