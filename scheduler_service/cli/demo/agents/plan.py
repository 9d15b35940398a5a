"""Who does what: which harness takes which role, and whose account that is. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import chain, cycle, islice, repeat
from typing import Final

from backburner.scheduler.v1 import dispatch_service_pb2 as dispatch
from scheduler_service.cli.demo.agents.stand_ins import DEMO_AGENT, can_stand_in
from scheduler_service.cli.errors import UsageProblem

#: The first ones get the accounts that there are.
ROLES: Final = ("fix", "review", "document")


@dataclass(frozen=True)
class Part:
    """A role and who takes it. `real`: an account is used; else the model is a script."""

    role: str
    harness: str
    version: str
    real: bool

    @property
    def who(self) -> str:
        """The harness, in words."""
        if self.harness == DEMO_AGENT:
            return f"{DEMO_AGENT} (comes with backburner)"
        return f"{self.harness} {self.version}".rstrip()

    @property
    def model(self) -> str:
        """What answers it, in words."""
        return "the account that it is logged in with" if self.real else "STAND-IN: a script, no model, costs nothing"


def choose(checks: Iterable[dispatch.HarnessCheck], named: Sequence[str], *, accounts: bool) -> list[Part]:
    """A harness for each role: those with an account, then those that can be led to the script, then the small one.

    With `named` harnesses, these in turn. Raises UsageProblem for one that cannot be used.
    """
    found = {check.name: check for check in checks if check.found}
    real = [name for name, check in found.items() if accounts and check.login == dispatch.HARNESS_LOGIN_FOUND]
    led = [name for name in found if name not in real and can_stand_in(name) and name != DEMO_AGENT]
    names = cycle(_checked(named, found, real)) if named else chain(real, led, repeat(DEMO_AGENT))
    return [
        Part(role, name, found[name].version if name in found else "", name in real)
        for role, name in zip(ROLES, islice(names, len(ROLES)), strict=True)
    ]


def _checked(named: Sequence[str], found: Iterable[str], real: Sequence[str]) -> Sequence[str]:
    for name in named:
        if name not in found:
            raise UsageProblem(
                f"--harness {name}: it is not on this machine", f"there are: {', '.join(sorted(found)) or 'none'}"
            )
        if name not in real and not can_stand_in(name):
            raise UsageProblem(
                f"--harness {name}: it is not logged in, and cannot be led to the stand-in",
                "log in with it, or choose another",
            )
    return named
