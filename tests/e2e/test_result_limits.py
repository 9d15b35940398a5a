"""Results at the executors' limits and one byte past them, through both services, as a client sees them."""

import hashlib
from collections.abc import Callable

import pytest

from backburner.journal.v1 import journal_pb2 as journal
from backburner.scheduler.v1 import scheduler_service_pb2 as pb
from tests.support.client_program import ClientProgram, function, spec
from tests.support.services import Stack

INLINE, LINE, RESULT = 64 << 10, 1 << 20, 16 << 20  # bytes as JSON
QUOTES = 2


def returned(size: int) -> journal.EffectSpec:
    """A function that returns so many bytes."""
    return function("tests.e2e.processes.text_of", size - QUOTES)


def reported(size: int) -> journal.EffectSpec:
    """A child that reports so many bytes by the line protocol."""
    text = f"head -c {size - QUOTES} /dev/zero | tr '\\0' x"
    return spec(shell={"command_line": f"printf '::backburner {{\"result\": \"'; {text}; echo '\"}}'"})


@pytest.mark.parametrize(("most", "effect"), [(RESULT, returned), (LINE, reported)])
async def test_a_result_at_its_limit_is_kept_and_one_past_it_fails(
    stack: Stack, most: int, effect: Callable[[int], journal.EffectSpec]
) -> None:
    program = await ClientProgram.start(stack.client)
    await program.request({"most": effect(most), "more": effect(most + 1)})
    at, past = await program.wait("most", "more")
    assert (past.state, past.error.reason) == (journal.EFFECT_STATE_FAILED, journal.EFFECT_REASON_INVALID_RESULT)
    assert str(most) in past.error.message
    assert at.state == journal.EFFECT_STATE_SUCCEEDED, at
    ref = at.result.value.blob
    assert ref.size_bytes == most
    read = stack.client.ReadBlob(pb.ReadBlobRequest(run_id=program.run_id, digest=ref.digest))
    digest = hashlib.sha256()
    async for piece in read:
        digest.update(piece.data)
    assert digest.hexdigest() == ref.digest
    await program.finish(wait=True)


@pytest.mark.parametrize("effect", [returned, reported])
async def test_the_largest_result_that_stands_in_the_journal(
    stack: Stack, effect: Callable[[int], journal.EffectSpec]
) -> None:
    program = await ClientProgram.start(stack.client)
    await program.request({"most": effect(INLINE), "more": effect(INLINE + 1)})
    at, past = await program.wait("most", "more")
    assert at.result.value.value.string_value == "x" * (INLINE - QUOTES)
    assert past.result.value.blob.size_bytes == INLINE + 1
    await program.finish(wait=True)
