"""Fits what a scenario wants done to the tools that a request offers."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from .dialect import Call, Json
from .scenario import Bash, Tool, Write

SHELLS: Final = ("Bash", "bash", "exec_command", "shell_command", "shell", "run_shell_command", "local_shell")
WRITERS: Final = ("Write", "write", "write_file", "create")
PATHS: Final = ("file_path", "filePath", "path")
CONTENTS: Final = ("content", "file_text")


def fitted(call: Bash | Write | Tool, tools: Mapping[str, Json]) -> Call | None:
    """The call by a tool of the request; None when none of them can do it."""
    if isinstance(call, Tool):
        return Call(call.name, call.arguments)
    wanted = SHELLS if isinstance(call, Bash) else WRITERS
    name = next((name for name in wanted if name in tools), None)
    if name is None:
        return _by_shell(call, tools) if isinstance(call, Write) else None
    known = tools[name].get("properties", {})
    arguments = _shell(call, known) if isinstance(call, Bash) else _write(call, known)
    return Call(name, {**_required(tools[name], arguments), **arguments})


def _by_shell(call: Write, tools: Mapping[str, Json]) -> Call | None:
    marker = "END_OF_FILE"
    text = call.content if call.content.endswith("\n") else f"{call.content}\n"
    return fitted(Bash(f"cat > '{call.path}' <<'{marker}'\n{text}{marker}"), tools)


def _shell(call: Bash, known: Mapping[str, Any]) -> dict[str, Any]:
    if "cmd" in known:
        return {"cmd": call.command}
    as_list = known.get("command", {}).get("type") == "array"
    return {"command": ["bash", "-lc", call.command] if as_list else call.command}


def _write(call: Write, known: Mapping[str, Any]) -> dict[str, Any]:
    path = next((name for name in PATHS if name in known), PATHS[0])
    content = next((name for name in CONTENTS if name in known), CONTENTS[0])
    return {path: call.path, content: call.content}


def _required(schema: Json, given: Mapping[str, Any]) -> dict[str, Any]:
    """Something for each further argument that the tool insists on."""
    types = {"boolean": False, "number": 30_000, "integer": 30_000}
    known = schema.get("properties", {})
    missing = [name for name in schema.get("required", []) if name not in given]
    return {name: types.get(known.get(name, {}).get("type"), "as the script says") for name in missing}
