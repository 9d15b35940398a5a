"""`bb.testing`: runs a process in a test, without Postgres, services or waiting.

    run = bb.testing.run(release, {"tag": "1.4"}, effects={"lint": lambda path: 0, "make": "ok", "approve": "yes"})
    assert run.result == "released"
    assert run.effects["approve"].state == "SUCCEEDED"

The process runs on the loop that production uses; time is virtual, so a day's sleep takes no time. **Effects are
answered by fakes**, found by the first of these names that is a key of `effects`: the effect's key, a pattern of keys
(`"lint/*"`), its name (a function's `module.name` or `name`, a command's `make`, a label, a process), its harness, its
kind (`shell`, `agent`, `approval`, `external`, `function`). An effect that has none ends the test with NoFake, but for
timers, and for child runs of a process that is defined: that process runs.

A fake is a value, or a callable that gets what the effect gets (a function's arguments, a command, an agent's or an
approval's prompt, a child run's input by name) and gives the result:

- for a command an exit code, its stdout as text, or a `bb.ShellResult`; for an approval the choice;
- `bb.testing.after(30, "ok")`: the same, 30 seconds later; `bb.testing.NEVER`: nothing, until its timeout or a cancel;
- an `async def` may `await asyncio.sleep(30)`, in virtual time; a generator yields its progress (`bb.Progress`, a
  percent, or the name of a step) and returns the result; an async one yields that too, as `bb.testing.result(...)`;
- what it raises fails the attempt: a `bb.EffectError` as what it is, AssertionError ends the test, anything else fails
  as a function that raised. It is called again for each attempt that the `retry` of the effect allows.

Timeouts, retries, groups and cancels are as in production; effects take no time of their own, and there is always room
for them. In the end every prefix of the journal is replayed, as after a crash at that point: code that does not ask for
the same again raises NotRepeatable.
"""

from scheduler_service.replay.testing.events import Cancel, Signal
from scheduler_service.replay.testing.fakes import NEVER, FakeMisused, NoFake, after, result
from scheduler_service.replay.testing.running import NotRepeatable, StillRunning, run
from scheduler_service.replay.testing.seen import EffectSeen, LogLine, NotCompleted, TestRun

__all__ = [
    "NEVER",
    "Cancel",
    "EffectSeen",
    "FakeMisused",
    "LogLine",
    "NoFake",
    "NotCompleted",
    "NotRepeatable",
    "Signal",
    "StillRunning",
    "TestRun",
    "after",
    "result",
    "run",
]
