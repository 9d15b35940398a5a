"""Replays the journals that an attack left, as before a deploy: what went on amid faults must read the same again."""

import asyncio
import os
import sys
from typing import Final

import psycopg

from tests.crash.chaos.world import MODULES

_NAMES: Final = "SELECT DISTINCT process FROM backburner.runs WHERE process <> ''"


async def replayed(dsn: str) -> tuple[str, list[str]]:
    """`backburner replay-check` on every run of a process: its last line, which counts, and what is wrong."""
    async with await psycopg.AsyncConnection.connect(dsn, autocommit=True) as connection:
        names = [name for (name,) in await (await connection.execute(_NAMES)).fetchall()]
    command = ["replay-check", "--process-module", MODULES, *(f"--process={name}" for name in names)]
    check = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "scheduler_service.cli", *command),
        env={**os.environ, "DATABASE_URL": dsn, "COLUMNS": "200"},
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )
    said = (await check.communicate())[0].decode()
    counted = (said.splitlines() or [""])[-1]
    return counted, [] if check.returncode == 0 else [f"replay-check ended with {check.returncode}:\n{said}"]
