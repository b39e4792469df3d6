"""A user's transaction that holds a row's lock: what it pays, and what others do."""

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import psycopg

from tests.bench.corpus import corpus
from tests.bench.edits import Edits
from tests.bench.measurement import Bench, Outcome, percentile
from tests.bench.models import STUB
from tests.bench.pipeline import Pipeline
from tests.integration.pipeline import until

PAUSE = (0.1, 0.4)
"""Seconds between two edits of other rows."""
MOST_EDITS_A_SECOND = 1 / PAUSE[0]


async def lock(bench: Bench) -> Outcome:
    """Edits of other rows for so long as a row is locked, beside the same without a lock.

    Once with nothing else to do, and once while everything is embedded anew all the time: of the two a user's
    transaction and a backfill, each delays in its own way.
    """
    plan = bench.plan
    held, edited = plan.rows, plan.open_items
    most_edits = edited + int(4 * plan.lock_seconds * MOST_EDITS_A_SECOND)
    texts = corpus(plan.rows + most_edits)
    taken: dict[str, list[float]] = {}
    async with bench.servers.pipeline(STUB) as pipeline:
        await pipeline.create()
        await pipeline.insert(texts[: plan.rows])
        await pipeline.start_listener()
        await pipeline.start_worker()
        await pipeline.settled()
        async with Edits.of(pipeline, edited, texts[plan.rows :]) as edits, User.of(pipeline, held) as user:
            await edits.open_all()
            for name, predicate in (("idle", None), ("busy", f"id > {edited} AND id <> {held}")):
                async with _regenerating(pipeline, predicate):
                    taken[f"lock_{name}_free_ms"] = await _edit_for(edits, plan.lock_seconds)
                    async with user.waiting_for_its_vector():
                        taken[f"lock_{name}_held_ms"], _ = await asyncio.gather(
                            _edit_for(edits, plan.lock_seconds), user.write_for(plan.lock_seconds)
                        )
    p95 = {name: percentile(values, 95) for name, values in taken.items()}
    for name, values in taken.items():
        bench.say(f"  {name}: {len(values)} edits, median {percentile(values, 50):.0f}, p95 {p95[name]:.0f}")
    return Outcome(
        {
            "lock_user_slowest_ms": max(user.statements),
            "lock_others_p95_idle": p95["lock_idle_held_ms"] / p95["lock_idle_free_ms"],
            "lock_others_p95_busy": p95["lock_busy_held_ms"] / p95["lock_busy_free_ms"],
            "lock_embedded_after_s": max(user.embedded_after),
        },
        taken | {"lock_user_ms": user.statements, "lock_embedded_after_s": user.embedded_after},
    )


@asynccontextmanager
async def _regenerating(pipeline: Pipeline, predicate: str | None) -> AsyncIterator[None]:
    """Have these rows embedded anew all the time, if there are any."""
    if predicate is None:
        yield
        return
    regenerating = asyncio.create_task(pipeline.regenerate(predicate))
    try:
        yield
    finally:
        assert not regenerating.done(), regenerating.exception()
        regenerating.cancel()
        await asyncio.wait([regenerating])


async def _edit_for(edits: Edits, seconds: float) -> list[float]:
    """Isolated edits of other rows for so long: milliseconds to each vector."""
    deadline = time.monotonic() + seconds
    taken: list[float] = []
    while time.monotonic() < deadline:
        taken += await edits.some(1, *PAUSE)
    return taken


class User:
    """Holds a row in a transaction."""

    def __init__(self, pipeline: Pipeline, connection: psycopg.AsyncConnection, key: int) -> None:
        self._pipeline = pipeline
        self._connection = connection
        self._key = key
        self.statements: list[float] = []
        """Milliseconds of each statement of its transactions."""
        self.embedded_after: list[float] = []
        """Seconds from the end of each to the row's vector."""

    @classmethod
    @asynccontextmanager
    async def of(cls, pipeline: Pipeline, key: int) -> AsyncIterator["User"]:
        """With a connection of its own."""
        async with await psycopg.AsyncConnection.connect(pipeline.site.conninfo, autocommit=True) as connection:
            yield cls(pipeline, connection, key)

    @asynccontextmanager
    async def waiting_for_its_vector(self) -> AsyncIterator[None]:
        """Edit the row and lock it before a worker gets to it; at the end commit, and wait until it is embedded."""
        await self._connection.execute("UPDATE items SET body = body || ' edited' WHERE id = %s", [self._key])
        await self._connection.execute("BEGIN")
        await self._connection.execute("SELECT FROM items WHERE id = %s FOR UPDATE", [self._key])
        before = await self._embedded_at()
        yield
        await self._connection.execute("COMMIT")
        committed = time.perf_counter()

        async def embedded() -> bool:
            return await self._embedded_at() != before

        await until(embedded)
        self.embedded_after.append(time.perf_counter() - committed)

    async def write_for(self, seconds: float) -> None:
        """Write to the row again and again for so long."""
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            started = time.perf_counter()
            await self._connection.execute("UPDATE items SET body = body || '.' WHERE id = %s", [self._key])
            self.statements.append((time.perf_counter() - started) * 1000)
            await asyncio.sleep(0.5)

    async def _embedded_at(self) -> object:
        return await self._pipeline.site.value("SELECT embedded_at FROM items WHERE id = %s", self._key)
