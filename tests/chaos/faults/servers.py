"""What happens to the servers."""

import asyncio
import os
import signal
from abc import abstractmethod
from contextlib import AsyncExitStack, suppress

import psutil

from cli.stack.service import Service
from tests.chaos.faults.base import Fault
from tests.chaos.site import Site
from tests.integration.pipeline import until


class ServerFault(Fault):
    """A fault of a server."""

    @property
    @abstractmethod
    def server(self) -> Service:
        """Which."""

    @property
    def busy(self) -> asyncio.Lock:
        """The server's."""
        return self.site.busy[self.server.name]

    async def end(self, how: signal.Signals) -> None:
        """End the server by a signal."""
        if pid := self.server.pid:
            os.kill(pid, how)
            await self.server.wait()


class TemporalKilled(ServerFault):
    """SIGKILL."""

    kind = "Temporal killed"

    @property
    def server(self) -> Service:
        """Temporal."""
        return self.site.temporal

    async def inject(self) -> None:
        """Kill it."""
        await self.end(signal.SIGKILL)

    async def heal(self) -> None:
        """Start it again on the same file."""
        await self.server.start()


class TemporalStopped(TemporalKilled):
    """SIGSTOP: calls are not refused, they hang."""

    kind = "Temporal stopped"
    length = "pause"

    async def inject(self) -> None:
        """Stop it."""
        if pid := self.server.pid:
            os.kill(pid, signal.SIGSTOP)

    async def heal(self) -> None:
        """Let it go on."""
        if pid := self.server.pid:
            os.kill(pid, signal.SIGCONT)


class AtPostgres(ServerFault):
    """A fault of PostgreSQL; nobody can write meanwhile."""

    stops_writers = True

    @property
    def server(self) -> Service:
        """PostgreSQL."""
        return self.site.postgres


class PostgresCrashed(AtPostgres):
    """An immediate stop: sessions end in the middle of whatever they do, the next start is a crash recovery."""

    kind = "PostgreSQL crashed"

    def __init__(self, site: Site, dice: float) -> None:
        super().__init__(site, dice)
        self._disturbing = AsyncExitStack()

    async def inject(self) -> None:
        """Stop it."""
        self._disturbing.enter_context(self.site.disturbed())
        await self.end(signal.SIGQUIT)

    async def heal(self) -> None:
        """Start it again."""
        await self.server.start()
        await self._disturbing.aclose()


class PostgresStopped(AtPostgres):
    """SIGSTOP for all of its processes: every session waits, in the middle of whatever it does, and none is lost."""

    kind = "PostgreSQL stopped"
    length = "pause"

    def __init__(self, site: Site, dice: float) -> None:
        super().__init__(site, dice)
        self._stopped: list[psutil.Process] = []

    async def inject(self) -> None:
        """Stop the postmaster, which starts no others then, and after it these."""
        # The server cuts off who takes too long to log in, as a writer would who comes back after a crash.
        await until(lambda: not self.site.is_disturbed)
        if pid := self.server.pid:
            postmaster = psutil.Process(pid)
            postmaster.suspend()
            self._stopped = [*postmaster.children(recursive=True), postmaster]
            for process in self._stopped:
                with suppress(psutil.NoSuchProcess):
                    process.suspend()

    async def heal(self) -> None:
        """Let them go on."""
        for process in self._stopped:
            with suppress(psutil.NoSuchProcess):
                process.resume()
