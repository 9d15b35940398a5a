"""Workspaces: where agents work.

Of an effect that asks for one, `workspaces.py` makes a git worktree or a copy, or takes the lease of a directory, gives
it to every attempt of the effect, says what has changed in it, and removes it by policy. `git.py` runs git, `leases.py`
are the leases, `trees.py` are worktrees, copies and directories, `capture.py` is what has changed, `sweep.py` removes
what was left, `merge.py` is the function that merges what several agents did.
"""
