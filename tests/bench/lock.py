"""A user's transaction that holds a row's lock while everything is embedded anew."""

import asyncio
import time

import psycopg

from tests.bench.corpus import corpus
from tests.bench.edits import Edits
from tests.bench.measurement import Bench, Outcome, percentile
from tests.bench.models import STUB
from tests.bench.pipeline import Pipeline
from tests.integration.pipeline import until

ROWS = 500
PAUSE = (0.1, 0.4)
"""Seconds between two edits of other rows."""


async def lock(bench: Bench) -> Outcome:
    """The row's edit is committed, and then locked before a worker gets to it."""
    plan = bench.plan
    held, edited = ROWS, plan.open_items
    texts = corpus(ROWS + 20 * plan.edits)
    async with bench.servers.pipeline(STUB) as pipeline:
        await pipeline.create()
        await pipeline.insert(texts[:ROWS])
        await pipeline.start_listener()
        await pipeline.start_worker()
        await pipeline.settled()
        async with (
            Edits.of(pipeline, edited, texts[ROWS:]) as edits,
            await psycopg.AsyncConnection.connect(pipeline.site.conninfo, autocommit=True) as user,
        ):
            await edits.open_all()
            before = await edits.some(plan.edits // 4, *PAUSE)

            await user.execute("UPDATE items SET body = body || ' edited' WHERE id = %s", [held])
            await user.execute("BEGIN")
            await user.execute("SELECT FROM items WHERE id = %s FOR UPDATE", [held])
            others = asyncio.create_task(pipeline.backfill(f"id <> {held}"))
            meanwhile, statements = await asyncio.gather(
                _edit_for(edits, plan.lock_seconds), _write_for(user, held, plan.lock_seconds)
            )
            embedded_before = await _embedded_at(pipeline, held)
            await user.execute("COMMIT")
            committed = time.perf_counter()

            async def embedded() -> bool:
                return await _embedded_at(pipeline, held) != embedded_before

            await until(embedded)
            after = time.perf_counter() - committed
            await others
    bench.say(f"  {len(meanwhile)} edits of other rows, {len(statements)} statements of the transaction")
    return Outcome(
        {
            "lock_user_slowest_ms": max(statements),
            "lock_others_p95_to_idle": percentile(meanwhile, 95) / percentile(before, 95),
            "lock_embedded_after_s": after,
        },
        {"lock_others_before_ms": before, "lock_others_ms": meanwhile, "lock_user_ms": statements},
    )


async def _edit_for(edits: Edits, seconds: float) -> list[float]:
    """Isolated edits of other rows for so long: milliseconds to each vector."""
    deadline = time.monotonic() + seconds
    taken: list[float] = []
    while time.monotonic() < deadline:
        taken += await edits.some(1, *PAUSE)
    return taken


async def _write_for(user: psycopg.AsyncConnection, key: int, seconds: float) -> list[float]:
    """Updates of the locked row by its own transaction for so long: milliseconds of each."""
    deadline = time.monotonic() + seconds
    taken = []
    while time.monotonic() < deadline:
        started = time.perf_counter()
        await user.execute("UPDATE items SET body = body || '.' WHERE id = %s", [key])
        taken.append((time.perf_counter() - started) * 1000)
        await asyncio.sleep(0.5)
    return taken


async def _embedded_at(pipeline: Pipeline, key: int) -> object:
    return await pipeline.site.value("SELECT embedded_at FROM items WHERE id = %s", key)
