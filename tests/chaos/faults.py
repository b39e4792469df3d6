"""What can go wrong: small classes with one face."""

import asyncio
import os
import signal
from abc import ABC, abstractmethod
from contextlib import AsyncExitStack, suppress
from typing import ClassVar

import psycopg

from cli.stack.service import Service
from tests.chaos.post import Post
from tests.chaos.site import Site

QUEUE_FILLED = 0.93
"""So much that the rings of some seconds would fill the rest, if evervec did not stop to ring at a half."""
PAGE = "x" * 7900
"""A payload that takes a page of the notification queue."""
TRIES = 5
OTHER_SETTINGS = (
    {"debounce_ms": 0, "debounce_max_ms": 0, "sweep_threshold": 1},
    {"debounce_ms": 400, "debounce_max_ms": 2000, "sweep_threshold": 200, "item_idle_seconds": 1},
    {"item_idle_seconds": 5, "max_attempts": 1, "log_level": "DEBUG"},
)


class Fault(ABC):
    """One fault at one place, to be made and to be undone once."""

    kind: ClassVar[str]
    length: ClassVar[str] = "down"
    """How long it lasts: see `plan.make_plan`."""

    def __init__(self, site: Site, dice: float) -> None:
        self.site = site
        self.dice = dice

    @property
    def place(self) -> str:
        """Where it strikes."""
        return ""

    @property
    @abstractmethod
    def busy(self) -> asyncio.Lock:
        """Held while the fault lasts: one at a time at one place."""

    @abstractmethod
    async def inject(self) -> None:
        """Make it."""

    @abstractmethod
    async def heal(self) -> None:
        """Undo it."""

    def one_of(self, posts: list[Post]) -> Post:
        """One of the posts that are open."""
        opened = [post for post in posts if post.is_open] or posts[:1]
        return opened[int(self.dice * len(opened))]


class PostFault(Fault):
    """A fault of a listener or a worker."""

    def __init__(self, site: Site, dice: float) -> None:
        super().__init__(site, dice)
        self.post = self.one_of(self.posts)

    @property
    @abstractmethod
    def posts(self) -> list[Post]:
        """Where it may strike."""

    @property
    def place(self) -> str:
        """The process."""
        return self.post.name

    @property
    def busy(self) -> asyncio.Lock:
        """The process's."""
        return self.post.busy


class AtListener(PostFault):
    """A fault of a listener."""

    @property
    def posts(self) -> list[Post]:
        """The listeners."""
        return self.site.listeners


class AtWorker(PostFault):
    """A fault of a worker."""

    @property
    def posts(self) -> list[Post]:
        """The workers."""
        return self.site.workers


class Ended(PostFault):
    """The process is ended by a signal; its place stays empty for a while."""

    how: ClassVar[signal.Signals]
    was_open = False

    async def inject(self) -> None:
        """End it."""
        self.was_open = self.post.is_open  # it may have gone while this fault waited for its turn
        await self.post.end(self.how)

    async def heal(self) -> None:
        """Start another in its place."""
        if self.was_open:
            self.post.open()


class Killed(Ended):
    """SIGKILL."""

    how = signal.SIGKILL


class Stopped(PostFault):
    """SIGSTOP: its connections stay, and nothing answers on them."""

    length = "pause"

    async def inject(self) -> None:
        """Stop it."""
        self.post.send(signal.SIGSTOP)

    async def heal(self) -> None:
        """Let it go on, in a world that has changed."""
        self.post.send(signal.SIGCONT)


class Joined(PostFault):
    """A second process beside the first, for a while; then it is asked to stop."""

    length = "visit"

    def __init__(self, site: Site, dice: float) -> None:
        super().__init__(site, dice)
        self.post = self.posts[1]

    @property
    def busy(self) -> asyncio.Lock:
        """Not the process's: it may come to harm like any other."""
        return self.site.busy[self.kind]

    async def inject(self) -> None:
        """Start it."""
        async with self.post.busy:
            self.post.open()

    async def heal(self) -> None:
        """End it, in good order."""
        async with self.post.busy:
            await self.post.end(signal.SIGTERM)


class ListenerKilled(Killed, AtListener):
    kind = "listener killed"


class WorkerKilled(Killed, AtWorker):
    kind = "worker killed"


class ListenerStopped(Stopped, AtListener):
    kind = "listener stopped"


class WorkerStopped(Stopped, AtWorker):
    kind = "worker stopped"


class SecondListener(Joined, AtListener):
    kind = "second listener"


class SecondWorker(Joined, AtWorker):
    kind = "second worker"


class WorkerChanged(Ended, AtWorker):
    """A worker is asked to stop, and another starts in its place, with other settings until it is changed again."""

    kind = "worker restarted with other settings"
    how = signal.SIGTERM

    async def heal(self) -> None:
        """Start another."""
        self.post.settings = self.site.settings(**OTHER_SETTINGS[int(self.dice * len(OTHER_SETTINGS))])
        await super().heal()


class AtNetwork(AtListener):
    """A fault of the network between a listener and PostgreSQL."""

    length = "pause"

    def __init__(self, site: Site, dice: float) -> None:
        super().__init__(site, dice)
        self.proxy = site.proxies[site.listeners.index(self.post)]


class HalfOpen(AtNetwork):
    """Both ends believe in connections on which nothing arrives any more, nor ever will; new ones can be made."""

    kind = "listener's connections half-open"

    async def inject(self) -> None:
        """Drop what is sent, either way."""
        self.proxy.strand()

    async def heal(self) -> None:
        """Both ends learn of it."""
        await self.proxy.cut_stranded()


class Frozen(AtNetwork):
    """Nothing gets through for a while, and then everything does."""

    kind = "listener's network frozen"

    async def inject(self) -> None:
        """Hold back what is sent."""
        self.proxy.freeze()

    async def heal(self) -> None:
        """Deliver it."""
        self.proxy.thaw()


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


class PostgresStopped(ServerFault):
    """An immediate stop: sessions end in the middle of whatever they do, the next start is a crash recovery."""

    kind = "PostgreSQL stopped at once"

    def __init__(self, site: Site, dice: float) -> None:
        super().__init__(site, dice)
        self._disturbing = AsyncExitStack()

    @property
    def server(self) -> Service:
        """PostgreSQL."""
        return self.site.postgres

    async def inject(self) -> None:
        """Stop it."""
        self._disturbing.enter_context(self.site.disturbed())
        await self.end(signal.SIGQUIT)

    async def heal(self) -> None:
        """Start it again."""
        await self.server.start()
        await self._disturbing.aclose()


class ConnectionsCut(Fault):
    """An administrator ends all sessions of evervec's."""

    kind = "evervec's sessions ended"

    @property
    def busy(self) -> asyncio.Lock:
        """PostgreSQL's."""
        return self.site.busy[self.site.postgres.name]

    async def inject(self) -> None:
        """End them, whatever they are doing."""
        await self.site.run(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name LIKE 'evervec %'"
        )

    async def heal(self) -> None:
        """They reconnect by themselves."""


class QueueFull(Fault):
    """A session that listens to another channel and never reads; the notification queue is filled over half."""

    kind = "notification queue filled"
    length = "visit"

    def __init__(self, site: Site, dice: float) -> None:
        super().__init__(site, dice)
        self._sleeper: psycopg.AsyncConnection | None = None

    @property
    def busy(self) -> asyncio.Lock:
        """The queue's: PostgreSQL may be stopped meanwhile."""
        return self.site.busy["queue"]

    async def inject(self) -> None:
        """Fill it."""
        with suppress(psycopg.OperationalError):  # PostgreSQL may be away, and the queue goes with it
            self._sleeper = await psycopg.AsyncConnection.connect(self.site.conninfo, autocommit=True)
            await self._sleeper.execute("LISTEN chaos")
            await self._sleeper.execute("BEGIN; SELECT 1")
            async with await psycopg.AsyncConnection.connect(self.site.conninfo, autocommit=True) as noisy:
                while await _usage(noisy) < QUEUE_FILLED:
                    await noisy.execute("SELECT pg_notify('chaos', %s)", [PAGE])

    async def heal(self) -> None:
        """The session goes."""
        if self._sleeper:
            await self._sleeper.close()


class Refired(Fault):
    """An administrator has everything embedded anew."""

    kind = "everything re-fired by force"

    @property
    def busy(self) -> asyncio.Lock:
        """PostgreSQL's."""
        return self.site.busy[self.site.postgres.name]

    async def inject(self) -> None:
        """Re-fire one table; again, as the error says, where long transactions hold some of its items."""
        table = self.site.tables[int(self.dice * len(self.site.tables))]
        for _ in range(TRIES):
            with suppress(psycopg.errors.LockNotAvailable):
                await self.site.run("SELECT evervec.refire(%s, force => true)", table.name)
                return

    async def heal(self) -> None:
        """Nothing is to be undone."""


async def _usage(connection: psycopg.AsyncConnection) -> float:
    [(usage,)] = await (await connection.execute("SELECT pg_notification_queue_usage()")).fetchall()
    return float(usage)


KINDS: dict[str, type[Fault]] = {
    fault.kind: fault
    for fault in (
        ListenerKilled,
        WorkerKilled,
        TemporalKilled,
        PostgresStopped,
        ListenerStopped,
        WorkerStopped,
        TemporalStopped,
        HalfOpen,
        Frozen,
        QueueFull,
        WorkerChanged,
        SecondListener,
        SecondWorker,
        ConnectionsCut,
        Refired,
    )
}
