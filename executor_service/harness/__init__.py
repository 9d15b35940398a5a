"""Harnesses: the kinds of things that execute. `base` is the contract, `registry` finds one by name."""
