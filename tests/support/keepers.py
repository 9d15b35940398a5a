"""Keepers for what runs git outside of an executor: one program of them for all tests of a process."""

from typing import Final

from executor_service.descendants import Reaper
from executor_service.keepers import Keepers

KEEPERS: Final = Keepers(Reaper(), "of-tests")
