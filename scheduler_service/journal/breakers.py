"""Circuit breakers as the database has them. Executors' outcomes open and close them, in the commit of the outcome."""

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any


@dataclass(frozen=True, slots=True, kw_only=True)
class Breaker:
    """A harness that nothing is dispatched to, since its provider refuses. Times are the database's."""

    namespace: str
    harness: str
    #: As the harness names it. Empty: the one that it has in this namespace.
    account: str
    #: The only executor that it stops. Empty: all of the namespace.
    executor_id: str
    #: EffectReason without its prefix.
    reason: str
    message: str
    opened_at: datetime
    failed_at: datetime
    until: datetime
    #: False: `until` is a guess, after which one attempt at a time tries.
    reset_known: bool
    #: True: executors say who has this account, and only they are stopped, and those of which it is not known.
    selective: bool = False

    def stops(self, namespace: str, harness: str, executor_id: str, account: str, now: datetime) -> bool:
        """True when it forbids this dispatch; the twin of the SQL function `is_broken`. `account`: the one that the
        executor has for the harness; empty: not known.
        """
        return (
            (self.namespace, self.harness) == (namespace, harness)
            and self.executor_id in ("", executor_id)
            and (account in ("", self.account) or not self._other_account_may())
            and (not self.reset_known or self.until > now)
        )

    def _other_account_may(self) -> bool:
        """True when it does not concern another account: nor did a refused login of one that had none."""
        return self.selective or (not self.account and bool(self.executor_id))


@dataclass(frozen=True, slots=True, kw_only=True)
class ResetBreakers:
    """Closes breakers. All that is given has to match; empty means any."""

    namespace: str = ""
    harness: str = ""
    account: str = ""
    executor_id: str = ""
    reason: str
    actor: str


def breaker_of(row: Mapping[str, Any]) -> Breaker:
    """A breaker from its row, or from its row as JSON."""
    given = {item.name: row[item.name] for item in dataclasses.fields(Breaker)}
    for name in ("opened_at", "failed_at", "until"):
        if isinstance(given[name], str):
            given[name] = datetime.fromisoformat(given[name])
    return Breaker(**given)
