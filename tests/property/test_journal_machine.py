"""The journal's functions against a model of them: any sequence of calls, right, wrong, late or repeated.

The model is a dict a run and a dict an effect: what a person would say the protocol means, without SQL. After every
step each journal is checked as a whole, and its projections against the state tables.
"""

import dataclasses
import json
import uuid
from dataclasses import dataclass, field
from typing import Any, ClassVar, LiteralString

import psycopg
import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    Bundle,
    RuleBasedStateMachine,
    consumes,
    initialize,
    invariant,
    rule,
    run_state_machine_as_test,
)
from psycopg.rows import dict_row

from scheduler_service.journal.verify import READS, Recorded, recorded
from tests.integration.journal import checks, items

Row = dict[str, Any]
LIVE = ("DISPATCHED", "RUNNING", "CANCELLING")
SETTLED = ("SUCCEEDED", "FAILED", "CANCELLED", "TIMED_OUT")


@dataclass
class Effect:
    """What the model knows of an effect. `ended` are attempts that were failed or lost, and how."""

    run: str
    key: str
    kind: str
    max_attempts: int
    state: str
    attempt: int = 0
    starts: int = 0
    cancelled: bool = False
    started: bool = False
    ended: dict[int, str] = field(default_factory=dict)


@dataclass
class Run:
    """What the model knows of a run."""

    epoch: int
    iteration: int = 0
    state: str = "RUNNING"
    cancelled: bool = False
    ended: bool = False

    closing: bool = False

    @property
    def parked(self) -> bool:
        return self.state in ("HALTED", "PROCESS_ERROR")

    @property
    def expected(self) -> str:
        """What the owner's next append is answered with."""
        return "run_closed" if self.ended else "parked" if self.parked else "ok"


class JournalMachine(RuleBasedStateMachine):
    """Rules are calls; each says first what the model expects."""

    dsn: ClassVar[str] = ""
    runs = Bundle("runs")
    effects = Bundle("effects")
    repeatable = Bundle("repeatable")

    @initialize()
    def connect(self) -> None:
        self.connection: psycopg.Connection[Row] = psycopg.connect(self.dsn, autocommit=True, row_factory=dict_row)
        for table in ("runs", "run_heads", "effects", "run_groups", "dispatch_queue", "timers", "effect_output"):
            self.connection.execute(f"DELETE FROM backburner.{table}")  # type: ignore[call-overload, unused-ignore]
        self.connection.execute("UPDATE backburner.shards SET expires_at = '-infinity'")
        claimed = self.rows("SELECT * FROM backburner.claim_shards_v1(%s, '', 't', 3600, 16)", items.SCHEDULER)
        self.epochs = {row["shard"]: row["epoch"] for row in claimed}
        self.session_no = self.hello()
        self.model: dict[str, Run] = {}
        self.known: dict[tuple[str, str], Effect] = {}

    def teardown(self) -> None:
        if hasattr(self, "connection"):
            self.connection.close()

    # -- calls --------------------------------------------------------------------------------------------------

    def rows(self, statement: LiteralString, *parameters: Any) -> list[Row]:
        return self.connection.execute(statement, parameters or None).fetchall()

    def read(self, statement: LiteralString, run_id: str) -> list[Row]:
        return self.connection.execute(statement, {"run_id": run_id}).fetchall()

    def call(self, function: LiteralString, argument: Any) -> list[Row]:
        return self.rows(items.calling(function), json.dumps(argument))

    def one(self, function: LiteralString, item: Row) -> str:
        [row] = self.call(function, [item])
        return str(row["outcome"])

    def hello(self) -> int:
        return int(self.call("executor_hello_v1", items.hello())[0]["session_no"])

    def append(self, run_id: str, *rows: Row) -> str:
        run = self.model[run_id]
        item = {
            "run_id": run_id, "epoch": run.epoch, "iteration": run.iteration + 1, "actor": "scheduler/s1", "rows": rows,
        }  # fmt: skip
        outcome = self.one("append_v1", item)
        if outcome == "ok":
            run.iteration += 1
            assert self.one("append_v1", item) == "already", "I14: the repetition of an iteration"
        return outcome

    # -- the owner ----------------------------------------------------------------------------------------------

    @rule(target=runs)
    def create(self) -> str:
        run_id = str(uuid.uuid4())
        item = items.created(run_id)
        assert [self.one("create_runs_v1", item) for _ in range(2)] == ["ok", "ok"]
        self.model[run_id] = Run(self.epochs[int(run_id[-2:], 16) % 16])
        return run_id

    @rule(target=effects, run_id=runs, kind=st.sampled_from(["FUNCTION", "FUNCTION", "EXTERNAL"]), fast=st.booleans(),
          most=st.integers(1, 3))  # fmt: skip
    def request(self, run_id: str, kind: str, fast: bool, most: int) -> tuple[str, str]:
        run, key = self.model[run_id], f"k{len(self.known)}"
        dispatch = items.dispatch(run_id, key, self.session_no) if fast else None
        outcome = self.append(run_id, items.requested(run_id, key, kind=kind, max_attempts=most, dispatch=dispatch))
        assert outcome == run.expected
        if outcome != "ok":
            return run_id, ""
        granted = fast and kind == "FUNCTION"
        state = "DISPATCHED" if granted else "WAITING" if kind == "EXTERNAL" else "QUEUED"
        self.known[run_id, key] = Effect(run_id, key, kind, most, state, int(granted), int(granted))
        return run_id, key

    @rule(ref=effects)
    def cancel_by_process(self, ref: tuple[str, str]) -> None:
        effect = self.known.get(ref)
        if effect is not None and not self.model[effect.run].ended:
            expected = self.model[effect.run].expected
            assert self.append(effect.run, items.cancel(*ref)) == expected
            if expected == "ok":
                self._cancelled(effect)

    @rule(ref=effects)
    def cancel_without_process(self, ref: tuple[str, str]) -> None:
        """As the owner does that ends a run without its process: parked or not."""
        effect = self.known.get(ref)
        if effect is not None and not self.model[effect.run].ended:
            assert self.append(effect.run, items.cancel(*ref, cause=0)) == "ok"
            self._cancelled(effect)

    @rule(ref=effects)
    def settle_by_owner(self, ref: tuple[str, str]) -> None:
        effect = self.known.get(ref)
        if effect is not None and not self.model[effect.run].ended:
            expected = self.model[effect.run].expected
            assert self.append(effect.run, items.resolved(*ref)) == expected
            if expected == "ok" and effect.state not in LIVE + SETTLED:
                effect.state = "TIMED_OUT"

    @rule(run_id=runs, type_=st.sampled_from(["RUN_HALTED", "PROCESS_RUNTIME_ERROR", "RUN_CLOSING"]))
    def change_state(self, run_id: str, type_: str) -> None:
        run = self.model[run_id]
        if run.state == "CLOSING" == type_.removeprefix("RUN_"):
            return
        assert self.append(run_id, items.row(type_, 1)) == run.expected
        if run.expected == "ok":
            run.closing = run.closing or type_ == "RUN_CLOSING"
            run.state = "PROCESS_ERROR" if type_ == "PROCESS_RUNTIME_ERROR" else type_.removeprefix("RUN_")

    @rule(run_id=consumes(runs))
    def end(self, run_id: str) -> None:
        run = self.model[run_id]
        assert self.append(run_id, items.row("RUN_COMPLETED")) == run.expected
        if run.expected == "ok":
            run.ended = True
            assert self.append(run_id, items.row("PROCESS_LOG")) == "run_closed"

    @rule(ref=effects, never=st.booleans())
    def lose(self, ref: tuple[str, str], never: bool) -> None:
        effect = self.known.get(ref)
        if effect is None:
            return
        item = items.lost(*ref, self.model[effect.run].epoch, effect.attempt, never_started=never)
        expected = "ok" if effect.state in LIVE else "settled" if effect.state in SETTLED else "stale_attempt"
        assert self.one("attempts_lost_v1", item) == expected
        if expected != "ok":
            return
        effect.ended[effect.attempt] = "LOST"
        never = never and not effect.started  # whatever the caller thinks: an attempt that was heard of has started
        effect.starts -= never
        if effect.cancelled:
            effect.state = "CANCELLED"
        elif never or effect.starts < effect.max_attempts:
            effect.state = "QUEUED"
        else:
            effect.state = "FAILED"

    @rule(run_id=runs)
    def act_with_an_old_epoch(self, run_id: str) -> None:
        item = {"run_id": run_id, "epoch": self.model[run_id].epoch - 1, "iteration": 1, "actor": "x", "rows": []}
        assert self.one("append_v1", item | {"rows": [items.row("PROCESS_LOG")]}) == "stale_epoch"

    # -- outsiders ----------------------------------------------------------------------------------------------

    @rule(ref=effects)
    def cancel(self, ref: tuple[str, str]) -> None:
        effect = self.known.get(ref)
        if effect is None:
            return
        expected = "settled" if effect.state in SETTLED else "already" if effect.cancelled else "ok"
        assert self.one("request_cancels_v1", items.cancel_request(*ref)) == expected
        self._cancelled(effect)

    @rule(run_id=runs)
    def cancel_run(self, run_id: str) -> None:
        run = self.model[run_id]
        expected = "run_closed" if run.ended else "already" if run.cancelled else "ok"
        assert self.one("request_cancels_v1", items.cancel_request(run_id)) == expected
        if expected == "ok":
            run.cancelled = True
            run.state = "CANCELLING" if run.state == "RUNNING" else run.state

    @rule(run_id=runs)
    def halt(self, run_id: str) -> None:
        run = self.model[run_id]
        expected = "run_closed" if run.ended else "already" if run.state == "HALTED" else "ok"
        assert self.one("halt_runs_v1", items.control(run_id)) == expected
        if not run.ended:
            run.state = "HALTED"

    @rule(run_id=runs)
    def resume(self, run_id: str) -> None:
        run, item = self.model[run_id], items.control(run_id)
        expected = "run_closed" if run.ended else "ok" if run.parked else "not_parked"
        assert self.one("resume_runs_v1", item) == expected
        if expected == "ok":
            run.state = "CLOSING" if run.closing else "CANCELLING" if run.cancelled else "RUNNING"
            assert self.one("resume_runs_v1", item) == "already", "I14: the repetition of a resumption"

    @rule(run_id=runs)
    def send_signal(self, run_id: str) -> None:
        item = items.signal(run_id)
        ended = self.model[run_id].ended
        assert [self.one("signal_runs_v1", item) for _ in range(2)] == (
            ["run_closed"] * 2 if ended else ["ok", "already"]
        )

    @rule(ref=effects, value=st.integers(1, 2))
    def resolve(self, ref: tuple[str, str], value: int) -> None:
        effect = self.known.get(ref)
        if effect is None:
            return
        outcome = self.one("resolve_external_v1", items.answer(*ref, result={"value": {"value": value}}))
        if effect.kind != "EXTERNAL":
            assert outcome == "has_executor"
        elif effect.state in SETTLED:
            assert outcome in ("already", "settled")
        else:
            assert outcome == "ok"
            effect.state = "SUCCEEDED"

    def _cancelled(self, effect: Effect) -> None:
        if effect.state in SETTLED:
            return
        effect.cancelled = True
        effect.state = "CANCELLING" if effect.state in LIVE else "CANCELLED"

    # -- the executor -------------------------------------------------------------------------------------------

    @rule(slots=st.integers(1, 3), stale=st.booleans())
    def claim(self, slots: int, stale: bool) -> None:
        waiting = [e for e in self.known.values() if e.state == "QUEUED" and not self.model[e.run].parked
                   and not self.model[e.run].ended]  # fmt: skip
        hashes = ["00" * 32] * slots
        taken = self.call("claim_v1", items.claiming(self.session_no - stale, hashes, slots=slots, background=slots))
        taken = [row for row in taken if row["token_index"] >= 0]
        # What of an ended run is still queued may take a place of this claim, and is dropped by it.
        assert len(taken) <= (0 if stale else min(slots, len(waiting)))
        for row in taken:
            effect = self.known[str(row["run_id"]), row["effect_key"]]
            assert effect in waiting
            effect.state, effect.started = "DISPATCHED", False
            effect.attempt, effect.starts = effect.attempt + 1, effect.starts + 1
            assert row["attempt"] == effect.attempt
            token = items.token_of(effect.run, effect.key, effect.attempt)
            statement = "UPDATE backburner.effects SET token_hash = sha256(%s) WHERE effect_id = %s"
            self.connection.execute(statement, [token, row["effect_id"]])

    @rule()
    def connect_again(self) -> None:
        newer = self.hello()
        assert newer == self.session_no + 1
        self.session_no = newer

    @rule(ref=effects)
    def start(self, ref: tuple[str, str]) -> None:
        effect = self.known.get(ref)
        if effect is None or effect.attempt == 0 or effect.state not in LIVE:
            return
        outcome = self.one("attempts_started_v1", items.attempt_of(*ref, effect.attempt))
        assert outcome == ("already" if effect.started else "ok")
        effect.started = True
        effect.state = "RUNNING" if effect.state == "DISPATCHED" else effect.state

    @rule(ref=effects, outcome=st.sampled_from(["succeeded", "failed", "timed_out", "cancelled"]), final=st.booleans(),
          back=st.integers(0, 2), forged=st.sampled_from([False, False, False, True]))  # fmt: skip
    def settle(self, ref: tuple[str, str], outcome: str, final: bool, back: int, forged: bool) -> None:
        """Of the newest attempt or of an earlier one, with its token or another."""
        effect = self.known.get(ref)
        if effect is None or effect.attempt - back < 1:
            return
        attempt = effect.attempt - back
        item = items.settled(*ref, outcome, attempt, final=final)
        if forged:
            before = effect.state
            assert self.one("attempts_settle_v1", item | {"token": "11" * 16}) in ("stale", "already")
            assert effect.state == before
            return
        said = self.one("attempts_settle_v1", item)
        if back == 0 and effect.state in LIVE:
            assert said == "ok"
            self._settled(effect, outcome, final)
            assert self.one("attempts_settle_v1", item) == "already", "I14: the repetition of an outcome"
        elif effect.ended.get(attempt) == "LOST":
            assert said == "stale", "what was lost is evidence"
        else:
            assert said == "already"

    def _settled(self, effect: Effect, outcome: str, final: bool) -> None:
        if outcome == "succeeded":
            effect.state = "SUCCEEDED"
        elif outcome == "cancelled" or effect.cancelled:
            effect.state = "CANCELLED"
        elif not final and effect.starts < effect.max_attempts:
            effect.state = "QUEUED"
            effect.ended[effect.attempt] = "FAILED"
        else:
            effect.state = "TIMED_OUT" if outcome == "timed_out" else "FAILED"

    # -- what always holds --------------------------------------------------------------------------------------

    @invariant()
    def journals_are_in_order_and_say_what_the_model_says(self) -> None:
        for run_id, run in getattr(self, "model", {}).items():
            read = {name: self.read(statement, run_id) for name, statement in READS.items()}
            checks.check(self._queued_unless_over(recorded(run_id, read), run))
            [head], effects = read["head"], self.rows("SELECT * FROM backburner.effects WHERE run_id = %s", run_id)
            assert (head["cancel_requested"], head["open"]) == (run.cancelled, not run.ended)
            for row in effects:
                effect = self.known[run_id, row["key"]]
                assert (row["state"], row["attempt"], row["starts"]) == (effect.state, effect.attempt, effect.starts)

    def _queued_unless_over(self, found: Recorded, run: Run) -> Recorded:
        """A claim drops the queue rows of a run that is over: nothing will dispatch its effects."""
        queued = frozenset(row["effect_id"] for row in found.effects if row["state"] == "QUEUED")
        return dataclasses.replace(found, queued=queued) if run.ended else found


@pytest.mark.slow
@pytest.mark.timeout(300)
@pytest.mark.invariant("I2", "I3", "I4", "I5", "I12", "I14")
def test_functions_do_what_the_model_does(database_url: str) -> None:
    JournalMachine.dsn = database_url
    run_state_machine_as_test(
        JournalMachine,
        settings=settings(
            max_examples=60, stateful_step_count=40, deadline=None, print_blob=True,
            suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much],
        ),
    )  # fmt: skip
