"""The servicer of the other replicas: a hint is looked into, and answered with nothing."""

from collections.abc import Awaitable, Callable

import grpc

from backburner.scheduler.v1 import peer_service_pb2 as pb
from backburner.scheduler.v1 import peer_service_pb2_grpc as pb_grpc

Context = grpc.aio.ServicerContext[pb.HintRequest, pb.HintResponse]


class PeerServicer(pb_grpc.PeerServiceServicer):
    """Implements backburner.scheduler.v1.PeerService."""

    def __init__(self, hear: Callable[[pb.HintRequest], Awaitable[None]]) -> None:
        self._hear = hear

    async def Hint(self, request: pb.HintRequest, context: Context) -> pb.HintResponse:
        """Looks where the hint says."""
        await self._hear(request)
        return pb.HintResponse()
