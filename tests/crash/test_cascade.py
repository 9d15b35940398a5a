"""A run is cancelled with its child runs and all their children, a small `make cascade`: all are told, all are dead."""

from pathlib import Path

import pytest

from tests.crash.outages.cascade import Tree, cascade

pytestmark = [pytest.mark.crash, pytest.mark.timeout(240)]


@pytest.mark.invariant("I2", "I6", "I10")
async def test_a_cancel_reaches_every_leaf_of_a_tree_of_runs(tmp_path: Path) -> None:
    tree = Tree(roots=1, depth=2, fan=2, leaves=1)
    outcome = await cascade(tree, print, tmp_path)
    print(outcome)
    assert not outcome.violations, "\n".join(outcome.violations)
    assert len(outcome.told_s) == len(outcome.dead_s) == tree.children
