"""Which CLIs a test is for. Those that are not quick run by `make test-harnesses` only."""

import pytest
from _pytest.mark import ParameterSet

from tests.support.harnesses import CLIS, QUICK


def clis(*names: str, without: tuple[str, ...] = ()) -> list[ParameterSet]:
    """Parameters for these CLIs, or for all of them but some."""
    return [
        pytest.param(name, id=name, marks=[] if CLIS[name].group == QUICK else [pytest.mark.all_harnesses])
        for name in (names or CLIS)
        if name not in without
    ]
