"""Which agent CLIs this machine has, in which version, and whether they are logged in, as far as no call can tell.

A version outside of the known range is used all the same, with a warning. Programs are found on PATH, or where
BACKBURNER_HARNESS_PATHS says. A CLI is asked for its version within bounds of time and output, and nothing of its
process group is left behind. `lookout.py` looks again and again.
"""

import asyncio
import contextlib
import os
import re
import shutil
import signal
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from backburner.scheduler.v1 import dispatch_service_pb2 as pb
from executor_service.harness.cli.accounts import content, is_there
from executor_service.harness.cli.adapter import Adapter, Program
from executor_service.outcome import replace_unstorable

#: Longest that a CLI may take to tell its version: all are asked at a time, and a busy machine takes 20 s and more.
VERSION_SECONDS: Final = 60.0
#: Most that it may say meanwhile, on either stream.
VERSION_BYTES_MAX: Final = 64 * 1024
#: What a CLI leaves running may hold its pipes open for so long after its end.
_PIPE_SECONDS: Final = 1.0
#: Of its version, and of its path or what is to be done: a scheduler that is told more refuses the whole executor.
_VERSION_MAX: Final = 100
_WORDS_BYTES_MAX: Final = 4096
_VERSION: Final = re.compile(r"\d+\.\d+(?:\.\d+)*")


@dataclass(frozen=True, slots=True)
class Found:
    """What is known of one CLI. `program` None: it is not on this machine."""

    adapter: Adapter
    program: Program | None
    check: pb.HarnessCheck

    def is_like(self, other: "Found") -> bool:
        """True when there is nothing new in the other one."""
        return (self.program, self.check) == (other.program, other.check)


class _TooMuch(Exception):
    """It says more than is read."""


def not_yet(adapter: Adapter) -> Found:
    """What is known before the first look has ended."""
    remedy = "it has not told its version yet: this is looked at now"
    return Found(adapter, None, pb.HarnessCheck(name=adapter.name, looking=True, remedy=remedy))


async def look(adapter: Adapter, given: str, home: Path) -> Found:
    """Looks for one. `given`: its program, in place of PATH; `home`: HOME of its logins."""
    path = await asyncio.to_thread(_program, adapter, given)
    if path is None:
        remedy = f"{_missing(adapter, given)}: install it, or name it with --harness-path {adapter.name}=/path/to/it"
        return Found(adapter, None, pb.HarnessCheck(name=adapter.name, remedy=_words(remedy)))
    try:
        argv = await asyncio.to_thread(adapter.locate, path)
    except OSError as error:
        remedy = f"{path} cannot be looked into: {error}"
        check = pb.HarnessCheck(name=adapter.name, path=_words(str(path)), remedy=_words(remedy))
        return Found(adapter, None, check)
    version, problem = await _version(argv, {**adapter.version_env, "HOME": str(home)})
    check = await asyncio.to_thread(_check, adapter, version, home)
    check.path, check.found = _words(argv[-1]), not problem
    check.remedy = _words(problem or "; ".join(_remedies(adapter, check)))
    return Found(adapter, None if problem else Program(str(path), argv, version), check)


def _words(said: str) -> str:
    """As much of it as a scheduler takes; names of files need not be UTF-8."""
    return replace_unstorable(said).encode()[:_WORDS_BYTES_MAX].decode("utf-8", "ignore")


def _missing(adapter: Adapter, given: str) -> str:
    named = given or next((name for name in adapter.programs if os.sep in name), "")  # PATH has no say in a path
    return f"{named!r} is no program" if named else f"no {' or '.join(adapter.programs)} on PATH"


def _program(adapter: Adapter, given: str) -> Path | None:
    for name in [given] if given else adapter.programs:
        if found := shutil.which(name):
            return Path(found).absolute()
    return None


def _check(adapter: Adapter, version: str, home: Path) -> pb.HarnessCheck:
    name = adapter.account(os.environ, home, None)
    files = list(adapter.login_files(os.environ, home))
    return pb.HarnessCheck(
        name=adapter.name,
        version=version,
        version_known=bool(version) and adapter.versions.known(version),
        login=_login(adapter, files),
        account=f"{adapter.provider}:{name}" if name else "",
        login_id=content(iter(files)),
        tested_versions=adapter.versions.tested,
        known_versions=str(adapter.versions),
    )


def _login(adapter: Adapter, files: Sequence[Path]) -> pb.HarnessLogin.ValueType:
    if any(os.environ.get(name) for name in adapter.key_names):
        return pb.HARNESS_LOGIN_FOUND
    if not adapter.logins:
        return pb.HARNESS_LOGIN_UNSPECIFIED
    return pb.HARNESS_LOGIN_FOUND if any(map(is_there, files)) else pb.HARNESS_LOGIN_MISSING


def _remedies(adapter: Adapter, check: pb.HarnessCheck) -> Iterator[str]:
    if not check.version_known:
        tested, known = ", ".join(check.tested_versions), check.known_versions
        yield f"version {check.version} is used, but not known to work (tested: {tested}; known: {known})"
    if check.login == pb.HARNESS_LOGIN_MISSING:
        yield f"not logged in: {adapter.login_remedy}"


async def _version(argv: Sequence[str], env: Mapping[str, str]) -> tuple[str, str]:
    """The version that it tells, and what is wrong when it does not run."""
    asked = f"`{argv[-1]} --version`"
    try:
        async with asyncio.timeout(VERSION_SECONDS):
            status, out, err = await _ask(argv, env)
    except TimeoutError:  # an OSError, too
        return "", f"{asked} has not answered within {VERSION_SECONDS:g} s: try it by hand"
    except OSError as error:
        return "", f"it cannot be started: {error}"
    except _TooMuch:
        return "", f"{asked} says more than {VERSION_BYTES_MAX // 1024} KiB: try it by hand"
    found = _VERSION.search((out.strip() or err).decode("utf-8", "replace"))  # pi tells it on stderr
    if status or found is None:
        said = (err or out).decode("utf-8", "replace").strip()[:300]
        return "", f"{asked} ended with {status} and said {said!r}: try it by hand"
    return found[0][:_VERSION_MAX], ""


class _Answer(asyncio.SubprocessProtocol):
    """What a child says, and when it has ended."""

    def __init__(self) -> None:
        self.said = {1: bytearray(), 2: bytearray()}
        loop = asyncio.get_running_loop()
        #: Done with its end; raises _TooMuch.
        self.ended: asyncio.Future[None] = loop.create_future()
        #: Done when nobody can say more, and it is reaped.
        self.closed: asyncio.Future[None] = loop.create_future()

    def pipe_data_received(self, fd: int, data: bytes) -> None:
        self.said[fd] += data
        if len(self.said[fd]) > VERSION_BYTES_MAX and not self.ended.done():
            self.ended.set_exception(_TooMuch())

    def process_exited(self) -> None:
        if not self.ended.done():
            self.ended.set_result(None)

    def connection_lost(self, exc: Exception | None) -> None:
        self.closed.set_result(None)


async def _ask(argv: Sequence[str], more: Mapping[str, str]) -> tuple[int | None, bytes, bytes]:
    """Its exit code and what it said. Nothing of its process group outlives this. Raises _TooMuch, OSError."""
    env = {name: os.environ[name] for name in ("PATH", "LANG", "TMPDIR") if name in os.environ}
    transport, answer = await asyncio.get_running_loop().subprocess_exec(
        _Answer,
        *argv,
        "--version",
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
        env={**env, "NO_COLOR": "1", **more},
        start_new_session=True,
    )
    try:
        await answer.ended
        _kill(transport)  # what it left running may hold the pipes open
        await asyncio.wait({answer.closed}, timeout=_PIPE_SECONDS)
    finally:
        _kill(transport)
        transport.close()
        await asyncio.shield(answer.closed)
    return transport.get_returncode(), bytes(answer.said[1]), bytes(answer.said[2])


def _kill(transport: asyncio.SubprocessTransport) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.killpg(transport.get_pid(), signal.SIGKILL)
