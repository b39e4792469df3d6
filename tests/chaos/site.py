"""The servers, the processes and the watched tables that a run is about."""

import asyncio
import tempfile
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import psycopg
from psycopg.conninfo import make_conninfo

from cli.stack.postgres import PostgresServer
from cli.stack.temporal import TemporalServer
from db.schema import apply_schema
from evervec.settings import Settings
from tests.chaos.post import Post
from tests.integration.listener_lab import Proxy

OPTIONS = {
    # The smallest there is, so that it can be filled.
    "max_notify_queue_pages": "64",
    "max_connections": "200",
}
LOCKS = (PostgresServer.name, TemporalServer.name, "queue", "second listener", "second worker")
AFTERMATH_SECONDS = 5.0
"""So long after PostgreSQL is back a writer may still come upon a connection that died with it."""
TABLE = """
    CREATE TABLE {table} (
        id bigint PRIMARY KEY, name text, description text, active boolean NOT NULL DEFAULT true, price numeric
    );
    SELECT evervec.watch(
        '{table}', '{{name,description}}', required => '{{name}}', active => 'active', model => '{model}',
        destination => '{destination}')
"""


@dataclass(frozen=True)
class Watched:
    """A watched table."""

    name: str
    model: str
    dimension: int
    destination: str

    @property
    def query(self) -> str:
        """Its rows: id, texts, active, vector and the hash of what was embedded."""
        side = f"{self.name}_embedding"
        joined, e = (f"LEFT JOIN {side} AS e USING (id)", "e") if self.destination == "table" else ("", "t")
        return (
            f"SELECT id, name, description, active, {e}.embedding::real[], {e}.embedding_hash "
            f"FROM {self.name} AS t {joined} ORDER BY id"
        )


TABLES = (
    Watched("goods", "bundled:use-multilingual-v3", 512, "column"),
    Watched("wares", "stub:64", 64, "table"),
)

QUICK_TABLES = (Watched("goods", "stub:32", 32, "column"), Watched("wares", "stub:64", 64, "table"))
"""For a short run, whose time is not to go into a model."""


class Site:
    """PostgreSQL and Temporal with their data in files, listeners behind a proxy each, workers, and tables."""

    def __init__(self, folder: Path, tables: tuple[Watched, ...]) -> None:
        self.folder = folder
        self.tables = tables
        self.postgres = PostgresServer(folder / "postgres", options=OPTIONS)
        self.temporal = TemporalServer(folder / "temporal" / "temporal.db", log_file=folder / "temporal.log")
        self.proxies: list[Proxy] = []
        self.listeners: list[Post] = []
        self.workers: list[Post] = []
        self.busy = {name: asyncio.Lock() for name in LOCKS}
        """Held by the fault that is there."""
        self.disturbances = 0
        """Faults of PostgreSQL itself that are under way."""
        self._disturbed_at = float("-inf")

    @classmethod
    @asynccontextmanager
    async def open(cls, tables: tuple[Watched, ...], folder: Path) -> AsyncIterator[Self]:
        """Servers that run, tables that are watched, and posts for two listeners and two workers, none at work yet."""
        site = cls(folder, tables)
        async with AsyncExitStack() as ending:
            ending.push_async_callback(site.postgres.stop)
            ending.push_async_callback(site.temporal.stop)
            await asyncio.gather(site.postgres.start(), site.temporal.start())
            await apply_schema(site.conninfo)
            async with await psycopg.AsyncConnection.connect(site.conninfo, autocommit=True) as owner:
                for table in tables:
                    await owner.execute(
                        TABLE.format(table=table.name, model=table.model, destination=table.destination)
                    )
            for number in (1, 2):
                proxy = await ending.enter_async_context(site._proxy())
                through = make_conninfo(site.conninfo, host="127.0.0.1", port=proxy.port)
                site.listeners.append(Post("listener", number, site.settings(database_url=through), folder))
                site.workers.append(Post("worker", number, site.settings(), folder))
            for post in site.posts:
                ending.push_async_callback(post.close)
            yield site

    @property
    def conninfo(self) -> str:
        """The database, as its owner."""
        return self.postgres.conninfo()

    @property
    def posts(self) -> list[Post]:
        """The places of all processes."""
        return [*self.listeners, *self.workers]

    def settings(self, **changes: Any) -> Settings:
        """What a process is told: both lanes in use, and workflows that end while others go on."""
        values: dict[str, Any] = {
            "database_url": self.conninfo,
            "temporal_address": self.temporal.address,
            "sweep_threshold": 16,
            "item_idle_seconds": 30,
        }
        return Settings(**(values | changes))

    @asynccontextmanager
    async def _proxy(self) -> AsyncIterator[Proxy]:
        proxy = Proxy("127.0.0.1", self.postgres.port or 0)
        await proxy.start()
        self.proxies.append(proxy)
        try:
            yield proxy
        finally:
            await proxy.stop()

    @contextmanager
    def disturbed(self) -> Iterator[None]:
        """While the block runs, and shortly after, connections are lost by no fault of evervec's."""
        self.disturbances += 1
        try:
            yield
        finally:
            self.disturbances -= 1
            self._disturbed_at = time.monotonic()

    @property
    def is_disturbed(self) -> bool:
        """Whether a connection may be lost now."""
        return self.disturbances > 0 or time.monotonic() - self._disturbed_at < AFTERMATH_SECONDS

    def died_with_postgres(self, made_at: float) -> bool:
        """Whether a connection that was made then cannot have lived on, however late that is noticed."""
        return made_at < self._disturbed_at

    async def run(self, statement: str, *parameters: object) -> list[tuple[Any, ...]]:
        """Execute a statement on a connection of its own; its rows."""
        async with await psycopg.AsyncConnection.connect(self.conninfo, autocommit=True) as connection:
            cursor = await connection.execute(statement, parameters or None)
            return await cursor.fetchall() if cursor.description else []

    async def pending(self) -> int:
        """How many items wait, those among them that a first fill has yet to enqueue counted as one."""
        [(count,)] = await self.run(
            "SELECT (SELECT count(*) FROM evervec.outbox WHERE state = 'pending') "
            "+ (SELECT count(*) FROM evervec.source WHERE filling)"
        )
        return int(count)

    async def oldest(self) -> str:
        """Some of what has waited longest."""
        rows = await self.run(
            "SELECT source, item_key, extract(epoch FROM now() - queued_at)::int, attempts, last_error "
            "FROM evervec.outbox WHERE state = 'pending' ORDER BY queued_at LIMIT 3"
        )
        return ", ".join(
            f"{source} {key} for {age} s{f', {attempts} attempts: {error}' if error else ''}"
            for source, key, age, attempts, error in rows
        )


@contextmanager
def temporary_folder() -> Iterator[Path]:
    """A folder that the user under whom PostgreSQL runs can reach."""
    with tempfile.TemporaryDirectory(prefix="evervec-chaos-", ignore_cleanup_errors=True) as name:
        Path(name).chmod(0o755)
        yield Path(name)
