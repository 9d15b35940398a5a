"""Lines of a stream in chunks: none is lost, none is split, and one that is too long costs no memory."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from executor_service.harness.lines import Lines


def split(chunks: list[bytes], bytes_max: int = 1000) -> tuple[list[bytes], int]:
    found: list[bytes] = []
    lines = Lines(found.append, bytes_max)
    for chunk in chunks:
        lines.feed(chunk)
    lines.close()
    return found, lines.skipped


@given(st.lists(st.binary(max_size=8).map(lambda b: b.replace(b"x", b"\n")), max_size=30))
def test_lines_do_not_depend_on_the_borders_of_chunks(chunks: list[bytes]) -> None:
    whole = b"".join(chunks)
    expected = [line.removesuffix(b"\r") for line in whole.split(b"\n")]
    assert split(chunks) == (expected if whole and not whole.endswith(b"\n") else expected[:-1], 0)


@pytest.mark.invariant("I11")
@pytest.mark.parametrize("size", [1, 7, 4096])
def test_a_line_that_is_too_long_is_skipped_and_the_next_is_read(size: int) -> None:
    data = b"first\n" + b"y" * 5000 + b"\nlast"
    chunks = [data[i : i + size] for i in range(0, len(data), size)]
    assert split(chunks) == ([b"first", b"last"], 1)
    assert split([b"y" * 1000, b"\n"])[0] == [b"y" * 1000], "the bound itself is kept"
    assert split([b"y" * 1001]) == ([], 1)
