"""Sources as people see them: watch, re-fire, count, explain, search."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from datetime import datetime
from typing import Any, NamedTuple

import numpy as np
from psycopg import errors

from db.connection import Pool, translated
from db.plan import WatchPlan
from db.queries import query
from db.vectors import Vector
from db.work import WorkMinute
from evervec.errors import DatabaseError, SourceNotFoundError
from evervec.model import ModelSpec

_LOCKED = (errors.LockNotAvailable, errors.DeadlockDetected)
_NO_SUCH_SOURCE = "P0002"


@dataclass(frozen=True, slots=True, kw_only=True)
class WatchOptions:
    """The arguments of `evervec.watch`; None is what the database chooses."""

    relation: str
    """The table as SQL names it: qualified by its schema, and quoted, where need be."""
    text_columns: Sequence[str]
    required: Sequence[str] = ()
    active: str | None = None
    key: str | None = None
    source: str | None = None
    model: str | None = None
    dimension: int | None = None
    prompt: str = ""
    revision: str = ""
    destination: str = "column"
    embedding: str = "embedding"
    overwrite: bool = False


class Source(NamedTuple):
    """What a source embeds with, and whether it works."""

    name: str
    model: ModelSpec
    paused: bool
    filling: bool
    rate: float | None
    """Items a second that its bulk work may embed; None: no limit."""


class SourceStatus(NamedTuple):
    """One row of the view `evervec.status`."""

    source: str
    total: int
    eligible: int
    fresh: int
    stale: int
    pending: int
    failed: int
    coverage: float
    oldest_pending_seconds: float
    model: str
    dimension: int
    paused: bool


class Failure(NamedTuple):
    """An item that was given up."""

    source: str
    key: str
    attempts: int
    error: str | None
    failed_at: datetime


class RefirePage(NamedTuple):
    """What one page of a re-fire did; `last_key` is None when no rows were left."""

    last_key: str | None
    scanned: int
    enqueued: int


class Waiting(NamedTuple):
    """What is left of what was enqueued."""

    pending: int
    failed: int
    filling: bool
    paused: bool
    reason: str | None
    """The error of an item that waits, if one has one."""


class CountPage(NamedTuple):
    """Exact counts of one page of rows; `last_key` is None when no rows were left."""

    last_key: str | None
    total: int
    eligible: int
    fresh: int


class Sample(NamedTuple):
    """A fresh item and its vector."""

    key: str
    content: str
    vector: Vector


class Hit(NamedTuple):
    """An item that a search found, and its cosine distance."""

    key: str
    distance: float
    content: str


class Explanation(NamedTuple):
    """All that the database knows of one item."""

    row_exists: bool
    active: bool
    blank_columns: list[str]
    """Those of the required columns that are blank."""
    eligible: bool
    paused: bool
    content_hash: str | None
    embedding_hash: str | None
    """None without a vector."""
    embedding_model: str | None
    embedded_at: datetime | None
    model_label: str
    """What `embedding_model` is after the next write-back."""
    outbox: dict[str, Any] | None
    """The item's row in the outbox."""


class Sources:
    """The watched tables. Errors: SourceNotFoundError, DatabaseError, ServiceUnreachableError."""

    def __init__(self, pool: Pool) -> None:
        self._pool = pool

    async def instance(self) -> str:
        """The short id of this installation, part of every workflow id."""
        return str((await self._row("instance_id"))["id"])

    async def watch(self, options: WatchOptions) -> str:
        """Watch a table, or alter its source; returns the source's name."""
        row = await self._row("watch", **_parameters(options))
        return str(row["source"])

    async def plan_watch(self, options: WatchOptions, *, exact: int, texts: int) -> WatchPlan:
        """What `watch` would do, with so many contents to try a model with; nothing changes.

        With more than `exact` rows the counts are estimates.
        """
        try:
            with translated():
                # Rolled back: not even a temporary object stays.
                async with self._pool.connection() as connection, connection.transaction(force_rollback=True):
                    parameters = {**_parameters(options), "exact": exact, "texts": texts}
                    [row] = await (await connection.execute(query("plan_watch"), parameters)).fetchall()
                    return WatchPlan(**row)
        except DatabaseError as error:
            raise _source_error(error, options.source) from None

    async def known_dimension(self, model: str, revision: str) -> int | None:
        """The dimension of a model that the database knows or a source has; None for others."""
        dimension: int | None = (await self._row("dimension", model=model, revision=revision))["dimension"]
        return dimension

    async def unwatch(self, source: str) -> None:
        """Forget a source; its embeddings stay."""
        await self._row("unwatch", source=source)

    async def uninstall(self) -> None:
        """Remove evervec's schema, all sources with it; the embeddings stay."""
        await self._rows("uninstall")

    async def names(self, source: str | None = None) -> list[str]:
        """The names of all sources, or of this one."""
        rows = await self._rows("source_names", source=source)
        if source is not None and not rows:
            raise SourceNotFoundError(source)
        return [row["name"] for row in rows]

    async def get(self, source: str) -> Source:
        """A source by its name."""
        rows = await self._rows("source", source=source)
        if not rows:
            raise SourceNotFoundError(source)
        [row] = rows
        model = ModelSpec(name=row["model"], revision=row["revision"], dimension=row["dimension"], prompt=row["prompt"])
        return Source(source, model, row["paused"], row["filling"], row["rate"])

    async def refire_page(
        self,
        source: str,
        predicate: str = "true",
        *,
        force: bool = False,
        after: str | None = None,
        limit: int,
        rate: float | None = None,
    ) -> RefirePage | None:
        """Enqueue the stale items (forced: all eligible ones) among the next rows beyond `after`.

        Where there are any, at most `rate` items a second are embedded from then on, if it is given.
        None when a user's transaction holds one of them: nothing was enqueued, try again.
        """
        row = await self._row_briefly(
            "refire_page", source=source, predicate=predicate, force=force, after=after, limit=limit, rate=rate
        )
        return RefirePage(row["last_key"], row["scanned"], row["enqueued"]) if row else None

    async def refire_keys(self, source: str, item_keys: Sequence[str], *, force: bool) -> int | None:
        """Enqueue those of the items that are stale (forced: all that are eligible); returns how many.

        None when a user's transaction holds one of them: nothing was enqueued, try again.
        """
        row = await self._row_briefly("refire_keys", source=source, item_keys=list(item_keys), force=force)
        return int(row["enqueued"]) if row else None

    async def known_keys(self, source: str, item_keys: Sequence[str]) -> set[str]:
        """Those of the keys that a row has."""
        rows = await self._rows("known_keys", source=source, item_keys=list(item_keys))
        return {row["item_key"] for row in rows}

    async def throttle(self, source: str, rate: float | None) -> None:
        """Let the sweep embed at most `rate` items a second until nothing waits; None lifts the limit."""
        await self._row("throttle", source=source, rate=rate)

    async def pause(self, source: str) -> None:
        """Stop the work on a source; its changes are still recorded."""
        await self._row("pause", source=source)

    async def resume(self, source: str) -> None:
        """Restart the work on a source."""
        await self._row("resume", source=source)

    async def retry(self, source: str, item_keys: Sequence[str] | None = None) -> int | None:
        """Failed items back to pending, all or some; returns how many.

        None when a user's transaction holds one of them: nothing was done, try again.
        """
        keys = None if item_keys is None else list(item_keys)
        row = await self._row_briefly("retry", source=source, item_keys=keys)
        return int(row["retried"]) if row else None

    async def status(self, source: str | None = None) -> list[SourceStatus]:
        """How every source stands, or this one."""
        rows = await self._rows("status", source=source)
        if source is not None and not rows:
            raise SourceNotFoundError(source)
        return [SourceStatus(**row) for row in rows]

    async def failures(self, source: str | None = None) -> list[Failure]:
        """The items that were given up, of all sources or of this one."""
        if source is not None:
            await self.get(source)
        return [Failure(**row) for row in await self._rows("failures", source=source)]

    async def failed_count(self, source: str) -> int:
        """How many items were given up."""
        return int((await self._row("failed_count", source=source))["failed"])

    async def work_history(self, source: str | None = None) -> list[WorkMinute]:
        """What was done in each minute of the last hour in which something was, of all sources or of this one."""
        return [WorkMinute(**row) for row in await self._rows("work_history", source=source)]

    async def last_version(self) -> int:
        """The version of the latest enqueue in the outbox."""
        return int((await self._row("last_version"))["version"])

    async def waiting(
        self, source: str, *, after: int, until: int | None = None, item_keys: Sequence[str] | None = None
    ) -> Waiting:
        """What is left in the outbox of the versions beyond `after`, up to `until`, of all items or of some."""
        keys = None if item_keys is None else list(item_keys)
        rows = await self._rows("waiting", source=source, after=after, until=until, item_keys=keys)
        if not rows:
            raise SourceNotFoundError(source)
        return Waiting(**rows[0])

    async def count_page(self, source: str, *, after: str | None, limit: int) -> CountPage:
        """Count the next rows beyond `after`, comparing every hash."""
        return CountPage(**await self._row("count_page", source=source, after=after, limit=limit))

    async def orphan_count(self, source: str) -> int:
        """How many outbox rows have no item."""
        return int((await self._row("orphan_count", source=source))["orphaned"])

    async def drop_orphans(self, source: str) -> int:
        """Remove the outbox rows that have no item; returns how many."""
        return int((await self._row("drop_orphans", source=source))["dropped"])

    async def sample_page(self, source: str, *, after: str | None, limit: int, wanted: int) -> list[Sample]:
        """At most `wanted` random fresh items of the next rows beyond `after`."""
        parameters = {"source": source, "after": after, "limit": limit, "wanted": wanted}
        try:
            with translated():
                async with self._pool.connection() as connection, connection.cursor() as cursor:
                    # One at a time: as Python's numbers a page of vectors is eight times as large.
                    rows = cursor.stream(query("sample_page"), parameters)
                    return [Sample(row["item_key"], row["content"], _vector(row["embedding"])) async for row in rows]
        except DatabaseError as error:
            raise _source_error(error, source) from None

    async def explain(self, source: str, item_key: str) -> Explanation:
        """What there is to know about one item, which need not exist."""
        return Explanation(**await self._row("explain_item", source=source, item_key=item_key))

    async def search(self, source: str, vector: Vector, limit: int) -> list[Hit]:
        """The eligible items nearest to a vector of the source's dimension, among vectors of its present model."""
        rows = await self._rows("search", source=source, vector=vector, limit=limit)
        return [Hit(**row) for row in rows]

    async def _row_briefly(self, name: str, *, source: str, **parameters: Any) -> dict[str, Any] | None:
        """What locks many rows of the outbox; None where it would have to wait for one, and others for it."""
        try:
            with translated():
                async with self._pool.connection() as connection, connection.transaction():
                    await connection.execute(query("wait_briefly"))
                    [row] = await (await connection.execute(query(name), {"source": source, **parameters})).fetchall()
                    return row
        except DatabaseError as error:
            if isinstance(error.__cause__, _LOCKED):
                return None
            raise _source_error(error, source) from None

    async def _row(self, name: str, **parameters: Any) -> dict[str, Any]:
        [row] = await self._rows(name, **parameters)
        return row

    async def _rows(self, name: str, **parameters: Any) -> list[dict[str, Any]]:
        try:
            with translated():
                async with self._pool.connection() as connection:
                    return await (await connection.execute(query(name), parameters)).fetchall()
        except DatabaseError as error:
            raise _source_error(error, parameters.get("source")) from None


def _parameters(options: WatchOptions) -> dict[str, Any]:
    lists = {name: [*getattr(options, name)] for name in ("text_columns", "required")}
    return asdict(options) | lists


def _vector(numbers: list[float]) -> Vector:
    return np.array(numbers, np.float32)


def _source_error(error: DatabaseError, source: str | None) -> DatabaseError | SourceNotFoundError:
    return SourceNotFoundError(source) if source and error.sqlstate == _NO_SUCH_SOURCE else error
