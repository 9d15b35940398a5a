"""pi, opencode and copilot: what their captured lines say, how they are started, what they cannot be made to do."""

import json
import sqlite3
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from executor_service.assignment import InvalidWork
from executor_service.harness.cli import events
from executor_service.harness.cli.adapter import Adapter, Program, Task
from executor_service.harness.cli.copilot import Copilot
from executor_service.harness.cli.events import Tokens
from executor_service.harness.cli.opencode import OpenCode
from executor_service.harness.cli.pi import Pi
from executor_service.harness.cli.stream import EventStream

CAPTURES = Path(__file__).parents[2] / "harnesses" / "captures"
ALL: list[Adapter] = [Pi(), OpenCode(), Copilot()]


@pytest.fixture
def task(tmp_path: Path) -> Task:
    for name in ("work", "scratch", "home"):
        (tmp_path / name).mkdir()
    return Task("Do it.", tmp_path / "work", tmp_path / "scratch", tmp_path / "home", {}, model="m")


def played(
    adapter: Adapter, task: Task, lines: Sequence[bytes], status: int = 0
) -> tuple[EventStream, list[events.Event]]:
    told: list[events.Event] = []
    stream = EventStream(lambda _report: None, told.append, price=lambda _model, _tokens: None, turns_max=0)
    stream.begin(adapter.parser(task, Tokens()))
    for line in lines:
        stream.take(line)
    stream.close(status)
    return stream, told


def captured(name: str) -> list[bytes]:
    return (CAPTURES / f"{name}.jsonl").read_bytes().splitlines()


@pytest.mark.parametrize("adapter", ALL, ids=lambda adapter: adapter.name)
@pytest.mark.parametrize("kind", ["", "-resume"])
def test_a_tool_call_and_an_answer_are_read(adapter: Adapter, kind: str, task: Task) -> None:
    stream, told = played(adapter, task, captured(f"{adapter.name}{kind}"))
    assert stream.ended is not None
    assert (stream.ended.ok, stream.text, stream.turns, stream.tools_used) == (True, "All done: hi", 2, 1)
    [tool] = [event for event in told if isinstance(event, events.ToolStarted)]
    [tool_end] = [event for event in told if isinstance(event, events.ToolEnded)]
    assert (tool.tool, tool.summary, tool_end.ok) == ("bash", "echo hi", True)
    assert tool_end.output.startswith("hi\n")
    assert stream.session_id


@pytest.mark.parametrize(("name", "adapter"), [("pi", Pi()), ("opencode", OpenCode())])
def test_the_tokens_and_the_cost_of_all_steps_are_added_up(name: str, adapter: Adapter, task: Task) -> None:
    stream, _ = played(adapter, task, captured(name))
    assert replace(stream.tokens, cost_usd=None) == Tokens(200, 40, 80)
    assert stream.tokens.cost_usd == pytest.approx(0.000208)


@pytest.mark.parametrize(("name", "adapter"), [("pi", Pi()), ("opencode", OpenCode())])
def test_a_cost_of_nothing_for_tokens_is_none_that_is_known(name: str, adapter: Adapter, task: Task) -> None:
    lines = [json.loads(line) for line in captured(name)]
    for line in lines:
        _free(line)
    stream, _ = played(adapter, task, [json.dumps(line).encode() for line in lines])
    assert "cost_usd" not in stream.usage()


def _free(value: Any) -> None:
    for item in value.values() if isinstance(value, dict) else value if isinstance(value, list) else ():
        _free(item)
    if isinstance(value, dict) and "cost" in value:
        value["cost"] = {"total": 0} if isinstance(value["cost"], dict) else 0


@pytest.mark.parametrize(
    ("name", "adapter", "reason", "words"),
    [
        ("pi-err500", Pi(), "HARNESS_ERROR", "500 fake boom"),
        ("pi-noretry", Pi(), "HARNESS_ERROR", "500 fake boom"),
        ("opencode-err500", OpenCode(), "HARNESS_ERROR", "fake boom"),
        ("opencode-err429", OpenCode(), "RATE_LIMITED", "fake slow down"),
        ("copilot-err500", Copilot(), "HARNESS_ERROR", "500 fake boom"),
        ("copilot-err429", Copilot(), "RATE_LIMITED", "429 fake slow down"),
    ],
)
def test_an_error_of_the_provider_is_no_success_whatever_the_exit(
    name: str, adapter: Adapter, reason: str, words: str, task: Task
) -> None:
    stream, _ = played(adapter, task, captured(name), 0)
    assert stream.ended is not None
    assert stream.ended.failure is not None
    assert (stream.ended.ok, stream.ended.failure.reason) == (False, reason)
    assert words in stream.ended.failure.message


def test_pi_is_not_done_while_it_tries_again(task: Task) -> None:
    lines = captured("pi-err500")
    until_retry = next(line for line in lines if b'"auto_retry_start"' in line)
    stream, told = played(Pi(), task, lines[: lines.index(until_retry) + 1], -15)
    assert stream.ended is None
    assert events.Retrying("500 fake boom", 0, 2.0) in told
    assert stream.turns == 1
    stream, _ = played(Pi(), task, lines)
    assert stream.turns == 1, "the same turn once more is none"


@pytest.mark.parametrize(
    ("adapter", "status"),
    [(Pi(), 143), (OpenCode(), -15), (Copilot(), 0)],
    ids=lambda value: getattr(value, "name", ""),
)
def test_one_that_was_cancelled_in_a_tool_says_no_last_word(adapter: Adapter, status: int, task: Task) -> None:
    stream, _ = played(adapter, task, captured(f"{adapter.name}-sigterm"), status)
    assert stream.ended is None
    assert stream.session_id


@pytest.mark.parametrize("status", [1, 143])
def test_opencode_has_not_succeeded_when_its_exit_says_otherwise(status: int, task: Task) -> None:
    stream, _ = played(OpenCode(), task, captured("opencode"), status)
    assert stream.ended is not None
    assert stream.ended.failure is not None
    assert (stream.ended.ok, stream.ended.failure.reason) == (False, "HARNESS_CRASHED")


def test_an_error_of_opencode_after_its_last_step_is_one(task: Task) -> None:
    stream, _ = played(OpenCode(), task, [*captured("opencode"), *captured("opencode-err500")], 0)
    assert stream.ended is not None
    assert not stream.ended.ok


def test_a_step_of_opencode_that_stopped_with_a_tool_is_not_the_last(task: Task) -> None:
    lines = [line.replace(b'"reason":"tool-calls"', b'"reason":"stop"') for line in captured("opencode")[:3]]
    stream, _ = played(OpenCode(), task, lines, 0)
    assert stream.ended is None


@pytest.mark.parametrize(("agent", "ended"), [("compaction", False), ("build", True)])
def test_a_summary_of_the_session_so_far_is_no_answer_of_opencode(agent: str, ended: bool, task: Task) -> None:
    path = task.home / ".local" / "share" / "opencode" / "opencode.db"
    path.parent.mkdir(parents=True)
    last = json.loads(captured("opencode")[-1])["part"]["messageID"]
    with sqlite3.connect(path) as database:
        database.execute("create table message (id text, data text)")
        data = json.dumps({"role": "assistant", "agent": agent})
        database.execute("insert into message values (?, ?)", (last, data))
    database.close()
    stream, _ = played(OpenCode(), task, captured("opencode"))
    assert (stream.ended is not None) is ended


def test_what_opencode_says_after_its_answer_filled_the_context_is_no_other_answer(task: Task) -> None:
    lines = captured("opencode")
    more = [line.replace(b"All done: hi", b"Nothing is left to do.") for line in lines[-3:]]
    asked = {"type": "text", "part": {"text": "Continue if you have next steps", "synthetic": True}}
    stream, told = played(OpenCode(), task, [*lines, json.dumps(asked).encode(), *more])
    assert (stream.ended is not None, stream.text) == (True, "All done: hi")
    assert not any(isinstance(event, events.Text) and "next steps" in event.text for event in told)


@pytest.mark.parametrize(
    ("adapter", "line"),
    [
        (Pi(), {"type": "tool_execution_end", "toolCallId": "c", "toolName": "bash", "isError": True,
                "result": {"content": [{"type": "text", "text": "Tool bash not found"}]}}),
        (OpenCode(), {"type": "tool_use", "part": {"tool": "bash", "callID": "c", "state": {
            "status": "error", "input": {"command": "ls"},
            "error": "Model tried to call unavailable tool 'invalid'."}}}),
        (Copilot(), {"type": "tool.execution_complete", "data": {
            "toolCallId": "c", "success": False,
            "error": {"message": "Tool 'bash' does not exist.", "code": "failure"}}}),
    ],
    ids=["pi", "opencode", "copilot"],
)  # fmt: skip
def test_a_tool_that_permissions_leave_out_is_denied(adapter: Adapter, line: dict[str, Any], task: Task) -> None:
    starts = [
        {"type": "tool_execution_start", "toolCallId": "c", "toolName": "bash", "args": {"command": "ls"}},
        {"type": "tool.execution_start",
         "data": {"toolCallId": "c", "toolName": "bash", "arguments": {"command": "ls"}}},
    ]  # fmt: skip
    stream, _ = played(adapter, task, [json.dumps(said).encode() for said in (*starts, line)])
    assert stream.denials == [events.Denied("bash", "ls")]


@pytest.mark.parametrize(("stop", "reason"), [("length", "HARNESS_ERROR"), ("content-filter", "REFUSED")])
def test_opencode_that_stopped_otherwise_has_failed(stop: str, reason: str, task: Task) -> None:
    lines = [line.replace(b'"reason":"stop"', f'"reason":"{stop}"'.encode()) for line in captured("opencode")]
    stream, _ = played(OpenCode(), task, lines)
    assert stream.ended is not None
    assert stream.ended.failure is not None
    assert stream.ended.failure.reason == reason


def test_pi_whose_answer_was_cut_off_has_failed(task: Task) -> None:
    lines = [line.replace(b'"stopReason":"stop"', b'"stopReason":"length"') for line in captured("pi")]
    stream, _ = played(Pi(), task, lines)
    assert stream.ended is not None
    assert not stream.ended.ok


def test_copilot_that_was_aborted_has_not_succeeded(task: Task) -> None:
    lines = captured("copilot")
    lines[-1:-1] = [b'{"type":"assistant.idle","data":{"aborted":true}}']
    stream, _ = played(Copilot(), task, lines)
    assert stream.ended is not None
    assert not stream.ended.ok


def test_copilot_that_ended_with_a_code_has_not_succeeded(task: Task) -> None:
    lines = [line.replace(b'"exitCode":0,"usage"', b'"exitCode":1,"usage"') for line in captured("copilot")]
    stream, _ = played(Copilot(), task, lines)
    assert stream.ended is not None
    assert not stream.ended.ok


@pytest.mark.parametrize("adapter", ALL, ids=lambda adapter: adapter.name)
@pytest.mark.parametrize(("bound", "ok"), [(1, False), (2, True)])
def test_the_bound_of_turns_is_kept_for_a_cli_that_has_none(adapter: Adapter, bound: int, ok: bool, task: Task) -> None:
    stream, told = played(adapter, replace(task, max_turns=bound), captured(adapter.name))
    assert stream.ended is not None
    assert stream.ended.ok is ok
    if not ok:
        assert stream.ended.failure is not None
        assert (stream.ended.failure.reason, stream.ended.turns, stream.ended.stop) == ("MAX_TURNS", 1, True)
        assert told[-1] is stream.ended, "nothing is heard of what it does until it is dead"


def test_a_to_do_list_of_opencode_is_progress(task: Task) -> None:
    _, told = played(OpenCode(), task, captured("opencode-todos"))
    assert next(event for event in told if isinstance(event, events.Todos)) == events.Todos(1, 2)


@pytest.mark.parametrize("adapter", ALL, ids=lambda adapter: adapter.name)
@pytest.mark.parametrize("permissions", ["full", "edit", "read_only"])
def test_a_long_prompt_is_no_argument_and_the_home_is_not_written_to(
    adapter: Adapter, permissions: str, task: Task
) -> None:
    long = replace(task, prompt="x" * 1_000_000, permissions=permissions, system_prompt="Be brief.")
    launch = adapter.launch(Program("p", ["p"]), long)
    assert (launch.stdin or "").endswith(long.prompt)
    assert max(len(part) for part in [*launch.argv, *launch.env.values()]) < 10_000
    assert all(path.is_relative_to(task.scratch) for path in launch.files)
    assert [path for path in task.home.rglob("*") if path.is_file()] == []


@pytest.mark.parametrize("adapter", ALL, ids=lambda adapter: adapter.name)
def test_unknown_options_are_refused(adapter: Adapter, task: Task) -> None:
    with pytest.raises(InvalidWork, match="unknown options \\['colour'\\]"):
        adapter.launch(Program("p", ["p"]), replace(task, options={"colour": "red"}))


def test_pi_refuses_mcp_servers(task: Task) -> None:
    with pytest.raises(InvalidWork, match="pi has no MCP"):
        Pi().launch(Program("p", ["p"]), replace(task, mcp_servers={"a": {"command": "x"}}))


def test_pi_without_the_shell_has_no_extensions_either(task: Task) -> None:
    argv = Pi().launch(Program("p", ["p"]), replace(task, permissions="read_only")).argv
    assert argv[argv.index("--tools") + 1] == "read,grep,find,ls"
    assert "--no-extensions" in argv


def test_settings_of_pi_are_on_top_of_the_users_and_its_sessions_stay_there(task: Task) -> None:
    folder = task.home / ".pi" / "agent"
    folder.mkdir(parents=True)
    (folder / "settings.json").write_text('{"theme": "dark", "retry": {"enabled": true}}')
    (folder / "models.json").write_text('{"providers": {"mine": {"baseUrl": "http://a"}}}')
    (folder / "auth.json").write_text("{}")
    options = {"retries": 0, "providers": {"other": {"baseUrl": "http://b"}}}
    launch = Pi().launch(Program("p", ["p"]), replace(task, options=options))
    own = Path(launch.env["PI_CODING_AGENT_DIR"])
    settings = json.loads(launch.files[own / "settings.json"])
    assert (settings["theme"], settings["retry"]["enabled"]) == ("dark", False)
    assert set(json.loads(launch.files[own / "models.json"])["providers"]) == {"mine", "other"}
    assert (own / "sessions").resolve() == folder / "sessions"
    assert (own / "auth.json").resolve() == folder / "auth.json"


@pytest.mark.parametrize(
    ("models", "counts"),
    [
        ('{"providers": {"mine": {"baseUrl": "http://a"}}}', False),
        ('{"providers": {"mine": {"baseUrl": "http://a", "apiKey": "MY_KEY"}}}', True),
        ('{"providers": {"mine": 7}}', False),
        ("no JSON", False),
    ],
)  # fmt: skip
def test_models_of_pi_are_a_login_when_they_bring_a_key(task: Task, models: str, counts: bool) -> None:
    file = task.home / ".pi" / "agent" / "models.json"
    file.parent.mkdir(parents=True)
    file.write_text(models)
    assert (file in list(Pi().login_files({}, task.home))) is counts


@pytest.mark.parametrize(("config", "counts"), [
    ('// This file is managed.\n{"firstLaunchAt": "2026-11-27"}', False), ('{"loggedInUsers": []}', False), ("", False),
    ('{"lastLoggedInUser": ""}', False), ('{"loggedInUsers": [{"host": "h", "login": "me"}]}', True),
    ('// x\n{"last_logged_in_user": {"login": "me"}}', True), ('{"logged_in_users": ["me"]}', True),
])  # fmt: skip
def test_copilot_is_logged_in_when_its_configuration_names_a_user(task: Task, config: str, counts: bool) -> None:
    file = task.home / ".copilot" / "config.json"
    file.parent.mkdir()
    file.write_text(config)
    assert list(Copilot().login_files({}, task.home)) == ([file] if counts else [])
    file.unlink()
    assert list(Copilot().login_files({}, task.home)) == []


def test_pi_that_is_logged_in_has_its_users_folder(task: Task) -> None:
    folder = task.home / ".pi" / "agent"
    folder.mkdir(parents=True)
    (folder / "auth.json").write_text("{}")
    assert Pi().launch(Program("p", ["p"]), task).env["PI_CODING_AGENT_DIR"] == str(folder)


@pytest.mark.parametrize(("where", "flag"), [("work", "--session"), ("elsewhere", "--fork")])
def test_pi_goes_on_in_the_directory_of_the_effect(where: str, flag: str, task: Task) -> None:
    folder = task.home / ".pi" / "agent" / "sessions" / "--x--"
    folder.mkdir(parents=True)
    session = folder / "2026_0199.jsonl"
    session.write_text(json.dumps({"type": "session", "id": "0199", "cwd": str(task.workspace.parent / where)}) + "\n")
    resumed = replace(task, session_id="0199")
    argv = Pi().launch(Program("p", ["p"]), resumed).argv
    assert argv[argv.index(flag) + 1] == str(session)
    assert Pi().session_exists(resumed)
    assert not Pi().session_exists(replace(task, session_id="*"))


def test_opencode_counts_the_steps_of_a_session_and_of_its_helpers(task: Task) -> None:
    path = task.home / ".local" / "share" / "opencode" / "opencode.db"
    path.parent.mkdir(parents=True)
    step = {
        "type": "step-finish",
        "cost": 0.5,
        "tokens": {"input": 5, "output": 2, "reasoning": 1, "cache": {"read": 4}},
    }
    with sqlite3.connect(path) as database:
        database.execute("create table session (id text, parent_id text)")
        database.execute("create table part (session_id text, data text)")
        database.executemany("insert into session values (?, ?)", [("a", None), ("b", "a"), ("c", None)])
        rows = [("a", json.dumps(step)), ("b", json.dumps(step)), ("c", json.dumps(step)), ("a", '{"type": "text"}')]
        database.executemany("insert into part values (?, ?)", rows)
    database.close()
    assert OpenCode().consumed(task, "a") == Tokens(18, 6, 8, 0, 2, cost_usd=1.0)
    assert OpenCode().session_exists(replace(task, session_id="a"))
    assert not OpenCode().session_exists(replace(task, session_id="z"))


def test_a_database_of_opencode_that_cannot_be_read_tells_nothing(task: Task) -> None:
    assert OpenCode().consumed(task, "a") is None
    path = task.home / ".local" / "share" / "opencode" / "opencode.db"
    path.parent.mkdir(parents=True)
    path.write_text("no database")
    assert OpenCode().consumed(task, "a") is None
    assert OpenCode().session_exists(replace(task, session_id="a"))


def test_opencode_has_its_permissions_and_servers_by_its_configuration(task: Task) -> None:
    servers = {"a": {"command": "x", "args": ["-y"], "env": {"K": "v"}}, "b": {"url": "http://c"}}
    asked = replace(task, permissions="read_only", mcp_servers=servers, options={"config": {"permission": "allow"}})
    config = json.loads(OpenCode().launch(Program("p", ["p"]), asked).env["OPENCODE_CONFIG_CONTENT"])
    assert config["permission"]["*"] == "deny"
    assert "edit" not in config["permission"]
    assert config["mcp"]["a"]["command"] == ["x", "-y"]
    assert config["mcp"]["b"]["type"] == "remote"
    with pytest.raises(InvalidWork, match=r"mcp_servers\.a"):
        OpenCode().launch(Program("p", ["p"]), replace(task, mcp_servers={"a": {}}))


def test_copilot_counts_the_records_of_its_session(task: Task) -> None:
    session = Copilot().launch(Program("p", ["p"]), task).argv[-1].removeprefix("--session-id=")
    path = task.home / ".copilot" / "session-state" / session / "events.jsonl"
    path.parent.mkdir(parents=True)
    usage = {"inputTokens": 9, "outputTokens": 2, "cacheReadTokens": 4, "reasoningTokens": 1}
    record = json.dumps({"type": "session.usage_record", "data": {"usage": usage}})
    other = record.replace('"type": "session', '"of": "session.usage_record", "type": "x')
    path.write_text(f"{record}\n{other}\n{record}\n{record[:40]}")
    (path.parent.parent / "x").mkdir()
    assert Copilot().consumed(task, session) == Tokens(18, 4, 8, 0, 2)
    assert Copilot().consumed(task, f"x/../{session}") is None
    stream, _ = played(Copilot(), task, captured("copilot-sigterm"))
    assert stream.session_id == session, "it is known before it is told, at the very end"


def test_a_provider_of_ones_own_is_variables_of_copilot(task: Task) -> None:
    options = {"provider": {"base_url": "http://a", "max_prompt_tokens": 1e6}, "offline": True}
    env = Copilot().launch(Program("p", ["p"]), replace(task, options=options)).env
    assert env["COPILOT_PROVIDER_BASE_URL"] == "http://a"
    assert env["COPILOT_PROVIDER_MAX_PROMPT_TOKENS"] == "1000000"
    assert env["COPILOT_OFFLINE"] == "true"
    with pytest.raises(InvalidWork, match=r"option provider\.x=y"):
        Copilot().launch(Program("p", ["p"]), replace(task, options={"provider": {"x=y": "z"}}))
