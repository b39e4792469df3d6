"""More than a thousand hostile inputs: no error but the clear ones, nothing executed, nothing lost."""

import uuid
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from typing import Any

import psycopg
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from psycopg import sql

from tests.integration.contract import MODEL, Lab, Source, lab_in
from tests.integration.hostile import CANARY, KEYS, NAMES, PREDICATES, TEXTS, UNTOUCHED, hostile

# Errors that say what is wrong with what was given: no such column, no table, a bad value, a name that is taken, …
CLEAR = {
    *(
        "22023",
        "42701",
        "42703",
        "42P01",
        "42602",
        "42601",
        "42710",
        "42P07",
        "42809",
        "42804",
        "42622",
        "55000",
        "0A000",
        "3F000",
    ),
    *("P0002", "42501"),
}


@pytest.fixture(scope="module")
def room(contract_database: str) -> Iterator[Lab]:
    """A schema for all tests of this module; the function that must never be called exists."""
    with lab_in(contract_database, "column") as lab:
        lab.run(CANARY)
        yield lab
        check_untouched(lab)


@pytest.fixture(scope="module")
def watched(room: Lab) -> Source:
    """A table with three fresh items."""
    return room.watched(3)


def clearly(
    lab: Lab, statement: str, parameters: list[Any] | None = None, errors: Collection[str] = CLEAR
) -> list[tuple[Any, ...]] | None:
    """The rows of a statement; None where it is refused with one of the clear errors."""
    found = None
    with clear_errors(errors), lab.connection.transaction():
        found = lab.run(statement, parameters)
    return found  # noqa: RET504 - mypy takes a `with` for one that lets errors pass


@contextmanager
def clear_errors(errors: Collection[str] = CLEAR) -> Iterator[None]:
    """Let no error pass but the clear ones."""
    try:
        yield
    except psycopg.Error as error:
        if error.sqlstate not in errors:
            raise


def watch_clearly(lab: Lab, table: str, columns: list[str], options: dict[str, Any]) -> Source | None:
    """Watch a table; None where that is refused with one of the clear errors."""
    source = None
    with clear_errors(), lab.connection.transaction():
        source = lab.watch(table, columns, **options)
    return source  # noqa: RET504 - as above


def check_untouched(lab: Lab) -> None:
    assert lab.run(UNTOUCHED) == [(1, False)]


@hostile(300)
@given(predicate=PREDICATES)
def test_predicates_of_a_refire(room: Lab, watched: Source, predicate: str) -> None:
    """A predicate is one expression of whoever may call refire: it ends no statement and begins none."""
    refired = clearly(room, "SELECT evervec.refire(%s, %s, true)", [watched.name, predicate], {"22023"})
    assert refired is None or 0 <= refired[0][0] <= 3
    check_untouched(room)


@hostile(150)
@given(predicate=PREDICATES)
@example("SELECT true) ORDER BY (1 = 1")
def test_predicates_of_active(room: Lab, predicate: str) -> None:
    """It is stored, and runs in triggers: what was accepted keeps working."""
    room.run("CREATE TABLE IF NOT EXISTS acts (id bigint PRIMARY KEY, name text)")
    statement = "SELECT evervec.watch('acts', '{name}', source => 'acts', active => %s, model => %s)"
    if clearly(room, statement, [predicate, MODEL], {"22023"}):
        room.run("INSERT INTO acts VALUES (1, 'one'); UPDATE acts SET name = 'edited'; DELETE FROM acts")
        room.run("SELECT * FROM evervec.read_items('acts', '{1}')")
        room.run("SELECT evervec.unwatch('acts')")
    check_untouched(room)


@hostile(40)
@given(st.data())
def test_names_of_tables_and_columns(room: Lab, data: st.DataObject) -> None:
    """Everything that can be a name is one, from watch to unwatch."""
    table, key, *columns = data.draw(st.lists(NAMES, min_size=4, max_size=4, unique=True), "names")
    options = {
        "active": None,
        "required": [columns[0]],
        "embedding": data.draw(NAMES.filter(lambda name: len(name.encode()) < 15), "embedding"),
        "source": uuid.uuid4().hex,
        "key": key,
        "destination": data.draw(st.sampled_from(["column", "table"]), "destination"),
    }
    item_key, text = data.draw(TEXTS, "item key"), data.draw(TEXTS, "text")
    quoted = [sql.Identifier(name).as_string() for name in (table, key, *columns)]
    made = f"CREATE TABLE {quoted[0]} ({quoted[1]} text PRIMARY KEY, {quoted[2]} text, {quoted[3]} text)"
    with room.connection.transaction(force_rollback=True):
        # Names of system columns are none of a table's; those of the tables that are there are taken.
        if clearly(room, made, errors={"42701", "42P07"}) is None:
            return
        if (source := watch_clearly(room, quoted[0], columns, options)) is None:
            return
        escaped = quoted[0].replace("%", "%%")  # psycopg's, where there are parameters
        room.run(f"INSERT INTO {escaped} VALUES (%s, 'a', %s)", [item_key, text])
        assert source.assert_settled() == [item_key]
        room.run(f"UPDATE {quoted[0]} SET {quoted[2]} = 'b'")
        assert source.assert_settled() == [item_key]
        room.run("SELECT evervec.unwatch(%s)", [source.name])
    check_untouched(room)


@pytest.mark.usefixtures("watched")
@hostile(200)
@given(st.data())
def test_arguments_of_watch(room: Lab, data: st.DataObject) -> None:
    arguments: dict[str, st.SearchStrategy[Any]] = {
        "relation": TEXTS,
        "text_columns": KEYS,
        "required": KEYS,
        "key": NAMES,
        "source": TEXTS,
        "model": TEXTS,
        "prompt": TEXTS,
        "revision": TEXTS,
        "destination": TEXTS,
        "embedding": NAMES,
        "dimension": st.integers(-(2**31), 2**31 - 1),
    }
    given_arguments: dict[str, Any] = {"relation": "items", "text_columns": ["name"], "model": MODEL, "source": "other"}
    given_arguments["embedding"] = "second"
    for name in data.draw(st.sets(st.sampled_from(sorted(arguments)), min_size=1, max_size=3), "which"):
        given_arguments[name] = data.draw(arguments[name], name)
    casts = {"relation": "::text::regclass", "text_columns": "::name[]", "required": "::name[]"}
    named = ", ".join(f"{name} => %s{casts.get(name, '')}" for name in given_arguments)
    found = clearly(room, f"SELECT evervec.watch({named})", list(given_arguments.values()))
    if found:
        [(name,)] = found
        room.run("UPDATE items SET name = name")
        room.run("SELECT evervec.unwatch(%s)", [name])
    check_untouched(room)


CALLS = [
    ("refire_keys(%s, %s, true)", (TEXTS, KEYS)),
    ("retry(%s, %s)", (TEXTS, KEYS)),
    ("pause(%s)", (TEXTS,)),
    ("unwatch(%s)", (TEXTS.filter(lambda name: name != "items"),)),
    ("read_items(%s, %s)", (TEXTS, KEYS)),
    ("explain_item(%s, %s)", (TEXTS, TEXTS)),
    ("orphans(%s)", (TEXTS,)),
    ("count_page(%s, NULL, 10)", (TEXTS,)),
    ("sample_page(%s, NULL, 10, 5)", (TEXTS,)),
    ("sweep_page(%s, %s, 5, '0', '0')", (TEXTS, TEXTS)),
    ("pending_among(%s, %s)", (KEYS, KEYS)),
    ("note_errors(%s, %s, '{1,2}', %s)", (TEXTS, KEYS, TEXTS)),
    ("record_failures(%s, %s, '{1,2}', %s, 1)", (TEXTS, KEYS, KEYS)),
    ("write_back(%s, %s, '{1,2}', %s, '{1,0}')", (TEXTS, KEYS, KEYS)),
]


@hostile(250)
@given(st.data())
def test_arguments_of_the_other_functions(room: Lab, watched: Source, data: st.DataObject) -> None:
    call, strategies = data.draw(st.sampled_from(CALLS), "call")
    arguments = [data.draw(strategy) for strategy in strategies]
    if isinstance(arguments[0], str) and data.draw(st.booleans(), "the real source"):
        arguments[0] = watched.name
        if call.startswith(("unwatch", "pause")):
            return
    clearly(room, f"SELECT * FROM evervec.{call}", arguments)
    check_untouched(room)


def test_nothing_was_lost(room: Lab, watched: Source) -> None:
    """After all that the items are what they were, and every edit is still followed."""
    room.run("SELECT evervec.retry(%s)", [watched.name])
    watched.drain()
    room.run("UPDATE items SET name = 'edited ' || id")
    assert watched.assert_settled() == ["1", "2", "3"]
    assert room.run("SELECT name FROM evervec.source") == [(watched.name,)]
