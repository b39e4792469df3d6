"""What the dashboard's pages show, a page at a time: nothing here reads a whole watched table."""

from datetime import datetime
from typing import Any, NamedTuple

from db.connection import Pool, translated
from db.queries import query
from db.sources import Hit

REACH = 50_000
"""Rows of the outbox that one page looks at, at most: some 50 ms."""


class ItemRow(NamedTuple):
    """An item in a list."""

    key: str
    state: str
    attempts: int | None = None
    last_error: str | None = None
    queued_at: datetime | None = None
    """When it came into the outbox; None where it is not there."""
    embedded_at: datetime | None = None
    content: str | None = None
    """The beginning of it; None in lists that are made from the outbox alone."""


class ItemPage(NamedTuple):
    """Some items in the order of their keys, and the key to go on after; None at the end."""

    rows: list[ItemRow]
    go_on_after: str | None


class FailureGroup(NamedTuple):
    """The items of a source that were given up for the same reason."""

    source: str
    error: str | None
    items: int
    first: datetime
    last: datetime


class FailedItem(NamedTuple):
    """One of them."""

    key: str
    attempts: int
    failed_at: datetime


class SourceDetails(NamedTuple):
    """What `evervec.watch` was told of a source, and how it works now."""

    name: str
    relation: str
    key_column: str
    key_type: str
    text_columns: list[str]
    required_columns: list[str]
    active: str | None
    destination: str
    embedding_column: str
    side_table: str | None
    model: str
    model_label: str
    """What stands beside each vector: the model's name, with revision and prompt."""
    revision: str
    dimension: int
    prompt: str
    paused: bool
    filling: bool
    rate: float | None
    """Items a second that bulk work may embed."""
    created_at: datetime


class CountedAt(NamedTuple):
    """When the counts of a source were made; None for those that are made at each look."""

    large: bool
    """Whether its rows are not counted at each look; `rows` may be None then, since they never were."""
    rows: datetime | None
    waiting: datetime | None


class ListenerSession(NamedTuple):
    """A listener's connection."""

    pid: int
    leads: bool


class ServerFacts(NamedTuple):
    """PostgreSQL itself."""

    version: str
    database: str
    queue_usage: float
    """How full the notification queue is, 0 to 1."""
    standby: bool


class Pages:
    """Reads for people. Errors: DatabaseError, ServiceUnreachableError, ConfigurationError."""

    def __init__(self, pool: Pool) -> None:
        self._pool = pool

    async def items(self, source: str, *, after: str | None, limit: int) -> ItemPage:
        """The next items of the table, in the order of its keys."""
        rows = [ItemRow(**row) for row in await self._rows("item_page", source=source, after=after, limit=limit + 1)]
        return _page(rows, limit)

    async def waiting(self, source: str, state: str | None, *, after: str | None, limit: int) -> ItemPage:
        """The next items of the outbox, in the order of their keys as texts: pending, failed or (None) either."""
        found = await self._rows("outbox_page", source=source, state=state, after=after, limit=limit + 1, reach=REACH)
        further = next((row["go_on_after"] for row in found if row["go_on_after"] is not None), None)
        rows = [
            ItemRow(row["key"], row["state"], row["attempts"], row["last_error"], row["queued_at"])
            for row in found
            if row["key"] is not None
        ]
        page = _page(rows, limit)
        return page._replace(go_on_after=page.go_on_after or further)

    async def content(self, source: str, item_key: str, *, limit: int) -> tuple[str, int]:
        """The beginning of an item's content, `limit` characters at most, and the length of all of it."""
        [row] = await self._rows("item_content", source=source, item_key=item_key, limit=limit)
        return row["beginning"] or "", row["length"] or 0

    async def neighbours(self, source: str, item_key: str, *, limit: int) -> list[Hit]:
        """The items nearest to an item."""
        return [Hit(**row) for row in await self._rows("neighbours", source=source, item_key=item_key, limit=limit)]

    async def failure_groups(self, *, limit: int) -> list[FailureGroup]:
        """What failed, by source and error, the largest groups first."""
        return [FailureGroup(**row) for row in await self._rows("failure_groups", limit=limit)]

    async def failed(self, source: str, error: str | None, *, after: str, limit: int) -> list[FailedItem]:
        """The next failed items with this error, in the order of their keys as texts."""
        rows = await self._rows("failed_page", source=source, error=error, after=after, limit=limit)
        return [FailedItem(**row) for row in rows]

    async def call_off(self, source: str, *, after: str | None, limit: int) -> tuple[str | None, int]:
        """Have the next forced items not embedded if nothing changed: the last key seen, and how many."""
        [row] = await self._rows("call_off_page", source=source, after=after, limit=limit)
        return row["last_key"], row["called_off"]

    async def details(self, source: str | None = None) -> list[SourceDetails]:
        """All sources, or this one."""
        return [SourceDetails(**row) for row in await self._rows("source_details", source=source)]

    async def counted_at(self) -> dict[str, CountedAt]:
        """When the counts of each source were made."""
        found = await self._rows("counted_at")
        return {row["source"]: CountedAt(row["large"], row["rows"], row["waiting"]) for row in found}

    async def listeners(self) -> list[ListenerSession]:
        """The listeners that are connected, the leader first."""
        return [ListenerSession(**row) for row in await self._rows("listener_sessions")]

    async def server(self) -> ServerFacts:
        """What PostgreSQL says of itself."""
        [row] = await self._rows("server_facts")
        return ServerFacts(**row)

    async def _rows(self, name: str, **parameters: Any) -> list[dict[str, Any]]:
        with translated():
            async with self._pool.connection() as connection:
                return await (await connection.execute(query(name), parameters)).fetchall()


def _page(rows: list[ItemRow], limit: int) -> ItemPage:
    return ItemPage(rows[:limit], rows[limit - 1].key if len(rows) > limit else None)
