"""Heartbeats: how Temporal learns that a worker was killed."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress

from temporalio import activity

HEARTBEAT_SECONDS = 3.0


@asynccontextmanager
async def heartbeats() -> AsyncIterator[None]:
    """Send a heartbeat every few seconds while the block runs; a short block sends none and costs nothing."""
    beats = asyncio.create_task(_beat())
    try:
        yield
    finally:
        beats.cancel()
        with suppress(asyncio.CancelledError):
            await beats


async def _beat() -> None:
    while True:
        await asyncio.sleep(HEARTBEAT_SECONDS)
        activity.heartbeat()
