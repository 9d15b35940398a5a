"""Prompts as templates and secrets by name: what is wrong with them is found where they are asked for.

The executor fills the places in and looks files and secrets up: `executor_service/harness/prompts.py` has the syntax.
"""

import re
from collections.abc import Iterator, Mapping
from typing import Any, Final

ATTACHMENTS_MAX: Final = 64
SECRETS_MAX: Final = 64
_PLACE: Final = re.compile(r"\{\{\{\{|\{\{(.*?)\}\}|\{\{", re.DOTALL)
_SECRET: Final = re.compile(r"[A-Za-z0-9](?:[A-Za-z0-9._-]{0,126}[A-Za-z0-9])?")


def template_problems(template: str, inputs: Mapping[str, Any]) -> Iterator[str]:
    """What is wrong with a text whose places these inputs fill in."""
    for match in _PLACE.finditer(template):
        if match[0] == "{{{{":
            continue
        if match[1] is None:
            yield f"'{{{{' is not closed at character {match.start()}; '{{{{{{{{' is one of text"
        elif not _names(inputs, match[1].strip()):
            yield f"{{{{{match[1].strip()}}}}} names nothing in the inputs"


def _names(inputs: Mapping[str, Any], place: str) -> bool:
    value: Any = inputs
    for step in place.split("."):
        if isinstance(value, Mapping) and step in value:
            value = value[step]
        elif isinstance(value, list) and step.isdecimal() and int(step) < len(value):
            value = value[int(step)]
        else:
            return False
    return True


def secret_problems(secrets: Mapping[str, str], env: Mapping[str, str]) -> Iterator[tuple[str, str]]:
    """What is wrong with secrets, by variable. Names of variables and the kinds of values are checked elsewhere."""
    for variable, name in secrets.items():
        if not _SECRET.fullmatch(name):
            yield variable, "must be a secret's name: 1 to 128 of A-Z a-z 0-9 . _ -, a letter or digit at both ends"
        elif variable in env:
            yield variable, "is in env too"
