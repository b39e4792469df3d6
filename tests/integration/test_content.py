"""What an item's content is, and when it is eligible."""

import string
import uuid
from typing import Any

import psycopg
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.integration.contract import ITEMS, WHITESPACE, Lab, Source, blank, connect, content_of, run, value

SOME_UUID = str(uuid.UUID(int=1))


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
    lab.run(
        "INSERT INTO items VALUES (1, 'sad', 7, '{\"a\": 1}', '[1, 2]', ' v ', 'c', 'd', %s, 1.0, true)", [SOME_UUID]
    )
    assert source.assert_settled() == ["1"]
    content = value(lab.connection, "SELECT content FROM evervec.read_items(%s, '{1}')", [source.name])
    assert content == f'sad | 7 | {{"a": 1}} | [1, 2] |  v  | c | d | {SOME_UUID} | 1.0 | true'
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
    assert lab.trigger_calls("UPDATE items SET other = 1") == 0
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
