"""What a sweep asks for first: which items wait. And the safety net: in which sources."""

import asyncio
import time
from collections import Counter
from collections.abc import Awaitable
from datetime import timedelta
from typing import TypeVar

from temporalio import activity
from temporalio.exceptions import ApplicationError

from activities.instance import InstanceCheck
from db.items import Items
from evervec import metrics
from evervec.errors import ConfigurationError, DatabaseError
from evervec.log import describe_error, get_logger
from evervec.messages import (
    FETCH_ITEMS_FOR_EMBEDDING,
    FIND_WAITING_SOURCES,
    FetchItemsRequest,
    FetchItemsResult,
    WaitingSourcesRequest,
    WaitingSourcesResult,
)
from evervec.settings import Settings
from evervec.temporal import failure_of, sweep_workflow_id

T = TypeVar("T")

MAX_PAGE_BYTES = 200_000
"""Temporal warns of payloads above 512 kB, and a history holds each key twice."""
OVERLOOKED = timedelta(minutes=1)
"""Whoever waits for longer was not heard."""
WALK_PAGE = 1000
WALK_SECONDS = 30.0
"""How long a run of the safety net looks for what no trigger saw; the next one goes on from there."""

log = get_logger(__name__)


class FetchActivities:
    """The activities that read the outbox."""

    def __init__(self, items: Items, settings: Settings, instance: InstanceCheck) -> None:
        self._items = items
        self._quiet = timedelta(milliseconds=settings.debounce_ms)
        self._longest = timedelta(milliseconds=settings.debounce_max_ms)
        self._instance = instance

    @activity.defn(name=FETCH_ITEMS_FOR_EMBEDDING)
    async def fetch_items_for_embedding(self, request: FetchItemsRequest) -> FetchItemsResult:
        """The next keys of a source that may be embedded now."""
        return await _told(self._fetch(request), source=request.source)

    async def _fetch(self, request: FetchItemsRequest) -> FetchItemsResult:
        await self._instance.check()
        page = await self._items.sweep_page(
            request.source, request.after, request.limit, quiet=self._quiet, longest=self._longest
        )
        keys = _bounded(page.item_keys)
        return FetchItemsResult(
            item_keys=keys,
            last=len(keys) == len(page.item_keys) < request.limit,
            paused=page.paused,
            rate=page.rate,
            wait_seconds=page.wait_seconds,
        )

    @activity.defn(name=FIND_WAITING_SOURCES)
    async def find_waiting_sources(self, request: WaitingSourcesRequest) -> WaitingSourcesResult:
        """The sources in which something was overlooked: by the triggers, or afterwards."""
        return await _told(self._find(request))

    async def _find(self, request: WaitingSourcesRequest) -> WaitingSourcesResult:
        await self._instance.check(request.instance)
        sources = await self._walk() | {*await self._items.sources_waiting(OVERLOOKED)}
        return WaitingSourcesResult(
            sweeps={source: sweep_workflow_id(request.instance, source) for source in sorted(sources)}
        )

    async def _walk(self) -> set[str]:
        """Enqueue what no trigger saw, page by page: the sources in which there was something."""
        found: Counter[str] = Counter()
        started = time.monotonic()
        try:
            while (began := time.monotonic()) < started + WALK_SECONDS:
                page = await self._items.census_page(WALK_PAGE)
                if page is None:
                    break
                found[page.source] += page.enqueued
                await asyncio.sleep(time.monotonic() - began)  # half of the time belongs to others
        except (DatabaseError, ConfigurationError) as error:
            log.warning("a walk failed; the next run tries again", error=describe_error(error))
        for source, items in (+found).items():
            metrics.OVERLOOKED.labels(source).inc(items)
            log.warning("changes were found that no trigger saw", source=source, items=items)
        return {*+found}


async def _told(answer: Awaitable[T], **about: str) -> T:
    """The answer, or a failure that Temporal may be told of."""
    try:
        return await answer
    except ApplicationError:
        raise
    except Exception as error:  # noqa: BLE001 - no error leaves the worker but by its class
        metrics.ACTIVITY_FAILURES.labels(activity.info().activity_type).inc()
        log.warning("outbox not read", error=describe_error(error), workflow=activity.info().workflow_id, **about)
        raise failure_of(error) from None


def _bounded(keys: list[str]) -> list[str]:
    """As many of the keys as fit into a page, at least one."""
    size = 0
    for count, key in enumerate(keys):
        size += len(key.encode()) + 3
        if count and size > MAX_PAGE_BYTES:
            return keys[:count]
    return keys
