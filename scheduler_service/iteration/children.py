"""Child runs, and runs that go on as new runs: what an append needs for them, and how they begin once it is committed.

The journal creates them in the commit of the row that asks for them, settles a child's effect in the commit of the
child's end, and answers with what it wrote into other journals than the one appended to.
"""

from collections.abc import Callable, Mapping, Sequence
from datetime import datetime
from typing import Any

from scheduler_service.api.ids import new_run_id
from scheduler_service.api.inputs import bind, input_digest
from scheduler_service.authoring.definitions import AnyProcess
from scheduler_service.errors import InvalidRequest
from scheduler_service.iteration.loop import Loop
from scheduler_service.iteration.runs import RunState
from scheduler_service.replay.events import Event


class Children:
    """Prepares the rows of an append, and begins the runs that it created."""

    def __init__(
        self,
        loop: Loop,
        processes: Mapping[str, AnyProcess],
        *,
        epoch_of: Callable[[str], int | None],
        created_elsewhere: Callable[[str], None],
    ) -> None:
        self._created_elsewhere = created_elsewhere
        self._loop = loop
        self._processes = processes
        self._epoch_of = epoch_of

    def prepare(self, run_id: str, rows: Sequence[dict[str, Any]]) -> None:
        """Adds to each row that asks for a run what the journal needs to create it, or why it cannot be."""
        for row in rows:
            if row["type"] == "RUN_CONTINUED":
                row["data"] = {**row["data"], "new_run_id": new_run_id(after=run_id)}
            elif row.get("x", {}).get("kind") == "RUN":
                row["x"] |= self._child(run_id, row)

    def _child(self, run_id: str, row: Mapping[str, Any]) -> dict[str, Any]:
        work = row["data"]["spec"]["run"]
        name, given = work["process"], work.get("input", {})
        process = self._processes.get(name)
        if process is None:
            known = ", ".join(sorted(self._processes))
            return {"refusal": _invalid(f"no process {name!r} is loaded (--process-module); there are: {known}")}
        try:
            bind(process, given)
        except InvalidRequest as error:
            return {"refusal": _invalid("; ".join(f"{item.field}: {item.problem}" for item in error.violations))}
        data = {"process": name, "input": given, "input_digest": input_digest(name, given),
                "parent_run_id": run_id, "parent_effect_id": row["effect_id"]}  # fmt: skip
        labels = row["data"]["spec"].get("labels")
        return {
            "child": {
                "run_id": new_run_id(after=run_id),
                "input_digest": data["input_digest"],
                "code_version": process.code_version,
                "data": data | ({"labels": labels} if labels else {}),
            }
        }

    def committed(self, detail: Mapping[str, Any], recorded_at: datetime, actor: str) -> None:
        """Begins runs that were created, if they are ours, and hears what was written into other journals."""
        for begun in detail.get("begun", ()):
            self._begin(begun, recorded_at, actor)
        for other in detail.get("elsewhere", ()):
            self._loop.hear_rows(other["run_id"], other["rows"], datetime.fromisoformat(other["recorded_at"]), actor)

    def _begin(self, begun: Mapping[str, Any], recorded_at: datetime, actor: str) -> None:
        run_id, data = begun["run_id"], begun["data"]
        epoch = self._epoch_of(run_id)
        if epoch is None or epoch != begun["epoch"]:
            self._created_elsewhere(run_id)  # whoever owns its shard adopts it
            return
        run = self._loop.runs.add(
            RunState(
                run_id=run_id,
                namespace=data["namespace"],
                process=data["process"],
                epoch=epoch,
                iteration=0,
                head=begun["head"],
            )
        )
        if begun["head"] == 1:
            self._loop.hear(run_id, [Event(1, "RUN_CREATED", recorded_at, 0, "", "", 0, actor, data)])
        else:
            self._loop.kick(run)


def _invalid(message: str) -> dict[str, str]:
    return {"reason": "EFFECT_REASON_INVALID_WORK", "message": message}
