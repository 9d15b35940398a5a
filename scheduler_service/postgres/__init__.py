"""A Postgres server without installation, for development and tests.

The `backburner` command and the tests start it when nobody gave them a `DATABASE_URL`. Production never comes here:
the services only know a connection string.
"""

from scheduler_service.postgres.embedded import EmbeddedPostgres, StopMode
from scheduler_service.postgres.errors import BinariesMissing, DataDirectoryInUse, EmbeddedPostgresError, StartFailed
from scheduler_service.postgres.options import ServerOptions

__all__ = [
    "BinariesMissing",
    "DataDirectoryInUse",
    "EmbeddedPostgres",
    "EmbeddedPostgresError",
    "ServerOptions",
    "StartFailed",
    "StopMode",
]
