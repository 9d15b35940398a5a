"""The schema of an answer's type: what is read by the type fits the schema, and what does not fit is not read."""

import dataclasses
import datetime as dt
import enum
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal, NotRequired, TypedDict

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

import scheduler_service.authoring as bb
from executor_service.harness.schema import violation
from scheduler_service.authoring.decoding import decode
from scheduler_service.authoring.schema import schema_of
from scheduler_service.authoring.schema_shape import PROBLEMS_MAX, schema_problems
from scheduler_service.authoring.values import InvalidValue


class Grade(enum.Enum):
    GOOD = "good"
    BAD = "bad"


@dataclasses.dataclass
class Finding:
    """One thing that was found."""

    file: Path
    line: int
    grade: Grade = Grade.BAD


@dataclasses.dataclass
class Tree:
    name: str
    children: list["Tree"] = dataclasses.field(default_factory=list)


class Review(TypedDict):
    findings: Sequence[Finding]
    verdict: Literal["approve", "reject"]
    score: NotRequired[float | None]


def test_a_class_is_described_with_what_it_says_of_itself() -> None:
    assert schema_of(Finding) == {
        "$ref": "#/$defs/Finding",
        "$defs": {
            "Finding": {
                "title": "Finding",
                "type": "object",
                "description": "One thing that was found.",
                "properties": {
                    "file": {"type": "string"},
                    "line": {"type": "integer"},
                    "grade": {"enum": ["good", "bad"]},
                },
                "required": ["file", "line"],
            }
        },
    }


@pytest.mark.parametrize("annotation", [Any, object])
def test_what_reads_anything_asks_for_nothing(annotation: Any) -> None:
    assert schema_of(annotation) == {}


FINDING = {"file": "a.py", "line": 3}


@pytest.mark.parametrize(
    ("annotation", "good", "bad"),
    [
        (str, ["", "x"], [1, None]),
        (int, [1, -1], ["1", 1.5, True, None]),
        (float, [1, 1.5], ["1", False]),
        (bool, [True], [1, "true"]),
        (None, [None], [0]),
        (str | None, ["x", None], [1]),
        (dt.datetime, ["2026-01-01T00:00:00"], [1]),
        (tuple[int, str], [[1, "a"]], [["a", 1], {}]),
        (tuple[int, ...], [[], [1, 2]], [["a"]]),
        (dict[str, int], [{}, {"a": 1}], [{"a": "b"}, []]),
        (Grade, ["good"], ["fine"]),
        (Finding, [FINDING, {**FINDING, "grade": "good", "more": 1}], [{}, {**FINDING, "line": "3"}, []]),
        (Tree, [{"name": "a", "children": [{"name": "b"}]}], [{"name": "a", "children": [{}]}]),
        (
            Review,
            [{"findings": [FINDING], "verdict": "approve"}, {"findings": [], "verdict": "reject", "score": None}],
            [{"findings": [FINDING]}, {"findings": [{}], "verdict": "approve"}, {"findings": [], "verdict": "maybe"}],
        ),
    ],
)
def test_schema_and_reading_agree(annotation: Any, good: list[Any], bad: list[Any]) -> None:
    schema = schema_of(annotation)
    for value in good:
        assert violation(value, schema) == ""
        decode(value, annotation)
    for value in bad:
        assert violation(value, schema)
        with pytest.raises(InvalidValue):
            decode(value, annotation)


def test_two_classes_of_one_name_are_told_apart() -> None:
    def other() -> Any:
        @dataclasses.dataclass
        class Tree:
            height: int

        return Tree

    @dataclasses.dataclass
    class Both:
        one: Tree
        two: Any

    Both.__annotations__["two"] = other()
    schema = schema_of(Both)
    assert violation({"one": {"name": "a"}, "two": {"height": 1}}, schema) == ""
    assert violation({"one": {"name": "a"}, "two": {"name": "a"}}, schema) == "answer.two.height is missing"


def test_models_bring_their_own_schema() -> None:
    class Model:
        @staticmethod
        def model_json_schema() -> dict[str, Any]:
            return {"$defs": {"Part": {"type": "integer"}}, "properties": {"part": {"$ref": "#/$defs/Part"}}}

    schema = schema_of(list[Model])
    assert violation([{"part": 1}], schema) == ""
    assert violation([{"part": "1"}], schema) == "answer[0].part is string, not integer"


@pytest.mark.parametrize(
    ("schema", "value", "said"),
    [
        ({"oneOf": [{"type": "integer"}, {"type": "number"}]}, 1, "fits 2 of the alternatives"),
        ({"allOf": [{"type": "object"}, {"required": ["a"]}]}, {}, "answer.a is missing"),
        ({"additionalProperties": False, "properties": {"a": {}}}, {"b": 1}, "answer.b must not be there"),
        ({"const": 1}, True, "none of 1"),
        ({"$ref": "https://example.org/schema"}, 1, "points outside of it"),
        ({"$ref": "#/$defs/None"}, 1, "points to nothing"),
        ({"$ref": "#"}, 1, "nested too deeply"),
        ({"type": ["string", "null"]}, 1, "answer is integer, not string or null"),
    ],
)
def test_other_schemas_are_followed_too(schema: dict[str, Any], value: Any, said: str) -> None:
    assert said in violation(value, schema)


@pytest.mark.parametrize(
    ("schema", "path"),
    [
        ({"properties": []}, "properties"),
        ({"properties": {"a": {"type": "strng"}}}, "properties.a.type"),
        ({"properties": {"a": {"type": []}}}, "properties.a.type"),
        ({"required": "x"}, "required"),
        ({"required": [1]}, "required"),
        ({"items": [{}]}, "items"),
        ({"items": {"enum": "ab"}}, "items.enum"),
        ({"prefixItems": {}}, "prefixItems"),
        ({"prefixItems": [{}, 1]}, "prefixItems[1]"),
        ({"anyOf": [{}, {"oneOf": []}]}, "anyOf[1].oneOf"),
        ({"allOf": {}}, "allOf"),
        ({"additionalProperties": {"required": {}}}, "additionalProperties.required"),
        ({"$ref": "https://example.org/schema"}, "$ref"),
        ({"properties": {"a": {"$ref": "#/$defs/None"}}}, "properties.a.$ref"),
        ({"$defs": {"A": {"$ref": "#/$defs/B"}, "B": {"$ref": "#/$defs/A"}}, "$ref": "#/$defs/A"}, "$defs.A.$ref"),
        ({"$ref": "#"}, "$ref"),
        ({"$ref": "#/deep", "deep": {"properties": 1}}, "$ref.properties"),
        ({"definitions": {"A": {"type": 1}}, "items": {"$ref": "#/definitions/A"}}, "definitions.A.type"),
        ([], ""),
        (True, ""),
    ],
)
def test_what_is_no_schema_is_refused_before_anything_runs(schema: Any, path: str) -> None:
    assert schema_problems(schema, "s")[0][0] == (f"s.{path}" if path else "s")
    with pytest.raises(bb.OptionError, match=r"agent: output_schema"):
        bb.agent("codex", prompt="p", output_schema=schema or [{}])  # type: ignore[arg-type]


def test_problems_are_named_together_and_not_without_end() -> None:
    schema = {"properties": {str(n): {"type": "x"} for n in range(100)}}
    assert len(schema_problems(schema, "s")) == PROBLEMS_MAX
    tree = {"$defs": {"T": {"properties": {"below": {"items": {"$ref": "#/$defs/T"}}}}}, "$ref": "#/$defs/T"}
    assert schema_problems(tree, "s") == [], "it may refer to itself, with a value in between"


def test_an_answer_is_not_checked_for_ever() -> None:
    twice = {str(n): {"anyOf": [{"$ref": f"#/$defs/{n + 1}"}] * 2} for n in range(40)}
    schema = {"$defs": twice | {"40": {"type": "null"}}, "$ref": "#/$defs/0"}
    assert schema_problems(schema, "s") == []
    assert violation(1, schema) == "answer has more alternatives than can be checked"


_SMALL = st.sampled_from([0, "a", "object", "#", "#/$defs/a", "#/properties/a", True, False])
_JSON = st.recursive(
    _SMALL,
    lambda inner: st.lists(inner, max_size=2)
    | st.dictionaries(
        st.sampled_from([
            "a", "$defs", "$ref", "type", "enum", "const", "properties", "required", "additionalProperties", "items",
            "prefixItems", "anyOf", "oneOf", "allOf",
        ]),
        inner,
        max_size=3,
    ),
    max_leaves=12,
)  # fmt: skip


@settings(max_examples=150, deadline=None)
@given(
    schema=st.dictionaries(st.sampled_from(["a", "$defs", "$ref", "properties", "items"]), _JSON, max_size=3),
    value=_JSON,
)
def test_executors_can_check_against_whatever_passes(schema: dict[str, Any], value: Any) -> None:
    assume(not schema_problems(schema, "s"))
    said = violation(value, schema)
    assert "points" not in said


def test_agents_are_asked_for_the_schema_of_their_output() -> None:
    assert bb.agent("codex", prompt="p", output=Finding).work["output_schema"] == schema_of(Finding)
    assert "output_schema" not in bb.agent("codex", prompt="p", output=Any).work
    own = {"type": "object"}
    assert bb.agent("codex", prompt="p", output=Finding, output_schema=own).work["output_schema"] == own
