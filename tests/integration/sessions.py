"""Concurrent sessions on one database, stepped by hand: users who write a watched table, and workers who follow them.

Nothing here sleeps in hope. A step that must happen while another one waits is taken when PostgreSQL says that the
other one waits.
"""

import asyncio
import hashlib
import uuid
from collections.abc import AsyncIterator, Coroutine, Iterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager
from dataclasses import dataclass
from typing import Any, Self, TypeVar

import numpy as np
import psycopg
from psycopg import sql
from psycopg.rows import TupleRow

from db.connection import open_pool
from db.items import Items, ItemState, WriteBack
from db.vectors import Vector
from evervec.messages import Outcome

T = TypeVar("T")

PATIENCE_SECONDS = 20.0
ROUNDS = 50
GATE = 4711
"""The advisory lock that a paused function waits for."""

SCHEMA = f"""
SELECT evervec.unwatch(name) FROM evervec.source;
DROP TABLE IF EXISTS items, items_embedding;
CREATE TABLE items (
  id bigint PRIMARY KEY, name text, description text, active boolean NOT NULL DEFAULT true, price int NOT NULL DEFAULT 0
);
-- The vector that the tests' workers make of a content, as PostgreSQL computes it: whole numbers that float32 holds.
CREATE OR REPLACE FUNCTION vector_of(content text) RETURNS vector LANGUAGE sql IMMUTABLE STRICT AS $$
  SELECT ARRAY[('x' || substr(h, 1, 6))::bit(24)::int, ('x' || substr(h, 7, 6))::bit(24)::int,
               ('x' || substr(h, 13, 6))::bit(24)::int, ('x' || substr(h, 19, 6))::bit(24)::int]::real[]::vector
  FROM md5(content) AS h
$$;
-- Where a function that the tests rewrote waits until the gate is opened, for as long as that takes: its own
-- lock_timeout is for all else that it waits for.
CREATE OR REPLACE FUNCTION pause() RETURNS boolean LANGUAGE plpgsql COST 1 SET lock_timeout = 0 AS $$
BEGIN
  PERFORM pg_advisory_xact_lock_shared({GATE});
  RETURN true;
END $$;
"""
LOST = "i.eligible AND i.embedding_hash IS DISTINCT FROM i.content_hash AND o.item_key IS NULL"
WRONG = "i.embedding_hash = i.content_hash AND i.embedding <> public.vector_of(i.content)"
WAITING = "o.item_key IS NOT NULL"


def vector_of(content: str | None) -> Vector:
    """The vector that the tests' workers make of a content."""
    digest = hashlib.md5((content or "").encode(), usedforsecurity=False).hexdigest()
    return np.array([int(digest[start : start + 6], 16) for start in (0, 6, 12, 18)], dtype=np.float32)


def embedded(states: Sequence[ItemState]) -> list[WriteBack]:
    """What a worker writes back of items that it read: vectors of the stale ones, acknowledgements of the others."""
    return [
        WriteBack(
            state.item_key,
            state.outbox_version,
            state.content_hash,
            vector_of(state.content) if state.eligible and (state.forced or not state.fresh) else None,
        )
        for state in states
    ]


@contextmanager
def shared_database(server: str, template: str) -> Iterator[str]:
    """A database for the labs of a whole module, one after the other: its connection string."""
    name = f"test_{uuid.uuid4().hex}"
    with psycopg.connect(server, autocommit=True) as connection:
        connection.execute(
            sql.SQL("CREATE DATABASE {} TEMPLATE {}").format(sql.Identifier(name), sql.Identifier(template))
        )
        yield f"{server.rpartition('/')[0]}/{name}"
        connection.execute(sql.SQL("DROP DATABASE {} WITH (FORCE)").format(sql.Identifier(name)))


@dataclass(frozen=True)
class Session:
    """Somebody's connection, in autocommit until it says BEGIN."""

    connection: psycopg.AsyncConnection[TupleRow]

    @property
    def pid(self) -> int:
        """The server process behind it."""
        return self.connection.info.backend_pid

    async def run(self, statement: str, *parameters: object) -> list[TupleRow]:
        """Run one statement; its rows."""
        cursor = await self.connection.execute(statement, parameters or None)
        return await cursor.fetchall() if cursor.description else []

    async def value(self, statement: str, *parameters: object) -> Any:
        """The only value that a statement returns."""
        [[value]] = await self.run(statement, *parameters)
        return value


@dataclass(frozen=True)
class Worker:
    """A worker with one connection of its own."""

    items: Items
    pid: int
    source: str = "items"

    async def read(self, *keys: object) -> list[ItemState]:
        """What the worker sees of some items."""
        return await self.items.read(self.source, [str(key) for key in keys])

    async def write_back(self, states: Sequence[ItemState]) -> dict[str, Outcome]:
        """Embed what was read, and write it back."""
        return await self.items.write_back(self.source, embedded(states))

    async def work(self, *keys: object) -> dict[str, Outcome]:
        """One round: read, embed, write back."""
        return await self.write_back(await self.read(*keys))


class Lab:
    """A database with the watched table `items`, and whoever works on it."""

    def __init__(self, conninfo: str, destination: str, stack: AsyncExitStack, observer: Session) -> None:
        self.conninfo = conninfo
        self.destination = destination
        self.observer = observer
        self._stack = stack
        self._tasks: list[asyncio.Task[Any]] = []
        self._originals: dict[str, str] = {}
        self._drainer: Worker | None = None
        self._keeper: Session | None = None

    @classmethod
    @asynccontextmanager
    async def open(cls, conninfo: str, destination: str, *items: tuple[int, str]) -> AsyncIterator[Self]:
        """A lab whose table holds these items, all of them fresh."""
        async with AsyncExitStack() as stack:
            observer = await _session(conninfo, stack)
            lab = cls(conninfo, destination, stack, observer)
            await observer.run(SCHEMA)
            await lab.watch()
            await lab.reset(*items)
            try:
                yield lab
            finally:
                await lab._end_tasks()
                await lab._restore()

    async def reset(self, *items: tuple[int, str]) -> None:
        """Start over with these items, all of them fresh."""
        keys, names = [key for key, _ in items], [name for _, name in items]
        await self.observer.run("DELETE FROM items")
        await self.observer.run("INSERT INTO items (id, name) SELECT * FROM unnest(%s::int[], %s::text[])", keys, names)
        await self.drain()

    async def watch(self, model: str = "a model", *, by: Session | None = None, fill: bool = True) -> None:
        """Watch the table, and let the first fill run."""
        await (by or self.observer).run(
            "SELECT evervec.watch('items', '{name,description}', required => '{name}', active => 'active', "
            "model => %s, dimension => 4, destination => %s)",
            model,
            self.destination,
        )
        if fill:
            await self.fill()

    async def fill(self) -> None:
        """Let the first fill run to its end."""
        while await self.observer.run("SELECT * FROM evervec.fill_page(1000)"):
            pass

    async def session(self) -> Session:
        """A new connection of a user's."""
        return await _session(self.conninfo, self._stack)

    async def worker(self) -> Worker:
        """A new worker."""
        pool = await self._stack.enter_async_context(
            open_pool(self.conninfo, size=1, application_name="evervec worker")
        )
        async with pool.connection() as connection:
            pid = connection.info.backend_pid
        return Worker(Items(pool), pid)

    async def drain(self) -> None:
        """Work until the outbox is empty."""
        self._drainer = self._drainer or await self.worker()
        for _ in range(ROUNDS):
            rows = await self.observer.run("SELECT item_key FROM evervec.pending_items(NULL, NULL, 1000)")
            if not rows:
                return
            await self._drainer.work(*(key for (key,) in rows))
        raise AssertionError(f"the outbox does not become empty: {rows[:5]}")

    def start(self, step: Coroutine[Any, Any, T]) -> asyncio.Task[T]:
        """Start a step that may have to wait for somebody."""
        task = asyncio.create_task(step)
        self._tasks.append(task)
        return task

    async def waits(self, who: Session | Worker, wait: str = "Lock") -> None:
        """Return when the server says that this session waits: for a lock, or something else."""
        assert await self._settled(who.pid, wait), "it does not wait"

    async def waits_or_ends(self, who: Session | Worker, task: asyncio.Task[Any]) -> None:
        """Return when a step has ended or waits for a lock."""
        await self._settled(who.pid, "Lock", task)

    async def _settled(self, pid: int, wait: str, task: asyncio.Task[Any] | None = None) -> bool:
        waits = "SELECT EXISTS (SELECT FROM pg_stat_activity WHERE pid = %s AND wait_event_type = %s)"
        async with asyncio.timeout(PATIENCE_SECONDS):
            while not (task and task.done()):
                if await self.observer.value(waits, pid, wait):
                    return True
                await asyncio.sleep(0.002)
        return False

    async def edit(self, name: str, key: int = 1, *, by: Session | None = None) -> None:
        """Change the text of an item."""
        await (by or self.observer).run("UPDATE items SET name = %s WHERE id = %s", name, key)

    async def outbox(self, key: int = 1) -> int | None:
        """The version under which an item waits."""
        rows = await self.observer.run("SELECT version FROM evervec.outbox WHERE item_key = %s", str(key))
        return rows[0][0] if rows else None

    async def vector(self, key: int = 1) -> list[float] | None:
        """The stored vector of an item."""
        rows = await self.observer.run(f"SELECT embedding::real[] FROM ({await self._items()}) AS i WHERE id = {key}")
        return rows[0][0] if rows else None

    async def assert_true(self, *, drained: bool = False) -> None:
        """No change is lost, and no vector passes for that of another text; drained: nothing waits either."""
        problems = f"({LOST}) AS lost, ({WRONG}) AS wrong, ({WAITING}) AS waiting"
        rows = await self.observer.run(
            f"SELECT * FROM (SELECT item_key, {problems} FROM ({await self._items()}) AS i "
            f"FULL JOIN evervec.outbox o USING (item_key)) AS p WHERE lost OR wrong OR (waiting AND {drained})"
        )
        assert rows == []
        if drained and self.destination == "table":
            beside = "SELECT id FROM items_embedding WHERE id NOT IN (SELECT id FROM items)"
            assert await self.observer.run(beside) == []

    async def assert_ends_true(self) -> None:
        """Nothing is lost now, and all is fresh when a worker has gone through the outbox."""
        await self.assert_true()
        await self.drain()
        await self.assert_true(drained=True)

    async def _items(self) -> str:
        items: str = await self.observer.value(
            "SELECT evervec.items_sql(s) FROM evervec.source s WHERE s.name = 'items'"
        )
        return items

    async def rewrite(self, function: str, *changes: tuple[str, str]) -> None:
        """Replace text in the body of a function of evervec's, until the lab closes. Each text must be there."""
        definition = await self.observer.value(
            "SELECT pg_get_functiondef(oid) FROM pg_proc WHERE pronamespace = 'evervec'::regnamespace AND proname = %s",
            function,
        )
        self._originals.setdefault(function, definition)
        for old, new in changes:
            assert old in definition, f"{function} has no {old!r} any more"
            definition = definition.replace(old, new)
        await self.observer.connection.execute(definition)

    async def trigger_functions(self) -> list[str]:
        """The names of the trigger functions that enqueue."""
        number = await self.observer.value("SELECT id FROM evervec.source WHERE name = %s", "items")
        return [f"{name}_{number}" for name in ("row", "touch", "edit")]

    async def close_gate(self) -> None:
        """Make whoever comes to a pause wait, until `open_gate`."""
        self._keeper = self._keeper or await self.session()
        await self._keeper.run(f"SELECT pg_advisory_lock({GATE})")

    async def open_gate(self) -> None:
        """Let those who pause go on."""
        assert self._keeper
        await self._keeper.run(f"SELECT pg_advisory_unlock({GATE})")

    async def _end_tasks(self) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _restore(self) -> None:
        for definition in self._originals.values():
            await self.observer.connection.execute(definition)


async def _session(conninfo: str, stack: AsyncExitStack) -> Session:
    connection = await psycopg.AsyncConnection.connect(conninfo, autocommit=True, application_name="user")
    stack.push_async_callback(connection.close)
    return Session(connection)
