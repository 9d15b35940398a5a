"""Any other agent CLI, by configuration alone: it prints plain text, or JSON lines whose fields are named.

The file that BACKBURNER_HARNESS_COMMANDS names is JSON, an object by name of a harness:

    {"my-agent": {
        "argv": ["my-agent", "--headless", "--model={model}", "--dir", "{workspace}"],
        "prompt": "stdin",                            # or "argument": the last one; or "{prompt}" somewhere in argv
        "env": {"MY_AGENT_HOME": "{home}"},
        "credentials": ["MY_AGENT_KEY"],              # variables of the executor that it gets
        "resume": ["--resume", "{session}"],          # added to go on with a session; left out: it cannot
        "session_lost": "no such session",            # pattern of what it says of a session that it does not have
        "output": "json",                             # or "text": all of stdout is the answer
        "session": "session_id",                      # paths of fields in its lines, with dots
        "text": "message.text",
        "tool": "tool.name",                          # a tool that is used from this line to the next
        "tool_input": "tool.input",
        "turn": {"type": "turn"},                     # a line with these fields begins a turn
        "usage": {"input": "usage.in", "output": "usage.out", "cached": "usage.cached", "cost_usd": "usage.cost"},
        "usage_is_total": true,                       # each line has the total so far; false: what is added
        "success": {"type": "done", "ok": true},      # a line with these fields ends the work well
        "failure": {"type": "done", "ok": false},     # and one with these badly
        "error": "error.message",
        "exits": {"53": "MAX_TURNS"},                 # classes of failure by exit code
        "signal": "SIGINT",
        "silence_s": 300
    }}

In argv and env, `{model}`, `{system_prompt}`, `{max_turns}`, `{permissions}` (empty for full), `{mcp_servers}` (JSON)
and the like are filled in; a part of argv whose value is empty is left out. What an effect asks for and no place takes
is refused: it would do without. With output `text`, success is an exit with code 0; with `json`, a line like `success`
and an exit with code 0.
"""

import json
import re
import signal
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from executor_service.assignment import InvalidWork
from executor_service.errors import StartError
from executor_service.harness.cli import events
from executor_service.harness.cli.adapter import Adapter, Launch, Program, Silence, Task
from executor_service.harness.cli.events import Event, Fields, Tokens
from executor_service.harness.cli.failures import failure
from executor_service.harness.cli.options import Options
from executor_service.harness.cli.versions import Versions
from executor_service.harness.modules import RESERVED

_FIELDS: Final = {
    "argv", "prompt", "env", "credentials", "resume", "output", "session", "text", "tool", "tool_input", "turn",
    "usage", "usage_is_total", "success", "failure", "error", "exits", "signal", "silence_s", "session_lost",
}  # fmt: skip
_ASKED: Final = ("model", "system_prompt", "max_turns", "permissions", "mcp_servers")
_PLACE: Final = re.compile(rf"\{{(prompt|workspace|home|session|{'|'.join(_ASKED)})\}}")
_NAME: Final = re.compile(r"[a-z0-9][a-z0-9._-]{0,62}")


def load_commands(path: str) -> list["CommandAdapter"]:
    """The harnesses that a file describes; none without a file. Raises StartError that names what is wrong."""
    if not path:
        return []
    try:
        table = json.loads(Path(path).read_text())
    except (OSError, ValueError) as error:
        raise StartError(f"BACKBURNER_HARNESS_COMMANDS: {path!r} cannot be read: {error}") from error
    if not isinstance(table, dict):
        raise StartError(f"BACKBURNER_HARNESS_COMMANDS: {path!r} is no object by name of a harness")
    return [CommandAdapter(name, _checked(path, name, config)) for name, config in table.items()]


def _checked(path: str, name: str, config: Any) -> Mapping[str, Any]:
    problem = _problem(name, config)
    if problem:
        raise StartError(f"BACKBURNER_HARNESS_COMMANDS: {path!r}: {name!r}: {problem}")
    fields: Mapping[str, Any] = config
    return fields


def _problem(name: str, config: Any) -> str:
    """What is wrong with a harness's configuration; empty: nothing."""
    if not _NAME.fullmatch(name):
        return "a harness's name has small letters, digits, dots, dashes and underscores"
    if name in RESERVED:
        return "the executor's own harness has this name: give yours another"
    if not isinstance(config, dict):
        return "expected an object"
    if unknown := set(config) - _FIELDS:
        return f"unknown fields {sorted(unknown)}; there are: {', '.join(sorted(_FIELDS))}"
    if not _texts(config.get("argv")) or not config["argv"]:
        return "argv: expected a list of texts, the program first"
    if config.get("output", "json") == "json" and not config.get("success"):
        return "success: without the fields of the line that ends the work well, nothing could succeed"
    return next(filter(None, (_misfit(config, field, *kind) for field, kind in _KINDS.items())), "")


def _misfit(config: Mapping[str, Any], field: str, fits: Callable[[Any], bool], expected: str) -> str:
    return "" if field not in config or fits(config[field]) else f"{field}: expected {expected}"


def _texts(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(item, str) for item in value)


def _is_pattern(value: Any) -> bool:
    try:
        return isinstance(value, str) and bool(re.compile(value))
    except re.error:
        return False


def _one_of(*choices: str) -> tuple[Callable[[Any], bool], str]:
    return lambda value: value in choices, f"one of {', '.join(choices)}"


def _table(*known: str) -> tuple[Callable[[Any], bool], str]:
    """An object with texts; of these names, when there are any."""
    names = f" with {', '.join(known)}" if known else ""
    return lambda value: _is_table(value, known), f"an object of texts{names}"


def _is_table(value: Any, known: Sequence[str]) -> bool:
    return isinstance(value, dict) and all(
        isinstance(item, str) and (not known or name in known) for name, item in value.items()
    )


_KINDS: Final[Mapping[str, tuple[Callable[[Any], bool], str]]] = {
    "resume": (_texts, "a list of texts"),
    "credentials": (_texts, "a list of texts"),
    "prompt": _one_of("stdin", "argument", "argv"),
    "output": _one_of("json", "text"),
    "signal": _one_of("SIGTERM", "SIGINT", "SIGHUP", "SIGQUIT"),
    "env": _table(),
    "usage": _table("input", "output", "cached", "cost_usd"),
    "exits": (lambda value: _is_table(value, ()) and all(code.isdigit() for code in value), "classes by exit code"),
    "success": (lambda value: isinstance(value, dict), "an object"),
    "turn": (lambda value: isinstance(value, dict), "an object"),
    "failure": (lambda value: isinstance(value, dict), "an object"),
    "session": (lambda value: isinstance(value, str), "the path of a field"),
    "text": (lambda value: isinstance(value, str), "the path of a field"),
    "tool": (lambda value: isinstance(value, str), "the path of a field"),
    "tool_input": (lambda value: isinstance(value, str), "the path of a field"),
    "error": (lambda value: isinstance(value, str), "the path of a field"),
    "usage_is_total": (lambda value: isinstance(value, bool), "true or false"),
    "silence_s": (lambda value: type(value) in (int, float) and value > 0, "seconds above 0"),
    "session_lost": (_is_pattern, "a regular expression"),
}


class CommandAdapter(Adapter):
    """A CLI that a configuration describes."""

    provider = "unknown"
    versions = Versions()

    def __init__(self, name: str, config: Mapping[str, Any]) -> None:
        self.name = name
        self.provider = name
        self.programs = (config["argv"][0],)
        self.credentials = tuple(config.get("credentials", ()))
        self.first_signal = signal.Signals[config.get("signal", "SIGTERM")]
        self.silence = Silence(output=float(config.get("silence_s", Silence().output)))
        self.resumes = "resume" in config
        self.session_lost = re.compile(config["session_lost"]) if "session_lost" in config else None
        self.plain = config.get("output", "json") == "text"
        self.exits = {int(code): reason for code, reason in config.get("exits", {}).items()}
        self._config = config

    def launch(self, program: Program, task: Task) -> Launch:
        """Argv with its places filled in."""
        options = Options(task, {"args"})
        config = self._config
        rest = [*config["argv"][1:], *(config["resume"] if task.session_id else []), *options.args()]
        values = {
            "prompt": task.prompt, "model": task.model, "workspace": str(task.workspace), "home": str(task.home),
            "session": task.session_id, "system_prompt": task.system_prompt,
            "max_turns": str(task.max_turns) if task.max_turns else "",
            "permissions": "" if task.permissions == "full" else task.permissions,
            "mcp_servers": json.dumps(dict(task.mcp_servers)) if task.mcp_servers else "",
        }  # fmt: skip
        self._check_places((*rest, *config.get("env", {}).values()), values)
        argv = [*program.argv, *_filled(rest, values)]
        if config.get("prompt", "stdin") == "argument":
            argv.append(task.prompt)
        env = {name: _PLACE.sub(lambda found: values[found[1]], text) for name, text in config.get("env", {}).items()}
        return Launch(argv, env, task.prompt if config.get("prompt", "stdin") == "stdin" else None)

    def _check_places(self, parts: Sequence[str], values: Mapping[str, str]) -> None:
        """Raises InvalidWork for what the effect asks for without a place: the CLI would not hear of it."""
        places = {place for part in parts for place in _PLACE.findall(part)}
        for name in _ASKED:
            if values[name] and name not in places:
                raise InvalidWork(f"{name}: the command of harness {self.name} has no {{{name}}} in argv or env")

    def parser(self, task: Task, _before: Tokens) -> "TextParser | LinesParser":
        """Reads its output."""
        if self.plain:
            return TextParser(task.session_id)
        return LinesParser(self._config)


def _filled(parts: Sequence[str], values: Mapping[str, str]) -> Iterator[str]:
    """Parts with their places filled in; one whose place is empty goes, and with it a flag that stands before it."""
    kept: list[str] = []
    for part in parts:
        places = _PLACE.findall(part)
        if places and not any(values[place] for place in places):
            if part == f"{{{places[0]}}}" and kept and kept[-1].startswith("-"):
                kept.pop()
            continue
        kept.append(_PLACE.sub(lambda found: values[found[1]], part))
    yield from kept


class TextParser:
    """All of stdout is the answer."""

    def __init__(self, session_id: str) -> None:
        self._session_id = session_id
        self._lines: list[str] = []
        self._size = 0

    def take(self, line: Any) -> Iterator[Event]:
        """One line, whatever it is."""
        text = line if isinstance(line, str) else json.dumps(line, ensure_ascii=False)
        if self._size < 1024 * 1024:
            self._lines.append(text)
            self._size += len(text) + 1
        yield events.Text(text + "\n", delta=True)

    def close(self, status: int) -> Iterator[Event]:
        """An exit with code 0 is the success."""
        if status == 0:
            yield events.Ended(True, "\n".join(self._lines).strip())


class LinesParser:
    """JSON lines whose fields the configuration names."""

    def __init__(self, config: Mapping[str, Any]) -> None:
        self._config = config
        self._usage: Mapping[str, str] = config.get("usage", {})
        self._tools = 0
        self._in_tool = False

    def take(self, line: Any) -> Iterator[Event]:
        """One line."""
        said = Fields(line)
        if not said:
            return
        yield from self._tool(said)
        if _fits(said, self._config.get("turn", {})):
            yield events.TurnStarted()
        if session := self._text(said, "session"):
            yield events.SessionKnown(session)
        if text := self._text(said, "text"):
            yield events.Text(text)
        if any(_at(said, path) is not None for path in self._usage.values()):
            yield events.Spent(self._tokens(said), total=bool(self._config.get("usage_is_total", True)))
        error = self._text(said, "error")
        if _fits(said, self._config.get("failure", {})):
            yield events.Ended(False, None, failure(error))
        elif error:
            yield events.Trouble(error)
        elif _fits(said, self._config["success"]):
            yield events.Ended(True)

    def close(self, _status: int) -> Iterator[Event]:
        """A line was its last word."""
        return iter(())

    def _tool(self, said: Fields) -> Iterator[Event]:
        if self._in_tool:
            self._in_tool = False
            yield events.ToolEnded(str(self._tools), True)
        if name := self._text(said, "tool"):
            self._tools, self._in_tool = self._tools + 1, True
            given = _at(said, self._config["tool_input"]) if "tool_input" in self._config else None
            yield events.tool(str(self._tools), name, given)

    def _text(self, said: Fields, field: str) -> str:
        value = _at(said, self._config[field]) if field in self._config else None
        return value if isinstance(value, str) else ""

    def _tokens(self, said: Fields) -> Tokens:
        found = Fields({name: _at(said, path) for name, path in self._usage.items()})
        input_, output, cached = (found.number(name) for name in ("input", "output", "cached"))
        return Tokens(input_, output, cached, cost_usd=found.cost("cost_usd"))


def _at(said: Fields, path: str) -> Any:
    *way, last = path.split(".")
    for name in way:
        said = said.of(name)
    return said.raw(last)


def _fits(said: Fields, wanted: Mapping[str, Any]) -> bool:
    """True when each of the fields is there and the same; nothing fits what wants nothing."""
    return bool(wanted) and all(
        type(_at(said, path)) is type(value) and _at(said, path) == value for path, value in wanted.items()
    )
