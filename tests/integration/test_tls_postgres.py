"""PostgreSQL behind TLS and a password, and what is said when either is wrong."""

from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from psycopg.conninfo import conninfo_to_dict, make_conninfo

from db.connection import connect
from evervec.errors import ConfigurationError, ServiceUnreachableError
from tests.integration.commands import Cli, CommandProcess
from tests.integration.pipeline import Site, new_table
from tests.integration.tls_lab import Authority, Certificate, TlsForPostgres, needs_openssl

pytestmark = needs_openssl

HOST = "database.evervec.test"


@pytest.fixture(scope="module")
def ours(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return Authority(tmp_path_factory.mktemp("tls"), "ours")


@pytest.fixture(scope="module")
def theirs(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return Authority(tmp_path_factory.mktemp("tls"), "theirs")


@pytest.fixture(scope="module")
def certificate(ours: Authority) -> Certificate:
    return ours.issue(HOST)


@pytest.fixture
async def verified(database: str, ours: Authority, certificate: Certificate) -> AsyncIterator[str]:
    """A connection string that checks the server's certificate and its name; there is no way in without TLS."""
    async with in_front_of(database, certificate).running() as port:
        yield by_tls(database, port, ours)


def in_front_of(conninfo: str, certificate: Certificate, clients: Path | None = None) -> TlsForPostgres:
    parts = conninfo_to_dict(conninfo)
    return TlsForPostgres(str(parts["host"]), int(parts["port"] or 0), certificate, clients=clients)


def by_tls(conninfo: str, port: int, authority: Authority, **changes: str) -> str:
    secure = {"host": HOST, "hostaddr": "127.0.0.1", "sslmode": "verify-full", "sslrootcert": str(authority.root.cert)}
    return make_conninfo(conninfo, port=port, **(secure | changes))


async def test_the_pipeline_works_over_verified_tls(verified: str, temporal_address: str) -> None:
    async with Site.open(verified, temporal_address) as site, site.running():
        table = await new_table(site, "column")
        await table.fill(3)
        await table.fresh()


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"sslrootcert": "theirs"}, "certificate verify failed"),
        ({"host": "elsewhere.evervec.test"}, "does not match host name"),
        ({"sslrootcert": "/nowhere/ca.pem"}, 'root certificate file "/nowhere/ca.pem" does not exist'),
        ({"sslmode": "disable"}, "server closed the connection unexpectedly"),
        ({"password": "wrong-PASSWORD"}, "password authentication failed"),
    ],
)
async def test_what_is_wrong_is_one_clear_line(
    verified: str, theirs: Authority, changes: dict[str, str], told: str
) -> None:
    changes = {name: str(theirs.root.cert) if value == "theirs" else value for name, value in changes.items()}
    conninfo = make_conninfo(verified, **changes)
    with pytest.raises(ServiceUnreachableError) as caught:
        await connect(conninfo, application_name="evervec test")
    said = str(caught.value)
    assert told in said
    assert "\n" not in said
    assert str(conninfo_to_dict(conninfo)["password"]) not in said


async def test_a_client_shows_its_certificate(
    database: str, ours: Authority, theirs: Authority, certificate: Certificate
) -> None:
    async with in_front_of(database, certificate, clients=ours.root.cert).running() as port:
        for authority, accepted in ((ours, True), (theirs, False)):
            client = authority.issue("client")
            conninfo = by_tls(database, port, ours, sslcert=str(client.cert), sslkey=str(client.key))
            if accepted:
                await (await connect(conninfo, application_name="evervec test")).close()
            else:
                with pytest.raises(ServiceUnreachableError):
                    await connect(conninfo, application_name="evervec test")


async def test_the_command_line_says_the_same(verified: str, temporal_address: str, theirs: Authority) -> None:
    async with Site.open(verified, temporal_address) as site:
        with CommandProcess.running() as process:
            cli = Cli(process, site.settings)
            assert (await cli.ok("status", "--json")).json == {"sources": []}
            wrong = make_conninfo(verified, sslrootcert=str(theirs.root.cert))
            answer = await cli("status", "--json", EVERVEC_DATABASE_URL=wrong)
    assert (answer.code, answer.out) == (3, "")
    assert answer.line.startswith(f"evervec: PostgreSQL at {HOST}:")
    assert "certificate verify failed" in answer.line


@pytest.mark.parametrize(
    "url",
    [
        "postgresql://user:SECRET@SECRET@127.0.0.1/database",
        "postgresql://user:SECRET/SECRET@127.0.0.1:5432/database",
        "postgresql://user:SECRET:SECRET/@127.0.0.1:5432/database",
        "postgresql://user:SECRET%zz@127.0.0.1/database",
        "host=127.0.0.1 password=SECRET'SECRET user='",
        "user:SECRET@127.0.0.1",
    ],
)
async def test_a_password_that_breaks_its_url_is_not_quoted(url: str) -> None:
    with pytest.raises(ConfigurationError) as caught:
        await connect(url, application_name="evervec test")
    assert "SECRET" not in str(caught.value)
