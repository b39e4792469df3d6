"""A place for one process, which is started again whenever it ends: what a service manager does."""

import asyncio
import json
import os
import signal
import subprocess
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

from evervec.settings import Settings
from tests.integration.pipeline import until
from tests.integration.program import Program

RESTART_SECONDS = 0.5
LOOK_SECONDS = 0.1
AWAY = 3
"""The exit code of a process that could not reach a service when it was started."""


class Ending(NamedTuple):
    """A process that ended though nobody had ended it, or the other way round."""

    post: str
    how: str


class Post:
    """Where one listener or worker runs, if `open` is called; its log goes on from one process to the next."""

    def __init__(self, command: str, number: int, settings: Settings, folder: Path) -> None:
        self.name = f"{command} {number}"
        self.command = command
        self.settings = settings
        self.log = folder / f"{command}-{number}.log"
        self.busy = asyncio.Lock()
        """Held by the fault that is at this process."""
        self.endings: list[Ending] = []
        """How it ended by itself, but for those times when a service was away at the start."""
        self._start_of_log = 0
        self._program: Program | None = None
        self._keeper: asyncio.Task[None] | None = None

    @property
    def is_open(self) -> bool:
        """Whether a process is kept running here."""
        return self._keeper is not None

    @property
    def pid(self) -> int | None:
        """The process that runs here now."""
        return self._program.pid if self._program and self._program.code is None else None

    def open(self) -> None:
        """Start a process, unless there is one, and keep one running."""
        if not self._keeper:
            self._start()
            self._keeper = asyncio.create_task(self._keep())

    async def end(self, how: signal.Signals) -> None:
        """End the process by a signal; none is started until `open`."""
        await self._stop_keeping()
        if self._program:
            try:
                await self._program.end(how)
            except subprocess.TimeoutExpired:
                self.endings.append(Ending(self.name, "did not stop when it was asked to"))
                await self._program.end(signal.SIGKILL)

    async def close(self) -> None:
        """End it, whatever state it is in."""
        self.send(signal.SIGCONT)
        await self.end(signal.SIGKILL)

    def send(self, how: signal.Signals) -> None:
        """Send the process a signal, if there is one."""
        if pid := self.pid:
            with suppress(ProcessLookupError):
                os.kill(pid, how)

    async def ready(self, seconds: float = 60.0) -> None:
        """Wait until the process that runs here now is at work."""
        event = '"worker ready"' if self.command == "worker" else '"listener started"'
        await until(lambda: event in self._said(), seconds)

    def lines(self, event: str) -> Iterator[dict[str, Any]]:
        """What has been logged here of an event; a line that a process was killed over is left out."""
        if not self.log.exists():
            return
        with self.log.open(errors="replace") as log:
            for line in log:
                if event in line:
                    with suppress(json.JSONDecodeError):
                        logged = json.loads(line)
                        if logged["event"] == event:
                            yield logged

    def tracebacks(self) -> int:
        """How many of these its log holds: an error that evervec did not foresee."""
        with self.log.open(errors="replace") as log:
            return sum("Traceback (most recent call last)" in line for line in log)

    def _said(self) -> str:
        """What the present process has logged."""
        with self.log.open(errors="replace") as log:
            log.seek(self._start_of_log)
            return log.read()

    def _start(self) -> None:
        self._start_of_log = self.log.stat().st_size if self.log.exists() else 0
        self._program = Program(self.command, self.settings, self.log)

    async def _keep(self) -> None:
        while True:
            await asyncio.sleep(LOOK_SECONDS)
            code = self._program.code if self._program else None
            if code is None:
                continue
            if code != AWAY:
                self.endings.append(Ending(self.name, f"ended with code {code}"))
            await asyncio.sleep(RESTART_SECONDS)
            self._start()

    async def _stop_keeping(self) -> None:
        if self._keeper:
            self._keeper.cancel()
            with suppress(asyncio.CancelledError):
                await self._keeper
            self._keeper = None
