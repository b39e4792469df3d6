"""How much bulk work may be under way."""

from dataclasses import dataclass

from listener.debounce import Clock

SECONDS = 1.0
LEAST = 16
MOST = 256
MEASURE_SECONDS = 1.0


@dataclass(slots=True)
class _Rate:
    since: float
    done: int = 0
    per_second: float = LEAST / SECONDS


class Window:
    """For each source as many items as are done in about a second.

    That is enough to keep the workers busy, however quick they are, and a live edit waits for that second at most.
    """

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._rates: dict[str, _Rate] = {}

    def done(self, source: str) -> None:
        """An item of this source is done."""
        self._rate(source).done += 1

    def size(self, source: str) -> int:
        """How many items of this source may be under way."""
        rate = self._rate(source)
        passed = self._clock() - rate.since
        if passed >= MEASURE_SECONDS:
            latest = rate.done / passed
            rate.per_second = max(latest, (rate.per_second + latest) / 2)  # grows at once, shrinks slowly
            rate.since, rate.done = self._clock(), 0
        return round(min(MOST, max(LEAST, rate.per_second * SECONDS)))

    def _rate(self, source: str) -> _Rate:
        return self._rates.setdefault(source, _Rate(self._clock()))
