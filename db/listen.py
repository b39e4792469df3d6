"""The connection that hears the bell."""

import asyncio

from db.connection import Connection, connect, translated
from db.queries import query
from evervec.errors import ServiceUnreachableError

SILENCE_SECONDS = 30.0
"""How long the server may try to send something to a listener that takes nothing, before it ends the session."""


class NotificationStream:
    """A dedicated connection that listens to channel `evervec`.

    Each method raises ServiceUnreachableError when the connection is lost; then it is of no more use.
    """

    def __init__(self, connection: Connection) -> None:
        self.connection = connection
        """Also good for a statement now and then: notifications that come in meanwhile are kept."""

    @classmethod
    async def open(cls, conninfo: str) -> "NotificationStream":
        """Connect. Not through a transaction pooler: its connections can't listen."""
        connection = await connect(conninfo, application_name="evervec listener")
        try:
            with translated():
                await connection.execute(query("give_up_on_silence"), {"milliseconds": round(SILENCE_SECONDS * 1000)})
                await connection.execute(query("be_seen"))
        except BaseException:
            await connection.close()
            raise
        return cls(connection)

    async def listen(self) -> None:
        """From now on notifications come in: whatever commits later is heard, whatever did before is in the outbox."""
        with translated():
            await self.connection.execute("LISTEN evervec")

    async def unlisten(self) -> None:
        """From now on nothing comes in, so that nothing piles up."""
        with translated():
            await self.connection.execute("UNLISTEN evervec")

    async def payloads(self, seconds: float) -> list[str]:
        """The notifications that came in, as soon as there are some; an empty list after so many seconds without.

        At most what the socket had to give at once. One that is no text in the connection's encoding reads as empty.
        """
        with translated():
            try:
                return [n.payload async for n in self.connection.notifies(timeout=seconds, stop_after=1)]
            except UnicodeDecodeError:
                return [""]

    async def ping(self, seconds: float) -> None:
        """Ask the server for an answer within so many seconds."""
        try:
            with translated():
                async with asyncio.timeout(seconds):
                    await self.connection.execute("SELECT 1")
        except TimeoutError:
            raise ServiceUnreachableError(f"PostgreSQL did not answer within {seconds:g} s") from None

    async def close(self) -> None:
        """Close the connection, and with it give up the leadership that was won on it."""
        await self.connection.close()
