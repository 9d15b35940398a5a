"""Prompts as templates, and the files that belong to them.

A prompt with `inputs` is a template: `{{name}}` is the input of that name, `{{name.field}}` a field of it, `{{name.0}}`
an item. Text is put in as it is, everything else as JSON; what was put in is no template. `{{{{` stands for `{{`. A
place that names nothing is an error: nothing is left out silently, and there is nothing that could be computed.
"""

import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import orjson

from executor_service.assignment import InvalidWork
from executor_service.regular_file import NotRegular, opened

#: Largest file whose text is put into the prompt, and how much of all of them is.
INLINE_BYTES_MAX: Final = 32 * 1024
INLINE_ALL_BYTES_MAX: Final = 256 * 1024

_PLACE: Final = re.compile(r"\{\{\{\{|\{\{(.*?)\}\}|\{\{", re.DOTALL)


def render(template: str, inputs: Mapping[str, Any], where: str) -> str:
    """The text with its places filled in. Raises InvalidWork that names the place."""

    def fill(match: re.Match[str]) -> str:
        if match[0] == "{{{{":
            return "{{"
        if match[1] is None:
            raise InvalidWork(f"{where}: '{{{{' is not closed at character {match.start()}; '{{{{{{{{' is one of text")
        value = _look_up(inputs, match[1].strip(), where)
        return value if isinstance(value, str) else orjson.dumps(value, option=orjson.OPT_INDENT_2).decode()

    return _PLACE.sub(fill, template)


def _look_up(inputs: Mapping[str, Any], place: str, where: str) -> Any:
    value: Any = inputs
    for step in place.split("."):
        if isinstance(value, Mapping) and step in value:
            value = value[step]
        elif isinstance(value, list) and step.isdecimal() and int(step) < len(value):
            value = value[int(step)]
        else:
            raise InvalidWork(f"{where}: {{{{{place}}}}} names nothing: there is no {step!r} in the inputs")
    return value


def attached(prompt: str, attachments: Sequence[Mapping[str, Any]], directory: str) -> str:
    """The prompt with its files: small texts stand in it, all else is named. Raises InvalidWork that names the file."""
    pieces, left = [prompt], INLINE_ALL_BYTES_MAX
    for index, attachment in enumerate(attachments):
        path = _path(str(attachment.get("path") or ""), directory, f"attachments[{index}]")
        name = str(attachment.get("name") or path.name)
        text = _small_text(path, min(INLINE_BYTES_MAX, left), f"attachments[{index}]")
        if text is None:
            pieces.append(f"Attached: `{name}`. Read it at {path}")
        else:
            left -= len(text.encode())
            fence = "`" * max(3, 1 + max(map(len, re.findall("`+", text)), default=0))
            pieces.append(f"Attached: `{name}` ({path})\n{fence}\n{text.removesuffix(chr(10))}\n{fence}")
    return "\n\n".join(pieces)


def _path(path: str, directory: str, where: str) -> Path:
    if not path or "\0" in path:
        raise InvalidWork(f"{where}: it has no path")
    if not os.path.isabs(path) and not directory:  # noqa: PTH117 - it is text here
        raise InvalidWork(f"{where}: {path!r} is relative, and the effect has neither cwd nor workspace")
    return Path(directory) / path


def _small_text(path: Path, bytes_max: int, where: str) -> str | None:
    """The text of a file, when it is one and not too large. Raises InvalidWork when there is no such file."""
    try:
        if path.is_dir():
            return None
        with opened(path) as file:
            raw = file.read(bytes_max + 1)
    except NotRegular as error:
        raise InvalidWork(f"{where}: {str(path)!r} is {error}, neither a file nor a directory") from error
    except OSError as error:
        raise InvalidWork(f"{where}: {str(path)!r} cannot be read: {error.strerror}") from error
    if len(raw) > bytes_max or b"\0" in raw:
        return None
    try:
        return raw.decode()
    except UnicodeDecodeError:
        return None
