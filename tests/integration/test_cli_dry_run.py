"""`watch --dry-run`: it says what would be, changes nothing, and is right about it."""

from collections.abc import AsyncIterator, Iterator

import pytest

from service.plan import EXACT_ROWS
from tests.integration.commands import Cli, CommandProcess
from tests.integration.pipeline import Site

TABLE = "CREATE TABLE items (id bigint PRIMARY KEY, name text, description text, active boolean DEFAULT true)"
WATCH = ("watch", "items", "--text", "name,description", "--required", "name", "--active", "active")
NEW_COLUMNS = ["embedding", "embedding_hash", "embedding_model", "embedded_at"]
# All that evervec, the table and the catalogs hold of it.
STATE = """
    SELECT (SELECT array_agg(s::text ORDER BY name) FROM evervec.source s),
           (SELECT array_agg(o::text) FROM evervec.outbox o),
           (SELECT last_value FROM evervec.outbox_version),
           (SELECT array_agg(attname ORDER BY attnum) FROM pg_attribute WHERE attrelid = 'items'::regclass),
           (SELECT count(*) FROM pg_class), (SELECT count(*) FROM pg_trigger),
           (SELECT array_agg(i::text ORDER BY id) FROM items i)
"""


@pytest.fixture(scope="module")
def process() -> Iterator[CommandProcess]:
    with CommandProcess.running() as running:
        yield running


@pytest.fixture
async def site(database: str, temporal_address: str) -> AsyncIterator[Site]:
    async with Site.open(database, temporal_address) as opened:
        await opened.run(TABLE)
        await opened.run("INSERT INTO items SELECT n, 'item ' || n, 'd' FROM generate_series(1, 20) AS n")
        await opened.run("UPDATE items SET active = false WHERE id <= 3; UPDATE items SET name = ' ' WHERE id = 4")
        yield opened


@pytest.fixture
def cli(site: Site, process: CommandProcess) -> Cli:
    return Cli(process, site.settings)


async def test_a_new_source(site: Site, cli: Cli) -> None:
    before = await site.run(STATE)
    plan = (await cli.ok(*WATCH, "--model", "stub:8", "--dry-run", "--json")).json
    assert plan["items_per_second"] > 0
    assert plan["seconds"] > 0
    assert plan == plan | {
        "source": "items",
        "relation": "public.items",
        "alters": False,
        "model": "stub:8",
        "dimension": 8,
        "destination": "column",
        "added_table": None,
        "added_columns": NEW_COLUMNS,
        "replaced_columns": [],
        "dropped_indexes": [],
        "exact": True,
        "rows": 20,
        "eligible": 16,
        "fitting": 0,
        "stale": 0,
        "cleared": 0,
        "to_embed": 16,
    }
    assert "texts" not in plan
    shown = await cli.ok(*WATCH, "--model", "stub:8", "--dry-run")
    assert "adds      the columns embedding, embedding_hash, embedding_model, embedded_at" in shown.out
    assert shown.line == "nothing was changed: without --dry-run it is done"
    assert await site.run(STATE) == before


async def test_a_table_beside_it(site: Site, cli: Cli) -> None:
    before = await site.run(STATE)
    command = (*WATCH, "--model", "stub:8", "--destination", "table")
    plan = (await cli.ok(*command, "--dry-run", "--json")).json
    assert (plan["added_table"], plan["rewritten_bytes"]) == ("public.items_embedding", 0)
    assert await site.run(STATE) == before
    await cli.ok(*command)
    assert (await cli.ok(*command, "--dry-run", "--json")).json["added_table"] is None


@pytest.mark.parametrize("destination", ["column", "table"])
async def test_what_becomes_of_the_vectors_that_are_there(site: Site, cli: Cli, destination: str) -> None:
    same = (*WATCH, "--destination", destination)
    await cli.ok(*same, "--model", "stub:8")
    async with site.running():
        await cli.ok("backfill", "--wait")
    table = "items" if destination == "column" else "items_embedding"
    await site.run(f"CREATE INDEX ON {table} USING hnsw (embedding vector_cosine_ops)")
    before = await site.run(STATE)

    async def plan(*command: str) -> dict[str, object]:
        made: dict[str, object] = (await cli.ok(*command, "--dry-run", "--json")).json
        assert await site.run(STATE) == before
        return made

    found = await plan(*same, "--model", "stub:8")
    assert found == found | {
        "alters": True,
        "added_columns": [],
        "fitting": 16,
        "stale": 0,
        "cleared": 0,
        "to_embed": 0,
    }
    assert found["seconds"] == 0
    # Another text: each has another hash.
    found = await plan("watch", "items", "--text", "name", "--destination", destination)
    assert found == found | {"model": "stub:8", "fitting": 0, "to_embed": 20}
    assert found["stale"] == 16
    # Another dimension: the column goes, and its index.
    found = await plan(*same, "--model", "stub:4")
    assert found == found | {"replaced_columns": ["embedding"], "fitting": 0, "stale": 0, "cleared": 16, "to_embed": 16}
    assert found["dropped_indexes"] == [f"public.{table}_embedding_idx"]
    await cli.ok(*same, "--model", "stub:4")
    assert await site.value(f"SELECT count(embedding) FROM {table}") == 0
    assert await site.value("SELECT count(*) FROM pg_indexes WHERE indexname LIKE '%%embedding_idx'") == 0


async def test_errors_are_those_of_watch(site: Site, cli: Cli) -> None:
    await site.run("ALTER TABLE items ADD COLUMN embedding text")
    for command, text in {
        ("watch", "nothing", "--text", "a"): 'relation "nothing" does not exist',
        ("watch", "items", "--text", "colour"): "has no column colour",
        ("watch", "items", "--text", "name"): "is text and no vector",
        ("watch", "items", "--text", "name", "--active", "id <"): "can't be evaluated",
    }.items():
        real, dry = await cli(*command, "--model", "stub:8"), await cli(*command, "--model", "stub:8", "--dry-run")
        assert text in dry.line
        assert (dry.code, dry.line) == (real.code, real.line)
    overwritten = await cli.ok(
        "watch", "items", "--text", "name", "--model", "stub:8", "--overwrite", "--dry-run", "--json"
    )
    assert overwritten.json["replaced_columns"] == ["embedding"]
    refused = await cli("watch", "items", "--text", "name", "--json")
    assert (refused.code, refused.line) == (2, "evervec: --json goes with --dry-run")


async def test_a_model_that_is_not_here(cli: Cli) -> None:
    answer = await cli.ok(*WATCH, "--model", "no-such/model", "--dimension", "8", "--dry-run", "--json")
    assert "note: the time is not known: " in answer.err
    assert (answer.json["seconds"], answer.json["items_per_second"]) == (None, None)


@pytest.mark.parametrize("parts", ["", "PARTITION BY RANGE (id)"])
async def test_a_large_table_is_estimated(site: Site, cli: Cli, parts: str) -> None:
    rows = EXACT_ROWS * 2
    if parts:
        await site.run(f"DROP TABLE items; {TABLE} {parts}; CREATE TABLE part PARTITION OF items DEFAULT")
    await site.run("INSERT INTO items SELECT n, 'item', 'd', n %% 4 > 0 FROM generate_series(100, %s) AS n", rows + 99)
    await site.run("ANALYZE items")
    plan = (await cli.ok(*WATCH, "--model", "stub:8", "--dry-run", "--json")).json
    assert not plan["exact"]
    assert plan["rows"] == pytest.approx(rows, rel=0.01)
    assert plan["eligible"] == pytest.approx(rows * 3 / 4, rel=0.05)
    size = await site.value("SELECT pg_relation_size(%s::regclass)", "part" if parts else "items")
    assert plan["rewritten_bytes"] == pytest.approx(size * 3 / 4, rel=0.05)


@pytest.mark.parametrize("destination", ["column", "table"])
@pytest.mark.parametrize("model", ["stub:8", "stub:768"])
async def test_the_disk_is_about_what_it_said(site: Site, cli: Cli, destination: str, model: str) -> None:
    await site.run("INSERT INTO items SELECT n, 'item', repeat(md5(n::text), 5) FROM generate_series(100, 3099) AS n")
    await site.run("VACUUM FULL items")
    command = (*WATCH, "--model", model, "--destination", destination)
    plan = (await cli.ok(*command, "--dry-run", "--json")).json
    size = "SELECT sum(pg_total_relation_size(oid))::bigint FROM pg_class WHERE relname IN ('items', 'items_embedding')"
    before = await site.value(size)
    await cli.ok(*command)
    async with site.running():
        await cli.ok("backfill", "--wait")
    grown = await site.value(size) - before
    assert 0.5 < (plan["vector_bytes"] + plan["rewritten_bytes"]) / grown < 2, (plan, grown)
