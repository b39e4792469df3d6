"""Each fault that the doctor knows of a source is made for real, and found."""

from collections.abc import AsyncIterator, Iterator
from importlib.resources import files

import pytest

from db.schema import apply_schema
from tests.integration.commands import Cli, CommandProcess
from tests.integration.doctor_lab import TABLE, WATCH, advised, checks_of, found
from tests.integration.pipeline import Site, until


@pytest.fixture(scope="module")
def process() -> Iterator[CommandProcess]:
    with CommandProcess.running() as running:
        yield running


@pytest.fixture
async def site(database: str, temporal_address: str) -> AsyncIterator[Site]:
    async with Site.open(database, temporal_address) as opened:
        await opened.run(TABLE)
        await opened.run(WATCH)
        yield opened


@pytest.fixture
def cli(site: Site, process: CommandProcess) -> Cli:
    return Cli(process, site.settings)


async def test_a_table_that_was_dropped(site: Site) -> None:
    await site.run("DROP TABLE items")
    await found(site.settings, "table", "was dropped", "evervec unwatch items")


async def test_a_column_that_was_renamed(site: Site) -> None:
    await site.run("ALTER TABLE items RENAME name TO title")
    await found(site.settings, "columns", "public.items has no column name", "evervec watch")


async def test_an_embedding_that_was_dropped(site: Site) -> None:
    await site.run("ALTER TABLE items DROP COLUMN embedded_at")
    await found(site.settings, "columns", "no column embedded_at", "evervec watch")


async def test_a_key_that_is_none_any_more(site: Site) -> None:
    await site.run("ALTER TABLE items DROP CONSTRAINT items_pkey")
    await found(site.settings, "columns", "not both UNIQUE and NOT NULL", "primary key")


async def test_triggers_that_are_disabled_or_missing(site: Site) -> None:
    await site.run("ALTER TABLE items DISABLE TRIGGER USER")
    await found(site.settings, "triggers", "disabled on public.items: evervec_gone_", "ENABLE TRIGGER USER")
    await site.run("ALTER TABLE items ENABLE TRIGGER USER")
    assert (await checks_of(site.settings))["triggers"].ok
    [(trigger,)] = await site.run("SELECT tgname FROM pg_trigger WHERE tgname LIKE 'evervec_touch_%%'")
    await site.run(f"DROP TRIGGER {trigger} ON items")
    await found(site.settings, "triggers", f"public.items lacks {trigger}", "verify items --repair")


async def test_a_guard_that_was_dropped(site: Site) -> None:
    await site.run("DROP EVENT TRIGGER evervec_guard")
    await found(site.settings, "triggers", "public.items lacks evervec_row_", "evervec watch")
    await apply_schema(site.conninfo)
    assert (await checks_of(site.settings))["triggers"].ok


async def test_a_partition_whose_triggers_are_disabled(site: Site) -> None:
    await site.run("CREATE TABLE parts (id bigint PRIMARY KEY, name text) PARTITION BY RANGE (id)")
    await site.run("CREATE TABLE part PARTITION OF parts FOR VALUES FROM (0) TO (10)")
    await site.run("SELECT evervec.unwatch('items')")
    await site.run("SELECT evervec.watch('parts', '{name}', model => 'stub:8')")
    assert (await checks_of(site.settings))["triggers"].ok
    await site.run("ALTER TABLE part DISABLE TRIGGER USER")
    await found(site.settings, "triggers", "disabled on public.parts", "ENABLE TRIGGER USER")


async def test_a_table_that_changed_hands(site: Site) -> None:
    await site.run("CREATE ROLE heir")
    await site.run("ALTER TABLE items OWNER TO heir")
    try:
        await found(site.settings, "owner", "public.items was given to heir", "give it back")
    finally:
        await site.run("DROP OWNED BY heir CASCADE")
        await site.run("DROP ROLE heir")


async def test_rows_that_row_security_hides(database: str, temporal_address: str) -> None:
    async with Site.open(database, temporal_address) as site:
        await site.run("CREATE ROLE modest NOLOGIN; GRANT CREATE ON SCHEMA public TO modest")
        await site.run("DROP SCHEMA evervec CASCADE")
        name = await site.value("SELECT current_database()")
        await site.run(f'GRANT CREATE ON DATABASE "{name}" TO modest')
        try:
            await site.run("SET ROLE modest")
            await site.run(TABLE)
            await _install(site)
            await site.run(WATCH)
            await site.run("ALTER TABLE items ENABLE ROW LEVEL SECURITY; ALTER TABLE items FORCE ROW LEVEL SECURITY")
            await site.run("RESET ROLE")
            await found(site.settings, "row security", "hides rows of public.items", "NO FORCE ROW LEVEL SECURITY")
        finally:
            await site.run("RESET ROLE; DROP OWNED BY modest CASCADE; DROP ROLE modest")


async def _install(site: Site) -> None:
    await site.owner.execute(files("db").joinpath("triggers.sql").read_bytes())


async def test_a_column_of_another_dimension(site: Site) -> None:
    await site.run("ALTER TABLE items ALTER COLUMN embedding TYPE vector(9)")
    await found(
        site.settings, "vectors", "public.items.embedding takes 9 dimensions, the source has 8", "evervec watch"
    )
    await site.run("ALTER TABLE items ALTER COLUMN embedding TYPE vector")
    await found(site.settings, "vectors", "takes any number of dimensions", "evervec watch")


async def test_a_large_table_without_an_index(site: Site) -> None:
    await site.run("ALTER TABLE items DISABLE TRIGGER USER")
    await site.run("INSERT INTO items (id) SELECT n FROM generate_series(1, 50000) AS n; ANALYZE items")
    remedy = "CREATE INDEX CONCURRENTLY ON public.items USING hnsw (embedding vector_cosine_ops)"
    await advised(site.settings, "vectors", "no index on public.items.embedding", remedy)
    await site.run(remedy)
    assert (await checks_of(site.settings))["vectors"].remedy is None


async def test_a_model_that_cannot_be_loaded(site: Site, cli: Cli) -> None:
    await site.run("SELECT evervec.watch('items', '{name}', model => 'no-such/model', dimension => 8)")
    await found(site.settings, "model", "no-such/model", "install or download it")
    # The encoder's log says it too, which nobody wants to read twice.
    assert (await cli("doctor")).err == ""


async def test_a_model_of_another_dimension(site: Site) -> None:
    await site.run("UPDATE evervec.source SET dimension = 9")
    await found(site.settings, "model", "9", "evervec watch")


async def test_items_that_failed(site: Site) -> None:
    await site.run("INSERT INTO items VALUES (1, 'a', 'b')")
    await site.run("UPDATE evervec.outbox SET state = 'failed', failed_at = now(), attempts = 5")
    await found(site.settings, "failed items", "1 were given up", "evervec failures items")


async def test_items_that_wait_for_long(site: Site) -> None:
    await site.run("INSERT INTO items VALUES (1, 'a', 'b')")
    checks = await checks_of(site.settings)
    assert (checks["waiting items"].ok, checks["waiting items"].detail[:5]) == (True, "1, th")
    await site.run("UPDATE evervec.outbox SET queued_at = now() - interval '1 hour'")
    await found(site.settings, "waiting items", "they do not become fewer", "evervec item items KEY")
    await site.run("SELECT evervec.throttle('items', 1)")
    await advised(site.settings, "waiting items", "at most 1 a second", "evervec.throttle('items')")
    await site.run("SELECT evervec.pause('items')")
    await advised(site.settings, "waiting items", "the source is paused", "evervec resume items")


async def test_old_items_that_become_fewer_are_no_fault(site: Site) -> None:
    await site.run("INSERT INTO items SELECT n, 'a', 'b' FROM generate_series(1, 5000) AS n")
    await site.run("UPDATE evervec.outbox SET queued_at = now() - interval '1 hour'")
    await site.run("SELECT evervec.throttle('items', 100)")
    async with site.running():
        await until(lambda: site.value("SELECT count(*) < 4900 FROM evervec.outbox"))

        async def become_fewer() -> bool:  # a look lasts some seconds, in which the machine may not come to the worker
            waiting = (await checks_of(site.settings))["waiting items"]
            return (waiting.ok, waiting.remedy) == (True, None) and waiting.detail.endswith("they become fewer")

        await until(become_fewer)
