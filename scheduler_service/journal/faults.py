"""What an error of Postgres means for the call that met it. The one place of the scheduler that reads SQLSTATEs.

`executor_service/faults.py` is its twin: neither service imports the other, and a test compares the tables.
"""

import enum
from typing import Final

import psycopg

from scheduler_service.journal.errors import (
    JournalBusy,
    JournalError,
    JournalMisconfigured,
    JournalRefused,
    JournalUnavailable,
)


class Kind(enum.Enum):
    """What to do about an error."""

    #: Now is a bad time, and nothing is said about what was asked: the same call later, on another connection.
    TRANSIENT = "transient"
    #: The same, but it does not pass by itself: somebody has to mend the database or the settings.
    OPERATOR = "operator"
    #: Somebody else holds a lock for longer than a moment; nothing was written.
    BUSY = "busy"
    #: Postgres refuses what was asked as it stands.
    REFUSED = "refused"


_LOGIN: Final = "check the user and the password in DATABASE_URL, and the server's pg_hba.conf"
_DATABASE: Final = "check the database's name in DATABASE_URL, or create it and run `backburner migrate`"
_SCHEMA: Final = "the schema is missing or older than this release: run `backburner migrate`"
_RIGHTS: Final = "the role lacks a right: run deploy/roles.sql, then `backburner migrate`"

#: By SQLSTATE or the beginning of one; the longest that fits counts. What is not here is refused.
FAULTS: Final = {
    "08": (Kind.TRANSIENT, ""),  # connection
    "25006": (Kind.TRANSIENT, ""),  # read-only: a standby, or a phase of a failover
    "40": (Kind.TRANSIENT, ""),  # serialization, deadlock, and commits whose fate is unknown
    "53": (Kind.TRANSIENT, ""),  # disk full, out of memory, too many connections
    "55006": (Kind.TRANSIENT, ""),  # object in use
    "55P03": (Kind.BUSY, ""),
    "57": (Kind.TRANSIENT, ""),  # shutdown, starting up, statement timeout
    "58": (Kind.TRANSIENT, ""),  # errors of the system below Postgres
    "28": (Kind.OPERATOR, _LOGIN),
    "3D": (Kind.OPERATOR, _DATABASE),
    "57P04": (Kind.OPERATOR, _DATABASE),  # dropped under our feet
    "3F": (Kind.OPERATOR, _SCHEMA),
    "42883": (Kind.OPERATOR, _SCHEMA),  # no such function
    "42P01": (Kind.OPERATOR, _SCHEMA),  # no such table
    "42501": (Kind.OPERATOR, _RIGHTS),
}
#: A login that fails carries no SQLSTATE through libpq. These texts choose a remedy for the log, and nothing else.
LOGIN_TEXTS: Final = {
    "authentication failed": _LOGIN,
    "no pg_hba.conf entry": _LOGIN,
    "no password supplied": _LOGIN,
    "is not permitted to log in": _LOGIN,
    'role "': _LOGIN,
    'database "': _DATABASE,
}


def kind_of(error: Exception) -> Kind:
    """What to do about an error of the driver, or about an answer that did not come in time."""
    if isinstance(error, TimeoutError | JournalUnavailable):
        return Kind.TRANSIENT
    state = sqlstate_of(error)
    if not state:
        broken = isinstance(error, psycopg.OperationalError | psycopg.InterfaceError)
        return Kind.TRANSIENT if broken else Kind.REFUSED
    return FAULTS[_longest(state)][0] if _longest(state) else Kind.REFUSED


def journal_error(error: Exception, when_busy: str) -> JournalError:
    """What callers of the journal are told instead of the driver's error."""
    kind, state = kind_of(error), sqlstate_of(error)
    match kind:
        case Kind.REFUSED:
            return JournalRefused(str(error).strip(), state)
        case Kind.BUSY:
            return JournalBusy(when_busy)
        case Kind.OPERATOR:
            return JournalMisconfigured(f"Postgres cannot serve: {described(error)}", state)
        case Kind.TRANSIENT:
            return JournalUnavailable(f"Postgres does not answer: {described(error)}")


def sqlstate_of(error: Exception) -> str:
    """The SQLSTATE that came with an error; empty when none did, as with a connection that is refused or breaks."""
    return (error.sqlstate or "") if isinstance(error, psycopg.Error) else ""


def is_unavailable(error: psycopg.Error) -> bool:
    """True when the same call may succeed later, without anybody mending anything."""
    return kind_of(error) is Kind.TRANSIENT


def described(error: Exception) -> str:
    """The error in one line, with its SQLSTATE, and with the remedy when there is one."""
    text = (str(error).strip() or type(error).__name__).splitlines()[0]
    state = sqlstate_of(error)
    remedy = FAULTS[_longest(state)][1] if _longest(state) else ""
    if not state:
        remedy = next((hint for part, hint in LOGIN_TEXTS.items() if part in text), "")
    return f"{text}{f' (SQLSTATE {state})' if state else ''}{f'; {remedy}' if remedy else ''}"


def _longest(state: str) -> str:
    return max((known for known in FAULTS if state.startswith(known)), key=len, default="")
