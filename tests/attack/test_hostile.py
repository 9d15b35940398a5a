"""Random and hostile messages to every rpc, few enough for every day; `make hostile` sends ten thousand to each."""

import secrets
from pathlib import Path

import pytest

from tests.attack import hostile
from tests.attack.hostile import METHODS, attack

COUNT = 150


@pytest.mark.slow
@pytest.mark.timeout(300)
async def test_no_message_makes_an_internal_error_hangs_or_loses_anything(
    database_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(hostile, "BATCH", 100)  # two to each rpc, as `make hostile` sends more than one
    seed = secrets.randbits(32)
    print(f"seed {seed}")
    reports = await attack(database_url, tmp_path, count=COUNT, seed=seed, show=print)
    assert [report.name for report in reports] == [method.name for method in METHODS]
    shallow = {report.name for report in reports if not report.codes["OK"] + report.codes["UNIMPLEMENTED"]}
    assert not shallow, f"the attack never got past the checks of {sorted(shallow)}"
