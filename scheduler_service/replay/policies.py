"""What follows the failure of an attempt, by its reason, as a table.

The journal decides by the SQL function `failure_policies`, which says the same; the README's table is made from here.
Reasons that are not here are retried as the effect's retry policy says, and no more: CONTEXT_OVERFLOW too, for the next
attempt begins a fresh session.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final, Literal


@dataclass(frozen=True, slots=True)
class Policy:
    """What follows a failure."""

    #: Tried again with the same harness, while the retry policy has attempts left.
    retried: bool = False
    #: Waits without a slot for a reset that is known, and not near.
    parks: bool = False
    #: When it is not retried, the next harness of the chain takes the effect.
    fails_over: bool = False
    #: Whom the breaker stops that it opens: the harness on this executor, or everywhere in the namespace.
    breaker: Literal["", "EXECUTOR", "ACCOUNT"] = ""


#: By name of EffectReason, without its prefix.
POLICIES: Final[Mapping[str, Policy]] = {
    # A login is the executor's: another one may have a good one.
    "AUTHENTICATION": Policy(fails_over=True, breaker="EXECUTOR"),
    # Retried when the reset is near.
    "QUOTA_EXHAUSTED": Policy(parks=True, fails_over=True, breaker="ACCOUNT"),
    # Parks, and opens its breaker, only when the reset is known and not near.
    "RATE_LIMITED": Policy(retried=True, parks=True, fails_over=True, breaker="ACCOUNT"),
    "OVERLOADED": Policy(retried=True, fails_over=True),
    # The harness's program is missing or broken; nothing was done.
    "SPAWN_FAILED": Policy(retried=True, fails_over=True),
    # What is asked is refused: another harness would be paid for the same, or hide what is wrong.
    "REFUSED": Policy(),
    "BAD_REQUEST": Policy(),
    "MAX_TURNS": Policy(),
    "BUDGET": Policy(),
}
RETRIED: Final = Policy(retried=True)


def policy_of(reason: str) -> Policy:
    """The policy of a reason."""
    return POLICIES.get(reason, RETRIED)
