"""What the triggers of a watched table do: which writes leave work, and which leave none."""

from collections.abc import Iterator

import pytest

from tests.integration.contract import Bell, Lab, bell_in, value


@pytest.fixture
def lab(lab_either_way: Lab) -> Lab:
    return lab_either_way


@pytest.fixture
def bell(contract_database: str) -> Iterator[Bell]:
    with bell_in(contract_database) as bell:
        yield bell


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


def test_an_update_of_other_columns_costs_nothing(lab: Lab, bell: Bell, request: pytest.FixtureRequest) -> None:
    source = lab.watched(3)
    bell.payloads()
    # Where nobody would notice a BEFORE trigger that comes later: a look at each row, and nothing else.
    looks = 3 if "unguarded" in request.node.name else 0
    assert lab.trigger_calls("UPDATE items SET price = price + 1") == looks
    assert source.outbox() == {}
    assert bell.payloads() == []
    # A stale row is none of its business either.
    lab.run("DELETE FROM evervec.outbox")
    lab.run(f"UPDATE {source.side_table or 'items'} SET embedding = NULL")
    lab.run("UPDATE items SET price = price + 1")
    assert source.outbox() == {}
    assert lab.trigger_calls("UPDATE items SET name = name") > looks


def test_a_write_back_leaves_no_work_and_rings_nothing(lab: Lab, bell: Bell) -> None:
    source = lab.watched(1)
    lab.run("UPDATE items SET name = 'edited'")
    bell.payloads()
    version = value(lab.connection, "SELECT last_value FROM evervec.outbox_version")
    assert source.work(["1"]) == {"1": "embedded"}
    assert source.outbox() == {}
    assert bell.payloads() == []
    assert value(lab.connection, "SELECT last_value FROM evervec.outbox_version") == version


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


@pytest.mark.parametrize(
    "when", ["before watch", "after watch", "on a partition", "with a partition", "as no superuser"]
)
def test_a_before_trigger_is_noticed_whenever_it_comes(lab: Lab, when: str) -> None:
    of_whom = "items"
    trigger = (
        "CREATE FUNCTION rewrite() RETURNS trigger LANGUAGE plpgsql AS "
        "$$ BEGIN NEW.name := 'costs ' || NEW.price; RETURN NEW; END $$; "
        "CREATE TRIGGER zz BEFORE UPDATE OF price ON {} FOR EACH ROW EXECUTE FUNCTION rewrite()"
    )
    if "partition" in when:
        of_whom = "second"
        lab.run("CREATE TABLE items (id int PRIMARY KEY, name text, price int) PARTITION BY RANGE (id)")
        lab.run("CREATE TABLE first PARTITION OF items FOR VALUES FROM (0) TO (10)")
        if when == "on a partition":
            lab.run("CREATE TABLE second PARTITION OF items FOR VALUES FROM (10) TO (20)")
    else:
        lab.run("CREATE TABLE items (id int PRIMARY KEY, name text, price int)")
    if when == "before watch":
        lab.run(trigger.format(of_whom))
    source = lab.watch(text_columns=["name"], required=[], active=None)
    if when == "with a partition":
        lab.run("CREATE TABLE second (LIKE items INCLUDING ALL)")
    if when == "as no superuser":
        lab.run(f"GRANT ALL ON SCHEMA {lab.schema} TO pg_monitor; GRANT TRIGGER ON items TO pg_monitor")
        lab.run("SET ROLE pg_monitor")
        lab.run(trigger.format(of_whom))
        lab.run("RESET ROLE")
    elif when != "before watch":
        lab.run(trigger.format(of_whom))
    if when == "with a partition":
        lab.run("ALTER TABLE items ATTACH PARTITION second FOR VALUES FROM (10) TO (20)")
    lab.run("INSERT INTO items VALUES (11, 'new', 1)")
    assert source.assert_settled() == ["11"]
    lab.run("UPDATE items SET price = 2")
    assert source.assert_settled() == ["11"]
    assert lab.run("SELECT name FROM items") == [("costs 2",)]
    lab.run("UPDATE items SET price = 2")
    assert source.outbox() == {}
    lab.run("UPDATE items SET name = 'named', price = 3")
    assert source.assert_settled() == ["11"]


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
