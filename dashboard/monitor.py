"""What everybody who looks at the overview sees: looked up once for all of them, and only while somebody looks."""

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime

from temporalio.service import RPCError

from dashboard.sweeps import Sweeps, SweepView
from dashboard.temporal_link import TemporalLink
from db.pages import CountedAt, ListenerSession, Pages, ServerFacts, SourceDetails
from db.sources import Sources, SourceStatus
from db.work import WorkMinute
from evervec.errors import EvervecError
from evervec.log import describe_error, get_logger
from evervec.settings import Settings
from service.health import Poller, temporal_version, workers

INTEREST_SECONDS = 15.0
"""How long after somebody's look it is gone on with."""
TICK_SECONDS = 0.5
"""How often it is asked whether anything was enqueued: one row of a sequence."""
COUNT_SECONDS = 4.0
"""How often the counts are made at least."""
COUNT_SHARE = 4
"""How many times as long as a count took the next one is put off."""
TEMPORAL_SECONDS = 2.0
PATIENCE_SECONDS = 5.0
"""How long a page waits for the very first look."""

log = get_logger(__name__)


@dataclass(frozen=True, slots=True)
class Snapshot:
    """How things stand. What could not be asked for is None, and the problem says why."""

    number: int = 0
    taken_at: datetime | None = None
    """When the counts were made."""
    status: list[SourceStatus] = field(default_factory=list)
    details: dict[str, SourceDetails] = field(default_factory=dict)
    counted_at: dict[str, CountedAt] = field(default_factory=dict)
    history: list[WorkMinute] = field(default_factory=list)
    """What was done in the last hour."""
    changes: int = 0
    """Enqueues since the installation."""
    server: ServerFacts | None = None
    listeners: list[ListenerSession] = field(default_factory=list)
    postgres_problem: str | None = None
    temporal: str | None = None
    """The version of Temporal's server."""
    workers: list[Poller] = field(default_factory=list)
    temporal_problem: str | None = None
    sweeps: list[SweepView] = field(default_factory=list)


class Monitor:
    """Looks at the database and at Temporal, each in its own time, so that one that is away keeps nobody waiting."""

    def __init__(
        self, settings: Settings, sources: Sources, pages: Pages, temporal: TemporalLink, instance: str
    ) -> None:
        self._settings = settings
        self._sources = sources
        self._pages = pages
        self._temporal = temporal
        self._instance = instance
        self._sweeps = Sweeps()
        self._snapshot = Snapshot()
        self._turn = asyncio.Event()
        self._wanted = asyncio.Event()
        self._watchers = 0
        self._interest_until = 0.0
        self._hurry = False
        self._due = 0.0

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Look while the block runs and somebody is interested."""
        tasks = [asyncio.create_task(part) for part in (self._watch_database(), self._watch_temporal())]
        try:
            yield
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    async def snapshot(self) -> Snapshot:
        """How things stand, as far as is known: a page does not wait, but for the very first look."""
        self._interest()
        if self._snapshot.taken_at is None and self._snapshot.postgres_problem is None:
            try:
                async with asyncio.timeout(PATIENCE_SECONDS):
                    while self._snapshot.taken_at is None and self._snapshot.postgres_problem is None:
                        await self._turn.wait()
            except TimeoutError:
                return replace(self._snapshot, postgres_problem="PostgreSQL has not answered yet")
        return self._snapshot

    def hurry(self) -> None:
        """Somebody has changed something: look at once."""
        self._hurry = True

    @property
    def watchers(self) -> int:
        """How many streams are open."""
        return self._watchers

    async def snapshots(self) -> AsyncIterator[Snapshot]:
        """How things stand, again and again: at once, and after each look."""
        self._watchers += 1
        try:
            shown = await self.snapshot()
            yield shown
            while True:
                while self._snapshot.number == shown.number:
                    await self._turn.wait()
                shown = self._snapshot
                yield shown
        finally:
            self._watchers -= 1

    def _interest(self) -> None:
        self._interest_until = time.monotonic() + INTEREST_SECONDS
        self._wanted.set()

    async def _somebody_looks(self) -> None:
        while not self._watchers and time.monotonic() > self._interest_until:
            self._wanted.clear()
            await self._wanted.wait()

    def _tell(self, **news: object) -> None:
        self._snapshot = replace(self._snapshot, number=self._snapshot.number + 1, **news)  # type: ignore[arg-type]
        turn, self._turn = self._turn, asyncio.Event()
        turn.set()

    async def _watch_database(self) -> None:
        """Counts whenever something was enqueued, waits or was changed; and now and then."""
        while True:
            await self._somebody_looks()
            if problem := await self._problem(self._count_if_need_be):
                self._tell(postgres_problem=problem)
            await asyncio.sleep(TICK_SECONDS)

    async def _count_if_need_be(self) -> None:
        """Count, unless nothing speaks for it or the last count took too long for that."""
        changes = await self._sources.last_version()
        now = time.monotonic()
        last = self._snapshot
        age = (datetime.now(UTC) - last.taken_at).total_seconds() if last.taken_at else COUNT_SECONDS
        moving = changes != last.changes or any(one.pending for one in last.status)
        if not self._hurry and (now < self._due or not (moving or age >= COUNT_SECONDS or last.postgres_problem)):
            return
        self._hurry = False
        status = await self._sources.status()
        details = {one.name: one for one in await self._pages.details()}
        counted_at = await self._pages.counted_at()
        history = await self._sources.work_history()
        server, listeners = await self._pages.server(), await self._pages.listeners()
        self._due = time.monotonic() + COUNT_SHARE * (time.monotonic() - now)
        self._tell(
            taken_at=datetime.now(UTC),
            status=status,
            details=details,
            counted_at=counted_at,
            history=history,
            changes=changes,
            server=server,
            listeners=listeners,
            postgres_problem=None,
        )

    async def _watch_temporal(self) -> None:
        while True:
            await self._somebody_looks()
            if problem := await self._problem(self._ask_temporal):
                self._tell(temporal_problem=problem, temporal=None, workers=[])
            await asyncio.sleep(TEMPORAL_SECONDS)

    async def _ask_temporal(self) -> None:
        client = await self._temporal.client()
        version = self._snapshot.temporal or await temporal_version(client)
        found = await workers(client, self._settings)
        await self._sweeps.look(client, self._instance, self._snapshot.status)
        self._tell(temporal=version, workers=found, sweeps=self._sweeps.views, temporal_problem=None)

    async def _problem(self, look: Callable[[], Awaitable[None]]) -> str | None:
        """Why a look did not succeed; None when it did."""
        try:
            await look()
        except EvervecError as error:
            return str(error)
        except RPCError as error:
            return f"Temporal refuses: {error.status.name.lower()}"
        except Exception as error:  # noqa: BLE001 - the next look may succeed; who looks is told
            log.warning("a look failed", error=describe_error(error))
            return f"unexpected {describe_error(error)}"
        return None
