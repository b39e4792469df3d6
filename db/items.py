"""Items as the worker sees them: read, write back, record what went wrong."""

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, NamedTuple

import numpy as np
from psycopg import errors

from db.connection import Pool, borrowed, translated
from db.outbox import CensusPage
from db.queries import query
from db.vectors import Vector
from db.work import Work
from evervec.errors import DatabaseError, SourceNotFoundError
from evervec.messages import Outcome
from evervec.model import ModelSpec

_NO_SUCH_SOURCE = "P0002"
_TABLE_GONE = "42P01"
_SOMEBODY_IS_FASTER = (
    errors.LockNotAvailable,
    errors.DeadlockDetected,
    errors.QueryCanceled,
    errors.SerializationFailure,  # a row that moved to another partition
)


@dataclass(frozen=True, slots=True)
class ItemState:
    """One item and its place in the outbox, seen in one snapshot."""

    source: str
    item_key: str
    outbox_version: int | None
    """None when the item is not in the outbox."""
    failed: bool
    """Given up until its content changes or somebody retries it."""
    forced: bool
    """To be embedded even if its hash is unchanged."""
    paused: bool
    exists: bool
    eligible: bool
    content: str | None
    content_hash: str | None
    embedding_hash: str | None
    """The hash that the stored vector was made of, None without a vector."""
    model: ModelSpec
    queued_at: float | None = None
    """When it was first enqueued, by `time.monotonic()`; None when it is not in the outbox."""

    @property
    def fresh(self) -> bool:
        """Whether the stored vector is that of the present content."""
        return self.eligible and self.embedding_hash == self.content_hash

    def stale(self, *, forced: bool) -> bool:
        """Whether it is to be embedded."""
        return self.exists and self.eligible and (forced or self.forced or not self.fresh)

    def written_back(self, vector: Vector | None = None) -> "WriteBack":
        """What is to be written of it."""
        return WriteBack(self.item_key, self.outbox_version, self.content_hash, vector, self.queued_at)


@dataclass(frozen=True, slots=True)
class WriteBack:
    """What is to be written of one item; without a vector it is only acknowledged, if it needs none."""

    item_key: str
    outbox_version: int | None
    content_hash: str | None = None
    vector: Vector | None = None
    queued_at: float | None = None
    """See `ItemState.queued_at`."""


class FailedAttempt(NamedTuple):
    """An attempt at an item that failed, and why."""

    item_key: str
    outbox_version: int | None
    error: str


class SweepPage(NamedTuple):
    """The next keys of a source that may be embedded now."""

    item_keys: list[str]
    paused: bool
    rate: float | None
    """Items a second."""
    wait_seconds: float | None
    """Where a pass begins with no keys: until the first pending item may be taken; None when none is pending."""


class Items:
    """The items of all sources. Errors: SourceNotFoundError, DatabaseError, ServiceUnreachableError."""

    def __init__(self, pool: Pool) -> None:
        self._pool = pool

    async def instance(self) -> str:
        """The short id of this installation, part of every workflow id."""
        [row] = await self._rows("instance_id", {})
        return str(row["id"])

    async def models(self) -> list[ModelSpec]:
        """The models that the sources name."""
        return [ModelSpec(**row) for row in await self._rows("models", {})]

    async def read(self, source: str, item_keys: Sequence[str]) -> list[ItemState]:
        """The present state of some items, in any order."""
        rows = await self._rows("read_items", {"source": source, "item_keys": list(item_keys)}, source)
        now = time.monotonic()
        return [_item_state(source, row, now) for row in rows]

    async def write_back(self, source: str, writes: Sequence[WriteBack]) -> dict[str, Outcome]:
        """Compare and set, then acknowledge the outbox versions that were read; one short transaction.

        Rows that somebody holds come out as LOCKED and stay in the outbox.
        """
        embedded = {write.item_key: write.vector for write in writes if write.vector is not None and write.content_hash}
        parameters = {
            "source": source,
            "item_keys": [write.item_key for write in writes],
            "versions": [write.outbox_version for write in writes],
            "hashes": [write.content_hash if write.item_key in embedded else None for write in writes],
            "vectors": np.concatenate([*embedded.values(), np.empty(0, np.float32)]),
        }
        try:
            rows = await self._rows("write_back", parameters, source)
        except DatabaseError as error:
            if isinstance(error.__cause__, _SOMEBODY_IS_FASTER):
                return {write.item_key: Outcome.LOCKED for write in writes}
            raise
        return {row["item_key"]: Outcome(row["outcome"]) for row in rows}

    async def record_failure(
        self, source: str, item_key: str, version: int | None, error: str, *, max_attempts: int
    ) -> bool:
        """Count a failed attempt at this version of an item; True when the item is given up now."""
        return bool(await self.record_failures(source, [FailedAttempt(item_key, version, error)], max_attempts))

    async def record_failures(self, source: str, failed: Sequence[FailedAttempt], max_attempts: int) -> set[str]:
        """Count failed attempts; the keys of the items that are given up now."""
        parameters = {
            "source": source,
            "item_keys": [attempt.item_key for attempt in failed],
            "versions": [attempt.outbox_version for attempt in failed],
            "errors": [attempt.error for attempt in failed],
            "max_attempts": max_attempts,
        }
        return {row["item_key"] for row in await self._rows("record_failures", parameters)}

    async def note_error(self, source: str, waiting: Sequence[ItemState], error: str) -> None:
        """Say why items wait, where it is not their fault; counts nothing."""
        parameters = {
            "source": source,
            "item_keys": [state.item_key for state in waiting],
            "versions": [state.outbox_version for state in waiting],
            "error": error,
        }
        await self._rows("note_errors", parameters)

    async def record_work(self, done: Mapping[str, Work]) -> None:
        """Add what was done, by source, to the history."""
        parameters = {
            "sources": [*done],
            "embedded": [work.embedded for work in done.values()],
            "skipped": [work.skipped for work in done.values()],
            "failed": [work.failed for work in done.values()],
            "latency": [count for work in done.values() for count in work.latency],
        }
        await self._rows("record_work", parameters)

    async def sweep_page(
        self, source: str, after: str | None, limit: int, *, quiet: timedelta, longest: timedelta
    ) -> SweepPage:
        """The next keys that a sweep may take, beyond `after`: quiet for so long, or waiting for the longest time."""
        parameters = {"source": source, "after": after, "limit": limit, "quiet": quiet, "longest": longest}
        [row] = await self._rows("sweep_page", parameters, source)
        return SweepPage(**row)

    async def sources_waiting(self, age: timedelta) -> list[str]:
        """The sources, none of them paused, in which an item that could be embedded has waited for longer."""
        return [row["source"] for row in await self._rows("sources_waiting", {"age": age})]

    async def census_page(self, limit: int) -> CensusPage | None:
        """Walk over the next page of a source, small ones too; None when there is nothing to do.

        It enqueues the stale items that no trigger saw.
        """
        rows = await self._rows("census_page", {"limit": limit, "small": True})
        return CensusPage(**rows[0]) if rows else None

    async def _rows(self, name: str, parameters: dict[str, Any], source: str | None = None) -> list[dict[str, Any]]:
        try:
            with translated():
                async with borrowed(self._pool) as connection:
                    return await (await connection.execute(query(name), parameters)).fetchall()
        except DatabaseError as error:
            if source is not None and error.sqlstate in {_NO_SUCH_SOURCE, _TABLE_GONE}:
                raise SourceNotFoundError(source) from None
            raise


def _item_state(source: str, row: dict[str, Any], now: float) -> ItemState:
    waited = row.get("waited_seconds")  # an earlier version of the schema does not say
    return ItemState(
        source=source,
        item_key=row["item_key"],
        outbox_version=row["outbox_version"],
        failed=row["outbox_state"] == "failed",
        forced=row["forced"],
        paused=row["paused"],
        exists=row["row_exists"],
        eligible=row["eligible"],
        content=row["content"],
        content_hash=row["content_hash"],
        embedding_hash=row["embedding_hash"],
        model=ModelSpec(name=row["model"], revision=row["revision"], dimension=row["dimension"], prompt=row["prompt"]),
        queued_at=None if waited is None else now - waited,
    )
