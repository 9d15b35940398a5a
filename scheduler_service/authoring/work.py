"""What an effect may ask for, field by field: checked at the line that builds it.

The twin, for Python values, of what the API checks of clients' specs (`api/effect_specs.py`), with the same limits.
What passes here can be read as the message that it is stored as, by every reader of the journal.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Final

from scheduler_service.authoring.bounds import NAME_BYTES_MAX
from scheduler_service.authoring.errors import OptionError
from scheduler_service.authoring.templates import ATTACHMENTS_MAX, SECRETS_MAX, secret_problems
from scheduler_service.authoring.values import encode

OUTPUT_BYTES_MAX: Final = 32 << 20
ITEMS_MAX: Final = 1_000
TURNS_MAX: Final = 10_000

#: Checks a value, given the place where it stands. Raises OptionError.
Check = Callable[[Any, str], None]


#: How a workspace comes to be, and what stays of it: names of the enums without their prefixes.
WORKSPACE_KINDS: Final = ("DIRECTORY", "WORKTREE", "COPY")
WORKSPACE_KEEPS: Final = ("ON_FAILURE", "ALWAYS", "NEVER")
_KIND, _KEEP = "WORKSPACE_KIND_", "WORKSPACE_KEEP_"


@dataclass(frozen=True, slots=True)
class Workspace:
    """Where an agent works: see `bb.worktree`, `bb.copy_of`, `bb.exclusive`. Raises OptionError."""

    kind: str
    source: str
    base: str = ""
    keep: str = "on_failure"

    def __post_init__(self) -> None:
        check_text(self.base, "workspace.base")
        if not isinstance(self.keep, str) or self.keep.upper() not in WORKSPACE_KEEPS:
            refuse("workspace: keep", "on_failure, always or never", self.keep)
        check_workspace(self.work(), "workspace")

    def work(self) -> dict[str, str]:
        """The journal's Workspace as proto3 JSON."""
        keep = self.keep.upper()
        given = {"base": self.base, "keep": "" if keep == WORKSPACE_KEEPS[0] else f"{_KEEP}{keep}"}
        return {"kind": f"{_KIND}{self.kind}", "source": self.source} | {k: v for k, v in given.items() if v}


def workspace_problems(kind: str, source: str, base: str) -> Mapping[str, str]:
    """What is wrong with a workspace, by field. `kind` is without prefix, UNSPECIFIED is the directory itself."""
    problems = {}
    if not source.startswith("/"):
        problems["source"] = "must be an absolute path on the executor"
    if base and kind != "WORKTREE":
        problems["base"] = "is for worktrees only"
    elif base.startswith("-"):
        problems["base"] = "must be the name of a branch, tag or commit"
    return problems


def check_workspace(value: Any, place: str) -> None:
    """The journal's Workspace as proto3 JSON. Raises OptionError."""
    _object(value, place)
    if set(value) - {"kind", "source", "base", "keep"}:
        refuse(place, "kind, source, base and keep", value)
    for field, prefix, names in (("kind", _KIND, WORKSPACE_KINDS), ("keep", _KEEP, WORKSPACE_KEEPS)):
        if value.get(field) not in (None, *(prefix + name for name in (*names, "UNSPECIFIED"))):
            refuse(f"{place}.{field}", ", ".join(names), value[field])
    source, base = value.get("source", ""), value.get("base", "")
    check_text(source, f"{place}.source")
    check_text(base, f"{place}.base")
    for field, problem in workspace_problems(str(value.get("kind", "")).removeprefix(_KIND), source, base).items():
        raise OptionError(f"{place}.{field}: {problem}, got {value.get(field)!r}")


def refuse(place: str, wanted: str, value: Any) -> None:
    """Raises OptionError with what was expected in a place, and what was given."""
    shown = repr(value)
    raise OptionError(f"{place}: expected {wanted}, got {shown if len(shown) <= 80 else shown[:77] + '...'}")


def check_text(value: Any, place: str) -> None:
    """Text; how much of it fits is bounded with the spec as a whole."""
    if not isinstance(value, str):
        refuse(place, "text", value)


def check_name(value: Any, place: str) -> None:
    """Text that names something."""
    check_text(value, place)
    if not value or len(value.encode()) > NAME_BYTES_MAX:
        refuse(place, f"1 to {NAME_BYTES_MAX} bytes of text", value)


def check_work(kind: str, name: Any, work: Mapping[str, Any]) -> None:
    """Checks the work of an effect of this kind, and the effect's name. Raises OptionError."""
    fields = _WORK.get(kind)
    if fields is None:
        raise OptionError(f"effect {name!r}: kind {kind!r} is none of {', '.join(_WORK)}")
    check_name(name, f"{kind}: name (label=)")
    encode(name, f"{kind}: name (label=)")
    for field, value in work.items():
        if field not in fields:
            raise OptionError(f"{kind}: unknown field {field!r}; there are: {', '.join(fields)}")
        fields[field](value, f"{kind}: {field}")
    check_secrets(work, kind)


def _flag(value: Any, place: str) -> None:
    if not isinstance(value, bool):
        refuse(place, "True or False", value)


def _object(value: Any, place: str) -> None:
    if not isinstance(value, dict):
        refuse(place, "an object (a dict)", value)


def _list(value: Any, place: str) -> None:
    if not isinstance(value, list):
        refuse(place, "a list", value)


def _argv(value: Any, place: str) -> None:
    _list(value, place)
    for index, item in enumerate(value):
        check_text(item, f"{place}[{index}]")
    if not value or not value[0]:
        refuse(place, "a program and its arguments", value)


def _names(value: Any, place: str) -> None:
    _list(value, place)
    if len(value) > ITEMS_MAX:
        raise OptionError(f"{place}: {len(value)} items; at most {ITEMS_MAX}")
    for index, item in enumerate(value):
        check_name(item, f"{place}[{index}]")


def _choices(value: Any, place: str) -> None:
    _names(value, place)
    if len(set(value)) < len(value):
        refuse(place, "distinct names", value)


def _environment(value: Any, place: str) -> None:
    _object(value, place)
    for name, text in value.items():
        if not name or "=" in name:
            raise OptionError(f"{place}: {name!r} is no name of a variable")
        check_text(text, f"{place}[{name!r}]")


def _attachments(value: Any, place: str) -> None:
    _list(value, place)
    if len(value) > ATTACHMENTS_MAX:
        raise OptionError(f"{place}: {len(value)} files; at most {ATTACHMENTS_MAX}")
    for index, item in enumerate(value):
        _object(item, f"{place}[{index}]")
        for field, text in item.items():
            if field not in ("name", "path"):
                refuse(f"{place}[{index}]", "name and path", item)
            check_text(text, f"{place}[{index}].{field}")
        if not item.get("path"):
            raise OptionError(f"{place}[{index}]: it has no path")


def _secrets(value: Any, place: str) -> None:
    _environment(value, place)
    if len(value) > SECRETS_MAX:
        raise OptionError(f"{place}: {len(value)} secrets; at most {SECRETS_MAX}")


def check_secrets(work: Mapping[str, Any], place: str) -> None:
    """Secrets together with the variables beside them. Raises OptionError."""
    for variable, problem in secret_problems(work.get("secrets", {}), work.get("env", {})):
        raise OptionError(f"{place}: secrets[{variable!r}] {problem}")


def _output_bytes(value: Any, place: str) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value <= OUTPUT_BYTES_MAX:
        refuse(place, f"0 to {OUTPUT_BYTES_MAX} bytes", value)


def _turns(value: Any, place: str) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value <= TURNS_MAX:
        refuse(place, f"0 to {TURNS_MAX} turns", value)


_WORK: Final[Mapping[str, Mapping[str, Check]]] = {
    "shell": {
        "argv": _argv, "command_line": check_text, "cwd": check_text, "env": _environment, "stdin": check_text,
        "check": _flag, "output_bytes_max": _output_bytes, "secrets": _secrets,
    },
    "function": {"function": check_name, "args": _list, "kwargs": _object},
    "agent": {
        "harness": check_name, "prompt": check_text, "cwd": check_text, "model": check_name, "env": _environment,
        "output_schema": _object, "options": _object, "workspace": check_workspace, "system_prompt": check_text,
        "max_turns": _turns, "permissions": check_name, "mcp_servers": _object, "inputs": _object,
        "attachments": _attachments, "secrets": _secrets,
    },
    "external": {"prompt": check_text, "choices": _choices, "assignees": _names, "data": _object},
    "run": {"process": check_name, "input": _object},
    "timer": {"fire_at": check_text},
}  # fmt: skip
