"""The scheduler service: takes requests, runs the iteration loop of every run, dispatches effects."""
