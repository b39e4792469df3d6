"""A table, a listener, and what it told Temporal."""

import asyncio
import os
import sys
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from typing import Any, LiteralString, Self

import psycopg
from psycopg.conninfo import make_conninfo
from temporalio.api.enums.v1 import EventType
from temporalio.client import Client, ScheduleActionStartWorkflow
from temporalio.service import RPCError

from evervec.schedule import schedule_id
from evervec.settings import Settings
from evervec.temporal import item_workflow_id, sweep_is_open
from listener.daemon import Listener
from listener.status import Role
from service.worker import running_worker

TABLE = """
    CREATE TABLE items (id bigint PRIMARY KEY, name text, active boolean DEFAULT true);
    GRANT ALL ON items TO PUBLIC
"""
CONNECTIONS = "FROM pg_stat_activity WHERE application_name = 'evervec listener' AND datname = current_database()"
EVERY_BELL = "SELECT pg_advisory_xact_lock(731031240, second) FROM generate_series(0, 59) AS second"
"""Holds the bell of every transaction."""
WATCH = "SELECT evervec.watch('items', '{name}', model => 'stub:4', active => 'active')"
WATCH_FILLED = f"{WATCH}; UPDATE evervec.source SET filling = false"
"""Without a first fill, which begins with the listener: what is written at that moment it may enqueue once more."""
LEADERS_CONNECTIONS = 5


def settings_of(database_url: str, temporal_address: str, **changes: Any) -> Settings:
    """Settings with short times."""
    values = {"database_url": database_url, "temporal_address": temporal_address}
    return Settings(**(values | {"debounce_ms": 20, "debounce_max_ms": 200} | changes))


async def eventually(condition: Callable[[], Awaitable[object]] | Callable[[], object], seconds: float = 15) -> None:
    """Wait until the condition holds."""
    async with asyncio.timeout(seconds):
        while True:
            holds = condition()
            if await holds if isinstance(holds, Awaitable) else holds:
                return
            await asyncio.sleep(0.02)


async def quiet(lab: "Lab", listener: Listener) -> None:
    """Wait until all that was rung so far is heard and on its way, and no hush for it is asked for or under way."""
    before = listener.status().garbage
    await lab.do("SELECT pg_notify('evervec', 'after all the others')")

    def all_done() -> bool:
        on_the_way_out = listener.status().waiting or listener._router._in_hand
        return listener.status().garbage > before and not (on_the_way_out or listener._hush._wanted.is_set())

    await eventually(all_done)


class Lab:
    """One database, seen by its owner and by Temporal."""

    def __init__(
        self, conninfo: str, owner_conninfo: str, owner: psycopg.AsyncConnection, client: Client, instance: str
    ) -> None:
        self.conninfo = conninfo
        self.owner_conninfo = owner_conninfo
        self.owner = owner
        self.client = client
        self.instance = instance

    @classmethod
    @asynccontextmanager
    async def open(cls, conninfo: str, temporal_address: str) -> AsyncIterator["Lab"]:
        """With the table `items`, not yet watched, and a role with a listener's rights alone."""
        role = f"listener_{uuid.uuid4().hex}"
        client = await Client.connect(temporal_address)
        async with await psycopg.AsyncConnection.connect(conninfo, autocommit=True) as owner:
            [(instance,)] = await (await owner.execute("SELECT evervec.instance_id()")).fetchall()
            await owner.execute(TABLE)
            await owner.execute(f"CREATE ROLE {role} LOGIN PASSWORD 'secret' IN ROLE evervec_listener")
            try:
                yield cls(make_conninfo(conninfo, user=role, password="secret"), conninfo, owner, client, instance)
            finally:
                await owner.execute(f"DROP ROLE {role}")

    def settings(self, **changes: Any) -> Settings:
        """A listener's settings, with a role that has a listener's rights and no more."""
        address = self.client.service_client.config.target_host
        values = {"database_url": self.conninfo, "temporal_address": address, "task_queue": self.instance}
        return settings_of(**(values | changes))

    @asynccontextmanager
    async def listener(self, role: Role = Role.LEADING, **changes: Any) -> AsyncIterator[Listener]:
        """A listener that has come as far as `role`."""
        listener = Listener(self.settings(**changes))
        await listener.start()
        try:
            await eventually(lambda: listener.status().role is role)
            yield listener
        finally:
            await listener.stop()

    @asynccontextmanager
    async def process(self) -> AsyncIterator[asyncio.subprocess.Process]:
        """`evervec listener`, a process of its own that leads."""
        environment = os.environ | {
            "EVERVEC_DATABASE_URL": self.conninfo,
            "EVERVEC_TEMPORAL_ADDRESS": self.client.service_client.config.target_host,
            "EVERVEC_TASK_QUEUE": self.instance,
        }
        command = (sys.executable, "-c", "from cli.main import run; run()", "listener")
        process = await asyncio.create_subprocess_exec(*command, env=environment)
        try:
            await eventually(self.is_led, seconds=60)  # a busy machine takes long to import all that it needs
            yield process
        finally:
            if process.returncode is None:
                process.kill()
                await process.wait()

    @asynccontextmanager
    async def worker(self, **changes: Any) -> AsyncIterator[None]:
        """A worker, as the owner of the database."""
        async with running_worker(self.settings(**({"database_url": self.owner_conninfo} | changes))):
            yield

    async def all_fresh(self) -> bool:
        """Whether there are items, and each has the vector of its content."""
        rows = await self.owner.execute(
            "SELECT embedding_hash IS NOT NULL AND o IS NULL FROM items"
            " LEFT JOIN evervec.outbox o ON o.source = 'items' AND o.item_key = items.id::text"
        )
        fresh = [fresh for (fresh,) in await rows.fetchall()]
        return bool(fresh) and all(fresh)

    async def verified(self) -> bool:
        """Whether each row has the vector of its content, by the content itself."""
        rows = await self.owner.execute("SELECT eligible = fresh AND total > 10 FROM evervec.count_items('items')")
        return await rows.fetchall() == [(True,)]

    async def waits(self) -> bool:
        """Whether anything is in the outbox."""
        return bool(await (await self.owner.execute("SELECT FROM evervec.outbox")).fetchall())

    async def counters_know(self) -> bool:
        """Whether PostgreSQL's counters know of this session's last rows."""
        await self.owner.execute("SELECT pg_stat_force_next_flush()")
        rows = await self.owner.execute("SELECT pg_stat_get_tuples_inserted('items'::regclass) >= 30")
        return await rows.fetchall() == [(True,)]

    async def do(self, statement: LiteralString, *parameters: object) -> None:
        """Run a statement as the owner."""
        await self.owner.execute(statement, parameters or None)

    async def signals(self, key: str, source: str = "items") -> int:
        """How many signals the item's workflow got."""
        handle = self.client.get_workflow_handle(item_workflow_id(self.instance, source, key))
        with suppress(RPCError):
            events = (await handle.fetch_history()).events
            return sum(event.event_type == EventType.EVENT_TYPE_WORKFLOW_EXECUTION_SIGNALED for event in events)
        return 0

    async def sweep_is_open(self, source: str = "items") -> bool:
        """Whether the source's sweep is at work."""
        return await sweep_is_open(self.client, self.instance, source)

    async def bell_is_free(self) -> bool:
        """Whether somebody who writes now can ring."""
        rows = await self.owner.execute("SELECT pg_try_advisory_xact_lock(731031240, evervec.bell(now()))")
        return await rows.fetchone() == (True,)

    async def safety_net(self, task_queue: str) -> None:
        """Wait until there is the safety net's schedule, for this task queue."""

        async def made() -> bool:
            with suppress(RPCError):
                net = await self.client.get_schedule_handle(schedule_id(self.instance)).describe()
                action = net.schedule.action
                return isinstance(action, ScheduleActionStartWorkflow) and action.task_queue == task_queue
            return False

        await eventually(made)

    async def signalled(self, *keys: object) -> None:
        """Wait until the workflows of all these items were signalled."""
        for key in keys:
            await eventually(lambda key=key: self.signals(str(key)))

    async def counted(self, source: str, rows: int) -> bool:
        """Whether the last whole count of a source found so many rows."""
        query = "SELECT FROM evervec.total WHERE source = %s AND done AND total = %s"
        return bool(await (await self.owner.execute(query, (source, rows))).fetchall())

    async def waiting(self, source: str, rows: int) -> bool:
        """Whether so many rows were counted in the outbox."""
        query = "SELECT FROM evervec.backlog WHERE source = %s AND waiting = %s"
        return bool(await (await self.owner.execute(query, (source, rows))).fetchall())

    async def connections(self) -> int:
        """How many connections listeners have to the database."""
        [(count,)] = await (await self.owner.execute(f"SELECT count(*) {CONNECTIONS}")).fetchall()
        return int(count)

    async def is_led(self) -> bool:
        """Whether a listener has made all the connections with which it leads."""
        return await self.connections() == LEADERS_CONNECTIONS

    async def cut(self) -> int:
        """Cut all connections of listeners to the database; returns how many there were."""
        cursor = await self.owner.execute(f"SELECT pg_terminate_backend(pid) {CONNECTIONS}")
        return len(await cursor.fetchall())


class Proxy:
    """Stands before a server on a port of its own, until the block ends."""

    def __init__(self, host: str, port: int) -> None:
        self._target = (host, port)
        self._server: asyncio.Server | None = None
        self._port = 0
        self._links: set[asyncio.Task[None]] = set()
        self._stranded: set[asyncio.Task[None]] = set()
        self._open = _opened()

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.stop()

    @property
    def address(self) -> str:
        """host:port."""
        return f"127.0.0.1:{self._port}"

    @property
    def port(self) -> int:
        """The port alone."""
        return self._port

    async def start(self) -> None:
        """Take connections, on the same port as before."""
        self._server = await asyncio.start_server(self._link, "127.0.0.1", self._port)
        self._port = self._server.sockets[0].getsockname()[1]

    async def stop(self) -> None:
        """Cut all connections and take no more."""
        assert self._server
        self._server.close()
        await _cut(self._links)
        await self._server.wait_closed()

    def freeze(self) -> None:
        """Keep the connections, let nothing through: what a network does whose cable was pulled."""
        self._open.clear()

    def thaw(self) -> None:
        """Let everything through again."""
        self._open.set()

    def strand(self) -> None:
        """Let nothing through any more of the connections that there are, not even their end; new ones work."""
        self._stranded |= self._links
        self._open.clear()
        self._open = _opened()

    async def cut_stranded(self) -> None:
        """Cut what was stranded: at last both ends learn of it."""
        await _cut(self._stranded)

    async def _link(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task
        self._links.add(task)
        gate = self._open
        there: asyncio.StreamWriter | None = None
        try:
            back, there = await asyncio.open_connection(*self._target)
            async with asyncio.TaskGroup() as group:
                group.create_task(_copy(reader, there, gate))
                group.create_task(_copy(back, writer, gate))
        except* (OSError, asyncio.CancelledError):
            pass
        finally:
            self._links.discard(task)
            self._stranded.discard(task)
            for end in (writer, there):
                if end:
                    end.close()


def _opened() -> asyncio.Event:
    gate = asyncio.Event()
    gate.set()
    return gate


async def _cut(links: set[asyncio.Task[None]]) -> None:
    cut = tuple(links)
    for link in cut:
        link.cancel()
    await asyncio.gather(*cut, return_exceptions=True)


async def _copy(source: asyncio.StreamReader, target: asyncio.StreamWriter, gate: asyncio.Event) -> None:
    while data := await source.read(65536):
        await gate.wait()
        target.write(data)
        await target.drain()
    await gate.wait()  # that a connection has ended is news as well
    target.close()
