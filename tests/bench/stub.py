"""The pipeline without a model, beside a bare write-back of the same vectors."""

import time
from collections.abc import Sequence

import psycopg

from db.vectors import register_vectors
from embedding.base import Vectors
from embedding.stub import StubEmbedder
from tests.bench.corpus import corpus
from tests.bench.measurement import Bench, Outcome, interleaved, ratio
from tests.bench.models import STUB

BATCH = 256
"""Rows of one statement of the bare write-back."""


async def stub(bench: Bench) -> Outcome:
    """Forced re-fires of all rows, and updates of as many rows of a table without triggers."""
    rows = bench.plan.stub_rows
    texts = corpus(rows)
    async with bench.servers.pipeline(STUB) as pipeline:
        await pipeline.create()
        await pipeline.insert(texts)
        await pipeline.start_listener()
        await pipeline.start_worker()
        await pipeline.settled()
        await pipeline.site.run("CREATE TABLE bare (LIKE items INCLUDING ALL)")
        await pipeline.site.run("INSERT INTO bare SELECT * FROM items")
        events = await pipeline.events()
        refires = 0

        async def bare() -> float:
            return await _write_back(pipeline.site.conninfo, texts)

        async def evervec() -> float:
            nonlocal refires
            refires += 1
            seconds = await pipeline.backfill()
            await pipeline.settled()
            await pipeline.site.run("VACUUM items, bare, evervec.outbox")
            return seconds

        seconds = await interleaved(bench, bare=bare, evervec=evervec)
        events_per_item = (await pipeline.events() - events) / (refires * rows)
    return Outcome(
        {
            "stub_ratio_to_bare_write": ratio(seconds["bare"], seconds["evervec"]),
            "stub_items_per_s": ratio([float(rows)], seconds["evervec"]),
            "events_per_item_sweep": events_per_item,
        },
        {f"stub_{side}_seconds": values for side, values in seconds.items()},
    )


async def _write_back(conninfo: str, texts: Sequence[str]) -> float:
    """Seconds that the bare write-back of the same vectors takes, which are there beforehand."""
    vectors = StubEmbedder(STUB.dimension).encode(texts, "")
    async with await psycopg.AsyncConnection.connect(conninfo, autocommit=True) as connection:
        register_vectors(connection)
        started = time.perf_counter()
        for first in range(0, len(texts), BATCH):
            await _write_batch(connection, first, vectors[first : first + BATCH])
        return time.perf_counter() - started


_BARE = """
    UPDATE bare SET embedding = given.v, embedding_hash = given.h, embedding_model = 'stub:768', embedded_at = now()
    FROM (SELECT u.id, u.h, (%(vectors)s::real[])[(u.n - 1) * 768 + 1 : u.n * 768]::vector AS v
          FROM unnest(%(ids)s::bigint[], %(hashes)s::text[]) WITH ORDINALITY AS u (id, h, n)) AS given
    WHERE bare.id = given.id
"""


async def _write_batch(connection: psycopg.AsyncConnection, first: int, vectors: Vectors) -> None:
    """Update the rows whose vectors these are, the first of which comes after row `first`."""
    ids = list(range(first + 1, first + 1 + len(vectors)))
    hashes = [f"{key:064x}" for key in ids]
    updated = await connection.execute(_BARE, {"ids": ids, "hashes": hashes, "vectors": vectors})
    assert updated.rowcount == len(ids)
