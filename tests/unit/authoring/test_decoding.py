"""Reading JSON by annotation, with the path of what does not fit."""

import dataclasses
import datetime as dt
import enum
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, NewType, NotRequired, TypedDict

import pytest

import scheduler_service.authoring as bb
from scheduler_service.authoring.decoding import decode
from scheduler_service.authoring.values import PROBLEMS_MAX, InvalidValue, problems_of


class Mode(enum.Enum):
    FAST = "fast"


class Options(TypedDict):
    depth: int
    label: NotRequired[str]


@dataclasses.dataclass
class Item:
    size: int
    tags: list[str] = dataclasses.field(default_factory=list)


@dataclasses.dataclass
class Report:
    items: list[Item]
    mode: Mode = Mode.FAST


UserId = NewType("UserId", int)


@pytest.mark.parametrize(
    ("value", "annotation", "expected"),
    [
        ({"items": [{"size": 1}], "new": 1}, Report, Report([Item(1)])),
        (None, int | None, None),
        ("a", int | str, "a"),
        ([1, "a"], tuple[int, str], (1, "a")),
        ([1, 2], tuple[int, ...], (1, 2)),
        ({"a": [1]}, dict[str, list[int]], {"a": [1]}),
        ([1], Sequence[float], [1.0]),
        (3, UserId, 3),
        (3, Annotated[int, "unit"], 3),
        ("b", Literal["a", "b"], "b"),
        ("fast", Mode, Mode.FAST),
        ("2026-01-02T03:04:05+00:00", dt.datetime, dt.datetime(2026, 1, 2, 3, 4, 5, tzinfo=dt.UTC)),
        (1.5, dt.timedelta, dt.timedelta(seconds=1.5)),
        ("a/b", Path, Path("a/b")),
        ({"depth": 1}, Options, {"depth": 1}),
        ({"any": 1}, Any, {"any": 1}),
        (1, float, 1.0),
    ],
)
def test_values_are_read_as_annotated(value: Any, annotation: Any, expected: Any) -> None:
    read = decode(value, annotation, "result")
    assert read == expected
    assert type(read) is type(expected)


@pytest.mark.parametrize(
    ("value", "annotation", "path"),
    [
        ({"items": [{"size": 1}, {"size": "x"}]}, Report, "result.items[1].size"),
        ({"items": [{}]}, Report, "result.items[0].size"),
        ({"items": [], "mode": "slow"}, Report, "result.mode"),
        (True, int, "result"),
        (1, bool, "result"),
        ({}, Options, "result.depth"),
        ([1], tuple[int, int], "result"),
        (1, Literal[True], "result"),
        ("x", dt.datetime, "result"),
        (None, str, "result"),
        (1, int.__add__, "result"),
    ],
)
def test_what_does_not_fit_is_named(value: Any, annotation: Any, path: str) -> None:
    with pytest.raises(InvalidValue) as caught:
        decode(value, annotation, "result")
    assert caught.value.path == path


async def process(ctx: Any, /, repo: str, files: list[str], *, depth: int = 1, **labels: str) -> Report:
    return Report([])


def test_inputs_are_bound_to_the_signature() -> None:
    definition = bb.ProcessDefinition("p", process)
    args, kwargs = definition.bind_input({"repo": "r", "files": ["a"], "depth": 2.0, "team": "x"})
    assert (args, kwargs) == ([], {"repo": "r", "files": ["a"], "depth": 2, "team": "x"})
    assert definition.input_object(["r", ["a"]], {"team": "x"}) == {"repo": "r", "files": ["a"], "team": "x"}


@pytest.mark.parametrize(
    ("given", "path"),
    [
        ({"files": []}, "input.repo"),
        ({"repo": "r", "files": [1]}, "input.files[0]"),
        ({"repo": "r", "files": [], "team": 1}, "input.team"),
    ],
)
def test_bad_inputs_name_the_field(given: dict[str, Any], path: str) -> None:
    with pytest.raises(InvalidValue) as caught:
        bb.ProcessDefinition("p", process).bind_input(given)
    assert caught.value.path == path


def test_everything_that_is_wrong_is_told_at_once() -> None:
    async def takes(
        ctx: Any, report: Report, options: Options, pair: tuple[int, int], *, maybe: Item | None, n: int
    ) -> None: ...

    given = {
        "report": {"items": [{"size": "x"}, {"size": 1, "tags": ["a", 2]}, {}], "mode": "slow"},
        "options": {"label": 1},
        "pair": ["a", 2],
        "maybe": {"size": None},
        "more": 1,
    }
    with pytest.raises(InvalidValue) as caught:
        bb.ProcessDefinition("p", takes).bind_input(given)
    assert [problem.path for problem in problems_of(caught.value)] == [
        "input.report.items[0].size",
        "input.report.items[1].tags[1]",
        "input.report.items[2].size",
        "input.report.mode",
        "input.options.depth",
        "input.options.label",
        "input.pair[0]",
        "input.maybe.size",
        "input.n",
        "input.more",
    ]
    assert str(caught.value).startswith("input.report.items[0].size: expected an integer, got text; input.report.items")


def test_what_is_told_at_once_is_bounded() -> None:
    with pytest.raises(InvalidValue) as caught:
        decode(["x"] * 100_000, list[int], "input")
    assert len(problems_of(caught.value)) == PROBLEMS_MAX
    assert str(caught.value).endswith("; and more")


def test_unknown_inputs_are_refused() -> None:
    async def plain(ctx: bb.Context, a: int) -> None: ...

    with pytest.raises(InvalidValue, match=r"input\.b: unknown; expected a"):
        bb.ProcessDefinition("p", plain).bind_input({"a": 1, "b": 2})


def test_arguments_and_results_of_functions_go_there_and_back() -> None:
    @bb.function(name="test.there_and_back")
    def there_and_back(item: Item, *rest: int, mode: Mode = Mode.FAST) -> Report:
        return Report([item], mode)

    effect = there_and_back(Item(3), 1, 2, mode=Mode.FAST)
    assert effect.work == {
        "function": "test.there_and_back",
        "args": [{"size": 3, "tags": []}, 1, 2],
        "kwargs": {"mode": "fast"},
    }
    definition = bb.functions()["test.there_and_back"]
    assert definition is there_and_back
    assert definition.decode_arguments(effect.work["args"], effect.work["kwargs"]) == (
        [Item(3), 1, 2],
        {"mode": Mode.FAST},
    )
    stored = definition.encode_result(Report([Item(1)]))
    assert stored == {"items": [{"size": 1, "tags": []}], "mode": "fast"}
    with pytest.raises(InvalidValue, match=r"result\.items: missing; Report requires it"):
        definition.encode_result({"mode": "fast"})
    with pytest.raises(TypeError):
        there_and_back()  # type: ignore[call-arg]
