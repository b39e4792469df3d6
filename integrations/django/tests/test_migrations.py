"""Migrations forward, back and forward again, on a database of their own."""

from collections.abc import Iterator
from importlib import import_module
from typing import Any

import pytest
from django.apps import apps
from django.core.exceptions import FieldDoesNotExist
from django.core.management import call_command
from django.db import connections, transaction
from django.db.migrations.state import ProjectState
from django.db.utils import NotSupportedError
from django.test import override_settings

from django_evervec import triggers
from django_evervec.checks import check_dimensions
from django_evervec.operations import InstallEvervec, WatchModel
from tests.things.models import Poem

SCHEMA = """
SELECT 'column', table_schema || '.' || table_name, column_name || ' ' || udt_name || ' ' || is_nullable
FROM information_schema.columns WHERE table_schema IN ('public', 'evervec')
UNION ALL
SELECT 'dimension', attrelid::regclass::text, attname || ' ' || format_type(atttypid, atttypmod) FROM pg_attribute
WHERE atttypid = to_regtype('vector') AND NOT attisdropped AND attrelid::regclass::text !~ 'poem_nearest'
UNION ALL
SELECT 'index', tablename, indexdef FROM pg_indexes WHERE schemaname IN ('public', 'evervec')
UNION ALL
SELECT 'trigger', tgrelid::regclass::text, regexp_replace(tgname, '\\d+', '') FROM pg_trigger
UNION ALL
SELECT 'source', name,
       concat_ws(' ', relation::text, text_columns, required_columns, active, destination, model, dimension)
FROM evervec.source
ORDER BY 1, 2, 3
"""
OBJECTS = "SELECT relname FROM pg_class WHERE relname ~ '^(things|items)_' ORDER BY 1"


@pytest.fixture(autouse=True)
def scratch() -> Iterator[Any]:
    with connections["scratch"].cursor() as cursor:
        yield cursor
    migrate("zero")
    with connections["scratch"].cursor() as cursor:
        cursor.execute("DROP SCHEMA IF EXISTS evervec CASCADE")
    connections["scratch"].close()


def migrate(target: str) -> None:
    call_command("migrate", "things", target, database="scratch", verbosity=0)


def rows(cursor: Any, statement: str) -> list[tuple[Any, ...]]:
    cursor.execute(statement)
    return list(cursor.fetchall())


def test_the_models_are_what_the_migrations_make() -> None:
    call_command("makemigrations", check=True, dry_run=True, verbosity=1)


def test_forward_back_and_forward_again(scratch: Any) -> None:
    migrate("0002")
    first = rows(scratch, SCHEMA)
    assert ("source", "things_poem") in {row[:2] for row in first}
    migrate("zero")
    assert rows(scratch, "SELECT FROM pg_namespace WHERE nspname = 'evervec'") == []
    assert rows(scratch, OBJECTS) == []
    migrate("0002")
    assert rows(scratch, SCHEMA) == first


def test_step_by_step_it_is_the_same_schema(scratch: Any) -> None:
    migrate("0001")
    before = rows(scratch, SCHEMA)
    migrate("0002")
    assert rows(scratch, SCHEMA) != before
    migrate("0001")
    assert rows(scratch, SCHEMA) == before


def test_another_dimension_clears_the_vectors_and_fires_again(scratch: Any) -> None:
    migrate("0001")
    scratch.execute("INSERT INTO things_poem (text) VALUES ('Roses'), ('Violets')")
    scratch.execute(
        "UPDATE things_poem SET embedding = array_fill(0.5, ARRAY[8])::vector, embedding_hash = 'that of 8 dimensions'"
    )
    scratch.execute("DELETE FROM evervec.outbox")
    scratch.execute("UPDATE evervec.source SET filling = false")
    [(index,)] = rows(scratch, "SELECT indexdef FROM pg_indexes WHERE indexname = 'poem_nearest'")
    migrate("0002")
    assert rows(scratch, "SELECT DISTINCT embedding FROM things_poem") == [(None,)]
    assert rows(scratch, "SELECT filling, dimension FROM evervec.source WHERE name = 'things_poem'") == [(True, 16)]
    assert rows(scratch, "SELECT enqueued FROM evervec.fill_page(100) WHERE source = 'things_poem'") == [(2,)]
    assert rows(scratch, "SELECT indexdef FROM pg_indexes WHERE indexname = 'poem_nearest'") == [(index,)]


def test_a_dimension_that_differs_from_the_field_is_found() -> None:
    assert check_dimensions(databases=["scratch"]) == []  # nothing is there
    migrate("0001")
    [warning] = check_dimensions(databases=["scratch"])
    assert warning.id == "evervec.W001"
    assert warning.obj is Poem
    assert warning.msg == "things.Poem.embedding has 16 dimensions, its source 8"
    migrate("0002")
    assert check_dimensions(databases=["scratch"]) == []


def test_the_settings_of_the_migrations_transaction_are_left_alone(scratch: Any) -> None:
    settings = "SELECT current_setting('search_path'), current_setting('client_min_messages'), current_setting('role')"
    before = rows(scratch, settings)
    with transaction.atomic(using="scratch"):
        scratch.execute(triggers.sql_for_a_transaction(), None)
        assert rows(scratch, settings) == before
    assert rows(scratch, "SELECT count(*) FROM evervec.instance") == [(1,)]


def test_a_newer_schema_is_left_as_it_is(scratch: Any) -> None:
    scratch.execute(triggers.sql(), None)
    version = "SELECT schema_version FROM evervec.instance"
    assert rows(scratch, version) == [(triggers.version(),)]
    scratch.execute("UPDATE evervec.instance SET schema_version = schema_version + 1")
    scratch.execute("DROP FUNCTION evervec.explain_item")
    migrate("0001")
    assert rows(scratch, version) == [(triggers.version() + 1,)]
    assert rows(scratch, "SELECT FROM pg_proc WHERE proname = 'explain_item'") == []


def test_what_others_watch_is_not_uninstalled(scratch: Any) -> None:
    migrate("0002")
    scratch.execute("CREATE TABLE of_others (id int PRIMARY KEY, body text)")
    scratch.execute("SELECT evervec.watch('of_others', '{body}', model => 'stub:8')")
    migrate("zero")
    assert rows(scratch, "SELECT name FROM evervec.source") == [("of_others",)]
    scratch.execute("SELECT evervec.uninstall()")
    scratch.execute("DROP TABLE of_others")


def test_sqlmigrate_shows_what_is_run(capsys: pytest.CaptureFixture[str]) -> None:
    call_command("sqlmigrate", "things", "0001", database="scratch", no_color=True)
    shown = capsys.readouterr().out
    assert "CREATE SCHEMA IF NOT EXISTS evervec" in shown
    assert "evervec.watch('\"things_note\"'::regclass, '{heading,body}'::name[]" in shown


def test_a_field_that_is_not_there_is_named() -> None:
    watch = WatchModel("Poem", text=["text", "nonsense"], model="stub:8")
    migrate("0001")
    with (
        connections["scratch"].schema_editor() as editor,
        pytest.raises(FieldDoesNotExist, match=r"WatchModel: things.Poem has no field 'nonsense'"),
    ):
        watch.database_forwards("things", editor, ProjectState.from_apps(apps), ProjectState.from_apps(apps))


def test_without_a_model_it_is_the_settings(scratch: Any) -> None:
    migrate("0001")
    with (
        override_settings(EVERVEC_MODEL="stub:32", EVERVEC_DIMENSION=32),
        connections["scratch"].schema_editor() as editor,
    ):
        state = ProjectState.from_apps(apps)
        WatchModel("Poem", text=["text"]).database_forwards("things", editor, state, state)
    assert rows(scratch, "SELECT model, dimension FROM evervec.source WHERE name = 'things_poem'") == [("stub:32", 32)]
    assert rows(scratch, "SELECT count(*) FROM pg_indexes WHERE indexname = 'poem_nearest'") == [(1,)]


def test_unwatched_and_watched_again_on_the_way_back(scratch: Any) -> None:
    names = "SELECT name FROM evervec.source ORDER BY 1"
    migrate("0002")
    assert rows(scratch, names) == [("things_note",), ("things_poem",)]
    migration = import_module("tests.things.migrations.0002_longer_vectors").Migration
    unwatch = migration.operations[-1]
    state = ProjectState.from_apps(apps)
    with connections["scratch"].schema_editor() as editor:
        unwatch.database_backwards("things", editor, state, state)
    assert rows(scratch, names) == [("things_note",), ("things_poem",), ("titles",)]
    with connections["scratch"].schema_editor() as editor:
        unwatch.database_forwards("things", editor, state, state)
        unwatch.database_forwards("things", editor, state, state)  # nothing is left to do
    assert rows(scratch, names) == [("things_note",), ("things_poem",)]


def test_other_databases_are_refused_in_one_line() -> None:
    class Editor:
        connection = type("Connection", (), {"alias": "default", "vendor": "sqlite"})

    with pytest.raises(NotSupportedError, match="evervec needs PostgreSQL: the database 'default' is sqlite"):
        InstallEvervec().database_forwards("things", Editor(), None, None)
