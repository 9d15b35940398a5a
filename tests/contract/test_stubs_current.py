"""The committed stubs are what the .proto files say, and importing them loads no service."""

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


def python(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, *arguments], cwd=ROOT, capture_output=True, text=True, check=False)


@pytest.mark.slow
def test_stubs_are_current() -> None:
    done = python("proto/generate.py", "--check")
    assert done.returncode == 0, done.stderr


def test_importing_stubs_loads_no_service() -> None:
    program = (
        "import sys; sys.path[:0] = ['proto/gen', '.'];"
        "import backburner.scheduler.v1.scheduler_service_pb2_grpc, backburner.executor.v1.executor_service_pb2_grpc;"
        "from backburner import journal;"
        "print([name for name in sys.modules if name.startswith(('scheduler_service', 'executor_service'))])"
    )
    done = python("-c", program)
    assert (done.returncode, done.stdout.strip()) == (0, "[]"), done.stderr


def test_face_has_the_names_of_authoring() -> None:
    import backburner
    from scheduler_service import authoring

    assert set(authoring.__all__) <= set(dir(backburner))
    for name in authoring.__all__:
        assert getattr(backburner, name) is getattr(authoring, name)


def test_face_says_which_name_is_missing() -> None:
    import backburner

    with pytest.raises(AttributeError, match="module 'backburner' has no attribute 'no_such_name'"):
        _ = backburner.no_such_name  # type: ignore[attr-defined]


def test_every_message_of_the_protos_has_a_comment_in_its_stub() -> None:
    """The comments of the .proto files reach the editors of Python users."""
    stub = (ROOT / "proto/gen/backburner/journal/v1/journal_pb2.pyi").read_text()
    assert '"""' in stub.partition("class JournalEvent(")[2].partition("DESCRIPTOR")[0]
