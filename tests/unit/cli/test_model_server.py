import json
import threading
import urllib.error
import urllib.request
from collections.abc import Iterator
from typing import Any

import pytest

from tests.support.eventually import eventually
from tests.support.model_server import (
    Aside,
    Bash,
    Fault,
    Hang,
    ModelServer,
    Scenario,
    ScenarioError,
    Tool,
    Turn,
    Usage,
    Write,
    asked_and_answered,
)

SHELL = {"type": "object", "properties": {"command": {"type": "string"}}, "required": ["command", "description"]}
PATHS = {
    "anthropic": "/v1/messages",
    "chat": "/v1/chat/completions",
    "responses": "/v1/responses",
    "gemini": "/v1beta/models/some-model:streamGenerateContent?alt=sse",
}
REQUESTS: dict[str, dict[str, Any]] = {
    "anthropic": {
        "tools": [{"name": "Bash", "input_schema": SHELL}],
        "messages": [{"role": "user", "content": "go"}],
        "metadata": {"user_id": "user_0_session_11111111-2222-3333-4444-555555555555"},
    },
    "chat": {
        "tools": [{"type": "function", "function": {"name": "bash", "parameters": SHELL}}],
        "messages": [{"role": "user", "content": "go"}],
        "stream_options": {"include_usage": True},
    },
    "responses": {
        "tools": [{"type": "function", "name": "shell", "parameters": SHELL}],
        "input": [{"role": "user", "content": "go"}],
        "prompt_cache_key": "thread-1",
    },
    "gemini": {
        "tools": [{"functionDeclarations": [{"name": "run_shell_command", "parametersJsonSchema": SHELL}]}],
        "contents": [{"role": "user", "parts": [{"text": "go"}]}],
    },
}
RESULTS: dict[str, dict[str, Any]] = {
    "anthropic": {"role": "user", "content": [{"type": "tool_result", "tool_use_id": "1"}]},
    "chat": {"role": "tool", "content": "hello"},
    "responses": {"type": "function_call_output", "output": "hello"},
    "gemini": {"role": "user", "parts": [{"functionResponse": {"name": "run_shell_command"}}]},
}
MESSAGES = {"anthropic": "messages", "chat": "messages", "responses": "input", "gemini": "contents"}
PROTOCOLS = pytest.mark.parametrize("protocol", list(PATHS))


@pytest.fixture
def server() -> Iterator[ModelServer]:
    with ModelServer(asked_and_answered()) as server:
        yield server


def request(protocol: str, *, results: int = 0) -> dict[str, Any]:
    body: dict[str, Any] = json.loads(json.dumps({**REQUESTS[protocol], "model": "some-model", "stream": True}))
    body[MESSAGES[protocol]] += [RESULTS[protocol]] * results
    return body


def post(server: ModelServer, protocol: str, body: dict[str, Any], key: str = "k") -> list[dict[str, Any]]:
    """The events of the answer, parsed."""
    headers = {"content-type": "application/json", "x-api-key": key}
    asked = urllib.request.Request(server.url + PATHS[protocol], json.dumps(body).encode(), headers)
    with urllib.request.urlopen(asked, timeout=60) as answer:
        lines = answer.read().decode().split("\n")
    return [json.loads(line[6:]) for line in lines if line.startswith("data: ") and line != "data: [DONE]"]


def refused(server: ModelServer, protocol: str) -> tuple[int, dict[str, Any], dict[str, str]]:
    with pytest.raises(urllib.error.HTTPError) as caught:
        post(server, protocol, request(protocol))
    with caught.value as error:
        return error.code, json.loads(error.read()), {name.lower(): value for name, value in error.headers.items()}


def told_usage(protocol: str, events: list[dict[str, Any]]) -> Usage:
    """What a client reads from the events."""
    if protocol == "anthropic":
        usage = next(event["usage"] for event in events if event["type"] == "message_delta")
        cached = usage["cache_read_input_tokens"]
        return Usage(usage["input_tokens"] + cached, cached, usage["output_tokens"])
    if protocol == "chat":
        usage = events[-1]["usage"]
        return Usage(
            usage["prompt_tokens"], usage["prompt_tokens_details"]["cached_tokens"], usage["completion_tokens"]
        )
    if protocol == "responses":
        usage = events[-1]["response"]["usage"]
        return Usage(usage["input_tokens"], usage["input_tokens_details"]["cached_tokens"], usage["output_tokens"])
    usage = events[-1]["usageMetadata"]
    return Usage(usage["promptTokenCount"], usage["cachedContentTokenCount"], usage["candidatesTokenCount"])


@PROTOCOLS
def test_a_call_that_fits_the_tool_then_an_answer_and_the_ledger_has_what_was_told(
    server: ModelServer, protocol: str
) -> None:
    first = post(server, protocol, request(protocol))
    second = post(server, protocol, request(protocol, results=1))
    assert "echo hello" in json.dumps(first)
    assert "as the script says" in json.dumps(first), "the tool insists on an argument that the script does not have"
    assert "done." in json.dumps(second)
    asked = server.charged()
    assert [one.turn for one in asked] == [0, 1]
    assert [told_usage(protocol, first), told_usage(protocol, second)] == [one.usage for one in asked]
    assert server.total() == Usage(101 + 157, 40 + 99, 23 + 11)
    assert {(one.protocol, one.model, one.key, one.status) for one in asked} == {(protocol, "some-model", "k", 200)}


def test_the_ledger_knows_conversations_by_the_names_of_clients(server: ModelServer) -> None:
    post(server, "anthropic", request("anthropic"))
    post(server, "responses", request("responses"))
    assert [one.session for one in server.requests()] == ["11111111-2222-3333-4444-555555555555", "thread-1"]


def test_a_request_without_tools_is_answered_beside_the_conversation(server: ModelServer) -> None:
    body = request("anthropic") | {"tools": []}
    assert "Title" in json.dumps(post(server, "anthropic", body))
    assert [one.turn for one in server.charged()] == [-1]


def test_text_comes_in_words_and_is_whole_together(server: ModelServer) -> None:
    events = post(server, "anthropic", request("anthropic", results=1))
    deltas = [event["delta"]["text"] for event in events if event["type"] == "content_block_delta"]
    assert deltas == ["All ", "is ", "done."]


@pytest.mark.parametrize(
    ("kind", "protocol", "status", "said"),
    [
        ("overloaded", "anthropic", 529, ("type", "overloaded_error")),
        ("overloaded", "responses", 503, ("code", "server_is_overloaded")),
        ("overloaded", "gemini", 503, ("status", "UNAVAILABLE")),
        ("context_overflow", "anthropic", 400, ("message", "prompt is too long: 210000 tokens > 200000 maximum")),
        ("context_overflow", "chat", 400, ("code", "context_length_exceeded")),
        ("context_overflow", "responses", 400, ("code", "context_length_exceeded")),
        ("context_overflow", "gemini", 400, ("status", "INVALID_ARGUMENT")),
        ("authentication", "anthropic", 401, ("type", "authentication_error")),
        ("authentication", "chat", 401, ("code", "invalid_api_key")),
        ("authentication", "gemini", 401, ("status", "UNAUTHENTICATED")),
        ("quota", "responses", 429, ("type", "insufficient_quota")),
        ("usage_limit", "anthropic", 429, ("type", "rate_limit_error")),
        ("usage_limit", "responses", 429, ("type", "usage_limit_reached")),
        ("rate_limit", "gemini", 429, ("status", "RESOURCE_EXHAUSTED")),
        ("server", "gemini", 500, ("status", "INTERNAL")),
    ],
)
def test_refusals_are_worded_as_the_provider_does(
    server: ModelServer, kind: str, protocol: str, status: int, said: tuple[str, str]
) -> None:
    server.play(Scenario(faults=(Fault(kind),)))
    code, body, _ = refused(server, protocol)
    assert code == status
    assert said in body["error"].items()
    assert [(one.status, one.usage) for one in server.requests()] == [(status, None)]
    assert server.total() == Usage(0, 0, 0, 0)


def test_when_to_come_again_is_where_the_provider_puts_it(server: ModelServer) -> None:
    server.play(Scenario(faults=(Fault("rate_limit", retry_after=3, resets_at=1_900_000_000),)))
    _, _, headers = refused(server, "anthropic")
    assert headers["retry-after"] == "3"
    assert headers["anthropic-ratelimit-unified-reset"] == "1900000000"
    assert headers["anthropic-ratelimit-requests-reset"] == "2030-03-17T17:46:40Z"
    _, body, _ = refused(server, "responses")
    assert body["error"]["resets_at"] == 1_900_000_000
    _, body, _ = refused(server, "gemini")
    assert body["error"]["details"][-1]["retryDelay"] == "3s"


def test_a_fault_is_used_up_and_comes_only_on_its_turn(server: ModelServer) -> None:
    server.play(Scenario(turns=asked_and_answered().turns, faults=(Fault(status=500, on_turn=1, times=2),)))
    post(server, "chat", request("chat"))
    for _ in range(2):
        with pytest.raises(urllib.error.HTTPError) as caught:
            post(server, "chat", request("chat", results=1))
        caught.value.close()
    assert "done." in json.dumps(post(server, "chat", request("chat", results=1)))
    assert [one.status for one in server.requests()] == [200, 500, 500, 200]


def test_each_key_has_its_scenario_and_they_change_while_it_runs(server: ModelServer) -> None:
    server.play(Scenario(turns=(Turn(text="for-a"),)), key="a")
    assert "for-a" in json.dumps(post(server, "anthropic", request("anthropic"), "a"))
    assert "echo hello" in json.dumps(post(server, "anthropic", request("anthropic"), "b"))
    server.play(Scenario(turns=(Turn(text="changed"),)), key="a")
    assert "changed" in json.dumps(post(server, "anthropic", request("anthropic"), "a"))
    assert server.total(key="a") == Usage(200, 80, 40)
    assert [one.key for one in server.charged()] == ["a", "b", "a"]


@PROTOCOLS
async def test_a_silence_lasts_until_another_scenario_and_only_then_costs(server: ModelServer, protocol: str) -> None:
    server.play(Scenario(hangs=(Hang(after=1),)))
    told: list[Any] = []
    client = threading.Thread(target=lambda: told.extend(post(server, protocol, request(protocol))))
    client.start()
    await eventually(lambda: [one for one in server.requests() if one.status == 200])
    assert not server.charged()
    server.play(Scenario())
    client.join(60)
    assert len(server.charged()) == 1
    assert "Done." in json.dumps(told)


def test_a_dropped_answer_costs_nothing(server: ModelServer) -> None:
    server.play(Scenario(hangs=(Hang(after=2, seconds=0, drop=True, times=1),)))
    assert "Done." not in json.dumps(post(server, "anthropic", request("anthropic")))
    assert "Done." in json.dumps(post(server, "anthropic", request("anthropic")))
    assert [one.usage is None for one in server.requests()] == [True, False]


@pytest.mark.parametrize(
    ("stop", "protocol", "said"),
    [
        ("refusal", "anthropic", '"stop_reason": "refusal"'),
        ("refusal", "chat", '"finish_reason": "content_filter"'),
        ("refusal", "responses", '"reason": "content_filter"'),
        ("refusal", "gemini", '"finishReason": "SAFETY"'),
        ("length", "anthropic", '"stop_reason": "max_tokens"'),
        ("length", "gemini", '"finishReason": "MAX_TOKENS"'),
    ],
)
def test_an_answer_may_end_as_a_refusal_or_by_its_length(
    server: ModelServer, stop: str, protocol: str, said: str
) -> None:
    server.play(Scenario(turns=(Turn(text="no", stop=stop),)))
    assert said in json.dumps(post(server, protocol, request(protocol)))
    assert len(server.charged()) == 1


async def test_closing_ends_silences_and_their_threads() -> None:
    server = ModelServer(Scenario(hangs=(Hang(after=0),)))
    client = threading.Thread(target=lambda: _outcome(server))
    client.start()
    await eventually(server.requests)
    server.close()
    assert not [thread for thread in threading.enumerate() if "process_request_thread" in thread.name]
    client.join(60)
    assert not client.is_alive()


def _outcome(server: ModelServer) -> object:
    try:
        return post(server, "chat", request("chat"))
    except OSError as error:
        return error


@PROTOCOLS
def test_a_helper_of_the_agent_has_turns_of_its_own(server: ModelServer, protocol: str) -> None:
    told = Usage(7, 0, 3)
    aside = Aside("Count the files", (Turn(call=Bash("count_them"), usage=told), Turn(text="Two files.")))
    server.play(Scenario(turns=(Turn(text="Done."),), asides=(aside,)))
    helper = json.loads(json.dumps(request(protocol)).replace('"go"', '"Count the files."'))
    assert "count_them" in json.dumps(post(server, protocol, helper))
    assert server.total() == told
    helper[MESSAGES[protocol]].append(RESULTS[protocol])
    assert "files." in json.dumps(post(server, protocol, helper))
    assert "Done." in json.dumps(post(server, protocol, request(protocol)))


def test_a_tool_within_a_namespace_is_called_there(server: ModelServer) -> None:
    scales = {"type": "namespace", "name": "mcp__scales", "tools": [{"type": "function", "name": "weigh"}]}
    server.play(Scenario(turns=(Turn(call=Tool("mcp__scales.weigh", {"thing": "anvil"})),)))
    body = request("responses") | {"tools": [scales]}
    [call] = [item for event in post(server, "responses", body) for item in event.get("response", {}).get("output", [])]
    assert (call["namespace"], call["name"]) == ("mcp__scales", "weigh")
    assert server.requests()[0].tools == ("mcp__scales.weigh",)


def test_a_scenario_of_json_is_the_scenario() -> None:
    document = {
        "turns": [
            {"bash": "ls", "usage": {"input": 5, "cached": 0, "output": 1}},
            {"write": {"path": "a.txt", "content": "x"}},
            {"tool": {"name": "Task", "args": {"id": 1}}},
            {"text": "Done.", "thinking": "hm", "stop": "length"},
        ],
        "usage": [{"input": 1, "cached": 0, "output": 2, "reasoning": 1}, {"output": 9}],
        "error": {"status": 500, "message": "boom", "on_turn": 1, "times": -1, "headers": {"x": 1}},
        "hang": {"on_turn": None, "seconds": 2, "after": 0, "times": 1},
        "asides": {"asked": "Count", "turns": [{"bash": "ls"}, {"text": "Two."}]},
        "chunk_delay_s": 0.5,
    }
    scenario = Scenario.of(document)
    assert scenario == Scenario(
        turns=(
            Turn(call=Bash("ls"), usage=Usage(5, 0, 1)),
            Turn(call=Write("a.txt", "x")),
            Turn(call=Tool("Task", {"id": 1})),
            Turn(text="Done.", thinking="hm", stop="length"),
        ),
        usage=(Usage(1, 0, 2, 1), Usage(output=9)),
        faults=(Fault(status=500, message="boom", on_turn=1, headers={"x": "1"}),),
        hangs=(Hang(on_turn=None, seconds=2, after=0, times=1),),
        asides=(Aside("Count", (Turn(call=Bash("ls")), Turn(text="Two."))),),
        chunk_delay=0.5,
    )
    assert [scenario.usage_of(index).output for index in (-1, 0, 1, 3)] == [2, 1, 9, 9]


@pytest.mark.parametrize(
    ("document", "message"),
    [
        ([], "scenario: an object is expected, found a list"),
        ({"turn": []}, "scenario.turn: unknown field; known: asides, aux_text, chunk_delay_s, error, hang,"),
        ({"turns": [{}]}, "scenario.turns[0]: say what is answered: text, bash, write or tool"),
        ({"turns": [{"bash": 1}]}, "scenario.turns[0].bash: a string is expected, found a whole number"),
        ({"turns": [{"write": {"path": True}}]}, "scenario.turns[0].write.path: a string is expected, found true or"),
        ({"asides": {"asked": "Count"}}, "scenario.asides: say what is asked, and the turns that answer it"),
        ({"usage": {"input": -1}}, "scenario.usage.input: -1 is below 0"),
        ({"error": [{"kind": "bad"}]}, "scenario.error[0].kind: 'bad' is none of authentication, invalid_key"),
    ],
)
def test_a_scenario_that_cannot_be_played_names_the_field(document: object, message: str) -> None:
    with pytest.raises(ScenarioError) as caught:
        Scenario.of(document)
    assert str(caught.value).startswith(message)
