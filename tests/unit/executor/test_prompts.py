"""Prompts as templates, and the files that belong to them."""

import os
from pathlib import Path
from typing import Any

import pytest

from executor_service.assignment import InvalidWork
from executor_service.harness.prompts import INLINE_BYTES_MAX, attached, render
from scheduler_service.authoring.templates import template_problems

INPUTS: dict[str, Any] = {"name": "Ann", "spec": {"lines": ["a", "b"], "n": 3}, "evil": "{{name}}"}


@pytest.mark.parametrize(
    ("template", "text"),
    [
        ("Hello {{name}}, {{ spec.n }} {{spec.lines.1}}", "Hello Ann, 3 b"),
        ("{{spec.lines}}", '[\n  "a",\n  "b"\n]'),
        ("{{evil}}", "{{name}}"),
        ("{{{{name}} {not} }} {", "{{name}} {not} }} {"),
        ("{{{{{{{{", "{{{{"),
    ],
)
def test_places_are_filled_in(template: str, text: str) -> None:
    assert render(template, INPUTS, "prompt") == text
    assert list(template_problems(template, INPUTS)) == []


@pytest.mark.parametrize(
    "template",
    ["{{nobody}}", "{{name.first}}", "{{spec.lines.2}}", "{{spec.lines.-1}}", "{{}}", "{{name", "{{name!r}}",
     "{{spec.__class__}}", "{{ name | upper }}", "{{spec..n}}"],
)  # fmt: skip
def test_a_place_that_names_nothing_is_an_error(template: str) -> None:
    with pytest.raises(InvalidWork, match="prompt: "):
        render(template, INPUTS, "prompt")
    assert len(list(template_problems(template, INPUTS))) == 1, "and found where it is asked for"


def test_small_texts_stand_in_the_prompt_and_all_else_is_named(tmp_path: Path) -> None:
    (tmp_path / "a.md").write_text("```\ncode\n```\n")
    (tmp_path / "large.txt").write_text("x" * (INLINE_BYTES_MAX + 1))
    (tmp_path / "raw.bin").write_bytes(b"\xff\x00")
    files = [{"path": "a.md"}, {"path": "large.txt"}, {"path": str(tmp_path / "raw.bin"), "name": "raw"}, {"path": "."}]
    assert attached("Do it.", files, str(tmp_path)).split("\n\n") == [
        "Do it.",
        f"Attached: `a.md` ({tmp_path}/a.md)\n````\n```\ncode\n```\n````",
        f"Attached: `large.txt`. Read it at {tmp_path}/large.txt",
        f"Attached: `raw`. Read it at {tmp_path}/raw.bin",
        f"Attached: `{tmp_path.name}`. Read it at {tmp_path}",
    ]


def test_a_pipe_is_refused_and_waits_for_nobody(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(
        InvalidWork, match=r"attachments\[0\]: '.*pipe' is a named pipe, neither a file nor a directory"
    ):
        attached("p", [{"path": "pipe"}], str(tmp_path))


def test_all_of_them_together_are_bounded(tmp_path: Path) -> None:
    for number in range(10):
        (tmp_path / f"{number}").write_text("x" * INLINE_BYTES_MAX)
    prompt = attached("p", [{"path": f"{number}"} for number in range(10)], str(tmp_path))
    assert prompt.count("Read it at") == 2


@pytest.mark.parametrize(
    ("attachment", "said"),
    [
        ({"path": "missing"}, r"attachments\[0\]: '.*missing' cannot be read: No such file"),
        ({"name": "x"}, r"attachments\[0\]: it has no path"),
        ({"path": "a\0"}, r"attachments\[0\]: it has no path"),
    ],
)
def test_a_file_that_is_not_there_is_named(tmp_path: Path, attachment: dict[str, str], said: str) -> None:
    with pytest.raises(InvalidWork, match=said):
        attached("p", [attachment], str(tmp_path))
    with pytest.raises(InvalidWork, match="neither cwd nor workspace"):
        attached("p", [{"path": "a"}], "")
