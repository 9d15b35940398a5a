"""Checks stored journals against the invariants: reads only, in bounded steps, each run from one snapshot."""

from scheduler_service.journal.verify.reading import READS, Verified, recorded, verify
from scheduler_service.journal.verify.rules import RULES, Recorded, Violation, violations

__all__ = ["READS", "RULES", "Recorded", "Verified", "Violation", "recorded", "verify", "violations"]
