"""Models of pydantic as inputs and results: bound, encoded, and refused field by field."""

import pytest
from pydantic import BaseModel

import backburner as bb
from scheduler_service.authoring.values import InvalidValue, encode, problems_of


class Item(BaseModel):
    name: str
    size: int


class Spec(BaseModel):
    items: list[Item]
    level: int = 1


async def _takes(ctx: bb.Context, spec: Spec, n: int) -> Item:
    return spec.items[n]


takes = bb.ProcessDefinition("takes-a-model", _takes)


def test_a_model_goes_in_and_out() -> None:
    given = {"spec": {"items": [{"name": "a", "size": 2}]}, "n": 0}
    _args, bound = takes.bind_input(given)
    assert bound["spec"] == Spec(items=[Item(name="a", size=2)])
    assert takes.input_object((), bound) == {"spec": {"items": [{"name": "a", "size": 2}], "level": 1}, "n": 0}
    assert encode(Item(name="a", size=2)) == {"name": "a", "size": 2}


def test_every_wrong_field_is_named() -> None:
    with pytest.raises(InvalidValue) as refused:
        takes.bind_input({"spec": {"items": [{"name": 1, "size": "x"}, {}], "level": "y"}, "n": "q"})
    assert [problem.path for problem in problems_of(refused.value)] == [
        "input.spec.items[0].name", "input.spec.items[0].size", "input.spec.items[1].name", "input.spec.items[1].size",
        "input.spec.level", "input.n",
    ]  # fmt: skip
