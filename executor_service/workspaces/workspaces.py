"""The workspaces of an executor: given to the attempts of effects that ask for one, taken back, removed by policy."""

import asyncio
import logging
import threading
import time
from collections.abc import Awaitable, Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any, Final, TypeVar

from executor_service import failpoints
from executor_service.assignment import NotStarted
from executor_service.harness.base import Attempt
from executor_service.harness.continuing import MADE_ANEW
from executor_service.harness.threads import Threads
from executor_service.keepers import Keepers
from executor_service.line_protocol import Report
from executor_service.outcome import Failure, Outcome
from executor_service.workspaces import records, sweep, trees
from executor_service.workspaces.git import Git, GitFailed, Stopped
from executor_service.workspaces.leases import Busy, Held
from executor_service.workspaces.trees import Asked, Tree

log = logging.getLogger(__name__)

T = TypeVar("T")
#: How often an attempt whose workspace is being made says that it goes on.
_PATIENCE_SECONDS: Final = 2.0
#: How long the look at a workspace may take when the attempt was asked to end: less than it has until it is given up.
_LATE_SECONDS: Final = 10.0
_SWEEP_SECONDS: Final = 3600.0
#: What progress says while a workspace is made.
_STEP: Final = "workspace"

Work = Callable[[Mapping[str, Any]], Awaitable[Outcome]]


class Workspaces:
    """Workspaces stand in `folder`, from one start of the executor to the next; `scratch` is this start's own."""

    def __init__(
        self,
        folder: Path,
        scratch: Path,
        threads_max: int,
        keepers: Keepers,
        *,
        kept_max: int,
        kept_days: float,
    ) -> None:
        self._folder = folder
        self._scratch = scratch
        self._threads = Threads(threads_max)
        self._keepers = keepers
        self._kept_max = kept_max
        self._kept_days = kept_days

    async def around(self, spec: Mapping[str, Any], kind: str, attempt: Attempt, work: Work) -> Outcome:
        """Does the work in the workspace that the spec asks for, and says in the outcome what became of it.

        Raises InvalidWork when the workspace cannot be had as asked, NotStarted when somebody else works in it.
        """
        asked = trees.asked_of(spec[kind], attempt.assignment)
        if asked is None:
            return await work(spec)
        stop = threading.Event()
        attempt.on_end(stop.set)
        try:
            tree = await self._open(asked, attempt, self._git(stop))
        except Stopped:
            return Outcome()
        except (GitFailed, OSError) as error:
            message = f"the workspace cannot be made: {error}"
            return Outcome().fail_as(Failure("SPAWN_FAILED", message, untouched=True))
        try:
            failpoints.hit("workspace", "made")
            anew = {} if tree.found or tree.asked.kind == records.DIRECTORY else {MADE_ANEW: str(tree.cwd)}
            outcome = await work({**spec, **anew, kind: {**spec[kind], "cwd": str(tree.cwd)}})
            outcome.workspace = await self._result(tree, attempt, outcome)
            failpoints.hit("workspace", "captured")
        finally:
            tree.close()
        return outcome

    def settled(self, workspace: Mapping[str, Any] | None) -> None:
        """The effect has settled, and its result is recorded: what shall not stay of its workspace goes."""
        if workspace is not None:
            tree = Path(workspace["path"])
            self._threads.submit(partial(_touch if workspace.get("kept") else self._drop, tree))

    async def run(self) -> None:
        """Sweeps now and then, until cancelled."""
        while True:
            try:
                await self._in_thread(self._sweep)
            except (OSError, RuntimeError) as error:
                log.warning("workspaces that were left are not looked at: %s", error)
            await asyncio.sleep(_SWEEP_SECONDS)

    async def _open(self, asked: Asked, attempt: Attempt, git: Git) -> Tree:
        try:
            held = await self._in_thread(partial(trees.hold, asked, self._folder))
            try:
                attempt.started(0)  # from here on it is no more refused, but for what only a look into git can tell
                tree = await self._patiently(partial(trees.open_tree, asked, git, self._folder, held), attempt, _STEP)
            except BaseException:
                held.close()
                raise
        except Busy as error:
            raise NotStarted(str(error)) from error
        try:
            await self._patiently(partial(trees.look_before, tree, git, self._scratch), attempt, _STEP)
        except BaseException:
            tree.close()
            raise
        return tree

    async def _result(self, tree: Tree, attempt: Attempt, outcome: Outcome) -> dict[str, Any]:
        ended = threading.Event()
        attempt.on_end(ended.set, over=lambda: True)
        late = ended.is_set()
        git = self._git(threading.Event(), time.monotonic() + _LATE_SECONDS) if late else self._git(ended)
        if tree.shadow is not None:
            tree.shadow = git.at(tree.root).knowing(**tree.shadow.env)
        succeeded = outcome.kind == "succeeded" and attempt.stands(outcome)
        return await self._patiently(partial(trees.result_of, tree, git, succeeded=succeeded), attempt)

    def _git(self, stop: threading.Event, until: float | None = None) -> Git:
        git = Git(self._folder, self._keepers, stop)
        return git if until is None else Git(self._folder, self._keepers, stop, until=until)

    async def _patiently(self, call: Callable[[], T], attempt: Attempt, step: str | None = None) -> T:
        """The call's answer; a long one is no silence of the attempt."""
        future = asyncio.ensure_future(self._in_thread(call))
        while not (await asyncio.wait({future}, timeout=_PATIENCE_SECONDS))[0]:
            attempt.report(Report(step=step))
        return future.result()

    async def _in_thread(self, call: Callable[[], T]) -> T:
        future = self._threads.submit(call)
        if future is None:
            raise RuntimeError("calls of git that do not end hold every thread: restart the executor")
        answer: T = await future
        return answer

    def _drop(self, tree: Path) -> None:
        if records.read(tree) is None:  # removed already, or never ours
            return
        try:
            held = Held(tree.with_name(f"{tree.name}.lock"))
        except Busy:
            return
        try:
            trees.drop(tree, records.read(tree), self._git(threading.Event()))
        except (GitFailed, OSError) as error:
            log.warning("workspace %s cannot be removed, it is left to the sweep: %s", tree, error)
            held.close()
        else:
            held.close(forget=True)

    def _sweep(self) -> None:
        git = self._git(threading.Event())
        removed = sweep.sweep(self._folder, git, kept_max=self._kept_max, age_max_s=self._kept_days * 86_400)
        if removed:
            log.info("%d workspaces that nobody needs any more were removed", removed)


def _touch(tree: Path) -> None:
    if records.read(tree) is not None:  # else a directory of the user's: what stands beside it is not ours
        records.touch(tree)
