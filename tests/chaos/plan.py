"""Which fault strikes when: random, and the same again for the same seed."""

import random
from dataclasses import dataclass
from typing import NamedTuple


@dataclass(frozen=True)
class Times:
    """How hard a run is, in seconds."""

    gap: float = 6.0
    """Between two faults, on average."""
    down: float = 5.0
    """How long at most what was killed stays away."""
    pauses: tuple[float, ...] = (14.0, 14.0, 25.0, 75.0)
    """How long a process may be stopped: longer than heartbeats and pings, longer than pools and signals wait, longer
    than an activity without heartbeats may take."""
    visit: float = 30.0
    """How long what lasts a while lasts on average: another process, a full queue."""


SHORT = Times(gap=2.0, down=2.0, pauses=(13.0,), visit=8.0)


class Strike(NamedTuple):
    """One fault to come."""

    number: int
    after: float
    """Seconds after the one before it struck."""
    kind: str
    lasts: float
    """Seconds until it is healed."""
    dice: float
    """Between 0 and 1: settles what else the fault leaves to chance."""

    def __str__(self) -> str:
        return f"{self.number:3}  +{self.after:4.1f} s  {self.kind}, {self.lasts:.0f} s"


def make_plan(kinds: dict[str, str], seed: int, faults: int, times: Times) -> list[Strike]:
    """So many strikes; every kind has its turn before one comes again. `kinds` says how long each lasts.

    "down": a short while; "pause": longer than timeouts; "visit": a longer while.
    """
    chance = random.Random(seed)
    order: list[str] = []
    while len(order) < faults:
        order += chance.sample(sorted(kinds), len(kinds))
    return [_strike(number, kind, kinds[kind], chance, times) for number, kind in enumerate(order[:faults], 1)]


def _strike(number: int, kind: str, length: str, chance: random.Random, times: Times) -> Strike:
    lasts = {
        "down": chance.uniform(0, times.down),
        "pause": chance.choice(times.pauses),
        "visit": chance.uniform(times.visit / 2, times.visit * 1.5),
    }
    return Strike(
        number, round(chance.uniform(0.3, 1.7) * times.gap, 1), kind, round(lasts[length], 1), chance.random()
    )
