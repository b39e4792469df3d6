"""One of evervec's own processes as a part of the stack."""

import signal
import sys
from collections.abc import Awaitable, Callable, Mapping
from pathlib import Path

from cli.stack.child import Child, Command, poll_until
from cli.stack.service import Service
from evervec.errors import ServiceUnreachableError

START_SECONDS = 30.0
# The worker lets the activities that it runs come to their end.
STOP_SECONDS = 40.0


class Program(Service):
    """`evervec NAME` in a process of its own, with the environment given and its log in `data_dir`/log.

    `at_work` tells whether it does what it is for.
    """

    def __init__(
        self, name: str, data_dir: Path, environment: Mapping[str, str], at_work: Callable[[], Awaitable[bool]]
    ) -> None:
        super().__init__()
        self.name = name
        self._at_work = at_work
        self._log_file = data_dir / "log" / f"{name}.log"
        # -P: what lies in the current directory may bear the name of a package of ours.
        argv = [sys.executable, "-P", "-m", "cli.main", name]
        self._child: Child = Child(
            # They lose nothing when they are killed, and with the servers gone there is nothing to end in good order.
            Command(name, argv, environment, stop_seconds=STOP_SECONDS, death_signal=signal.SIGKILL),
            log_file=self._log_file,
            pid_file=data_dir / "run" / f"{name}.process",
        )

    async def start(self) -> None:
        """Stop the one that an earlier run left, start, wait until it is at work.

        A ServiceUnreachableError when that takes too long; it is left running then, it may still come.
        """
        await self._child.stop_orphan()
        self._child.start()
        async for _ in poll_until(START_SECONDS):
            if not self._child.running:
                raise ServiceUnreachableError(f"{self.name} {await self.wait()} (see {self._log_file})")
            if await self._at_work():
                return
        raise ServiceUnreachableError(f"{self.name} is not at work after {START_SECONDS:.0f} s (see {self._log_file})")

    def describe(self) -> str:
        """What it is, in one line."""
        return f"{self.name}, process {self.pid}" if self.pid else f"{self.name}, stopped"
