"""The outbox as the listener sees it."""

from collections.abc import Sequence
from typing import Any, NamedTuple

from db.connection import Connection, translated
from db.queries import query


class OutboxItem(NamedTuple):
    """An item that waits."""

    source: str
    item_key: str
    content_hash: str | None
    version: int
    throttled: bool = False
    """Whether its source's bulk work has a limit, which items of their own workflows would not know of."""


class FillPage(NamedTuple):
    """What one page of a first fill did."""

    source: str
    scanned: int
    enqueued: int
    done: bool


class CensusPage(NamedTuple):
    """What one page of a walk over a source did."""

    source: str
    scanned: int
    enqueued: int
    """Stale items that no trigger saw."""
    done: bool


class OutboxDepth(NamedTuple):
    """What waits of one source."""

    source: str
    pending: int
    failed: int
    oldest_pending_seconds: float
    paused: bool


class Outbox:
    """Reads of the outbox on one connection. Errors: DatabaseError, ServiceUnreachableError."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection

    async def instance(self) -> str:
        """The short id of this installation, part of every workflow id."""
        [row] = await self._rows("instance_id", {})
        return str(row["id"])

    async def try_lead(self) -> bool:
        """Take the session lock of the leading listener, if it is free."""
        [row] = await self._rows("try_lead", {})
        return bool(row["leads"])

    async def read(self, limit: int) -> list[OutboxItem]:
        """The first pending items of sources that are not paused, in the order of (source, item_key)."""
        parameters = {"after_source": None, "after_key": None, "limit": limit}
        return [OutboxItem(**row) for row in await self._rows("pending_items", parameters)]

    async def waiting(self, limit: int) -> list[OutboxItem]:
        """Items that are due, at most so many of each source that is not paused, source by source."""
        return [OutboxItem(**row) for row in await self._rows("waiting_items", {"limit": limit})]

    async def newest(self, source: str, seconds: float, limit: int) -> list[OutboxItem]:
        """Some pending items of a source, unless it is paused, that were enqueued in the last so many seconds."""
        parameters = {"source": source, "seconds": seconds, "limit": limit}
        return [OutboxItem(**row) for row in await self._rows("newest_items", parameters)]

    async def last_version(self) -> int:
        """The last version that was given out; each enqueue takes one, and may not be committed yet."""
        [row] = await self._rows("diagnose", {})
        return int(row["last_version"])

    async def find(self, keys: Sequence[tuple[str, str]]) -> list[OutboxItem]:
        """Those of the items, each a source and a key, that are pending in sources that are not paused."""
        parameters = {"sources": [source for source, _ in keys], "item_keys": [key for _, key in keys]}
        return [OutboxItem(**row) for row in await self._rows("pending_among", parameters)] if keys else []

    async def fill_page(self, limit: int) -> FillPage | None:
        """Enqueue the next page of a first fill, a transaction of its own; None when no fill is waiting."""
        rows = await self._rows("fill_page", {"limit": limit})
        return FillPage(**rows[0]) if rows else None

    async def census_page(self, limit: int) -> CensusPage | None:
        """Walk over the next page of a large source, a transaction of its own; None when there is nothing to do.

        It counts, and enqueues the stale items that no trigger saw.
        """
        rows = await self._rows("census_page", {"limit": limit, "small": False})
        return CensusPage(**rows[0]) if rows else None

    async def count(self) -> bool:
        """Count what waits, for `evervec.status`, if that is much; returns whether it is."""
        [row] = await self._rows("count_outbox", {})
        return bool(row["long"])

    async def depth(self) -> list[OutboxDepth]:
        """What waits of each source; of a long outbox as it was counted last."""
        return [OutboxDepth(**row) for row in await self._rows("outbox_depth", {})]

    async def queue_usage(self) -> float:
        """How much of the server's notification queue is taken, from 0 to 1."""
        [row] = await self._rows("notification_queue_usage", {})
        return float(row["usage"])

    async def hush(self, seconds: float) -> bool:
        """Have nobody ring for so long, at most a second; False when somebody else keeps the bell silent."""
        [row] = await self._rows("hush", {"seconds": seconds})
        return bool(row["silenced"])

    async def _rows(self, name: str, parameters: dict[str, Any]) -> list[dict[str, Any]]:
        with translated():
            return await (await self._connection.execute(query(name), parameters)).fetchall()
