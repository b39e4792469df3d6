"""Which sources have a sweep at work, and what it knows of."""

from collections.abc import Awaitable, Callable
from dataclasses import dataclass

from temporalio.exceptions import TemporalError

from evervec.errors import EvervecError
from listener.debounce import Clock

PAUSE_SECONDS = 1.0
"""A sweep is asked for, or told of something, at most once in this time."""

KNOWN_SECONDS = 5.0
"""How long it is remembered that a sweep is open, of which nothing was heard since."""


@dataclass(slots=True)
class _Sweep:
    is_open: bool = False
    asked_at: float = float("-inf")
    told_at: float = float("-inf")
    told: int = -1
    """The highest version in the outbox when the sweep was last told that items wait."""


class Sweeps:
    """Remembers of each source whether its sweep is open; `ask` finds it out."""

    def __init__(self, ask: Callable[[str], Awaitable[bool]], clock: Clock) -> None:
        self._ask = ask
        self._clock = clock
        self._sweeps: dict[str, _Sweep] = {}

    def open(self) -> list[str]:
        """The sources whose sweeps were at work not long ago; of each that has work left, it is asked every second."""
        known_since = self._clock() - KNOWN_SECONDS
        return [source for source, sweep in [*self._sweeps.items()] if sweep.is_open and sweep.asked_at >= known_since]

    def is_news(self, source: str, version: int) -> bool:
        """Whether the sweep may not know of an item of this version, and may be told again."""
        sweep = self._sweep(source)
        return version > sweep.told and self._clock() - sweep.told_at >= PAUSE_SECONDS

    def told(self, source: str, version: int) -> None:
        """The sweep was told that items up to this version wait; now there is one."""
        now = self._clock()
        self._sweeps[source] = _Sweep(is_open=True, asked_at=now, told_at=now, told=version)

    async def is_open(self, source: str) -> bool:
        """Whether the source's sweep is at work, as of a second ago. With Temporal away nothing is known to be."""
        sweep = self._sweep(source)
        if self._clock() - sweep.asked_at >= PAUSE_SECONDS:
            sweep.asked_at = self._clock()
            try:
                sweep.is_open = await self._ask(source)
            except (EvervecError, TemporalError):
                sweep.is_open = False
        return sweep.is_open

    def _sweep(self, source: str) -> _Sweep:
        return self._sweeps.setdefault(source, _Sweep())
