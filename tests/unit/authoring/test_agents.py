"""What may be asked of an agent, and what is refused at the line."""

from typing import Any

import pytest

import backburner as bb


def test_what_is_asked_becomes_the_work() -> None:
    effect = bb.agent(
        "codex", prompt="p", model="m", system_prompt="s", max_turns=5, permissions="read_only",
        mcp_servers={"docs": {"command": "docs-server"}}, env={"A": "b"}, options={"retries": 1}, label="review",
    )  # fmt: skip
    assert effect.name == "review"
    assert effect.work == {
        "harness": "codex", "prompt": "p", "model": "m", "system_prompt": "s", "max_turns": 5,
        "permissions": "AGENT_PERMISSIONS_READ_ONLY", "mcp_servers": {"docs": {"command": "docs-server"}},
        "env": {"A": "b"}, "options": {"retries": 1},
    }  # fmt: skip


def test_defaults_are_left_out() -> None:
    assert bb.agent("codex", prompt="p", permissions="full", max_turns=0).work == {"harness": "codex", "prompt": "p"}


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"max_turn": 3}, "unknown options ['max_turn']; there are: cwd, workspace, model"),
        ({"max_turns": -1}, "agent: max_turns: expected 0 to 10000 turns, got -1"),
        ({"max_turns": 1.5}, "agent: max_turns: expected 0 to 10000 turns, got 1.5"),
        ({"permissions": "none"}, "agent: permissions: expected full or edit or read_only, got 'none'"),
        ({"mcp_servers": ["docs"]}, "agent: mcp_servers: expected an object"),
        ({"system_prompt": 7}, "agent: system_prompt: expected text, got 7"),
    ],
)
def test_what_makes_no_sense_is_refused_at_the_line(options: dict[str, Any], said: str) -> None:
    with pytest.raises(bb.OptionError) as refused:
        bb.agent("codex", prompt="p", **options)
    assert said in str(refused.value)
