"""PostgreSQL: version, pgvector, evervec's schema and rights, and the way of a notification."""

import re
from collections.abc import AsyncIterator, Iterator
from datetime import UTC, datetime, timedelta

from db.diagnosis import Diagnosis, Server
from db.schema import schema_version
from evervec.errors import EvervecError
from evervec.settings import Settings
from service.doctor.check import Check, advice, fault, fine

SCHEMA = "schema"
"""The check on which all others of the installation depend."""
LEAST_POSTGRES = 16
LEAST_VECTOR = (0, 7)
MOST_SKEW = timedelta(seconds=5)
QUEUE_LIMIT = 0.5
"""Above it nobody rings, see `evervec.ring`."""

# The functions by which a role shows what it is for.
_DUTIES = {"listener": {"pending_items", "hush", "fill_page"}, "worker": {"read_items", "write_back"}}


def check_server(
    server: Server, *, least_postgres: int = LEAST_POSTGRES, least_vector: tuple[int, ...] = LEAST_VECTOR
) -> Iterator[Check]:
    """What can be wrong with a server, whether evervec is installed or not."""
    yield fine("database", f"PostgreSQL answers, as role {server.role}")
    yield _version(server, least_postgres)
    yield _writable(server)
    yield check_clock(server, datetime.now(UTC))
    yield _vector(server, least_vector)
    yield _statistics(server)
    yield _queue(server)


def _version(server: Server, least: int) -> Check:
    if server.version < least * 10000:
        return fault(
            "PostgreSQL version",
            f"it is {server.version_name}, evervec needs {least} or newer",
            f"upgrade the server to PostgreSQL {least} or newer",
        )
    return fine("PostgreSQL version", server.version_name)


def _writable(server: Server) -> Check:
    if server.in_recovery:
        return fault("writes", "the server is a standby, which takes no writes", "name the primary's address")
    if server.read_only:
        return fault(
            "writes",
            "transactions are read-only",
            "see default_transaction_read_only, of the server, of the database and of the role",
        )
    return fine("writes", "the database takes writes")


def check_clock(server: Server, now: datetime) -> Check:
    """Whether this machine and the database's agree on the time."""
    skew = abs(now - server.now)
    if skew > MOST_SKEW:
        return fault(
            "clocks",
            f"this machine's clock and the database's are {skew.total_seconds():,.0f} s apart",
            "have both follow a time server (NTP)",
        )
    return fine("clocks", "this machine's clock and the database's agree")


def _vector(server: Server, least: tuple[int, ...]) -> Check:
    wanted = ".".join(map(str, least))
    if server.vector is None:
        return fault(
            "pgvector",
            "it is not installed in this database",
            f"install pgvector {wanted} or newer on the server, then have an administrator run CREATE EXTENSION vector",
        )
    if tuple(map(int, re.findall(r"\d+", server.vector))) < least:
        return fault(
            "pgvector",
            f"it is {server.vector}, evervec needs {wanted} or newer",
            "install a newer one on the server, then ALTER EXTENSION vector UPDATE",
        )
    return fine("pgvector", server.vector)


def _statistics(server: Server) -> Check:
    if not server.track_counts:
        return fault(
            "statistics",
            "track_counts is off: PostgreSQL does not tell which tables have changed, "
            "and changes that no trigger saw are not found",
            "set track_counts to on",
        )
    if not server.autovacuum:
        return fault(
            "statistics",
            "autovacuum is off: the outbox, whose rows come and go, will grow without end",
            "set autovacuum to on",
        )
    return fine("statistics", "track_counts and autovacuum are on")


def _queue(server: Server) -> Check:
    size = f" of {server.queue_pages:,} pages" if server.queue_pages else ""
    if server.queue_usage > QUEUE_LIMIT:
        return fault(
            "notification queue",
            f"{server.queue_usage:.0%}{size} is used: nobody rings any more, and when it is full commits fail",
            "end the session that listens and stays in a transaction: see pg_stat_activity, the oldest xact_start",
        )
    return fine("notification queue", f"{server.queue_usage:.0%}{size} is used")


async def check_listening(database: Diagnosis, server: Server, settings: Settings) -> AsyncIterator[Check]:
    """Whether a listener would hear what is rung in this database."""
    variable = "EVERVEC_LISTEN_URL" if settings.listen_url else "EVERVEC_DATABASE_URL"
    try:
        hearing = await database.hearing(settings.listen_conninfo, server.home)
    except EvervecError as error:
        yield fault("LISTEN", f"{variable}: {error}", f"correct {variable}: a direct connection to the primary")
        return
    if not hearing.same_database:
        yield fault(
            "LISTEN",
            "EVERVEC_LISTEN_URL leads to another database than EVERVEC_DATABASE_URL",
            "name the same database in both",
        )
    elif hearing.pooled or not hearing.heard:
        pooler = f"{variable} goes through a transaction pooler: " if hearing.pooled else ""
        yield fault(
            "LISTEN",
            f"{pooler}what is rung in the database is not heard",
            "set EVERVEC_LISTEN_URL to a direct connection, or one through a session pooler",
        )
    else:
        yield fine("LISTEN", "what is rung in the database is heard")


async def check_installation(database: Diagnosis, server: Server) -> AsyncIterator[Check]:
    """The schema, the role's rights on it, its tables and its listeners."""
    schema = await _schema(database, server)
    yield schema
    if not schema.ok:
        return
    yield _rights(server)
    yield _storage(server)
    listeners = await database.listeners()
    if listeners.led:
        yield fine("listener", "connected, and one leads")
    elif listeners.connected:
        yield fault(
            "listener",
            "connected, but none leads",
            "look into their logs; a listener that has just started leads after some seconds",
        )
    else:
        yield fault(
            "listener",
            "none is connected: changes wait until the safety net has them swept",
            "start one: `evervec listener`",
        )


async def _schema(database: Diagnosis, server: Server) -> Check:
    update = "run `evervec init`, as the role that owns the tables"
    if not server.installed:
        return fault(SCHEMA, "evervec is not installed in this database", update)
    if "diagnose_sources" not in server.functions:
        return fault(SCHEMA, "it is older than this program", update)
    if not _may_look(server):
        return _rights(server)
    found = (await database.installation()).schema_version
    if found < schema_version():
        return fault(SCHEMA, f"it is of version {found}, this program's is {schema_version()}", update)
    if found > schema_version():
        return advice(
            SCHEMA,
            f"it is of version {found}, newer than this program's {schema_version()}",
            "it goes on working; bring this program up to date",
        )
    return fine(SCHEMA, f"version {found}")


def _may_look(server: Server) -> bool:
    return server.may_use and "diagnose_sources" in server.callable


def _rights(server: Server) -> Check:
    may = (
        ["everything"]
        if server.owns
        else [f"what a {duty} does" for duty, needs in _DUTIES.items() if needs <= {*server.callable}]
    )
    if not _may_look(server):
        return fault(
            "rights",
            f"the role {server.role} may not use evervec's schema",
            f"GRANT evervec_listener, evervec_worker or evervec_viewer TO {server.role}, or connect as {server.owner}",
        )
    if server.missing_roles:
        return advice(
            "rights",
            f"there is no role {', '.join(server.missing_roles)}: listeners and workers need the owner's rights",
            f"have an administrator run {'; '.join(f'CREATE ROLE {role}' for role in server.missing_roles)}, "
            "then run `evervec init` again",
        )
    return fine("rights", f"the role {server.role} may do {' and '.join(may) or 'what a viewer does'}")


def _storage(server: Server) -> Check:
    if server.unlogged:
        names = ", ".join(f"evervec.{name}" for name in server.unlogged)
        return fault(
            "outbox",
            f"{names}: UNLOGGED, a crash empties it and its changes are lost",
            "; ".join(f"ALTER TABLE evervec.{name} SET LOGGED" for name in server.unlogged),
        )
    if server.unvacuumed:
        return fault(
            "outbox",
            "autovacuum is switched off for it: its rows come and go, it will grow without end",
            "ALTER TABLE evervec.outbox RESET (autovacuum_enabled)",
        )
    return fine("outbox", "logged and vacuumed")
