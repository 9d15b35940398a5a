"""GetServerInfo: what this server is and can do."""

from datetime import UTC, datetime
from typing import Final

from backburner.scheduler.v1 import scheduler_service_pb2 as pb
from scheduler_service.api.convert import timestamp
from scheduler_service.api.engine import EngineApi
from scheduler_service.api.limits import LIMITS

#: Counted from 1; raised when clients need to know.
API_REVISION: Final = 1
#: What clients may rely on. A name is never given another meaning.
FEATURES: Final = (
    "agent_effects",
    "audit",
    "background_effects",
    "blobs",
    "child_runs",
    "client_driven_runs",
    "continue_as_new",
    "create_run",
    "effect_groups",
    "external_effects",
    "halt_and_resume",
    "holds",
    "live_output",
    "live_progress",
    "reuse_from",
    "signals",
    "stream_output",
    "timer_effects",
    "wait",
    "waiting_on",
    "watch",
)


class ServerInfo:
    """Answers GetServerInfo."""

    def __init__(self, engine: EngineApi, *, version: str, watchers_max: int) -> None:
        self._engine = engine
        self._version = version
        self._watchers_max = watchers_max

    async def get(self) -> pb.GetServerInfoResponse:
        """The server as it is now."""
        return pb.GetServerInfoResponse(
            version=self._version,
            api_revision=API_REVISION,
            features=FEATURES,
            limits={**LIMITS, "watchers_max": self._watchers_max},
            server_time=timestamp(datetime.now(UTC)),
            scheduler_id=self._engine.scheduler_id,
            processes=sorted(self._engine.processes()),
            schema_version=self._engine.journal.schema_version,
        )
