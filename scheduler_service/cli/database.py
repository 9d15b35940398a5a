"""The database side of the commands: migrations, and which role a service connects as."""

from __future__ import annotations

import asyncio
from collections.abc import Callable


def migrate_now(dsn: str, *, roles: bool, say: Callable[[str], None]) -> list[str]:
    """Bring the schema up to date, and with `roles` make the services' roles and grants."""
    from scheduler_service.journal.migrate import migrate

    applied = asyncio.run(migrate(dsn, roles=roles))
    if applied:
        say(f"migrated the database: {', '.join(applied)}")
    return applied


def service_dsns(dsn: str, *, embedded: bool) -> tuple[str, str]:
    """Connection strings of scheduler and executor."""
    return dsn, dsn
