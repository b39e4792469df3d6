"""The listener and the worker as processes of their own, to be killed and to have their logs read."""

import asyncio
import json
import os
import signal
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

from pydantic import SecretStr

from evervec.settings import Settings
from tests.integration.commands import FOREIGN
from tests.integration.pipeline import WAIT_SECONDS, until


class Program:
    """`evervec listener` or `evervec worker` as a process of its own, its log in a file."""

    def __init__(
        self, command: str, settings: Settings, log: Path, module: str = "cli.main", **environment: str
    ) -> None:
        self.log = log
        variables = _environment(settings) | {"EVERVEC_LOG_FORMAT": "json"} | environment
        with log.open("ab") as stderr:
            self._process = subprocess.Popen(
                [sys.executable, "-m", module, command],
                env=clean_environment(**variables),
                stderr=stderr,
                stdout=stderr,
            )

    @property
    def pid(self) -> int:
        """The process's id."""
        return self._process.pid

    @property
    def code(self) -> int | None:
        """The exit code, None while it runs."""
        return self._process.poll()

    def lines(self, event: str) -> list[dict[str, Any]]:
        """What it logged of an event."""
        whole = [line for line in self.log.read_text().splitlines(keepends=True) if line.endswith("\n")]
        logged = [json.loads(line) for line in whole if line.startswith("{")]
        return [line for line in logged if line["event"] == event]

    async def logged(self, event: str, seconds: float = WAIT_SECONDS) -> dict[str, Any]:
        """Wait until it logs an event."""

        def heard() -> bool:
            assert self.code is None, self.log.read_text()
            return bool(self.lines(event))

        await until(heard, seconds)
        return self.lines(event)[0]

    async def end(self, how: signal.Signals = signal.SIGTERM) -> int:
        """Send the signal and wait for the end: the exit code."""
        if self.code is None:
            self._process.send_signal(how)
        return await asyncio.to_thread(self._process.wait, 60)


def clean_environment(**variables: str) -> dict[str, str]:
    """The environment with these variables of evervec's and no others."""
    return {name: value for name, value in os.environ.items() if not name.startswith(FOREIGN)} | variables


def _environment(settings: Settings) -> dict[str, str]:
    """The settings as a process is told them."""
    values = {name: getattr(settings, name) for name in settings.model_fields_set}
    return {
        f"EVERVEC_{name.upper()}": value.get_secret_value() if isinstance(value, SecretStr) else str(value)
        for name, value in values.items()
    }


@asynccontextmanager
async def programs(*started: Program) -> AsyncIterator[None]:
    """Kill what still runs when the block ends."""
    async with AsyncExitStack() as ending:
        for program in started:
            ending.push_async_callback(program.end, signal.SIGKILL)
        yield
