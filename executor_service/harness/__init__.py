"""Harnesses: the kinds of things that execute.

`base` is the contract with an invocation, `registry` finds one by name. `agent` is the public interface, for harness
modules; `child` runs a program for any of them.
"""
