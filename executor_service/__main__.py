"""`python -m executor_service`: the composition root of the executor service.

With the argument `harnesses` it lists what it finds of agent CLIs, each as one line of JSON (HarnessCheck), and ends.

Settings come from the environment (see `settings.py`); `backburner executor --help` lists them as flags.
"""

import os

os.environ.setdefault("GRPC_ENABLE_FORK_SUPPORT", "0")

import asyncio
import importlib
import importlib.metadata
import logging
import sys
from collections.abc import Mapping
from typing import Any

from google.protobuf import json_format

from executor_service import failpoints, hidden
from executor_service.errors import StartError
from executor_service.harness.cli.builtin import find_builtin
from executor_service.server import ExecutorServer
from executor_service.settings import Settings, SettingsError, settings_from_env

log = logging.getLogger("executor_service")

#: Argument that lists the harnesses.
LIST = "harnesses"


def main() -> int:
    """Runs the service; returns the exit code: 0 after a stop, 2 for a configuration that cannot work."""
    arguments = sys.argv[1:]
    if arguments not in ([], [LIST]):
        sys.stderr.write(f"executor: no such arguments: {' '.join(arguments)}; there is only `{LIST}`\n")
        return 2
    try:
        settings = settings_from_env(database_url="" if arguments else None)
        hidden.hide()
        logging.basicConfig(
            level=settings.log_level, format="%(asctime)s %(levelname)s %(name)s %(message)s", stream=sys.stderr
        )
        for point in failpoints.arm(os.environ.get("BACKBURNER_FAILPOINT", "")):
            log.warning("failpoint %s is armed: this is a test", point)
        asyncio.run(list_harnesses(settings) if arguments else run_executor(settings))
    except (SettingsError, StartError, failpoints.FailpointError) as error:
        sys.stderr.write(f"executor: {error}\n")
        return 2
    return 0


async def list_harnesses(settings: Settings) -> None:
    """Prints what this machine has of agent CLIs. Raises StartError."""
    builtin = find_builtin(settings)
    looking = asyncio.create_task(builtin.run(), name="harnesses")
    await builtin.look(None)
    looking.cancel()
    for check in builtin.checks:
        line = json_format.MessageToJson(check, preserving_proto_field_name=True, indent=None, ensure_ascii=False)
        sys.stdout.write(f"{line}\n")


async def run_executor(settings: Settings) -> None:
    """Runs one executor in this process until a signal ends it. Raises StartError."""
    server = ExecutorServer(settings, load_functions(settings.function_modules), version())
    await server.start()
    sys.stdout.write(f"executor {server.executor_id} listening on {server.address}\n")
    sys.stdout.flush()
    await server.run()


def load_functions(modules: tuple[str, ...]) -> Mapping[str, Any]:
    """Imports the modules of functions; what they register is what this executor can run. Raises StartError."""
    import backburner as bb  # noqa: PLC0415 - loads the authoring API, which nothing else here needs

    for name in modules:
        try:
            importlib.import_module(name)
            for function in bb.functions().values():
                function.hints  # noqa: B018 - resolves annotations now, not with the first call
        except Exception as error:
            raise StartError(f"cannot import function module {name!r}: {type(error).__name__}: {error}") from error
    return bb.functions()


def version() -> str:
    """Release of the installed distribution."""
    try:
        return importlib.metadata.version("backburner")
    except importlib.metadata.PackageNotFoundError:
        return "0+unknown"


if __name__ == "__main__":
    sys.exit(main())
