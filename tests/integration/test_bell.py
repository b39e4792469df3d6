"""What is rung, how often, and that nobody's commit ever fails for it."""

import asyncio
import json
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path

import psycopg
import pytest
from psycopg import sql

from cli.stack.postgres import PostgresServer
from db.diagnosis import Diagnosis
from db.schema import apply_schema
from service.doctor.database import check_server
from tests.integration.contract import (
    Bell,
    Lab,
    bell_in,
    connect,
    lab_in,
    run,
    value,
)

AGE = "SELECT evervec.bell(now())"
"""Which second the transaction began in."""


@pytest.fixture
def bell(contract_database: str) -> Iterator[Bell]:
    with bell_in(contract_database) as bell:
        yield bell


def test_each_second_of_a_minute_has_a_bell_of_its_own(lab: Lab) -> None:
    """The bells of coming seconds can be known: a hush holds them before somebody begins to write in one."""
    bells = lab.run("""
        SELECT evervec.bell(moment), evervec.bell(moment + interval '1 s')
        FROM generate_series(now(), now() + interval '1 minute', '100 ms') AS moment
    """)
    assert {bell for bell, _ in bells} == set(range(60))
    assert all(later == (bell + 1) % 60 for bell, later in bells)


def test_what_is_rung(lab: Lab, bell: Bell) -> None:
    source = lab.watched(source=f"{lab.schema} \"ü' \\")
    bell.payloads()
    lab.run("INSERT INTO items VALUES (42, 'a')")
    [payload] = bell.payloads()
    [content_hash] = source.expected().values()
    assert json.loads(payload) == {"source": source.name, "items": [["42", content_hash]]}
    assert list(json.loads(payload)) == ["source", "items"]
    lab.run("DELETE FROM items")
    assert bell.items(source.name) == [("42", None)]
    lab.run("SELECT evervec.refire(%s)", [source.name])
    assert bell.payloads() == []


def test_strange_keys_are_valid_json(lab: Lab, bell: Bell) -> None:
    lab.run("CREATE TABLE items (id text PRIMARY KEY, name text)")
    source = lab.watch(text_columns=["name"], active=None)
    bell.payloads()
    keys = ['"', "\\", "\x01\n\t", "🙂", "", "null", "a" * 2000]
    for key in keys:
        lab.run("INSERT INTO items VALUES (%s, 'x')", [key])
    assert [key for key, _ in bell.items(source.name)] == keys
    assert len(source.assert_settled()) == len(keys)


def test_long_keys_stay_below_the_limit(lab: Lab, bell: Bell) -> None:
    lab.run("CREATE TABLE items (id text PRIMARY KEY, name text)")
    source = lab.watch(text_columns=["name"], active=None, source="ü" * 100)
    bell.payloads()
    # Control characters take six bytes each, and a repetitive key is stored compressed.
    lab.run("INSERT INTO items VALUES (repeat(chr(1), 2000), 'x'), (repeat('ü', 5000), 'y')")
    payloads = bell.payloads()
    assert payloads
    assert all(len(payload.encode()) < 8000 and json.loads(payload)["source"] == source.name for payload in payloads)
    assert len(source.assert_settled()) == 2


def test_every_key_of_a_statement_is_rung(lab: Lab, bell: Bell) -> None:
    source = lab.watched()
    bell.payloads()
    lab.run("INSERT INTO items SELECT n, 'x' FROM generate_series(1, 500) AS n")
    assert {key for key, _ in bell.items(source.name)} == {str(n) for n in range(1, 501)}
    lab.run("DELETE FROM items")
    assert set(bell.items(source.name)) == {(str(n), None) for n in range(1, 501)}


def test_a_huge_transaction_rings_a_bounded_number_of_times(lab: Lab, bell: Bell) -> None:
    source = lab.watched()
    bell.payloads()
    with lab.connection.transaction():
        lab.run("INSERT INTO items SELECT n, 'x' FROM generate_series(1, 3000) AS n")
        lab.run("DELETE FROM items WHERE id > 2000")
    payloads = bell.payloads()
    assert 800 < len(payloads) < 1200
    assert sum(map(len, payloads)) < 140_000
    assert len(source.outbox()) == 2000


def test_of_transactions_of_the_same_age_only_one_rings_at_a_time(lab: Lab, bell: Bell) -> None:
    source = lab.watched(2)
    bell.payloads()
    alike = False
    while not alike:  # unless a second ended just between the two
        with connect(lab.conninfo) as other, other.transaction(), lab.connection.transaction():
            alike = value(other, AGE) == value(lab.connection, AGE)
            run(other, f"UPDATE {lab.schema}.items SET name = now()::text WHERE id = 1")
            lab.run("UPDATE items SET name = now()::text WHERE id = 2")
        rung = [key for key, _ in bell.items(source.name)]
    assert rung == ["1"]
    assert source.assert_settled() == ["1", "2"]


def test_a_long_transaction_keeps_no_later_one_from_ringing(lab: Lab, bell: Bell) -> None:
    source = lab.watched(3)
    bell.payloads()
    with connect(lab.conninfo) as other, other.transaction():
        run(other, f"UPDATE {lab.schema}.items SET name = 'edited' WHERE id = 1")
        while value(lab.connection, AGE) == value(other, AGE):
            pass
        lab.run("UPDATE items SET name = 'edited' WHERE id = 2")
        assert [key for key, _ in bell.items(source.name)] == ["2"]
        run(other, f"UPDATE {lab.schema}.items SET name = 'edited' WHERE id = 3")
    assert [key for key, _ in bell.items(source.name)] == ["1", "3"]


def test_a_transaction_of_any_length_holds_one_lock(lab: Lab) -> None:
    lab.watched(2)
    with lab.connection.transaction():
        lab.run("UPDATE items SET name = 'edited' WHERE id = 1")
        began = value(lab.connection, "SELECT clock_timestamp()")
        while value(lab.connection, "SELECT clock_timestamp() - %s < interval '1.1 s'", [began]):
            pass
        lab.run("UPDATE items SET name = 'edited' WHERE id = 2")
        held = "SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND pid = pg_backend_pid()"
        assert value(lab.connection, held) == 1


def test_a_writer_needs_no_right_on_the_schema(lab: Lab) -> None:
    source = lab.watched(3)
    role = sql.Identifier(f"writer_{uuid.uuid4().hex}").as_string()
    lab.run(f"CREATE ROLE {role}")
    lab.run(f"GRANT USAGE ON SCHEMA {lab.schema} TO {role}")
    lab.run(f"GRANT SELECT, INSERT, UPDATE, DELETE, TRUNCATE ON items TO {role}")
    lab.run(f"SET ROLE {role}")
    for function in ("ring('x')", "watch('items', '{name}')", "refire('x')", "read_items('x', '{1}')"):
        with pytest.raises(psycopg.errors.InsufficientPrivilege):
            lab.run(f"SELECT evervec.{function}")
    for statement in (
        "INSERT INTO items VALUES (4, 'new')",
        "UPDATE items SET name = 'edited' WHERE id = 1",
        "UPDATE items SET id = 5 WHERE id = 2",
        "DELETE FROM items WHERE id = 3",
    ):
        lab.run(statement)
    lab.run("RESET ROLE")
    assert source.assert_settled() == ["1", "4"]
    lab.run(f"SET ROLE {role}")
    lab.run("TRUNCATE items")
    lab.run("RESET ROLE")
    assert (source.outbox(), source.stored()) == ({}, {})
    lab.run(f"DROP OWNED BY {role}")
    lab.run(f"DROP ROLE {role}")


def test_a_writers_search_path_changes_nothing(lab: Lab) -> None:
    source = lab.watched(1)
    lab.run("CREATE FUNCTION concat_ws(text, VARIADIC text[]) RETURNS text LANGUAGE sql AS 'SELECT ''hijacked'''")
    lab.run("CREATE TEMP TABLE outbox (x int)")
    lab.run(f"SET search_path = pg_temp, {lab.schema}, pg_catalog")
    lab.run("UPDATE items SET name = 'edited'")
    lab.run(f"SET search_path = {lab.schema}, public")
    lab.run("DROP TABLE pg_temp.outbox")
    assert source.assert_settled() == ["1"]


@pytest.fixture(scope="module")
def small_queue(stack_dir: Path) -> Iterator[str]:
    """A server whose notification queue is as small as can be: 512 kB."""
    options = {"max_notify_queue_pages": "64"}
    server = PostgresServer(stack_dir / "small-queue", version=18, durable=False, options=options)
    asyncio.run(server.start())
    asyncio.run(apply_schema(server.conninfo()))
    yield server.conninfo()
    asyncio.run(server.stop())


@pytest.fixture
def clogged(small_queue: str) -> Iterator[Callable[[float], None]]:
    """Fills the queue to a fraction: a session that listens and stays in a transaction keeps it from draining."""
    with connect(small_queue) as listening, connect(small_queue) as writing:
        run(listening, "LISTEN anything")
        run(listening, "BEGIN")
        run(listening, "SELECT 1")

        def fill(fraction: float) -> None:
            while value(writing, "SELECT pg_notification_queue_usage()") <= fraction:
                run(writing, "SELECT pg_notify('other', repeat(md5(random()::text), 200))")

        yield fill


@pytest.fixture(params=["column", "table"])
def small_lab(request: pytest.FixtureRequest, small_queue: str) -> Iterator[Lab]:
    with lab_in(small_queue, request.param) as lab:
        yield lab


def test_nobody_rings_when_the_queue_is_half_full(small_lab: Lab, clogged: Callable[[float], None]) -> None:
    source = small_lab.watched(2)
    clogged(0.5)
    usage = "SELECT pg_notification_queue_usage()"
    before = value(small_lab.connection, usage)
    small_lab.run("UPDATE items SET name = 'edited'")
    small_lab.run("INSERT INTO items SELECT n, 'x' FROM generate_series(10, 3000) AS n")
    small_lab.run("DELETE FROM items WHERE id > 100")
    assert value(small_lab.connection, usage) == before
    clogged(0.97)
    small_lab.run("UPDATE items SET name = 'again'")
    assert len(source.outbox()) == 93


async def test_the_doctor_sees_a_queue_that_is_half_full(small_queue: str, clogged: Callable[[float], None]) -> None:
    async with await Diagnosis.open(small_queue) as database:
        for fraction, ok in ((0.0, True), (0.5, False)):
            clogged(fraction)
            [queue] = [check for check in check_server(await database.server()) if check.name == "notification queue"]
            assert queue.ok is ok, queue
        assert "of 64 pages" in queue.detail
        assert "pg_stat_activity" in (queue.remedy or "")


@pytest.mark.parametrize(("rows", "key"), [(50_000, "n::text"), (2_000, "n || repeat(md5(n::text), 60)")])
@pytest.mark.parametrize("small_lab", ["column"], indirect=True)
def test_a_huge_transaction_never_fails_for_the_queue(
    small_lab: Lab, clogged: Callable[[float], None], rows: int, key: str
) -> None:
    small_lab.run("CREATE TABLE items (id text PRIMARY KEY, name text)")
    source = small_lab.watch(text_columns=["name"], active=None)
    clogged(0.45)
    small_lab.run(f"INSERT INTO items SELECT {key}, 'x' FROM generate_series(1, {rows}) AS n")
    assert value(small_lab.connection, "SELECT count(*) FROM evervec.outbox WHERE source = %s", [source.name]) == rows
