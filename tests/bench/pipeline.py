"""The whole pipeline for one measurement: a fresh database, a fresh Temporal server, listener and worker processes."""

import asyncio
import itertools
import signal
import tempfile
import time
import uuid
from collections.abc import AsyncIterator, Iterable, Iterator
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any, Self

import psutil
import psycopg
from psycopg import sql
from temporalio.client import WorkflowExecution, WorkflowExecutionStatus
from temporalio.service import RPCError, RPCStatusCode

from cli.stack.postgres import PostgresServer
from cli.stack.temporal import TemporalServer
from db.connection import Pool, open_pool
from db.schema import apply_schema
from db.sources import Sources
from evervec.model import ModelSpec
from evervec.temporal import sweep_workflow_id
from service.refire import refire
from tests.integration.pipeline import Site, until
from tests.integration.program import Program

SOURCE = "items"
OPTIONS = {
    # As one sets up a server for millions of rows; and no checkpoint falls on one side of a comparison.
    "shared_buffers": "1GB",
    "max_wal_size": "16GB",
    "checkpoint_timeout": "1h",
}
READY_SECONDS = 300.0
"""Until a worker has loaded its model, and perhaps compared some backends."""
DONE_SECONDS = 7_200.0
POLL_SECONDS = 0.02
FAILURES_SECONDS = 10.0
"""How often it is looked whether items failed."""


@contextmanager
def _folder() -> Iterator[Path]:
    """A temporary folder that the user under whom PostgreSQL runs can reach."""
    with tempfile.TemporaryDirectory(prefix="evervec-bench-", ignore_cleanup_errors=True) as name:
        Path(name).chmod(0o755)
        yield Path(name)


class Servers:
    """PostgreSQL for the whole run, and one temporary folder for all that the run writes."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.postgres = PostgresServer(folder / "postgres", options=OPTIONS)

    @classmethod
    @asynccontextmanager
    async def running(cls) -> AsyncIterator[Self]:
        """PostgreSQL, until the block ends."""
        with _folder() as folder:
            servers = cls(folder)
            await servers.postgres.start()
            try:
                yield servers
            finally:
                await servers.postgres.stop()

    @asynccontextmanager
    async def pipeline(self, model: ModelSpec, **settings: Any) -> AsyncIterator["Pipeline"]:
        """A database, and Temporal; the measurement starts the processes, which end with the block."""
        name = f"bench_{uuid.uuid4().hex[:8]}"
        folder = self.folder / name
        folder.mkdir()
        temporal = TemporalServer(folder / "temporal.db")
        await temporal.start()
        await self.postgres.create_database(name)
        conninfo = self.postgres.conninfo(name)
        await apply_schema(conninfo)
        values = {"debounce_ms": 100, "debounce_max_ms": 1000}
        try:
            async with (
                Site.open(conninfo, temporal.address, **(values | settings)) as site,
                AsyncExitStack() as processes,
            ):
                yield Pipeline(site, model, folder, processes)
        finally:
            await temporal.stop()
            await self._drop(name)

    async def _drop(self, database: str) -> None:
        async with await psycopg.AsyncConnection.connect(self.postgres.conninfo("postgres"), autocommit=True) as owner:
            await owner.execute(sql.SQL("DROP DATABASE {} WITH (FORCE)").format(sql.Identifier(database)))


class Pipeline:
    """The table `items (id, body, price)` and what keeps its embeddings."""

    def __init__(self, site: Site, model: ModelSpec, folder: Path, processes: AsyncExitStack) -> None:
        self.site = site
        self.model = model
        self._folder = folder
        self._processes = processes
        self._number = itertools.count(1)
        self._failures_at = 0.0

    async def create(self) -> None:
        """Make the table and watch it."""
        await self.site.run("CREATE TABLE items (id bigint PRIMARY KEY, body text, price int NOT NULL DEFAULT 0)")
        await self.site.run(
            "SELECT evervec.watch('items', '{body}', model => %s, dimension => %s)",
            self.model.name,
            self.model.dimension,
        )

    async def insert(self, texts: Iterable[str], *, first: int = 1) -> None:
        """Insert rows with these texts and the keys from `first` on."""
        async with self.site.owner.cursor().copy("COPY items (id, body) FROM STDIN") as copy:
            for key, text in enumerate(texts, start=first):
                await copy.write_row((key, text))

    async def start_worker(self, module: str = "cli.main", **environment: str) -> Program:
        """A worker process that has loaded its model."""
        program = self._start("worker", module, **environment)
        await program.logged("model loaded", READY_SECONDS)
        return program

    async def start_listener(self) -> Program:
        """A listener process that leads."""
        program = self._start("listener")
        await program.logged("listener leads")
        return program

    def _start(self, command: str, module: str = "cli.main", **environment: str) -> Program:
        log = self._folder / f"{command}-{next(self._number)}.log"
        program = Program(command, self.site.settings, log, module, **environment)
        self._processes.push_async_callback(program.end, signal.SIGKILL)
        return program

    async def settled(self) -> None:
        """Wait until nothing is pending, and no sweep is open that would do the next work without being started."""

        async def done() -> bool:
            return not await self.site.value("SELECT filling FROM evervec.source") and await self._swept()

        await self._emptied()
        await until(done, DONE_SECONDS)

    async def backfill(self, predicate: str = "true") -> float:
        """Have rows embedded anew, as `evervec regenerate` does: seconds from the re-fire to the empty outbox."""
        async with self._pool() as pool:
            started = time.perf_counter()
            await _refire(pool, predicate)
            await self._emptied()
            return time.perf_counter() - started

    async def regenerate(self, predicate: str) -> None:
        """Have rows embedded anew again and again, whatever else waits, until cancelled."""

        async def done() -> bool:
            return not await self.site.value("SELECT EXISTS (SELECT FROM evervec.outbox WHERE forced)")

        async with self._pool() as pool:
            while True:
                await _refire(pool, predicate)
                await until(done, DONE_SECONDS)

    def _pool(self) -> AbstractAsyncContextManager[Pool]:
        return open_pool(self.site.settings.database_conninfo, size=1, application_name="evervec bench")

    async def _emptied(self) -> None:
        """Wait until the outbox is empty; an AssertionError when items failed."""
        deadline = time.monotonic() + DONE_SECONDS
        while True:
            asked = time.monotonic()
            # One row tells: a count of a million would be measured as well.
            waiting = await self.site.run("SELECT item_key FROM evervec.outbox WHERE source = %s LIMIT 1", SOURCE)
            if not waiting:
                return
            answered = time.monotonic()
            assert answered < deadline, "the outbox does not get empty"
            if answered > self._failures_at:
                self._failures_at = answered + FAILURES_SECONDS
                failed = await self.site.run("SELECT item_key, last_error FROM evervec.failures LIMIT 3")
                assert not failed, f"items failed: {failed}"
            await asyncio.sleep(max(POLL_SECONDS, 5 * (answered - asked)))

    async def _swept(self) -> bool:
        """Whether no sweep of the source is open."""
        instance = await self.site.value("SELECT evervec.instance_id()")
        try:
            found = await self.site.client.get_workflow_handle(sweep_workflow_id(instance, SOURCE)).describe()
        except RPCError as error:
            if error.status is not RPCStatusCode.NOT_FOUND:
                raise
            return True
        return found.status is not WorkflowExecutionStatus.RUNNING

    async def events(self, workflow_type: str | None = None) -> int:
        """How many events the histories of all workflows hold, or of those of one type."""
        query = f"WorkflowType = '{workflow_type}'" if workflow_type else None
        return sum([await self._length(found) async for found in self.site.client.list_workflows(query)])

    async def _length(self, found: WorkflowExecution) -> int:
        """A list is told the length of a history only when it has ended."""
        if found.status is WorkflowExecutionStatus.RUNNING:
            handle = self.site.client.get_workflow_handle(found.id, run_id=found.run_id)
            found = await handle.describe()
        return found.history_length


async def _refire(pool: Pool, predicate: str) -> None:
    async for _progress in refire(Sources(pool), SOURCE, predicate=predicate, force=True):
        pass


def peak_mb(program: Program) -> float:
    """The most memory that the process ever had resident, in MB of 1,000,000 bytes."""
    status = Path(f"/proc/{program.pid}/status").read_text(encoding="ascii")
    [kilobytes] = [line.split()[1] for line in status.splitlines() if line.startswith("VmHWM:")]
    return int(kilobytes) * 1024 / 1e6


def cpu_seconds(program: Program) -> float:
    """Processor time that the process has used."""
    times = psutil.Process(program.pid).cpu_times()
    return float(times.user + times.system)
