"""The one place that speaks evervec's SQL: functions and tables of the schema evervec (docs/sql.md)."""

import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, NamedTuple

from django.db import DEFAULT_DB_ALIAS, DatabaseError, connections

from django_evervec.errors import NotInstalledError

# invalid_schema_name, undefined_table, undefined_function, undefined_column
_NOT_THERE = {"3F000", "42P01", "42883", "42703"}

SOURCES = """
SELECT s.name, s.key_column, s.text_columns, s.required_columns, s.active, s.active_columns, s.destination,
       s.embedding_column, (SELECT relname FROM pg_class WHERE oid = s.side_table) AS side_table, s.model, s.revision,
       s.prompt, s.dimension, s.model_label, s.paused, s.filling, evervec.whitespace() AS whitespace
FROM evervec.source s
"""
STATUS = """
SELECT source, total, eligible, fresh, stale, pending, failed, coverage, oldest_pending_seconds, model, dimension,
       paused
FROM evervec.status WHERE %(source)s::text IS NULL OR source = %(source)s ORDER BY source
"""
FAILURES = """
SELECT source, item_key AS key, attempts, last_error AS error, failed_at
FROM evervec.failures WHERE source = ANY (%s) ORDER BY source, item_key LIMIT %s
"""
EXPLANATIONS = """
SELECT k.item_key, e.* FROM unnest(%s::text[]) AS k (item_key)
CROSS JOIN LATERAL evervec.explain_item(%s, k.item_key) AS e
"""


@dataclass(frozen=True)
class Source:
    """A watched table and how it is read."""

    name: str
    key_column: str
    text_columns: list[str]
    required_columns: list[str]
    active: str | None
    """A column, quoted where it needs to be, or a predicate over the row."""
    active_columns: list[str]
    destination: str
    embedding_column: str
    side_table: str | None
    model: str
    revision: str
    prompt: str
    dimension: int
    model_label: str
    paused: bool
    filling: bool
    whitespace: str
    """The characters that count as blank."""

    @property
    def active_column(self) -> str | None:
        """The boolean column that `active` is; None when it is a predicate, or nothing."""
        named = (self.active or "").removeprefix('"').removesuffix('"').replace('""', '"')
        return named if self.active_columns == [named] else None


class Page(NamedTuple):
    """What a re-fire did with one page of rows."""

    last_key: str | None
    scanned: int
    enqueued: int


class Explanation(NamedTuple):
    """What the database knows of one item."""

    item_key: str
    row_exists: bool
    active: bool
    blank_columns: list[str]
    eligible: bool
    paused: bool
    content_hash: str | None
    embedding_hash: str | None
    embedding_model: str | None
    embedded_at: Any
    model_label: str
    outbox: dict[str, Any] | None


def sources(using: str = DEFAULT_DB_ALIAS, *, table: str | None = None) -> list[Source]:
    """All sources, or those of a table (a quoted name)."""
    condition = "" if table is None else "WHERE s.relation = to_regclass(%s) "
    rows = _rows(using, f"{SOURCES}{condition}ORDER BY s.name", [] if table is None else [table])
    return [Source(**row) for row in rows]


def status(using: str, source: str | None = None) -> list[dict[str, Any]]:
    """The counts of all sources, or of one."""
    return _rows(using, STATUS, {"source": source})


def failures(using: str, names: Sequence[str], limit: int) -> list[dict[str, Any]]:
    """The first items that were given up, and why."""
    return _rows(using, FAILURES, [list(names), limit])


def explanations(using: str, source: str, keys: Sequence[str]) -> dict[str, Explanation]:
    """What the database knows of each of the items, by their keys."""
    rows = _rows(using, EXPLANATIONS, [list(keys), source])
    for row in rows:
        row["outbox"] = row["outbox"] and json.loads(row["outbox"])  # Django leaves jsonb as text
    return {row["item_key"]: Explanation(**row) for row in rows}


def refire_page(
    using: str, source: str, *, force: bool, after: str | None, limit: int, rate: float | None = None
) -> Page:
    """Enqueue what is stale (forced: all that is eligible) among the next rows in the order of their keys.

    Where there is something, bulk work embeds at most `rate` items a second from then on, if it is given.
    """
    # In one transaction: earlier the rate would be lifted, since nothing waits yet, and later a sweep may have begun.
    statement = (
        "SELECT last_key, scanned, enqueued, "
        "CASE WHEN %s::real IS NOT NULL AND enqueued > 0 THEN evervec.throttle(%s, %s::real) END AS throttled "
        "FROM evervec.refire_page(%s, NULL, %s, %s, %s)"
    )
    [row] = _rows(using, statement, [rate, source, rate, source, force, after, limit])
    return Page(row["last_key"], row["scanned"], row["enqueued"])


def refire(using: str, source: str, keys: Sequence[str], *, force: bool) -> int:
    """Enqueue those of the items that are stale (forced: that are eligible); returns how many."""
    return refire_selected(using, source, "SELECT unnest(%s::text[])", (list(keys),), force=force)


def refire_selected(using: str, source: str, select: str, params: Sequence[Any], *, force: bool) -> int:
    """The same for the keys, as text, that a SELECT gives; all in one statement."""
    return _number(using, f"SELECT evervec.refire_keys(%s, ARRAY({select}), %s)", [source, *params, force])


def retry_selected(using: str, source: str, select: str, params: Sequence[Any]) -> int:
    """Failed items back to pending, those whose keys a SELECT gives; returns how many."""
    return _number(using, f"SELECT evervec.retry(%s, ARRAY({select}))", [source, *params])


def last_version(using: str) -> int:
    """The version of what was enqueued last."""
    return _number(using, "SELECT last_value FROM evervec.outbox_version", [])


def pending(using: str, source: str, until: int) -> int:
    """How many items wait that were enqueued no later than that version."""
    statement = "SELECT count(*) FROM evervec.outbox WHERE source = %s AND state = 'pending' AND version <= %s"
    return _number(using, statement, [source, until])


def instance_id(using: str) -> str:
    """The short id of this installation."""
    [row] = _rows(using, "SELECT evervec.instance_id() AS id", [])
    return str(row["id"])


def _number(using: str, statement: str, params: Any) -> int:
    [row] = _rows(using, statement, params)
    return int(next(iter(row.values())))


def _rows(using: str, statement: str, params: Any) -> list[dict[str, Any]]:
    with installed(), connections[using].cursor() as cursor:
        cursor.execute(statement, params)
        names = [column.name for column in cursor.description or ()]
        return [dict(zip(names, row, strict=True)) for row in cursor.fetchall()]


@contextmanager
def installed() -> Iterator[None]:
    """Say what to do where the schema is missing."""
    try:
        yield
    except DatabaseError as error:
        if getattr(error.__cause__, "sqlstate", None) not in _NOT_THERE or "evervec" not in str(error):
            raise
        raise NotInstalledError(
            f"evervec is not in this database, or an older version ({str(error).splitlines()[0]}): "
            "put InstallEvervec() into a migration"
        ) from error
