"""`python -m scheduler_service`: the composition root of the scheduler service.

Settings come from the environment (see `settings.py`); `backburner scheduler --help` lists them as flags.
"""

import os

os.environ.setdefault("GRPC_ENABLE_FORK_SUPPORT", "0")

import asyncio
import importlib
import importlib.metadata
import io
import logging
import sys
from collections.abc import Iterable, Mapping
from typing import TextIO, cast

from scheduler_service import failpoints
from scheduler_service.authoring import processes as registered_processes
from scheduler_service.authoring.definitions import AnyProcess, check_annotations
from scheduler_service.iteration.hush import DropReplayed, HushedStream
from scheduler_service.journal import JournalError
from scheduler_service.server import AddressInUse, SchedulerServer
from scheduler_service.settings import Settings, SettingsError, settings_from_env

log = logging.getLogger("scheduler_service")


class ProcessModuleError(Exception):
    """A module of processes cannot be imported."""


def main() -> int:
    """Runs the service; returns the exit code: 0 after a stop, 2 for a configuration that cannot work, 1 otherwise."""
    try:
        settings = settings_from_env()
        if isinstance(sys.stdout, io.TextIOWrapper):
            sys.stdout.reconfigure(line_buffering=True)  # what a process prints is seen when it prints it
        sys.stdout = cast("TextIO", HushedStream(sys.stdout))
        logging.basicConfig(
            level=settings.log_level, format="%(asctime)s %(levelname)s %(name)s %(message)s", stream=sys.stderr
        )
        for handler in logging.getLogger().handlers:
            handler.addFilter(DropReplayed())
        for point in failpoints.arm(os.environ.get("BACKBURNER_FAILPOINT", "")):
            log.warning("failpoint %s is armed: this is a test", point)
        processes = load_processes(settings)
        run_forever(settings, processes)
    except (SettingsError, ProcessModuleError, AddressInUse, failpoints.FailpointError) as error:
        sys.stderr.write(f"scheduler: {error}\n")
        return 2
    except JournalError as error:
        sys.stderr.write(f"scheduler: {error}\n")
        return 1
    return 0


def run_forever(settings: Settings, processes: Mapping[str, AnyProcess]) -> None:
    """Serves until a signal ends it."""

    async def serve() -> None:
        server = SchedulerServer(settings, processes, version())
        await server.start()
        sys.stdout.write(f"scheduler listening on {server.address}\n")
        sys.stdout.flush()
        await server.run()

    if sys.platform != "win32":
        import uvloop  # noqa: PLC0415 - not to be had on Windows

        uvloop.run(serve())
    else:
        asyncio.run(serve())


def load_processes(settings: Settings) -> Mapping[str, AnyProcess]:
    """Imports the modules of processes; what they register is what this replica can run."""
    load_modules(settings.process_modules)
    return registered_processes()


def load_modules(names: Iterable[str]) -> None:
    """Imports modules of processes. Raises ProcessModuleError naming the one that cannot be imported."""
    for name in names:
        try:
            importlib.import_module(name)
            check_annotations(registered_processes())
        except Exception as error:
            raise ProcessModuleError(
                f"cannot import process module {name!r}: {type(error).__name__}: {error}"
            ) from error


def version() -> str:
    """Release of the installed distribution."""
    try:
        return importlib.metadata.version("backburner")
    except importlib.metadata.PackageNotFoundError:
        return "0+unknown"


if __name__ == "__main__":
    # Process code iterates over sets; their order must not differ between two replays.
    if os.environ.get("PYTHONHASHSEED") != "0":
        os.environ["PYTHONHASHSEED"] = "0"
        os.execv(sys.executable, [sys.executable, "-m", "scheduler_service", *sys.argv[1:]])  # noqa: S606
    sys.exit(main())
