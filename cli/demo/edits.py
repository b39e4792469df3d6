"""The demo's edits: plain SQL on the table, and how soon the vectors followed."""

import asyncio
import time
from dataclasses import dataclass
from datetime import datetime
from importlib.resources import files
from typing import Any

from db.connection import Connection
from db.queries import named_blocks
from evervec.errors import EvervecError

FOLLOW_SECONDS = 60.0
LOOK_SECONDS = 0.002


@dataclass(frozen=True, slots=True)
class Edit:
    """One edit and what came of it."""

    what: str
    embedded: int
    """Items whose vector was made anew."""
    unchanged: bool
    """The rows were edited, and their content is what it was."""
    milliseconds: float
    """From the commit until nothing waited any more."""


@dataclass(frozen=True, slots=True)
class Before:
    """How things were before an edit."""

    now: datetime
    """The server's clock."""
    items: int


class Editor:
    """Edits the items like an application, and looks on as their vectors follow."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._statements = named_blocks("cli.demo", "edits.sql")

    async def row(self, name: str, **parameters: object) -> dict[str, Any]:
        """Run a named statement that gives one row."""
        cursor = await self._connection.execute(self._statements[name], parameters)
        row = await cursor.fetchone()
        assert row is not None  # noqa: S101 - each of these selects exactly one row
        return row

    async def before(self) -> Before:
        """The server's clock and the number of items."""
        return Before(**await self.row("before"))

    async def embedded_since(self, before: Before) -> int:
        """How many items got a vector since then."""
        return int((await self.row("since", now=before.now))["embedded"])

    async def edit(self, what: str, *names: str) -> Edit:
        """Commit one named statement after the other, then wait until nothing waits any more."""
        before = await self.before()
        for name in names:
            await self._connection.execute(self._statements[name])
        return await self._follow(what, before)

    async def copy(self, what: str) -> Edit:
        """COPY the new items in."""
        before = await self.before()
        async with self._connection.cursor() as cursor, cursor.copy(self._statements["copy"]) as copy:
            await copy.write(files("cli.demo").joinpath("new_items.tsv").read_bytes())
        return await self._follow(what, before)

    async def _follow(self, what: str, before: Before) -> Edit:
        committed = time.perf_counter()
        deadline = committed + FOLLOW_SECONDS
        while (await self.row("waiting"))["waiting"]:
            if time.perf_counter() > deadline:
                raise EvervecError("the vectors did not follow: see the logs of listener and worker")
            await asyncio.sleep(LOOK_SECONDS)
        milliseconds = (time.perf_counter() - committed) * 1000
        since = await self.row("since", now=before.now)
        unchanged = since["embedded"] == 0 and since["items"] == before.items
        return Edit(what, since["embedded"], unchanged, milliseconds)
