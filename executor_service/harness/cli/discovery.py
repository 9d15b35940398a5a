"""Which agent CLIs this machine has, in which version, and whether they are logged in, as far as no call can tell.

A version outside of the known range is used all the same, with a warning. Programs are found on PATH, or where
BACKBURNER_HARNESS_PATHS says.
"""

import asyncio
import contextlib
import logging
import os
import re
import shutil
import signal
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from backburner.scheduler.v1 import dispatch_service_pb2 as pb
from executor_service.harness.cli.adapter import Adapter, Program
from executor_service.harness.cli.versions import is_known

log = logging.getLogger(__name__)

#: Longest that a CLI may take to tell its version.
VERSION_SECONDS: Final = 20.0
_VERSION: Final = re.compile(r"\d+\.\d+(?:\.\d+)*")


@dataclass(frozen=True, slots=True)
class Found:
    """What is known of one CLI. `program` None: it is not on this machine."""

    adapter: Adapter
    program: Program | None
    check: pb.HarnessCheck


async def discover(adapters: Sequence[Adapter], paths: Mapping[str, str], home: Path) -> list[Found]:
    """Looks for all of them at a time. `paths`: programs by the harness's name, in place of PATH."""
    return list(await asyncio.gather(*(_look(adapter, paths.get(adapter.name, ""), home) for adapter in adapters)))


async def _look(adapter: Adapter, given: str, home: Path) -> Found:
    path = _program(adapter, given)
    if path is None:
        where = f"{given!r} is no program" if given else f"no {' or '.join(adapter.programs)} on PATH"
        remedy = f"{where}: install it, or name it with --harness-path {adapter.name}=/path/to/it"
        return Found(adapter, None, pb.HarnessCheck(name=adapter.name, remedy=remedy))
    argv = adapter.locate(path)
    version, problem = await _version(argv, home)
    known = is_known(version, adapter.versions)
    login = _login(adapter, home)
    check = pb.HarnessCheck(
        name=adapter.name,
        found=not problem,
        version=version,
        version_known=known,
        login=login,
        path=argv[-1],
        remedy=problem or "; ".join(_remedies(adapter, version, known=known, login=login)),
    )
    return Found(adapter, None if problem else Program(str(path), argv, version), check)


def _program(adapter: Adapter, given: str) -> Path | None:
    for name in [given] if given else adapter.programs:
        if found := shutil.which(name):
            return Path(found).absolute()
    return None


async def _version(argv: Sequence[str], home: Path) -> tuple[str, str]:
    """The version that it tells, and what is wrong when it does not run."""
    try:
        child = await asyncio.create_subprocess_exec(
            *argv,
            "--version",
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
            env={name: os.environ[name] for name in ("PATH", "LANG", "TMPDIR") if name in os.environ}
            | {"HOME": str(home), "NO_COLOR": "1"},
            start_new_session=True,
        )
    except OSError as error:
        return "", f"it cannot be started: {error}"
    with _ended(child):
        try:
            async with asyncio.timeout(VERSION_SECONDS):
                out, err = await child.communicate()
        except TimeoutError:
            return "", f"`{argv[-1]} --version` has not answered within {VERSION_SECONDS:g} s: try it by hand"
    found = _VERSION.search((out.strip() or err).decode("utf-8", "replace"))  # pi tells it on stderr
    if child.returncode or found is None:
        said = (err or out).decode("utf-8", "replace").strip()[:300]
        return "", f"`{argv[-1]} --version` ended with {child.returncode} and said {said!r}: try it by hand"
    return found[0], ""


@contextlib.contextmanager
def _ended(child: asyncio.subprocess.Process) -> Iterator[None]:
    """Leaves nothing of it behind."""
    try:
        yield
    finally:
        with contextlib.suppress(OSError):
            os.killpg(child.pid, signal.SIGKILL)


def _login(adapter: Adapter, home: Path) -> pb.HarnessLogin.ValueType:
    if any(os.environ.get(name) for name in adapter.credentials if name.endswith(("KEY", "TOKEN"))):
        return pb.HARNESS_LOGIN_FOUND
    if not adapter.logins:
        return pb.HARNESS_LOGIN_UNSPECIFIED
    there = any(_is_there(home / name) for name in adapter.logins)
    return pb.HARNESS_LOGIN_FOUND if there else pb.HARNESS_LOGIN_MISSING


def _is_there(path: Path) -> bool:
    try:
        return path.exists()
    except OSError:  # in a home that is not to be read: a CLI could not log in by it either
        return False


def _remedies(adapter: Adapter, version: str, *, known: bool, login: pb.HarnessLogin.ValueType) -> Iterator[str]:
    if not known:
        first, beyond = adapter.versions
        yield f"version {version} is used, but not known to work (known: {first} and later, below {beyond})"
    if login == pb.HARNESS_LOGIN_MISSING:
        yield f"not logged in: {adapter.login_remedy}"
