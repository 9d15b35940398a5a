"""Metrics of the executor service for Prometheus: what it runs, what that consumed, and what waits to be recorded.

`catalog.py` names every series; the README's table is made from it. Counters (`counting.py`) count in this process,
from its start, as the journal takes each outcome; what they count is in the journal for good. Everything else
(`state.py`) is looked at for each scrape, by the event loop and with a deadline; when that does not answer,
`backburner_executor_up` is 0 and those series are missing.

The number of series is bounded. Labels are of fixed sets, or of what this executor was given (its harnesses and pools);
of models, which anybody may name, the first fifty have series of their own and the rest are added up as `other`.
"""
