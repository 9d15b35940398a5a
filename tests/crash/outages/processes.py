"""What runs while an owner or the database goes away. Each start leaves a mark outside the database."""

import asyncio
import sys
from pathlib import Path
from typing import Any

import backburner as bb
from tests.crash.chaos.processes import mark, mark_path, note


@bb.function
async def hold(path: str, release: str) -> int:
    """Counts its start, and ends once the file `release` is there."""
    note(path)
    while not Path(release).exists():  # noqa: ASYNC110, ASYNC240 - a look at a local file, which is all that tells
        await asyncio.sleep(0.25)
    return 1


def held(path: str, release: str) -> str:
    """A command line that does the same."""
    return f"echo x >> '{path}'; while [ ! -e '{release}' ]; do sleep 1; done"


@bb.process("holds-many")
async def holds_many(ctx: bb.Context, folder: str, functions: int, shells: int) -> int:
    """So many effects in flight until they are released; answers with how many have ended well."""
    release = f"{folder}/release"

    async def child(key: str) -> int:
        work = bb.shell(held(mark_path(folder, ctx.run_id, key), release), label="held")
        return int((await ctx.run(work, key=key)).exit_code == 0)

    async def call(key: str) -> int:
        return int(await ctx.run(hold(mark_path(folder, ctx.run_id, key), release), key=key))

    calls = [call(f"function/{n}") for n in range(functions)]
    return sum(await asyncio.gather(*calls, *(child(f"shell/{n}") for n in range(shells))))


@bb.process("marks-many")
async def marks_many(ctx: bb.Context, folder: str, count: int) -> int:
    """Short effects, all at once."""
    paths = {f"mark/{n}": mark_path(folder, ctx.run_id, f"mark/{n}") for n in range(count)}
    return len(await asyncio.gather(*(ctx.run(mark(path, 0.05), key=key) for key, path in paths.items())))


#: Counts its start, and says when it is told to end.
_LEAF = """
import os, signal, sys, time
def told(*_):
    with open(sys.argv[2] + ".new", "w") as file:
        file.write(str(time.monotonic()))
    os.rename(sys.argv[2] + ".new", sys.argv[2])
    os._exit(0)
signal.signal(signal.SIGTERM, told)
with open(sys.argv[1], "a") as marks:
    marks.write("x\\n")
while True:
    signal.pause()
"""


@bb.process("cascades")
async def cascades(ctx: bb.Context, folder: str, depth: int, fan: int, leaves: int) -> None:
    """Leaves that never end, and child runs with the same below them."""
    open_: list[bb.EffectHandle[Any]] = []
    for n in range(leaves):
        began = mark_path(folder, ctx.run_id, f"leaf/{n}")
        leaf = [sys.executable, "-S", "-E", "-c", _LEAF, began, began.replace("/marks/", "/told/")]
        open_.append(ctx.start(bb.shell(leaf, label="leaf"), key=f"leaf/{n}"))
    for n in range(fan if depth else 0):
        kid = bb.run("cascades", folder=folder, depth=depth - 1, fan=fan, leaves=leaves)
        open_.append(ctx.start(kid, key=f"kid/{n}"))
    await bb.all(open_)
