"""Faults of a server as a whole, made on one of its own."""

import asyncio
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path

import psycopg
import pytest
from psycopg import sql
from pydantic import SecretStr

from cli.stack.postgres import PostgresServer
from db.schema import apply_schema
from evervec.settings import Settings
from service.doctor.check import Check
from service.doctor.diagnose import examine


@pytest.fixture
def server(stack_dir: Path) -> Iterator[PostgresServer]:
    server = PostgresServer(stack_dir / "doctor", version=18, durable=False, options={"wal_level": "logical"})
    asyncio.run(server.start())
    yield server
    asyncio.run(server.stop())


@asynccontextmanager
async def session(conninfo: str) -> AsyncIterator[psycopg.AsyncConnection]:
    async with await psycopg.AsyncConnection.connect(conninfo, autocommit=True) as connection:
        yield connection


async def checks_of(conninfo: str) -> dict[str, Check]:
    settings = Settings(database_url=SecretStr(conninfo), temporal_address="127.0.0.1:1")
    return {check.name: check async for check in examine(settings, models=False)}


async def test_a_subscriber_a_missing_role_and_a_standby(server: PostgresServer) -> None:
    publisher, subscriber = server.conninfo("publisher"), server.conninfo("subscriber")
    for database in ("publisher", "subscriber"):
        await server.create_database(database)
    async with session(publisher) as connection:
        await connection.execute("CREATE TABLE items (id bigint PRIMARY KEY, name text)")
        await connection.execute("CREATE PUBLICATION p FOR TABLE items")
        await connection.execute("SELECT pg_create_logical_replication_slot('s', 'pgoutput')")
    await apply_schema(subscriber)
    async with session(subscriber) as connection:
        await connection.execute("CREATE TABLE items (id bigint PRIMARY KEY, name text)")
        await connection.execute("SELECT evervec.watch('items', '{name}', model => 'stub:8')")
        assert (await checks_of(subscriber))["triggers"].remedy is None
        # The slot is made beforehand, since both are databases of one server.
        statement = sql.SQL("CREATE SUBSCRIPTION s CONNECTION {} PUBLICATION p WITH (create_slot = false)")
        await connection.execute(statement.format(sql.Literal(publisher)))
        triggers = (await checks_of(subscriber))["triggers"]
        assert triggers.ok
        assert "written by logical replication" in triggers.detail
        assert triggers.remedy == "`evervec verify items --repair` finds it at once"
        await connection.execute("DROP SUBSCRIPTION s")

        await connection.execute("DROP OWNED BY evervec_viewer; DROP ROLE evervec_viewer")
        rights = (await checks_of(subscriber))["rights"]
        assert rights.ok
        assert "there is no role evervec_viewer" in rights.detail
        assert "CREATE ROLE evervec_viewer, then run `evervec init` again" in (rights.remedy or "")

    await server.stop()
    (server._cluster / "standby.signal").touch()
    server.port = None  # somebody may have taken it meanwhile
    await server._start_on_free_port()
    checks = await checks_of(server.conninfo("subscriber"))
    assert not checks["writes"].ok
    assert "a standby, which takes no writes" in checks["writes"].detail
    assert checks["writes"].remedy == "name the primary's address"
    assert not checks["LISTEN"].ok
    assert "it is a standby" in checks["LISTEN"].detail
    # What can be looked at is looked at all the same.
    assert checks["triggers"].ok
