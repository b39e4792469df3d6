"""What watch makes of a table that it accepts, and whom it waits for."""

import threading
import time
import uuid
from typing import Any

import psycopg
import pytest
from psycopg import sql

from tests.integration.contract import ITEMS, Lab, connect, run, snapshot, value
from tests.integration.listener_lab import eventually

DEFAULT_MODEL = "sentence-transformers/paraphrase-multilingual-mpnet-base-v2"


def test_the_four_columns(lab: Lab) -> None:
    lab.run(ITEMS)
    columns = (
        "SELECT attname, format_type(atttypid, atttypmod), attnotnull FROM pg_attribute "
        "WHERE attrelid = %s::text::regclass AND attnum > 0 AND NOT attisdropped ORDER BY attnum"
    )
    before = lab.run(columns, ["items"])
    four = [
        ("embedding", "vector(8)", False),
        ("embedding_hash", "text", False),
        ("embedding_model", "text", False),
        ("embedded_at", "timestamp with time zone", False),
    ]
    assert lab.register("items", ["name"], source=None) == "items"
    if lab.destination == "column":
        assert lab.run(columns, ["items"]) == before + four
    else:
        assert lab.run(columns, ["items"]) == before
        assert lab.run(columns, ["items_embedding"]) == [("id", "bigint", True), *four]
    lab.run("SELECT evervec.unwatch('items')")


def test_the_registration(lab: Lab) -> None:
    lab.run(ITEMS)
    lab.register("items", ["name", "category"], required=["name"], active="price > 1 AND active", prompt="query: ")
    [row] = lab.run(
        "SELECT relation::text, key_column, text_columns, required_columns, active, active_columns, destination, "
        "embedding_column, model, revision, dimension, prompt, paused FROM evervec.source WHERE name = %s",
        [lab.schema],
    )
    assert row == (
        "items", "id", ["name", "category"], ["name"], "price > 1 AND active", ["active", "price"], lab.destination,
        "embedding", "stub:8", "", 8, "query: ", False,
    )  # fmt: skip
    lab.run("SELECT evervec.unwatch(%s)", [lab.schema])


@pytest.mark.parametrize(
    ("setting", "options", "model", "dimension"),
    [
        ("", {"model": None}, DEFAULT_MODEL, 768),
        ("", {"model": ""}, DEFAULT_MODEL, 768),
        ("stub:5", {"model": None}, "stub:5", 5),
        ("stub:5", {"model": "stub:6"}, "stub:6", 6),
        ("", {"model": "bundled:use-multilingual-v3"}, "bundled:use-multilingual-v3", 512),
        ("", {"model": "some/model", "dimension": 16000}, "some/model", 16000),
        ("", {"model": "stub:7", "dimension": 7, "prompt": None, "revision": None}, "stub:7", 7),
    ],
)
def test_model_and_dimension(lab: Lab, setting: str, options: dict[str, Any], model: str, dimension: int) -> None:
    lab.run(ITEMS)
    lab.run("SELECT set_config('evervec.model', %s, false)", [setting])
    lab.register("items", ["name"], **options)
    found = lab.run("SELECT model, dimension FROM evervec.source WHERE name = %s", [lab.schema])
    assert found == [(model, dimension)]
    lab.run("RESET evervec.model")
    lab.run("SELECT evervec.unwatch(%s)", [lab.schema])


@pytest.mark.parametrize("name", ["a", "ü" * 100, 'with "quotes"', "it's", "back\\slash", "100 % {x}", "日本", " "])
def test_names_of_sources(lab: Lab, name: str) -> None:
    lab.run(ITEMS)
    source = lab.watch(source=name)
    lab.run("INSERT INTO items VALUES (1, 'x')")
    assert source.name == name
    assert source.assert_settled() == ["1"]
    assert source.status()["source"] == name


def test_what_is_rolled_back_was_never_watched(lab: Lab) -> None:
    lab.run(ITEMS)
    before = snapshot(lab.connection)
    with lab.connection.transaction(force_rollback=True):
        lab.register("items", ["name"])
        lab.run("INSERT INTO items VALUES (1, 'x')")
        assert value(lab.connection, "SELECT count(*) FROM evervec.outbox WHERE source = %s", [lab.schema]) == 1
    assert snapshot(lab.connection) == before


def test_readers_and_writers_in_the_way_are_waited_for(lab: Lab) -> None:
    """A transaction that holds the table delays watch, and watch delays nobody behind it for long."""
    lab.run(ITEMS)
    with connect(lab.conninfo) as holder, connect(lab.conninfo) as other:
        run(other, "SET lock_timeout = '300ms'")
        run(holder, "BEGIN")
        run(holder, f"SELECT FROM {lab.schema}.items")
        watching = threading.Thread(target=lab.register, args=("items", ["name"]))
        watching.start()
        for n in range(20):
            run(other, f"INSERT INTO {lab.schema}.items VALUES (%s, 'x')", [n])
            run(other, "SELECT pg_sleep(0.02)")
        assert watching.is_alive()
        run(holder, "COMMIT")
        watching.join(30)
        assert not watching.is_alive()
    assert lab.watch().assert_settled()


SLOWLY = (
    "autovacuum_vacuum_threshold = 0, autovacuum_vacuum_scale_factor = 0, autovacuum_vacuum_cost_delay = 100, "
    "autovacuum_vacuum_cost_limit = 1"
)
"""An autovacuum that comes soon and would take hours."""


@pytest.mark.parametrize("destination", ["column", "table"])
async def test_an_autovacuum_in_the_way_gives_way(database: str, destination: str) -> None:
    """It does for who waits for a second, which is longer than watch makes anybody wait who reads or writes."""
    watch = "SELECT evervec.watch('items', '{name}', model => %s, destination => %s)"
    async with await psycopg.AsyncConnection.connect(database, autocommit=True) as user:
        await user.execute(f"CREATE TABLE items (id int PRIMARY KEY, name text) WITH ({SLOWLY})")
        await user.execute("INSERT INTO items SELECT n, 'x' FROM generate_series(1, 20000) AS n")
        vacuumed = "items"
        if destination == "table":
            await user.execute(watch, ["stub:4", destination])
            vacuumed = "items_embedding"
            await user.execute(f"ALTER TABLE items_embedding SET ({SLOWLY})")
            await user.execute("ALTER TABLE items SET (autovacuum_enabled = false)")
            await user.execute("INSERT INTO items_embedding (id, embedding) SELECT id, '[1,2,3,4]' FROM items")
        await user.execute(f"DELETE FROM {vacuumed} WHERE id % 2 = 0")
        await user.execute("SELECT pg_stat_force_next_flush()")
        await user.execute("ALTER SYSTEM SET autovacuum_naptime = '1s'")
        try:
            await user.execute("SELECT pg_reload_conf()")

            async def is_vacuumed() -> bool:
                progress = "SELECT FROM pg_stat_progress_vacuum WHERE relid = %s::text::regclass"
                return bool(await (await user.execute(progress, [vacuumed])).fetchall())

            await eventually(is_vacuumed, seconds=60)
            started = time.monotonic()
            await user.execute(watch, ["stub:5", destination])
            assert time.monotonic() - started < 10
        finally:
            await user.execute("ALTER SYSTEM RESET autovacuum_naptime")
            await user.execute("SELECT pg_reload_conf()")


def test_watching_again_waits_for_a_page_of_the_first_fill(lab: Lab) -> None:
    source = lab.watched(3)
    lab.watch(text_columns=["name"])
    with connect(lab.conninfo) as filling:
        run(filling, "BEGIN")
        assert run(filling, "SELECT * FROM evervec.fill_page(2)")
        release = threading.Timer(0.5, run, (filling, "COMMIT"))
        release.start()
        source = lab.watch(text_columns=["name", "description"])
        release.join()
    assert source.assert_settled() == ["1", "2", "3"]


def test_the_first_fill_goes_page_by_page(lab: Lab) -> None:
    lab.run("CREATE TABLE items (id text PRIMARY KEY, name text, active boolean DEFAULT true)")
    lab.run("INSERT INTO items SELECT md5(n::text), 'x' || n, n % 5 <> 0 FROM generate_series(1, 95) AS n")
    source = lab.watch(text_columns=["name"])
    assert source.outbox() == {}
    assert value(lab.connection, "SELECT filling FROM evervec.source WHERE name = %s", [source.name])
    pages = [lab.run("SELECT * FROM evervec.fill_page(20)") for _ in range(6)]
    assert [page[0][1] for page in pages[:5]] == [20, 20, 20, 20, 15]
    assert [page[0][3] for page in pages[:5]] == [False] * 4 + [True]
    assert pages[5] == []
    assert len(source.outbox()) == 76
    assert not value(lab.connection, "SELECT filling FROM evervec.source WHERE name = %s", [source.name])
    assert len(source.assert_settled()) == 76


def test_readers_of_the_table_may_read_the_embeddings(lab: Lab) -> None:
    role = sql.Identifier(f"reader_{uuid.uuid4().hex}").as_string()
    lab.run(ITEMS)
    lab.run(f"CREATE ROLE {role}")
    lab.run(f"GRANT USAGE ON SCHEMA {lab.schema} TO {role}")
    lab.run(f"GRANT SELECT ON items TO {role}")
    source = lab.watch()
    lab.run(f"SET ROLE {role}")
    assert source.stored() == {}
    lab.run("RESET ROLE")
    lab.run(f"DROP OWNED BY {role}")
    lab.run(f"DROP ROLE {role}")
