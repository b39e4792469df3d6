"""The worker: workflows and activities of one task queue, and what they need, put together."""

import asyncio
import logging
from collections.abc import AsyncIterator, Awaitable
from contextlib import asynccontextmanager, suppress
from datetime import timedelta

from temporalio.client import Client
from temporalio.worker import Worker

from activities import all_activities
from activities.tally import Tally
from db.connection import open_pool
from db.items import Items
from embedding.encoder import Encoder
from evervec import metrics
from evervec.errors import EvervecError
from evervec.log import describe_error, get_logger
from evervec.metrics_page import sdk_metrics, served
from evervec.settings import Settings
from evervec.temporal import connect, ensure_search_attributes
from evervec.tracing import traced
from workflows import all_workflows

MAX_ACTIVITIES = 64
"""Enough that requests wait together and become batches; a connection is held only while the database is asked."""
MAX_WORKFLOW_TASKS = 16
"""Each has 10 s from when it was taken. They share one interpreter: the hundred that Temporal's worker takes by default
keep each other from ending in time where processors are busy, and then all are done again, to the same end."""
POOL_SIZE = 8
GRACE = timedelta(seconds=30)

log = get_logger(__name__)


async def run_worker(settings: Settings) -> None:
    """Work until cancelled; what is running then gets time to end.

    ServiceUnreachableError when PostgreSQL or Temporal does not answer at the start. Later the worker waits for them.
    """
    with traced("evervec-worker"), served(settings.metrics_address, metrics.WORK):
        async with running_worker(settings):
            await asyncio.Event().wait()


@asynccontextmanager
async def running_worker(settings: Settings) -> AsyncIterator[None]:
    """A worker that works while the block runs; a fatal error of the worker ends the block."""
    client = await connect(settings, sdk_metrics().runtime if settings.metrics_address else None)
    async with (
        open_pool(settings.database_conninfo, size=POOL_SIZE, application_name="evervec worker") as pool,
        Tally(Items(pool)) as tally,
        Encoder(settings) as encoder,
        # A model takes the longest: it is loaded while all else is made ready.
        _in_background(preload(encoder, Items(pool))),
    ):
        await ensure_search_attributes(client)
        async with make_worker(client, settings, Items(pool), encoder, tally):
            log.info("worker ready", task_queue=settings.task_queue, temporal=settings.temporal_address)
            metrics.READY.set(1)
            try:
                yield
            finally:
                metrics.READY.set(0)
                log.info("worker stops", grace_seconds=GRACE.total_seconds(), truncated=encoder.truncated)


def make_worker(client: Client, settings: Settings, items: Items, encoder: Encoder, tally: Tally) -> Worker:
    """Temporal's worker with everything that evervec's task queue asks for; the client is one of `connect`."""
    # It logs each failed attempt with its traceback; the activities say the same in one line.
    logging.getLogger("temporalio.activity").setLevel(logging.ERROR)
    return Worker(
        client,
        task_queue=settings.task_queue,
        workflows=all_workflows(),
        activities=all_activities(items, encoder, settings, tally),
        max_concurrent_activities=MAX_ACTIVITIES,
        max_concurrent_workflow_tasks=MAX_WORKFLOW_TASKS,
        graceful_shutdown_timeout=GRACE,
    )


async def preload(encoder: Encoder, items: Items) -> None:
    """Load the models that the sources name, so that the first edit need not wait for them.

    One that cannot be loaded is tried again when an item needs it.
    """
    try:
        for model in await items.models():
            with suppress(EvervecError):  # the encoder has logged it
                await encoder.embed(model, ["evervec"], live=False)
    except Exception as error:  # noqa: BLE001 - the first item that needs a model loads it all the same
        log.warning("no model was loaded ahead", error=describe_error(error))


@asynccontextmanager
async def _in_background(work: Awaitable[None]) -> AsyncIterator[None]:
    """Run `work` beside the block, no longer than it."""
    task = asyncio.ensure_future(work)
    try:
        yield
    finally:
        task.cancel()
        with suppress(asyncio.CancelledError):
            await task
