"""A worker without Temporal: what the tests of the database contract use to settle a source and to look at it."""

import hashlib
import json
import uuid
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
import psycopg
from psycopg import sql

from tests.conftest import in_database

Connection = psycopg.Connection[Any]

MODEL = "stub:8"
# Unicode's White_Space, written down once more: the tests must not take it from the code under test.
WHITESPACE = " \t\n\v\f\r\x85\xa0\u1680" + "".join(map(chr, range(0x2000, 0x200B))) + "\u2028\u2029\u202f\u205f\u3000"
ITEMS = (
    "CREATE TABLE items (id bigint PRIMARY KEY, name text, description text, category text, price numeric, "
    "active boolean NOT NULL DEFAULT true)"
)


@contextmanager
def fresh_database(server: str, template: str) -> Iterator[str]:
    """A copy of a database, for a whole module: its connection string."""
    name = sql.Identifier(f"contract_{uuid.uuid4().hex}")
    with connect(server) as connection:
        connection.execute(sql.SQL("CREATE DATABASE {} TEMPLATE {}").format(name, sql.Identifier(template)))
        yield in_database(server, name.as_string().strip('"'))
        connection.execute(sql.SQL("DROP DATABASE {} WITH (FORCE)").format(name))


@contextmanager
def connect(conninfo: str, role: str | None = None) -> Iterator[Connection]:
    """An autocommit connection, as another role if one is named."""
    with psycopg.connect(conninfo, autocommit=True) as connection:
        if role:
            connection.execute(sql.SQL("SET ROLE {}").format(sql.Identifier(role)))
        yield connection


def run(connection: Connection, statement: str, parameters: Sequence[object] | None = None) -> list[tuple[Any, ...]]:
    """Execute what a test made up; its rows, if it has any."""
    cursor = connection.execute(statement, parameters)
    return cursor.fetchall() if cursor.description else []


def value(connection: Connection, statement: str, parameters: Sequence[object] | None = None) -> Any:
    """The single value of a query."""
    [(found,)] = run(connection, statement, parameters)
    return found


def vector_of(content_hash: str, dimension: int) -> list[float]:
    """The vector that this worker makes of a content: unit length, and another one for every hash."""
    raw = np.random.default_rng(int(content_hash[:16], 16)).standard_normal(dimension)
    return as_floats(raw / np.linalg.norm(raw))


def as_floats(vector: object) -> list[float]:
    """As PostgreSQL keeps it: what was float32 once compares equal."""
    return [float(x) for x in np.asarray(vector, np.float32)]


class Waiting(NamedTuple):
    """An outbox row."""

    state: str
    content_hash: str | None
    version: int
    forced: bool
    attempts: int


class Stored(NamedTuple):
    """What is kept of an item's embedding."""

    vector: list[float] | None
    content_hash: str | None
    model: str | None


@dataclass
class Source:
    """A watched table, and a worker for it."""

    connection: Connection
    name: str
    table: str
    """As SQL, quoted where needed."""
    side_table: str | None
    text_columns: Sequence[str]
    required: Sequence[str] = ()
    active: str | None = None
    key: str = "id"
    embedding: str = "embedding"
    embedded: list[str] = field(default_factory=list)
    """The keys that were embedded, in order, by all drains so far."""

    def fill(self, page: int = 1000) -> None:
        """Run the first fills that wait."""
        while run(self.connection, "SELECT * FROM evervec.fill_page(%s)", [page]):
            pass

    def drain(self) -> list[str]:
        """Work until nothing is pending; the keys that were embedded."""
        self.fill()
        before = len(self.embedded)
        for _ in range(20):
            keys = [key for key, row in self.outbox().items() if row.state == "pending"]
            if not keys:
                return sorted(self.embedded[before:])
            self.work(keys)
        raise AssertionError(f"the work on {self.name} does not end")

    def work(self, keys: Sequence[str]) -> dict[str, str]:
        """One round of the worker over some keys: read, embed what is stale or forced, write back."""
        read = run(
            self.connection,
            "SELECT item_key, outbox_version, content_hash, dimension, eligible AND (forced OR embedding_hash IS "
            "DISTINCT FROM content_hash) FROM evervec.read_items(%s, %s)",
            [self.name, list(keys)],
        )
        hashes = [content_hash if stale else None for _, _, content_hash, _, stale in read]
        vectors = [x for (*_, dimension, _), h in zip(read, hashes, strict=True) if h for x in vector_of(h, dimension)]
        outcomes = dict(
            run(
                self.connection,
                "SELECT item_key, outcome FROM evervec.write_back(%s, %s, %s::bigint[], %s::text[], %s::real[])",
                [self.name, [r[0] for r in read], [r[1] for r in read], hashes, vectors],
            )
        )
        self.embedded += [key for key, outcome in outcomes.items() if outcome == "embedded"]
        return outcomes

    def fail(self, key: str) -> None:
        """Give an item up."""
        version = self.outbox()[key].version
        give_up = "SELECT evervec.record_failures(%s, ARRAY[%s], ARRAY[%s::bigint], ARRAY['poison'], 1)"
        assert run(self.connection, give_up, [self.name, key, version]) == [(key,)]

    def outbox(self) -> dict[str, Waiting]:
        rows = run(
            self.connection,
            "SELECT item_key, state, content_hash, version, forced, attempts FROM evervec.outbox WHERE source = %s "
            "ORDER BY item_key",
            [self.name],
        )
        return {key: Waiting(*rest) for key, *rest in rows}

    def stored(self) -> dict[str, Stored]:
        """The embeddings, read from where the contract says they are."""
        names = [self.key, self.embedding, f"{self.embedding}_hash", f"{self.embedding}_model"]
        key, vector, *rest = [sql.Identifier(name).as_string() for name in names]
        columns = ", ".join([f"{key}::text", f"{vector}::real[]", *rest])
        rows = run(self.connection, f"SELECT {columns} FROM {self.side_table or self.only_table}")
        return {k: Stored(None if v is None else as_floats(v), h, m) for k, v, h, m in rows}

    def keys(self) -> set[str]:
        key = sql.Identifier(self.key).as_string()
        return {k for (k,) in run(self.connection, f"SELECT {key}::text FROM {self.only_table}")}

    @property
    def only_table(self) -> str:
        """The rows that are the source's own, as a FROM item."""
        partitioned = value(
            self.connection, "SELECT relkind = 'p' FROM pg_class WHERE oid = %s::text::regclass", [self.table]
        )
        return self.table if partitioned else f"ONLY {self.table}"

    def expected(self) -> dict[str, str]:
        """The content hashes of the eligible items, by a model of content and eligibility in Python."""
        columns = list(dict.fromkeys([*self.text_columns, *self.required]))
        selected = ", ".join(f"{sql.Identifier(c).as_string()}::text" for c in columns)
        key = sql.Identifier(self.key).as_string()
        rows = run(
            self.connection,
            f"SELECT {key}::text, ({self.active or 'true'}) IS TRUE, {selected} FROM {self.only_table} AS t",
        )
        fingerprint = value(self.connection, "SELECT fingerprint FROM evervec.source WHERE name = %s", [self.name])
        wanted = {}
        for item_key, active, *texts in rows:
            row = dict(zip(columns, texts, strict=True))
            if active and not any(blank(row[c]) for c in self.required):
                content = content_of([row[c] for c in self.text_columns])
                wanted[item_key] = hashlib.sha256((fingerprint + content).encode()).hexdigest()
        return wanted

    def assert_settled(self) -> list[str]:
        """Drain; then every eligible item has the vector of its content and the outbox is empty. What was embedded."""
        embedded = self.drain()
        assert self.outbox() == {}
        stored, expected = self.stored(), self.expected()
        assert set(stored) <= self.keys()
        model, dimension = run(
            self.connection, "SELECT model_label, dimension FROM evervec.source WHERE name = %s", [self.name]
        )[0]
        for key, content_hash in expected.items():
            found = stored[key]
            assert (found.content_hash, found.model) == (content_hash, model), key
            assert found.vector == vector_of(content_hash, dimension), key
        return embedded

    def status(self) -> dict[str, Any]:
        cursor = self.connection.execute("SELECT * FROM evervec.status WHERE source = %s", [self.name])
        names = [column.name for column in cursor.description or ()]
        [row] = cursor.fetchall()
        return dict(zip(names, row, strict=True))

    def search(self, limit: int = 1000) -> set[str]:
        """The keys that a search finds, whatever it looks for."""
        dimension = self.status()["dimension"]
        rows = run(
            self.connection, "SELECT item_key FROM evervec.search(%s, %s::real[], %s)",
            [self.name, [1.0] * dimension, limit],
        )  # fmt: skip
        return {key for (key,) in rows}


def blank(text: str | None) -> bool:
    return text is None or not text.strip(WHITESPACE)


def content_of(texts: Sequence[str | None]) -> str:
    return " | ".join(text for text in texts if text is not None and not blank(text))


class Lab:
    """A schema of its own to work in, and one destination."""

    def __init__(self, conninfo: str, connection: Connection, destination: str) -> None:
        self.conninfo = conninfo
        self.connection = connection
        self.destination = destination
        self.schema = f"lab_{uuid.uuid4().hex[:12]}"
        self._sources: list[str] = []
        run(connection, f"CREATE SCHEMA {self.schema}")
        run(connection, f"SET search_path = {self.schema}, public")

    def run(self, statement: str, parameters: Sequence[object] | None = None) -> list[tuple[Any, ...]]:
        return run(self.connection, statement, parameters)

    def register(self, table: str | None, text_columns: Sequence[str | None] | None, **options: Any) -> str:
        """Call watch, with whatever: the source's name."""
        arguments = {"destination": self.destination, "model": MODEL, "source": self.schema} | options
        named = ", ".join(f"{argument} => %s" for argument in arguments)
        name = value(
            self.connection,
            f"SELECT evervec.watch(%s::text::regclass, %s::name[], {named})",
            [table, text_columns if text_columns is None else list(text_columns), *arguments.values()],
        )
        self._sources.append(name)
        return str(name)

    def watch(
        self,
        table: str = "items",
        text_columns: Sequence[str] = ("name", "description", "category"),
        **options: Any,
    ) -> Source:
        """Watch a table, named as SQL names it; required `name` and active `active` unless said otherwise."""
        options = {"required": ["name"], "active": "active"} | options
        name = self.register(table, text_columns, **options)
        return Source(
            self.connection,
            name,
            table,
            value(self.connection, "SELECT side_table::text FROM evervec.source WHERE name = %s", [name]),
            text_columns,
            options["required"] or (),
            options["active"],
            options.get("key") or self._primary_key(table),
            options.get("embedding") or "embedding",
        )

    def watched(self, rows: int = 0, **options: Any) -> Source:
        """The usual table, watched, with some items that are fresh."""
        run(self.connection, ITEMS)
        self.run(
            "INSERT INTO items SELECT n, 'name ' || n, 'text ' || n, 'tools', n FROM generate_series(1, %s) AS n",
            [rows],
        )
        source = self.watch(**options)
        assert len(source.assert_settled()) == rows
        return source

    def trigger_calls(self, statement: str) -> int:
        """How many functions of evervec a statement calls; it is rolled back."""
        with self.connection.transaction(force_rollback=True):
            self.run("SET LOCAL track_functions = 'all'")
            self.run(statement)
            return int(
                value(
                    self.connection,
                    "SELECT coalesce(sum(pg_stat_get_xact_function_calls(oid)), 0) FROM pg_proc "
                    "WHERE pronamespace = 'evervec'::regnamespace",
                )
            )

    def _primary_key(self, table: str) -> str:
        return str(
            value(
                self.connection,
                "SELECT attname FROM pg_index JOIN pg_attribute ON attrelid = indrelid AND attnum = indkey[0] "
                "WHERE indisprimary AND indrelid = %s::text::regclass",
                [table],
            )
        )

    def close(self) -> None:
        """Forget the sources and drop the tables."""
        run(self.connection, "RESET ROLE")
        run(self.connection, "SELECT evervec.unwatch(name) FROM evervec.source WHERE name = ANY (%s)", [self._sources])
        run(self.connection, "SET client_min_messages = warning")
        run(self.connection, f"DROP SCHEMA {self.schema} CASCADE")


@contextmanager
def lab_in(conninfo: str, destination: str) -> Iterator[Lab]:
    with connect(conninfo) as connection:
        lab = Lab(conninfo, connection, destination)
        yield lab
        lab.close()


@contextmanager
def unguarded(conninfo: str) -> Iterator[None]:
    """As if evervec had been installed by no superuser: nobody notices a BEFORE trigger that comes later."""
    with connect(conninfo) as connection:
        run(connection, "ALTER EVENT TRIGGER evervec_guard DISABLE")
        yield
        run(connection, "ALTER EVENT TRIGGER evervec_guard ENABLE ALWAYS")


class Bell:
    """A session that listens, and knows when it has heard everything that was rung before."""

    def __init__(self, conninfo: str) -> None:
        self.connection: Connection = psycopg.connect(conninfo, autocommit=True)
        self._payloads: list[str] = []
        self.connection.add_notify_handler(lambda notification: self._payloads.append(notification.payload))
        self.connection.execute("LISTEN evervec")

    def payloads(self) -> list[str]:
        """What was rung since the last time, as it came."""
        mark = uuid.uuid4().hex
        self.connection.execute("SELECT pg_notify('evervec', %s)", [mark])
        for _ in range(1000):
            if mark in self._payloads:
                break
            self.connection.execute("SELECT pg_sleep(0.01)")
        end = self._payloads.index(mark)
        heard, self._payloads = self._payloads[:end], self._payloads[end + 1 :]
        return heard

    def items(self, source: str) -> list[tuple[str, str | None]]:
        """The items rung for a source since the last time."""
        messages = [json.loads(payload) for payload in self.payloads()]
        return [(key, h) for message in messages if message["source"] == source for key, h in message["items"]]

    def close(self) -> None:
        self.connection.close()


@contextmanager
def bell_in(conninfo: str) -> Iterator[Bell]:
    bell = Bell(conninfo)
    yield bell
    bell.close()


def snapshot(connection: Connection) -> dict[str, str]:
    """A digest of the catalog as far as watch could change it, and of evervec's tables."""
    users = "NOT IN ('pg_catalog', 'information_schema')"
    queries = {
        "columns": "SELECT attrelid::regclass, attname, atttypid::regtype, atttypmod, attnum, attisdropped "
        f"FROM pg_attribute JOIN pg_class c ON c.oid = attrelid WHERE relnamespace::regnamespace::text {users}",
        "relations": "SELECT oid::regclass, relkind, relacl::text, relowner FROM pg_class",
        "triggers": "SELECT oid, pg_get_triggerdef(oid) FROM pg_trigger",
        "functions": "SELECT oid::regprocedure, prosrc FROM pg_proc WHERE pronamespace = 'evervec'::regnamespace",
        "sources": "SELECT * FROM evervec.source",
        "outbox": "SELECT * FROM evervec.outbox",
    }
    digests = [
        f"SELECT '{name}', md5(string_agg(x::text, chr(10) ORDER BY x::text)) FROM ({query}) AS x"
        for name, query in queries.items()
    ]
    return dict(run(connection, " UNION ALL ".join(digests)))
