import datetime as dt
import io
from typing import Any

import pytest
from google.protobuf.message import Message
from rich.console import Console

from backburner.journal.v1 import journal_pb2 as journal
from backburner.scheduler.v1 import scheduler_service_pb2 as pb
from scheduler_service.cli.bars import draw
from scheduler_service.cli.follow import LineScreen
from scheduler_service.cli.run_view import Notice, RunView

START = dt.datetime(2026, 1, 1, 12, tzinfo=dt.UTC)


class Feeder:
    """Feeds a view with frames as the service sends them."""

    def __init__(self) -> None:
        self.view = RunView("run-1")
        self.seq = 0

    def event(self, type_name: str, data: Message, key: str = "", attempt: int = 0) -> list[Notice]:
        self.seq += 1
        event = journal.JournalEvent(
            seq=self.seq, type=journal.EventType.Value(f"EVENT_TYPE_{type_name}"), effect_key=key, attempt=attempt
        )
        event.recorded_at.FromDatetime(START + dt.timedelta(seconds=self.seq))
        field = type_name.lower()
        getattr(event, field).CopyFrom(data)
        return self.view.feed(pb.WatchRunResponse(event=event))

    def request(self, key: str, *, background: bool, prompt: str = "") -> list[Notice]:
        spec = journal.EffectSpec(name=key, background=background)
        if prompt:
            spec.external.prompt = prompt
            spec.external.choices.extend(["yes", "no"])
        else:
            spec.shell.command_line = "true"
        return self.event("EFFECT_REQUESTED", journal.EffectRequested(spec=spec), key)

    def settle(
        self,
        key: str,
        state: journal.EffectState.ValueType = journal.EFFECT_STATE_SUCCEEDED,
        error: journal.EffectError | None = None,
    ) -> list[Notice]:
        return self.event("EFFECT_RESOLVED", journal.EffectResolved(state=state, error=error), key)

    def progress(self, key: str, percent: float, ordinal: int) -> list[Notice]:
        live = pb.LiveProgress(effect_key=key, progress=journal.Progress(percent=percent, ordinal=ordinal, step="link"))
        return self.view.feed(pb.WatchRunResponse(progress=live))


@pytest.fixture
def feeder() -> Feeder:
    made = Feeder()
    made.event("RUN_CREATED", journal.RunCreated(process="build"))
    return made


def drawn(view: RunView, width: int = 110) -> str:
    file = io.StringIO()
    console = Console(file=file, width=width, height=40, force_terminal=False)
    console.print(draw(view, START + dt.timedelta(seconds=60), console))
    return file.getvalue()


def test_background_effects_get_a_bar_and_the_foreground_a_count(feeder: Feeder) -> None:
    feeder.request("tests", background=True)
    feeder.event("EFFECT_STARTED", journal.EffectStarted(pid=1), "tests", 1)
    feeder.progress("tests", 42, 1)
    for number in range(5):
        feeder.request(f"lint/{number}", background=False)
        feeder.settle(f"lint/{number}")
    shown = drawn(feeder.view)
    assert "build RUNNING" in shown
    assert "tests" in shown
    assert " 42%" in shown
    assert "link" in shown
    assert "foreground 5 done, 0 open" in shown
    assert "lint/0" not in shown  # only the newest few


def test_an_older_progress_never_replaces_a_newer_one(feeder: Feeder) -> None:
    feeder.request("tests", background=True)
    feeder.progress("tests", 42, 7)
    feeder.progress("tests", 13, 3)
    assert feeder.view.open["tests"].progress.percent == 42


def agent(feeder: Feeder, ordinal: int, usage: journal.Usage | None = None, **progress: Any) -> list[Notice]:
    """A live frame of the agent `review`."""
    live = pb.LiveProgress(effect_key="review", usage=usage)
    if progress:
        live.progress.CopyFrom(journal.Progress(ordinal=ordinal, **progress))
    return feeder.view.feed(pb.WatchRunResponse(progress=live))


@pytest.fixture
def reviewing(feeder: Feeder) -> Feeder:
    spec = journal.EffectSpec(name="codex", background=True)
    spec.agent.prompt = "review"
    feeder.event("EFFECT_REQUESTED", journal.EffectRequested(spec=spec), "review")
    feeder.event("EFFECT_STARTED", journal.EffectStarted(pid=1), "review", 1)
    return feeder


DOES: dict[str, Any] = {
    "tool": "Bash", "step": "pytest -q", "turns": 4, "turns_max": 20, "todos": 7, "todos_done": 3, "percent": 42.9,
}  # fmt: skip


def test_an_agent_shows_turn_tool_tokens_cost_and_todos(reviewing: Feeder) -> None:
    usage = journal.Usage(input_tokens=10_100, output_tokens=2_200, cost_usd=0.08)
    [notice] = agent(reviewing, 1, usage, **DOES)
    assert notice.message == "43%, turn 4/20, Bash: pytest -q, 12.3k tokens, $0.08, 3/7 todos"
    assert "turn 4/20 · Bash: pytest -q · 12.3k tokens · $0.08 · 3/7 todos" in drawn(reviewing.view, 200)
    assert " 43%" in drawn(reviewing.view, 200)


def test_turns_give_no_percentage_and_a_cost_that_is_not_known_is_no_0_dollars(reviewing: Feeder) -> None:
    agent(reviewing, 1, journal.Usage(input_tokens=950), turns=4, turns_max=20)
    shown = drawn(reviewing.view, 200)
    assert "turn 4/20 · 950 tokens · cost unknown" in shown
    assert ("%" in shown, "$" in shown) == (False, False)
    agent(reviewing, 2, journal.Usage(input_tokens=950, cost_usd=0.0004), turns=5)
    assert "turn 5 · 950 tokens · $0.0004" in drawn(reviewing.view, 200)


def test_a_turn_is_said_once(reviewing: Feeder) -> None:
    [notice] = agent(reviewing, 1, step="turn 4", turns=4, turns_max=40)
    assert notice.message == "turn 4/40"
    agent(reviewing, 2, step="turn 5", turns=5, turns_max=40, tool="Bash")
    assert "turn 5/40 · Bash" in (shown := drawn(reviewing.view, 200))
    assert shown.count("turn 5") == 1


def test_usage_alone_leaves_the_progress_as_it_is(reviewing: Feeder) -> None:
    agent(reviewing, 1, **DOES)
    [notice] = agent(reviewing, 0, journal.Usage(output_tokens=1_500_000, cost_usd=12.3))
    assert notice.message == "43%, turn 4/20, Bash: pytest -q, 1.50M tokens, $12.30, 3/7 todos"
    assert agent(reviewing, 0, journal.Usage(output_tokens=1_500_000, cost_usd=12.3)) == [], "no news"


def test_how_long_an_agent_has_said_nothing(reviewing: Feeder) -> None:
    agent(reviewing, 1, **DOES)
    effect = reviewing.view.open["review"]
    effect.heard_at = START + dt.timedelta(seconds=48)
    assert "last heard 12.0s ago" in drawn(reviewing.view, 200), "drawn at 12:01:00"
    effect.heard_at = START + dt.timedelta(seconds=58)
    assert "last heard" not in drawn(reviewing.view, 200)


def test_another_attempt_begins_with_nothing(reviewing: Feeder) -> None:
    agent(reviewing, 9, journal.Usage(input_tokens=10), **DOES)
    reviewing.event("EFFECT_DISPATCHED", journal.EffectDispatched(executor_id="e"), "review", 2)
    shown = drawn(reviewing.view, 200)
    assert ("turn" in shown, "tokens" in shown) == (False, False)


def test_what_it_used_is_said_at_the_end(reviewing: Feeder) -> None:
    agent(reviewing, 1, journal.Usage(input_tokens=10), **DOES)
    resolved = journal.EffectResolved(state=journal.EFFECT_STATE_SUCCEEDED)
    resolved.elapsed.FromSeconds(41)
    resolved.result.usage.CopyFrom(journal.Usage(input_tokens=20_000, cost_usd=0.5))
    [notice] = reviewing.event("EFFECT_RESOLVED", resolved, "review")
    assert notice.message == "succeeded after 41.0s, 20.0k tokens, $0.50"
    assert "20.0k tokens · $0.50" in drawn(reviewing.view, 200)


def test_a_question_shows_how_to_answer_it(feeder: Feeder) -> None:
    feeder.request("approve", background=True, prompt="Deploy?")
    assert "backburner approvals answer run-1/approve yes" in drawn(feeder.view, width=200)
    feeder.settle("approve")
    assert "backburner approvals answer" not in drawn(feeder.view, width=200)


def test_failures_are_bad_news_and_successes_are_not(feeder: Feeder) -> None:
    feeder.request("a", background=True)
    feeder.request("b", background=False)
    error = journal.EffectError(reason=journal.EFFECT_REASON_EXITED_NONZERO, message="exit code 2")
    [bad] = feeder.settle("b", journal.EFFECT_STATE_FAILED, error)
    [good] = feeder.settle("a")
    assert (bad.weight, good.weight) == (2, 1)
    assert "EXITED_NONZERO: exit code 2" in bad.message
    assert feeder.view.foreground_unsuccessful == 1


def test_a_cancel_of_what_had_settled_says_nothing(feeder: Feeder) -> None:
    feeder.request("a", background=True)
    assert feeder.event("EFFECT_CANCEL_REQUESTED", journal.EffectCancelRequested(no_op=True), "a") == []


def test_what_settles_twice_or_was_never_seen_changes_nothing(feeder: Feeder) -> None:
    feeder.request("a", background=False)
    feeder.settle("a")
    assert feeder.settle("a") == []
    assert feeder.settle("other") == []
    assert feeder.view.foreground_succeeded == 1


def test_a_snapshot_is_where_a_watch_begins() -> None:
    snapshot = pb.RunSnapshot(seq=41, run=pb.Run(process="build", state=journal.RUN_STATE_RUNNING))
    snapshot.run.create_time.FromDatetime(START)
    snapshot.run.effect_counts.succeeded = 7
    effect = snapshot.effects.add(key="tests", background=True, kind=journal.EFFECT_KIND_SHELL)
    effect.request_time.FromDatetime(START)
    view = RunView("run-1")
    view.feed(pb.WatchRunResponse(snapshot=snapshot))
    assert (view.seq, view.foreground_succeeded, list(view.open)) == (41, 7, ["tests"])


def test_frames_of_newer_releases_are_passed_over(feeder: Feeder) -> None:
    assert feeder.view.feed(pb.WatchRunResponse()) == []
    assert feeder.view.feed(pb.WatchRunResponse(event=journal.JournalEvent(seq=9))) == []


def test_memory_stays_bounded_however_many_effects_settle(feeder: Feeder) -> None:
    for number in range(200):
        feeder.request(f"f/{number}", background=False)
        feeder.request(f"b/{number}", background=True)
        feeder.settle(f"f/{number}")
        feeder.settle(f"b/{number}")
    view = feeder.view
    assert not view.open
    assert len(view.settled_background) < 20
    assert view.foreground_succeeded == 200


def test_the_picture_is_never_higher_than_the_terminal(feeder: Feeder) -> None:
    for number in range(100):
        feeder.request(f"b/{number}", background=True)
    file = io.StringIO()
    console = Console(file=file, width=80, height=15)
    console.print(draw(feeder.view, START, console))
    assert len(file.getvalue().splitlines()) <= 15


def test_lines_sum_the_foreground_up_and_print_failures_whole(feeder: Feeder) -> None:
    file = io.StringIO()
    out = Console(file=file, width=2000)
    with LineScreen(out, feeder.view) as screen:
        for number in range(50):
            screen.show(feeder.request(f"lint/{number}", background=False))
            screen.show(feeder.settle(f"lint/{number}"))
        screen.show(feeder.request("bad", background=False))
        screen.show(feeder.settle("bad", journal.EFFECT_STATE_FAILED, journal.EffectError(message="no " * 20)))
        screen.show(feeder.event("PROCESS_LOG", journal.ProcessLog(level="INFO", message="half way")))
    lines = file.getvalue().splitlines()
    assert len(lines) < 12
    assert any("no no no" in line and "bad" in line for line in lines)
    assert any("half way" in line for line in lines)
    assert any("51 done, 0 open" in line for line in lines)
    assert "\x1b" not in file.getvalue()


def exited(tail: str) -> journal.EffectResolved:
    settled = journal.EffectResolved(state=journal.EFFECT_STATE_FAILED)
    settled.error.reason, settled.error.message = journal.EFFECT_REASON_EXITED_NONZERO, "the child exited with code 3"
    settled.result.exit_code = 3
    settled.result.stderr.tail = tail
    return settled


def test_a_failure_is_shown_with_the_end_of_its_output(feeder: Feeder) -> None:
    feeder.request("tests", background=True)
    notice = feeder.event("EFFECT_RESOLVED", exited("".join(f"{n}\n" for n in range(9))), "tests", 1)[0]
    assert notice.details == tuple(f"stderr │ {n}" for n in range(4, 9))
    assert feeder.view.explained == {"tests"}


def test_of_many_failures_only_the_first_are_shown_with_their_output(feeder: Feeder) -> None:
    for number in range(30):
        feeder.request(f"fix/{number}", background=True)
    shown = [feeder.event("EFFECT_RESOLVED", exited("no\n"), f"fix/{n}", 1)[0].details for n in range(30)]
    assert sum(map(bool, shown)) == 10
    assert len(feeder.view.explained) == 10


def test_a_line_screen_shows_the_output_below_the_failure(feeder: Feeder) -> None:
    out = io.StringIO()
    screen = LineScreen(Console(file=out, width=120, highlight=False), feeder.view)
    feeder.request("tests", background=True)
    screen.show(feeder.event("EFFECT_RESOLVED", exited("[bold]not markup[/]\n"), "tests", 1))
    assert out.getvalue().splitlines()[-1].strip() == "stderr │ [bold]not markup[/]"


def test_progress_that_says_nothing_makes_no_line(feeder: Feeder) -> None:
    feeder.request("tests", background=True)
    assert feeder.event("EFFECT_PROGRESS", journal.EffectProgress(), "tests", 1) == []


def test_a_run_that_goes_on_as_another_says_as_which(feeder: Feeder) -> None:
    feeder.event("RUN_CONTINUED", journal.RunContinued(new_run_id="run-2"))
    assert feeder.view.continued_as == "run-2"


def test_an_eta_counts_down_and_is_marked_when_it_is_an_estimate(feeder: Feeder) -> None:
    feeder.request("tests", background=True)
    feeder.event("EFFECT_DISPATCHED", journal.EffectDispatched(), "tests", 1)
    told = journal.Progress(ordinal=1, step="link", eta_estimated=True)
    told.eta.FromSeconds(80)
    feeder.event("EFFECT_PROGRESS", journal.EffectProgress(progress=told), "tests", 1)  # at 12:00:04
    assert "ETA ~24.0s" in drawn(feeder.view), "drawn at 12:01:00"
    told.eta.FromSeconds(50)
    told.ordinal = 2
    feeder.event("EFFECT_PROGRESS", journal.EffectProgress(progress=told), "tests", 1)
    assert "ETA" not in drawn(feeder.view), "it has run out, and nothing better is known"


def test_the_progress_of_another_attempt_begins_anew(feeder: Feeder) -> None:
    feeder.request("tests", background=True)
    feeder.event("EFFECT_DISPATCHED", journal.EffectDispatched(), "tests", 1)
    feeder.progress("tests", 90, 50)
    feeder.event("EFFECT_ATTEMPT_FAILED", journal.EffectAttemptFailed(), "tests", 1)
    feeder.event("EFFECT_DISPATCHED", journal.EffectDispatched(), "tests", 2)
    feeder.progress("tests", 3, 1)
    assert feeder.view.open["tests"].progress.percent == 3


def test_a_question_is_shown_wherever_one_looks_with_the_command_that_answers_it(feeder: Feeder) -> None:
    out = io.StringIO()
    screen = LineScreen(Console(file=out, width=120, highlight=False), feeder.view)
    screen.show(feeder.request("approve", background=False, prompt="Deploy?"))
    said = out.getvalue().splitlines()
    assert said[-2].endswith("asks: Deploy? [yes/no]")
    assert said[-1].strip() == "answer it: backburner approvals answer run-1/approve yes"


def test_of_a_wide_fan_out_the_first_requests_are_listed(feeder: Feeder) -> None:
    said = [notice for n in range(500) for notice in feeder.request(f"fix/{n}", background=True)]
    assert len(said) == 20
    assert said[-1].message == "requested; more are not listed one by one"
