"""Slots: how much may run at a time, by pool. Pure."""

from collections.abc import Mapping
from dataclasses import dataclass

from executor_service.settings import Settings


@dataclass(slots=True)
class Pool:
    """Slots of one class of work."""

    slots: int
    background_slots: int
    taken: int = 0
    background_taken: int = 0

    def take(self, *, background: bool) -> bool:
        """Takes a slot; False when there is none."""
        if self.taken >= self.slots or (background and self.background_taken >= self.background_slots):
            return False
        self.taken += 1
        self.background_taken += background
        return True

    def give_back(self, *, background: bool) -> None:
        """Gives a slot back."""
        self.taken -= 1
        self.background_taken -= background


def pools_of(settings: Settings) -> Mapping[str, Pool]:
    """The pools that the settings ask for."""
    return {name: Pool(slots, settings.background_slots(slots)) for name, slots in settings.pools().items()}
