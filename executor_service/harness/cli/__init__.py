"""Coding-agent CLIs as harnesses: one small file for each, behind `adapter.py`; `runner.py` runs them all."""
