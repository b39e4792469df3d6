"""Backfills that were begun here: they enqueue page by page in the background, and can be called off."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from typing import Self

from db.pages import Pages
from db.sources import Sources
from evervec.errors import ConfigurationError, EvervecError
from evervec.log import describe_error, get_logger
from service.refire import check_predicate, refire

CALL_OFF_ROWS = 2000
"""Outbox rows of one short transaction."""

log = get_logger(__name__)


@dataclass(slots=True)
class Backfill:
    """What one has done so far. What it has enqueued is in the outbox, whatever becomes of this process."""

    scanned: int = 0
    enqueued: int = 0
    problem: str | None = None
    task: asyncio.Task[None] | None = None

    @property
    def running(self) -> bool:
        """Whether it still goes through the table."""
        return self.task is not None and not self.task.done()


class Backfills:
    """One a source at most."""

    def __init__(self, sources: Sources, pages: Pages) -> None:
        self._sources = sources
        self._pages = pages
        self._of: dict[str, Backfill] = {}

    @asynccontextmanager
    async def running(self) -> AsyncIterator[Self]:
        """End them with the block."""
        try:
            yield self
        finally:
            for source in list(self._of):
                await self._stop(source)

    @property
    def shown(self) -> dict[str, Backfill]:
        """Those that still enqueue, and those that stopped before their end."""
        return {source: one for source, one in sorted(self._of.items()) if one.running or one.problem}

    async def start(self, source: str, *, predicate: str, force: bool, rate: float | None) -> None:
        """Begin one. ConfigurationError when one runs, DatabaseError when the predicate makes no sense."""
        if (present := self._of.get(source)) and present.running:
            raise ConfigurationError(f"a backfill of {source!r} is enqueueing already: cancel it first")
        await check_predicate(self._sources, source, predicate)
        backfill = self._of[source] = Backfill()
        backfill.task = asyncio.create_task(self._run(backfill, source, predicate, force, rate))

    async def cancel(self, source: str) -> int:
        """Stop enqueueing, and let go what would be embedded though nothing changed; returns how many items that are.

        What is stale stays in the outbox: it is to be embedded in any case.
        """
        await self._stop(source)
        called_off, after = 0, None
        while True:
            after, number = await self._pages.call_off(source, after=after, limit=CALL_OFF_ROWS)
            called_off += number
            if after is None:
                return called_off

    async def _run(self, backfill: Backfill, source: str, predicate: str, force: bool, rate: float | None) -> None:
        try:
            async for progress in refire(self._sources, source, predicate=predicate, force=force, rate=rate):
                backfill.scanned, backfill.enqueued = progress.scanned, progress.enqueued
        except EvervecError as error:
            backfill.problem = str(error)
            log.warning("a backfill stopped", source=source, error=describe_error(error))

    async def _stop(self, source: str) -> None:
        backfill = self._of.get(source)
        if backfill and backfill.task:
            backfill.task.cancel()
            with suppress(asyncio.CancelledError):
                await backfill.task
