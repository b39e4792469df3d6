"""Keeps the parts of the stack running."""

import asyncio
import time
from collections.abc import Iterable

from cli.stack.child import Say
from cli.stack.service import Service
from evervec.errors import EvervecError
from listener.backoff import Backoff

# What ran this long was sound: it is restarted without delay.
SOUND_SECONDS = 60.0


async def supervise(services: Iterable[Service], say: Say) -> None:
    """Start again what ends, until cancelled."""
    async with asyncio.TaskGroup() as group:
        for service in services:
            group.create_task(_keep_alive(service, say))


async def _keep_alive(service: Service, say: Say) -> None:
    backoff = Backoff(first=0.5, longest=30.0)
    started = time.monotonic()
    trouble = f"{service.name} {await service.wait()}"
    while True:
        if time.monotonic() - started > SOUND_SECONDS:
            backoff.reset()
        delay = backoff.next()
        say(f"{trouble}; starting it again in {delay:.1f} s")
        await asyncio.sleep(delay)
        started = time.monotonic()
        trouble = await _restart(service, say)


async def _restart(service: Service, say: Say) -> str:
    """Start it and wait until it has ended; what went wrong."""
    try:
        await service.start()
    except EvervecError as error:
        if not service.pid:
            return str(error)
        say(str(error))
    else:
        say(f"started {service.describe()}")
    return f"{service.name} {await service.wait()}"
