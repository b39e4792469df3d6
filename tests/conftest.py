"""The real servers that the tests talk to: one of each for the whole run, a database for each test."""

import asyncio
import os
import tempfile
import uuid
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import psycopg
import pytest
from psycopg import sql

from cli.stack.postgres import PostgresServer
from cli.stack.temporal import TemporalServer
from tests.containers import POSTGRES_IMAGE, container_postgres, docker_refusal

os.environ["HF_HUB_OFFLINE"] = "1"

VERSION = int(os.environ.get("EVERVEC_TEST_POSTGRES_VERSION", "18"))
"""Of the embedded server: 16 or 18."""

TEMPLATE = "evervec_template"


def pytest_report_header() -> str:
    refusal = docker_refusal()
    return f"PostgreSQL: embedded, {VERSION} ({refusal})" if refusal else f"PostgreSQL: {POSTGRES_IMAGE} in a container"


@pytest.fixture(scope="session")
def stack_dir() -> Iterator[Path]:
    """A folder that the user under whom PostgreSQL runs can reach."""
    with tempfile.TemporaryDirectory(prefix="evervec-test-", ignore_cleanup_errors=True) as name:
        Path(name).chmod(0o755)
        yield Path(name)


@pytest.fixture(scope="session")
def postgres(stack_dir: Path) -> Iterator[str]:
    """A PostgreSQL server with pgvector: the connection string of its database `postgres`, as a superuser."""
    if docker_refusal() is None:
        with container_postgres() as conninfo:
            yield conninfo
        return
    server = PostgresServer(stack_dir / "postgres", version=VERSION, durable=False, options={"max_connections": "200"})
    asyncio.run(server.start())
    yield server.conninfo("postgres")
    asyncio.run(server.stop())


@pytest.fixture(scope="session")
def template_database(postgres: str) -> str:
    """The name of a database with pgvector and evervec's schema, to be copied."""
    # Imported here, so that tests without a database run without it.
    from db.schema import apply_schema  # noqa: PLC0415

    with psycopg.connect(postgres, autocommit=True) as connection:
        connection.execute(sql.SQL("CREATE DATABASE {}").format(sql.Identifier(TEMPLATE)))
    conninfo = in_database(postgres, TEMPLATE)
    with psycopg.connect(conninfo, autocommit=True) as connection:
        connection.execute("CREATE EXTENSION vector")
    asyncio.run(apply_schema(conninfo))
    return TEMPLATE


@pytest.fixture
async def empty_database(postgres: str) -> AsyncIterator[str]:
    """A fresh database with nothing in it, not even pgvector: its connection string."""
    async for conninfo in _fresh_database(postgres, "template0"):
        yield conninfo


@pytest.fixture
async def database(postgres: str, template_database: str) -> AsyncIterator[str]:
    """A fresh database with pgvector and evervec's schema: its connection string."""
    async for conninfo in _fresh_database(postgres, template_database):
        yield conninfo


async def _fresh_database(server: str, template: str) -> AsyncIterator[str]:
    name = f"test_{uuid.uuid4().hex}"
    await _execute(server, "CREATE DATABASE {} TEMPLATE {}", name, template)
    conninfo = in_database(server, name)
    yield conninfo
    await _execute(server, "DROP DATABASE {} WITH (FORCE)", name)


async def _execute(conninfo: str, statement: str, *names: str) -> None:
    async with await psycopg.AsyncConnection.connect(conninfo, autocommit=True) as connection:
        await connection.execute(sql.SQL(statement).format(*map(sql.Identifier, names)))


def in_database(conninfo: str, database: str) -> str:
    """The same server's connection string for another database."""
    return f"{conninfo.rpartition('/')[0]}/{database}"


@pytest.fixture(scope="session")
def temporal(stack_dir: Path) -> Iterator[TemporalServer]:
    """A Temporal server on a free port."""
    server = TemporalServer(stack_dir / "temporal" / "temporal.db")
    asyncio.run(server.start())
    yield server
    asyncio.run(server.stop())


@pytest.fixture(scope="session")
def temporal_address(temporal: TemporalServer) -> str:
    """host:port of the Temporal server."""
    return temporal.address
