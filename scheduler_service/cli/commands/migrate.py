"""`backburner migrate`: the database schema."""

from __future__ import annotations

import click

from scheduler_service.cli.database import migrate_now, schema_status
from scheduler_service.cli.exit_codes import ExitCode


@click.command("migrate")
@click.option("--database-url", envvar="DATABASE_URL", required=True, metavar="URL", help="[DATABASE_URL]")
@click.option("--status", is_flag=True, help="Only say what is applied; exit code 1 when something is missing.")
@click.option("--roles/--no-roles", default=False, show_default=True,
              help="Also make the services' roles and grants; needs the right to create roles.")  # fmt: skip
def migrate_command(database_url: str, status: bool, roles: bool) -> int:
    """Bring the database schema up to date. Safe to repeat and to run from several places at once.

    \b
    Examples:
      backburner migrate --roles
      backburner migrate --status
    """
    if status:
        return _print_status(database_url)
    if not migrate_now(database_url, roles=roles, say=click.echo):
        click.echo("the database is up to date")
    return ExitCode.OK


def _print_status(database_url: str) -> int:
    found = schema_status(database_url)
    for item in found:
        when = f"{item.applied_at.astimezone():%Y-%m-%d %H:%M:%S}" if item.applied_at else "missing"
        click.echo(f"{when:<19}  {item.name}")
    return ExitCode.OK if all(item.applied_at for item in found) else ExitCode.FAILED
