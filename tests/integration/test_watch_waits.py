"""A table of a million rows: watched, filled into the outbox while others go on using it, and looked at."""

import math
import sys
import time
from collections.abc import Iterator

import psycopg
import pytest

from listener.lookout import FILL_PAGE
from tests.integration.sessions import shared_database
from tests.integration.traffic import Traffic, Waits, in_background

ROWS = 1_000_000
LONGEST_WAIT_MS = 300
HELD_SECONDS = 1.5
LONGEST_WATCH_SECONDS = 10
LONGEST_STATUS_MS = 300
LOOKS = 10
PAUSE_SECONDS = 0.01
"""Between two statements during the fill, whose own speed would suffer from tight loops on a small machine."""
STATEMENTS = (
    "SELECT name FROM items WHERE id = 1 + (%(n)s::bigint * 7919) %% 1000000",
    "UPDATE items SET name = name || '.' WHERE id = 1 + (%(n)s::bigint * 104729) %% 1000000",
    "UPDATE items SET price = price + 1 WHERE id = 1 + (%(n)s::bigint * 15485863) %% 1000000",
    "INSERT INTO items (name) VALUES ('new')",
)

pytestmark = pytest.mark.long


@pytest.fixture(scope="module")
def million(postgres: str, template_database: str) -> Iterator[str]:
    with shared_database(postgres, template_database) as conninfo:
        with psycopg.connect(conninfo, autocommit=True) as connection:
            connection.execute("CREATE TABLE items (id bigint GENERATED ALWAYS AS IDENTITY, name text, price int)")
            connection.execute(
                "INSERT INTO items (name, price) SELECT 'thing ' || n, 1 FROM generate_series(1, %s) AS n", [ROWS]
            )
            connection.execute("ALTER TABLE items ADD PRIMARY KEY (id)")
            connection.execute("ANALYZE items")
        yield conninfo


@pytest.mark.parametrize("destination", ["table", "column"])
def test_nobody_waits_for_watch(million: str, destination: str, capsys: pytest.CaptureFixture[str]) -> None:
    traffic = Traffic(million)
    with psycopg.connect(million) as holder, traffic.of(*STATEMENTS):
        with traffic.phase() as before:
            time.sleep(HELD_SECONDS)
        holder.execute("SELECT FROM items LIMIT 1")
        started = time.perf_counter()
        with traffic.phase() as watching, in_background(lambda: watch(million, destination)):
            time.sleep(HELD_SECONDS)
            assert destination not in sources(million)
            holder.commit()
        took = time.perf_counter() - started
    report(capsys, f"{destination}: before watch: {before}", f"watch took {took:.1f} s, meanwhile: {watching}")
    assert destination in sources(million)
    assert took < LONGEST_WATCH_SECONDS
    assert_no_long_wait(watching, before)


def test_nobody_waits_for_the_first_fill_that_enqueues_all(million: str, capsys: pytest.CaptureFixture[str]) -> None:
    watch(million, "table")
    traffic = Traffic(million, PAUSE_SECONDS)
    with psycopg.connect(million, autocommit=True) as connection:
        connection.execute("SELECT evervec.unwatch(name) FROM evervec.source WHERE name <> 'table'")
        with traffic.of(*STATEMENTS):
            with traffic.phase() as before:
                time.sleep(HELD_SECONDS)
            started = time.perf_counter()
            with traffic.phase() as filling:
                while connection.execute("SELECT * FROM evervec.fill_page(%s)", [FILL_PAGE]).fetchone():
                    pass
            took = time.perf_counter() - started
        query = "SELECT (SELECT count(*) FROM items), (SELECT count(*) FROM evervec.outbox)"
        items, waiting = connection.execute(query).fetchone() or (0, 0)
    report(capsys, f"before the fill: {before}", f"the fill of {items} took {took:.1f} s, meanwhile: {filling}")
    assert items > ROWS
    assert waiting == items
    assert_no_long_wait(filling, before)


@pytest.mark.timeout(600)
def test_status_answers_at_once(million: str, capsys: pytest.CaptureFixture[str]) -> None:
    watch(million, "table")
    with psycopg.connect(million, autocommit=True) as connection:
        while connection.execute("SELECT * FROM evervec.fill_page(5000)").fetchone():
            pass
        [(items,)] = connection.execute("SELECT count(*) FROM items").fetchall()
        half = items // 2
        for name, done in (("full", 0), ("half-empty", half), ("empty", items)):
            embed(connection, f"ORDER BY id LIMIT {done}")
            connection.execute("DELETE FROM evervec.backlog")
            report(capsys, f"without a listener, with the outbox {name}: {look(connection)[0]:.0f} ms")
            connection.execute("SELECT evervec.count_outbox()")
            quickest, status = look(connection)
            report(capsys, f"status with the outbox {name}: {quickest:.0f} ms")
            assert status == (items, items, done, items - done, items - done)
            assert quickest < LONGEST_STATUS_MS
        [counted] = connection.execute("SELECT total, eligible, fresh FROM evervec.count_items('table')").fetchall()
        assert counted == (items, items, items)


def embed(connection: psycopg.Connection[tuple[object, ...]], which: str) -> None:
    """What workers do, in bulk: the vectors of some items, and their rows out of the outbox."""
    [(rows,)] = connection.execute("SELECT evervec.items_sql(s) FROM evervec.source s WHERE name = 'table'").fetchall()
    connection.execute(
        "WITH done AS (INSERT INTO items_embedding "
        f"SELECT id, '[1,0,0,0]', content_hash, 'stub:4', now() FROM ({rows}) AS i {which} "
        "ON CONFLICT DO NOTHING RETURNING id) "
        "DELETE FROM evervec.outbox o USING done WHERE o.source = 'table' AND o.item_key = done.id::text"
    )


def look(connection: psycopg.Connection[tuple[object, ...]]) -> tuple[float, tuple[object, ...]]:
    """The quickest of some looks at the status, in milliseconds, since others use the machine too; and what it said."""
    quickest = math.inf
    for _ in range(LOOKS):
        started = time.perf_counter()
        [status] = connection.execute(
            "SELECT total, eligible, fresh, stale, pending FROM evervec.status WHERE source = 'table'"
        ).fetchall()
        quickest = min(quickest, 1000 * (time.perf_counter() - started))
    return quickest, status


def assert_no_long_wait(during: Waits, before: Waits) -> None:
    assert during.statements > 0
    assert during.longest_lock <= LONGEST_WAIT_MS
    # What a statement takes besides its waits is the machine's affair; it is measured before.
    assert during.slowest <= LONGEST_WAIT_MS + before.slowest


def report(capsys: pytest.CaptureFixture[str], *lines: str) -> None:
    with capsys.disabled():
        sys.stdout.write("".join(f"\n{line}" for line in lines) + "\n")


def watch(conninfo: str, destination: str) -> None:
    with psycopg.connect(conninfo, autocommit=True) as connection:
        connection.execute(
            "SELECT evervec.watch('items', '{name}', required => '{name}', model => 'stub:4', "
            "source => %(destination)s, destination => %(destination)s)",
            {"destination": destination},
        )


def sources(conninfo: str) -> list[str]:
    with psycopg.connect(conninfo) as connection:
        return [name for (name,) in connection.execute("SELECT name FROM evervec.source").fetchall()]
