"""Life of the executor service: builds its parts, starts them in order, drains and stops them in order."""

import asyncio
import contextlib
import logging
import signal
from collections.abc import Coroutine, Mapping
from pathlib import Path
from typing import Any, Final

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_health.v1._async import HealthServicer
from grpc_reflection.v1alpha import reflection

from backburner.executor.v1 import executor_service_pb2 as pb
from backburner.executor.v1 import executor_service_pb2_grpc as pb_grpc
from backburner.scheduler.v1 import dispatch_service_pb2 as dispatch_pb
from executor_service import cgroups, recovery
from executor_service.again import Again, Lately
from executor_service.api import ExecutorServicer, abort
from executor_service.assignment import Ref
from executor_service.attempts import Attempts, Refusal
from executor_service.cut_off import CutOff
from executor_service.descendants import Reaper, become_subreaper
from executor_service.dialling import Dialler
from executor_service.errors import StartError
from executor_service.guard import Guard
from executor_service.harness.agent import AgentEffects, Host
from executor_service.harness.child import Children
from executor_service.harness.cli.builtin import find_builtin
from executor_service.harness.cli.homes import remove_scratch
from executor_service.harness.function import FunctionHarness
from executor_service.harness.modules import load_harnesses
from executor_service.harness.registry import Harnesses
from executor_service.harness.shell import ShellHarness
from executor_service.intake import Intake
from executor_service.keepers import Keepers, SpawnFailed
from executor_service.lives import Lives
from executor_service.markers import marker
from executor_service.metrics.counting import Counting
from executor_service.metrics.serving import serve
from executor_service.outbox import Outbox
from executor_service.outcome import Ending
from executor_service.outcomes import Outcomes
from executor_service.recording import CONTRACT, Lane
from executor_service.reports import Reports
from executor_service.secret_values import Secrets
from executor_service.settings import Settings
from executor_service.slots import pools_of
from executor_service.spool import Spool
from executor_service.targets import parse_targets
from executor_service.unreadable import RefuseUnreadable
from executor_service.workspaces.merge import NAME as MERGE
from executor_service.workspaces.merge import MergeFunction
from executor_service.workspaces.workspaces import Workspaces

log = logging.getLogger(__name__)

_SERVICE: Final = pb.DESCRIPTOR.services_by_name["ExecutorService"].full_name
_REAP_SECONDS: Final = 1.0
#: How long the last outcomes may take on their way to the journal, and their notices up the stream. What is not through
#: by then is on disk.
_FLUSH_SECONDS: Final = 5.0
_NOTICE_SECONDS: Final = 0.5
#: How long the start waits for agent CLIs to tell their versions; a slower one is offered when it has.
_LOOK_SECONDS: Final = 2.0
#: Calls of git beside one for each slot of agents: of attempts that were given up, and removals.
_WORKSPACE_CALLS_MAX: Final = 64

_SERVER_OPTIONS: Final = [
    ("grpc.keepalive_time_ms", 30_000),
    ("grpc.keepalive_timeout_ms", 10_000),
    ("grpc.keepalive_permit_without_calls", 1),
    ("grpc.http2.min_recv_ping_interval_without_data_ms", 5_000),
    ("grpc.so_reuseport", 0),
]
DRAINED: Final = Ending("failed", "DRAINED", "the executor drained and handed the attempt back")


class ExecutorServer:
    """One executor. `start`, then `run` until a signal, or `stop`."""

    def __init__(self, settings: Settings, functions: Mapping[str, Any], version: str) -> None:
        self._settings = settings
        if MERGE in functions:
            raise StartError(f"function {MERGE!r} is one of the executor's own: give yours another name")
        self._version = version
        self._health = HealthServicer()
        self._tasks: list[asyncio.Task[None]] = []
        self._stack = contextlib.AsyncExitStack()
        self._reaper = Reaper()
        self._keepers = Keepers(self._reaper)
        self._functions = {**functions, MERGE: MergeFunction(self._keepers)}
        self._outbox = Outbox()
        self._lives = Lives()
        self._grace_over = asyncio.Event()
        self.address = ""
        #: Where metrics are served. Empty: nowhere.
        self.metrics_address = ""
        self.executor_id = ""

    async def start(self) -> None:
        """Takes its identity, kills what dead predecessors left, connects, and says that it serves."""
        try:
            await self._start()
        except BaseException:
            await self._close()
            raise

    async def _start(self) -> None:
        settings = self._settings
        become_subreaper()
        self._incarnation = recovery.begin(settings.state_dir, settings.executor_id)
        self._stack.callback(self._incarnation.release)
        self.executor_id = self._incarnation.executor_id
        self._guard_children()
        await self._see_to_the_dead()
        self._keep_children()
        await recovery.remove_workspaces(settings.state_dir, self._incarnation.succeeds)
        await asyncio.to_thread(remove_scratch, self._incarnation.succeeds)
        self._spool = Spool(self._incarnation.spool, bytes_max=settings.spool_bytes, entries_max=settings.spool_entries)
        self._builtin = find_builtin(settings, self._reaper.leave_alone)
        self._spawn(self._builtin.run(), "harnesses")
        await self._builtin.look(_LOOK_SECONDS)
        self.attempts = Attempts(self._incarnation.incarnation, self._harnesses(), pools_of(settings), self._spool)
        self.attempts.on_refused = self._refuse
        self.attempts.on_settled = lambda outcome: self._workspaces.settled(outcome.workspace)
        self._open_journal()
        await self._serve()
        self._dial()
        self._measure()
        log.info("executor %s serves on %s", self.executor_id, self.address)

    def _guard_children(self) -> None:
        """From now on a sudden end of this process leaves no child behind."""
        self.guard = Guard(marker(self._incarnation.incarnation), self._reaper)
        self.guard.start()
        self._stack.push_async_callback(self._let_guard_go)
        self._spawn(self.guard.run(), "guard")

    async def _let_guard_go(self) -> None:
        if not await self.guard.leave():
            self._incarnation.unfinished = True

    async def _see_to_the_dead(self) -> None:
        """Takes to the journal what dead predecessors had finished, once Postgres is there. Killing what they left
        running does not wait for that: each moment of it may cost money.
        """
        sweeping = asyncio.create_task(self._incarnation.sweep_dead(), name="sweep")
        start, resend = self._lane("start"), self._lane("resend", patient=True)
        try:
            await start.check_contract()
            await self._incarnation.resend_results(resend)
        finally:
            await sweeping
            await start.close()
            await resend.close()

    def _keep_children(self) -> None:
        self._cgroups = cgroups.open_cgroups(self._incarnation.incarnation, self._settings.processes_max)
        self._stack.callback(self._cgroups.close)
        self._keepers.incarnation = self._incarnation.incarnation
        self._stack.push_async_callback(self._keepers.close)
        try:
            self._keepers.start()
        except SpawnFailed as error:
            raise StartError(str(error)) from error

    def _harnesses(self) -> Harnesses:
        settings = self._settings
        children = Children(
            self._keepers,
            self._cgroups,
            self._incarnation.workspaces,
            env_allow=settings.env_allow,
            output_bytes=settings.output_bytes,
            output_bytes_max=settings.output_bytes_max,
        )
        self._workspaces = Workspaces(
            Path(settings.state_dir) / "worktrees",
            self._incarnation.workspaces,
            settings.slots_agents + _WORKSPACE_CALLS_MAX,
            self._keepers,
            kept_max=settings.workspaces_max,
            kept_days=settings.workspaces_days,
        )
        secrets = Secrets(settings.secrets_dir)
        host = Host(self.executor_id, children, self._workspaces, secrets, Path(settings.state_dir) / "harnesses")
        functions = FunctionHarness(self._functions, settings.slots_functions)
        agents = load_harnesses(settings.harness_modules, host)
        self._of_modules = {agent.name for agent in agents}
        agents += self._builtin.agents(host, self._of_modules, self._incarnation.incarnation)
        self._builtin.on_change = self._harness_changed
        return Harnesses([ShellHarness(children, secrets), functions, *agents], self._functions)

    def _open_journal(self) -> None:
        lane = self._lane("outcomes", patient=True)
        self._spool.away = lambda: not lane.up
        lately = Lately()
        park_after_s = self._settings.park_seconds
        outcomes = Outcomes(
            lane, self.attempts, self._outbox.publish, self._spool, self.executor_id, park_after_s=park_after_s
        )
        outcomes.keep = lately.keep
        self._outcomes = outcomes
        self._again = Again(self._lane("again", patient=True, first=True), self._lives, lately)
        reports = Reports(self._lane("reports"), self.attempts, self._outbox.publish, outcomes)
        self.attempts.recorder = reports
        self._spawn(outcomes.run(), "outcomes")
        self._spawn(reports.run(), "reports")
        self._spawn(self._again.run(), "again")
        self._spawn(self._spool.run(), "spool")

    def _lane(self, name: str, *, patient: bool = False, first: bool = False) -> Lane:
        named = f"backburner {self.executor_id} {name}"
        lane = Lane(self._settings.database_url, named, patient=patient, first=first, lives=self._lives)
        self._stack.push_async_callback(lane.close)
        return lane

    async def _serve(self) -> None:
        server = grpc.aio.server(interceptors=[RefuseUnreadable(abort)], options=_SERVER_OPTIONS)
        servicer = ExecutorServicer(self.executor_id, self.attempts, self._settings, self.begin_drain)
        pb_grpc.add_ExecutorServiceServicer_to_server(servicer, server)
        health_pb2_grpc.add_HealthServicer_to_server(self._health, server)
        names = (_SERVICE, health_pb2.DESCRIPTOR.services_by_name["Health"].full_name, reflection.SERVICE_NAME)
        reflection.enable_server_reflection(names, server)
        self.address = _bind(server, self._settings.executor_listen)
        await server.start()
        self._stack.push_async_callback(server.stop, 1.0)
        for name in ("", _SERVICE):
            await self._health.set(name, health_pb2.HealthCheckResponse.SERVING)

    def _dial(self) -> None:
        dialler = Dialler(parse_targets(self._settings.scheduler))
        cut_off = CutOff(self.attempts, kill=self._settings.kill_when_cut_off)
        self._intake = Intake(dialler, self.attempts, self._outbox, self._hello, cut_off)
        self._intake.before_hello, self._intake.in_doubt = self._before_hello, self._again.in_doubt
        self._again.on_change = self._other_life
        self._intake.on_welcome = self._incarnation.forget_dead
        self._intake.on_taken_over = self._not_serving
        self._spawn(cut_off.run(), "cut off")
        self._spawn(self._intake.run(), "intake")
        self._spawn(self._announce(), "announce")
        self._spawn(self._reap(), "reap")
        self._spawn(self._workspaces.run(), "workspaces")

    def _measure(self) -> None:
        if not self._settings.metrics_address:
            return
        endpoint = serve(
            self._settings.metrics_address,
            Counting(self._version, self.attempts.harnesses.is_known),
            attempts=self.attempts,
            outcomes=self._outcomes,
            spool=self._spool,
            intake=self._intake,
            checks=lambda: self._builtin.checks,
        )
        self._stack.push_async_callback(endpoint.aclose)
        self.metrics_address = endpoint.address

    def _other_life(self) -> None:
        """The database is in another life: what was read of the one before holds no more."""
        self._outbox.forget_events()
        self.attempts.other_life()
        self._intake.begin_anew()

    async def _before_hello(self) -> None:
        if not await self._again.look():
            self._outbox.forget_events()
        self.attempts.before_hello()

    def _hello(self) -> dispatch_pb.Hello:
        settings = self._settings
        return dispatch_pb.Hello(
            executor_id=self.executor_id,
            incarnation=self._incarnation.incarnation,
            succeeds=self._incarnation.succeeds,
            contract=CONTRACT,
            version=self._version,
            namespace=settings.namespace,
            address=settings.executor_address or self.address,
            pools=[
                dispatch_pb.Pool(name=name, slots=pool.slots, background_slots=pool.background_slots)
                for name, pool in self.attempts.pools.items()
            ],
            harnesses=self.attempts.harnesses.describe(),
            functions=sorted(self._functions),
            labels=settings.label_map(),
            harness_checks=self._builtin.checks,
        )

    def _harness_changed(self, name: str, agent: AgentEffects | None) -> None:
        """A CLI was installed, upgraded, logged in, or does not run any more: who sends work is told."""
        harnesses = self.attempts.harnesses
        if agent is not None:
            harnesses.offer(agent)
        elif name not in self._of_modules:
            harnesses.withdraw(name)
        self._outbox.found(harnesses.describe(), self._builtin.checks)

    async def _not_serving(self) -> None:
        for name in ("", _SERVICE):
            await self._health.set(name, health_pb2.HealthCheckResponse.NOT_SERVING)

    def _refuse(self, ref: Ref, refusal: Refusal) -> None:
        attempt = dispatch_pb.AttemptRef(effect_id=ref[0], attempt=ref[1])
        item = dispatch_pb.RejectedAttempt(ref=attempt, reason=refusal.reason, message=refusal.message)
        self._outbox.reject([item])

    async def _announce(self) -> None:
        await self.attempts.announce(self._outbox.accept)

    async def _reap(self) -> None:
        while True:
            await asyncio.sleep(_REAP_SECONDS)
            self._reaper.reap(functions_run=self.attempts.functions_run)
            self._keepers.rouse()

    def _spawn(self, coroutine: Any, name: str) -> None:
        self._tasks.append(asyncio.create_task(coroutine, name=name))

    async def run(self) -> None:
        """Serves until SIGTERM or SIGINT, then drains; a second signal stops at once. A part that dies is an error."""
        loop = asyncio.get_running_loop()
        first, second = asyncio.Event(), asyncio.Event()

        def on_signal() -> None:
            (second if first.is_set() else first).set()

        for signum in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(signum, on_signal)
        asked = asyncio.create_task(first.wait(), name="first-signal")
        await asyncio.wait({asked, *self._tasks}, return_when=asyncio.FIRST_COMPLETED)
        asked.cancel()
        died = next((task for task in self._tasks if task.done()), None)
        stopping = asyncio.create_task(self.stop(self._settings.drain_seconds), name="stop")
        again = asyncio.create_task(second.wait(), name="second-signal")
        await asyncio.wait({stopping, again}, return_when=asyncio.FIRST_COMPLETED)
        again.cancel()
        if not stopping.done():
            self.attempts.end_all(DRAINED)
            self._grace_over.set()
        await stopping
        if died is not None:
            raise RuntimeError(f"the part {died.get_name()!r} died") from died.exception()

    def begin_drain(self, reason: str) -> None:
        """Takes nothing new."""
        self._intake.drain(reason)

    async def stop(self, grace_s: float) -> None:
        """Drains for so long, hands back what still runs, records everything, and closes."""
        await self._health.enter_graceful_shutdown()
        self._intake.drain("the executor is shutting down", for_good=True)
        await self._wait(self.attempts.until_idle(), grace_s, self._grace_over)
        self.attempts.end_all(DRAINED)
        for held in self.attempts:
            held.log.close(pb.StreamEnd.REASON_DRAINING)
        longest = max((held.end_seconds for held in self.attempts), default=0.0)
        await self._wait(self.attempts.until_empty(), longest + _FLUSH_SECONDS, None)
        await self._outbox.until_empty(_NOTICE_SECONDS)
        await self._spool.flush()
        await self._spool.close()
        await self._close()
        if self._spool.kept:
            log.warning("%d results wait on disk: the next start takes them to the journal", self._spool.kept)
        log.info("executor %s has stopped", self.executor_id)

    async def _wait(self, until: Coroutine[Any, Any, None], seconds: float, hurry: asyncio.Event | None) -> None:
        """Waits until that is so, the time is over, or somebody is in a hurry."""
        waits: list[asyncio.Task[Any]] = [asyncio.create_task(until)]
        if hurry is not None:
            waits.append(asyncio.create_task(hurry.wait()))
        await asyncio.wait(waits, timeout=seconds, return_when=asyncio.FIRST_COMPLETED)
        for wait in waits:
            wait.cancel()

    async def _close(self) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self._stack.aclose()


def _bind(server: grpc.aio.Server, listen: str) -> str:
    host, _, port = listen.rpartition(":")
    try:
        bound = server.add_insecure_port(listen)
    except RuntimeError as error:
        raise StartError(
            f"cannot listen on {listen}: is another executor running there? Choose another address with "
            "--executor-listen or BACKBURNER_EXECUTOR_LISTEN"
        ) from error
    return f"{host}:{bound}" if port == "0" else listen
