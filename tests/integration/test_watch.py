"""What watch refuses: with one clear error, and nothing changed."""

import uuid
from importlib.resources import files
from typing import Any

import psycopg
import pytest
from psycopg import sql

from tests.integration.contract import ITEMS, Lab, connect, fresh_database, lab_in, run, snapshot, value

DEFAULT_MODEL = "sentence-transformers/paraphrase-multilingual-mpnet-base-v2"


def assert_refused(lab: Lab, words: str, *, table: str = "items", text: Any = ("name",), **options: Any) -> None:
    """One error of one line, and neither the catalog nor evervec's tables are what they were not."""
    before = snapshot(lab.connection)
    with pytest.raises(psycopg.Error) as refusal:
        lab.register(table, text, **options)
    message = refusal.value.diag.message_primary or ""
    assert words in message
    assert "\n" not in message
    assert "null value" not in message
    assert snapshot(lab.connection) == before


@pytest.mark.parametrize(
    ("definition", "table", "words"),
    [
        ("CREATE VIEW other AS SELECT * FROM items", "other", "is not a table"),
        ("CREATE MATERIALIZED VIEW other AS SELECT * FROM items", "other", "is not a table"),
        ("CREATE SEQUENCE other", "other", "is not a table"),
        ("CREATE TYPE other AS (id int, name text)", "other", "is not a table"),
        ("CREATE INDEX other ON items (name)", "other", "is not a table"),
        ("CREATE TEMP TABLE other (id int PRIMARY KEY, name text)", "other", "temporary or a system table"),
        ("", "pg_catalog.pg_authid", "temporary or a system table"),
        ("", "information_schema.sql_features", "temporary or a system table"),
        ("", "evervec.outbox", "temporary or a system table"),
        ("CREATE TABLE other (id int, name text)", "other", "has no primary key of one column"),
        (
            "CREATE TABLE other (a int, b int, name text, PRIMARY KEY (a, b))",
            "other",
            "has no primary key of one column",
        ),
        ("CREATE TABLE other (id int UNIQUE NOT NULL, name text)", "other", "has no primary key of one column"),
        ("CREATE TABLE other (id timestamptz PRIMARY KEY, name text)", "other", "not the same in every session"),
        ("CREATE TABLE other (id float8 PRIMARY KEY, name text)", "other", "not the same in every session"),
        (None, None, "no such table"),
    ],
)
def test_what_is_no_table_with_a_key(lab: Lab, definition: str | None, table: str | None, words: str) -> None:
    lab.run(ITEMS)
    if definition:
        lab.run(definition)
    assert_refused(lab, words, table=table)  # type: ignore[arg-type]
    lab.run("DROP TABLE IF EXISTS pg_temp.other")


def test_a_foreign_table(lab: Lab) -> None:
    server = f"server_{lab.schema}"
    lab.run(f"CREATE FOREIGN DATA WRAPPER {server}")
    lab.run(f"CREATE SERVER {server} FOREIGN DATA WRAPPER {server}")
    lab.run(f"CREATE FOREIGN TABLE items (id int, name text) SERVER {server}")
    assert_refused(lab, "is not a table")
    lab.run(f"DROP FOREIGN DATA WRAPPER {server} CASCADE")


@pytest.mark.parametrize(
    ("column", "key"),
    [
        ("code text", "code"),
        ("code text UNIQUE", "code"),
        ("code text NOT NULL", "code"),
        ("code text NOT NULL UNIQUE DEFERRABLE", "code"),
        ("code text NOT NULL, UNIQUE (code, name)", "code"),
        ("code text NOT NULL, EXCLUDE (code WITH =)", "code"),
        ("code text", "nope"),
        ("code text", "ctid"),
        ("code text", ""),
    ],
)
def test_a_key_that_is_none(lab: Lab, column: str, key: str) -> None:
    lab.run(f"CREATE TABLE items (id int PRIMARY KEY, name text, {column})")
    assert_refused(lab, "is no key" if key == "code" else "has no column", key=key)
    lab.run("CREATE UNIQUE INDEX ON items (name) WHERE name <> ''")
    lab.run("CREATE UNIQUE INDEX ON items (lower(name))")
    lab.run("ALTER TABLE items ALTER COLUMN name SET NOT NULL")
    assert_refused(lab, "is no key", key="name")


def test_another_key_than_the_primary_one(lab: Lab) -> None:
    lab.run("CREATE TABLE items (a int, b int, slug text NOT NULL UNIQUE, name text, PRIMARY KEY (a, b))")
    source = lab.watch(text_columns=["name"], key="slug", active=None)
    lab.run("INSERT INTO items VALUES (1, 1, 'one', 'x')")
    assert source.assert_settled() == ["one"]


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"text": ["nope"]}, "has no column nope"),
        ({"text": ["name", "dropped"]}, "has no column dropped"),
        ({"text": ["ctid"]}, "has no column ctid"),
        ({"text": ["Name"]}, 'has no column "Name"'),
        ({"text": []}, "no text columns"),
        ({"text": None}, "no text columns"),
        ({"text": [None]}, "no text columns"),
        ({"required": ["nope"]}, "has no column nope"),
        ({"required": [None]}, "has no column"),
        ({"text": ["seen"]}, "is not the same in every session: its type is timestamp with time zone"),
        ({"required": ["seen"]}, "is not the same in every session"),
        ({"text": ["ratio"]}, "is not the same in every session: its type is double precision"),
        ({"text": ["day"]}, "is not the same in every session"),
        ({"text": ["raw"]}, "is not the same in every session"),
        ({"text": ["tags"]}, "is not the same in every session"),
        ({"active": "nope = 1"}, 'column "nope" does not exist'),
        ({"active": "nope"}, 'column "nope" does not exist'),
        ({"active": "name"}, "must be type boolean"),
        ({"active": "1"}, "must be type boolean"),
        ({"active": "'perhaps'"}, "invalid input syntax for type boolean"),
        ({"active": "active AND"}, "syntax error"),
        ({"active": "active /* all"}, "unterminated"),
        ({"active": "'active"}, "unterminated"),
        ({"active": "active; DROP TABLE items"}, "syntax error"),
        ({"active": "true) LIMIT 1; DROP TABLE items; --"}, "syntax error"),
        ({"active": "true) UNION SELECT FROM pg_class WHERE (true"}, "syntax error"),
        ({"active": "$1"}, "there is no parameter $1"),
        ({"active": "count(*) > 1"}, "aggregate functions are not allowed"),
        ({"active": "generate_series(1, 2) > 1"}, "set-returning functions are not allowed"),
        ({"active": "EXISTS (SELECT FROM other)"}, 'relation "other" does not exist'),
        ({"active": "EXISTS (SELECT FROM {schema}.other WHERE x = id)"}, "active reads other tables"),
        ({"active": "embedding IS NULL"}, ""),
        ({"model": "some/model"}, "the dimension of the model 'some/model' is not known"),
        ({"model": "stub:8", "dimension": 9}, "gives 8 dimensions, not 9"),
        ({"model": "bundled:use-multilingual-v3", "dimension": 768}, "gives 512 dimensions, not 768"),
        ({"model": DEFAULT_MODEL, "dimension": 512}, "gives 768 dimensions, not 512"),
        ({"model": "some/model", "dimension": 0}, "1 to 16000 dimensions, not 0"),
        ({"model": "some/model", "dimension": -1}, "1 to 16000 dimensions, not -1"),
        ({"model": "some/model", "dimension": 16001}, "1 to 16000 dimensions, not 16001"),
        ({"model": "stub:16001"}, "1 to 16000 dimensions, not 16001"),
        ({"source": "a/b"}, "can't be a source's"),
        ({"source": ""}, "can't be a source's"),
        ({"source": "a\nb"}, "can't be a source's"),
        ({"source": "x" * 201}, "can't be a source's"),
        ({"destination": "elsewhere"}, "the destination is"),
        ({"destination": None}, "the destination is"),
        ({"embedding": ""}, "1 to 50 bytes"),
        ({"embedding": None}, "1 to 50 bytes"),
        ({"embedding": "ü" * 26}, "1 to 50 bytes"),
        ({"embedding": "name"}, "is read as well"),
        ({"embedding": "note", "text": ["name", "note_hash"]}, "is read as well"),
        ({"embedding": "note", "active": "note_hash IS NULL"}, "is read as well"),
        ({"embedding": "id"}, "is read as well"),
    ],
    ids=lambda x: str(x)[:60] if isinstance(x, dict) else "",
)
def test_what_does_not_fit_the_table(lab: Lab, options: dict[str, Any], words: str) -> None:
    lab.run(
        "CREATE TABLE items (id int PRIMARY KEY, name text, active boolean, seen timestamptz, ratio float8, day date, "
        "raw bytea, tags text[], dropped text, note_hash text)"
    )
    lab.run("ALTER TABLE items DROP COLUMN dropped")
    lab.run("CREATE TABLE other (x int)")
    if "active" in options:
        options = options | {"active": options["active"].replace("{schema}", lab.schema)}
    assert_refused(lab, words, **options)


@pytest.mark.parametrize(
    "options", [{"text": ["shown"]}, {"required": ["shown"]}, {"active": "on_sale"}, {"active": "shown > ''"}]
)
def test_columns_that_are_generated_when_they_are_read(lab: Lab, options: dict[str, Any]) -> None:
    if value(lab.connection, "SELECT current_setting('server_version_num')::int") < 180000:
        pytest.skip("PostgreSQL 18 brought them")
    lab.run(
        "CREATE TABLE items (id int PRIMARY KEY, name text, shown text GENERATED ALWAYS AS (upper(name)) VIRTUAL, "
        "on_sale boolean GENERATED ALWAYS AS (id > 1) VIRTUAL)"
    )
    assert_refused(lab, "generated when it is read", **options)


def test_a_name_that_is_taken(lab: Lab) -> None:
    lab.watched()
    lab.run("CREATE TABLE other (id int PRIMARY KEY, name text)")
    assert_refused(lab, f"the source '{lab.schema}' is taken by the table", table="other")
    assert_refused(lab, "another source writes the same embedding", source=lab.schema + "_2")
    first = lab.watch()
    second = lab.watch(text_columns=["name"], source=lab.schema + "_2", embedding="second")
    lab.run("INSERT INTO items VALUES (1, 'x', 'y')")
    assert second.assert_settled() == ["1"]
    assert first.assert_settled() == ["1"]
    assert first.stored() != second.stored()


def target(lab: Lab) -> str:
    """The table that holds the embeddings, made by hand."""
    lab.run(ITEMS)
    lab.run("INSERT INTO items VALUES (1, 'a', 'b'), (2, 'c', 'd')")
    if lab.destination == "column":
        return "items"
    lab.run("CREATE TABLE items_embedding (id bigint PRIMARY KEY)")
    lab.run("INSERT INTO items_embedding VALUES (1), (2)")
    return "items_embedding"


BESIDE = "ADD embedding_hash text, ADD embedding_model text, ADD embedded_at timestamptz"


@pytest.mark.parametrize(
    ("columns", "words"),
    [
        (f"ADD embedding text, {BESIDE}", "is text and no vector"),
        (f"ADD embedding real[], {BESIDE}", "is real[] and no vector"),
        (f"ADD embedding halfvec(8), {BESIDE}", "halfvec(8) and no vector"),
        ("ADD embedding vector(8), ADD embedding_hash int, ADD embedding_model text, ADD embedded_at timestamptz",
         "is integer where evervec keeps text"),
        ("ADD embedding vector(8), ADD embedding_hash text, ADD embedding_model text, ADD embedded_at timestamp",
         "is timestamp without time zone where evervec keeps"),
    ],
)  # fmt: skip
@pytest.mark.parametrize("overwrite", [False, None])
def test_columns_of_another_type(lab: Lab, columns: str, words: str, overwrite: bool | None) -> None:
    lab.run(f"ALTER TABLE {target(lab)} {columns}")
    assert_refused(lab, words, overwrite=overwrite)
    source = lab.watch(overwrite=True)
    assert source.assert_settled() == ["1", "2"]


@pytest.mark.parametrize("overwrite", [False, None])
@pytest.mark.parametrize("declared", ["vector(8)", "vector(3)", "vector"])
def test_vectors_that_evervec_did_not_write(lab: Lab, declared: str, overwrite: bool | None) -> None:
    table = target(lab)
    lab.run(f"ALTER TABLE {table} ADD embedding {declared}, {BESIDE}")
    dimension = 3 if "3" in declared else 8
    lab.run(f"UPDATE {table} SET embedding = array_fill(1, ARRAY[{dimension}])::real[]::vector WHERE id = 1")
    assert_refused(lab, "holds vectors that evervec did not write", overwrite=overwrite)
    source = lab.watch(overwrite=True)
    assert source.search() == set()
    assert source.status()["stale"] == 2
    # They are evervec's own to deal with from now on.
    source = lab.watch(text_columns=["name"])
    assert source.search() == set()
    assert source.assert_settled() == ["1", "2"]
    assert source.search() == {"1", "2"}


@pytest.mark.parametrize("declared", ["vector(8)", "vector(3)", "vector"])
def test_an_empty_vector_column_is_taken(lab: Lab, declared: str) -> None:
    table = target(lab)
    lab.run(f"ALTER TABLE {table} ADD embedding {declared}" + (f", {BESIDE}" if lab.destination == "table" else ""))
    source = lab.watch()
    assert source.assert_settled() == ["1", "2"]
    assert value(
        lab.connection,
        "SELECT format_type(atttypid, atttypmod) FROM pg_attribute WHERE attrelid = %s::text::regclass AND attname = "
        "'embedding'", [table],
    ) == "vector(8)"  # fmt: skip


@pytest.mark.parametrize(
    "definition",
    [
        "CREATE TABLE items_embedding (id bigint PRIMARY KEY, note text)",
        "CREATE TABLE items_embedding (id bigint PRIMARY KEY)",
        "CREATE TABLE items_embedding (id int PRIMARY KEY)",
        "CREATE TABLE items_embedding (id bigint)",
        "CREATE VIEW items_embedding AS SELECT * FROM items",
        "CREATE SEQUENCE items_embedding",
        f"CREATE TABLE items_embedding (id bigint PRIMARY KEY); ALTER TABLE items_embedding ADD note text, {BESIDE}",
    ],
)
def test_a_table_that_is_in_the_side_tables_place(contract_database: str, definition: str) -> None:
    with lab_in(contract_database, "table") as lab:
        lab.run(ITEMS)
        lab.run(definition)
        assert_refused(lab, "is not this source's table of embeddings")
        assert_refused(lab, "is not this source's table of embeddings", overwrite=True)


def test_two_side_tables_of_one_name(contract_database: str) -> None:
    with lab_in(contract_database, "table") as lab:
        lab.run(ITEMS)
        lab.watch(embedding="text_embedding")
        lab.run("CREATE TABLE items_text (id bigint PRIMARY KEY, name text)")
        assert_refused(lab, "is not this source's table", table="items_text", source=lab.schema + "_2")


def test_a_side_table_whose_name_would_be_too_long(contract_database: str) -> None:
    name = "ü" * 31
    with lab_in(contract_database, "table") as lab:
        lab.run(f"CREATE TABLE {name} (id bigint PRIMARY KEY, name text)")
        assert_refused(lab, "longer than 63 bytes", table=name)
        lab.destination = "column"
        source = lab.watch(name, ["name"], active=None, embedding="x" * 50)
        lab.run(f"INSERT INTO {name} VALUES (1, 'x')")
        assert source.drain() == ["1"]


def test_pgvector_is_not_there(lab: Lab, postgres: str, template_database: str) -> None:
    with fresh_database(postgres, template_database) as conninfo, lab_in(conninfo, lab.destination) as without:
        without.run("DROP EXTENSION vector")
        without.run(ITEMS)
        assert_refused(without, "pgvector is not installed in this database")


def test_somebody_elses_table(lab: Lab) -> None:
    lab.run(ITEMS)
    role = sql.Identifier(f"stranger_{uuid.uuid4().hex}").as_string()
    lab.run(f"CREATE ROLE {role}")
    lab.run(f"GRANT USAGE ON SCHEMA {lab.schema}, evervec TO {role}")
    lab.run(f"GRANT ALL ON items TO {role}")
    lab.run(f"GRANT ALL ON ALL TABLES IN SCHEMA evervec TO {role}")
    lab.run(f"GRANT EXECUTE ON ALL FUNCTIONS IN SCHEMA evervec TO {role}")
    lab.run(f"SET ROLE {role}")
    assert_refused(lab, "you do not own")
    lab.run("RESET ROLE")
    lab.run(f"DROP OWNED BY {role}")
    lab.run(f"DROP ROLE {role}")


def test_an_owner_without_superuser_watches_and_works(postgres: str, template_database: str) -> None:
    """The whole contract in the hands of a role that only owns the database's tables and schema evervec."""
    owner = f"owner_{uuid.uuid4().hex}"
    with fresh_database(postgres, template_database) as conninfo, connect(conninfo) as admin:
        run(admin, "DROP SCHEMA evervec CASCADE")
        run(admin, f"CREATE ROLE {owner}")
        run(admin, f"GRANT ALL ON DATABASE {conninfo.rpartition('/')[2]} TO {owner}")
        run(admin, f"SET ROLE {owner}")
        for _ in range(2):
            run(admin, files("db").joinpath("triggers.sql").read_text(encoding="utf-8"))
        for destination in ("column", "table"):
            lab = Lab(conninfo, admin, destination)
            source = lab.watched(3)
            lab.run("UPDATE items SET name = 'edited' WHERE id = 1; DELETE FROM items WHERE id = 2")
            assert source.assert_settled() == ["1"]
            assert source.status()["coverage"] == 1
            lab.run("ALTER TABLE items ENABLE ROW LEVEL SECURITY")
            assert lab.watch(text_columns=["name"]).assert_settled() == ["1", "3"]
            lab.run("ALTER TABLE items FORCE ROW LEVEL SECURITY")
            assert_refused(lab, "row security hides rows")
            lab.run("SELECT evervec.unwatch(%s)", [source.name])
        run(admin, "SELECT evervec.uninstall()")
        run(admin, "RESET ROLE")
        run(admin, f"DROP OWNED BY {owner} CASCADE")
        run(admin, f"DROP ROLE {owner}")
