"""Each fault that the doctor knows is made for real, and found."""

from collections.abc import AsyncIterator, Iterator
from datetime import UTC, datetime, timedelta
from importlib.resources import files

import psycopg
import pytest
from psycopg.conninfo import make_conninfo
from pydantic import SecretStr

from db.diagnosis import Diagnosis
from db.schema import apply_schema, schema_version
from evervec.schedule import schedule_id
from evervec.settings import Settings
from service.doctor.check import Check
from service.doctor.database import check_clock, check_server
from service.doctor.diagnose import examine
from tests.integration.commands import Cli, CommandProcess
from tests.integration.pipeline import Site, until
from tests.integration.pooler import transaction_pooler
from tests.integration.test_temporal_client import new_namespace

TABLE = "CREATE TABLE items (id bigint PRIMARY KEY, name text, description text, active boolean DEFAULT true)"
WATCH = "SELECT evervec.watch('items', '{name,description}', active => 'active', model => 'stub:8')"


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


async def checks_of(settings: Settings) -> dict[str, Check]:
    """What the doctor says, by the names of the checks."""
    return {check.name: check async for check in examine(settings, models=True)}


async def found(settings: Settings, name: str, detail: str, remedy: str) -> None:
    """The doctor finds this fault and says this."""
    check = (await checks_of(settings))[name]
    assert not check.ok
    assert detail in check.detail
    assert remedy in (check.remedy or "")


async def advised(settings: Settings, name: str, detail: str, remedy: str) -> None:
    """The doctor finds nothing wrong, but advises this."""
    check = (await checks_of(settings))[name]
    assert check.ok
    assert detail in check.detail
    assert remedy in (check.remedy or "")


async def test_nothing_is_wrong(site: Site, cli: Cli) -> None:
    await site.run("INSERT INTO items VALUES (1, 'a', 'b')")
    async with site.running():
        await cli.ok("backfill", "--wait")
        # The listener makes the schedule when it is at work already.
        await until(lambda: _all_ok(site.settings))
        answer = await cli.ok("doctor", "--json")
        assert answer.json["ok"] is True
        assert {"name", "ok", "detail", "remedy"} == {*answer.json["checks"][0]}
        names = [check["name"] for check in answer.json["checks"]]
        assert {"settings", "LISTEN", "schema", "listener", "worker", "safety net", "items: triggers", "model"} <= {
            *names
        }
        assert {check["remedy"] for check in answer.json["checks"]} == {None}
        shown = (await cli.ok("doctor")).out
        assert "nothing is wrong" in shown
        assert "columns, triggers, vectors, failed items, waiting items" in shown
        assert "model" not in [check["name"] for check in (await cli.ok("doctor", "--quick", "--json")).json["checks"]]


async def _all_ok(settings: Settings) -> bool:
    return all([check.ok async for check in examine(settings, models=False)])


# The environment


async def test_a_misspelt_variable(cli: Cli) -> None:
    answer = await cli("doctor", "--json", EVERVEC_DATABSE_URL="x", EVERVEC_NONSENSE="x", EVERVEC_DASHBOARD_URL="x")
    assert answer.code == 1
    wrong = [check for check in answer.json["checks"] if check["name"] == "environment"]
    assert [(check["ok"], check["detail"].split()[0], check["remedy"]) for check in wrong] == [
        (False, "EVERVEC_DATABSE_URL", "did you mean EVERVEC_DATABASE_URL?"),
        (False, "EVERVEC_NONSENSE", "remove it; `evervec --help` lists the settings"),
    ]


async def test_settings_that_contradict_each_other(cli: Cli) -> None:
    answer = await cli("doctor", "--json", EVERVEC_DEBOUNCE_MS="500", EVERVEC_DEBOUNCE_MAX_MS="100")
    assert answer.code == 1
    assert answer.json["checks"][-1] == {
        "name": "settings",
        "ok": False,
        "detail": "EVERVEC_DEBOUNCE_MAX_MS must not be below EVERVEC_DEBOUNCE_MS",
        "remedy": "correct it; `evervec --help` lists the variables",
    }
    assert (await cli("status", EVERVEC_DEBOUNCE_MS="500", EVERVEC_DEBOUNCE_MAX_MS="100")).code == 2


async def test_a_model_cache_that_cannot_be_written(cli: Cli) -> None:
    answer = await cli("doctor", "--quick", EVERVEC_MODEL_CACHE="/proc/evervec/models")
    assert answer.code == 1
    assert "/proc/evervec/models cannot be written" in answer.out
    assert "-> give this process's user the folder" in answer.out


# The database


async def test_no_address(cli: Cli) -> None:
    answer = await cli("doctor", "--json", EVERVEC_DATABASE_URL="")
    assert (answer.code, answer.err) == (1, "")
    [check] = [check for check in answer.json["checks"] if check["name"] == "database"]
    assert "EVERVEC_DATABASE_URL is not set" in check["detail"]


async def test_a_database_that_does_not_answer(cli: Cli) -> None:
    url = "postgresql://somebody:secret@127.0.0.1:1/db"
    answer = await cli("doctor", "--json", EVERVEC_DATABASE_URL=url)
    assert answer.code == 1
    [check] = [check for check in answer.json["checks"] if check["name"] == "database"]
    assert not check["ok"]
    assert "does not answer" in check["detail"]
    assert "secret" not in answer.out


async def test_versions_that_are_too_old(site: Site) -> None:
    async with await Diagnosis.open(site.conninfo) as database:
        server = await database.server()
    checks = {check.name: check for check in check_server(server, least_postgres=99, least_vector=(99, 1))}
    assert "evervec needs 99 or newer" in checks["PostgreSQL version"].detail
    assert "evervec needs 99.1 or newer" in checks["pgvector"].detail
    assert not checks["PostgreSQL version"].ok
    assert not checks["pgvector"].ok


async def test_a_clock_that_is_wrong(site: Site) -> None:
    async with await Diagnosis.open(site.conninfo) as database:
        server = await database.server()
    assert check_clock(server, datetime.now(UTC)).ok
    skewed = check_clock(server, server.now - timedelta(minutes=3))
    assert (skewed.ok, "180 s apart" in skewed.detail) == (False, True)


async def test_nothing_is_installed(empty_database: str, site: Site) -> None:
    settings = site.changed(database_url=SecretStr(empty_database))
    await found(settings, "pgvector", "not installed", "CREATE EXTENSION vector")
    await found(settings, "schema", "not installed", "evervec init")
    assert "listener" not in await checks_of(settings)


async def test_a_schema_of_another_version(site: Site) -> None:
    await site.run("UPDATE evervec.instance SET schema_version = %s", schema_version() + 1)
    await advised(site.settings, "schema", "newer than this program's", "bring this program up to date")
    await site.run("UPDATE evervec.instance SET schema_version = %s", schema_version() - 1)
    await found(site.settings, "schema", "this program's is", "evervec init")
    await site.run("DROP FUNCTION evervec.diagnose_sources")
    await found(site.settings, "schema", "older than this program", "evervec init")


async def test_a_role_without_rights(site: Site) -> None:
    await site.run("CREATE ROLE stranger LOGIN PASSWORD 'secret'")
    settings = site.changed(database_url=SecretStr(make_conninfo(site.conninfo, user="stranger", password="secret")))
    try:
        await found(settings, "rights", "the role stranger may not use", "TO stranger, or connect as")
        for role, duty in {
            "listener": "what a listener does",
            "worker": "what a worker does",
            "viewer": "a viewer",
        }.items():
            await site.run(f"GRANT evervec_{role} TO stranger")
            checks = await checks_of(settings)
            assert checks["rights"].ok
            assert duty in checks["rights"].detail
            assert checks["triggers"].ok
            await site.run(f"REVOKE evervec_{role} FROM stranger")
    finally:
        await site.run("DROP ROLE stranger")


async def test_a_database_that_takes_no_writes(site: Site) -> None:
    name = await site.value("SELECT current_database()")
    await site.run(f'ALTER DATABASE "{name}" SET default_transaction_read_only = on')
    await found(site.settings, "writes", "read-only", "default_transaction_read_only")


async def test_statistics_that_are_off(site: Site) -> None:
    name = await site.value("SELECT current_database()")
    await site.run(f'ALTER DATABASE "{name}" SET track_counts = off')
    await found(site.settings, "statistics", "track_counts is off", "set track_counts to on")


async def test_an_outbox_that_is_not_kept_as_it_should_be(site: Site) -> None:
    await site.run("ALTER TABLE evervec.outbox SET (autovacuum_enabled = off)")
    await found(site.settings, "outbox", "autovacuum is switched off", "RESET (autovacuum_enabled)")
    await site.run("ALTER TABLE evervec.outbox SET UNLOGGED")
    await found(site.settings, "outbox", "a crash empties it", "ALTER TABLE evervec.outbox SET LOGGED")


# The notification's way


async def test_listening_through_a_transaction_pooler(site: Site) -> None:
    async with transaction_pooler(site.conninfo) as conninfo:
        async with await psycopg.AsyncConnection.connect(conninfo, autocommit=True, prepare_threshold=None) as client:
            assert await (await client.execute("SELECT %s", [1])).fetchone() == (1,)
        settings = site.changed(listen_url=SecretStr(conninfo))
        await found(settings, "LISTEN", "EVERVEC_LISTEN_URL goes through a transaction pooler", "direct connection")
        settings = site.changed(database_url=SecretStr(conninfo))
        await found(settings, "LISTEN", "EVERVEC_DATABASE_URL goes through a", "set EVERVEC_LISTEN_URL")
        settings = site.changed(database_url=SecretStr(conninfo), listen_url=SecretStr(site.conninfo))
        assert (await checks_of(settings))["LISTEN"].ok


async def test_listening_through_a_pooler_of_many_sessions(site: Site) -> None:
    async with transaction_pooler(site.conninfo, sessions=2) as conninfo:
        settings = site.changed(listen_url=SecretStr(conninfo))
        await found(settings, "LISTEN", "what is rung in the database is not heard", "direct connection")


async def test_listening_in_another_database(site: Site, empty_database: str) -> None:
    settings = site.changed(listen_url=SecretStr(empty_database))
    await found(settings, "LISTEN", "another database", "the same database in both")
    settings = site.changed(listen_url=SecretStr("postgresql://127.0.0.1:1/db"))
    await found(settings, "LISTEN", "EVERVEC_LISTEN_URL: PostgreSQL at 127.0.0.1:1/db does not answer", "correct")


async def test_no_listener(site: Site) -> None:
    await found(site.settings, "listener", "none is connected", "evervec listener")
    async with await psycopg.AsyncConnection.connect(site.conninfo, application_name="evervec listener"):
        await found(site.settings, "listener", "connected, but none leads", "logs")
    async with site.listening():
        assert (await checks_of(site.settings))["listener"].ok


# Sources


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
        waiting = (await checks_of(site.settings))["waiting items"]
        assert (waiting.ok, waiting.remedy) == (True, None)
        assert waiting.detail.endswith("they become fewer")


# Temporal


async def test_temporal_that_does_not_answer(site: Site) -> None:
    await found(site.changed(temporal_address="127.0.0.1:1"), "Temporal", "does not answer at 127.0.0.1:1", "start")


async def test_a_namespace_that_is_not_there(site: Site) -> None:
    settings = site.changed(temporal_namespace="nowhere")
    await found(settings, "Temporal", "no namespace 'nowhere'", "temporal operator namespace create -n nowhere")


async def test_search_attributes_that_are_missing(site: Site, temporal_address: str) -> None:
    client = await new_namespace(temporal_address)
    settings = site.changed(temporal_namespace=client.namespace)
    await found(settings, "search attributes", "missing", "temporal operator search-attribute create")


async def test_no_worker_and_no_safety_net(site: Site) -> None:
    await found(site.settings, "worker", "none asks for work", "evervec worker")
    await found(site.settings, "safety net", "no schedule embedding-sweeps/", "evervec listener")
    async with site.running():
        await until(lambda: _is_ok(site.settings, "worker"))
        await until(lambda: _is_ok(site.settings, "safety net"))
        handle = site.client.get_schedule_handle(schedule_id(await site.value("SELECT evervec.instance_id()")))
        await handle.pause()
        await advised(site.settings, "safety net", "is paused", "temporal schedule toggle --unpause")


async def _is_ok(settings: Settings, name: str) -> bool:
    return (await checks_of(settings))[name].ok
