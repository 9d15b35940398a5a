"""Canonical values: the same value live and after a way through jsonb."""

import dataclasses
import datetime as dt
import enum
import json
import math
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from scheduler_service.authoring.values import InvalidValue, canonical_json, digest, encode, normalise

TEXT = st.text(st.characters(codec="utf-8", exclude_characters="\x00"), max_size=8)
SCALARS = (
    st.none() | st.booleans() | TEXT | st.integers(-(2**53), 2**53) | st.floats(allow_nan=False, allow_infinity=False)
)
VALUES = st.recursive(SCALARS, lambda inner: st.lists(inner, max_size=4) | st.dictionaries(TEXT, inner, max_size=4))


def jsonb(value: Any) -> Any:
    """What Postgres gives back: keys by length then bytes, numbers as exact decimals without exponents."""
    if isinstance(value, dict):
        return {key: jsonb(value[key]) for key in sorted(value, key=lambda key: (len(key.encode()), key.encode()))}
    if isinstance(value, list):
        return [jsonb(item) for item in value]
    if isinstance(value, float):
        return json.loads(format(Decimal(repr(value)), "f"))
    return value


@pytest.mark.invariant("I8")
@given(VALUES)
def test_a_value_is_the_same_after_jsonb(value: Any) -> None:
    live = encode(value)
    stored = normalise(jsonb(live))
    assert stored == live
    assert repr(stored) == repr(live)  # types and key order too
    assert normalise(live) == encode(live) == live


@given(VALUES)
def test_equal_values_have_equal_bytes(value: Any) -> None:
    assert canonical_json(value) == canonical_json(normalise(jsonb(encode(value))))


class Colour(enum.Enum):
    RED = "red"


@dataclasses.dataclass
class Report:
    size: int
    path: Path
    colour: Colour = Colour.RED


def test_python_values_become_json() -> None:
    at = dt.datetime(2026, 1, 2, tzinfo=dt.UTC)
    given_ = {"z": Report(1, Path("a/b")), "a": (1.0, -0.0, 2.5, at), "d": dt.timedelta(minutes=1)}
    assert encode(given_) == {
        "a": [1, 0, 2.5, "2026-01-02T00:00:00+00:00"],
        "d": 60,
        "z": {"colour": "red", "path": "a/b", "size": 1},
    }
    assert list(encode(given_)) == ["a", "d", "z"]


@pytest.mark.parametrize(
    ("value", "path"),
    [
        (math.nan, "result"),
        ([1, {"size": 2**53 + 1}], "result[1].size"),
        ({"items": [{"size": math.inf}]}, "result.items[0].size"),
        ("a\x00b", "result"),
        ({"k\x00": 1}, "result"),
        (["\ud800"], "result[0]"),
        ({1: 2}, "result"),
        ({"s": {1, 2}}, "result.s"),
        ({"o": object()}, "result.o"),
        (b"bytes", "result"),
    ],
)
def test_what_cannot_be_stored_is_refused_with_its_path(value: Any, path: str) -> None:
    with pytest.raises(InvalidValue) as caught:
        encode(value, "result")
    assert caught.value.path.startswith(path)


def test_a_cycle_is_refused() -> None:
    cycle: list[Any] = []
    cycle.append(cycle)
    with pytest.raises(InvalidValue, match="cycle"):
        encode(cycle)


def test_the_digest_is_stable() -> None:
    """Recorded digests are compared for as long as journals are kept."""
    assert digest("make", {"shell": {"argv": ["make"], "check": True}}) == (
        "cea44d75b6d6687f1e633f7b85003aee06e29bec706ece06108f5e2e7145b746"
    )
