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
        applied, missing = schema_status(database_url)
        for name in applied:
            click.echo(f"applied  {name}")
        for name in missing:
            click.echo(f"missing  {name}")
        return ExitCode.FAILED if missing else ExitCode.OK
    if not migrate_now(database_url, roles=roles, say=click.echo):
        click.echo("the database is up to date")
    return ExitCode.OK
