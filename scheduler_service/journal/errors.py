"""Errors of the journal. The driver's own error is the `__cause__`."""


class JournalError(Exception):
    """The journal cannot do what was asked."""


class JournalUnavailable(JournalError):
    """Postgres does not answer, or its answer was lost: what was asked may or may not have been committed."""


class JournalMisconfigured(JournalUnavailable):
    """The same, and it does not pass by itself: somebody has to mend the database or the settings, as it says."""

    def __init__(self, message: str, sqlstate: str = "") -> None:
        super().__init__(message)
        self.sqlstate = sqlstate


class JournalBusy(JournalUnavailable):
    """Somebody else holds a lock that the call needs; nothing was written."""


class JournalRefused(JournalError):
    """Postgres refused the call as a whole; `sqlstate` says why. A bug of the caller, not of its data."""

    def __init__(self, message: str, sqlstate: str = "") -> None:
        super().__init__(message, sqlstate)
        self.sqlstate = sqlstate

    def __str__(self) -> str:
        return f"{self.args[0]} (SQLSTATE {self.sqlstate})" if self.sqlstate else str(self.args[0])


class SchemaMissing(JournalError):
    """The database has no schema of ours, or one that this release does not work with."""
