"""Processes and functions of the tests of bounds: what is written and returned at its limit, and past it."""

import hashlib
from functools import partial

import backburner as bb
from tests.e2e.processes import wait_for_file

#: A result of exactly the most bytes that fit, as JSON: its letters, their two quotes.
RESULT_BYTES_MAX = 16 << 20
KIB_64 = 64 << 10


def numbers() -> str:
    """A text of the most that fits, no two parts of it alike."""
    return "".join(f"{n:08x}" for n in range(RESULT_BYTES_MAX // 8))[: RESULT_BYTES_MAX - 2]


@bb.function(name="large.letters")
def letters() -> str:
    return numbers()


@bb.process("large.returns")
async def returns(ctx: bb.Context, folder: str) -> str:
    """Is given the largest result, and returns it as its own, with the digest reported on the way."""
    value = await ctx.run(letters(), key="letters", retry=bb.Retry(5, initial=0.05))
    ctx.report(label=hashlib.sha256(value.encode()).hexdigest())
    await ctx.run(wait_for_file(f"{folder}/release"), key="wait", retry=bb.Retry(5, initial=0.05))
    return value


@bb.process("large.writes")
async def writes(ctx: bb.Context, folder: str, caught: bool) -> list[str]:
    """Writes as much as it may, then more: what it is told decides how it goes on."""
    said = []
    for size in (KIB_64, KIB_64 + 1):
        data = {"d": "x" * (size - len('{"d":""}'))}
        for write in (partial(ctx.report, data=data), partial(ctx.log.info, "m", **data)):
            try:
                write()
            except bb.TooLarge as error:
                if not caught:
                    raise
                said.append(str(error))
    await ctx.run(wait_for_file(f"{folder}/release"), key="wait", retry=bb.Retry(5, initial=0.05))
    raise bb.Fail(said[0], {"said": said})
