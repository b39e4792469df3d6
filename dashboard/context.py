"""What every page works with, opened once."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass

from dashboard.backfills import Backfills
from dashboard.errors import BusyError
from dashboard.guard import Guard
from dashboard.monitor import Monitor
from dashboard.temporal_link import TemporalLink
from db.connection import open_pool
from db.pages import Pages
from db.sources import Sources
from embedding.encoder import Encoder
from evervec.errors import ServiceUnreachableError
from evervec.settings import Settings

POOL_SIZE = 8
COMPUTE_AT_ONCE = 8
COMPUTE_SECONDS = 120.0
"""How long one may take, the loading of its model included."""


@dataclass(frozen=True, slots=True)
class Context:
    """The dashboard's parts."""

    settings: Settings
    guard: Guard
    sources: Sources
    pages: Pages
    encoder: Encoder
    temporal: TemporalLink
    monitor: Monitor
    backfills: Backfills
    instance: str
    computing: asyncio.Semaphore

    @asynccontextmanager
    async def turn_to_compute(self) -> AsyncIterator[None]:
        """A place among the few requests that embed something at a time.

        BusyError when all are taken, ServiceUnreachableError when it takes too long.
        """
        if self.computing.locked():
            raise BusyError
        try:
            async with self.computing, asyncio.timeout(COMPUTE_SECONDS):
                yield
        except TimeoutError:
            raise ServiceUnreachableError(
                f"this took longer than {COMPUTE_SECONDS:.0f} s: the model loads slowly, or the vectors want an index "
                "(docs/operations.md)"
            ) from None


@asynccontextmanager
async def open_context(settings: Settings) -> AsyncIterator[Context]:
    """ConfigurationError where the settings cannot work, ServiceUnreachableError where PostgreSQL does not answer.

    Temporal is connected to when it is first needed, and the model loaded when somebody searches.
    """
    guard = Guard(settings)
    async with (
        open_pool(settings.database_conninfo, size=POOL_SIZE, application_name="evervec dashboard") as pool,
        Encoder(settings) as encoder,
    ):
        sources, pages, temporal = Sources(pool), Pages(pool), TemporalLink(settings)
        instance = await sources.instance()
        monitor = Monitor(settings, sources, pages, temporal, instance)
        async with monitor.running(), Backfills(sources, pages).running() as backfills:
            yield Context(
                settings=settings,
                guard=guard,
                sources=sources,
                pages=pages,
                encoder=encoder,
                temporal=temporal,
                monitor=monitor,
                backfills=backfills,
                instance=instance,
                computing=asyncio.Semaphore(COMPUTE_AT_ONCE),
            )
