"""What happens to listeners and workers."""

import asyncio
import signal
from abc import abstractmethod
from typing import ClassVar

from tests.chaos.faults.base import Fault
from tests.chaos.post import Post
from tests.chaos.site import Site

OTHER_SETTINGS = (
    {"debounce_ms": 0, "debounce_max_ms": 0, "sweep_threshold": 1},
    {"debounce_ms": 400, "debounce_max_ms": 2000, "sweep_threshold": 200, "item_idle_seconds": 1},
    {"item_idle_seconds": 5, "max_attempts": 1, "log_level": "DEBUG"},
)


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
