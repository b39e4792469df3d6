"""Counts large sources, so that `evervec.status` need not."""

import asyncio
import time
from typing import Protocol

from db.outbox import CensusPage
from evervec.errors import DatabaseError
from evervec.log import describe_error, get_logger
from listener.backoff import Backoff

IDLE_SECONDS = 2.0
CENSUS_PAGE = 1000

_log = get_logger(__name__)


class Counting(Protocol):
    """The database, as far as a census needs it."""

    async def census_page(self, limit: int) -> CensusPage | None:
        """Count the next page of a large source; None when there is nothing to count."""


class Census:
    """Walks over the rows of large sources, page by page, again when they have changed. The database says when."""

    def __init__(self) -> None:
        self._backoff = Backoff(first=0.5)

    async def run(self, database: Counting) -> None:
        """Count whatever asks for it, until cancelled. ServiceUnreachableError when the database is lost."""
        while True:
            started = time.monotonic()
            page = await self._count_page(database)
            # Half of the time belongs to others; a source that was counted is left alone for longer.
            await asyncio.sleep(time.monotonic() - started if page else IDLE_SECONDS)

    async def _count_page(self, database: Counting) -> CensusPage | None:
        try:
            page = await database.census_page(CENSUS_PAGE)
        except DatabaseError as error:
            _log.warning("a page of a count failed; it will be tried again", error=describe_error(error))
            await asyncio.sleep(self._backoff.next())
            return None
        self._backoff.reset()
        if page and page.done:
            _log.debug("counted", source=page.source)
        return page
