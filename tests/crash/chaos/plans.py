"""Plans for runs, drawn from a seed."""

import random
from collections.abc import Callable, Mapping
from typing import Any, Final

from tests.crash.chaos import agents

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


def _script(draw: Draw) -> Step:
    return {
        "requests": draw.randint(0, 4), "pause": round(draw.choice((0.0, draw.uniform(0, 0.5))), 3),
        "writes": draw.random() < 0.7, "leaves": draw.random() < 0.15, "stubborn": draw.random() < 0.15,
        "exit": draw.choice((0, 0, 0, 0, 0, 7)),
    }  # fmt: skip


def _agent(draw: Draw) -> Step:
    """An agent that nothing is wrong with but what is done to it."""
    keep = draw.choice(("on_failure", "always", "never"))
    exclusive = f"exclusive:{draw.randrange(agents.EXCLUSIVE_MAX)}"
    place = draw.choice(("", "", f"worktree:{keep}", f"worktree:{keep}", f"copy:{keep}", exclusive))
    step = {"attempts": _attempts(draw), "script": _script(draw), "workspace": place}
    return step | {"harness": draw.choice((agents.AGENT, agents.AGENT, agents.TOTAL))}


def _mend(draw: Draw) -> Step:
    misfit = {"misfit": draw.random() < 0.8, "exit": 0}
    return {"attempts": _attempts(draw), "script": _script(draw) | misfit, "harness": agents.AGENT}


def _refused(draw: Draw) -> Step:
    """A provider refuses at first, before anything is done or after it."""
    seconds, late = draw.choice((2, 2, 3)), draw.random() < 0.3
    words = draw.choice((f"usage limit reached, try again in {seconds} s", f"rate limit: retry after {seconds} s"))
    failure = {"message": words, "late": late, "attempts": draw.choice((1, 1, 2))}
    step = {"attempts": draw.choice((1, 3, 5)), "script": _script(draw) | {"fail": failure, "exit": 0}}
    chain = {"fallbacks": [agents.AGENT]} if draw.random() < 0.3 else {}
    return step | chain | {"harness": agents.QUOTA, "on_quota": draw.choice(("fail_over", "park", "park", "fail"))}


def _chain(draw: Draw) -> Step:
    """A provider that is down, or that nobody is logged in with; another one takes over."""
    name, words = draw.choice(
        ((agents.BUSY, "the model is overloaded"), (agents.LOGIN, "not logged in, please log in"))
    )
    script = _script(draw) | {"fail": {"message": words, "as": name, "late": draw.random() < 0.2}}
    return {"attempts": _attempts(draw), "script": script, "harness": name, "fallbacks": [agents.AGENT, agents.TOTAL]}


def _bounded(draw: Draw) -> Step:
    """Agents that go on until their budget ends them, or that of the run does."""
    script = {"requests": draw.choice((3, 60)), "pause": 0.05, "writes": True, "stubborn": draw.random() < 0.3}
    own = {"tokens": draw.choice((2_000, 8_000, 20_000))} if draw.random() < 0.7 else {}
    return own | {
        "attempts": _attempts(draw), "script": script, "harness": agents.AGENT, "count": draw.randint(1, 3),
        "workspace": draw.choice(("", "worktree:never")),
    }  # fmt: skip


def _again(draw: Draw) -> Step:
    return _agent(draw) | {"harness": agents.AGENT, "workspace": ""}


_AGENTS: Final[Mapping[str, Callable[[Draw], Step]]] = {
    "agent": _agent, "mend": _mend, "refused": _refused, "chain": _chain, "team": _bounded, "again": _again,
}  # fmt: skip
#: Steps whose player is that of another kind.
_PLAYED_AS: Final = {"mend": "agent", "refused": "agent", "chain": "agent"}
#: Share of the steps that agents do.
_AGENTS_SHARE: Final = 0.5
#: Steps that agents do, as they are played.
BY_AGENTS: Final = frozenset(_PLAYED_AS.get(kind, kind) for kind in _AGENTS)


def plan(draw: Draw, depth: int = 0) -> list[Step]:
    """Some steps, with child runs and new beginnings among them."""
    steps = [_step(draw, depth) for _ in range(draw.randint(1, STEPS_MAX))]
    if draw.random() < 0.1:
        steps.insert(draw.randint(0, len(steps)), {"kind": "continue"})
    return steps


def _step(draw: Draw, depth: int) -> Step:
    if depth < 2 and draw.random() < 0.12:
        return {"kind": "child", "plan": plan(draw, depth + 1)}
    if draw.random() < _AGENTS_SHARE:
        kind = draw.choice(list(_AGENTS))
        return {"kind": _PLAYED_AS.get(kind, kind)} | _AGENTS[kind](draw)
    kind = draw.choice(list(_DRAWN))
    return {"kind": kind} | _DRAWN[kind](draw)
