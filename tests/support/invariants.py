"""`make invariants`: which tests hold which invariant of the design.

A test claims an invariant with `@pytest.mark.invariant("I4")`. Exit code 1 when an invariant has no test or a mark
names none, so that CI can insist on it.
"""

import contextlib
import io
import sys
from collections import defaultdict
from typing import Final

import pytest

INVARIANTS: Final = {
    "I1": "nothing starts before its request and its attempt are committed",
    "I2": "every effect settles exactly once; late results are kept as evidence",
    "I3": "an attempt is started at most once",
    "I4": "seq is dense and in commit order; journal rows never change",
    "I5": "only the owner appends iteration events",
    "I6": "an acknowledged request or cancel is never lost",
    "I7": "each result is journaled when its own effect ends",
    "I8": "replaying any prefix yields the same requests; divergence is reported",
    "I9": "a watcher that reconnects sees every event once, in order",
    "I10": "after a proven end no descendant of the child is alive",
    "I11": "every queue, buffer and loop has a bound",
    "I12": "time in a run never goes back",
    "I13": "every dispatched attempt is reported, settled or lost in bounded time",
    "I14": "every call may be repeated",
}


class _Claims:
    """A pytest plugin that notes the claims of the collected tests."""

    def __init__(self) -> None:
        self.tests: dict[str, set[str]] = defaultdict(set)

    def pytest_collection_finish(self, session: pytest.Session) -> None:
        for item in session.items:
            for mark in item.iter_markers("invariant"):
                for name in mark.args:
                    self.tests[name].add(item.nodeid.partition("[")[0])


def main() -> int:
    claims, output = _Claims(), io.StringIO()
    with contextlib.redirect_stdout(output):
        code = pytest.main(["--collect-only", "--quiet", "tests"], plugins=[claims])
    if code not in (pytest.ExitCode.OK, pytest.ExitCode.NO_TESTS_COLLECTED):
        print(output.getvalue(), file=sys.stderr)
        return 2
    for name, meaning in INVARIANTS.items():
        print(f"{name:<4} {meaning}")
        for test in sorted(claims.tests[name]) or ["(no test)"]:
            print(f"       {test}")
    return _report_holes(claims)


def _report_holes(claims: _Claims) -> int:
    holes = [name for name in INVARIANTS if not claims.tests[name]]
    unknown = sorted(claims.tests.keys() - INVARIANTS.keys())
    if holes:
        print(f"\nwithout a test: {', '.join(holes)}")
    if unknown:
        print(f"\nmarks that name no invariant: {', '.join(unknown)}")
    return 1 if holes or unknown else 0


if __name__ == "__main__":
    sys.exit(main())
