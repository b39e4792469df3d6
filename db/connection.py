"""Connections to PostgreSQL, and its errors in evervec's words."""

from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import asynccontextmanager, contextmanager
from typing import Any

import psycopg
from psycopg import AsyncConnection, errors
from psycopg.conninfo import conninfo_to_dict
from psycopg.rows import DictRow, dict_row
from psycopg_pool import AsyncConnectionPool, PoolTimeout

from db.texts import knows_characters, register_bytes
from db.vectors import register_vectors
from evervec.errors import ConfigurationError, DatabaseError, ServiceUnreachableError

Connection = AsyncConnection[DictRow]
Pool = AsyncConnectionPool[Connection]

_CONNECT_SECONDS = 10
_UNREADABLE = (
    "EVERVEC_DATABASE_URL can't be read: write postgresql://user:password@host:port/database, "
    "in the password %40 for @, %2F for / and %25 for %"
)
_NOT_INSTALLED = ("3F000", "42P01", "42883")  # no such schema, table or function
_READ_ONLY = "25006"


async def connect(conninfo: str, *, application_name: str) -> Connection:
    """An autocommit connection, whose rows are dictionaries.

    ServiceUnreachableError when the server does not answer, ConfigurationError when the URL can't be read.
    """
    try:
        connection = await AsyncConnection.connect(conninfo, **_options(conninfo, application_name))
    except psycopg.OperationalError as error:
        raise ServiceUnreachableError(f"PostgreSQL at {describe(conninfo)} does not answer: {_line(error)}") from None
    try:
        with translated():
            await _configure(connection)
    except BaseException:
        await connection.close()
        raise
    return connection


@asynccontextmanager
async def open_pool(conninfo: str, *, size: int, application_name: str) -> AsyncIterator[Pool]:
    """A pool of at most `size` such connections; fails like `connect` when the first can't be made."""
    await (await connect(conninfo, application_name=application_name)).close()
    pool: Pool = AsyncConnectionPool(
        conninfo,
        connection_class=AsyncConnection[DictRow],
        min_size=1,
        max_size=size,
        kwargs=_options(conninfo, application_name),
        configure=_configure,
        check=AsyncConnectionPool.check_connection,
        open=False,
        name=application_name,
    )
    async with pool:
        yield pool


@asynccontextmanager
async def borrowed(pool: Pool) -> AsyncIterator[Connection]:
    """A connection of the pool. One that may only read is not used again: the next may lead to another server."""
    async with pool.connection() as connection:
        try:
            yield connection
        except errors.ReadOnlySqlTransaction:
            await connection.close()
            raise


@contextmanager
def translated() -> Iterator[None]:
    """Raise PostgreSQL's errors as evervec's: unreachable, not installed, or refused with the server's own words."""
    try:
        yield
    except PoolTimeout:
        raise ServiceUnreachableError("PostgreSQL does not answer: no connection became free in time") from None
    except psycopg.Error as error:
        raise translate(error) from error


def translate(error: psycopg.Error) -> DatabaseError | ServiceUnreachableError | ConfigurationError:
    """One clear line for an error of PostgreSQL. DETAIL is left out: it quotes rows."""
    diagnosis = error.diag
    if error.sqlstate is None or error.sqlstate.startswith(("08", "57P")):
        return ServiceUnreachableError(f"PostgreSQL does not answer: {_line(error)}")
    if error.sqlstate in _NOT_INSTALLED and "evervec" in (diagnosis.message_primary or ""):
        return ConfigurationError("evervec is not installed in this database, or is older there: run `evervec init`")
    if error.sqlstate == _READ_ONLY:
        return ServiceUnreachableError("PostgreSQL takes no writes: it is a standby, or was made read-only")
    message = diagnosis.message_primary or _line(error)
    if diagnosis.message_hint:
        message = f"{message}. {diagnosis.message_hint}"
    return DatabaseError(message, sqlstate=error.sqlstate)


def describe(conninfo: str) -> str:
    """Where a connection string leads, without its password."""
    try:
        parts = conninfo_to_dict(conninfo)
    except psycopg.ProgrammingError:
        return "an address that can't be read"
    return f"{parts.get('host', 'the default socket')}:{parts.get('port', 5432)}/{parts.get('dbname', '')}"


def _options(conninfo: str, application_name: str) -> dict[str, Any]:
    try:
        parts = conninfo_to_dict(conninfo)
    except psycopg.ProgrammingError:
        raise ConfigurationError(_UNREADABLE) from None
    if _is_torn(parts):
        raise ConfigurationError(_UNREADABLE)
    return {
        "autocommit": True,
        "row_factory": dict_row,
        "application_name": application_name,
        "client_encoding": "utf8",
        "connect_timeout": int(parts.get("connect_timeout") or _CONNECT_SECONDS),
        # A pooler may stand between: nothing may depend on the connection being the same one.
        "prepare_threshold": None,
        "keepalives_idle": 10,
        "keepalives_interval": 5,
        "keepalives_count": 3,
    }


def _is_torn(parts: Mapping[str, Any]) -> bool:
    """Whether a URL was read otherwise than it was meant, so that parts of the password pass for a host or a port.

    A message about those would tell them.
    """
    ports = str(parts.get("port") or "").split(",")
    return "@" in str(parts.get("host") or "") or not all(port.isdecimal() or not port for port in ports)


async def _configure(connection: Connection) -> None:
    register_vectors(connection)
    if not knows_characters(connection):
        register_bytes(connection)
        await connection.execute("SET client_encoding TO 'SQL_ASCII'")
    # Compare-and-set relies on each statement seeing what is committed.
    await connection.execute("SET default_transaction_isolation TO 'read committed'")


def _line(error: BaseException) -> str:
    """An error in one line; of several attempts the last, without the guesses that libpq adds on indented lines."""
    lines = [line for line in str(error).split("\n") if not line.startswith("\t")]
    begins = [n for n, line in enumerate(lines) if line.startswith(("connection to server ", "- "))]
    text = " ".join(" ".join(lines[begins[-1] if begins else 0 :]).split())
    return text or type(error).__name__
