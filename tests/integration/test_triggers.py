"""What the triggers of a watched table do: which writes leave work, which leave none, and what is rung."""

import asyncio
import json
import string
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psycopg
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from psycopg import sql

from cli.stack.postgres import PostgresServer
from db.schema import apply_schema
from tests.integration.contract import (
    ITEMS,
    WHITESPACE,
    Bell,
    Lab,
    Source,
    blank,
    connect,
    content_of,
    fresh_database,
    lab_in,
    run,
    value,
)


@pytest.fixture(scope="module")
def shared(postgres: str, template_database: str) -> Iterator[str]:
    with fresh_database(postgres, template_database) as conninfo:
        yield conninfo


@pytest.fixture(params=["column", "table"])
def lab(request: pytest.FixtureRequest, shared: str) -> Iterator[Lab]:
    with lab_in(shared, request.param) as lab:
        yield lab


@pytest.fixture
def bell(shared: str) -> Iterator[Bell]:
    bell = Bell(shared)
    yield bell
    bell.close()


# ---- Which writes leave work --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("statement", "embedded"),
    [
        ("INSERT INTO items VALUES (4, 'new')", "4"),
        ("INSERT INTO items SELECT n, 'new ' || n FROM generate_series(4, 60) AS n", range(4, 61)),
        ("INSERT INTO items VALUES (4, 'new', 'not active', '', 1, false)", ""),
        ("UPDATE items SET name = 'edited' WHERE id = 2", "2"),
        ("UPDATE items SET name = 'edited', price = 0 WHERE id > 1", "23"),
        ("UPDATE items SET category = NULL WHERE id = 1", "1"),
        ("INSERT INTO items VALUES (1, 'x'), (9, 'y') ON CONFLICT (id) DO UPDATE SET name = excluded.name", "19"),
        ("INSERT INTO items VALUES (1, 'x'), (9, 'y') ON CONFLICT DO NOTHING", "9"),
        ("INSERT INTO items VALUES (1, '') ON CONFLICT (id) DO UPDATE SET price = 0", ""),
        (
            (
                "MERGE INTO items AS t USING (VALUES (1, 'x'), (2, 'y'), (9, 'z')) AS s (id, name) ON t.id = s.id "
                "WHEN MATCHED AND s.id = 2 THEN DELETE WHEN MATCHED THEN UPDATE SET name = s.name "
                "WHEN NOT MATCHED THEN INSERT (id, name) VALUES (s.id, s.name)"
            ),
            "19",
        ),
        ("DELETE FROM items WHERE id = 1", ""),
        ("DELETE FROM items", ""),
        ("TRUNCATE items", ""),
        ("UPDATE items SET active = false", ""),
        ("UPDATE items SET name = ' '", ""),
        ("UPDATE items SET price = price + 1", ""),
        ("UPDATE items SET id = id", ""),
        ("UPDATE items SET name = name, description = description, active = active", ""),
    ],
    ids=lambda x: x[:40] if isinstance(x, str) and " " in x else "",
)
def test_a_write_leaves_the_work_that_it_makes(lab: Lab, statement: str, embedded: str | range) -> None:
    source = lab.watched(3)
    lab.run(statement)
    assert source.assert_settled() == sorted(map(str, embedded))


def test_copy(lab: Lab) -> None:
    source = lab.watched(1)
    with lab.connection.cursor().copy("COPY items (id, name, description) FROM STDIN") as copy:
        for n in range(2, 500):
            copy.write_row((n, f"copied {n}", None if n % 2 else "…"))
    assert len(source.assert_settled()) == 498


def test_deleted_items_leave_the_outbox(lab: Lab) -> None:
    source = lab.watched(4)
    lab.run("UPDATE items SET name = 'edited'")
    lab.run("DELETE FROM items WHERE id = 1")
    assert set(source.outbox()) == {"2", "3", "4"}
    assert set(source.stored()) == {"2", "3", "4"}
    lab.run("TRUNCATE items")
    assert source.outbox() == {}
    assert source.stored() == {}


def test_truncate_cascades_from_a_referenced_table(lab: Lab) -> None:
    lab.run("CREATE TABLE owner (id int PRIMARY KEY)")
    lab.run("INSERT INTO owner VALUES (1)")
    source = lab.watched(2)
    lab.run("ALTER TABLE items ADD COLUMN owner int REFERENCES owner ON DELETE CASCADE")
    lab.run("UPDATE items SET name = 'edited', owner = 1 WHERE id = 1")
    lab.run("DELETE FROM owner")
    assert source.outbox() == {}
    assert set(source.stored()) == {"2"}
    lab.run("TRUNCATE owner CASCADE")
    assert source.stored() == {}


def test_a_deactivated_item_keeps_its_vector(lab: Lab) -> None:
    source = lab.watched(2)
    before = source.stored()
    lab.run("UPDATE items SET active = false")
    assert source.outbox() == {}
    lab.run("UPDATE items SET active = true")
    assert source.outbox() == {}
    assert source.stored() == before
    lab.run("UPDATE items SET active = false; UPDATE items SET name = 'edited' WHERE id = 1")
    assert source.outbox() == {}
    lab.run("UPDATE items SET active = true")
    assert source.assert_settled() == ["1"]


def test_a_row_deactivated_before_the_worker_came_is_not_embedded(lab: Lab) -> None:
    source = lab.watched(1)
    lab.run("UPDATE items SET name = 'edited'")
    lab.run("UPDATE items SET active = false")
    assert source.assert_settled() == []


def test_an_edit_and_its_revert_leave_no_work(lab: Lab) -> None:
    source = lab.watched(1)
    lab.run("UPDATE items SET name = 'edited'")
    lab.run("UPDATE items SET name = 'name 1'")
    assert source.assert_settled() == []
    with lab.connection.transaction():
        lab.run("UPDATE items SET name = 'edited'")
        lab.run("UPDATE items SET name = 'name 1'")
    assert source.assert_settled() == []


def test_two_edits_in_one_transaction_are_one_item(lab: Lab) -> None:
    source = lab.watched(1)
    with lab.connection.transaction():
        lab.run("UPDATE items SET name = 'first'")
        lab.run("UPDATE items SET name = 'second'")
    assert len(source.outbox()) == 1
    assert source.assert_settled() == ["1"]


def test_every_enqueue_has_a_new_version(lab: Lab) -> None:
    source = lab.watched(1)
    versions = []
    for name in ("A", "B", "A", "A"):
        lab.run("UPDATE items SET name = %s", [name])
        versions.append(source.outbox()["1"].version)
    assert versions == sorted(set(versions))


def test_what_is_rolled_back_leaves_nothing(lab: Lab, bell: Bell) -> None:
    source = lab.watched(2)
    bell.payloads()
    with lab.connection.transaction(force_rollback=True):
        lab.run("UPDATE items SET name = 'edited'")
        lab.run("INSERT INTO items VALUES (3, 'new')")
        lab.run("DELETE FROM items WHERE id = 2")
    assert source.outbox() == {}
    assert bell.items(source.name) == []
    with lab.connection.transaction():
        lab.run("UPDATE items SET name = 'edited' WHERE id = 1")
        with lab.connection.transaction(force_rollback=True):
            lab.run("UPDATE items SET name = 'edited' WHERE id = 2")
    assert [key for key, _ in bell.items(source.name)] == ["1"]
    assert source.assert_settled() == ["1"]


def test_a_touch_fires_a_stale_row_again_and_a_fresh_one_not(lab: Lab, bell: Bell) -> None:
    source = lab.watched(2)
    lab.run("DELETE FROM evervec.outbox")
    target = source.side_table or "items"
    lab.run(f"UPDATE {target} SET embedding = NULL, embedding_hash = NULL WHERE id = 1")
    assert source.outbox() == {}
    bell.payloads()
    lab.run("UPDATE items SET id = id")
    assert [key for key, _ in bell.items(source.name)] == ["1"]
    assert source.assert_settled() == ["1"]
    # A vector alone, without its hash's row, is as good as none; a hash alone, without its vector, too.
    lab.run(f"UPDATE {target} SET embedding = NULL WHERE id = 2")
    lab.run("UPDATE items SET name = name")
    assert source.assert_settled() == ["2"]


def test_an_update_of_other_columns_costs_nothing(lab: Lab, bell: Bell) -> None:
    source = lab.watched(3)
    bell.payloads()
    assert trigger_calls(lab, "UPDATE items SET price = price + 1") == 0
    assert source.outbox() == {}
    assert bell.payloads() == []
    # A stale row is none of its business either.
    lab.run("DELETE FROM evervec.outbox")
    lab.run(f"UPDATE {source.side_table or 'items'} SET embedding = NULL")
    lab.run("UPDATE items SET price = price + 1")
    assert source.outbox() == {}
    assert trigger_calls(lab, "UPDATE items SET name = name") > 0


def test_a_write_back_leaves_no_work_and_rings_nothing(lab: Lab, bell: Bell) -> None:
    source = lab.watched(1)
    lab.run("UPDATE items SET name = 'edited'")
    bell.payloads()
    version = value(lab.connection, "SELECT last_value FROM evervec.outbox_version")
    assert source.work(["1"]) == {"1": "embedded"}
    assert source.outbox() == {}
    assert bell.payloads() == []
    assert value(lab.connection, "SELECT last_value FROM evervec.outbox_version") == version


def trigger_calls(lab: Lab, statement: str) -> int:
    """How many functions of evervec a statement calls."""
    with lab.connection.transaction(force_rollback=True):
        lab.run("SET LOCAL track_functions = 'all'")
        lab.run(statement)
        return int(
            value(
                lab.connection,
                "SELECT coalesce(sum(pg_stat_get_xact_function_calls(oid)), 0) FROM pg_proc "
                "WHERE pronamespace = 'evervec'::regnamespace",
            )
        )


# ---- Users' own triggers, generated columns -----------------------------------------------------------------------


def test_a_before_trigger_that_rewrites_the_text(lab: Lab) -> None:
    source = lab.watched(2)
    lab.run(
        "CREATE FUNCTION rewrite() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN "
        "NEW.description := 'costs ' || NEW.price; NEW.name := btrim(NEW.name); RETURN NEW; END $$"
    )
    lab.run("CREATE TRIGGER zz BEFORE INSERT OR UPDATE ON items FOR EACH ROW EXECUTE FUNCTION rewrite()")
    lab.run("UPDATE items SET price = 100 WHERE id = 1")
    assert source.assert_settled() == ["1"]
    lab.run("INSERT INTO items VALUES (3, '  padded ', 'x', 'y', 5)")
    assert source.assert_settled() == ["3"]
    assert lab.run("SELECT name, description FROM items WHERE id = 3") == [("padded", "costs 5")]
    # The rewriting of the write-back itself, where it writes to this table, must not go on for ever.
    lab.run("UPDATE items SET name = 'edited' WHERE id = 2")
    assert "2" in source.assert_settled()


def test_an_after_trigger_that_edits_the_row_again(lab: Lab) -> None:
    source = lab.watched(1)
    lab.run(
        "CREATE FUNCTION again() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN "
        "UPDATE items SET description = 'of ' || NEW.name WHERE id = NEW.id; RETURN NULL; END $$"
    )
    lab.run("CREATE TRIGGER aa AFTER UPDATE OF name ON items FOR EACH ROW EXECUTE FUNCTION again()")
    lab.run("UPDATE items SET name = 'edited'")
    assert source.assert_settled() == ["1"]


def test_a_stored_generated_column_as_text(lab: Lab) -> None:
    lab.run(
        "CREATE TABLE items (id int PRIMARY KEY, cents int, note text, "
        "name text GENERATED ALWAYS AS ('costs ' || cents) STORED)"
    )
    source = lab.watch(text_columns=["name"], required=["name"], active=None)
    lab.run("INSERT INTO items VALUES (1, 5, ''), (2, NULL, '')")
    assert source.assert_settled() == ["1"]
    lab.run("UPDATE items SET cents = 6")
    assert source.assert_settled() == ["1", "2"]
    lab.run("UPDATE items SET note = 'x'")
    assert source.outbox() == {}


# ---- Keys, names, kinds of tables ---------------------------------------------------------------------------------

A_UUID, B_UUID = str(uuid.UUID(int=1)), str(uuid.UUID(int=2))


@pytest.mark.parametrize(
    ("key_type", "first", "second"),
    [
        ("bigint", "-9223372036854775808", "42"),
        ("int", "1", "2"),
        ("smallint", "1", "2"),
        ("uuid", A_UUID, B_UUID),
        ("text", "a/b \"c\" 'd' \\ {e,f} %s ü 🙂", "NULL"),
        ('text COLLATE "C"', "Z", "a"),
        ("varchar(40)", "", " "),
        ("char(6)", "ab", "cd"),
        ("numeric", "1.0", "1.00"),
        ("name", "a", "b"),
        ("inet", "10.0.0.1/32", "10.0.0.2/32"),
        ("mood", "happy", "sad"),
        ("label", "x", "y"),
        ("boolean", "true", "false"),
    ],
)
def test_keys_of_a_type(lab: Lab, key_type: str, first: str, second: str) -> None:
    lab.run("CREATE TYPE mood AS ENUM ('sad', 'happy')")
    lab.run("CREATE DOMAIN label AS varchar(3) CHECK (VALUE <> '')")
    lab.run(f"CREATE TABLE items (key {key_type} PRIMARY KEY, name text, price int)")
    lab.run("INSERT INTO items VALUES (%s, 'before')", [first])
    source = lab.watch(text_columns=["name"], active=None)
    [key] = source.assert_settled()
    assert key == first.rstrip() or key_type == "inet"
    lab.run("UPDATE items SET name = 'after'")
    assert source.assert_settled() == [key]
    lab.run("UPDATE items SET key = %s", [second])
    again = source.assert_settled()
    # Where the new key counts as the old one, the vector beside it is made anew.
    assert again == ([] if key_type != "numeric" or lab.destination == "column" else ["1.00"])
    [moved] = source.keys()
    lab.run("UPDATE items SET name = 'once more'")
    assert source.assert_settled() == [moved]
    lab.run("UPDATE items SET name = 'gone'")
    lab.run("DELETE FROM items")
    assert (source.outbox(), source.stored()) == ({}, {})


def test_names_that_need_quotes(lab: Lab) -> None:
    schema = f'"{lab.schema} with ""spaces"""'
    table = f'{schema}."Weird ""Table"'
    lab.run(f"CREATE SCHEMA {schema}")
    lab.run(
        f'CREATE TABLE {table} ("Der ""Schlüssel""" bigint PRIMARY KEY, "größe" text, "select" text, '
        '"is \'on\'" boolean, "100%" int)'
    )
    lab.run(f"INSERT INTO {table} VALUES (1, 'groß', 'x', true), (2, 'klein', NULL, false)")
    source = lab.watch(
        table, ["größe", "select"], required=["größe"], active="is 'on'", source=None, embedding='Ein "Vektor"'
    )
    source.active = "\"is 'on'\""
    assert source.name == 'Weird "Table'
    assert source.assert_settled() == ["1"]
    lab.run(f'UPDATE {table} SET "is \'on\'" = true, "100%" = 1')
    assert source.assert_settled() == ["2"]
    lab.run(f'UPDATE {table} SET "größe" = \'mittel\', "Der ""Schlüssel""" = "Der ""Schlüssel""" + 10')
    assert source.assert_settled() == ["11", "12"]
    assert lab.run("SELECT evervec.refire(%s, '\"größe\" = ''mittel''', true)", [source.name]) == [(2,)]
    assert source.assert_settled() == ["11", "12"]
    lab.run(f"DELETE FROM {table}")
    assert source.stored() == {}
    lab.run("SELECT evervec.unwatch(%s)", [source.name])
    lab.run(f"DROP SCHEMA {schema} CASCADE")


def test_the_vector_travels_with_a_changed_key(lab: Lab, bell: Bell) -> None:
    source = lab.watched(3)
    before = source.stored()
    bell.payloads()
    lab.run("UPDATE items SET id = 10 WHERE id = 1")
    assert bell.items(source.name)[0] == ("1", None)
    assert source.stored() == {"10": before["1"], "2": before["2"], "3": before["3"]}
    assert source.assert_settled() == []
    lab.run("UPDATE items SET id = id + 100")
    assert source.assert_settled() == []
    lab.run("UPDATE items SET id = id + 1, name = 'edited' WHERE id = 110")
    assert source.assert_settled() == ["111"]


def test_a_changed_key_takes_waiting_work_along(lab: Lab) -> None:
    source = lab.watched(2)
    lab.run("UPDATE items SET name = 'edited ' || id")
    lab.run("UPDATE items SET id = id + 10")
    assert set(source.outbox()) == {"11", "12"}
    assert source.assert_settled() == ["11", "12"]


@pytest.mark.parametrize("stale", [True, False])
@pytest.mark.parametrize("change", ["id + 1", "5 - id", "id % 4 + 1"])
def test_keys_that_change_places(lab: Lab, change: str, stale: bool) -> None:
    lab.run(ITEMS.replace("PRIMARY KEY", "PRIMARY KEY DEFERRABLE"))
    source = lab.watch()
    lab.run("INSERT INTO items SELECT n, 'name ' || n FROM generate_series(1, 4) AS n")
    if not stale:
        source.assert_settled()
    lab.run(f"UPDATE items SET id = {change}")
    again = source.assert_settled()
    if stale:
        assert len(again) == 4
    elif lab.destination == "column":
        assert again == []


def test_keys_shifted_where_the_constraint_is_immediate(lab: Lab) -> None:
    lab.run(ITEMS)
    lab.run("INSERT INTO items SELECT n, 'name ' || n FROM generate_series(9, 1, -1) AS n")
    source = lab.watch()
    assert len(source.assert_settled()) == 9
    lab.run("UPDATE items SET id = id + 1")
    assert source.assert_settled() == []
    for old, new in ((2, -1), (3, 2), (-1, 3)):
        lab.run("UPDATE items SET id = %s WHERE id = %s", [new, old])
    assert source.assert_settled() == []


def test_a_partitioned_table(lab: Lab) -> None:
    lab.run(ITEMS + " PARTITION BY RANGE (id)")
    lab.run("CREATE TABLE low PARTITION OF items FOR VALUES FROM (0) TO (100)")
    # Columns in another order.
    lab.run("CREATE TABLE high (active boolean NOT NULL DEFAULT true, price numeric, id bigint PRIMARY KEY, "
            "category text, name text, description text)")  # fmt: skip
    lab.run("ALTER TABLE items ATTACH PARTITION high FOR VALUES FROM (100) TO (200)")
    lab.run("INSERT INTO items VALUES (1, 'low'), (101, 'high')")
    source = lab.watch()
    assert source.assert_settled() == ["1", "101"]
    lab.run("INSERT INTO items VALUES (2, 'two')")
    lab.run("INSERT INTO high (id, name) VALUES (102, 'direct')")
    lab.run("UPDATE low SET name = 'edited' WHERE id = 1")
    lab.run("UPDATE items SET price = 1")
    assert source.assert_settled() == ["1", "102", "2"]
    # Rows that move to another partition, fresh and stale.
    lab.run("UPDATE items SET id = 150 WHERE id = 1")
    source.assert_settled()
    lab.run("UPDATE items SET name = 'stale' WHERE id = 150")
    lab.run("UPDATE items SET id = 50 WHERE id = 150")
    assert set(source.outbox()) == {"50"}
    assert source.assert_settled() == ["50"]
    lab.run("CREATE TABLE later PARTITION OF items FOR VALUES FROM (200) TO (300)")
    lab.run("INSERT INTO items VALUES (201, 'later')")
    assert source.assert_settled() == ["201"]
    lab.run("DELETE FROM items WHERE id = 201")
    lab.run("UPDATE items SET name = 'x'; TRUNCATE items")
    assert (source.outbox(), source.stored()) == ({}, {})


def test_rows_of_inheriting_tables_are_not_the_sources(lab: Lab) -> None:
    source = lab.watched(1)
    lab.run("CREATE TABLE child () INHERITS (items)")
    lab.run("INSERT INTO child (id, name) VALUES (1, 'same key'), (7, 'other')")
    lab.run("UPDATE items SET name = 'edited'")
    assert source.assert_settled() == ["1"]
    assert source.status()["total"] == 1


# ---- Content and eligibility --------------------------------------------------------------------------------------


def test_text_of_every_steady_type(lab: Lab) -> None:
    lab.run("CREATE TYPE mood AS ENUM ('sad', 'happy')")
    lab.run("CREATE DOMAIN short AS varchar(20)")
    lab.run("CREATE DOMAIN shorter AS short")
    lab.run(
        "CREATE TABLE items (id int PRIMARY KEY, m mood, n int, b jsonb, j json, v varchar(9), c char(9), d shorter, "
        "u uuid, x numeric, f boolean)"
    )
    columns = ["m", "n", "b", "j", "v", "c", "d", "u", "x", "f"]
    source = lab.watch(text_columns=columns, required=["m"], active=None)
    lab.run("INSERT INTO items VALUES (1, 'sad', 7, '{\"a\": 1}', '[1, 2]', ' v ', 'c', 'd', %s, 1.0, true)", [A_UUID])
    assert source.assert_settled() == ["1"]
    content = value(lab.connection, "SELECT content FROM evervec.read_items(%s, '{1}')", [source.name])
    assert content == f'sad | 7 | {{"a": 1}} | [1, 2] |  v  | c | d | {A_UUID} | 1.0 | true'
    # Equal to the type, but not the same text.
    for change in ("b = '{\"a\": 1.0}'", "j = '[1,2]'", "x = 1.00", "m = 'happy'", "f = false", "d = 'D'"):
        lab.run(f"UPDATE items SET {change} WHERE id = 1")
        assert source.assert_settled() == ["1"], change
    for same in ("c = 'c     '", "b = '{ \"a\":1.0}'", "n = 7"):
        lab.run(f"UPDATE items SET {same} WHERE id = 1")
        assert source.outbox() == {}, same


def test_text_that_compares_equal_without_being_the_same(lab: Lab) -> None:
    if not value(lab.connection, "SELECT count(*) FROM pg_available_extensions WHERE name = 'citext'"):
        pytest.skip("this PostgreSQL has no citext")
    lab.run("CREATE EXTENSION IF NOT EXISTS citext SCHEMA public")
    lab.run("CREATE TABLE items (id citext PRIMARY KEY, name citext)")
    source = lab.watch(text_columns=["name"], active=None)
    lab.run("INSERT INTO items VALUES ('a', 'x')")
    assert source.assert_settled() == ["a"]
    lab.run("UPDATE items SET name = 'X'")
    assert source.assert_settled() == ["a"]
    lab.run("UPDATE items SET name = 'y'")
    lab.run("UPDATE items SET id = 'A'")
    assert source.assert_settled() == ["A"]


@pytest.mark.parametrize("blanks", [None, "", " ", "\t", "\n", "\xa0", "\u3000", WHITESPACE, " " * 5000 + "\u2003"])
def test_what_counts_as_blank(lab: Lab, blanks: str | None) -> None:
    source = lab.watched()
    lab.run("INSERT INTO items VALUES (1, %s, 'x', 'y'), (2, 'name', %s, 'y'), (3, 'name', %s, %s)", [blanks] * 4)
    assert source.assert_settled() == ["2", "3"]
    rows = lab.run("SELECT item_key, eligible, content FROM evervec.read_items(%s, '{1,2,3}')", [source.name])
    assert sorted(rows) == [("1", False, "x | y"), ("2", True, "name | y"), ("3", True, "name")]


@pytest.mark.parametrize("text", ["v", "t", "n", "\\", "\u200b", "\x1f", "0", "NULL", " x ", " " * 5000 + "x"])
def test_what_does_not_count_as_blank(lab: Lab, text: str) -> None:
    source = lab.watched()
    lab.run("INSERT INTO items VALUES (1, %s)", [text])
    assert source.assert_settled() == ["1"]
    assert value(lab.connection, "SELECT content FROM evervec.read_items(%s, '{1}')", [source.name]) == text


TEXTS = st.none() | st.text(
    st.sampled_from(WHITESPACE + "|'\"\\%$ßÉ日🙂\u200b\x01" + string.ascii_letters[:6])
    | st.characters(exclude_characters="\0", exclude_categories=["Cs"]),
    max_size=40,
)
ROWS = st.lists(st.tuples(TEXTS, TEXTS, TEXTS, st.booleans() | st.none()), min_size=1, max_size=12)


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(rows=ROWS)
def test_content_and_eligibility_agree_with_a_model(lab: Lab, rows: list[tuple[Any, ...]]) -> None:
    source = modelled(lab)
    with lab.connection.transaction(force_rollback=True):
        with lab.connection.cursor() as cursor:
            cursor.executemany(
                "INSERT INTO items (id, name, description, category, active) VALUES (%s, %s, %s, %s, %s)",
                [(n, *row) for n, row in enumerate(rows)],
            )
        assert {k: w.content_hash for k, w in source.outbox().items()} == source.expected()
        read = lab.run("SELECT item_key::int, eligible, content FROM evervec.read_items(%s, %s)",
                       [source.name, list(map(str, range(len(rows))))])  # fmt: skip
        assert sorted(read) == [
            (n, bool(row[3]) and not blank(row[0]) and not blank(row[1]), content_of(row[:3]))
            for n, row in enumerate(rows)
        ]


def modelled(lab: Lab) -> Source:
    """One table for all examples."""
    if not value(lab.connection, "SELECT count(*) FROM pg_tables WHERE schemaname = %s", [lab.schema]):
        lab.run(ITEMS.replace("NOT NULL DEFAULT true", ""))
        lab.watch(required=["name", "description"]).fill()
    side = "items_embedding" if lab.destination == "table" else None
    return Source(
        lab.connection,
        lab.schema,
        "items",
        side,
        ["name", "description", "category"],
        ["name", "description"],
        "active",
    )


def test_a_predicate_over_several_columns(lab: Lab) -> None:
    # Columns called like variables of a trigger are columns.
    lab.run("CREATE TABLE items (id int PRIMARY KEY, name text, is_active boolean, stored int, h text, other int)")
    active = "is_active AND (stored > 2 OR h IN ('a%', 'b')) -- only these"
    source = lab.watch(text_columns=["name"], active=active)
    source.active = active + "\n"
    lab.run(
        "INSERT INTO items VALUES (1, 'x', true, 3, NULL), (2, 'x', true, 1, 'a%'), (3, 'x', true, 1, NULL), "
        "(4, 'x', NULL, 3, NULL)"
    )
    assert source.assert_settled() == ["1", "2"]
    lab.run("UPDATE items SET h = 'b' WHERE id = 3")
    assert source.assert_settled() == ["3"]
    lab.run("UPDATE items SET is_active = true WHERE id = 4")
    assert source.assert_settled() == ["4"]
    assert trigger_calls(lab, "UPDATE items SET other = 1") == 0
    lab.run("UPDATE items SET stored = 0, h = NULL, name = 'edited'")
    assert source.assert_settled() == []
    assert source.status()["eligible"] == 0


@pytest.mark.parametrize("active", ["t.active", "active = true", "'true'", "true", "lower(category) = 'tools'"])
def test_other_forms_of_active(lab: Lab, active: str) -> None:
    lab.run(ITEMS)
    lab.run("INSERT INTO items VALUES (1, 'a', 'b', 'Tools')")
    source = lab.watch(active=active)
    assert source.assert_settled() == ["1"]
    lab.run("INSERT INTO items VALUES (2, 'a', 'b', 'TOOLS')")
    assert source.assert_settled() == ["2"]


def test_columns_that_a_live_session_sees_change(lab: Lab) -> None:
    lab.run(ITEMS)
    source = lab.watch(active="active AND price IS DISTINCT FROM 13")
    with connect(lab.conninfo) as other:
        run(other, f"SET search_path = {lab.schema}")
        for n, change in enumerate(
            ["ADD COLUMN more text DEFAULT 'x'", "ADD COLUMN n int", "ALTER COLUMN n TYPE text", "DROP COLUMN more"]
        ):
            run(other, "INSERT INTO items (id, name) VALUES (%s, 'before')", [n])
            lab.run(f"ALTER TABLE items {change}")
            run(other, "UPDATE items SET name = 'after' WHERE id = %s", [n])
            assert source.assert_settled() == [str(n)]


def test_a_repeatable_read_that_does_not_see_the_last_write_back(lab: Lab) -> None:
    source = lab.watched(1)
    lab.run("UPDATE items SET name = 'edited'")
    with connect(lab.conninfo) as other:
        run(other, f"SET search_path = {lab.schema}")
        run(other, "BEGIN ISOLATION LEVEL REPEATABLE READ")
        run(other, "SELECT * FROM items")
        assert source.drain() == ["1"]
        if lab.destination == "column":
            with pytest.raises(psycopg.errors.SerializationFailure):
                run(other, "UPDATE items SET name = 'name 1'")
            run(other, "ROLLBACK")
        else:
            run(other, "UPDATE items SET name = 'name 1'")
            run(other, "COMMIT")
            assert source.assert_settled() == ["1"]


# ---- Failed items -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("statement", "embedded"),
    [
        ("UPDATE items SET name = 'good'", "1"),
        ("UPDATE items SET name = 'name 1'", ""),
        ("UPDATE items SET active = false", ""),
        ("UPDATE items SET name = ''", ""),
        ("UPDATE items SET id = id", "1"),
        ("UPDATE items SET id = 2", "2"),
        ("DELETE FROM items", ""),
    ],
)
def test_a_failed_item_is_failed_no_more_when_its_content_changes(lab: Lab, statement: str, embedded: str) -> None:
    source = lab.watched(1)
    lab.run("UPDATE items SET name = 'poison'")
    source.fail("1")
    lab.run("UPDATE items SET price = 0")
    status = source.status()
    assert (status["failed"], status["stale"], status["pending"]) == (1, 1, 0)
    lab.run(statement)
    assert source.status()["failed"] == 0
    assert lab.run("SELECT * FROM evervec.failures WHERE source = %s", [source.name]) == []
    assert all((w.state, w.attempts) == ("pending", 0) for w in source.outbox().values())
    assert source.assert_settled() == list(embedded)


# ---- The bell -----------------------------------------------------------------------------------------------------


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


def test_only_one_transaction_rings_at_a_time(lab: Lab, bell: Bell) -> None:
    source = lab.watched(2)
    bell.payloads()
    with connect(lab.conninfo) as other, other.transaction():
        run(other, f"UPDATE {lab.schema}.items SET name = 'edited' WHERE id = 1")
        lab.run("UPDATE items SET name = 'edited' WHERE id = 2")
    assert [key for key, _ in bell.items(source.name)] == ["1"]
    assert source.assert_settled() == ["1", "2"]


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


# ---- A small notification queue -----------------------------------------------------------------------------------


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
