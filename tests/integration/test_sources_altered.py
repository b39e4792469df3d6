"""A source that is watched again with other options: nothing of the old kind is found, everything is made anew."""

from collections.abc import Iterator
from typing import Any

import psycopg
import pytest

from tests.integration.contract import Lab, Source, connect, fresh_database, lab_in, run, snapshot, value


@pytest.fixture(scope="module")
def elsewhere(postgres: str, template_database: str) -> Iterator[str]:
    """A database whose pgvector is in a schema that no search_path names."""
    with fresh_database(postgres, template_database) as conninfo:
        with connect(conninfo) as connection:
            run(connection, 'DROP EXTENSION vector; CREATE SCHEMA "e x t"; CREATE EXTENSION vector SCHEMA "e x t"')
        yield conninfo


def altered(lab: Lab, source: Source, **options: Any) -> Source:
    """Watch again with the first options but those; what was seen of the first source goes on."""
    again = lab.watch(source=source.name, **options)
    again.embedded = source.embedded
    return again


ANOTHER_KIND: list[dict[str, Any]] = [
    {"model": "stub:16"},
    {"model": "stub:5"},
    {"model": "some/model", "dimension": 8},
    {"model": "some/model", "dimension": 9},
    {"prompt": "passage: "},
    {"revision": "v2"},
    {"model": "stub:16", "text_columns": ["name"], "prompt": "x", "active": "active AND price < 9"},
]


@pytest.mark.parametrize("options", ANOTHER_KIND, ids=str)
def test_vectors_of_another_kind_are_never_found(lab: Lab, options: dict[str, Any]) -> None:
    source = lab.watched(6)
    assert source.search() == set("123456")
    source = altered(lab, source, **options)
    assert source.search() == set()
    status = source.status()
    assert (status["eligible"], status["fresh"], status["stale"], status["coverage"]) == (6, 0, 6, 0)
    source.fill()
    assert set(source.outbox()) == set("123456")
    source.work(["2", "5"])
    assert source.search() == {"2", "5"}
    assert source.status()["fresh"] == 2
    assert source.assert_settled() == ["1", "3", "4", "6"]
    assert source.search() == set("123456")
    # And back again.
    source = altered(lab, source)
    assert source.search() == set()
    assert len(source.assert_settled()) == 6


def test_an_undeclared_vector_column_does_not_mix_dimensions(lab: Lab) -> None:
    source = lab.watched(2, model="some/model", dimension=4)
    lab.run(f"ALTER TABLE {source.side_table or 'items'} ALTER embedding TYPE vector")
    source = altered(lab, source, model="some/model", dimension=5)
    assert source.search() == set()
    source.fill()
    source.work(["1"])
    assert source.search() == {"1"}
    assert source.assert_settled() == ["2"]


def test_other_columns_make_items_stale_whose_content_they_change(lab: Lab) -> None:
    source = lab.watched(4)
    lab.run("UPDATE items SET category = NULL WHERE id = 1")
    source.assert_settled()
    source = altered(lab, source, text_columns=["name", "description"])
    assert source.status()["stale"] == 3
    # As after any edit the old vector, of the same model, stays searchable until the new one lands.
    assert source.search() == set("1234")
    source.fill()
    assert set(source.outbox()) == {"2", "3", "4"}
    assert source.assert_settled() == ["2", "3", "4"]
    lab.run("UPDATE items SET category = 'not read any more'")
    assert source.outbox() == {}
    lab.run("UPDATE items SET description = 'edited' WHERE id = 4")
    assert source.assert_settled() == ["4"]


def test_the_same_options_again_change_nothing(lab: Lab) -> None:
    source = lab.watched(3)
    before = source.stored()
    source = altered(lab, source)
    assert source.status()["stale"] == 0
    assert source.assert_settled() == []
    assert source.stored() == before


def test_other_eligibility(lab: Lab) -> None:
    source = lab.watched(4)
    lab.run("INSERT INTO items VALUES (5, '', 'x', 'y', 1, false)")
    lab.run("UPDATE items SET description = '' WHERE id = 1")
    source.assert_settled()
    source = altered(lab, source, required=["description"], active="price > 2 OR NOT active")
    assert source.search() == {"3", "4"}
    status = source.status()
    assert (status["total"], status["eligible"], status["stale"]) == (5, 3, 1)
    assert source.assert_settled() == ["5"]
    lab.run("UPDATE items SET price = 3 WHERE id = 2")
    assert source.assert_settled() == []
    assert source.search() == {"2", "3", "4", "5"}
    source = altered(lab, source, required=[], active=None)
    assert source.search() == set("12345")
    assert source.assert_settled() == []


def test_another_destination(lab: Lab) -> None:
    source = lab.watched(3)
    lab.destination = "table" if lab.destination == "column" else "column"
    source = altered(lab, source)
    assert source.search() == set()
    assert source.status()["stale"] == 3
    assert source.assert_settled() == ["1", "2", "3"]
    lab.run("UPDATE items SET name = 'edited' WHERE id = 1")
    lab.run("DELETE FROM items WHERE id = 2")
    assert source.assert_settled() == ["1"]
    # And back, over what was left behind.
    lab.destination = "table" if lab.destination == "column" else "column"
    source = altered(lab, source)
    assert source.drain() == ["1"]
    assert source.search() == {"1", "3"}


def test_another_embedding_column(lab: Lab) -> None:
    source = lab.watched(2)
    before = source.stored()
    second = altered(lab, source, embedding="second")
    assert second.search() == set()
    assert second.assert_settled() == ["1", "2"]
    lab.run("UPDATE items SET name = 'edited'")
    assert second.assert_settled() == ["1", "2"]
    assert source.stored() == before


def test_the_model_stays_when_none_is_named(lab: Lab) -> None:
    source = lab.watched(2, model="some/model", dimension=3)
    source = altered(lab, source, model=None, text_columns=["name"])
    status = source.status()
    assert (status["model"], status["dimension"]) == ("some/model", 3)
    assert source.assert_settled() == ["1", "2"]


def test_failed_items_get_a_fresh_start(lab: Lab) -> None:
    source = lab.watched(3)
    lab.run("UPDATE items SET name = 'poison'")
    for key in "123":
        source.fail(key)
    lab.run("DELETE FROM items WHERE id = 3")
    assert source.status()["failed"] == 2
    source = altered(lab, source, model="stub:16", active="active AND id < 2")
    status = source.status()
    assert (status["failed"], status["pending"], status["eligible"]) == (0, 2, 1)
    assert all(waiting.attempts == 0 for waiting in source.outbox().values())
    assert source.assert_settled() == ["1"]


def test_what_the_worker_read_before_is_not_written_after(lab: Lab) -> None:
    source = lab.watched(1)
    lab.run("UPDATE items SET name = 'edited'")
    read = lab.run("SELECT outbox_version, content_hash FROM evervec.read_items(%s, '{1}')", [source.name])
    for options in ({"prompt": "x"}, {"model": "stub:16"}, {"text_columns": ["category"]}):
        source = altered(lab, source, **options)
        outcome = lab.run(
            "SELECT outcome FROM evervec.write_back(%s, '{1}', ARRAY[%s]::bigint[], ARRAY[%s], %s::real[])",
            [source.name, *read[0], [1.0] * 8],
        )
        assert outcome == [("superseded",)]
    assert source.assert_settled() == ["1"]


def test_paused_and_age_are_kept(lab: Lab) -> None:
    source = lab.watched(1)
    created = value(lab.connection, "SELECT created_at FROM evervec.source WHERE name = %s", [source.name])
    lab.run("SELECT evervec.pause(%s)", [source.name])
    source = altered(lab, source, model="stub:9")
    assert source.status()["paused"]
    found = lab.run("SELECT created_at FROM evervec.source WHERE name = %s", [source.name])
    assert found == [(created,)]


def test_an_alteration_during_the_first_fill_starts_it_again(lab: Lab) -> None:
    source = lab.watched(10)
    source = altered(lab, source, prompt="a")
    lab.run("SELECT * FROM evervec.fill_page(6)")
    source.work(list(source.outbox()))
    source = altered(lab, source, prompt="b")
    assert source.search() == set()
    assert len(source.assert_settled()) == 10


def test_triggers_are_replaced_not_added(lab: Lab) -> None:
    source = lab.watched(1)
    triggers = "SELECT tgname FROM pg_trigger WHERE tgrelid = 'items'::regclass ORDER BY 1"
    before = lab.run(triggers)
    for options in ({"prompt": "a"}, {"text_columns": ["category"]}, {"active": None}, {}):
        source = altered(lab, source, **options)
        assert lab.run(triggers) == before
    lab.run("SELECT evervec.unwatch(%s)", [source.name])
    assert lab.run(triggers) == []


# ---- What depends on the embeddings -------------------------------------------------------------------------------


def indexes(lab: Lab) -> list[tuple[Any, ...]]:
    return lab.run(
        "SELECT indexdef FROM pg_indexes WHERE schemaname = %s AND indexdef LIKE '%%USING hnsw%%'", [lab.schema]
    )


def test_an_index_survives_where_the_dimension_stays(lab: Lab) -> None:
    source = lab.watched(3)
    lab.run(f"CREATE INDEX ON {source.side_table or 'items'} USING hnsw (embedding vector_cosine_ops)")
    before = indexes(lab)
    lab.run("SET enable_seqscan = off")
    for options in ({"model": "some/model", "dimension": 8}, {"text_columns": ["name"]}, {"prompt": "x"}):
        source = altered(lab, source, **options)
        assert indexes(lab) == before
        assert source.search() <= ({"1", "2", "3"} if "text_columns" in options else set())
        source.assert_settled()
        assert source.search() == {"1", "2", "3"}
    lab.run("RESET enable_seqscan")
    source = altered(lab, source, model="stub:4")
    assert len(source.assert_settled()) == 3


def test_a_view_over_the_embeddings_is_in_the_way_of_another_dimension(lab: Lab) -> None:
    source = lab.watched(2)
    lab.run(f"CREATE VIEW seen AS SELECT id, embedding FROM {source.side_table or 'items'}")
    before = snapshot(lab.connection)
    with pytest.raises(psycopg.errors.DependentObjectsStillExist, match="embedding"):
        lab.watch(model="stub:9")
    assert snapshot(lab.connection) == before
    lab.run("UPDATE items SET name = 'edited' WHERE id = 1")
    assert source.assert_settled() == ["1"]
    source = altered(lab, source, model="some/model", dimension=8)
    assert source.assert_settled() == ["1", "2"]
    assert len(lab.run("SELECT * FROM seen")) == 2


# ---- The table itself is altered ----------------------------------------------------------------------------------


def test_a_table_that_is_renamed_and_moved(lab: Lab) -> None:
    source = lab.watched(3)
    lab.run("ALTER TABLE items RENAME TO things")
    source.table = "things"
    lab.run("UPDATE things SET name = 'edited' WHERE id = 1")
    assert source.assert_settled() == ["1"]
    lab.run("UPDATE things SET id = 10 WHERE id = 2")
    lab.run("DELETE FROM things WHERE id = 3")
    assert source.assert_settled() == []
    assert source.search() == {"1", "10"}
    lab.run(f"CREATE SCHEMA {lab.schema}_2; ALTER TABLE things SET SCHEMA {lab.schema}_2")
    source.table = f"{lab.schema}_2.things"
    lab.run(f"UPDATE {source.table} SET id = 11, name = 'again' WHERE id = 10")
    assert source.assert_settled() == ["11"]
    lab.run(f"TRUNCATE {source.table}")
    assert source.status()["total"] == 0
    lab.run("SELECT evervec.unwatch(%s)", [source.name])
    lab.run("SET client_min_messages = warning")
    lab.run(f"DROP SCHEMA {lab.schema}_2 CASCADE")


def test_a_column_that_is_read_can_not_be_dropped(lab: Lab) -> None:
    source = lab.watched(1)
    for column in ("name", "description", "active", "id"):
        with pytest.raises(psycopg.errors.DependentObjectsStillExist):
            lab.run(f"ALTER TABLE items DROP COLUMN {column}")
    lab.run("ALTER TABLE items DROP COLUMN price")
    lab.run("UPDATE items SET name = 'edited'")
    assert source.assert_settled() == ["1"]


def test_a_column_that_was_renamed_is_named_to_watch(lab: Lab) -> None:
    source = lab.watched(2)
    with lab.connection.transaction():
        lab.run("ALTER TABLE items RENAME COLUMN name TO title")
        source = altered(lab, source, text_columns=["title", "description", "category"], required=["title"])
    assert source.assert_settled() == []
    lab.run("UPDATE items SET title = 'edited' WHERE id = 1")
    assert source.assert_settled() == ["1"]


def test_a_table_that_is_dropped_and_made_again(lab: Lab) -> None:
    source = lab.watched(2)
    lab.run("UPDATE items SET name = 'edited'")
    source.fail("1")
    lab.run("DROP TABLE items")
    lab.run("CREATE TABLE items (id bigint PRIMARY KEY, name text)")
    source = altered(lab, source, text_columns=["name"], active=None)
    assert source.outbox() == {}
    lab.run("INSERT INTO items VALUES (1, 'x')")
    assert source.drain() == ["1"]
    assert source.search() == {"1"}


# ---- pgvector in another schema -----------------------------------------------------------------------------------


@pytest.mark.parametrize("destination", ["column", "table"])
def test_pgvector_in_another_schema(elsewhere: str, destination: str) -> None:
    with lab_in(elsewhere, destination) as lab:
        source = lab.watched(4)
        lab.run("UPDATE items SET name = 'edited' WHERE id = 1; UPDATE items SET id = 9 WHERE id = 2")
        assert source.assert_settled() == ["1"]
        assert source.search() == {"1", "3", "4", "9"}
        source = altered(lab, source, model="stub:16")
        assert source.search() == set()
        assert len(source.assert_settled()) == 4
        assert len(lab.run("SELECT * FROM evervec.sample_page(%s, NULL, 100, 10)", [source.name])) == 4
        lab.run(f'CREATE INDEX ON {source.side_table or "items"} USING hnsw (embedding "e x t".vector_cosine_ops)')
        assert lab.run("SELECT evervec.refire(%s, 'true', true)", [source.name]) == [(4,)]
        assert len(source.assert_settled()) == 4
        assert source.status()["coverage"] == 1
        lab.run("SELECT evervec.unwatch(%s)", [source.name])
        lab.run(f"UPDATE {source.side_table or 'items'} SET embedding_hash = NULL")
        with pytest.raises(psycopg.errors.ObjectNotInPrerequisiteState, match="did not write"):
            lab.watch()
