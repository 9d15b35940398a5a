"""`backburner harnesses`: what executors found, and what a look at this machine finds, without any service."""

import json
import os
import sys
from pathlib import Path

from backburner.scheduler.v1 import dispatch_service_pb2 as dispatch
from backburner.scheduler.v1 import operator_service_pb2 as op
from tests.unit.cli.conftest import Shell


def rows(out: str) -> list[list[str]]:
    """Cells of the table, which two spaces or more part."""
    return [[cell.strip() for cell in line.split("  ") if cell.strip()] for line in out.splitlines()]


def executor() -> op.Executor:
    made = op.Executor(executor_id="e1", state=op.Executor.STATE_DISCONNECTED)
    for name in ("shell", "function", "codex", "parrot"):
        made.harnesses.add(name=name)
    checks = made.harness_checks
    checks.add(name="codex", found=True, version="0.1.0", login=dispatch.HARNESS_LOGIN_MISSING, remedy="not logged in")
    checks.add(name="claude-code", found=True, version="2.1.0", version_known=True, login=dispatch.HARNESS_LOGIN_FOUND)
    known = {"known_versions": "2 and later", "tested_versions": ["2.2", "2.3"], "found": True, "version_known": True}
    checks.add(name="pi", version="2.3", account="pi:0a1b", login=dispatch.HARNESS_LOGIN_FOUND, **known)
    checks.add(name="gemini-cli", version="2.4", **known)
    checks.add(name="opencode", looking=True, remedy="it is looked at")
    checks.add(name="qwen-code", remedy="no qwen on PATH: \x1b[31minstall it")
    return made


def test_what_executors_found_is_listed_with_what_to_do(shell: Shell) -> None:
    shell.fake.executors = [executor()]
    code, out, _ = shell("harnesses")
    assert code == 0
    assert rows(out) == [
        ["EXECUTOR", "HARNESS", "FOUND", "VERSION", "TESTED, KNOWN TO WORK", "LOGIN", "WHAT TO DO"],
        ["e1 (disconnected)", "codex", "yes", "0.1.0 (not known to work)", "no", "not logged in"],
        ["e1 (disconnected)", "claude-code", "yes", "2.1.0", "yes"],
        ["e1 (disconnected)", "pi", "yes", "2.3 (tested)", "tested: 2.2, 2.3; 2 and later", "yes (pi:0a1b)"],
        [
            "e1 (disconnected)",
            "gemini-cli",
            "yes",
            "2.4 (in the known range)",
            "tested: 2.2, 2.3; 2 and later",
            "cannot be told",
        ],
        ["e1 (disconnected)", "opencode", "looking", "it is looked at"],
        ["e1 (disconnected)", "qwen-code", "no", "no qwen on PATH: install it"],
        ["e1 (disconnected)", "parrot", "yes", "cannot be told"],
    ]


def test_each_is_a_line_of_json_which_says_no_where_it_is_no(shell: Shell) -> None:
    shell.fake.executors = [executor()]
    code, out, _ = shell("harnesses", "--json")
    found = {line["name"]: line for line in map(json.loads, out.splitlines())}
    assert (code, [found["codex"][name] for name in ("found", "version_known", "login")]) == (
        0, [True, False, "HARNESS_LOGIN_MISSING"],
    )  # fmt: skip
    assert found["qwen-code"]["found"] is False


def test_where_none_is_looked_for_the_way_on_is_said(shell: Shell) -> None:
    code, out, _ = shell("harnesses")
    assert (code, "backburner harnesses --local" in out) == (0, True)


def test_this_machine_is_looked_at_without_a_service(shell: Shell, tmp_path: Path) -> None:
    codex = tmp_path / "bin" / "codex"
    codex.parent.mkdir()
    codex.write_text(f"#!{sys.executable}\nprint('codex-cli 99.0.1')\n")
    codex.chmod(0o755)
    alone = {"BACKBURNER_ADDRESS": "127.0.0.1:1", "PATH": f"{codex.parent}:{os.environ['PATH']}", "HOME": str(tmp_path)}
    where = ["--harness-path", "claude-code=/no/such/program"]
    code, out, err = shell(
        "harnesses", "--local", "--json", "--agent", "codex", "--agent", "claude-code", *where, **alone
    )
    assert (code, err) == (0, "")
    here, gone = map(json.loads, out.splitlines())
    assert (here["name"], here["found"], here["version"], here["version_known"]) == ("codex", True, "99.0.1", False)
    assert here["path"] == str(codex)
    assert "not known to work" in here["remedy"]
    assert (gone["name"], gone["found"]) == ("claude-code", False)
    assert "'/no/such/program' is no program" in gone["remedy"]


def test_what_cannot_be_looked_for_is_an_error_with_its_reason(shell: Shell) -> None:
    code, _, err = shell("harnesses", "--local", "--agent", "parrot")
    assert code == 2
    assert "there is no harness 'parrot'" in err
    code, _, err = shell("harnesses", "--agent", "codex")
    assert code == 2
    assert "are for --local" in err
