"""The one importer of `random` on the way to process code: generators of a given seed, and no other."""

from random import Random

__all__ = ["Random", "seeded"]


def seeded(seed: bytes) -> Random:
    """A generator that gives the same numbers for the same seed, on every machine."""
    return Random(int.from_bytes(seed))
