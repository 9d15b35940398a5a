"""The README is part of the product: what it names exists, and what it draws is drawn from the code.

`python -m tests.contract.test_readme` writes the diagrams anew.
"""

import re
from pathlib import Path

from scheduler_service.replay.states import EFFECT_TRANSITIONS, RUN_TRANSITIONS, EffectState, RunState, mermaid

ROOT = Path(__file__).parents[2]
README = ROOT / "README.md"

DIAGRAMS = {
    "effect": mermaid(EFFECT_TRANSITIONS, [EffectState.QUEUED, EffectState.WAITING]),
    "run": mermaid(RUN_TRANSITIONS, [RunState.RUNNING]),
}


def with_diagrams(text: str) -> str:
    """The text with the diagrams as the code draws them."""
    for name, diagram in DIAGRAMS.items():
        begin = f"<!-- {name} states: generated from scheduler_service/replay/states.py -->\n"
        before, found, rest = text.partition(begin)
        assert found, f"the README has no place for the {name} states"
        _, end, after = rest.partition("<!-- end -->")
        text = f"{before}{begin}```mermaid\n{diagram}\n```\n{end}{after}"
    return text


def test_diagrams_are_current() -> None:
    assert README.read_text() == with_diagrams(README.read_text()), "run: python -m tests.contract.test_readme"


def test_every_path_exists() -> None:
    paths = re.findall(r"`((?:scheduler_service|executor_service|proto|deploy|tests)/[\w./-]*)`", README.read_text())
    assert len(paths) > 20
    assert [path for path in paths if not (ROOT / path).exists()] == []


if __name__ == "__main__":
    README.write_text(with_diagrams(README.read_text()))
