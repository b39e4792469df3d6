"""What people do to the database."""

import asyncio
from contextlib import suppress

import psycopg

from tests.chaos.faults.base import Fault
from tests.chaos.site import Site

QUEUE_FILLED = 0.93
"""So much that the rings of some seconds would fill the rest, if evervec did not stop to ring at a half."""
PAGE = "x" * 7900
"""A payload that takes a page of the notification queue."""
TRIES = 5


class ConnectionsCut(Fault):
    """An administrator ends all sessions of evervec's."""

    kind = "evervec's sessions ended"

    @property
    def busy(self) -> asyncio.Lock:
        """PostgreSQL's."""
        return self.site.busy[self.site.postgres.name]

    async def inject(self) -> None:
        """End them, whatever they are doing."""
        await self.site.run(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name LIKE 'evervec %'"
        )

    async def heal(self) -> None:
        """They reconnect by themselves."""


class QueueFull(Fault):
    """A session that listens to another channel and never reads; the notification queue is filled over half."""

    kind = "notification queue filled"
    length = "visit"

    def __init__(self, site: Site, dice: float) -> None:
        super().__init__(site, dice)
        self._sleeper: psycopg.AsyncConnection | None = None

    @property
    def busy(self) -> asyncio.Lock:
        """The queue's: PostgreSQL may be stopped meanwhile."""
        return self.site.busy["queue"]

    async def inject(self) -> None:
        """Fill it."""
        with suppress(psycopg.OperationalError):  # PostgreSQL may be away, and the queue goes with it
            self._sleeper = await psycopg.AsyncConnection.connect(self.site.conninfo, autocommit=True)
            await self._sleeper.execute("LISTEN chaos")
            await self._sleeper.execute("BEGIN; SELECT 1")
            async with await psycopg.AsyncConnection.connect(self.site.conninfo, autocommit=True) as noisy:
                while await _usage(noisy) < QUEUE_FILLED:
                    await noisy.execute("SELECT pg_notify('chaos', %s)", [PAGE])

    async def heal(self) -> None:
        """The session goes."""
        if self._sleeper:
            await self._sleeper.close()


class Refired(Fault):
    """An administrator has everything embedded anew."""

    kind = "everything re-fired by force"

    @property
    def busy(self) -> asyncio.Lock:
        """PostgreSQL's."""
        return self.site.busy[self.site.postgres.name]

    async def inject(self) -> None:
        """Re-fire one table; again, as the error says, where long transactions hold some of its items."""
        table = self.site.tables[int(self.dice * len(self.site.tables))]
        for _ in range(TRIES):
            with suppress(psycopg.errors.LockNotAvailable):
                await self.site.run("SELECT evervec.refire(%s, force => true)", table.name)
                return

    async def heal(self) -> None:
        """Nothing is to be undone."""


async def _usage(connection: psycopg.AsyncConnection) -> float:
    [(usage,)] = await (await connection.execute("SELECT pg_notification_queue_usage()")).fetchall()
    return float(usage)
