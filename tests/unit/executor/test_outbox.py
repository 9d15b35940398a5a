"""The outbox of the control stream at its bounds."""

import pytest

from backburner.scheduler.v1 import dispatch_service_pb2 as pb
from executor_service.outbox import FRAMES_MAX, Outbox


def _beat(number: int) -> pb.ConnectRequest:
    beat = pb.ConnectRequest(heartbeat=pb.ExecutorHeartbeat())
    beat.heartbeat.clock_time.seconds = number
    return beat


@pytest.mark.invariant("I11")
def test_heartbeats_that_nobody_reads_are_bounded() -> None:
    outbox = Outbox()
    for number in range(FRAMES_MAX + 7):
        outbox.send(_beat(number))
    kept = [frame.heartbeat.clock_time.seconds for frame in outbox.take()]
    assert kept == list(range(7, FRAMES_MAX + 7))
