"""What the doctor looks at: facts about the server, the installation and its sources."""

import uuid
from contextlib import aclosing
from datetime import datetime
from typing import Any, NamedTuple, Self

from db.connection import Connection, connect, translated
from db.queries import query
from evervec.model import ModelSpec

NAME = "evervec doctor"
HEAR_SECONDS = 5.0


class Server(NamedTuple):
    """What anybody may know of a server and a database."""

    version: int
    """As PostgreSQL counts: 160004 is 16.4."""
    version_name: str
    now: datetime
    role: str
    home: str
    """Tells one database of one server from all others."""
    in_recovery: bool
    read_only: bool
    vector: str | None
    """pgvector's version, None where it is not installed."""
    installed: bool
    """Whether there is a schema `evervec`, whose rights and objects the following fields tell."""
    may_use: bool
    owns: bool
    owner: str | None
    functions: list[str]
    callable: list[str]
    """Those of the functions that the role may call."""
    missing_roles: list[str]
    """Those of evervec's three roles that are not there."""
    unlogged: list[str]
    """evervec's tables that a crash would empty."""
    unvacuumed: bool
    """Autovacuum leaves the outbox out."""
    autovacuum: bool
    track_counts: bool
    queue_usage: float
    """Of the notification queue, 0 to 1."""
    queue_pages: int | None
    """None before PostgreSQL 17, where it cannot be set."""


class Listeners(NamedTuple):
    """Whether there are listeners on this database."""

    connected: bool
    led: bool
    """One of them has the leader's lock."""


class Installation(NamedTuple):
    """What the installation says of itself."""

    instance: str
    schema_version: int
    last_version: int
    """Of the latest enqueue."""


class SourceFacts(NamedTuple):
    """What a source's table, columns, triggers and vectors are like, and what waits."""

    source: str
    relation: str | None
    """None when the table is gone."""
    sound: bool
    """The table belongs to whom it may belong."""
    owner: str | None
    missing_columns: list[str]
    has_key: bool
    missing_triggers: list[str]
    disabled_triggers: list[str]
    hidden: bool
    """Row security hides rows from evervec."""
    subscribed: bool
    """A subscription of logical replication writes the table."""
    live: int | None
    """Rows, an estimate."""
    vectors: str | None
    """The table that holds the vectors."""
    embedding: str
    """The column, quoted where need be; the tables' names are qualified and quoted as well."""
    column_dimension: int | None
    indexed: bool
    model: str
    revision: str
    dimension: int
    prompt: str
    paused: bool
    filling: bool
    rate: float | None
    pending: int
    failed: int
    oldest_seconds: float

    @property
    def spec(self) -> ModelSpec:
        """The model, as the encoder wants it."""
        return ModelSpec(self.model, self.revision, self.dimension, self.prompt)


class Hearing(NamedTuple):
    """What becomes of a notification between two connections."""

    heard: bool
    pooled: bool
    """Two sessions that are open at the same time are one session of the server."""
    same_database: bool


class Diagnosis:
    """Looks on one connection. Errors: DatabaseError, ConfigurationError, ServiceUnreachableError."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection

    @classmethod
    async def open(cls, conninfo: str) -> Self:
        """Connect."""
        return cls(await connect(conninfo, application_name=NAME))

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._connection.close()

    async def server(self) -> Server:
        """The server and its database, whether evervec is installed or not."""
        return Server(**await self._row("server"))

    async def listeners(self) -> Listeners:
        """Whether there are listeners on this database."""
        return Listeners(**await self._row("listeners"))

    async def installation(self) -> Installation:
        """The installation; the role needs a right of one of evervec's roles."""
        return Installation(**await self._row("diagnose"))

    async def sources(self, until: int | None = None) -> list[SourceFacts]:
        """All sources; of what is pending those up to the version `until`."""
        return [SourceFacts(**row) for row in await self._rows("diagnose_sources", until=until)]

    async def hearing(self, conninfo: str, home: str) -> Hearing:
        """Whether sessions of the connection string hear what this one, in the database `home`, rings."""
        ear, other = await Diagnosis.open(conninfo), await Diagnosis.open(conninfo)
        async with ear, other:
            pids = [(await each._row("session"))["pid"] for each in (ear, other)]
            found = Hearing(False, pids[0] == pids[1], (await other.server()).home == home)
            if found.pooled or not found.same_database:
                return found
            token = uuid.uuid4().hex
            with translated():
                await ear._connection.execute(query("listen_for_doctor"))
            await self._row("ring_for_doctor", token=token)
            return found._replace(heard=await ear._hears(token))

    async def _hears(self, token: str) -> bool:
        with translated():
            async with aclosing(self._connection.notifies(timeout=HEAR_SECONDS)) as heard:
                async for notification in heard:
                    if notification.payload == token:
                        return True
        return False

    async def _row(self, name: str, **parameters: Any) -> dict[str, Any]:
        [row] = await self._rows(name, **parameters)
        return row

    async def _rows(self, name: str, **parameters: Any) -> list[dict[str, Any]]:
        with translated():
            return await (await self._connection.execute(query(name), parameters or None)).fetchall()
