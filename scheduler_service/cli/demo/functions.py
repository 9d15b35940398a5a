"""Function effects of the demo: light work, done in the executor.

As an author would write them: plain functions with annotations. Files and clocks are fine here; a process has neither.
"""

from __future__ import annotations

import ast
import os
import re
import threading
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import backburner as bb
from scheduler_service.cli.demo.survey import Slow, Survey, survey_of

__all__ = ["Size", "Slow", "Survey", "Syntax", "answer", "marks", "pulse", "size", "survey", "syntax", "verdict"]

_FILE_BYTES_MAX: Final = 2_000_000
# Functions run in threads, and the parser of Python 3.11 counts its recursion for all threads together: two at a time
# end in "SystemError: AST constructor recursion depth mismatch".
_PARSER: Final = threading.Lock()
_MARK: Final = re.compile(rb"\b(TODO|FIXME|XXX)\b")


@dataclass(frozen=True)
class Size:
    """How large a file is. Files with NUL bytes have no lines."""

    lines: int
    bytes: int


@dataclass(frozen=True)
class Syntax:
    """What a parser says of a Python file."""

    ok: bool
    message: str = ""
    functions: int = 0
    longest: str = ""
    longest_lines: int = 0


@bb.function(name="demo.survey")
def survey(repository: str, files_max: int) -> Survey:
    """What the repository offers to check."""
    return survey_of(Path(repository), files_max)


@bb.function(name="demo.size")
def size(repository: str, file: str) -> Size:
    """Lines and bytes of a file."""
    data = _read(repository, file)
    return Size(0 if b"\x00" in data else len(data.splitlines()), len(data))


@bb.function(name="demo.marks")
def marks(repository: str, file: str) -> int:
    """Number of TODO, FIXME and XXX marks in a file."""
    return len(_MARK.findall(_read(repository, file)))


@bb.function(name="demo.syntax")
def syntax(repository: str, file: str) -> Syntax:
    """Parse a Python file and measure its functions."""
    try:
        with _PARSER:
            tree = ast.parse(_read(repository, file), filename=file)
    except (SyntaxError, ValueError) as error:
        return Syntax(ok=False, message=str(error))
    found = [node for node in ast.walk(tree) if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef))]
    lengths = [((node.end_lineno or node.lineno) - node.lineno + 1, node.name) for node in found]
    longest_lines, longest = max(lengths, default=(0, ""))
    return Syntax(ok=True, functions=len(found), longest=longest, longest_lines=longest_lines)


@bb.function(name="demo.pulse")
def pulse() -> float:
    """Load of the machine: something short, to see that the foreground is alive."""
    return round(os.getloadavg()[0], 2)


@bb.function(name="demo.verdict")
def verdict(key: str, exit_code: int | None, output: Any, stdout: str, stderr: str) -> str:
    """One sentence on what a background child found."""
    if isinstance(output, dict):
        found = ", ".join(f"{name} {_short(value)}" for name, value in output.items())
    else:
        lines = [line for line in (stdout or stderr).splitlines() if line.strip(" =") and not line.startswith("::")]
        found = lines[-1].strip("= ") if lines else "no output"
    return found if exit_code == 0 else f"exit code {exit_code}: {found}"


@bb.function(name="demo.answer")
async def answer(effect_id: str, choice: str) -> str:
    """Answer an approval by ResolveEffect, as a chat bot or a web page would."""
    import grpc.aio

    from backburner.scheduler.v1 import scheduler_service_pb2 as pb
    from backburner.scheduler.v1 import scheduler_service_pb2_grpc
    from scheduler_service.cli.dial_target import dial_target

    # The executor finds its scheduler by this variable; so does what runs in it.
    async with grpc.aio.insecure_channel(dial_target(os.environ["BACKBURNER_SCHEDULER"])) as channel:
        request = pb.ResolveEffectRequest(effect=pb.EffectName(effect_id=effect_id), actor="demo")
        request.succeeded.choice = choice
        await scheduler_service_pb2_grpc.SchedulerServiceStub(channel).ResolveEffect(request, timeout=10)
    return choice


def _short(value: Any) -> str:
    if isinstance(value, list):
        return ", ".join(map(str, value))
    return str(value) if not isinstance(value, str) or len(value) <= 16 else f"{value[:12]}…"


def _read(repository: str, file: str) -> bytes:
    with (Path(repository) / file).open("rb") as stream:
        return stream.read(_FILE_BYTES_MAX)
