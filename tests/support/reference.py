"""The tables of the README that are made from the code, by name. `python -m tests.contract.test_readme` writes them."""

import ast
import inspect
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Final, Protocol

from executor_service import line_protocol
from executor_service.metrics.catalog import ALL as EXECUTOR_SERIES
from scheduler_service import errors
from scheduler_service.api.limits import LIMITS
from scheduler_service.authoring.bounds import BOUNDS
from scheduler_service.cli.service_options import EXECUTOR, SCHEDULER, Setting
from scheduler_service.metrics.catalog import ALL as SCHEDULER_SERIES
from scheduler_service.replay.policies import POLICIES, Policy
from scheduler_service.replay.states import EFFECT_TRANSITIONS, RUN_TRANSITIONS, EffectState, RunState, mermaid
from tests.support.invariants import INVARIANTS

ROOT: Final = Path(__file__).parents[2]
_JOURNAL_PROTO: Final = ROOT / "proto" / "backburner" / "journal" / "v1" / "journal.proto"


def _table(*header: str, rows: Iterable[Sequence[str]]) -> str:
    lines = ["| " + " | ".join(header) + " |", "|" + "---|" * len(header)]
    return "\n".join([*lines, *("| " + " | ".join(row) + " |" for row in rows)])


def _mermaid(drawn: str) -> str:
    return f"```mermaid\n{drawn}\n```"


def error_reasons() -> str:
    """Every `ErrorInfo.reason` with its code, what it means, and whether the same call may be sent again as it is."""

    def rows() -> Iterator[tuple[str, str, str, str]]:
        seen = set()
        for kind, (code, reason) in errors.STATUS.items():
            if reason in seen:
                continue
            seen.add(reason)
            meaning = " ".join((inspect.getdoc(kind) or "").split("\n\n")[0].split())
            again = f"after {kind.retry_after_s:g} s" if kind.retry_after_s else "no"
            yield f"`{reason}`", f"`{code.name}`", meaning, again

    return _table("reason", "code", "meaning", "send again", rows=rows())


def limits() -> str:
    """`GetServerInfo.limits`."""
    return _table("limit", "value", rows=((f"`{name}`", f"{value:,.10g}") for name, value in LIMITS.items()))


def process_bounds() -> str:
    """What process code writes, its bound in bytes, and what to do beyond it."""
    rows = ((what, f"{bound.bytes_max:,}", bound.instead) for what, bound in BOUNDS.items())
    return _table("process code writes", "bytes at most", "beyond it", rows=rows)


def effect_reasons() -> str:
    """Why effects and attempts do not succeed: the enum and its comments, from the proto."""
    body = re.search(r"enum EffectReason \{(.*?)\n\}", _JOURNAL_PROTO.read_text(), re.DOTALL)
    assert body is not None
    found = re.findall(r"((?:  // [^\n]*\n)+)  EFFECT_REASON_(\w+) = \d+;", body[1])
    meanings = [
        (name, " ".join(line.strip().removeprefix("// ") for line in text.splitlines())) for text, name in found
    ]
    return _table("reason", "meaning", rows=((f"`{name}`", meaning) for name, meaning in meanings[1:]))


def failure_policies() -> str:
    """What follows a failure, by its reason."""

    def row(name: str, policy: Policy) -> tuple[str, ...]:
        retried = "as the retry policy says" if policy.retried else "no"
        stops = {"": "", "EXECUTOR": "the harness on that executor", "ACCOUNT": "the harness in the namespace"}
        marks = ("yes" if policy.parks else "", "yes" if policy.fails_over else "")
        return f"`{name}`", retried, *marks, stops[policy.breaker]

    rows = [row(name, policy) for name, policy in POLICIES.items()]
    header = ("reason", "again with the same harness", "parks", "fails over", "breaker")
    return _table(*header, rows=[*rows, ("any other", "as the retry policy says", "", "", "")])


def settings() -> str:
    """Settings of both services: the variable, the default, the meaning. The flag is named like the variable."""

    def rows(service: str, known: Iterable[Setting]) -> Iterator[tuple[str, str, str, str]]:
        for setting in known:
            yield f"`{setting.variable}`", service, setting.default or "", setting.meaning

    both = (*rows("scheduler", SCHEDULER), *rows("executor", EXECUTOR))
    return _table("variable", "of", "default", "meaning", rows=both)


def metrics() -> str:
    """Every series of both services."""

    def rows(service: str, known: Iterable[MetricSeries]) -> Iterator[tuple[str, ...]]:
        for series in known:
            labels = ", ".join(series.labels)
            yield f"`{series.name}`", service, series.kind, labels, series.meaning

    both = (*rows("scheduler", SCHEDULER_SERIES), *rows("executor", EXECUTOR_SERIES))
    return _table("series", "of", "type", "labels", "meaning", rows=both)


class MetricSeries(Protocol):
    """A series of either service's catalog."""

    @property
    def name(self) -> str: ...
    @property
    def kind(self) -> str: ...
    @property
    def meaning(self) -> str: ...
    @property
    def labels(self) -> tuple[str, ...]: ...


def line_fields() -> str:
    """The fields of the line protocol, from its docstring."""
    text = line_protocol.__doc__ or ""
    _, found, rest = text.partition("fields that are not known are skipped:\n\n")
    assert found, "the docstring of the line protocol has no list of fields"
    return "```\n" + inspect.cleandoc("\n" + rest.partition("\n\nRules:")[0]) + "\n```"


def invariant_tests() -> str:
    """Which tests try to break which invariant, by file."""
    claims = _claims()
    rows = ((name, ", ".join(f"`{path}`" for path in sorted(claims[name]))) for name in INVARIANTS)
    return _table("", "tests", rows=rows)


def _claims() -> Mapping[str, set[str]]:
    claims: dict[str, set[str]] = {name: set() for name in INVARIANTS}
    for path in sorted((ROOT / "tests").rglob("test_*.py")):
        module = path.relative_to(ROOT).as_posix()
        tree = ast.parse(path.read_text(encoding="utf-8"))
        everywhere = [name for node in tree.body if isinstance(node, ast.Assign) for name in _marks(node.value)]
        for node in tree.body:
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and node.name.startswith("test_"):
                for name in {*everywhere, *(name for mark in node.decorator_list for name in _marks(mark))}:
                    claims[name].add(module)
    return claims


def _marks(node: ast.expr) -> list[str]:
    """Names in `pytest.mark.invariant("I2", ...)` anywhere in an expression."""
    calls = [
        call for call in ast.walk(node) if isinstance(call, ast.Call) and ast.unparse(call.func).endswith(".invariant")
    ]
    return [argument.value for call in calls for argument in call.args
            if isinstance(argument, ast.Constant) and isinstance(argument.value, str)]  # fmt: skip


#: Name of a generated part -> what makes it.
PARTS: Final[Mapping[str, Callable[[], str]]] = {
    "effect states": lambda: _mermaid(mermaid(EFFECT_TRANSITIONS, [EffectState.QUEUED, EffectState.WAITING])),
    "run states": lambda: _mermaid(mermaid(RUN_TRANSITIONS, [RunState.RUNNING])),
    "error reasons": error_reasons,
    "effect reasons": effect_reasons,
    "failure policies": failure_policies,
    "limits": limits,
    "process bounds": process_bounds,
    "settings": settings,
    "metrics": metrics,
    "line protocol": line_fields,
    "invariant tests": invariant_tests,
}


def with_parts(text: str) -> str:
    """A text with its generated parts as the code makes them."""
    for name, make in PARTS.items():
        begin = f"<!-- generated: {name} -->\n"
        before, found, rest = text.partition(begin)
        assert found, f"there is no place for the {name}"
        _, end, after = rest.partition("<!-- end -->")
        text = f"{before}{begin}{make()}\n{end}{after}"
    return text
