"""Services as these measurements want them: named, and without a network between that is not measured."""

from collections.abc import Callable, Mapping
from typing import Final

from tests.crash.chaos.world import World

_MODULES: Final = "tests.crash.outages.processes"


def scheduler_name(number: int) -> str:
    """Id of a scheduler, and thus what owns its shards."""
    return f"owner-{number}"


def prepared(scheduler: Mapping[str, str], executor: Mapping[str, str]) -> Callable[[World], None]:
    """Has the world start with these variables; each executor dials all schedulers, one of its own first."""

    def prepare(made: World) -> None:
        for number, service in enumerate(made.schedulers):
            named = {"BACKBURNER_SCHEDULER_ID": scheduler_name(number), "BACKBURNER_PROCESS_MODULES": _MODULES}
            service.env = {**service.env, **named, **scheduler}
        for number, service in enumerate(made.executors):
            first = number % len(made.addresses)
            dial = "ipv4:" + ",".join(made.addresses[first:] + made.addresses[:first])
            named = {"BACKBURNER_SCHEDULER": dial, "BACKBURNER_FUNCTION_MODULES": _MODULES}
            service.env = {**service.env, **named, **executor}

    return prepare
