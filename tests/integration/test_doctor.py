"""Each fault that the doctor knows is made for real, and found: those of the set-up as a whole."""

from collections.abc import AsyncIterator, Iterator
from datetime import UTC, datetime, timedelta

import psycopg
import pytest
from psycopg.conninfo import make_conninfo
from pydantic import SecretStr

from db.diagnosis import Diagnosis
from db.schema import schema_version
from evervec.schedule import schedule_id
from evervec.settings import Settings
from service.doctor.database import check_clock, check_server
from service.doctor.diagnose import examine
from tests.integration.commands import Cli, CommandProcess
from tests.integration.doctor_lab import TABLE, WATCH, advised, checks_of, found
from tests.integration.pipeline import Site, until
from tests.integration.pooler import transaction_pooler
from tests.integration.temporal_lab import new_namespace


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
        # It leads a moment after it has started.
        await until(lambda: _is_ok(site.settings, "listener"))


# Temporal


async def test_temporal_that_does_not_answer(site: Site) -> None:
    await found(site.changed(temporal_address="127.0.0.1:1"), "Temporal", "does not answer at 127.0.0.1:1", "start")


async def test_a_namespace_that_is_not_there(site: Site) -> None:
    settings = site.changed(temporal_namespace="nowhere")
    await found(settings, "Temporal", "no namespace 'nowhere'", "temporal operator namespace create -n nowhere")


async def test_search_attributes_that_are_missing(site: Site, temporal_address: str) -> None:
    client = await new_namespace(temporal_address)
    settings = site.changed(temporal_namespace=client.namespace)
    await advised(settings, "search attributes", "missing", "temporal operator search-attribute create")


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
    check = (await checks_of(settings)).get(name)  # none where something before it could not be looked at
    return check is not None and check.ok
