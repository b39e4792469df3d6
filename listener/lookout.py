"""Looks into the outbox by itself: the bell need not ring for every change."""

import asyncio
import time
from collections.abc import Sequence
from contextlib import suppress
from itertools import groupby
from operator import attrgetter
from typing import Protocol

from db.outbox import FillPage, OutboxItem
from evervec.errors import DatabaseError
from evervec.log import describe_error, get_logger
from listener.backoff import Backoff
from listener.debounce import Clock
from listener.route import Router

IDLE_SECONDS = 1.0
SETTLE_SECONDS = 0.03
"""After a ring, until those have committed that did not ring because somebody was ringing already."""
REST = 3
"""How many times as long as a look took the database no other is made."""
FILL_PAGE = 500

_log = get_logger(__name__)


class Reader(Protocol):
    """The outbox, as far as a look needs it."""

    async def waiting(self, limit: int) -> list[OutboxItem]:
        """The items that are due, at most so many of each source, source by source."""

    async def find(self, keys: Sequence[tuple[str, str]]) -> list[OutboxItem]:
        """Those of the items that are pending."""


class Filling(Protocol):
    """The outbox, as far as a first fill needs it."""

    async def fill_page(self, limit: int) -> FillPage | None:
        """Enqueue the next page of a first fill; None when no fill is waiting."""


class Lookout:
    """Shows the router what is in the outbox: right after a ring or a hush, and every second besides."""

    def __init__(self, router: Router, bell: asyncio.Event, clock: Clock = time.monotonic) -> None:
        self._router = router
        self._bell = bell
        self._clock = clock
        self._at_once = False

    def look_at_once(self) -> None:
        """Look now, and again a moment later, when those have committed that are about to."""
        self._at_once = True
        self._bell.set()

    async def run(self, outbox: Reader) -> None:
        """Look, wait, look again, until cancelled. ServiceUnreachableError when the database is lost."""
        while True:
            await self._pause(REST * await self.look(outbox))

    async def look(self, outbox: Reader) -> float:
        """Look once; that costs the same however long the outbox is. Returns how long the database took, in seconds.

        Temporal's time is not in it: a sweep that is open must be asked for before it is forgotten.
        """
        started = self._clock()
        await self._router.settle(outbox)
        seen_at = self._clock()
        items = await outbox.waiting(self._router.threshold + 1)
        took = self._clock() - started
        async with asyncio.TaskGroup() as looks:  # Temporal may have to be asked about each source
            for source, found in groupby(items, key=attrgetter("source")):
                looks.create_task(self._router.found(source, list(found), seen_at))
        return took

    async def _pause(self, least: float) -> None:
        with suppress(TimeoutError):
            async with asyncio.timeout(max(least, IDLE_SECONDS)):
                await self._bell.wait()
        if self._bell.is_set():
            await asyncio.sleep(least if self._at_once else max(least, SETTLE_SECONDS))
            if self._at_once:
                self._at_once = False  # the bell is still set: another look follows
            else:
                self._bell.clear()


class Filler:
    """Enqueues the rows that were there before their table was watched, page by page."""

    def __init__(self, bell: asyncio.Event) -> None:
        self._bell = bell
        self._backoff = Backoff(first=0.5)
        self.filling: str | None = None
        """The source whose first fill runs."""

    async def run(self, outbox: Filling) -> None:
        """Fill whatever asks for it, until cancelled. ServiceUnreachableError when the database is lost."""
        while True:
            started = time.monotonic()
            page = await self._fill_page(outbox)
            if page is None:
                await asyncio.sleep(IDLE_SECONDS)
            else:
                self._bell.set()
                # Half of the time belongs to others.
                await asyncio.sleep(time.monotonic() - started)

    async def _fill_page(self, outbox: Filling) -> FillPage | None:
        try:
            page = await outbox.fill_page(FILL_PAGE)
        except DatabaseError as error:
            _log.warning("a page of a first fill failed; it will be tried again", error=describe_error(error))
            await asyncio.sleep(self._backoff.next())
            return None
        self._backoff.reset()
        self._tell(page)
        return page

    def _tell(self, page: FillPage | None) -> None:
        source = page.source if page else None
        if page and source != self.filling:
            _log.info("first fill started", source=source)
        if page and page.done:
            _log.info("first fill done", source=source)
            source = None
        self.filling = source
