"""Passwords and keys show nowhere: not in a log, not in an answer, not in the list of processes."""

import uuid
from collections.abc import AsyncIterator
from contextlib import suppress
from pathlib import Path

import psutil
import psycopg
import pytest
from psycopg.conninfo import make_conninfo

from evervec.settings import Settings
from tests.integration.commands import Answer, Cli, CommandProcess
from tests.integration.pipeline import Site, new_table
from tests.integration.program import Program, programs
from tests.integration.test_temporal_client import TLS, tls_in_front_of

pytestmark = pytest.mark.long

PASSWORD = f"PASSWORD-{uuid.uuid4().hex}"
API_KEY = f"API-KEY-{uuid.uuid4().hex}"
TOKEN = f"TOKEN-{uuid.uuid4().hex}"
SECRETS = (PASSWORD, API_KEY, TOKEN)


@pytest.fixture
async def site(database: str, temporal_address: str) -> AsyncIterator[Site]:
    """Whose every secret is one that can be looked for."""
    role = f"secretive_{uuid.uuid4().hex[:12]}"
    async with await psycopg.AsyncConnection.connect(database, autocommit=True) as admin:
        await admin.execute(f"CREATE ROLE {role} LOGIN SUPERUSER PASSWORD '{PASSWORD}'")
        async with tls_in_front_of(temporal_address, ask_for_certificate=True) as address:
            options = {
                "temporal_api_key": API_KEY,
                "dashboard_token": TOKEN,
                "temporal_tls_server_root_ca_cert": TLS / "ca.pem",
                "temporal_tls_client_cert": TLS / "client.pem",
                "temporal_tls_client_private_key": TLS / "client.key",
                "temporal_tls_domain": "server.evervec.test",
                "log_level": "DEBUG",
            }
            async with Site.open(make_conninfo(database, user=role, password=PASSWORD), address, **options) as site:
                yield site
        await admin.execute(f"REASSIGN OWNED BY {role} TO postgres")
        await admin.execute(f"DROP ROLE {role}")


def shown(text: str) -> list[str]:
    return [secret for secret in (*SECRETS, (TLS / "client.key").read_text().splitlines()[1]) if secret in text]


async def test_a_running_system_shows_no_secret(site: Site, tmp_path: Path) -> None:
    table = await new_table(site, "column")
    listener, worker = (Program(name, site.settings, tmp_path / f"{name}.log") for name in ("listener", "worker"))
    async with programs(listener, worker):
        await table.fill(2)
        await table.fresh()
        for program in (listener, worker):
            for process in (psutil.Process(program.pid), *psutil.Process(program.pid).children(recursive=True)):
                assert shown(f"{process.name()} {process.cmdline()}") == []
        told = await site.run("SELECT a::text FROM pg_stat_activity AS a WHERE application_name ~ 'evervec'")
        assert len(told) > 2
        assert shown(str(told)) == []
        assert await programs_of_the_server(site) == []
        # A break on both sides, since errors are where connection strings are quoted.
        await site.run("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name ~ 'evervec'")
        await table.do("UPDATE {t} SET name = 'edited'")
        await table.fresh()
        assert [await program.end() for program in (listener, worker)] == [0, 0]
    for program in (listener, worker):
        log = program.log.read_text()
        assert '"level": "debug"' in log or '"level": "info"' in log
        assert shown(log) == []


async def programs_of_the_server(site: Site) -> list[str]:
    """The secrets that show in the titles of PostgreSQL's own processes."""
    titles: list[list[str]] = []
    for (pid,) in await site.run("SELECT pid FROM pg_stat_activity"):
        with suppress(psutil.NoSuchProcess):  # it has ended since
            titles.append(psutil.Process(pid).cmdline())
    return shown(str(titles))


async def test_no_answer_of_a_command_shows_a_secret(site: Site) -> None:
    table = await new_table(site, "column")
    await table.fill(1)
    secret = Settings.model_validate(site.settings.model_dump())
    variables = {
        "EVERVEC_TEMPORAL_API_KEY": API_KEY,
        "EVERVEC_DASHBOARD_TOKEN": TOKEN,
        "EVERVEC_LOG_LEVEL": "DEBUG",
        "EVERVEC_TEMPORAL_TLS_SERVER_ROOT_CA_CERT": str(TLS / "ca.pem"),
        "EVERVEC_TEMPORAL_TLS_DOMAIN": "server.evervec.test",
    }
    assert shown(f"{secret!r} {secret} {secret.model_dump_json()}") == []
    nowhere = make_conninfo(site.conninfo, hostaddr="127.0.0.1", port=1, connect_timeout=2)
    wrong_user = make_conninfo(site.conninfo, user="nobody")
    with CommandProcess.running() as process:
        cli = Cli(process, site.settings)

        async def told(*arguments: str, **more: str) -> Answer:
            answer = await cli(*arguments, **(variables | more))
            assert shown(answer.out + answer.err) == [], arguments
            return answer

        for command in (("status", "--json"), ("item", table.source, "1", "--json"), ("verify", "--json"),
                        ("search", table.source, "x", "--json"), ("backfill", "--json"), ("--help",)):  # fmt: skip
            assert (await told(*command)).code in (0, 1), command
        torn = [f"postgresql://u:{part}@h/d" for part in (f"{PASSWORD}%zz", f"{PASSWORD}/x", f"x@{PASSWORD}")]
        for url, code in ((nowhere, 3), (wrong_user, 3), *((url, 2) for url in torn)):
            assert (await told("status", EVERVEC_DATABASE_URL=url)).code == code, url
        assert (await told("worker", EVERVEC_TEMPORAL_ADDRESS="127.0.0.1:1")).code == 3
        assert (await told("item", table.source, "1", EVERVEC_TEMPORAL_API_KEY=f"{API_KEY}\n")).code in (0, 2)
        assert (await told("status", EVERVEC_DEBOUNCE_MS=PASSWORD)).code == 2
