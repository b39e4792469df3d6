"""Counts large sources and a long outbox, so that `evervec.status` need not; by the way finds what no trigger saw."""

import asyncio
import time
from collections import Counter
from typing import Protocol

from db.outbox import CensusPage
from evervec.errors import DatabaseError
from evervec.log import describe_error, get_logger
from listener.backoff import Backoff
from listener.debounce import Clock

IDLE_SECONDS = 2.0
CENSUS_PAGE = 1000
OUTBOX_REST = 20
"""The outbox is left alone so many times as long as it took to count it."""

_log = get_logger(__name__)


class Counting(Protocol):
    """The database, as far as a census needs it."""

    async def census_page(self, limit: int) -> CensusPage | None:
        """Walk over the next page of a large source; None when there is nothing to do."""

    async def count(self) -> bool:
        """Count what waits, if that is much; whether it is."""


class Census:
    """Walks over the rows of large sources, page by page, again when they have changed. The database says when."""

    def __init__(self, clock: Clock = time.monotonic) -> None:
        self._clock = clock
        self._backoff = Backoff(first=0.5)
        self._outbox_due = 0.0
        self.overlooked: Counter[str] = Counter()
        """Stale items by source that no trigger saw."""

    async def run(self, database: Counting) -> None:
        """Count whatever asks for it, until cancelled. ServiceUnreachableError when the database is lost."""
        self._outbox_due = self._clock()
        while True:
            rest = await self.step(database)
            await asyncio.sleep(rest)

    async def step(self, database: Counting) -> float:
        """Count what is due; returns how long to rest before the next step, in seconds."""
        try:
            if self._clock() >= self._outbox_due:
                await self._count_outbox(database)
            started = self._clock()
            page = await database.census_page(CENSUS_PAGE)
        except DatabaseError as error:
            _log.warning("a count failed; it will be tried again", error=describe_error(error))
            return self._backoff.next()
        self._backoff.reset()
        if page and page.enqueued:
            self.overlooked[page.source] += page.enqueued
            _log.warning("changes were found that no trigger saw", source=page.source, items=page.enqueued)
        if page and page.done:
            _log.debug("counted", source=page.source)
        # Half of the time belongs to others; a source that was counted is left alone for longer.
        return self._clock() - started if page else IDLE_SECONDS

    async def _count_outbox(self, database: Counting) -> None:
        started = self._clock()
        await database.count()
        ended = self._clock()
        self._outbox_due = ended + max(IDLE_SECONDS, OUTBOX_REST * (ended - started))
