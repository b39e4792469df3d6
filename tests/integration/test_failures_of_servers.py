"""What happens to PostgreSQL itself, for real: its machine is lost, its disk is full."""

import os
import shutil
import signal
import subprocess
import uuid
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import psycopg
import pytest
from psycopg import sql
from psycopg.conninfo import make_conninfo
from structlog.testing import capture_logs

from cli.stack.child import quiet
from cli.stack.postgres import PostgresServer
from cli.stack.user import postgres_user
from db.schema import apply_schema
from tests.conftest import VERSION
from tests.integration.pipeline import DESTINATIONS, Site, Table, new_table, until
from tests.integration.program import Program, programs

DISK = "16m"
ROWS, DIMENSION = 100, 1000
"""So many vectors take pages that the table does not have yet."""

pytestmark = pytest.mark.long


class Standby(PostgresServer):
    """A hot standby, which streams what another server writes."""

    def __init__(self, data_dir: Path, primary: PostgresServer) -> None:
        super().__init__(data_dir, version=VERSION)
        self._primary = primary

    def _initdb(self) -> None:
        shutil.copyfile(self._primary._password_file, self._password_file)
        command = [str(self.program("pg_basebackup")), f"--pgdata={self._cluster}", "--write-recovery-conf"]
        where = f"--dbname={self._primary.conninfo('postgres')}"
        subprocess.run([*command, "--checkpoint=fast", where], check=True, capture_output=True)
        user = postgres_user(self._primary._cluster, quiet)
        if user:
            for path in (self._cluster, *self._cluster.rglob("*")):
                os.chown(path, user.uid, user.gid, follow_symlinks=False)

    async def create_database(self, name: str) -> None:
        """It has those of the other server."""


@pytest.fixture
async def primary(stack_dir: Path) -> AsyncIterator[PostgresServer]:
    server = PostgresServer(stack_dir / uuid.uuid4().hex, version=VERSION)
    await server.start()
    await apply_schema(server.conninfo())
    try:
        yield server
    finally:
        await server.stop()


@pytest.fixture
async def standby(stack_dir: Path, primary: PostgresServer) -> AsyncIterator[Standby]:
    server = Standby(stack_dir / uuid.uuid4().hex, primary)
    await server.start()
    try:
        yield server
    finally:
        await server.stop()


@pytest.mark.timeout(300)
async def test_a_standby_takes_over(
    primary: PostgresServer, standby: Standby, temporal_address: str, tmp_path: Path
) -> None:
    both = make_conninfo(
        primary.conninfo(),
        host="127.0.0.1,127.0.0.1",
        port=f"{primary.port},{standby.port}",
        target_session_attrs="read-write",
    )
    async with Site.open(both, temporal_address) as before:
        tables = [await new_table(before, destination) for destination in DESTINATIONS]
        listener, worker = (Program(name, before.settings, tmp_path / f"{name}.log") for name in ("listener", "worker"))
        async with programs(listener, worker):
            await worker.logged("worker ready")
            for table in tables:
                await table.fill(20)
                await table.fresh()
            os.kill(worker.pid, signal.SIGSTOP)  # so that something waits when the primary is lost
            for table in tables:
                await table.do("UPDATE {t} SET name = 'the last of the old server' WHERE id < 5")
            await until(lambda: caught_up(before))
            assert primary.pid
            os.kill(primary.pid, signal.SIGKILL)
            await primary.wait()
            os.kill(worker.pid, signal.SIGCONT)
            await listener.logged("PostgreSQL is away: reconnecting")
            await promote(standby)
            async with Site.open(both, temporal_address) as after:
                moved = [Table(after, table.name, table.destination) for table in tables]
                for table in moved:
                    await table.fresh(120)
                    await table.do("UPDATE {t} SET name = 'the first of the new server' WHERE id > 15")
                    await table.fresh(120)
            assert (listener.code, worker.code) == (None, None)


async def caught_up(site: Site) -> bool:
    """Whether the standby has all that was written."""
    return bool(await site.value("SELECT every(replay_lsn >= pg_current_wal_lsn()) FROM pg_stat_replication"))


async def promote(standby: Standby) -> None:
    """Make the standby a server that takes writes."""
    async with await psycopg.AsyncConnection.connect(standby.conninfo(), autocommit=True) as connection:
        await connection.execute("SELECT pg_promote()")


@pytest.fixture
def disk(stack_dir: Path, primary: PostgresServer) -> Iterator[Path]:
    """A small disk for a tablespace."""
    path = stack_dir / uuid.uuid4().hex
    path.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={DISK}", "tmpfs", path], check=False).returncode:
        pytest.skip("only root may mount a small disk")
    user = postgres_user(primary._cluster, quiet)
    assert user
    os.chown(path, user.uid, user.gid)
    try:
        yield path
    finally:
        subprocess.run(["umount", "--lazy", path], check=True)


@pytest.mark.parametrize("sweep_threshold", [1, 2 * ROWS], ids=["sweep", "live"])
async def test_a_disk_is_full(primary: PostgresServer, disk: Path, temporal_address: str, sweep_threshold: int) -> None:
    ballast = disk / "ballast"
    changes = {"max_attempts": 1, "sweep_threshold": sweep_threshold}
    async with Site.open(primary.conninfo(), temporal_address, **changes) as site:
        await site.run(sql.SQL("CREATE TABLESPACE small LOCATION {}").format(str(disk)))
        table = await new_table(site, "column", model=f"stub:{DIMENSION}", dimension=DIMENSION)
        await table.do("ALTER TABLE {t} SET TABLESPACE small")
        await table.fill(ROWS)
        fill_up(ballast)
        async with site.running():
            with capture_logs() as logs:
                await until(lambda: any("DatabaseError [53100]" in str(line) for line in logs))
            # What there is room for may have been written; nothing else is blamed.
            assert {row[1:3] for row in await table.outbox()} == {("pending", 0)}
            ballast.unlink()
            await table.fresh(120)


def fill_up(path: Path) -> None:
    """Write to a file until its disk is full."""
    room = os.statvfs(path.parent)
    path.write_bytes(bytes(room.f_frsize * room.f_bavail))
    assert os.statvfs(path.parent).f_bavail == 0
