"""Answers stay below what clients accept, and lose as little as possible for it."""

from typing import Any

import pytest
from google.protobuf.struct_pb2 import Struct, Value
from hypothesis import given, settings
from hypothesis import strategies as st

from backburner.journal.v1 import journal_pb2
from backburner.scheduler.v1 import scheduler_service_pb2 as pb
from scheduler_service.api import limits
from scheduler_service.api.sizes import fitted, within_answer
from scheduler_service.authoring.bounds import MESSAGE_BYTES_MAX, NEXT_INPUT, RESULT, sent_bytes, within
from scheduler_service.authoring.values import TooLarge, dumps


def failed(number: int, *, traceback: int = 0, message: int = 0, data: int = 0, labels: int = 0) -> pb.Effect:
    return pb.Effect(
        key=f"k{number}",
        spec=journal_pb2.EffectSpec(name="n"),
        error=journal_pb2.EffectError(
            reason=journal_pb2.EFFECT_REASON_RAISED, message="m" * message, traceback="t" * traceback
        ),
        progress=journal_pb2.Progress(percent=1, data=struct(d="d" * data)),
        labels={f"l{n}": "v" * 200 for n in range(labels)},
    )


def struct(**fields: Any) -> Struct:
    made = Struct()
    made.update(fields)
    return made


@pytest.mark.invariant("I11")
def test_a_thousand_failures_fit_into_one_answer() -> None:
    """Each with the longest traceback, message and data of progress, and all labels."""
    most = {"traceback": 8 << 10, "message": 4 << 10, "data": 16 << 10, "labels": limits.LABELS_MAX}
    effects = within_answer([failed(n, **most) for n in range(limits.WAIT_KEYS_MAX)])
    answer = pb.WaitEffectsResponse(effects=effects)
    assert answer.ByteSize() <= limits.ANSWER_BYTES_MAX
    assert [effect.key for effect in answer.effects] == [f"k{n}" for n in range(limits.WAIT_KEYS_MAX)]
    assert {effect.error.reason for effect in answer.effects} == {journal_pb2.EFFECT_REASON_RAISED}
    assert {effect.progress.percent for effect in answer.effects} == {1}


def test_what_is_left_out_is_as_little_as_possible() -> None:
    effects = [failed(n, traceback=1000) for n in range(10)]
    whole = pb.WaitEffectsResponse(effects=effects).ByteSize()
    assert pb.WaitEffectsResponse(effects=within_answer(effects)).ByteSize() == whole
    shortened = within_answer(effects, 4096 + 5000)
    assert not any(effect.HasField("spec") for effect in shortened), "cheap to get again"
    assert [bool(effect.error.traceback) for effect in shortened] == sorted(
        (bool(effect.error.traceback) for effect in shortened), reverse=True
    )
    assert shortened[0].error.traceback
    assert not shortened[-1].error.traceback


def test_one_that_does_not_fit_is_answered_without_what_its_journal_has() -> None:
    run = pb.Run(
        run_id="r",
        input=struct(a="x" * (2 << 20)),
        result=journal_pb2.Payload(value=Value(string_value="y" * (2 << 20))),
    )
    assert not fitted(run).HasField("input")
    assert run.HasField("result")


VALUES = st.recursive(
    st.floats(allow_nan=False, allow_infinity=False) | st.text(max_size=200),
    lambda inner: st.lists(inner, max_size=200) | st.dictionaries(st.text(max_size=200), inner, max_size=5),
    max_leaves=30,
)


@settings(max_examples=100, deadline=None)
@given(VALUES)
def test_the_size_of_a_message_is_known_without_making_it(value: Any) -> None:
    message = Value()
    message.struct_value.update({"v": value})
    assert sent_bytes({"v": value}, MESSAGE_BYTES_MAX) == message.ByteSize()


def test_what_stands_in_a_row_fits_into_a_message() -> None:
    numbers = [0] * 300_000
    assert len(dumps(numbers)) < NEXT_INPUT.bytes_max
    with pytest.raises(TooLarge, match="as a message"):
        within(numbers, "n", NEXT_INPUT)
    assert within(numbers, "n", RESULT) is numbers, "it is a blob"
    assert within(numbers[:250_000], "n", NEXT_INPUT)
