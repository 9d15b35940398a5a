"""Metrics of the scheduler service for Prometheus: what this replica does, and what `backburner doctor` looks at.

`catalog.py` names every series; the README's table is made from it. What is counted in the process (`process.py`) is
there at each scrape. What the journal has (`figures.py`) is read at most once in five seconds, however often and by how
many is scraped, by the event loop and with a deadline; when it cannot be read, `backburner_journal_up` is 0 and its
series are missing rather than stale.

The number of series is bounded. Labels are of fixed sets (states, reasons, causes, codes, methods); of what users name,
which are namespaces, harnesses, models, accounts, executors and labels with a budget, the first of each series have
their own and the rest are added up as `other` (budgets and breakers: left out, and counted). No label is an id of a run
or an effect.
"""
