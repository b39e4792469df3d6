"""The whole stack for a browser to look at: PostgreSQL, Temporal, listener, worker and dashboard, all of them real."""

import asyncio
import os
import shutil
import signal
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from importlib.resources import files
from pathlib import Path
from typing import Any

import psycopg
from psycopg import sql
from pydantic import SecretStr

from evervec.settings import Settings
from tests.conftest import in_database
from tests.integration.pipeline import WAIT_SECONDS
from tests.integration.program import Program

MODEL = "bundled:use-multilingual-v3"
TOKEN, VIEWER_TOKEN = "the operator's token", "the viewer's token"


class Scene:
    """A database with the demo's items, and the processes that serve it."""

    def __init__(self, conninfo: str, temporal_address: str, logs: Path, stack: ExitStack) -> None:
        self.settings = Settings(
            database_url=SecretStr(conninfo),
            temporal_address=temporal_address,
            task_queue=uuid.uuid4().hex,
            max_attempts=1,
            dashboard_address="127.0.0.1:0",
        )
        self._logs = logs
        self._stack = stack
        self._owner = stack.enter_context(psycopg.connect(conninfo, autocommit=True))
        self._number = 0

    def run(self, statement: str, *parameters: object) -> list[tuple[Any, ...]]:
        """Execute what a test made up; its rows, if it has any."""
        cursor = self._owner.execute(statement, parameters or None)
        return cursor.fetchall() if cursor.description else []

    def value(self, statement: str, *parameters: object) -> Any:
        """The single value of a query."""
        [(found,)] = self.run(statement, *parameters)
        return found

    def start(self, command: str, **changes: Any) -> Program:
        """One of evervec's processes, until the scene ends."""
        self._number += 1
        values = {name: getattr(self.settings, name) for name in self.settings.model_fields_set}
        program = Program(command, Settings(**(values | changes)), self._logs / f"{command}-{self._number}.log")
        self._stack.callback(lambda: asyncio.run(program.end(signal.SIGTERM)))
        return program

    def start_dashboard(self, **changes: Any) -> str:
        """A dashboard; its URL."""
        program = self.start("dashboard", **changes)
        until(lambda: program.code is not None or program.lines("dashboard ready"), "the dashboard")
        [ready] = program.lines("dashboard ready")
        return str(ready["url"])

    @contextmanager
    def unwalked(self, source: str) -> Iterator[None]:
        """No walk over a source meanwhile: the safety net's, every five minutes, finds what no trigger saw."""
        lock = "(731031242, id) FROM evervec.source WHERE name = %s"
        self.run(f"SELECT pg_advisory_lock{lock}", source)
        try:
            yield
        finally:
            self.run(f"SELECT pg_advisory_unlock{lock}", source)

    def settled(self) -> None:
        """Wait until nothing is pending."""
        until(lambda: not self.value(PENDING), "everything to be embedded")


PENDING = """
    SELECT EXISTS (SELECT FROM evervec.source WHERE filling)
      OR EXISTS (SELECT FROM evervec.outbox o JOIN evervec.source s ON s.name = o.source
                 WHERE o.state = 'pending' AND NOT s.paused)
"""


def until(condition: Callable[[], object], what: str, seconds: float = WAIT_SECONDS) -> None:
    """Wait until something holds."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"waited for {what} for more than {seconds:.0f} s"
        time.sleep(0.02)


@contextmanager
def open_scene(server: str, template: str, temporal_address: str, logs: Path) -> Iterator[Scene]:
    """Everything runs, and the demo's items are embedded."""
    name = f"browser_{uuid.uuid4().hex}"
    with psycopg.connect(server, autocommit=True) as admin:
        admin.execute(sql.SQL("CREATE DATABASE {} TEMPLATE {}").format(sql.Identifier(name), sql.Identifier(template)))
        with ExitStack() as stack:
            scene = Scene(in_database(server, name), temporal_address, logs, stack)
            scene.start("worker")
            scene.start("listener")
            scene.run(files("cli.demo").joinpath("items.sql").read_text(encoding="utf-8"))
            scene.run(
                "SELECT evervec.watch('items', '{name,description}', required => '{name,description}', "
                "active => 'active', model => %s)",
                MODEL,
            )
            scene.settled()
            yield scene
        admin.execute(sql.SQL("DROP DATABASE {} WITH (FORCE)").format(sql.Identifier(name)))


def chromium() -> str:
    """Where the browser is; a clear failure when it is nowhere."""
    found = os.environ.get("CHROMIUM") or shutil.which("chromium") or shutil.which("chromium-browser")
    assert found, "no chromium: apt-get install chromium, or CHROMIUM=/path/to/it"
    return found
