"""Fields that nobody knows, and unions: nothing of an input is lost without a word, and the member that fits counts."""

import dataclasses
import enum
import typing
from typing import Any, Literal, NotRequired, TypedDict

import pytest
from pydantic import BaseModel, ConfigDict

import scheduler_service.authoring as bb
from scheduler_service.authoring import decoding
from scheduler_service.authoring.decoding import TYPED_DEPTH_MAX, Unknown, decode
from scheduler_service.authoring.values import InvalidValue, problems_of


@dataclasses.dataclass
class Leaf:
    size: int
    made: int = dataclasses.field(init=False, default=0)


class Options(TypedDict):
    depth: int
    leaf: NotRequired[Leaf]


@dataclasses.dataclass
class Spec:
    leaves: list[Leaf]
    options: Options | None = None
    by_name: dict[str, Leaf] = dataclasses.field(default_factory=dict)


async def takes(ctx: Any, /, spec: Spec, *more: Leaf, **named: Options) -> None: ...


process = bb.ProcessDefinition("takes", takes)


def problems(read: Any, *given: Any) -> list[tuple[str, str]]:
    with pytest.raises(InvalidValue) as caught:
        read(*given)
    return [(problem.path, problem.problem) for problem in problems_of(caught.value)]


# --- fields that nobody knows ----------------------------------------------------------------------------------------


def test_an_input_is_refused_for_a_field_that_is_unknown_at_any_depth() -> None:
    given = {
        "spec": {
            "leaves": [{"size": 1, "made": 3}, {"size": 1, "colour": "red"}],
            "options": {"depth": 1, "dept": 2, "leaf": {"size": 1, "x": 0}},
            "by_name": {"a": {"size": 1, "y": 0}},
            "leafs": [],
        },
        "more": [{"size": 1, "z": 0}],
        "named": {"depth": 1, "w": 0},
    }
    assert problems(process.bind_input, given) == [
        ("input.spec.leaves[1].colour", "unknown; Leaf has size, made"),
        ("input.spec.options.leaf.x", "unknown; Leaf has size, made"),
        ("input.spec.options.dept", "unknown; Options has depth, leaf"),
        ("input.spec.by_name.a.y", "unknown; Leaf has size, made"),
        ("input.spec.leafs", "unknown; Spec has leaves, options, by_name"),
        ("input.more[0].z", "unknown; Leaf has size, made"),
        ("input.named.w", "unknown; Options has depth, leaf"),
    ]


def test_what_process_code_passes_on_is_read_again() -> None:
    spec = Spec([Leaf(1)], {"depth": 1, "leaf": Leaf(2)}, {"a": Leaf(3)})
    args, kwargs = process.bind_input(process.input_object((spec, Leaf(4)), {"b": {"depth": 2}}))
    assert (args, kwargs) == ([spec, Leaf(4)], {"b": {"depth": 2}})


def test_arguments_of_functions_are_inputs_too_and_results_are_not() -> None:
    @bb.function(name="test.unknown_fields")
    def sized(leaf: Leaf) -> Leaf:
        return leaf

    call = bb.functions()["test.unknown_fields"]
    more = {"size": 1, "colour": "red"}
    assert problems(call.decode_arguments, [more], {}) == [("input.leaf.colour", "unknown; Leaf has size, made")]
    assert call.encode_result(more) == more
    assert decode(more, Leaf) == Leaf(1)  # a newer function may return more than this process knows


def test_models_keep_their_own_config() -> None:
    class Loose(BaseModel):
        size: int

    class Strict(BaseModel):
        model_config = ConfigDict(extra="forbid")
        size: int

    more = {"size": "1", "colour": "red"}
    assert decode(more, Loose, unknown=Unknown.REFUSED) == Loose(size=1)
    assert problems(lambda: decode(more, Strict)) == [("value.colour", "Extra inputs are not permitted")]


# --- unions ----------------------------------------------------------------------------------------------------------


@dataclasses.dataclass
class Circle:
    kind: Literal["circle"]
    radius: float


class Square(TypedDict):
    kind: Literal["square"]
    side: float


@dataclasses.dataclass
class Small:
    size: int = 0


@dataclasses.dataclass
class Large:
    size: int
    weight: int
    note: str = ""


class Colour(enum.Enum):
    RED = "red"


class Model(BaseModel):
    size: int
    height: int = 0


Shape = Circle | Square


@pytest.mark.parametrize("unknown", [Unknown.SKIPPED, Unknown.REFUSED])
@pytest.mark.parametrize(
    ("value", "annotation", "expected"),
    [
        ({"kind": "circle", "radius": 1}, Shape, Circle("circle", 1.0)),
        ({"kind": "square", "side": 1}, Shape, {"kind": "square", "side": 1.0}),
        ({"size": 1, "weight": 2}, Small | Large, Large(1, 2)),
        ({"size": 1, "weight": 2}, Large | Small, Large(1, 2)),
        ({"size": 1}, Large | Small, Small(1)),
        ({"size": 1}, Small | Model, Small(1)),  # both read it exactly: the first
        ({"size": 1}, Model | Small, Model(size=1)),
        ({"size": 1, "height": 2}, Small | Model, Model(size=1, height=2)),
        ({"size": 1, "weight": 2}, Model | Large, Large(1, 2)),
        ({"size": "1"}, Model | dict[str, str], {"size": "1"}),
        ([{"size": 1, "weight": 2}], list[Small] | list[Large], [Large(1, 2)]),
        ({"a": {"size": 1, "weight": 2}}, dict[str, Small | Large], {"a": Large(1, 2)}),
        ("red", int | Colour | str, Colour.RED),
        ("blue", int | Colour | str, "blue"),
        (True, int | bool, True),
        (None, Small | None, None),
        ({}, Small | None, Small()),
    ],
)
def test_the_member_that_reads_exactly_is_taken(value: Any, annotation: Any, expected: Any, unknown: Unknown) -> None:
    read = decode(value, annotation, unknown=unknown)
    assert (read, type(read)) == (expected, type(expected))


def test_when_no_member_reads_a_result_exactly_the_first_that_reads_it_is_taken() -> None:
    more = {"size": 1, "weight": 2, "new": 3}
    assert decode(more, Small | Large) == Small(1)
    assert decode({"kind": "circle", "radius": 1, "new": 2}, Shape) == Circle("circle", 1)
    assert problems(lambda: decode(more, Small | Large, unknown=Unknown.REFUSED)) == [
        ("value.weight", "as Small: unknown; Small has size"),
        ("value.new", "as Small: unknown; Small has size"),
        ("value.new", "as Large: unknown; Large has size, weight, note"),
    ]


def test_a_tag_decides_and_only_its_member_is_heard() -> None:
    def read(value: Any) -> Any:
        return decode(value, list[Shape], "input.shapes", unknown=Unknown.REFUSED)

    given = [{"kind": "circle", "radius": "x", "side": 1}, {"kind": "oval"}, {"kind": "square"}, {"side": 1}, 7]
    assert problems(read, given) == [
        ("input.shapes[0].radius", "expected a number, got text"),
        ("input.shapes[0].side", "unknown; Circle has kind, radius"),
        ("input.shapes[1].kind", "'oval' is none of 'circle', 'square'"),
        ("input.shapes[2].side", "missing; Square requires it"),
        ("input.shapes[3].kind", "as Circle: missing; Circle requires it"),
        ("input.shapes[3].radius", "as Circle: missing; Circle requires it"),
        ("input.shapes[3].side", "as Circle: unknown; Circle has kind, radius"),
        ("input.shapes[3].kind", "as Square: missing; Square requires it"),
        ("input.shapes[4]", "as Circle: expected an object, got the number 7"),
        ("input.shapes[4]", "as Square: expected an object, got the number 7"),
    ]


def test_every_member_says_why_it_does_not_fit() -> None:
    assert problems(lambda: decode({"a": 1}, int | list[int] | dict[str, str])) == [
        ("value", "as int: expected an integer, got an object"),
        ("value", "as list[int]: expected a list, got an object"),
        ("value.a", "as dict[str, str]: expected text, got the number 1"),
    ]


def test_keys_are_read_as_annotated() -> None:
    assert decode({"red": 1}, dict[Colour, int]) == {Colour.RED: 1}
    assert problems(lambda: decode({"blue": 1}, dict[Colour, int])) == [("value.blue", "'blue' is no Colour")]
    assert decode({"a": [1]}, typing.Dict) == {"a": [1]}  # noqa: UP006 - authors write it


@dataclasses.dataclass
class Left:
    left: int
    next: "Left | Right | None" = None


@dataclasses.dataclass
class Right:
    right: int
    next: "Left | Right | None" = None


def chain(length: int, last: Any) -> Any:
    value = last
    for _ in range(length):
        value = {"left": 1, "right": 1, "next": value}
    return value


@pytest.mark.parametrize("unknown", [Unknown.SKIPPED, Unknown.REFUSED])
def test_unions_within_unions_are_not_tried_over_and_over(unknown: Unknown, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each level is both, so that trying members without a memory would double the work with each of them."""
    tried = 0
    original = decoding._Reading._dataclass

    def counted(self: Any, value: Any, cls: type, path: str) -> Any:
        nonlocal tried
        tried += 1
        return original(self, value, cls, path)

    monkeypatch.setattr(decoding._Reading, "_dataclass", counted)
    with pytest.raises(InvalidValue):
        decode(chain(15, {"neither": 1}), Left | Right, unknown=unknown)
    assert tried < 16 * 16  # parts * members * annotations * ways to read; doubling would make it 2 ** 16


def test_typed_values_have_a_depth_that_does_not_hang_on_the_stack() -> None:
    value: Any = 1
    for _ in range(199):
        value = {"left": 1, "next": value}
    with pytest.raises(InvalidValue, match=f"nested deeper than {TYPED_DEPTH_MAX} levels of typed values"):
        decode(value, Left)
    decode(chain(TYPED_DEPTH_MAX // 2 - 1, {"left": 1}), Left)
    assert decode(value, Any) == value
