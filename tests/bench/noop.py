"""Edits that change no text in the end: nothing may be embedded for them."""

import asyncio

from tests.bench.corpus import corpus
from tests.bench.counting import COUNTS, texts_encoded
from tests.bench.measurement import Bench, Outcome
from tests.bench.models import STUB
from tests.bench.pipeline import Pipeline

SETTLE_SECONDS = 3.0
"""Longer than the longest debounce, and than the listener takes to look into the outbox by itself."""


async def noop(bench: Bench) -> Outcome:
    """Edits of another column, then edits that are reverted by a transaction of their own right afterwards."""
    edits = bench.plan.noop_edits
    async with bench.servers.pipeline(STUB) as pipeline:
        counts = bench.servers.folder / "counts"
        await pipeline.create()
        await pipeline.insert(corpus(edits))
        await pipeline.start_listener()
        await pipeline.start_worker("tests.bench.counting", **{COUNTS: str(counts)})
        await pipeline.settled()
        before = await _marks(pipeline)
        encoded_before = texts_encoded(counts)
        assert encoded_before >= edits

        for key in range(1, edits + 1):
            await pipeline.site.run("UPDATE items SET price = price + 1 WHERE id = %s", key)
        for key in range(1, edits + 1):
            await pipeline.site.run("UPDATE items SET body = body || ' edited' WHERE id = %s", key)
            await pipeline.site.run("UPDATE items SET body = left(body, -7) WHERE id = %s", key)
        await asyncio.sleep(SETTLE_SECONDS)
        await pipeline.settled()

        rewritten = len(before ^ await _marks(pipeline)) // 2
        encoded = texts_encoded(counts) - encoded_before
        bench.say(f"  {encoded} texts embedded, {rewritten} rows rewritten")
    return Outcome({"embeddings_for_noop_edits": max(encoded, rewritten)})


async def _marks(pipeline: Pipeline) -> set[tuple[object, ...]]:
    """When each row was embedded."""
    return set(await pipeline.site.run("SELECT id, embedded_at FROM items"))
