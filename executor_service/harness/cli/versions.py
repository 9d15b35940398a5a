"""Versions of agent CLIs, as they print them: numbers between other characters."""

import re


def is_known(version: str, known: tuple[str, str]) -> bool:
    """True when the version is in the range: at least the first, below the second."""
    return _parts(known[0]) <= _parts(version) < _parts(known[1])


def is_before(version: str, first: str) -> bool:
    """True for a release that is older than `first`; one that is not known counts as new."""
    return bool(_parts(version)) and _parts(version) < _parts(first)


def _parts(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in re.findall(r"\d+", version)[:4])
