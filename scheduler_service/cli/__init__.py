"""The `backburner` command: services to start, runs to start and to look at.

`main` is the console script. Nothing here is imported by the services; commands load gRPC and Postgres only when used.
"""

import os
import sys


def main() -> None:
    """Run the command line and exit with its code (`exit_codes.py`)."""
    # Before gRPC is imported: its fork handlers can hang the children of a program that uses asyncio.
    os.environ.setdefault("GRPC_ENABLE_FORK_SUPPORT", "0")
    from scheduler_service.cli.entry import run

    sys.exit(run(sys.argv[1:]))
