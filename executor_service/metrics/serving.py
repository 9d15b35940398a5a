"""Puts the metrics of an executor together and serves them."""

import logging
from collections.abc import Callable, Sequence

from backburner.scheduler.v1 import dispatch_service_pb2 as pb
from executor_service.attempts import Attempts
from executor_service.errors import StartError
from executor_service.intake import Intake
from executor_service.metrics.counting import Counting
from executor_service.metrics.endpoint import Endpoint
from executor_service.metrics.state import State
from executor_service.outcomes import Outcomes
from executor_service.spool import Spool

log = logging.getLogger(__name__)


def serve(
    address: str,
    counting: Counting,
    *,
    attempts: Attempts,
    outcomes: Outcomes,
    spool: Spool,
    intake: Intake,
    checks: Callable[[], Sequence[pb.HarnessCheck]],
) -> Endpoint:
    """Counts from now on, and serves. Raises StartError when the address cannot be had."""
    attempts.on_started, outcomes.on_recorded = counting.started, counting.recorded
    state = State(
        attempts,
        spool,
        harness_of=counting.harness_of,
        checks=checks,
        session=lambda: intake.state,
        journal_up=lambda: outcomes.journal_up,
    )
    counting.registry.register(state)
    try:
        endpoint = Endpoint(address, counting.registry)
    except OSError as error:
        raise StartError(
            f"cannot serve metrics on {address} ({error.strerror}): choose another address with --metrics-address or "
            "BACKBURNER_METRICS_ADDRESS"
        ) from error
    log.info("metrics are on http://%s/metrics", endpoint.address)
    return endpoint
