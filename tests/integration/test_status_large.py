"""The status of sources that are too large to be counted at each look: what a walk counted, brought up to date."""

import random
import time
from collections.abc import Iterator

import psycopg
import pytest

from tests.integration.contract import ITEMS, Lab, Source, connect, lab_in, run, value

LIMIT = 10
ROWS = 30
PAGE = 7
TRIES = 3
"""The quickest of some is what it takes, since others use the machine too."""
SHORT_OUTBOX = (
    "CREATE OR REPLACE FUNCTION evervec.outbox_limit() RETURNS bigint LANGUAGE sql STABLE PARALLEL SAFE "
    "AS 'SELECT 5::bigint'"
)
"""An outbox of more than five rows is a long one."""
COUNTS = ("total", "eligible", "fresh", "stale")


@pytest.fixture(params=["column", "table"])
def lab(request: pytest.FixtureRequest, contract_database: str) -> Iterator[Lab]:
    """A database where eleven rows are many."""
    with connect(contract_database) as connection:
        run(connection, "DELETE FROM evervec.backlog")
        run(connection, f"CREATE OR REPLACE FUNCTION evervec.count_limit() RETURNS bigint LANGUAGE sql STABLE AS "
                        f"'SELECT {LIMIT}::bigint'")  # fmt: skip
    with lab_in(contract_database, request.param) as lab:
        yield lab


def counts(source: Source) -> tuple[int, ...]:
    """total, eligible, fresh, stale as `evervec.status` has them, in the order that always holds."""
    status = source.status()
    assert 0 <= status["fresh"] <= status["eligible"] <= status["total"]
    assert status["eligible"] == status["fresh"] + status["stale"]
    assert status["coverage"] == (status["fresh"] / status["eligible"] if status["eligible"] else 1)
    return tuple(status[name] for name in COUNTS)


def exact(source: Source) -> tuple[int, ...]:
    """The same by a scan of the table."""
    query = "SELECT total, eligible, fresh, eligible - fresh FROM evervec.count_items(%s)"
    return run(source.connection, query, [source.name])[0]


def flush(lab: Lab) -> None:
    """Report what this session did; by itself it does so within seconds."""
    lab.run("SELECT pg_stat_force_next_flush()")
    lab.run("SELECT 1")


def rested(lab: Lab) -> None:
    """Report what this session did, and let no walk wait because the last one took its time a moment ago."""
    flush(lab)
    lab.run("UPDATE evervec.total SET started_at = counted_at WHERE done")


def census(lab: Lab, source: Source) -> int:
    """Let the listener's walk run, as if the last one were long ago; how many rows it counted."""
    rested(lab)
    scanned = 0
    while pages := lab.run("SELECT source, scanned, done FROM evervec.census_page(%s)", [PAGE]):
        [(name, rows, _)] = pages
        assert name == source.name
        scanned += rows
        assert scanned <= 1000
    return scanned


def walk(lab: Lab) -> int:
    """Let the listener walk once, as if the last walk were long ago; how many rows it counted."""
    rested(lab)
    scanned, done = 0, False
    while not done:
        [(rows, done)] = lab.run("SELECT scanned, done FROM evervec.census_page(%s)", [PAGE])
        scanned += rows
    return scanned


def large(lab: Lab) -> Source:
    """A source of many fresh items, and three that are not eligible."""
    lab.run(ITEMS)
    lab.run(
        "INSERT INTO items SELECT n, 'name ' || n, 'text', 'tools', n, n > 3 FROM generate_series(1, %s) AS n", [ROWS]
    )
    flush(lab)
    source = lab.watch()
    source.assert_settled()
    flush(lab)
    return source


def test_a_first_fill_counts_by_the_way(lab: Lab) -> None:
    lab.run(ITEMS)
    lab.run("INSERT INTO items SELECT n, 'name ' || n, 'text', 'tools', n, n %% 5 > 0 FROM generate_series(1, %s) AS n",
            [ROWS])  # fmt: skip
    flush(lab)
    source = lab.watch()
    assert counts(source) == exact(source) == (30, 24, 0, 24)
    lab.run("SELECT evervec.fill_page(10)")
    assert source.status()["pending"] == 8
    assert counts(source) == (30, 24, 0, 24)
    source.work(["1", "2", "3", "4"])
    assert counts(source) == (30, 24, 4, 20)
    source.fill(page=10)
    assert source.status()["pending"] == 20
    assert counts(source) == exact(source) == (30, 24, 4, 20)
    source.assert_settled()
    assert counts(source) == exact(source) == (30, 24, 24, 0)


def test_watching_again_keeps_what_is_fresh(lab: Lab) -> None:
    source = large(lab)
    source = lab.watch()
    lab.run("SELECT evervec.fill_page(10)")
    total, eligible, fresh, stale = counts(source)
    assert (total, eligible, stale) == (30, fresh, 0)
    source.fill(page=10)
    assert counts(source) == exact(source) == (30, 27, 27, 0)


def test_another_model_makes_all_stale_at_once(lab: Lab) -> None:
    source = large(lab)
    source = lab.watch(model="stub:9")
    assert counts(source) == (30, 27, 0, 27)
    source.fill(page=10)
    source.work(["4", "5"])
    assert counts(source) == exact(source) == (30, 27, 2, 25)


def test_a_large_source_is_not_counted_by_a_look(lab: Lab) -> None:
    source = large(lab)
    lab.run("UPDATE evervec.total SET total = total + 100")
    assert counts(source)[0] == ROWS + 100
    # Without a walk, or with one over other files, a look counts.
    lab.run("UPDATE evervec.total SET files = files + 1")
    assert counts(source) == exact(source)


def test_an_edit_is_stale_at_once_and_fresh_again(lab: Lab) -> None:
    source = large(lab)
    lab.run("UPDATE items SET name = 'edited' WHERE id IN (1, 4, 5, 6)")
    assert counts(source) == exact(source) == (30, 27, 24, 3)
    source.fail("4")
    status = source.status()
    assert (status["stale"], status["pending"], status["failed"]) == (3, 2, 1)
    lab.run("UPDATE items SET name = 'edited again' WHERE id = 4")
    source.assert_settled()
    assert counts(source) == exact(source) == (30, 27, 27, 0)


def test_forced_items_are_fresh_while_they_wait(lab: Lab) -> None:
    source = large(lab)
    lab.run("SELECT evervec.refire(%s, 'id > 20', true)", [source.name])
    assert source.status()["pending"] == 10
    assert counts(source) == exact(source) == (30, 27, 27, 0)
    lab.run("UPDATE items SET name = 'edited' WHERE id = 30")
    assert census(lab, source) == ROWS
    assert counts(source) == exact(source) == (30, 27, 26, 1)


def test_rows_that_come_and_go_are_counted_within_seconds(lab: Lab) -> None:
    source = large(lab)
    lab.run("INSERT INTO items SELECT n, 'new', 'text', 'tools', n FROM generate_series(101, 150) AS n")
    flush(lab)
    total, eligible, _, stale = counts(source)
    assert (total, stale) == (80, 50)
    # New rows are taken to be eligible as often as the others.
    assert eligible == 27 + 45
    lab.run("DELETE FROM items WHERE id BETWEEN 101 AND 140")
    flush(lab)
    assert counts(source)[0] == 40
    assert census(lab, source) == 40
    assert counts(source) == exact(source) == (40, 37, 27, 10)


def test_what_bypassed_the_triggers_is_found_by_the_next_walk(lab: Lab) -> None:
    source = large(lab)
    assert census(lab, source) in (0, ROWS)
    with lab.connection.transaction():
        lab.run("SET LOCAL session_replication_role = replica")
        lab.run("UPDATE items SET name = 'bypassed' WHERE id > 25")
    assert exact(source) == (30, 27, 22, 5)
    assert counts(source) == (30, 27, 27, 0)
    assert census(lab, source) == ROWS
    assert source.status()["pending"] == 5, "enqueued by the walk"
    assert counts(source) == exact(source)
    assert census(lab, source) == 0, "nothing has changed since"
    source.assert_settled()
    assert census(lab, source) == ROWS
    assert counts(source) == exact(source) == (30, 27, 27, 0)


def bypassing(lab: Lab, statement: str) -> None:
    """Run a statement that no trigger sees."""
    with lab.connection.transaction():
        lab.run("SET LOCAL session_replication_role = replica")
        lab.run(statement)


def test_a_failed_item_whose_text_changed_behind_the_triggers_gets_a_fresh_start(lab: Lab) -> None:
    source = large(lab)
    lab.run("UPDATE items SET name = 'bad' WHERE id IN (10, 11)")
    source.fail("10")
    source.fail("11")
    bypassing(lab, "UPDATE items SET name = 'good' WHERE id = 10")
    assert census(lab, source) == ROWS
    states = "SELECT item_key, state, attempts > 0 FROM evervec.outbox WHERE source = %s ORDER BY 1"
    assert lab.run(states, [source.name]) == [("10", "pending", False), ("11", "failed", True)]
    source.work(["10"])
    assert lab.run(states, [source.name]) == [("11", "failed", True)]


def test_a_walk_does_not_wait_for_who_enqueues_what_it_found(lab: Lab) -> None:
    source = large(lab)
    bypassing(lab, "UPDATE items SET name = 'bypassed' WHERE id = 20")
    with connect(lab.conninfo) as other:
        run(other, f"SET search_path = {lab.schema}, public")
        run(other, "BEGIN")
        run(other, "UPDATE items SET name = 'edited' WHERE id = 20")
        seconds = []
        for _ in range(TRIES):
            started = time.monotonic()
            assert walk(lab) == ROWS, "what was missed is looked for again though nothing has changed"
            seconds.append(time.monotonic() - started)
        assert min(seconds) < 2
        assert source.status()["pending"] == 0
        # The next walk comes when this one is as long ago as it took.
        lab.run("UPDATE evervec.total SET started_at = counted_at - interval '1 minute' WHERE done")
        assert lab.run("SELECT scanned FROM evervec.census_page(%s)", [PAGE]) == []
        run(other, "ROLLBACK")
        run(other, "SELECT pg_stat_force_next_flush()")  # what was rolled back counts as a change, too
    assert census(lab, source) == ROWS
    source.assert_settled()
    assert counts(source) == exact(source) == (30, 27, 27, 0)


def test_small_sources_are_walked_over_when_asked_for(lab: Lab) -> None:
    lab.run(ITEMS)
    lab.run("INSERT INTO items SELECT n, 'name', 'text', 'tools', n FROM generate_series(1, 5) AS n")
    source = lab.watch()
    source.assert_settled()
    bypassing(lab, "UPDATE items SET name = 'bypassed' WHERE id = 3")
    rested(lab)
    assert lab.run("SELECT * FROM evervec.census_page(7)") == []
    page = "SELECT source, scanned, enqueued, done FROM evervec.census_page(7, true)"
    assert lab.run(page) == [(source.name, 5, 1, True)]
    assert lab.run(page) == []
    source.assert_settled()


def test_a_source_that_cannot_be_read_keeps_no_other_from_its_turn(lab: Lab) -> None:
    broken = large(lab)
    lab.run("CREATE TABLE others (LIKE items INCLUDING ALL)")
    lab.run("INSERT INTO others SELECT n, 'name', 'text', 'tools', n FROM generate_series(1, %s) AS n", [ROWS])
    flush(lab)
    other = lab.watch("others", source=f"others {lab.schema}")
    other.assert_settled()
    flush(lab)  # or what was written would be reported some time later, and count as a change since the walk
    lab.run("DELETE FROM evervec.total")
    lab.run("ALTER TABLE items RENAME name TO title")
    page = "SELECT source, done FROM evervec.census_page(100)"
    assert lab.run(page) == [(other.name, True)]
    with pytest.raises(psycopg.errors.UndefinedColumn):
        lab.run(page)
    lab.run("ALTER TABLE items RENAME title TO name")
    assert lab.run(page) == [(broken.name, True)]


def test_a_truncated_table_is_counted_anew(lab: Lab) -> None:
    source = large(lab)
    lab.run("TRUNCATE items")
    assert counts(source) == (0, 0, 0, 0)
    lab.run("INSERT INTO items SELECT n, 'new', 'text', 'tools', n FROM generate_series(1, 20) AS n")
    flush(lab)
    assert counts(source) == exact(source) == (20, 20, 0, 20)
    assert census(lab, source) == 20
    source.assert_settled()
    assert counts(source) == exact(source) == (20, 20, 20, 0)


def test_counters_that_were_reset_do_no_harm(lab: Lab) -> None:
    source = large(lab)
    lab.run("SELECT pg_stat_reset()")
    assert counts(source) == exact(source)
    assert census(lab, source) == ROWS
    assert counts(source) == exact(source)


def test_partitions_that_come_and_go(lab: Lab) -> None:
    lab.run("CREATE TABLE items (id bigint PRIMARY KEY, name text, description text, category text, active boolean) "
            "PARTITION BY RANGE (id)")  # fmt: skip
    for n in range(2):
        lab.run(f"CREATE TABLE items_{n} PARTITION OF items FOR VALUES FROM ({n * 20}) TO ({n * 20 + 20})")
    lab.run("INSERT INTO items SELECT n, 'name', 'text', 'tools', true FROM generate_series(0, 39) AS n")
    flush(lab)
    source = lab.watch()
    source.assert_settled()
    lab.run("UPDATE items SET id = 10 + 20, name = 'moved' WHERE id = 30")
    flush(lab)
    assert counts(source) == exact(source) == (40, 40, 39, 1)
    lab.run("ALTER TABLE items DETACH PARTITION items_0")
    assert counts(source) == exact(source)
    assert census(lab, source) == 20
    assert counts(source) == exact(source)


def test_whatever_happens_the_counts_fit_together_and_are_exact_in_the_end(lab: Lab) -> None:
    source = large(lab)
    dice = random.Random(7)
    for n in range(60):
        key = dice.randint(1, 40)
        lab.run(dice.choice((
            f"INSERT INTO items VALUES ({key}, 'new {n}', 'text', 'x', 1, {n % 3 > 0}) ON CONFLICT DO NOTHING",
            f"UPDATE items SET name = 'edit {n}' WHERE id > {key}", f"UPDATE items SET name = '' WHERE id = {key}",
            f"UPDATE items SET active = NOT active WHERE id = {key}", f"DELETE FROM items WHERE id = {key}",
            f"SELECT evervec.refire('{source.name}', 'id > {key}', {n % 2 > 0})", "SELECT pg_stat_force_next_flush()",
            f"SELECT evervec.census_page({key})",
        )))  # fmt: skip
        if n % 9 == 0:
            source.work([str(dice.randint(1, 40)) for _ in range(5)])
        counts(source)
    source.assert_settled()
    # The first call may end a walk that began before; only one over rows that don't change is exact.
    census(lab, source)
    census(lab, source)
    assert counts(source) == exact(source)


def test_a_walk_waits_for_nobody_and_nobody_for_it(lab: Lab) -> None:
    source = large(lab)
    lab.run("DELETE FROM evervec.total")
    with connect(lab.conninfo) as other:
        run(other, "BEGIN")
        run(other, f"LOCK TABLE {lab.schema}.items IN ACCESS EXCLUSIVE MODE")
        seconds = []
        for _ in range(TRIES):
            started = time.monotonic()
            with pytest.raises(psycopg.errors.LockNotAvailable):
                census(lab, source)
            seconds.append(time.monotonic() - started)
        assert min(seconds) < 1
        run(other, "COMMIT")
        # One who has begun a page keeps others from the same one.
        run(other, "BEGIN")
        assert value(other, "SELECT scanned FROM evervec.census_page(5)") == 5
        assert lab.run("SELECT * FROM evervec.census_page(5)") == []
        run(other, "ROLLBACK")
    assert census(lab, source) == ROWS
    assert counts(source) == exact(source)


def test_a_long_outbox_is_counted_by_the_listener_and_shown_from_there(lab: Lab) -> None:
    source = large(lab)
    lab.run(SHORT_OUTBOX)
    lab.run("UPDATE items SET name = 'edited' WHERE id > 20")
    source.fail("21")
    before = source.status()
    assert value(lab.connection, "SELECT evervec.count_outbox()") is True
    after = source.status()
    assert after["oldest_pending_seconds"] >= before.pop("oldest_pending_seconds") > 0
    assert after == before | {"oldest_pending_seconds": after["oldest_pending_seconds"]}
    assert (after["stale"], after["pending"], after["failed"]) == (10, 9, 1)
    lab.run("UPDATE items SET name = 'edited' WHERE id = 20")
    assert source.status()["pending"] == 9, "some seconds old"
    # Nobody has counted for long: a look counts.
    lab.run("UPDATE evervec.backlog SET counted_at = counted_at - interval '1 minute'")
    assert source.status()["pending"] == 10
    # A short outbox is counted by each look, whatever was counted before.
    assert value(lab.connection, "SELECT evervec.count_outbox()") is True
    source.work([str(n) for n in range(20, 29)])
    assert counts(source) == exact(source) == (30, 27, 25, 2)
    assert value(lab.connection, "SELECT evervec.count_outbox()") is False
    assert lab.run("SELECT FROM evervec.backlog") == []


def test_a_first_fill_into_a_long_outbox_makes_nothing_fresh(lab: Lab) -> None:
    source = large(lab)
    lab.run(SHORT_OUTBOX)
    source = lab.watch(model="stub:9")
    lab.run("SELECT evervec.fill_page(15)")
    assert value(lab.connection, "SELECT evervec.count_outbox()") is True
    source.fill(page=10)
    assert source.status()["pending"] == 27
    assert counts(source) == exact(source) == (30, 27, 0, 27)
