"""Captured output: every byte accounted for, text that can be stored, and bounded memory."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from executor_service.outcome import storable, tail_text
from executor_service.output import Capture


def kept(capture: Capture) -> list[tuple[int, bytes]]:
    head = []
    while (piece := capture.take(7)) is not None:
        head.append(piece)
    return [*head, *capture.take_tail()]


@given(st.lists(st.binary(max_size=40), max_size=30), st.integers(0, 60))
def test_head_and_tail_at_their_true_offsets(chunks: list[bytes], bytes_max: int) -> None:
    capture = Capture(1, bytes_max)
    whole = b""
    for chunk in chunks:
        assert capture.write(chunk) == len(whole)
        whole += chunk
    pieces = kept(capture)
    for offset, data in pieces:
        assert data == whole[offset : offset + len(data)]
    assert sum(len(data) for _, data in pieces) == min(len(whole), bytes_max)
    assert capture.total == len(whole)
    assert capture.omitted == max(0, len(whole) - bytes_max)


def test_single_bytes_do_not_cost_an_object_each() -> None:
    capture = Capture(1, 1_000_000)
    for _ in range(900_000):
        capture.write(b"x")
    assert len(capture._tail) < 500


@given(st.binary(max_size=300), st.integers(1, 100))
def test_tail_is_storable_text_within_bounds(raw: bytes, bytes_max: int) -> None:
    text = tail_text(raw, bytes_max)
    assert len(text.encode()) <= bytes_max
    assert "\x00" not in text


@given(st.text(alphabet="aé€😀", max_size=60), st.integers(1, 50))
def test_tail_cuts_no_character_in_half(text: str, bytes_max: int) -> None:
    tail = tail_text(text.encode(), bytes_max)
    assert text.endswith(tail)
    assert "\ufffd" not in tail
    assert len(tail.encode()) > min(bytes_max, len(text.encode())) - 4


@pytest.mark.parametrize(("given_", "stored"), [("a\x00b", "a\ufffdb"), ("\ud800", "?"), ("é" * 5000, "é" * 4096)])
def test_any_text_becomes_storable(given_: str, stored: str) -> None:
    assert storable(given_) == stored
