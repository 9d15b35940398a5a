"""Structured answers of CLIs: the schema goes with the prompt, the answer is found in the agent's last words.

No CLI's own support for schemas is used: they differ in what they accept, and several refuse what JSON schema allows.
An answer that does not fit is given back once, in the same session, with what is wrong with it.
"""

import json
from collections.abc import Iterator, Mapping
from typing import Any, Final

from executor_service.harness.schema import violation

#: Turns that mend an answer, at most.
REPAIRS_MAX: Final = 1
#: Places in a long answer where a value is looked for.
_STARTS_MAX: Final = 1_000


def asked(prompt: str, schema: Mapping[str, Any]) -> str:
    """The prompt with what the answer shall look like."""
    return (
        f"{prompt}\n\nWhen the work is done, answer with one JSON value and nothing else: no words around it, no code "
        f"fence. It must fit this JSON schema:\n{json.dumps(schema, ensure_ascii=False)}"
    )


def mend(problem: str, schema: Mapping[str, Any]) -> str:
    """The prompt of a turn that mends an answer."""
    return (
        f"Your last answer cannot be used: {problem}. Do no more work. Answer again, with one JSON value and nothing "
        f"else, that fits this JSON schema:\n{json.dumps(schema, ensure_ascii=False)}"
    )


def read(text: str, schema: Mapping[str, Any]) -> tuple[Any, str]:
    """The value in an answer, and what is wrong with it; nothing is wrong: an empty text."""
    first: tuple[Any, str] | None = None
    for value in _values(text):
        if not (problem := violation(value, schema)):
            return value, ""
        first = first or (value, problem)
    return first or (None, "it holds no JSON value")


def _values(text: str) -> Iterator[Any]:
    """The JSON values in a text: the whole of it, else each that begins somewhere, the last and largest first."""
    try:
        yield json.loads(text)
        return
    except (ValueError, RecursionError):
        pass
    decoder, found, at = json.JSONDecoder(), [], 0
    starts = [index for index, character in enumerate(text) if character in "{["][:_STARTS_MAX]
    for start in starts:
        if start < at:
            continue
        try:
            value, at = decoder.raw_decode(text, start)
        except (ValueError, RecursionError):
            continue
        found.append(value)
    yield from reversed(found)
