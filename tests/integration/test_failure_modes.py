"""What goes wrong around evervec: what happens, what is told, how it heals. docs/failure-modes.md has the table."""

import asyncio
import subprocess
import uuid
from collections.abc import AsyncIterator, Mapping, MutableMapping, Sequence
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any

import psycopg
import pytest
from psycopg import sql
from psycopg.conninfo import conninfo_to_dict
from structlog.testing import capture_logs

from cli.stack.postgres import PostgresServer
from db.schema import apply_schema
from evervec.temporal import start_sweep_workflow
from tests.conftest import VERSION, in_database
from tests.integration.listener_lab import Proxy
from tests.integration.pipeline import DESTINATIONS, Site, Table, new_table, until

DESTINATION = pytest.mark.parametrize("destination", DESTINATIONS)
Logs = Sequence[MutableMapping[str, Any] | Mapping[str, Any]]


@pytest.fixture
async def site(database: str, temporal_address: str) -> AsyncIterator[Site]:
    async with Site.open(database, temporal_address, max_attempts=1) as site:
        yield site


async def told(logs: Logs, *words: str) -> None:
    """Wait for a line of the log that holds all the words."""
    await until(lambda: any(all(word in str(line) for word in words) for line in logs))


async def assert_waits(table: Table, *keys: str) -> None:
    """These items wait, and no attempt at them was counted."""
    assert [row[:3] for row in await table.outbox()] == [(key, "pending", 0) for key in keys]


# ---- the write-back is refused, and no row is to blame ------------------------------------------------------------


async def interfere(table: Table, statement: str) -> None:
    """Run a statement in every write-back, within the server."""
    await table.site.run(
        f"CREATE FUNCTION interfere() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN {statement}; RETURN NEW; END $$"
    )
    await table.do("CREATE TRIGGER interfere BEFORE INSERT OR UPDATE ON {e} FOR EACH ROW EXECUTE FUNCTION interfere()")


@pytest.mark.parametrize(
    ("sweep_threshold", "sqlstate"), [(1, "53100"), (64, "53200")], ids=["disk full, sweep", "out of memory, live"]
)
async def test_what_the_server_lacks_is_waited_for(site: Site, sweep_threshold: int, sqlstate: str) -> None:
    table = await new_table(site, "table")
    await interfere(table, f"RAISE 'no' USING ERRCODE = '{sqlstate}'")
    async with site.running(sweep_threshold=sweep_threshold):
        with capture_logs() as logs:
            await table.fill(3)
            await told(logs, "not embedded", f"DatabaseError [{sqlstate}]")
        await assert_waits(table, "1", "2", "3")
        await table.do("DROP TRIGGER interfere ON {e}")
        await table.fresh()


@pytest.mark.parametrize(
    "sweep_threshold", [pytest.param(1, id="sweep"), pytest.param(64, id="live", marks=pytest.mark.long)]
)
async def test_a_statement_timeout_is_waited_out(site: Site, sweep_threshold: int) -> None:
    table = await new_table(site, "table")
    await interfere(table, "PERFORM pg_sleep(5)")
    await site.run(f"ALTER DATABASE {conninfo_to_dict(site.conninfo)['dbname']} SET statement_timeout = '500ms'")
    async with site.running(sweep_threshold=sweep_threshold):
        with capture_logs() as logs:
            await table.fill(3)
            await told(logs, *(["batch done", "'locked': 3"] if sweep_threshold == 1 else ["item waits", "ItemLocked"]))
        await assert_waits(table, "1", "2", "3")
        await table.do("DROP TRIGGER interfere ON {e}")
        await table.fresh()


# ---- PostgreSQL ---------------------------------------------------------------------------------------------------


async def make_read_only(site: Site, on: bool) -> None:
    """Have the database take no writes, as a standby or a provider who is out of disk does; or take them again."""
    name = conninfo_to_dict(site.conninfo)["dbname"]
    await site.run("SET default_transaction_read_only = off")
    await site.run(f"ALTER DATABASE {name} SET default_transaction_read_only = {'on' if on else 'off'}")
    if on:
        await site.run(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity "
            "WHERE datname = current_database() AND pid <> pg_backend_pid()"
        )


async def test_a_database_that_is_read_only_is_waited_for(site: Site) -> None:
    table = await new_table(site, "column")
    async with site.running():
        await table.fill(1)
        await table.fresh()
        with capture_logs() as logs:
            await make_read_only(site, on=True)
            await table.do("INSERT INTO {t} VALUES (2, 'written just before')")
            await told(logs, "PostgreSQL takes no writes: it is a standby, or was made read-only")
            instance = await site.value("SELECT evervec.instance_id()")
            await start_sweep_workflow(site.client, site.settings, instance, table.source)
            await told(logs, "batch not embedded", "ServiceUnreachableError")
        await assert_waits(table, "2")
        # Connections that were made meanwhile would stay read-only: both processes make new ones by themselves.
        await make_read_only(site, on=False)
        await table.fresh()


# ---- Temporal -----------------------------------------------------------------------------------------------------


@pytest.mark.long
@pytest.mark.timeout(480)
async def test_temporal_is_away_for_longer_than_every_timeout(site: Site) -> None:
    """Longer than a heartbeat may be missing, than a client tries again, and than a poll lasts."""
    host, _, port = site.settings.temporal_address.rpartition(":")
    proxy = Proxy(host, int(port))
    await proxy.start()
    tables = [await new_table(site, destination) for destination in DESTINATIONS]
    async with site.running(temporal_address=proxy.address):
        for table in tables:
            await table.fill(200)
            await table.fresh()
        with capture_logs() as logs:
            await proxy.stop()
            for table in tables:
                await table.do("UPDATE {t} SET name = 'while it is away ' || id WHERE id < 100")
            await told(logs, "Temporal is away")
            await asyncio.sleep(90)
            await proxy.start()
            await told(logs, "Temporal is back")
            for table in tables:
                await table.fresh()
    await proxy.stop()


# ---- what people do to the database -------------------------------------------------------------------------------


@DESTINATION
async def test_pgvector_is_dropped(site: Site, destination: str) -> None:
    table = await new_table(site, destination)
    await table.fill(3)
    async with site.running():
        await table.fresh()
        with pytest.raises(psycopg.errors.DependentObjectsStillExist):
            await site.run("DROP EXTENSION vector")
        await site.run("SET client_min_messages = error")
        await site.run("DROP EXTENSION vector CASCADE")
        # The triggers name the column that went with it.
        with pytest.raises(psycopg.errors.UndefinedColumn):
            await table.do("UPDATE {t} SET name = 'edited' WHERE id = 1")
        with pytest.raises(psycopg.errors.UndefinedObject, match="pgvector is not installed"):
            await table.watch()
        await site.run("CREATE EXTENSION vector")
        if destination == "table":
            with pytest.raises(psycopg.errors.DuplicateTable):
                await table.watch()
            await table.do("DROP TABLE {e}")
        await table.watch()
        await table.do("UPDATE {t} SET name = 'edited' WHERE id = 1")
        await table.fresh()


@DESTINATION
async def test_a_table_is_dropped_and_the_others_go_on(site: Site, destination: str) -> None:
    dropped, other = await new_table(site, destination), await new_table(site, destination)
    async with site.running():
        for table in (dropped, other):
            await table.fill(2)
            await table.fresh()
        async with site.owner.transaction():
            await dropped.do("UPDATE {t} SET name = 'edited'")
            await dropped.do("DROP TABLE {t}")
        await other.do("UPDATE {t} SET name = 'edited'")
        await other.fresh()
        assert (await site.status(dropped.source))["total"] == 0
        with pytest.raises(psycopg.errors.UndefinedTable, match="no longer exists"):
            await site.run("SELECT evervec.refire(%s)", dropped.source)
        await site.run("SELECT evervec.unwatch(%s)", dropped.source)
        assert await dropped.outbox() == []


@DESTINATION
async def test_a_schema_is_renamed(site: Site, destination: str) -> None:
    await site.run("CREATE SCHEMA shop")
    await site.run("CREATE TABLE shop.items (id bigint PRIMARY KEY, name text)")
    await site.run("INSERT INTO shop.items VALUES (1, 'one'), (2, 'two')")
    watch = "SELECT evervec.watch('{}.items', '{{name}}', model => 'stub:8', destination => %s)"
    await site.run(watch.format("shop"), destination)
    fresh = "SELECT eligible = fresh AND total = %s FROM evervec.count_items('items')"
    async with site.running():
        await until(lambda: site.value(fresh, 2))
        await site.run("ALTER SCHEMA shop RENAME TO store")
        if destination == "table":
            # The triggers name the table of embeddings.
            with pytest.raises(psycopg.errors.UndefinedTable):
                await site.run("UPDATE store.items SET name = 'edited' WHERE id = 1")
            await site.run(watch.format("store"), destination)
        await site.run("UPDATE store.items SET name = 'edited' WHERE id = 1")
        await site.run("INSERT INTO store.items VALUES (3, 'three')")
        await until(lambda: site.value(fresh, 3))


# ---- copies and versions ------------------------------------------------------------------------------------------


def program(server: PostgresServer, name: str, *arguments: str) -> None:
    done = subprocess.run([server.program(name), *arguments], capture_output=True, check=False)
    assert not done.returncode, done.stderr


@asynccontextmanager
async def new_database(conninfo: str) -> AsyncIterator[str]:
    name = sql.Identifier(f"test_{uuid.uuid4().hex}")
    async with await psycopg.AsyncConnection.connect(conninfo, autocommit=True) as connection:
        await connection.execute(sql.SQL("CREATE DATABASE {} TEMPLATE template0").format(name))
        yield in_database(conninfo, name.as_string().strip('"'))
        await connection.execute(sql.SQL("DROP DATABASE {} WITH (FORCE)").format(name))


@DESTINATION
async def test_a_dump_is_restored_into_a_new_database(
    site: Site, temporal_address: str, tmp_path: Path, destination: str
) -> None:
    dump = str(tmp_path / "dump")
    programs = PostgresServer(tmp_path, version=VERSION)
    table = await new_table(site, destination)
    async with site.running():
        await table.fill(5)
        await table.fresh()
    await table.do("UPDATE {t} SET name = 'waits' WHERE id = 1")
    program(programs, "pg_dump", "-Fc", "-f", dump, site.conninfo)
    async with new_database(site.conninfo) as conninfo:
        program(programs, "pg_restore", "--exit-on-error", "-d", conninfo, dump)
        async with Site.open(conninfo, temporal_address) as copy:
            copied = Table(copy, table.name, destination)
            instances = [await each.value("SELECT evervec.instance_id()") for each in (site, copy)]
            assert instances[0] != instances[1]
            assert [row[0] for row in await copied.outbox()] == ["1"]
            before = await copied.vectors()
            async with copy.running():
                await copied.fresh()
                await copied.do("UPDATE {t} SET name = 'edited in the copy' WHERE id = 2")
                await copied.fresh()
            changed = {key for key, vector in (await copied.vectors()).items() if vector != before[key]}
            assert changed == {"1", "2"}


LATER_VERSION = """
    ALTER TABLE evervec.outbox ADD COLUMN later text NOT NULL DEFAULT 'x';
    ALTER TABLE evervec.source ADD COLUMN later text NOT NULL DEFAULT 'x';
    ALTER TABLE evervec.total ADD COLUMN later int;
    UPDATE evervec.instance SET schema_version = schema_version + 1
"""
"""What a later version of the schema may do: add columns that have defaults."""


async def test_the_schema_is_upgraded_while_all_runs(site: Site) -> None:
    table = await new_table(site, "column")
    async with site.running():
        await table.fill(50)
        await table.fresh()
        for number in range(2):
            await table.do("UPDATE {t} SET name = 'edit ' || %s || id", number)
            await apply_schema(site.conninfo)
            await table.do("UPDATE {t} SET description = 'edit ' || %s || id WHERE id > 25", number)
        await table.fresh()


async def upgrade(site: Site) -> None:
    """Take all locks that it needs; who works meanwhile may take them the other way round, then it is run again."""
    while True:
        with suppress(psycopg.errors.DeadlockDetected):
            await site.run(LATER_VERSION)
            return


async def test_processes_work_with_a_later_version_of_the_schema(site: Site) -> None:
    table = await new_table(site, "column")
    async with site.running():
        await table.fill(10)
        await upgrade(site)
        await table.do("UPDATE {t} SET name = 'edited' WHERE id < 5")
        await table.fresh()
        await site.run("SELECT evervec.refire(%s, force => true)", table.source)
        await table.fresh()


async def test_a_worker_that_is_newer_than_the_schema_goes_on_and_says_what_to_do(site: Site) -> None:
    """Its safety net cannot look for what no trigger saw; all else it does."""
    table = await new_table(site, "column")
    await site.run("DROP FUNCTION evervec.census_page(bigint, boolean)")
    await table.fill(3)
    await site.run("UPDATE evervec.outbox SET queued_at = queued_at - interval '2 minutes'")
    instance = await site.value("SELECT evervec.instance_id()")
    with capture_logs() as logs:
        async with site.working():
            await site.client.execute_workflow(
                "EmbeddingSafetyNetWorkflow",
                {"instance": instance},
                id=f"embedding-sweeps/{instance}",
                task_queue=site.settings.task_queue,
            )
            await site.run("UPDATE evervec.source SET filling = false")
            await table.fresh()
    assert any(line["event"].startswith("a walk failed") for line in logs)
