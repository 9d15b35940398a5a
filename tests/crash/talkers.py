"""A run whose children talk on both streams until a test releases them, with events between.

Whatever a talker writes it writes to files of its own too, so that a test can compare what a watcher got with what was
written, byte for byte, without asking the database. As a program: `python talkers.py FOLDER NAME`.
"""

import asyncio
import os
import random
import sys
import time
from pathlib import Path

#: Bytes of a stream before its talker only waits for the release: less than what is kept from the head of an output.
BYTES_MAX = 1_500_000
#: Bytes of a stream after which its talker slows down.
BRISK_BYTES = 500_000


def talk(folder: Path, name: str) -> int:
    """Talks at about 100 KB/s a stream, and much slower after a while, so that it has something to say for minutes:
    until whoever watches has seen a slow machine start the services again. The first attempt of `fails` ends with 1
    after a while, in mid-output.
    """
    attempt = len(list(folder.glob(f"{name}.*.1"))) + 1
    draw, written = random.Random(f"{name}/{attempt}"), {1: 0, 2: 0}
    with (folder / f"{name}.{attempt}.1").open("wb") as out, (folder / f"{name}.{attempt}.2").open("wb") as err:
        while not (folder / "release").exists():
            for stream, copy in ((1, out), (2, err)):
                if written[stream] < BYTES_MAX:
                    written[stream] += _say(stream, copy.fileno(), draw.randbytes(draw.randint(1, 4000)))
            if name == "fails" and attempt == 1 and written[1] > 100_000:
                return 1
            time.sleep(0.02 if written[1] < BRISK_BYTES else 0.2)
        for stream, copy in ((1, out), (2, err)):
            _say(stream, copy.fileno(), draw.randbytes(60_000))
    return 0


def _say(stream: int, copy: int, data: bytes) -> int:
    for place in (copy, stream):
        left = data
        while left:
            left = left[os.write(place, left) :]
    return len(data)


if __name__ == "__main__":
    sys.exit(talk(Path(sys.argv[1]), sys.argv[2]))

import backburner as bb  # noqa: E402  # the program above must start fast


@bb.function
def nod(n: int) -> int:
    """Work between the talk."""
    return n


@bb.process("talkers")
async def talkers(ctx: bb.Context, folder: str, names: list[str]) -> int:
    """Starts the talkers, and nods while they talk."""
    handles = [
        ctx.start(bb.shell([sys.executable, "-S", "-E", __file__, folder, name], label="talk"), key=f"talk/{name}",
                  retry=bb.Retry(2, initial=0.05))
        for name in names
    ]  # fmt: skip
    nods = 0
    while not all(handle.done() for handle in handles):
        await ctx.run(nod(nods), key=f"nod/{nods}")
        await asyncio.sleep(0.05)
        nods += 1
    await bb.all(handles)
    return nods
