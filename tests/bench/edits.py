"""Edits of single items, each timed from its commit to the moment at which others see its vector."""

import asyncio
import random
import time
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager
from typing import Self

import psycopg

from tests.bench.pipeline import Pipeline

SEEN_SECONDS = 120.0


class Edits:
    """Edits the items with the keys 1 to `items`, in turn. A trigger of its own tells when a vector is committed."""

    def __init__(self, pipeline: Pipeline, ears: psycopg.AsyncConnection, items: int, texts: Sequence[str]) -> None:
        self._pipeline = pipeline
        self._ears = ears
        self._items = items
        self._texts: Iterator[str] = iter(texts)
        self._seen: dict[str, asyncio.Future[float]] = {}
        self._random = random.Random(items)
        self._next = 0

    @classmethod
    @asynccontextmanager
    async def of(cls, pipeline: Pipeline, items: int, texts: Sequence[str]) -> AsyncIterator[Self]:
        """Ready to edit, each time with the next of the texts."""
        await pipeline.site.run(
            "CREATE FUNCTION tell() RETURNS trigger LANGUAGE plpgsql AS "
            "$$ BEGIN PERFORM pg_notify('bench', NEW.id::text); RETURN NULL; END $$"
        )
        await pipeline.site.run(
            "CREATE TRIGGER tell AFTER UPDATE OF embedded_at ON items FOR EACH ROW "
            f"WHEN (NEW.id <= {items} AND NEW.embedded_at IS DISTINCT FROM OLD.embedded_at) EXECUTE FUNCTION tell()"
        )
        async with await psycopg.AsyncConnection.connect(pipeline.site.conninfo, autocommit=True) as ears:
            await ears.execute("LISTEN bench")
            edits = cls(pipeline, ears, items, texts)
            hearing = asyncio.create_task(edits._hear())
            try:
                yield edits
            finally:
                hearing.cancel()
                await asyncio.wait([hearing])

    async def open_all(self) -> None:
        """Edit each item once, so that its workflow is open afterwards."""
        for _ in range(self._items):
            await self.one()

    async def some(self, count: int, shortest: float, longest: float) -> list[float]:
        """Isolated edits, with random pauses of so many seconds before each: milliseconds."""
        return [await self.after(self._random.uniform(shortest, longest)) for _ in range(count)]

    async def after(self, pause: float) -> float:
        """An edit after a pause."""
        await asyncio.sleep(pause)
        return await self.one()

    async def one(self) -> float:
        """Edit the next item: milliseconds from the commit to the vector."""
        self._next = self._next % self._items + 1
        seen: asyncio.Future[float] = asyncio.get_running_loop().create_future()
        self._seen[str(self._next)] = seen
        await self._pipeline.site.run("UPDATE items SET body = %s WHERE id = %s", next(self._texts), self._next)
        committed = time.perf_counter()
        async with asyncio.timeout(SEEN_SECONDS):
            return 1000 * (await seen - committed)

    async def _hear(self) -> None:
        async for notice in self._ears.notifies():
            seen = self._seen.pop(notice.payload, None)
            if seen and not seen.done():
                seen.set_result(time.perf_counter())
