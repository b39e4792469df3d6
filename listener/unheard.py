"""Finds the edits that nobody rang for while their source's sweep is open, which would come to them last."""

import asyncio
import time
from collections.abc import Sequence
from typing import Protocol

from db.outbox import OutboxItem
from evervec.errors import ConfigurationError, DatabaseError
from evervec.log import describe_error, get_logger
from listener.backoff import Backoff
from listener.debounce import Clock

IDLE_SECONDS = 1.0
REST = 20
"""All of the outbox is read for it: it is left alone so many times as long as that took."""
LATE_SECONDS = 5.0
"""A transaction may end so long after it enqueued an item, and still be found."""

_log = get_logger(__name__)


class Reader(Protocol):
    """The outbox, as far as this needs it."""

    async def last_version(self) -> int:
        """The last version that was given out."""

    async def newest(self, source: str, seconds: float, limit: int) -> list[OutboxItem]:
        """Some pending items of a source that were enqueued in the last so many seconds."""


class Live(Protocol):
    """The router, as far as this needs it."""

    threshold: int

    @property
    def sweeping(self) -> list[str]:
        """The sources whose sweeps are at work."""

    def unheard(self, items: Sequence[OutboxItem], seen_at: float) -> None:
        """These few items are new, and their source's sweep is open."""


class Unheard:
    """Of the transactions that began in one second only one rings at a time.

    Whom it kept from ringing is found by the looks, as long as no sweep is open: what is found then is left to that. So
    here is asked for what was enqueued of late. More than the threshold is bulk work, and the sweep's.
    """

    def __init__(self, live: Live, clock: Clock = time.monotonic) -> None:
        self._live = live
        self._clock = clock
        self._backoff = Backoff(first=1.0, longest=60.0)
        self._failing = False
        self._since: dict[str, float] = {}  # what was enqueued before is the sweep's
        self._looked_at = self._read_at = clock()
        self._version = 0
        self._news_until = self._read_at

    async def run(self, outbox: Reader) -> None:
        """Look while sweeps are open, until cancelled. ServiceUnreachableError when the database is lost."""
        while True:
            rest = await self.step(outbox)
            await asyncio.sleep(rest)

    async def step(self, outbox: Reader) -> float:
        """Look once; returns how long to rest before the next time, in seconds."""
        started = self._clock()
        # A sweep that was not open the last time has opened since.
        self._since = {source: self._since.get(source, self._looked_at) for source in self._live.sweeping}
        self._looked_at = started
        try:
            if self._since and await self._is_news(outbox):
                for source in self._since:
                    await self._look(outbox, source)
                self._read_at = started
        except (DatabaseError, ConfigurationError) as error:  # an earlier version's database
            if not self._failing:
                _log.warning("edits that nobody rang for are left to the sweep", error=describe_error(error))
            self._failing = True
            return self._backoff.next()
        self._backoff.reset()
        self._failing = False
        return max(IDLE_SECONDS, REST * (self._clock() - started))

    async def _is_news(self, outbox: Reader) -> bool:
        """Whether something was enqueued, or may have been committed, since the outbox was read."""
        version = await outbox.last_version()
        if version != self._version:
            self._version, self._news_until = version, self._clock() + LATE_SECONDS
        return self._read_at <= self._news_until

    async def _look(self, outbox: Reader, source: str) -> None:
        seen_at = self._clock()
        items = await outbox.newest(source, seen_at - self._since[source], self._live.threshold + 1)
        if len(items) > self._live.threshold:
            self._since[source] = seen_at
        else:
            self._live.unheard(items, seen_at)
            self._since[source] = max(self._since[source], seen_at - LATE_SECONDS)
