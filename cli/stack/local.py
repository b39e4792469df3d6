"""The whole stack on this machine, as one thing that starts, stops and mends itself."""

import asyncio
import os
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Self

from pydantic import SecretStr

from cli.stack.at_work import dashboard_answers, listener_listens, worker_polls
from cli.stack.child import Say, quiet
from cli.stack.env_file import EnvFile
from cli.stack.lock import DataDirectoryLock
from cli.stack.ports import HOST, choose_port
from cli.stack.postgres import PostgresServer
from cli.stack.program import Program
from cli.stack.service import Service
from cli.stack.supervisor import supervise
from cli.stack.temporal import TemporalServer
from dashboard.guard import Address, parse_address
from db.schema import apply_schema
from evervec import temporal
from evervec.errors import ConfigurationError, ServiceUnreachableError
from evervec.settings import Settings

POSTGRES_PORT = 54329
TEMPORAL_PORT = 7233
TEMPORAL_UI_PORT = 8233
DASHBOARD_PORT = 8080
EVERYWHERE = {"0.0.0.0": HOST, "::": "::1"}  # noqa: S104 - where to ask for what listens there
# What would lead a child past the Temporal server that the stack started.
FOREIGN_TEMPORAL = (
    "temporal_api_key",
    "temporal_tls_server_root_ca_cert",
    "temporal_tls_client_cert",
    "temporal_tls_client_private_key",
    "temporal_tls_domain",
)


class LocalStack:
    """PostgreSQL, the Temporal server, listener and worker, with all their data in `data_dir`; with `ui` the web pages.

    A server whose address `settings` hold is used, not started. Inside `async with` the stack is up, `settings` and
    `environment` say where; `supervise` restarts what dies. `variables` are for evervec's own processes, besides the
    environment of this one.
    """

    def __init__(
        self,
        data_dir: Path,
        settings: Settings,
        *,
        variables: Mapping[str, str] | None = None,
        ui: bool = False,
        say: Say = quiet,
    ) -> None:
        self.data_dir = data_dir.resolve()
        self.settings = settings
        self.postgres: PostgresServer | None = None
        self.temporal: TemporalServer | None = None
        self._variables = variables or {}
        self._ui = ui
        self.dashboard_url: str | None = None
        self._say = say
        self._lock = DataDirectoryLock(self.data_dir)
        self._env_file = EnvFile(self.data_dir / "env")
        self._programs: list[Program] = []

    @property
    def environment(self) -> dict[str, str]:
        """What another process needs to use the stack."""
        return {
            "EVERVEC_DATABASE_URL": self.settings.database_conninfo,
            "EVERVEC_TEMPORAL_ADDRESS": self.settings.temporal_address,
            "EVERVEC_TEMPORAL_NAMESPACE": self.settings.temporal_namespace,
            **({"EVERVEC_DASHBOARD_URL": self.dashboard_url} if self.dashboard_url else {}),
        }

    @property
    def env_file(self) -> Path:
        """Where `environment` stands for a shell while the stack is up."""
        return self._env_file.path

    @property
    def log_dir(self) -> Path:
        """Where the parts write their logs."""
        return self.data_dir / "log"

    async def __aenter__(self) -> Self:
        """Bring everything up; on an error or when cancelled, what was started is stopped again."""
        self._prepare_data_dir()
        self._lock.acquire()
        try:
            self._env_file.remove()
            await self._start()
        except BaseException:
            await self._stop()
            raise
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Stop everything that was started here."""
        await self._stop()

    async def supervise(self) -> None:
        """Start again what ends, until cancelled."""
        await supervise(self._services(), self._say)

    def _prepare_data_dir(self) -> None:
        try:
            # Others may pass through, no more: PostgreSQL cannot run as root, and runs as another user then.
            self.data_dir.mkdir(parents=True, exist_ok=True, mode=0o711)
            for name in ("log", "run", "temporal"):
                (self.data_dir / name).mkdir(exist_ok=True, mode=0o700)
            (self.data_dir / ".gitignore").write_text("*\n", encoding="ascii")
        except OSError as error:
            raise ConfigurationError(
                f"the data directory {self.data_dir} cannot be written: {error.strerror}"
            ) from None

    async def _start(self) -> None:
        await self._start_postgres()
        await self._start_temporal()
        self._say("bringing evervec's schema up to date (evervec init)")
        for notice in await apply_schema(self.settings.database_conninfo):
            self._say(notice)
        await self._start_programs()
        self._env_file.write(self.environment)

    async def _start_postgres(self) -> None:
        if self.settings.database_url:
            self._say("using the PostgreSQL server that EVERVEC_DATABASE_URL names")
            return
        self._say("starting PostgreSQL")
        self.postgres = PostgresServer(
            self.data_dir / "postgres", POSTGRES_PORT, log_file=self.log_dir / "postgres.log", say=self._say
        )
        await self.postgres.start()
        self._say(f"started {self.postgres.describe()}")
        self.settings = self.settings.model_copy(
            update={"database_url": SecretStr(self.postgres.conninfo()), "listen_url": None}
        )

    async def _start_temporal(self) -> None:
        if "temporal_address" in self.settings.model_fields_set:
            await temporal.connect(self.settings)
            self._say(f"using the Temporal server at {self.settings.temporal_address}")
            return
        self._say("starting Temporal")
        self.temporal = TemporalServer(
            self.data_dir / "temporal" / "temporal.db",
            TEMPORAL_PORT,
            namespace=self.settings.temporal_namespace,
            ui=self._ui,
            ui_port=TEMPORAL_UI_PORT,
            log_file=self.log_dir / "temporal.log",
            say=self._say,
        )
        await self.temporal.start()
        self._say(f"started {self.temporal.describe()}")
        self.settings = self.settings.model_copy(
            update={"temporal_address": self.temporal.address, **dict.fromkeys(FOREIGN_TEMPORAL)}
        )

    def _choose_dashboard_address(self) -> Address:
        """The one that the settings name, else a free port of this machine."""
        if "dashboard_address" not in self.settings.model_fields_set:
            address = Address(HOST, choose_port(DASHBOARD_PORT))
            if address.port != DASHBOARD_PORT:
                self._say(f"port {DASHBOARD_PORT} is taken: the dashboard listens on {address.port}")
            return address
        address = parse_address(self.settings.dashboard_address)
        return address._replace(port=address.port or choose_port(None))

    async def _start_programs(self) -> None:
        environment = self._program_environment()
        self._programs = [
            Program("listener", self.data_dir, environment, partial(listener_listens, self.settings)),
            Program("worker", self.data_dir, _with_next_port(environment), partial(worker_polls, self.settings)),
        ]
        if self._ui:
            self._programs.append(self._dashboard(environment))
        self._say(f"starting {', '.join(program.name for program in self._programs)}")
        await asyncio.gather(*map(self._start_program, self._programs))

    def _dashboard(self, environment: Mapping[str, str]) -> Program:
        address = self._choose_dashboard_address()
        near = address._replace(host=EVERYWHERE.get(address.host, address.host))
        self.dashboard_url = near.url
        variables = {"EVERVEC_DASHBOARD_ADDRESS": str(address)}
        if self.temporal and self.temporal.ui_url:
            variables["EVERVEC_TEMPORAL_UI_URL"] = self.temporal.ui_url
        return Program(
            "dashboard", self.data_dir, {**environment, **variables}, partial(dashboard_answers, near.host, near.port)
        )

    async def _start_program(self, program: Program) -> None:
        try:
            await program.start()
        except ServiceUnreachableError as error:
            # The rest is of use without it, and `supervise` keeps trying.
            self._say(str(error))
        else:
            self._say(f"started {program.describe()}")

    def _program_environment(self) -> dict[str, str]:
        foreign = [*(["listen_url"] if self.postgres else []), *(FOREIGN_TEMPORAL if self.temporal else [])]
        variables = os.environ | dict(self._variables) | self.environment
        for name in foreign:
            variables.pop(f"EVERVEC_{name.upper()}", None)
        return variables

    def _services(self) -> list[Service]:
        servers: list[Service | None] = [self.postgres, self.temporal]
        return [service for service in [*servers, *self._programs] if service]

    async def _stop(self) -> None:
        """Stop first what needs the others."""
        self._say("stopping")
        self._env_file.remove()
        await asyncio.gather(*(program.stop() for program in self._programs))
        for server in (self.temporal, self.postgres):
            if server:
                await server.stop()
        self._lock.release()
        self._say("stopped")


def _with_next_port(environment: Mapping[str, str]) -> dict[str, str]:
    """The environment of a second process that is measured: it needs an address of its own."""
    name = "EVERVEC_METRICS_ADDRESS"
    address = environment.get(name)
    if not address:
        return {**environment}
    host, _, port = address.rpartition(":")
    return {**environment, name: f"{host}:{int(port) + 1}"}
