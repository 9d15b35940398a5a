"""Commands as a shell sees them, beside a played scheduler."""

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.unit.cli.fake_scheduler import FakeScheduler, serve

ROOT = Path(__file__).resolve().parents[3]


class Shell:
    """Runs commands beside the played scheduler."""

    def __init__(self, fake: FakeScheduler, address: str, folder: Path) -> None:
        self.fake = fake
        self.folder = folder
        path = os.pathsep.join([str(ROOT), str(ROOT / "proto" / "gen")])
        self.env = {**os.environ, "PYTHONPATH": path, "BACKBURNER_ADDRESS": address, "GRPC_ENABLE_FORK_SUPPORT": "0"}
        self.env.pop("COLUMNS", None)

    def start(self, *arguments: str, **env: str) -> subprocess.Popen[bytes]:
        return subprocess.Popen(
            [sys.executable, "-m", "scheduler_service.cli", *arguments],
            cwd=self.folder,
            env={**self.env, **env},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )

    def __call__(self, *arguments: str, **env: str) -> tuple[int, str, str]:
        process = self.start(*arguments, **env)
        out, err = process.communicate(timeout=30)
        assert b"Traceback" not in err, err.decode()
        return process.returncode, out.decode(errors="surrogateescape"), err.decode()


@pytest.fixture
def shell(tmp_path: Path) -> Iterator[Shell]:
    fake = FakeScheduler()  # type: ignore[abstract]  # what it leaves out is not called
    server, address = serve(fake)
    yield Shell(fake, address, tmp_path)
    server.stop(None).wait()
