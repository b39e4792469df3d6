"""When so much is rung that hearing it is of no use: silence the bell for a moment, and look instead."""

import asyncio
import time
from collections.abc import Callable
from typing import Protocol

from evervec.errors import ConfigurationError, DatabaseError
from evervec.log import describe_error, get_logger
from listener.backoff import Backoff
from listener.debounce import Clock

RATE = 30.0
"""Rings a second that may be of no use. What is of use is no more than the live lane has room for."""
BURST = 16.0
"""Rings of no use at once, after a while of quiet."""
AFTERWARDS = 2.0
"""And right after a hush, so that a flood that goes on is soon known."""
FIRST_SECONDS = 0.1
LONGEST_SECONDS = 0.25
CALM_SECONDS = 0.5
"""After so long without a hush, the next one is a short one again."""
REFUSED_SECONDS = 0.1
"""Until it is looked again whether a hush would do harm."""

_log = get_logger(__name__)


class Silencer(Protocol):
    """The database, as far as a hush needs it."""

    async def hush(self, seconds: float) -> bool:
        """Have nobody ring for so long; False when somebody else keeps the bell silent."""


class Allowance:
    """How much may happen: `burst` at once, `rate` a second in the long run."""

    def __init__(self, rate: float, burst: float, clock: Clock) -> None:
        self._rate = rate
        self._burst = burst
        self._clock = clock
        self._left = burst
        self._counted_at = clock()

    def take(self) -> bool:
        """One more has happened; False when that was too much."""
        now = self._clock()
        self._left = min(self._burst, self._left + (now - self._counted_at) * self._rate)
        self._counted_at = now
        if self._left < 1:
            return False
        self._left -= 1
        return True

    def begin_with(self, left: float) -> None:
        """From now on, so much at once."""
        self._left = left
        self._counted_at = self._clock()


class Hush:
    """Polling instead of ringing while writers are many: as network drivers switch off interrupts under load.

    A ring is of no use when it tells of an item that waits already, that the live lane has no room for, or that nobody
    wants. Too many of them, and the database keeps the bell silent for a moment; it lets go in time by itself, whatever
    becomes of the listener. What committed meanwhile is found in the outbox: `over` is called afterwards.
    """

    def __init__(
        self, is_harmless: Callable[[], bool], over: Callable[[], None], clock: Clock = time.monotonic
    ) -> None:
        self._is_harmless = is_harmless
        self._over = over
        self._clock = clock
        self._useless = Allowance(RATE, BURST, clock)
        self._wanted = asyncio.Event()
        self._seconds = FIRST_SECONDS
        self._ended_at = float("-inf")
        self._backoff = Backoff(first=1.0, longest=60.0)
        self._told = False
        self.hushed = 0
        """How often the bell was silenced."""

    def useless(self) -> None:
        """A ring that was of no use was heard."""
        if not self._useless.take():
            self._wanted.set()

    async def run(self, database: Silencer) -> None:
        """Hush whenever it is asked for and harmless. ServiceUnreachableError when the database is lost."""
        while True:
            await self._wanted.wait()
            if self._is_harmless():
                await self._hush(database)
            else:
                await asyncio.sleep(REFUSED_SECONDS)
            self._useless.begin_with(AFTERWARDS)
            self._wanted.clear()

    async def _hush(self, database: Silencer) -> None:
        if self._clock() - self._ended_at > CALM_SECONDS:
            self._seconds = FIRST_SECONDS
        try:
            silenced = await database.hush(self._seconds)
        except (DatabaseError, ConfigurationError) as error:  # no right to, or an earlier version's database
            if not self._told:
                _log.warning("the bell could not be silenced; writers pay for each ring", error=describe_error(error))
            self._told = True
            await asyncio.sleep(self._backoff.next())
            return
        self._backoff.reset()
        self._ended_at = self._clock()
        if silenced:
            self.hushed += 1
            self._seconds = min(LONGEST_SECONDS, 1.5 * self._seconds)
        self._over()
