"""Plans for runs, drawn from a seed."""

import random
from collections.abc import Callable, Mapping
from typing import Any, Final

Step = dict[str, Any]
Draw = random.Random

STEPS_MAX: Final = 6


def _attempts(draw: Draw) -> int:
    return draw.choice((1, 1, 2, 4))


def _seconds(draw: Draw, most: float) -> float:
    return round(draw.choice((0.0, draw.uniform(0, most / 4), draw.uniform(0, most))), 3)


def _shell(draw: Draw) -> Step:
    output = draw.choice((10, 1000, 300_000))
    exit_code = draw.choice((0, 0, 0, 3))
    return {"attempts": _attempts(draw), "seconds": _seconds(draw, 3), "output": output, "exit": exit_code}


_DRAWN: Final[Mapping[str, Callable[[Draw], Step]]] = {
    "call": lambda draw: {"attempts": _attempts(draw), "seconds": _seconds(draw, 1)},
    "shell": _shell,
    "flaky": lambda draw: {"attempts": 8, "failures": draw.randint(0, 3)},
    "wide": lambda draw: {"attempts": _attempts(draw), "size": draw.choice((10, 70_000, 200_000))},
    "background": _shell,
    "race": lambda draw: {"attempts": _attempts(draw), "seconds": _seconds(draw, 1)},
    "timeout": lambda draw: {"seconds": draw.uniform(0.05, 1.0)},
    "cancel": lambda draw: {"seconds": draw.choice((0.001, draw.uniform(0.01, 1.0)))},
    "sleep": lambda draw: {"seconds": draw.uniform(0.01, 1.5)},
    "timer": lambda draw: {"seconds": draw.uniform(0.01, 1.5)},
    "group": lambda draw: {"attempts": _attempts(draw), "count": draw.randint(2, 8)},
    "signal": lambda _draw: {},
    "ask": lambda _draw: {},
    "say": lambda draw: {"count": draw.randint(1, 5)},
    "left": lambda draw: _shell(draw) | {"cancel": draw.random() < 0.5},
}


def plan(draw: Draw, depth: int = 0) -> list[Step]:
    """Some steps, with child runs and new beginnings among them."""
    steps = [_step(draw, depth) for _ in range(draw.randint(1, STEPS_MAX))]
    if draw.random() < 0.1:
        steps.insert(draw.randint(0, len(steps)), {"kind": "continue"})
    return steps


def _step(draw: Draw, depth: int) -> Step:
    if depth < 2 and draw.random() < 0.12:
        return {"kind": "child", "plan": plan(draw, depth + 1)}
    kind = draw.choice(list(_DRAWN))
    return {"kind": kind} | _DRAWN[kind](draw)
