"""Processes of the tests in which a database comes back without the end of what it had acknowledged."""

from pathlib import Path

import backburner as bb

#: Appends a line to `began-NAME`, and one to `overlaps` while an earlier child of the name is alive. Then it goes on
#: until there is `release-NAME`; it ends slowly when it is asked to.
_WORK = """
cd {folder}; trap 'sleep 1; exit 1' TERM
last=$(tail -n 1 began-{name} 2>/dev/null)
[ -n "$last" ] && kill -0 $last 2>/dev/null && echo {name} >> overlaps
echo $$ >> began-{name}
while [ ! -e release-{name} ]; do sleep 0.05; done
echo {name}
"""


@bb.function(name="failover.double")
def double(value: int) -> int:
    return 2 * value


def held(folder: str, name: str) -> bb.Effect[bb.ShellResult]:
    """Work on the executor `one` that ends when a test lets it."""
    return bb.shell(_WORK.format(folder=folder, name=name), label=name)


@bb.function(name="failover.goes_on")
def goes_on(folder: str) -> bool:
    return not (Path(folder) / "stop").exists()


@bb.process("goes_on")
async def one_after_another(ctx: bb.Context, folder: str) -> int:
    """Short effects until a test stops it; how many there were."""
    count = 1
    while await ctx.run(goes_on(folder), key=f"step/{count}"):
        count += 1
    return count


@bb.process("in_line")
async def in_line(ctx: bb.Context, folder: str, names: list[str]) -> dict[str, str]:
    """Effects that are all asked for at once and have one slot: they run one after the other, each at most once."""
    handles = {
        name: ctx.start(held(folder, name), key=name, kill_grace=5.0, executor_labels={"host": "one"}) for name in names
    }
    return {name: (await handle).stdout_tail.strip() for name, handle in handles.items()}


@bb.process("on_two")
async def on_two(ctx: bb.Context) -> int:
    """An effect for the executor `two`."""
    return int(await ctx.run(double(21), key="double", executor_labels={"host": "two"}))


@bb.process("signalled")
async def signalled(ctx: bb.Context) -> str:
    """Waits for the signal `go`; others only make its journal longer."""
    return str(await ctx.signal("go"))
