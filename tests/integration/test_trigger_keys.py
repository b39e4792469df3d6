"""Items keep their place under keys of any type, names of any kind, and keys that change."""

import uuid
from collections.abc import Iterator

import pytest

from tests.integration.contract import ITEMS, Bell, Lab, bell_in


@pytest.fixture
def lab(lab_either_way: Lab) -> Lab:
    return lab_either_way


@pytest.fixture
def bell(contract_database: str) -> Iterator[Bell]:
    with bell_in(contract_database) as bell:
        yield bell


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
        ('text COLLATE "ucs_basic"', "Z", "a"),
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
    assert lab.run("SELECT item_key, state FROM evervec.item_page(%s, NULL, 5)", [source.name]) == [(moved, "stale")]
    assert lab.run("SELECT eligible, outbox IS NULL FROM evervec.explain_item(%s, %s)", [source.name, moved]) == [
        (True, False)
    ]
    assert source.assert_settled() == [moved]
    lab.run("UPDATE items SET name = 'gone'")
    assert lab.run("SELECT FROM evervec.orphans(%s)", [source.name]) == []
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
