"""Verify: compare every row's hash, and some rows' vectors, with what they should be."""

from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np

from db.sources import Sample, Sources
from embedding.encoder import Encoder
from evervec.model import ModelSpec
from service.refire import PAGE_SIZE, refire, refire_keys, retry

LEAST_COSINE = 0.999
"""Between two embeddings of one text, batches and backends may differ this much."""
COUNT_ROWS = 5 * PAGE_SIZE
SAMPLE_BATCH = 64


@dataclass(slots=True)
class Verification:
    """What was found in one source."""

    source: str
    rows: int = 0
    eligible: int = 0
    fresh: int = 0
    failed: int = 0
    orphaned: int = 0
    """Outbox rows without an item."""
    sampled: int = 0
    mismatched_keys: list[str] = field(default_factory=list)
    """Sampled items whose vector differs from a new embedding."""

    @property
    def stale(self) -> int:
        """Eligible items without the vector of their present content."""
        return self.eligible - self.fresh

    @property
    def mismatched(self) -> int:
        """How many sampled vectors differ from a new embedding."""
        return len(self.mismatched_keys)

    @property
    def ok(self) -> bool:
        """Nothing stale, failed, orphaned or mismatched."""
        return not (self.stale or self.failed or self.orphaned or self.mismatched_keys)


@dataclass(frozen=True, slots=True)
class Repair:
    """What was done about it."""

    enqueued: int
    dropped: int
    """Orphans that were removed from the outbox."""


async def verify(
    sources: Sources, encoder: Encoder, source: str, *, sample: int = 0, tell: Callable[[Verification], None]
) -> Verification:
    """Count exactly, page by page, and embed `sample` random fresh items anew; `tell` hears of each step."""
    found = Verification(source)
    await _count(sources, found, tell)
    found.failed = await sources.failed_count(source)
    found.orphaned = await sources.orphan_count(source)
    if sample:
        await _compare(sources, encoder, found, sample, tell)
    return found


async def repair(sources: Sources, found: Verification) -> Repair:
    """Enqueue what is stale, failed or mismatched, and drop the orphans."""
    dropped = await sources.drop_orphans(found.source) if found.orphaned else 0
    enqueued = 0
    if found.stale or found.failed:
        enqueued += [progress async for progress in refire(sources, found.source)][-1].enqueued
    if found.failed:
        # Those that are not stale: ineligible by now, or with an older vector of the same content.
        enqueued += await retry(sources, found.source)
    if found.mismatched:
        enqueued += await refire_keys(sources, found.source, found.mismatched_keys, force=True)
    return Repair(enqueued, dropped)


async def _count(sources: Sources, found: Verification, tell: Callable[[Verification], None]) -> None:
    after: str | None = None
    while True:
        page = await sources.count_page(found.source, after=after, limit=COUNT_ROWS)
        found.rows += page.total
        found.eligible += page.eligible
        found.fresh += page.fresh
        tell(found)
        if page.total < COUNT_ROWS:
            return
        after = page.last_key


async def _compare(
    sources: Sources, encoder: Encoder, found: Verification, sample: int, tell: Callable[[Verification], None]
) -> None:
    model = (await sources.get(found.source)).model
    batch: list[Sample] = []
    async for item in sources.sample(found.source, sample):
        batch.append(item)
        if len(batch) == SAMPLE_BATCH:
            await _compare_batch(encoder, model, found, batch)
            tell(found)
            batch.clear()
    await _compare_batch(encoder, model, found, batch)


async def _compare_batch(encoder: Encoder, model: ModelSpec, found: Verification, batch: list[Sample]) -> None:
    vectors = await encoder.embed(model, [item.content for item in batch], live=False)
    for item, vector in zip(batch, vectors, strict=True):
        length = np.linalg.norm(item.vector) * np.linalg.norm(vector)
        if length == 0 or np.dot(item.vector, vector) < LEAST_COSINE * length:
            found.mismatched_keys.append(item.key)
    found.sampled += len(batch)
