"""hold, drain, expire, settle, audit, doctor and prune against a played scheduler."""

import json
from typing import Any

import pytest

from backburner.scheduler.v1 import operator_service_pb2 as op
from tests.unit.cli.conftest import Shell
from tests.unit.cli.fake_scheduler import HOLD


def asked(shell: Shell, kind: type) -> list[Any]:
    return [request for request in shell.fake.asked if isinstance(request, kind)]


def test_hold_sends_what_who_why_and_until(shell: Shell) -> None:
    code, out, _ = shell(
        "hold", "--harness", "codex", "--label", "team=a", "--for", "30m", "--reason", "down", "--by", "ada"
    )
    assert (code, out) == (0, f"hold {HOLD}: namespace default, harness codex, label team=a\n")
    [request] = asked(shell, op.SetHoldRequest)
    hold = request.hold
    assert (hold.namespace, hold.harness, hold.label) == ("default", "codex", "team=a")
    assert (hold.reason, hold.actor, hold.HasField("until"), request.release) == ("down", "ada", True, False)


def test_everything_is_held_only_when_that_is_said(shell: Shell) -> None:
    for arguments in ((), ("--everything", "--harness", "codex"), ("--everything", "--all-of-namespace")):
        code, _, err = shell("hold", *arguments)
        assert (code, "say what to hold" in err) == (2, True)
    assert shell("hold", "--everything")[:2] == (0, f"hold {HOLD}: everything\n")
    shell("hold", "--all-of-namespace", "-n", "staging")
    assert [request.hold.namespace for request in asked(shell, op.SetHoldRequest)] == ["", "staging"]


@pytest.mark.parametrize("arguments", [(HOLD,), ("--all",)])
def test_unhold_releases(shell: Shell, arguments: tuple[str, ...]) -> None:
    code, out, _ = shell("unhold", *arguments, "--reason", "back")
    assert (code, out) == (0, f"released {HOLD}: everything\n")
    [request] = asked(shell, op.SetHoldRequest)
    assert (request.hold.hold_id, request.hold.reason, request.release) == (HOLD, "back", True)
    assert shell("unhold")[0] == 2


def test_holds_and_audit_are_listed(shell: Shell) -> None:
    code, out, _ = shell("holds")
    assert (code, "harness codex" in out, "provider is down" in out) == (0, True, True)
    code, out, _ = shell("audit", "--subject", HOLD)
    assert (code, out.count("set_hold"), "ada" in out) == (0, 2, True)
    assert [request.page_token for request in asked(shell, op.ListAuditRequest)] == ["", "more"]
    code, out, _ = shell("audit", "--limit", "1", "--json")
    assert json.loads(out)["action"] == "SET_HOLD"


def test_breakers_are_listed_and_reset(shell: Shell) -> None:
    code, out, _ = shell("breakers")
    assert (code, "half-open" in out, "(a guess)" in out, "AUTHENTICATION: no key" in out) == (0, True, True, True)
    assert json.loads(shell("breakers", "--json")[1])["account"] == "openai:me"
    code, out, _ = shell("breakers", "reset", "--harness", "codex", "--reason", "logged in", "--by", "ada")
    assert (code, out) == (0, "closed harness codex, namespace default, account openai:me\n")
    assert shell("breakers", "reset", "--harness", "pi")[:2] == (0, "no breaker matches\n")
    assert shell("breakers", "reset", "--everything")[0] == 0
    first, _, everything = asked(shell, op.ResetBreakersRequest)
    assert (first.namespace, first.harness, first.reason, first.actor) == ("default", "codex", "logged in", "ada")
    assert (everything.namespace, everything.harness) == ("", "")
    for arguments in ((), ("--everything", "--harness", "codex")):
        code, _, err = shell("breakers", "reset", *arguments)
        assert (code, "say which" in err) == (2, True)


def test_drain_and_undrain(shell: Shell) -> None:
    assert shell("drain", "local", "--reason", "kernel")[:2] == (0, "executor local: draining\n")
    assert shell("undrain", "local")[:2] == (0, "executor local: connected\n")
    first, second = asked(shell, op.DrainExecutorRequest)
    assert (first.drain, first.reason, second.drain) == (True, "kernel", False)


def test_an_executor_is_declared_dead_only_when_that_is_meant_and_as_it_was_seen(shell: Shell) -> None:
    code, _, err = shell("expire", "local")
    assert (code, "declare executor local dead" in err, asked(shell, op.ExpireExecutorRequest)) == (2, True, [])
    code, out, _ = shell("expire", "local", "--yes", "--reason", "burnt", "--by", "ada")
    assert (code, out) == (0, "executor local: lost, with 3 attempts\n")
    [request] = asked(shell, op.ExpireExecutorRequest)
    assert (request.incarnation, request.reason, request.actor) == ("i1", "burnt", "ada")
    assert shell("expire", "nobody", "--yes")[0] == 2


def test_settle_names_the_attempt_that_was_seen(shell: Shell) -> None:
    assert shell("settle", "key:rel/1/tests")[0] == 2
    assert shell("settle", "key:rel/1/tests", "--fail", "gone", "--by", "ada")[:2] == (0, "effect tests: failed\n")
    assert shell("settle", "key:rel/1/tests", "--value", '{"a": 1}')[:2] == (0, "effect tests: succeeded\n")
    first, second = asked(shell, op.SettleEffectRequest)
    assert (first.failed.message, first.actor, first.HasField("attempt")) == ("gone", "ada", True)
    assert second.succeeded.value.struct_value["a"] == 1


@pytest.mark.parametrize(("severity", "expected"), [("INFO", 0), ("WARNING", 1), ("CRITICAL", 2)])
def test_doctor_exits_by_the_gravest_finding(shell: Shell, severity: str, expected: int) -> None:
    assert shell("doctor")[0] == 0
    shell.fake.findings = [
        op.Finding(
            severity=op.Finding.Severity.Value(f"SEVERITY_{severity}"), code="ODD", message="odd", remedy="mend"
        ),
        op.Finding(severity=op.Finding.SEVERITY_INFO, code="SIZES", message="small"),
    ]
    code, out, _ = shell("doctor")
    assert (code, "ODD" in out, "mend" in out) == (expected, True, True)
    code, out, _ = shell("doctor", "--json")
    assert (code, [json.loads(line)["code"] for line in out.splitlines()]) == (expected, ["ODD", "SIZES"])


def test_doctor_asks_the_database_when_no_scheduler_answers(shell: Shell, database_url: str) -> None:
    elsewhere = ("--address", "127.0.0.1:1")
    code, out, _ = shell("doctor", *elsewhere, "--database-url", database_url, "--json")
    found = {json.loads(line)["code"] for line in out.splitlines()}
    assert (code, found >= {"NO_SCHEDULER", "SHARDS_UNOWNED", "SIZES"}) == (2, True)
    assert shell("doctor", *elsewhere, "--database-url", "postgresql://127.0.0.1:1/none")[0] == 6
    assert shell("doctor", *elsewhere)[0] == 6


def test_prune_counts_asks_and_goes_step_by_step(shell: Shell) -> None:
    assert shell("prune", "--older-than", "30d", "--dry-run")[:2] == (
        0, "would remove 5 runs with 40 rows of the journal\n",
    )  # fmt: skip
    code, _, err = shell("prune", "--older-than", "30d")
    assert (code, "this would remove 5 runs" in err) == (2, True)
    shell.fake.asked.clear()
    code, out, _ = shell(
        "prune", "--older-than", "30d", "--state", "failed", "--yes", "--reason", "space", "--by", "ada"
    )
    assert (code, out) == (0, "removed 15 runs\n")
    requests = asked(shell, op.PruneRunsRequest)
    assert [request.dry_run for request in requests] == [True, False, False, False]
    assert (requests[1].older_than.seconds, requests[1].reason, requests[1].actor) == (30 * 86_400, "space", "ada")
    assert len(requests[1].states) == 1
