"""Secrets in streams, texts and JSON: gone, wherever the pieces are cut, and nothing else is."""

import random

import pytest

from executor_service.masking import Masks

KEY = "sk-0123456789"
PEM = 'line one of it\nline "two" of it\n'


def masks(*values: str) -> Masks:
    made = Masks()
    made.add(values)
    return made


def test_a_secret_is_found_wherever_the_stream_is_cut() -> None:
    data = f"a{KEY}b{KEY}{KEY}".encode()
    for first in range(len(data)):
        for second in range(first, len(data)):
            stream = masks(KEY).stream()
            pieces = [stream.feed(data[:first]), stream.feed(data[first:second]), stream.feed(data[second:])]
            assert b"".join([*pieces, stream.close()]) == b"a***b******"


def test_what_only_begins_like_a_secret_comes_through_whole() -> None:
    stream = masks(KEY).stream()
    said = [stream.feed(b"x sk-01234"), stream.feed(b"nothing"), stream.feed(b" sk-0"), stream.close()]
    assert said == [b"x ", b"sk-01234nothing", b" ", b"sk-0"]


@pytest.mark.parametrize("seed", range(20))
def test_several_secrets_that_overlap_leave_no_whole_one(seed: int) -> None:
    random_ = random.Random(seed)
    secrets = ["abababab", "babababa", "abababababcd", "cdabababab"]
    text = "".join(random_.choice(["ab", "b", "a", "cd", *secrets]) for _ in range(60)).encode()
    stream, said, at = masks(*secrets).stream(), b"", 0
    while at < len(text):
        size = random_.randrange(1, 9)
        said, at = said + stream.feed(text[at : at + size]), at + size
    said += stream.close()
    assert not [secret for secret in secrets if secret.encode() in said]


def test_a_secret_of_several_lines_is_masked_line_by_line_and_as_json() -> None:
    hidden = masks(PEM)
    assert hidden.text(f"<{PEM}>") == "<***>"
    assert hidden.text('said: "line \\"two\\" of it"') == 'said: "***"'
    assert hidden.text("line one of it") == "***"


def test_json_stays_json() -> None:
    hidden = masks("12345678", KEY)
    given = b'{"sk-0123456789": [12345678, 1.5, true, null, "x sk-0123456789"]}'
    assert hidden.encoded(given) == b'{"***":["***",1.5,true,null,"x ***"]}'
    assert hidden.encoded(b'{"b": 1,  "a": 2}') == b'{"b": 1,  "a": 2}', "untouched when there is nothing in it"


def test_without_secrets_everything_passes_at_once() -> None:
    nothing = masks("short")
    assert (bool(nothing), nothing.stream().feed(b"shor"), nothing.text("short")) == (False, b"shor", "short")
