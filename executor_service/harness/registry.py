"""Which harnesses this executor has, and which one does an attempt's work."""

from collections.abc import Mapping, Sequence

from backburner.scheduler.v1 import dispatch_service_pb2 as pb
from executor_service.assignment import InvalidWork
from executor_service.harness.base import Harness


class Harnesses:
    """The harnesses by name, and the names of the functions."""

    def __init__(self, harnesses: Sequence[Harness], functions: Mapping[str, object]) -> None:
        self._by_name = {harness.name: harness for harness in harnesses}
        self._withdrawn: set[str] = set()
        self.functions = functions

    def find(self, capability: str) -> Harness:
        """The harness of a capability: `shell`, `function/<name>`, `agent/<harness>`. Raises InvalidWork."""
        kind, _, rest = capability.partition("/")
        name = rest if kind == "agent" else kind
        harness = self._by_name.get(name)
        if harness is None:
            raise InvalidWork(f"harness {name!r} is not on this executor (there are: {', '.join(self._by_name)})")
        return harness

    def is_known(self, name: str) -> bool:
        """True for a harness that is offered, or was until it was withdrawn."""
        return name in self._by_name

    def offer(self, harness: Harness) -> None:
        """Offers it, in place of the one of its name: what runs goes on with the one that it began with."""
        self._by_name[harness.name] = harness
        self._withdrawn.discard(harness.name)

    def withdraw(self, name: str) -> None:
        """Offers it no more. What is on its way to it still finds it, and fails as that one does."""
        self._withdrawn.add(name)

    def describe(self) -> list[pb.Harness]:
        """The harnesses as a hello presents them."""
        return [pb.Harness(name=h.name, version=h.version, pool=h.pool) for h in self._by_name.values()
                if h.name not in self._withdrawn]  # fmt: skip
