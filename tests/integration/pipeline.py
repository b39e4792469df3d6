"""The whole pipeline on the real servers: a database, its listener and its worker, tables whose rows are checked."""

import asyncio
import threading
import time
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager, suppress
from dataclasses import dataclass, field
from itertools import count
from typing import Any, ClassVar, LiteralString, NamedTuple, Self, cast

import numpy as np
import psycopg
from psycopg import sql
from psycopg.conninfo import make_conninfo
from pydantic import SecretStr
from temporalio.client import Client, ScheduleHandle
from temporalio.service import RPCError

from embedding.base import Vectors
from embedding.stub import StubEmbedder
from evervec.schedule import schedule_id
from evervec.settings import Settings
from evervec.temporal import connect as connect_temporal
from listener.daemon import Listener
from service.worker import running_worker

WAIT_SECONDS = 60.0
"""A bound, for machines that have much else to do."""
DIMENSION = 8
MODEL = f"stub:{DIMENSION}"
DESTINATIONS = ("column", "table")

_number = count(1)


async def until(
    condition: Callable[[], Awaitable[object]] | Callable[[], object], seconds: float = WAIT_SECONDS
) -> None:
    """Wait until the condition holds; TimeoutError when it does not in time."""
    deadline = time.monotonic() + seconds
    while True:
        holds = condition()
        if await holds if isinstance(holds, Awaitable) else holds:
            return
        if time.monotonic() > deadline:
            raise TimeoutError(f"not met within {seconds:.0f} s")
        await asyncio.sleep(0.02)


class Site:
    """A database, seen by its owner, and what its processes are told."""

    def __init__(self, conninfo: str, owner: psycopg.AsyncConnection, client: Client, settings: Settings) -> None:
        self.conninfo = conninfo
        self.owner = owner
        self.client = client
        self.settings = settings

    @classmethod
    @asynccontextmanager
    async def open(cls, conninfo: str, temporal_address: str, **changes: Any) -> AsyncIterator[Self]:
        """With short debounce times and a task queue of its own, unless the changes say otherwise."""
        values: dict[str, Any] = {
            "database_url": conninfo,
            "temporal_address": temporal_address,
            "task_queue": uuid.uuid4().hex,
            "debounce_ms": 20,
            "debounce_max_ms": 200,
        }
        settings = Settings(**(values | changes))
        async with await psycopg.AsyncConnection.connect(conninfo, autocommit=True) as owner:
            yield cls(conninfo, owner, await connect_temporal(settings), settings)

    def changed(self, **changes: Any) -> Settings:
        """The settings with some changes."""
        values = {name: getattr(self.settings, name) for name in self.settings.model_fields_set}
        return Settings(**(values | changes))

    @asynccontextmanager
    async def running(self, **changes: Any) -> AsyncIterator[None]:
        """A listener and a worker in this process."""
        async with self.working(**changes), self.listening(**changes):
            yield

    @asynccontextmanager
    async def listening(self, **changes: Any) -> AsyncIterator[Listener]:
        """A listener in this process, as a role that has a listener's rights and no more."""
        async with self._role("evervec_listener") as conninfo:
            listener = Listener(self.changed(database_url=SecretStr(conninfo), **changes))
            await listener.start()
            try:
                yield listener
            finally:
                await listener.stop()

    @asynccontextmanager
    async def working(self, **changes: Any) -> AsyncIterator[None]:
        """A worker in this process, as a role that has a worker's rights and no more."""
        async with (
            self._role("evervec_worker") as conninfo,
            running_worker(self.changed(database_url=SecretStr(conninfo), **changes)),
        ):
            yield

    @asynccontextmanager
    async def _role(self, rights: str) -> AsyncIterator[str]:
        """A login with the rights of one of evervec's roles: its connection string."""
        name = sql.Identifier(f"{rights}_{uuid.uuid4().hex}")
        statement = "CREATE ROLE {} LOGIN PASSWORD 'secret' IN ROLE {}"
        await self.owner.execute(sql.SQL(statement).format(name, sql.Identifier(rights)))
        try:
            yield make_conninfo(self.conninfo, user=name.as_string().strip('"'), password="secret")
        finally:
            await self.owner.execute(sql.SQL("DROP ROLE {}").format(name))

    async def run(self, statement: str | sql.Composed, *parameters: object) -> list[tuple[Any, ...]]:
        """Execute what a test made up, as the owner; its rows, if it has any."""
        cursor = await self.owner.execute(cast("LiteralString", statement), parameters or None)
        return await cursor.fetchall() if cursor.description else []

    async def value(self, statement: str | sql.Composed, *parameters: object) -> Any:
        """The single value of a query."""
        [(found,)] = await self.run(statement, *parameters)
        return found

    async def safety_net(self) -> ScheduleHandle:
        """The schedule of the safety net, as soon as the listener has made it."""
        net = self.client.get_schedule_handle(schedule_id(await self.value("SELECT evervec.instance_id()")))

        async def made() -> bool:
            with suppress(RPCError):
                await net.describe()
                return True
            return False

        await until(made)
        return net

    async def status(self, source: str) -> dict[str, Any]:
        """The source's row of `evervec.status`."""
        cursor = self.owner.cursor(row_factory=psycopg.rows.dict_row)
        row = await (await cursor.execute("SELECT * FROM evervec.status WHERE source = %s", [source])).fetchone()
        return row or {}


class Row(NamedTuple):
    """A row of a watched table, with its text columns as they are and what is kept of its embedding."""

    key: str
    texts: list[str | None]
    active: bool
    vector: list[float] | None
    embedding_hash: str | None
    embedding_model: str | None


@dataclass
class Table:
    """A watched table. In statements {t} is the table, {e} the table that holds its embeddings."""

    site: Site
    name: str
    destination: str
    columns: Sequence[str] = ("name", "description")
    """The text columns; the first is required."""
    key: str = "id"
    model: str = MODEL
    dimension: int = DIMENSION
    prompt: str = ""

    @property
    def identifier(self) -> sql.Identifier:
        return sql.Identifier(self.name)

    @property
    def source(self) -> str:
        return self.name

    async def create(self, key_type: str = "bigint") -> None:
        """Make the table: a key, the text columns, `active` and another column."""
        columns = [sql.SQL("{} text").format(sql.Identifier(column)) for column in self.columns]
        statement = sql.SQL(
            "CREATE TABLE {} ({} {} PRIMARY KEY, {}, active boolean NOT NULL DEFAULT true, price numeric)"
        )
        await self.site.run(
            statement.format(
                self.identifier,
                sql.Identifier(self.key),
                sql.SQL(key_type),
                sql.SQL(", ").join(columns),
            )
        )

    async def watch(self, model: str | None = None, dimension: int | None = None, prompt: str | None = None) -> None:
        """Watch it, or alter the source."""
        self.model = model or self.model
        self.dimension = dimension or self.dimension
        self.prompt = self.prompt if prompt is None else prompt
        await self.site.run(
            "SELECT evervec.watch(%s::regclass, %s::name[], required => %s::name[], active => 'active', model => %s, "
            "dimension => %s, prompt => %s, destination => %s)",
            self.identifier.as_string(),
            list(self.columns),
            [self.columns[0]],
            self.model,
            self.dimension,
            self.prompt,
            self.destination,
        )

    async def do(self, statement: str, *parameters: object) -> list[tuple[Any, ...]]:
        """Run a statement on the table as its owner."""
        return await self.site.run(self.statement(statement), *parameters)

    def statement(self, statement: str) -> sql.Composed:
        """A statement with its names filled in."""
        side = sql.Identifier(f"{self.name}_embedding") if self.destination == "table" else self.identifier
        return sql.SQL(statement).format(t=self.identifier, e=side)

    async def fill(self, rows: int) -> None:
        """Insert rows with the keys 1 to `rows`, each with a text of its own."""
        await self.do("INSERT INTO {t} SELECT n, 'item ' || n, 'number ' || n FROM generate_series(1, %s) AS n", rows)

    async def outbox(self) -> list[tuple[Any, ...]]:
        """What waits: key, state, attempts and last error."""
        return await self.site.run(
            "SELECT item_key, state, attempts, last_error FROM evervec.outbox WHERE source = %s ORDER BY item_key",
            self.source,
        )

    async def settled(self, seconds: float = WAIT_SECONDS) -> None:
        """Wait until nothing is pending."""

        async def done() -> bool:
            return bool(
                await self.site.value(
                    "SELECT NOT s.filling AND NOT EXISTS (SELECT FROM evervec.outbox o WHERE o.source = s.name "
                    "AND o.state = 'pending') FROM evervec.source s WHERE s.name = %s",
                    self.source,
                )
            )

        try:
            await until(done, seconds)
        except TimeoutError:
            raise AssertionError(f"still waiting: {(await self.outbox())[:5]}") from None

    async def rows(self) -> list[Row]:
        """All rows in the order of their keys."""
        where = self.statement("FROM {t} AS t" if self.destination == "column" else "FROM {t} AS t LEFT JOIN {e} AS e")
        key = sql.Identifier(self.key)
        on = sql.SQL("" if self.destination == "column" else " USING ({})").format(key)
        query = sql.SQL(
            "SELECT t.{}::text, ARRAY[{}], active, embedding::real[], embedding_hash, embedding_model "
            "{}{} ORDER BY t.{}"
        ).format(key, sql.SQL(", ").join(map(sql.Identifier, self.columns)), where, on, key)
        return [Row(*row) for row in await self.site.run(query)]

    async def vectors(self) -> dict[str, list[float] | None]:
        """The stored vectors by their keys."""
        return {row.key: row.vector for row in await self.rows()}

    async def fresh(self, seconds: float = WAIT_SECONDS) -> list[Row]:
        """Wait until nothing is pending and check that every eligible row has the vector of its content."""
        await self.settled(seconds)
        rows = await self.rows()
        eligible = [row for row in rows if row.active and (row.texts[0] or "").strip()]
        for row in eligible:
            assert row.vector is not None, f"{row.key} has no vector"
            np.testing.assert_allclose(row.vector, self.embed(content_of(row)), rtol=1e-6, err_msg=row.key)
        assert await self.outbox() == []
        status = await self.site.status(self.source)
        counts = {
            name: status[name] for name in ("total", "eligible", "fresh", "stale", "pending", "failed", "coverage")
        }
        assert counts == {
            "total": len(rows),
            "eligible": len(eligible),
            "fresh": len(eligible),
            "stale": 0,
            "pending": 0,
            "failed": 0,
            "coverage": 1.0,
        }
        if self.destination == "table":
            orphans = self.statement("SELECT count(*) FROM {e} AS e WHERE NOT EXISTS (SELECT FROM {t} AS t WHERE t.")
            key = sql.SQL("{0} = e.{0})").format(sql.Identifier(self.key))
            assert await self.site.value(orphans + key) == 0
        return rows

    def embed(self, text: str) -> Vectors:
        """What the model itself makes of a content."""
        vector: Vectors = StubEmbedder(self.dimension).encode([text], self.prompt)[0]
        return vector


def content_of(row: Row) -> str:
    """An item's content, written down once more: the test must not take it from the code under test."""
    return " | ".join(text for text in row.texts if text and text.strip())


async def new_table(site: Site, destination: str, **options: Any) -> Table:
    """A table that no other test uses, watched."""
    key_type = options.pop("key_type", "bigint")
    table = Table(site, options.pop("name", f"items {next(_number)}"), destination, **options)
    await table.create(key_type)
    await table.watch()
    return table


class Gate:
    """Holds the embedder at a text."""

    def __init__(self) -> None:
        self.reached = threading.Event()
        self.opened = threading.Event()


@dataclass
class Encodings:
    """What the stub was given to encode, one entry for each text of each call."""

    texts: list[str] = field(default_factory=list)
    gates: dict[str, Gate] = field(default_factory=dict)

    def of(self, word: str) -> list[str]:
        """The encoded texts that hold the word, in order."""
        return [text for text in self.texts if word in text]

    @contextmanager
    def held(self, *texts: str) -> Iterator[Gate]:
        """Have the embedder wait, when it comes to one of the texts, until the gate is opened or the block ends."""
        gate = Gate()
        self.gates |= dict.fromkeys(texts, gate)
        try:
            yield gate
        finally:
            gate.opened.set()
            for text in texts:
                del self.gates[text]


class CountedStub(StubEmbedder):
    """The stub, which tells what it encodes and can be held."""

    encodings: ClassVar[Encodings] = Encodings()

    def encode(self, texts: Sequence[str], prompt: str) -> Vectors:
        for text in texts:
            self.encodings.texts.append(text)
            if gate := self.encodings.gates.get(text):
                gate.reached.set()
                assert gate.opened.wait(WAIT_SECONDS)
        return super().encode(texts, prompt)
