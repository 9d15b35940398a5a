"""How each of the six processes is played through both services: begun, stopped in the middle, let go on, checked.

In the middle means: what `settled` names has settled, what `running` names has started and is held where it is.
"""

import uuid
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from types import MappingProxyType
from typing import Any, Final

from backburner.journal.v1 import journal_pb2
from backburner.scheduler.v1 import scheduler_service_pb2 as pb
from tests.support.checks import scripted, starts_and_holds
from tests.support.eventually import eventually
from tests.support.journals import SETTLING, JournalRow, journal_of, of_type
from tests.support.services import Stack, result_value

#: Reads of whole journals take time from what they wait for.
POLL_SECONDS: Final = 0.1


class Scenario:
    """One run of one process. `folder` is its own."""

    process = ""
    #: What the run returns.
    result: Any = None
    #: The run does not end like that when the executor is killed: its effects may be started once only.
    ends_with_its_executor = False

    def __init__(self, stack: Stack, folder: Path) -> None:
        folder.mkdir()
        self.stack, self.folder = stack, folder
        self.run_id = ""
        self.run = pb.Run()
        self.rows: list[JournalRow] = []
        #: The journal at the time of the kill.
        self.before: list[JournalRow] = []

    # --- what a scenario says ----------------------------------------------------------------------------------------

    def given(self) -> Mapping[str, Any]:
        """The input."""
        raise NotImplementedError

    def files(self) -> Mapping[str, Path]:
        """The file that each effect works on, by key."""
        raise NotImplementedError

    settled: Sequence[str] = ()
    running: Sequence[str] = ()

    async def go_on(self) -> None:
        """Lets what is held go on; here all at once."""
        for path in self.files().values():
            release(path)

    def check(self) -> None:
        """What else holds in the end."""

    # --- what is the same for all ------------------------------------------------------------------------------------

    async def begin(self) -> None:
        """Creates the run, with all that `running` names held."""
        given = self.given()
        for key in self.running:
            hold(self.files()[key])
        self.run_id = await self.stack.create(self.process, **given)

    async def reach_the_middle(self) -> None:
        """Waits until it is in the middle."""
        await eventually(self.is_in_the_middle, 120, lambda: f"{self.process}: {self.rows[-20:]}", POLL_SECONDS)

    async def is_in_the_middle(self) -> bool:
        """True once it is there."""
        self.rows = await journal_of(self.stack.dsn, self.run_id)
        files = self.files()
        return all(self.settlements(key) for key in self.settled) and all(
            starts(files[key]) and not self.settlements(key) for key in self.running
        )

    async def end(self) -> None:
        """Lets it go on to its end."""
        await self.go_on()
        self.run = await self.stack.result(self.run_id, 180)
        self.rows = await journal_of(self.stack.dsn, self.run_id)

    async def seen(self, kind: str, key: str | None = None, count: int = 1) -> None:
        """Waits until the journal has so many rows of the type."""

        async def there() -> bool:
            return len(of_type(await journal_of(self.stack.dsn, self.run_id), kind, key=key)) >= count

        await eventually(there, 120, f"{self.process}: {kind} of {key}", POLL_SECONDS)

    def settlements(self, key: str) -> list[JournalRow]:
        """The rows that settle an effect: one or none."""
        return of_type(self.rows, *SETTLING, key=key)

    def reason(self, key: str) -> str:
        """Why an effect did not succeed."""
        data = self.settlements(key)[0].data
        return str((data.get("error") or data)["reason"]).removeprefix("EFFECT_REASON_")

    def allowed(self, key: str) -> int:
        """How many attempts of an effect may have started."""
        lost = of_type(self.rows, "EFFECT_ATTEMPT_LOST", key=key)
        never = [row for row in lost if row.data.get("never_started")]
        return len(of_type(self.rows, "EFFECT_DISPATCHED", key=key)) - len(never)

    def returned(self) -> Any:
        """What the run returned; it must have completed."""
        assert self.run.state == journal_pb2.RUN_STATE_COMPLETED, self.run
        return result_value(self.run)


def hold(path: Path) -> None:
    """Work on the file waits from now on."""
    Path(f"{path}.hold").touch()


def release(path: Path) -> None:
    """Work on the file goes on."""
    Path(f"{path}.hold").unlink(missing_ok=True)


def starts(path: Path) -> int:
    """How often work on the file was started, as the outside world saw it."""
    marks = Path(f"{path}.starts")
    return len(marks.read_text().splitlines()) if marks.exists() else 0


class ReleaseCheck(Scenario):
    process = "release-check"
    result: Any = MappingProxyType({"exit_code": 2, "found": [{"problems": 1}, {"problems": 2}]})
    ends_with_its_executor = True

    def files(self) -> Mapping[str, Path]:
        sources = {f"lint/{self.folder / name}": self.folder / name for name in ("a.py", "b.py")}
        return {"tests": self.folder / "tests", **sources}

    def given(self) -> Mapping[str, Any]:
        *_, a, b = self.files()
        self.settled, self.running = [a], ["tests", b]
        (self.folder / "a.py").write_text("one\n")
        (self.folder / "b.py").write_text("one\ntwo\n")
        (self.folder / "Makefile").write_text(
            "test:\n"
            "\t@echo $$$$ >> tests.starts\n"
            """\t@echo '::backburner {"percent": 40, "step": "unit"}'\n"""
            "\t@while [ -e tests.hold ]; do sleep 0.02; done; exit 2\n"
        )
        return {"repo": str(self.folder), "files": [str(self.folder / "a.py"), str(self.folder / "b.py")]}

    async def is_in_the_middle(self) -> bool:
        return await super().is_in_the_middle() and bool(of_type(self.rows, "EFFECT_PROGRESS", key="tests"))

    async def go_on(self) -> None:
        tests, *_, b = self.files().values()
        release(b)
        if not await self._is_over():
            release(tests)

    async def _is_over(self) -> bool:
        """Waits for the report, which comes before the end of the tests; True when the run has failed instead."""

        async def there() -> list[JournalRow]:
            rows = await journal_of(self.stack.dsn, self.run_id)
            return of_type(rows, "RUN_REPORTED", "RUN_FAILED", "RUN_CLOSING")

        return (await eventually(there, 120, "no report", POLL_SECONDS))[0].type != "RUN_REPORTED"

    def check(self) -> None:
        [report] = of_type(self.rows, "RUN_REPORTED")
        assert report.data == {"label": "tests at 40"}, report.data


class Review(Scenario):
    """`codex` runs on the executor that is killed, the others on another one: what is left is a quorum."""

    process = "review"
    result = "approved by review/claude-code, review/gemini-cli"
    settled = ("review/claude-code",)
    running = ("review/codex", "review/gemini-cli")

    def files(self) -> Mapping[str, Path]:
        return {f"review/{name}": self.folder / name for name in ("claude-code", "codex", "gemini-cli")}

    def given(self) -> Mapping[str, Any]:
        scripts = {
            key.removeprefix("review/"): starts_and_holds(path) | {"value": {"approve": not key.endswith("codex")}}
            for key, path in self.files().items()
        }
        return {"diff": scripted("+ 1", **{"as": scripts})}


class Poll(Scenario):
    process = "poll"
    result = "all done"
    ends_with_its_executor = True
    running = ("long",)

    def files(self) -> Mapping[str, Path]:
        return {"long": self.folder / "long"}

    def given(self) -> Mapping[str, Any]:
        script = starts_and_holds(self.folder / "long")
        return {"prompt": scripted("Look around", steps=["plan", "build"], text="all done", **script), "every": 0}

    async def is_in_the_middle(self) -> bool:
        return await super().is_in_the_middle() and bool(of_type(self.rows, "RUN_REPORTED"))

    def check(self) -> None:
        reports = [row.data for row in of_type(self.rows, "RUN_REPORTED")]
        assert reports[-1] == {"percent": 50, "label": "build"}, reports
        assert not of_type(self.rows, "TIMER_SET")


class Deploy(Scenario):
    """The hour is two seconds."""

    process = "deploy"
    result = True
    settled = ("notify.remind#1",)

    def files(self) -> Mapping[str, Path]:
        return {}

    def given(self) -> Mapping[str, Any]:
        return {"tag": "1.4.2", "hour": 2}

    async def go_on(self) -> None:
        await self.seen("EFFECT_RESOLVED", "notify.remind#2")
        request = pb.ResolveEffectRequest(actor="ann")
        request.effect.run_id, request.effect.key = self.run_id, "approve"
        request.succeeded.choice = "yes"
        await self.stack.client.ResolveEffect(request, timeout=60, wait_for_ready=True)

    def check(self) -> None:
        assert self.settlements("approve")[0].data["resolved_by"] == "ann"
        asked = of_type(self.rows, "EFFECT_REQUESTED")
        reminders = [row.data["spec"]["function"]["args"][0] for row in asked if row.key.startswith("notify.remind#")]
        assert len(set(reminders)) == 1, "each with the id of the approval"
        assert starts(Path(self.stack.executor_env["REMINDERS"], reminders[0])) == len(reminders)


class OverFiles(Scenario):
    """500 files, of which one cannot be mended. The agents have no children, or this would be about Python's start."""

    process = "map"

    def files(self) -> Mapping[str, Path]:
        return {f"fix/{self.folder / name}": self.folder / name for name in (f"f{n}" for n in range(500))}

    def given(self) -> Mapping[str, Any]:
        paths = list(self.files().values())
        paths[7].write_text("impossible")
        keys = list(self.files())
        self.settled, self.running = [keys[0], keys[7]], keys[100:108]
        self.result = {key: f"mended {path.name}" for key, path in self.files().items()} | {keys[7]: "INVALID_WORK"}
        return {"files": [str(path) for path in paths], "harness": "instant"}

    def check(self) -> None:
        assert len({row.recorded_at for row in of_type(self.rows, "EFFECT_REQUESTED")}) == 1, "one commit"


class Supervisor(Scenario):
    """Each worker's first try comes to nothing; the second carries its session on. A killed one is restarted too."""

    process = "supervisor"

    def files(self) -> Mapping[str, Path]:
        place = Path(self.stack.scheduler_env["REMINDERS"])
        return {f"{name}/2": place / name for name in self._names()}

    def _names(self) -> list[str]:
        return [f"{name}-{self.folder.parent.name}" for name in ("ann", "bob")]

    def given(self) -> Mapping[str, Any]:
        self.running = list(self.files())
        return {"spec": {"names": self._names()}, "sessions": {}}

    async def go_on(self) -> None:
        await super().go_on()
        for name in self._names():
            await eventually(partial(self._has_succeeded, name), 60, f"{name} does not come to its end")
        request = pb.SignalRunRequest(run_id=self.run_id, name="scale", request_id=str(uuid.uuid4()))
        request.value.string_value = ""
        await self.stack.client.SignalRun(request, timeout=60, wait_for_ready=True)

    async def _has_succeeded(self, name: str) -> bool:
        rows = of_type(await journal_of(self.stack.dsn, self.run_id), "EFFECT_RESOLVED")
        return any(row.key.startswith(f"{name}/") and "SUCCEEDED" in row.data["state"] for row in rows)

    def allowed(self, key: str) -> int:
        """Each try but the first works on the file."""
        tries = of_type(self.rows, "CHILD_RUN_STARTED")
        return sum(row.key.split("/")[0] == key.split("/", maxsplit=1)[0] for row in tries) - 1

    def check(self) -> None:
        for name in self._names():
            first = self.settlements(f"{name}/1")[0].data
            session = first["result"]["session"]["session_id"]
            again = of_type(self.rows, "EFFECT_REQUESTED", key=f"{name}/2")[0].data["spec"]["run"]["input"]
            assert (first["error"]["reason"], again["session"]["session_id"]) == (
                "EFFECT_REASON_CHILD_RUN_FAILED", session,
            )  # fmt: skip


ALL: Sequence[type[Scenario]] = (ReleaseCheck, Review, Poll, Deploy, OverFiles, Supervisor)
