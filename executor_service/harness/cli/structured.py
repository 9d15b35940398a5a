"""Structured answers of CLIs: the schema goes with the prompt, the answer is found in the agent's last words.

No CLI's own support for schemas is used: they differ in what they accept, and several refuse what JSON schema allows.
An answer that does not fit is given back once, in the same session, with what is wrong with it.
"""

import json
import math
import re
from collections.abc import Iterator, Mapping
from typing import Any, Final

from executor_service.harness.schema import violation

#: Turns that mend an answer, at most.
REPAIRS_MAX: Final = 1
#: Places in a long answer where a value is looked for.
_STARTS_MAX: Final = 1_000
#: Characters that are read for values, those that are read again for another start counted again.
_READ_MAX: Final = 8 * 1024 * 1024
#: What is left behind an error when the end of the text is what is wrong: numbers, names and escapes cut in two.
_CUT_OFF: Final = re.compile(r"[-+.\deE]*|\\?u?[\da-fA-F]*|t(ru?)?|f(a(ls?)?)?|n(ul?)?")


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
    """The JSON values in a text: the whole of it, else each that begins somewhere, the last and largest first.

    One that the end of the text cuts off is none, and its pieces are no answers.
    """
    text = text.strip()
    try:
        yield _DECODER.decode(text)
        return
    except (ValueError, RecursionError):
        pass
    found, at, left = [], 0, _READ_MAX
    starts = [index for index, character in enumerate(text) if character in "{["][:_STARTS_MAX]
    for start in starts:
        if start < at:
            continue
        if left < 0:
            break
        try:
            value, at = _DECODER.raw_decode(text, start)
        except json.JSONDecodeError as error:
            if _is_cut_off(error, text):
                break
            left -= error.pos - start
        except ValueError:  # a number that is none, somewhere
            left -= len(text) - start
        except RecursionError:
            break
        else:
            found.append(value)
    yield from reversed(found)


def _is_cut_off(error: json.JSONDecodeError, text: str) -> bool:
    return error.msg.startswith("Unterminated string") or _CUT_OFF.fullmatch(text, error.pos) is not None


def _no_number(name: str) -> float:
    raise ValueError(f"{name} is no number of JSON")


def _finite(digits: str) -> float:
    number = float(digits)
    return number if math.isfinite(number) else _no_number(digits)


_DECODER: Final = json.JSONDecoder(parse_constant=_no_number, parse_float=_finite)
