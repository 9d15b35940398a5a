"""What users give the agent CLIs of an executor: prices, commands, options, programs; and what they are told."""

import json
import stat
from pathlib import Path
from typing import Any

import orjson
import pytest

from backburner.scheduler.v1 import dispatch_service_pb2 as pb
from executor_service.assignment import InvalidWork
from executor_service.errors import StartError
from executor_service.harness.cli.adapter import Program, Task
from executor_service.harness.cli.builtin import ADAPTERS, find_builtin
from executor_service.harness.cli.claude_code import ClaudeCode
from executor_service.harness.cli.codex import Codex
from executor_service.harness.cli.command import CommandAdapter, load_commands
from executor_service.harness.cli.copilot import Copilot
from executor_service.harness.cli.discovery import look
from executor_service.harness.cli.events import Ended, SessionKnown, Spent, Tokens, Trouble, TurnStarted
from executor_service.harness.cli.prices import load_prices
from executor_service.harness.cli.versions import VERSIONS, Versions, is_before
from executor_service.settings import Settings


def task(folder: Path, **given: Any) -> Task:
    return Task(**{"prompt": "p", "workspace": folder, "scratch": folder, "home": folder, "env": {}, **given})


def test_a_model_has_its_price_with_and_without_a_date_and_an_unknown_one_has_none() -> None:
    prices = load_prices("")
    tokens = Tokens(input=1_000_000, output=100_000, cached=400_000)
    assert prices.cost("gpt-5", tokens) == pytest.approx(0.6 * 1.25 + 0.4 * 0.125 + 0.1 * 10)
    assert prices.cost("gpt-5-2025-08-07", tokens) == prices.cost("gpt-5", tokens)
    assert prices.cost("gpt-5-enormous", tokens) is None


def test_a_table_of_the_user_goes_over_the_shipped_one(tmp_path: Path) -> None:
    path = tmp_path / "prices.json"
    path.write_text(json.dumps({"models": {"gpt-5": [10, 10, 10, 10], "ours": [1, 2, 3, 4]}}))
    prices = load_prices(str(path))
    assert prices.cost("gpt-5", Tokens(1_000_000)) == 10
    assert prices.cost("ours", Tokens(1_000_000, 1_000_000)) == 3
    assert prices.cost("gpt-5-mini", Tokens(1_000_000)) == 0.25


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("{", "cannot be read"),
        ("[]", "has no object `models`"),
        ('{"models": {"m": [1, 2, 3]}}', "has no prices for 'm': expected four numbers"),
        ('{"models": {"m": [1, 2, 3, -4]}}', "has no prices for 'm'"),
        ('{"models": {"m": [1, 2, 3, true]}}', "has no prices for 'm'"),
    ],
)
def test_a_table_that_is_none_is_named(tmp_path: Path, content: str, said: str) -> None:
    path = tmp_path / "prices.json"
    path.write_text(content)
    with pytest.raises(StartError, match="price table") as refused:
        load_prices(str(path))
    assert said in str(refused.value)


LINES: dict[str, Any] = {
    "argv": ["my-agent", "--model", "{model}", "--dir={workspace}", "--fast"], "resume": ["--resume", "{session}"],
    "session": "sid", "text": "message.text", "usage": {"input": "u.in", "output": "u.out", "cost_usd": "u.cost"},
    "success": {"type": "done", "ok": True}, "failure": {"type": "done", "ok": False}, "error": "error.message",
}  # fmt: skip


def test_places_are_filled_in_and_an_empty_one_goes_with_its_flag(tmp_path: Path) -> None:
    adapter = CommandAdapter("my-agent", LINES)
    program = Program("/bin/my-agent", ["/bin/my-agent"])
    plain = adapter.launch(program, task(tmp_path))
    assert plain.argv == ["/bin/my-agent", f"--dir={tmp_path}", "--fast"]
    assert plain.stdin == "p"
    full = adapter.launch(program, task(tmp_path, model="m", session_id="s", options={"args": ["-v"]}))
    assert full.argv == ["/bin/my-agent", "--model", "m", f"--dir={tmp_path}", "--fast", "--resume", "s", "-v"]


@pytest.mark.parametrize(
    ("asked", "place", "filled"),
    [
        ({"system_prompt": "Be brief."}, "{system_prompt}", "Be brief."),
        ({"max_turns": 3}, "{max_turns}", "3"),
        ({"permissions": "read_only"}, "{permissions}", "read_only"),
        ({"mcp_servers": {"a": {"command": "x"}}}, "{mcp_servers}", '{"a": {"command": "x"}}'),
    ],
)
def test_what_is_asked_for_and_has_no_place_is_refused(
    tmp_path: Path, asked: dict[str, Any], place: str, filled: str
) -> None:
    program = Program("/bin/my-agent", ["/bin/my-agent"])
    with pytest.raises(InvalidWork, match=f"^{place[1:-1]}: the command of harness my-agent has no {place}"):
        CommandAdapter("my-agent", LINES).launch(program, task(tmp_path, **asked))
    with_place = CommandAdapter("my-agent", LINES | {"env": {"ASKED": place}})
    assert with_place.launch(program, task(tmp_path, **asked)).env == {"ASKED": filled}
    assert with_place.launch(program, task(tmp_path)).env == {"ASKED": ""}


def test_named_fields_of_json_lines_are_read(tmp_path: Path) -> None:
    parser = CommandAdapter("my-agent", LINES).parser(task(tmp_path), Tokens())
    assert list(parser.take({"sid": "s-1"})) == [SessionKnown("s-1")]
    assert list(parser.take({"u": {"in": 7, "out": 2, "cost": 0.5}})) == [
        Spent(Tokens(7.0, 2.0, cost_usd=0.5), total=True)
    ]
    assert list(parser.take({"error": {"message": "hm"}})) == [Trouble("hm")]
    assert list(parser.take({"type": "done", "ok": True})) == [Ended(True)]
    [failed] = parser.take({"type": "done", "ok": False, "error": {"message": "429 too many requests"}})
    assert isinstance(failed, Ended)
    assert failed.failure is not None
    assert failed.failure.reason == "RATE_LIMITED"
    for nothing in ({"type": "done", "ok": 1}, {"type": "done"}, "done", None, [1], {"type": "done", "ok": "true"}):
        assert list(parser.take(nothing)) == []


def test_all_of_a_plain_text_is_the_answer_when_it_exits_well(tmp_path: Path) -> None:
    for status, ended in ((0, [Ended(True, "one\n2")]), (1, [])):
        parser = CommandAdapter("t", {"argv": ["t"], "output": "text"}).parser(task(tmp_path), Tokens())
        list(parser.take("one"))
        list(parser.take(2))
        assert list(parser.close(status)) == ended


@pytest.mark.parametrize(
    ("name", "changed", "said"),
    [
        ("My Agent", {}, "a harness's name has small letters"),
        ("shell", {}, "the executor's own harness has this name"),
        ("function", {}, "the executor's own harness has this name"),
        ("a", {"argv": []}, "argv: expected a list of texts, the program first"),
        ("a", {"argv": "a"}, "argv: expected a list of texts"),
        ("a", {"success": {}}, "success: without the fields of the line"),
        ("a", {"prompts": "stdin"}, "unknown fields ['prompts']; there are: argv"),
        ("a", {"prompt": "file"}, "prompt: expected one of stdin, argument, argv"),
        ("a", {"signal": "SIGKILL"}, "signal: expected one of SIGTERM"),
        ("a", {"usage": {"tokens": "t"}}, "usage: expected an object of texts with input, output, cached, cost_usd"),
        ("a", {"exits": {"x": "MAX_TURNS"}}, "exits: expected classes by exit code"),
        ("a", {"silence_s": 0}, "silence_s: expected seconds above 0"),
        ("a", {"session_lost": "no ("}, "session_lost: expected a regular expression"),
    ],
)
def test_a_configuration_that_cannot_work_is_named(
    tmp_path: Path, name: str, changed: dict[str, Any], said: str
) -> None:
    path = tmp_path / "commands.json"
    path.write_text(json.dumps({name: LINES | changed}))
    with pytest.raises(StartError) as refused:
        load_commands(str(path))
    assert f"{path!s}': {name!r}: {said}" in str(refused.value)


@pytest.mark.parametrize("adapter", ADAPTERS, ids=lambda adapter: adapter.name)
def test_an_option_that_there_is_not_is_refused(tmp_path: Path, adapter: Any) -> None:
    with pytest.raises(InvalidWork, match=r"unknown options \['retrys'\]; there are: account"):
        adapter.launch(Program("x", ["x"]), task(tmp_path, options={"retrys": 1}))


@pytest.mark.parametrize("adapter", [ClaudeCode(), Codex()], ids=lambda adapter: adapter.name)
def test_a_prompt_goes_to_stdin(tmp_path: Path, adapter: Any) -> None:
    launch = adapter.launch(Program("it", ["it"]), task(tmp_path, prompt="short"))
    assert launch.stdin == "short"
    assert "short" not in launch.argv


def test_a_session_of_claude_is_looked_for_where_the_effect_says(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CLAUDE_CONFIG_DIR", str(tmp_path / "executor"))
    given = task(tmp_path, session_id="s-1", env={"CLAUDE_CONFIG_DIR": str(tmp_path / "effect")})
    (tmp_path / "effect" / "projects" / "p").mkdir(parents=True)
    (tmp_path / "effect" / "projects" / "p" / "s-1.jsonl").touch()
    assert ClaudeCode().session_exists(given)
    assert not ClaudeCode().session_exists(task(tmp_path, session_id="s-1"))


def claude_sum(tokens: int, cost: float) -> dict[str, Any]:
    model = {"inputTokens": tokens, "outputTokens": tokens, "cacheReadInputTokens": tokens}
    return {"modelUsage": {"m": model}, "totalCostUSD": cost, "total_cost_usd": cost}


def claude_totals(tmp_path: Path, before: Tokens | None, **result: Any) -> Tokens:
    usage = {"input_tokens": 5, "output_tokens": 5, "cache_read_input_tokens": 5}
    line = {"type": "result", "subtype": "success", "is_error": False, "usage": usage, **result}
    events = ClaudeCode().parser(task(tmp_path), before or Tokens()).take(line)
    return next(event.tokens for event in events if isinstance(event, Spent))


def test_a_claude_that_adds_up_over_a_session_is_counted_from_its_last_sum(tmp_path: Path) -> None:
    given = task(tmp_path, session_id="s-1")
    session = given.home / ".claude" / "projects" / "p" / "s-1.jsonl"
    session.parent.mkdir(parents=True)
    session.touch()
    assert ClaudeCode().consumed(given, "s-1") is None, "an older release writes none"
    lines = [{"type": "cost-state", **claude_sum(3, 0.3)}, {"type": "cost-state", **claude_sum(7, 0.5)}, {"type": "x"}]
    session.write_bytes(b"".join(orjson.dumps(line) + b"\n" for line in lines))
    before = ClaudeCode().consumed(given, "s-1")
    assert before == Tokens(14, 7, 7, cost_usd=0.5)
    spent = claude_totals(tmp_path, before, **claude_sum(12, 0.75))
    assert spent == Tokens(10, 5, 5, cost_usd=0.25), "what is new"
    spent = claude_totals(tmp_path, before, **claude_sum(5, 0.1))
    assert spent == Tokens(10, 5, 5, cost_usd=0.1), "an older release goes on with the session: it counts the run only"
    assert claude_totals(tmp_path, None, **claude_sum(5, 0.1)) == spent


@pytest.mark.parametrize("cut", [b'{"type":"cost-state","modelUsage":{"m":{"inputTok', b'{"type":"cost-state"}'])
def test_a_sum_that_says_nothing_is_none_to_claude(tmp_path: Path, cut: bytes) -> None:
    given = task(tmp_path, session_id="s-1")
    session = given.home / ".claude" / "projects" / "p" / "s-1.jsonl"
    session.parent.mkdir(parents=True)
    session.write_bytes(cut)
    assert ClaudeCode().consumed(given, "s-1") in (None, Tokens())


def test_what_helpers_of_claude_say_at_a_time_counts_for_each(tmp_path: Path) -> None:
    def said(helper: str, event: dict[str, Any]) -> dict[str, Any]:
        return {"type": "stream_event", "parent_tool_use_id": helper or None, "event": event}

    parser = ClaudeCode().parser(task(tmp_path), Tokens())
    for helper, request, tokens in (("t-1", "r-1", 10), ("t-2", "r-2", 20)):
        start = {"type": "message_start", "message": {"id": request, "usage": {"input_tokens": tokens}}}
        list(parser.take(said(helper, start)))
    delta = {"type": "message_delta", "usage": {"output_tokens": 3}}
    assert list(parser.take(said("t-1", delta))) == [Spent(Tokens(10, 3), request="r-1")]
    assert list(parser.take(said("t-2", delta))) == [Spent(Tokens(20, 3), request="r-2")]


@pytest.mark.parametrize(("bound", "ok", "turns"), [(0, True, 3), (2, False, 2), (3, True, 3)])
def test_codex_is_ended_at_its_bound_of_turns(tmp_path: Path, bound: int, ok: bool, turns: int) -> None:
    def item(kind: str, number: int) -> dict[str, Any]:
        return {"type": f"item.{kind}", "item": {"id": f"i-{number}", "type": "command_execution", "status": kind}}

    lines: list[dict[str, Any]] = [{"type": "turn.started"}]
    lines += [item("started", 1), item("started", 2), item("completed", 1), item("completed", 2)]
    lines += [item("started", 3), item("completed", 3), {"type": "turn.completed", "usage": {"input_tokens": 1}}]
    parser = Codex().parser(task(tmp_path, max_turns=bound), Tokens())
    said = [event for line in lines for event in parser.take(line)]
    [ended] = [event for event in said if isinstance(event, Ended)]
    assert (ended.ok, ended.stop) == (ok, not ok)
    assert sum(isinstance(event, TurnStarted) for event in said) == turns
    assert said[-1] is ended


def test_settings_of_codex_are_toml(tmp_path: Path) -> None:
    config = {"model_providers.ours": {"base_url": "http://x", "n": 2.0, "on": True, "list": ["a", 1]}}
    argv = Codex().launch(Program("codex", ["codex"]), task(tmp_path, options={"config": config})).argv
    assert 'model_providers.ours={"base_url"="http://x","n"=2,"on"=true,"list"=["a",1]}' in argv


async def test_discovery_says_what_is_there_and_what_to_do(tmp_path: Path) -> None:
    for name, says in (("claude", "2.5.0 (Claude Code)"), ("codex", "codex-cli 99.0.1")):
        program = tmp_path / name
        program.write_text(f"#!/bin/sh\necho '{says}'\n")
        program.chmod(program.stat().st_mode | stat.S_IXUSR)
    missing = tmp_path / "missing"
    paths = {"claude-code": str(tmp_path / "claude"), "codex": str(tmp_path / "codex")}
    claude = await look(ClaudeCode(), paths["claude-code"], tmp_path)
    codex = await look(Codex(), paths["codex"], tmp_path)
    assert claude.program is not None
    assert (claude.check.found, claude.check.version, claude.check.version_known) == (True, "2.5.0", True)
    assert claude.check.login == pb.HARNESS_LOGIN_MISSING
    assert claude.check.remedy == f"not logged in: {ClaudeCode.login_remedy}"
    assert (codex.check.version, codex.check.version_known) == ("99.0.1", False)
    assert codex.program is not None, "it is used all the same"
    known = VERSIONS["codex"]
    said = f"(tested: {', '.join(known.tested)}; known: {known.first} and later, below {known.below})"
    assert f"version 99.0.1 is used, but not known to work {said}" in codex.check.remedy
    gone = await look(Codex(), str(missing), tmp_path)
    assert (gone.program, gone.check.found) == (None, False)
    assert (
        gone.check.remedy
        == f"{str(missing)!r} is no program: install it, or name it with --harness-path codex=/path/to/it"
    )


async def test_a_described_cli_that_is_missing_is_named_as_it_is_described(tmp_path: Path) -> None:
    def text(program: str) -> dict[str, object]:
        return {"argv": [program], "output": "text"}

    commands = tmp_path / "commands.json"
    commands.write_text(json.dumps({"mine": text(str(tmp_path / "gone")), "other": text("no-such-cli")}))
    mine, other = [await look(adapter, "", tmp_path) for adapter in load_commands(str(commands))]
    assert mine.check.remedy.startswith(f"{str(tmp_path / 'gone')!r} is no program: install it, or name it")
    assert other.check.remedy.startswith("no no-such-cli on PATH: install it, or name it")


async def test_logins_in_a_home_that_is_not_to_be_read_are_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    program = tmp_path / "codex"
    program.write_text("#!/bin/sh\necho 0.170.0\n")
    program.chmod(0o755)
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    monkeypatch.delenv("CODEX_API_KEY", raising=False)

    def refused(path: Path) -> bool:
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(Path, "exists", refused)  # tests may run as root, who may read everything
    found = await look(Codex(), str(program), tmp_path)
    assert (found.check.found, found.check.login) == (True, pb.HARNESS_LOGIN_MISSING)


async def test_an_executor_without_a_home_starts_when_it_wants_no_agents(monkeypatch: pytest.MonkeyPatch) -> None:
    def homeless() -> Path:
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.setattr(Path, "home", homeless)
    assert find_builtin(Settings(database_url="x", agents=("none",))).checks == []
    with pytest.raises(StartError, match="Set HOME, or want none of them with BACKBURNER_AGENTS=none"):
        find_builtin(Settings(database_url="x", agents=("codex",)))


@pytest.mark.parametrize(
    ("script", "said"), [("exit 3", "ended with 3"), ("echo hm", "said 'hm'"), ("kill -9 $$", "-9")]
)
async def test_a_program_that_does_not_run_is_not_offered(tmp_path: Path, script: str, said: str) -> None:
    program = tmp_path / "codex"
    program.write_text(f"#!/bin/sh\n{script}\n")
    program.chmod(0o755)
    found = await look(Codex(), str(program), tmp_path)
    assert found.program is None
    assert said in found.check.remedy


async def test_names_that_there_are_not_are_refused() -> None:
    with pytest.raises(StartError, match="BACKBURNER_AGENTS: there is no harness 'cluade'; there are: claude-code"):
        find_builtin(Settings(database_url="x", agents=("cluade",)))
    with pytest.raises(StartError, match="BACKBURNER_HARNESS_PATHS: there is no harness 'cluade'"):
        find_builtin(Settings(database_url="x", agents=("none",), harness_paths=("cluade=/x",)))


@pytest.mark.parametrize(
    ("version", "known"),
    [("2.0.0", True), ("2.9", True), ("1.9.9", False), ("3.0.0", False), ("", False), ("0.9.1", True)],
)
def test_a_version_is_known_in_its_range(version: str, known: bool) -> None:
    assert Versions(["0.9.1"], "2.0.0", "3").known(version) is known


@pytest.mark.parametrize(("version", "before"), [("1.0.92", True), ("1.0.102", False), ("2.0", False), ("", False)])
def test_a_flag_is_kept_from_releases_that_do_not_start_with_it(tmp_path: Path, version: str, before: bool) -> None:
    assert is_before(version, "1.0.102") is before
    launch = Copilot().launch(Program("copilot", ["copilot"], version), task(tmp_path))
    assert ("--disable-client-telemetry" in launch.argv) is not before


def test_the_releases_that_the_tests_run_are_said_to_be_tested_and_known() -> None:
    packages = {
        "@anthropic-ai/claude-code": "claude-code", "@openai/codex": "codex", "@google/gemini-cli": "gemini-cli",
        "opencode-ai": "opencode", "@mariozechner/pi-coding-agent": "pi", "@qwen-code/qwen-code": "qwen-code",
        "@github/copilot": "copilot",
    }  # fmt: skip
    releases = Path(__file__).parents[2] / "harnesses" / "releases"
    pinned = [json.loads(path.read_text())["dependencies"] for path in releases.glob("*/package.json")]
    tested = {name: {one[package] for one in pinned if package in one} for package, name in packages.items()}
    assert set(VERSIONS) == set(packages.values()) == {adapter.name for adapter in ADAPTERS}
    for name, known in VERSIONS.items():
        assert set(known.tested) == tested[name]
        assert known.first == known.tested[0], "make test-releases runs the oldest that is known to work"
        assert all(map(Versions((), known.first, known.below).known, known.tested)), "the range has them all"
