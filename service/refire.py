"""Re-fire: put items back into the outbox page by page, and wait until they have left it."""

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TypeVar

from db.pages import Pages
from db.sources import RefirePage, Sources, Waiting
from evervec.errors import ItemNotFoundError

T = TypeVar("T")

PAGE_SIZE = 2000
"""Rows looked at in one short transaction: 40 ms."""
KEYS_SIZE = 1000
"""Keys looked up in one short transaction."""
LOCKED_SECONDS = 0.5
"""How long to wait for a user's transaction that holds a row of a page."""
POLL_SECONDS = 0.2
POLL_REST = 9
"""How many times as long as it took to count what is left it is not counted again: the count reads all of it."""


@dataclass(frozen=True, slots=True)
class Progress:
    """How far a re-fire has come."""

    scanned: int = 0
    enqueued: int = 0

    def plus(self, page: RefirePage) -> "Progress":
        """This and one more page."""
        return Progress(self.scanned + page.scanned, self.enqueued + page.enqueued)


async def check_predicate(sources: Sources, source: str, predicate: str) -> None:
    """A DatabaseError if the predicate can't be evaluated over the source's rows; enqueues nothing."""
    await sources.refire_page(source, predicate, limit=0)


async def check_keys(sources: Sources, source: str, item_keys: Sequence[str]) -> None:
    """An ItemNotFoundError that names the keys that no row has."""
    known = await sources.known_keys(source, item_keys)
    unknown = [key for key in item_keys if key not in known]
    if unknown:
        more = f" and {len(unknown) - 10} more" if len(unknown) > 10 else ""  # noqa: PLR2004 - enough for one line
        raise ItemNotFoundError(f"source {source!r} has no item with the key {', '.join(unknown[:10])}{more}")


async def refire(
    sources: Sources, source: str, *, predicate: str = "true", force: bool = False, rate: float | None = None
) -> AsyncIterator[Progress]:
    """Enqueue the stale items that satisfy the predicate (forced: all eligible ones); yields after each page.

    At most `rate` items a second are embedded, if it is given, until nothing of the source waits any more.
    """
    progress = Progress()
    after: str | None = None
    while True:
        page = await _when_unlocked(
            partial(sources.refire_page, source, predicate, force=force, after=after, limit=PAGE_SIZE, rate=rate)
        )
        if page.enqueued:
            rate = None  # it is set: whoever changes it meanwhile is right
        progress, after = progress.plus(page), page.last_key
        yield progress
        if page.scanned < PAGE_SIZE:
            return


async def refire_keys(sources: Sources, source: str, item_keys: Sequence[str], *, force: bool) -> int:
    """Enqueue those of the items that are stale (forced: all that are eligible); returns how many."""
    enqueued = 0
    for first in range(0, len(item_keys), KEYS_SIZE):
        page = item_keys[first : first + KEYS_SIZE]
        enqueued += await _when_unlocked(partial(sources.refire_keys, source, page, force=force))
    return enqueued


async def retry(sources: Sources, source: str, item_keys: Sequence[str] | None = None) -> int:
    """Failed items back to pending, all or some; returns how many."""
    return await _when_unlocked(lambda: sources.retry(source, item_keys))


async def retry_error(sources: Sources, pages: Pages, source: str, error: str | None) -> int:
    """The items back to pending that were given up with this error; returns how many."""
    retried, after = 0, ""
    while True:
        keys = [item.key for item in await pages.failed(source, error, after=after, limit=KEYS_SIZE)]
        if not keys:
            return retried
        retried, after = retried + await retry(sources, source, keys), keys[-1]


async def _when_unlocked(attempt: Callable[[], Awaitable[T | None]]) -> T:
    """Try until no user's transaction stands in the way, holding nothing in between."""
    while True:
        result = await attempt()
        if result is not None:
            return result
        await asyncio.sleep(LOCKED_SECONDS)


async def wait_until_done(
    sources: Sources, source: str, *, after: int, item_keys: Sequence[str] | None = None
) -> AsyncIterator[Waiting]:
    """Tell what is left of what was enqueued beyond the version `after`, until it is done or the source is paused.

    What users enqueue later is not waited for, but for a first fill, which gives everything a new version.
    """
    until: int | None = None
    while True:
        asked = time.monotonic()
        waiting = await sources.waiting(source, after=after, until=until, item_keys=item_keys)
        yield waiting
        if waiting.paused:
            return
        if not waiting.filling:
            if until is not None and not waiting.pending:
                return
            if until is None:
                until = await sources.last_version()
                continue
        await asyncio.sleep(max(POLL_SECONDS, POLL_REST * (time.monotonic() - asked)))
