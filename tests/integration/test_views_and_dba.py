"""The two views, and what a DBA calls."""

import math
import time
from concurrent.futures import ThreadPoolExecutor

import psycopg
import pytest

from tests.integration.contract import Bell, Lab, Source, connect, fresh_database, run, snapshot, value

FUNCTIONS = ("pause(%s)", "resume(%s)", "retry(%s)", "refire(%s)", "unwatch(%s)", "search(%s, '{1}', 1)",
             "read_items(%s, '{1}')", "write_back(%s, '{1}', '{1}', '{a}', '{1}')")  # fmt: skip


def refire(source: Source, predicate: str | None = "true", *, force: bool | None = False) -> int:
    return int(value(source.connection, "SELECT evervec.refire(%s, %s, %s)", [source.name, predicate, force]))


# ---- status and failures ------------------------------------------------------------------------------------------


def test_status_counts(lab: Lab) -> None:
    source = lab.watched(6)
    assert source.status() == {
        "source": source.name, "total": 6, "eligible": 6, "fresh": 6, "stale": 0, "pending": 0, "failed": 0,
        "coverage": 1.0, "oldest_pending_seconds": 0.0, "model": "stub:8", "dimension": 8, "paused": False,
    }  # fmt: skip
    lab.run("INSERT INTO items (id, name, active) VALUES (7, '', true), (8, 'new', true), (9, 'off', false)")
    lab.run("UPDATE items SET name = 'edited' WHERE id IN (1, 2)")
    source.fail("1")
    lab.run("SELECT evervec.pause(%s)", [source.name])
    status = source.status()
    age = status.pop("oldest_pending_seconds")
    assert 0 < age < 60
    assert status == {
        "source": source.name, "total": 9, "eligible": 7, "fresh": 4, "stale": 3, "pending": 2, "failed": 1,
        "coverage": 4 / 7, "model": "stub:8", "dimension": 8, "paused": True,
    }  # fmt: skip
    assert source.status()["oldest_pending_seconds"] >= age


def test_coverage_is_1_when_nothing_is_eligible(lab: Lab) -> None:
    source = lab.watched()
    assert source.status()["coverage"] == 1
    lab.run("INSERT INTO items (id, name, active) VALUES (1, '', true), (2, 'off', false)")
    status = source.status()
    assert (status["total"], status["eligible"], status["coverage"]) == (2, 0, 1)
    assert not math.isnan(status["coverage"])


def test_the_oldest_pending_item_is_as_old_as_its_first_enqueue(lab: Lab) -> None:
    source = lab.watched(2)
    lab.run("UPDATE items SET name = 'edited'")
    lab.run(
        "UPDATE evervec.outbox SET queued_at = clock_timestamp() - interval '1 hour' "
        "WHERE source = %s AND item_key = '1'",
        [source.name],
    )
    assert 3600 <= source.status()["oldest_pending_seconds"] < 3700
    lab.run("UPDATE items SET name = 'edited again'")
    assert 3600 <= source.status()["oldest_pending_seconds"] < 3700
    source.fail("1")
    assert source.status()["oldest_pending_seconds"] < 60


def test_failures(lab: Lab) -> None:
    source = lab.watched(2)
    lab.run("UPDATE items SET name = 'poison'")
    record = "SELECT count(*) FROM evervec.record_failures(%s, ARRAY['1'], ARRAY[%s::bigint], ARRAY[%s], 3)"
    version = source.outbox()["1"].version
    assert value(lab.connection, record, [source.name, version - 1, "of an older version"]) == 0
    for expected in (0, 0, 1, 1):  # the last was tried by the other lane meanwhile
        assert value(lab.connection, record, [source.name, version, 'it\'s "bad"' * 100]) == expected
    failures = (
        "SELECT source, item_key, attempts, left(last_error, 10), failed_at FROM evervec.failures WHERE source = %s"
    )
    [(*failure, failed_at)] = lab.run(failures, [source.name])
    assert failure == [source.name, "1", 3, 'it\'s "bad"']
    assert failed_at is not None
    status = source.status()
    assert (status["stale"], status["pending"], status["failed"]) == (2, 1, 1)


def test_a_sources_table_that_is_gone_does_not_break_the_others(lab: Lab) -> None:
    gone = lab.watched(2)
    lab.run("UPDATE items SET name = 'edited'")
    lab.run("DROP TABLE items CASCADE")
    lab.run("CREATE TABLE other (id int PRIMARY KEY, name text)")
    other = lab.watch("other", ["name"], active=None, source=lab.schema + "_2")
    assert other.status()["coverage"] == 1
    status = gone.status()
    assert (status["total"], status["eligible"], status["fresh"], status["stale"]) == (0, 0, 0, 0)
    lab.run("INSERT INTO other VALUES (1, 'x')")
    assert other.assert_settled() == ["1"]
    with pytest.raises(psycopg.errors.UndefinedTable, match="no longer exists"):
        refire(gone)
    lab.run("SELECT evervec.unwatch(%s)", [gone.name])
    assert lab.run("SELECT FROM evervec.outbox WHERE source = %s", [gone.name]) == []
    assert lab.run("SELECT FROM evervec.status WHERE source = %s", [gone.name]) == []


# ---- refire -------------------------------------------------------------------------------------------------------


def test_refire_enqueues_what_is_stale(lab: Lab) -> None:
    source = lab.watched(5)
    assert refire(source) == 0
    lab.run("INSERT INTO items (id, name, active) VALUES (6, 'off', false), (7, '', true)")
    lab.run("UPDATE items SET name = 'edited' WHERE id IN (1, 2, 3)")
    lab.run("DELETE FROM evervec.outbox WHERE source = %s", [source.name])
    assert refire(source, "id = 2 OR price = 3 -- these") == 2
    assert set(source.outbox()) == {"2", "3"}
    assert refire(source) == 3
    assert source.assert_settled() == ["1", "2", "3"]
    assert refire(source, None, force=None) == 0


def test_refire_with_force_embeds_once_more_and_keeps_the_old_vector_until_then(lab: Lab) -> None:
    source = lab.watched(3)
    lab.run("INSERT INTO items VALUES (6, 'off', '', '', 1, false)")
    before = source.stored()
    assert refire(source, force=True) == 3
    assert all(waiting.forced for waiting in source.outbox().values())
    assert source.search() == {"1", "2", "3"}
    assert source.stored() == before
    status = source.status()
    assert (status["fresh"], status["stale"], status["pending"]) == (3, 0, 3)
    assert source.assert_settled() == ["1", "2", "3"]
    assert source.assert_settled() == []
    # An edit in between, or a refire without force, does not take the force away.
    refire(source, "id = 1", force=True)
    refire(source)
    lab.run("UPDATE items SET name = 'edited' WHERE id = 1")
    lab.run("UPDATE items SET name = 'name 1' WHERE id = 1")
    assert source.assert_settled() == ["1"]


def test_refire_of_failed_items(lab: Lab) -> None:
    source = lab.watched(2)
    lab.run("UPDATE items SET name = 'poison'")
    source.fail("1")
    version = source.outbox()["1"].version
    assert refire(source, "id = 1") == 1
    waiting = source.outbox()["1"]
    assert (waiting.state, waiting.attempts) == ("pending", 0)
    assert waiting.version > version
    assert source.status()["failed"] == 0
    assert source.assert_settled() == ["1", "2"]


HOSTILE = [
    "true; DROP TABLE items",
    "true) LIMIT 1; DROP TABLE items; --",
    "true) UNION SELECT id FROM items WHERE (true",
    "true)) UNION SELECT id FROM items WHERE ((true",
    "true) AS t; DELETE FROM items; SELECT * FROM (SELECT 1 WHERE (true",
    "id IN (DELETE FROM items RETURNING id)",
    "nope = 1",
    "id",
    "true --\n) OR (",
    "$$",
    "'",
    "/*",
    "",
    "$1 IS NULL",
]


@pytest.mark.parametrize("predicate", HOSTILE)
def test_a_hostile_predicate_executes_nothing(lab: Lab, predicate: str) -> None:
    source = lab.watched(2)
    before = snapshot(lab.connection)
    with pytest.raises(psycopg.Error) as refusal:
        refire(source, predicate, force=True)
    assert "the predicate can't be evaluated" in str(refusal.value)
    assert snapshot(lab.connection) == before
    assert len(lab.run("SELECT * FROM items")) == 2


def test_a_refire_gives_way_to_a_writer_that_holds_items(lab: Lab) -> None:
    source = lab.watched(5)
    with connect(lab.conninfo) as writer, connect(lab.conninfo) as dba, ThreadPoolExecutor() as pool:
        run(writer, "SET deadlock_timeout = '5s'")  # the other gives way before, also where the machine is slow
        run(writer, "BEGIN")
        run(writer, f"UPDATE {lab.schema}.items SET name = 'edited' WHERE id = 5")
        refired = pool.submit(value, dba, "SELECT evervec.refire(%s, 'true', true)", [source.name])
        wait_for_lock(lab, dba.info.backend_pid)
        # The outbox row of this item is the refire's, which waits for that of the other.
        run(writer, f"UPDATE {lab.schema}.items SET name = 'edited' WHERE id = 1")
        run(writer, "COMMIT")
        assert refired.result(30) == 5
    assert source.assert_settled() == ["1", "2", "3", "4", "5"]


def test_a_retry_gives_way_to_a_writer_that_holds_items(lab: Lab) -> None:
    source = lab.watched(3)
    lab.run("UPDATE items SET name = 'poison'")
    for key in "123":
        source.fail(key)
    with connect(lab.conninfo) as writer, connect(lab.conninfo) as dba, ThreadPoolExecutor() as pool:
        run(writer, "SET deadlock_timeout = '5s'")  # the other gives way before, also where the machine is slow
        run(writer, "BEGIN")
        run(writer, f"UPDATE {lab.schema}.items SET name = 'good' WHERE id = 3")
        retried = pool.submit(value, dba, "SELECT evervec.retry(%s)", [source.name])
        wait_for_lock(lab, dba.info.backend_pid)
        run(writer, f"UPDATE {lab.schema}.items SET name = 'good' WHERE id = 1")
        run(writer, "COMMIT")
        assert retried.result(30) == 1
    assert source.assert_settled() == ["1", "2", "3"]


def wait_for_lock(lab: Lab, pid: int) -> None:
    """Until a session waits for another."""
    deadline = time.monotonic() + 30
    while not value(lab.connection, "SELECT cardinality(pg_blocking_pids(%s)) > 0", [pid]):
        assert time.monotonic() < deadline


def test_columns_called_like_parameters(lab: Lab) -> None:
    lab.run("CREATE TABLE items (id int PRIMARY KEY, name text, predicate int, source int, item_key int, eligible int, "
            "content text, content_hash text, e int, i int, s int, force int, embedded int)")  # fmt: skip
    source = lab.watch(text_columns=["name", "content"], active="source > 0 AND eligible > 0")
    source.active = "t.source > 0 AND t.eligible > 0"
    lab.run("INSERT INTO items SELECT n, 'x', n, n, n, n, 'c', 'd', n, n, n, n, n FROM generate_series(1, 3) AS n")
    assert source.assert_settled() == ["1", "2", "3"]
    assert refire(source, "predicate = 1 OR item_key = 2 OR force > 5 OR i > 7", force=True) == 2
    assert source.assert_settled() == ["1", "2"]


# ---- pause, resume, retry, unwatch, uninstall ---------------------------------------------------------------------


def pending(source: Source) -> set[str]:
    """What a listener is given of a source."""
    rows = run(source.connection, "SELECT item_key FROM evervec.pending_items(NULL, NULL, 1000) WHERE source = %s",
               [source.name])  # fmt: skip
    among = run(source.connection, "SELECT item_key FROM evervec.pending_among(%s, %s)",
                [[source.name] * 9, list("123456789")])  # fmt: skip
    assert set(rows) == set(among)
    return {key for (key,) in rows}


def test_pause_still_records(lab: Lab) -> None:
    source = lab.watched(3)
    lab.run("UPDATE items SET name = 'edited' WHERE id = 1")
    lab.run("SELECT evervec.pause(%s)", [source.name])
    assert source.status()["paused"]
    lab.run("UPDATE items SET name = 'edited' WHERE id = 2")
    assert set(source.outbox()) == {"1", "2"}
    assert pending(source) == set()
    bell = Bell(lab.conninfo)
    lab.run("SELECT evervec.pause(%s), evervec.resume(%s), evervec.resume(%s)", [source.name] * 3)
    assert len(bell.payloads()) == 1
    bell.close()
    assert not source.status()["paused"]
    assert pending(source) == {"1", "2"}
    assert source.assert_settled() == ["1", "2"]


def test_retry(lab: Lab) -> None:
    source = lab.watched(4)
    lab.run("UPDATE items SET name = 'poison'")
    for key in "123":
        source.fail(key)
    assert pending(source) == {"4"}
    retry = "SELECT evervec.retry(%s, %s)"
    assert value(lab.connection, retry, [source.name, ["2", "4", "99", "no number"]]) == 1
    assert pending(source) == {"2", "4"}
    assert source.outbox()["2"].attempts == 0
    assert value(lab.connection, retry, [source.name, []]) == 0
    assert value(lab.connection, retry, [source.name, None]) == 2
    assert value(lab.connection, "SELECT evervec.retry(%s)", [source.name]) == 0
    assert source.assert_settled() == ["1", "2", "3", "4"]


def test_unwatch_leaves_the_embeddings(lab: Lab) -> None:
    source = lab.watched(2)
    stored = source.stored()
    functions = (
        "SELECT proname FROM pg_proc WHERE pronamespace = 'evervec'::regnamespace AND prorettype = 'trigger'::regtype"
    )
    assert lab.run(functions)
    lab.run("UPDATE items SET name = 'edited' WHERE id = 1")
    lab.run("SELECT evervec.unwatch(%s)", [source.name])
    assert source.outbox() == {}
    assert source.stored() == stored
    assert lab.run("SELECT FROM pg_trigger WHERE tgrelid = 'items'::regclass") == []
    assert lab.run(functions) == []
    lab.run("UPDATE items SET name = 'unseen' WHERE id = 2; DELETE FROM items WHERE id = 1")
    assert source.outbox() == {}
    # Watched again: what changed in between is found by its hash, the rest is not embedded again.
    lab.run("INSERT INTO items VALUES (1, 'name 1', 'text 1', 'tools', 1)")
    again = lab.watch()
    assert again.drain() == (["1", "2"] if lab.destination == "column" else ["2"])


def test_unknown_sources_and_missing_names(lab: Lab) -> None:
    for name in ("nope", "", None, "'; DROP SCHEMA evervec CASCADE; --"):
        for function in FUNCTIONS:
            with pytest.raises(psycopg.Error, match="no source named"):
                lab.run(f"SELECT evervec.{function}", [name])


def test_keys_of_the_worker_that_are_no_keys(lab: Lab) -> None:
    source = lab.watched(1)
    read = "SELECT item_key, row_exists FROM evervec.read_items(%s, %s)"
    assert lab.run(read, [source.name, ["x", "99", "", "1; DROP TABLE items"]]) == [
        (key, False) for key in ("x", "99", "", "1; DROP TABLE items")
    ]
    lab.run(
        "INSERT INTO evervec.outbox (source, item_key, version) VALUES (%s, 'x', -1), (%s, '99', -2)", [source.name] * 2
    )
    assert set(source.work(["x", "99"]).values()) == {"gone"}
    assert source.outbox() == {}


def test_uninstall_leaves_the_embeddings_only(lab: Lab, postgres: str, template_database: str) -> None:
    with fresh_database(postgres, template_database) as conninfo, connect(conninfo) as connection:
        inner = Lab(conninfo, connection, lab.destination)
        source = inner.watched(2)
        second = f"{inner.schema}_2"
        inner.run("CREATE TABLE gone (id int PRIMARY KEY, name text)")
        inner.watch("gone", ["name"], active=None, source=second)
        inner.run("DROP TABLE gone")
        stored = source.stored()
        inner.run("SELECT evervec.uninstall()")
        assert inner.run("SELECT FROM pg_namespace WHERE nspname = 'evervec'") == []
        assert inner.run("SELECT FROM pg_trigger WHERE tgname LIKE 'evervec%'") == []
        inner.run("UPDATE items SET name = 'free'")
        assert source.stored() == stored
