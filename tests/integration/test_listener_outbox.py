from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable

import psycopg
import pytest

from db.connection import Connection, connect
from db.outbox import Outbox, OutboxItem

MANY = 20_000


@pytest.fixture
async def owner(database: str) -> AsyncIterator[psycopg.AsyncConnection]:
    async with await psycopg.AsyncConnection.connect(database, autocommit=True) as connection:
        for table in ("items", "other", "paused"):
            await connection.execute(f"CREATE TABLE {table} (id text PRIMARY KEY, name text)")
            await connection.execute(f"SELECT evervec.watch('{table}', '{{name}}', model => 'stub:4')")
        await connection.execute("SELECT evervec.pause('paused')")
        yield connection


@pytest.fixture
async def connection(database: str) -> AsyncIterator[Connection]:
    async with await connect(database, application_name="test") as connection:
        yield connection


async def enqueue(owner: psycopg.AsyncConnection, source: str, count: int, state: str = "pending") -> None:
    """The keys '', 1, 2, … with their numbers as versions."""
    await owner.execute(
        "INSERT INTO evervec.outbox (source, item_key, content_hash, version, state)"
        " SELECT %s, CASE n WHEN 0 THEN '' ELSE n::text END, 'h', n, %s FROM generate_series(0, %s - 1) AS n",
        (source, state, count),
    )


async def test_of_each_source_a_few_of_what_is_due(owner: psycopg.AsyncConnection, connection: Connection) -> None:
    await enqueue(owner, "items", 25)
    await enqueue(owner, "other", 7)
    await enqueue(owner, "paused", 3)
    outbox = Outbox(connection)
    for limit in (1, 7, 10):
        found = Counter(item.source for item in await outbox.waiting(limit))
        assert found == {"items": limit, "other": min(limit, 7)}
    await owner.execute("UPDATE evervec.outbox SET due_at = now() + interval '1 hour' WHERE source = 'other'")
    await owner.execute("UPDATE evervec.outbox SET state = 'failed' WHERE item_key <> '5'")
    assert await outbox.waiting(10) == [OutboxItem("items", "5", "h", 5)]


async def test_only_what_waits_is_found(owner: psycopg.AsyncConnection, connection: Connection) -> None:
    await enqueue(owner, "items", 3)
    await enqueue(owner, "other", 3, state="failed")
    await enqueue(owner, "paused", 3)
    outbox = Outbox(connection)
    keys = [("items", "1"), ("items", ""), ("items", "9"), ("other", "1"), ("paused", "1"), ("none", "1")]
    assert set(await outbox.find(keys)) == {OutboxItem("items", "1", "h", 1), OutboxItem("items", "", "h", 0)}
    assert await outbox.find([]) == []
    assert {item.source for item in await outbox.read(100)} == {"items"}


async def test_no_look_reads_more_of_the_outbox_than_it_returns(
    owner: psycopg.AsyncConnection, connection: Connection
) -> None:
    """Without statistics, which an outbox that has just grown does not have; and past the items of a paused source."""
    await owner.execute("ALTER TABLE evervec.outbox SET (autovacuum_enabled = false)")
    await enqueue(owner, "items", MANY)
    await enqueue(owner, "other", MANY)
    await owner.execute("SELECT evervec.pause('other'), evervec.resume('paused')")
    await enqueue(owner, "paused", 100)
    outbox = Outbox(connection)
    looks: dict[str, Callable[[], Awaitable[list[OutboxItem]]]] = {
        "waiting": lambda: outbox.waiting(50),
        "first": lambda: outbox.read(100),
        "find": lambda: outbox.find([("items", str(n)) for n in range(1, 100)]),
        "find nothing": lambda: outbox.find([("items", f"none {n}") for n in range(100)]),
    }
    for name, look in looks.items():
        async with connection.transaction():
            before = await rows_read(connection)
            await look()
            assert await rows_read(connection) - before <= 101, name


async def rows_read(connection: Connection) -> int:
    """Rows of the outbox that this connection's transaction has read."""
    cursor = await connection.execute(
        "SELECT seq_tup_read + idx_tup_fetch AS rows FROM pg_stat_xact_all_tables WHERE relid = %s::regclass",
        ("evervec.outbox",),
    )
    [row] = await cursor.fetchall()
    return int(row["rows"])
