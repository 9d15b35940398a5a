"""The database side of the commands: migrations, and which role a service works as."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from typing import TYPE_CHECKING, Any, TypeVar
from urllib.parse import quote

from scheduler_service.cli.errors import CliError
from scheduler_service.cli.exit_codes import ExitCode

if TYPE_CHECKING:
    from scheduler_service.journal.migrate import Migration

T = TypeVar("T")


def migrate_now(dsn: str, *, roles: bool, say: Callable[[str], None]) -> list[str]:
    """Bring the schema up to date, and with `roles` make the services' roles and grants. Gives what was applied."""
    from scheduler_service.journal.migrate import migrate

    applied = reading(migrate(dsn, roles=roles))
    if applied:
        say(f"migrated the database: {', '.join(applied)}")
    return applied


def schema_status(dsn: str) -> list[Migration]:
    """The migrations of this release; those without `applied_at` are missing in the database."""
    from scheduler_service.journal.migrate import status

    return reading(status(dsn))


def service_dsns(dsn: str, *, embedded: bool) -> tuple[str, str]:
    """Connection strings of scheduler and executor.

    On our own Postgres each works under its role, so that what the grants forbid is impossible in development too.
    Elsewhere the operator decides who connects as whom.
    """
    if not embedded:
        return dsn, dsn
    return _as_role(dsn, "backburner_scheduler"), _as_role(dsn, "backburner_executor")


def _as_role(dsn: str, role: str) -> str:
    return f"{dsn}{'&' if '?' in dsn else '?'}options={quote(f'-c role={role}')}"


def reading(work: Coroutine[Any, Any, T]) -> T:
    """Run what reads the database; its errors become messages with remedies."""
    from scheduler_service.journal.errors import JournalError, JournalUnavailable

    try:
        return asyncio.run(work)
    except JournalUnavailable as error:
        raise CliError(str(error), "is DATABASE_URL right, and is that Postgres up?", ExitCode.UNREACHABLE) from error
    except JournalError as error:
        raise CliError(str(error)) from error
