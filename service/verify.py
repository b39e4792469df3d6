"""Verify: compare every row's hash, and some rows' vectors, with what they should be."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np

from db.sources import Sample, Sources
from embedding.encoder import Answer, Encoder
from evervec.errors import BadItemError
from evervec.model import ModelSpec
from service.refire import PAGE_SIZE, refire, refire_keys, retry

LEAST_COSINE = 0.999
"""Between two embeddings of one text, batches and backends may differ this much."""
COUNT_ROWS = PAGE_SIZE
"""Rows of a page: a short statement, whose vectors fit into memory."""
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


class Page(NamedTuple):
    """Some rows in the order of their keys."""

    after: str | None
    """The key before them."""
    fresh: int


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
    pages = await _count(sources, found, tell)
    found.failed = await sources.failed_count(source)
    found.orphaned = await sources.orphan_count(source)
    if sample:
        await _compare(sources, encoder, found, _shares(pages, sample), tell)
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


async def _count(sources: Sources, found: Verification, tell: Callable[[Verification], None]) -> list[Page]:
    pages: list[Page] = []
    after: str | None = None
    while True:
        page = await sources.count_page(found.source, after=after, limit=COUNT_ROWS)
        found.rows += page.total
        found.eligible += page.eligible
        found.fresh += page.fresh
        pages.append(Page(after, page.fresh))
        tell(found)
        if page.total < COUNT_ROWS:
            return pages
        after = page.last_key


async def _compare(
    sources: Sources,
    encoder: Encoder,
    found: Verification,
    shares: Iterable[tuple[Page, int]],
    tell: Callable[[Verification], None],
) -> None:
    """Embed a sample anew, page by page, with no statement open meanwhile."""
    model = (await sources.get(found.source)).model
    for page, wanted in shares:
        items = await sources.sample_page(found.source, after=page.after, limit=COUNT_ROWS, wanted=wanted)
        for start in range(0, len(items), SAMPLE_BATCH):
            await _compare_batch(encoder, model, found, items[start : start + SAMPLE_BATCH])
            tell(found)


def _shares(pages: Sequence[Page], sample: int) -> Iterator[tuple[Page, int]]:
    """How many of a sample's items come from each page, so that every fresh item is as likely as any other."""
    dice = np.random.default_rng()
    left = sum(page.fresh for page in pages)
    for page in pages:
        wanted = int(dice.hypergeometric(page.fresh, left - page.fresh, min(sample, left)))
        left -= page.fresh
        sample -= wanted
        if wanted:
            yield page, wanted


async def _compare_batch(encoder: Encoder, model: ModelSpec, found: Verification, batch: Sequence[Sample]) -> None:
    answers = await encoder.embed_each(model, [item.content for item in batch], live=False)
    found.mismatched_keys += [
        item.key for item, answer in zip(batch, answers, strict=True) if not _is_that_of(item, answer)
    ]
    found.sampled += len(batch)


def _is_that_of(item: Sample, answer: Answer) -> bool:
    """Whether the item's vector is what its text was embedded to now."""
    if isinstance(answer, BadItemError) or answer.shape != item.vector.shape:
        return False
    length = np.linalg.norm(item.vector) * np.linalg.norm(answer)
    return bool(length > 0 and np.dot(item.vector, answer) >= LEAST_COSINE * length)
