"""What runs all the time goes by indexes and touches no more rows than it is asked for, whatever the statistics say."""

from collections.abc import AsyncIterator, Iterator

import pytest
from psycopg.rows import TupleRow

from tests.integration.sessions import Lab, Session, shared_database

ROWS = 100_000
BATCH = 256
MIDDLE = ROWS // 2
KEYS = f"(SELECT array_agg(n::text) FROM generate_series({MIDDLE}, {MIDDLE + BATCH - 1}) AS n)"
VERSIONS = f"SELECT array_agg(outbox_version ORDER BY item_key) FROM evervec.read_items('items', {KEYS})"
HASHES = f"SELECT array_agg(content_hash ORDER BY item_key) FROM evervec.read_items('items', {KEYS})"
NOTHING = f"array_fill(NULL::text, ARRAY[{BATCH}])"
VECTORS = f"array_fill(0.5::real, ARRAY[4 * {BATCH}])"

HOT = {
    "read": f"SELECT * FROM evervec.read_items('items', {KEYS})",
    "write-back": f"SELECT * FROM evervec.write_back('items', {KEYS}, %(versions)s, %(hashes)s, {VECTORS})",
    "ack": f"SELECT * FROM evervec.write_back('items', {KEYS}, %(versions)s, {NOTHING}, '{{}}')",
    "read of one": f"SELECT * FROM evervec.read_items('items', ARRAY['{MIDDLE}'])",
    "write-back of one": (
        f"SELECT * FROM evervec.write_back('items', ARRAY['{MIDDLE}'], (%(versions)s::bigint[])[1:1], "
        "(%(hashes)s::text[])[1:1], '{1,2,3,4}')"
    ),
    "failures": (
        f"SELECT evervec.record_failures('items', {KEYS}, %(versions)s, array_fill('why'::text, ARRAY[{BATCH}]), 1)"
    ),
    "note": f"SELECT evervec.note_errors('items', {KEYS}, %(versions)s, 'an error')",
    "page of a sweep": f"SELECT * FROM evervec.sweep_page('items', '{MIDDLE}', {BATCH}, '0', '0')",
    "sources waiting": "SELECT evervec.sources_waiting('0')",
    "pending": f"SELECT * FROM evervec.pending_items('items', '{MIDDLE}', {BATCH})",
    "waiting": f"SELECT * FROM evervec.waiting_items({BATCH})",
    "pending among": f"SELECT * FROM evervec.pending_among(array_fill('items'::text, ARRAY[{BATCH}]), {KEYS})",
    "fill": f"SELECT * FROM evervec.fill_page({BATCH})",
    "re-fire of a page": f"SELECT * FROM evervec.refire_page('items', 'true', true, '{MIDDLE}', {BATCH})",
    "re-fire of keys": f"SELECT evervec.refire_keys('items', {KEYS}, true)",
    "retry": f"SELECT evervec.retry('items', {KEYS})",
    "count": f"SELECT * FROM evervec.count_page('items', '{MIDDLE}', {BATCH})",
    "item": f"SELECT * FROM evervec.explain_item('items', '{MIDDLE}')",
    "page of items": f"SELECT * FROM evervec.item_page('items', '{MIDDLE}', {BATCH})",
    "page of the outbox": f"SELECT * FROM evervec.outbox_page('items', 'pending', '{MIDDLE}', {BATCH}, 50000)",
    "page of the failed": f"SELECT * FROM evervec.outbox_page('items', 'failed', '{MIDDLE}', {BATCH}, {2 * BATCH})",
    "calling off": f"SELECT * FROM evervec.call_off_page('items', '{MIDDLE}', {BATCH})",
    "edit": f"UPDATE items SET name = 'new' WHERE id = '{MIDDLE}'",
    "edit that blanks": f"UPDATE items SET name = '' WHERE id = '{MIDDLE}'",
    "touch": f"UPDATE items SET id = id WHERE id = '{MIDDLE}'",
    "insert": "INSERT INTO items (id, name) VALUES ('0', 'new')",
    "delete": f"DELETE FROM items WHERE id = '{MIDDLE}'",
    "new key": f"UPDATE items SET id = '0' WHERE id = '{MIDDLE}'",
}


EMPTY = "with statistics of empty tables"
"""Common: PostgreSQL looked when a table that is large now had been emptied, and thinks it still is."""


@pytest.fixture(scope="module", params=["without statistics", "with statistics", EMPTY])
def labs(postgres: str, template_database: str, request: pytest.FixtureRequest) -> Iterator[tuple[str, str]]:
    with shared_database(postgres, template_database) as conninfo:
        yield conninfo, request.param


@pytest.fixture(params=["column", "table", "column, other collation", "table, other collation"])
async def lab(labs: tuple[str, str], request: pytest.FixtureRequest) -> AsyncIterator[Lab]:
    """Many items, all of them with a vector of some other text, and all waiting."""
    conninfo, statistics = labs
    destination, _, collation = request.param.partition(", ")
    async with Lab.open(conninfo, destination) as opened:
        run = opened.observer.run
        await run("SELECT evervec.unwatch('items')")
        if collation:
            await run("DROP TABLE IF EXISTS items_embedding")
            await run('ALTER TABLE items ALTER id TYPE text COLLATE "ucs_basic"')
        for table in ("items", "evervec.outbox"):
            await run(f"ALTER TABLE {table} SET (autovacuum_enabled = false)")
        if statistics == EMPTY:
            await run("INSERT INTO items (id, name) SELECT n, 'thing' FROM generate_series(1, 5000) AS n")
            await run("INSERT INTO evervec.outbox (source, item_key, version) SELECT 'items', id, 1 FROM items")
            await run("DELETE FROM evervec.outbox; DELETE FROM items; ANALYZE")
        await run(f"INSERT INTO items (id, name) SELECT n, 'thing ' || n FROM generate_series(1, {ROWS}) AS n")
        await opened.watch()
        values = "array_fill(1::real, ARRAY[4])::vector AS v, 'a hash' AS h, 'a model' AS m, now() AS t"
        if destination == "column":
            await run(
                "UPDATE items SET embedding = v, embedding_hash = h, embedding_model = m, embedded_at = t "
                f"FROM (SELECT {values}) AS x"
            )
        else:
            await run("ALTER TABLE items_embedding SET (autovacuum_enabled = false)")
            await run(f"INSERT INTO items_embedding SELECT id, {values} FROM items")
        await run(f"UPDATE evervec.source SET filling = true, filled_to = '{MIDDLE}'")
        if statistics == "with statistics":
            await run("ANALYZE")
        yield opened


async def touched(session: Session, statement: str, parameters: dict[str, object]) -> list[TupleRow]:
    """The tables of which it reads many more rows than it needs, or any without an index. It is rolled back."""
    await session.run("SELECT pg_stat_force_next_flush()")
    await session.run("BEGIN")
    await session.connection.execute(statement, parameters)
    found = await session.run(
        "SELECT relname, seq_scan, seq_tup_read, idx_tup_fetch FROM pg_stat_xact_user_tables "
        "WHERE relname IN ('items', 'items_embedding', 'outbox') AND (seq_tup_read > 0 OR idx_tup_fetch > %s)",
        5 * BATCH,
    )
    await session.run("ROLLBACK")
    return found


async def greedy(lab: Lab, session: Session) -> dict[str, list[TupleRow]]:
    """The hot statements that read more than they need."""
    parameters = {"hashes": await lab.observer.value(HASHES), "versions": await lab.observer.value(VERSIONS)}
    read = {name: await touched(session, statement, parameters) for name, statement in HOT.items()}
    return {name: tables for name, tables in read.items() if tables}


async def test_hot_statements_touch_few_rows_and_go_by_indexes(lab: Lab) -> None:
    assert await greedy(lab, lab.observer) == {}


PLANS = 8
"""PostgreSQL keeps a plan after five others."""


@pytest.mark.parametrize("destination", ["column", "table"])
async def test_sessions_that_began_while_nothing_waited_go_by_indexes(
    postgres: str, template_database: str, destination: str
) -> None:
    with shared_database(postgres, template_database) as conninfo:
        async with Lab.open(conninfo, destination) as lab:
            run = lab.observer.run
            await run("DELETE FROM evervec.outbox")
            for table in ("evervec.outbox", *(["items_embedding"] if destination == "table" else [])):
                await run(f"ALTER TABLE {table} SET (autovacuum_enabled = false)")
                await run(f"VACUUM ANALYZE {table}")
            await run(f"INSERT INTO items (id, name) SELECT n, 'thing' FROM generate_series({MIDDLE}, {ROWS}) AS n")
            await run("DELETE FROM evervec.outbox")
            await run("VACUUM ANALYZE")
            nothing: dict[str, object] = {"hashes": ["none"] * BATCH, "versions": [0] * BATCH}
            session = await lab.session()
            for statement in reversed(HOT.values()):  # what leaves many dead rows behind comes last
                for _ in range(PLANS):
                    await touched(session, statement, nothing)
            await run(
                f"INSERT INTO items (id, name) SELECT n, 'thing ' || n FROM generate_series(1, {MIDDLE - 1}) AS n"
            )
            await run("UPDATE items SET name = 'thing ' || id WHERE name = 'thing'")
            if destination == "table":
                await run("INSERT INTO items_embedding SELECT id, '[1,1,1,1]', 'a hash', 'a model' FROM items")
            assert await greedy(lab, session) == {}
