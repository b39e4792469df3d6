"""The listener's process: start, stop, and what it is doing now."""

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress

from temporalio.service import RPCError, RPCStatusCode

from db.connection import connect as connect_database
from db.listen import NotificationStream
from db.outbox import Outbox
from evervec.errors import DatabaseError, EvervecError
from evervec.log import describe_error, get_logger
from evervec.metrics_page import served
from evervec.settings import Settings
from evervec.tracing import traced
from listener.backoff import Backoff
from listener.census import Census
from listener.hush import Hush
from listener.lanes import Lanes
from listener.lookout import Filler, Lookout
from listener.measures import Measures
from listener.notify import Ear
from listener.route import Router
from listener.standby import Standby
from listener.status import ListenerStatus, Role
from listener.unheard import Unheard

HELP_SECONDS = 300.0
"""How long to help a leader that is stuck, before trying again to take its place."""
STEADY_SECONDS = 10.0
"""A connection that lasted longer was a good one: the next is tried for at once."""

# A server without schedules, or a client that may not make one.
_NO_SCHEDULES = {RPCStatusCode.UNIMPLEMENTED, RPCStatusCode.PERMISSION_DENIED}

_log = get_logger(__name__)


class Listener:
    """From a NOTIFY to a signal: one process, of which any number may run; one leads, the others wait."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._role = Role.STOPPED
        self._lanes = Lanes(settings)
        self._running: asyncio.Task[None] | None = None
        self._stopping = False
        self._backoff = Backoff()
        self._bell = asyncio.Event()
        self._router = Router(settings, self._lanes, time.monotonic)
        self._lookout = Lookout(self._router, self._bell)
        self._hush = Hush(self._router.may_go_deaf, self._lookout.look_at_once)
        self._ear = Ear(self._router, self._bell, self._hush.useless)
        self._filler = Filler(self._bell)
        self._census = Census()
        self._unheard = Unheard(self._router)
        self._standby = Standby()
        self._reconnects = 0
        self.measures = Measures(self.status)
        """For Prometheus."""

    async def start(self) -> None:
        """Connect and go to work. ServiceUnreachableError when PostgreSQL or Temporal is not there at first."""
        stream = await NotificationStream.open(self._settings.listen_conninfo)
        try:
            self._lanes.instance = await Outbox(stream.connection).instance()
            await self._lanes.connect()
        except BaseException:
            await stream.close()
            raise
        self._stopping = False
        self._running = asyncio.create_task(self._run(stream))
        _log.info("listener started", instance=self._lanes.instance, temporal=self._settings.temporal_address)

    async def wait(self) -> None:
        """Wait until the listener ends, which it does by itself only on a programming error: that is raised here."""
        if self._running:
            await asyncio.shield(self._running)

    async def stop(self) -> None:
        """End all work. Nothing is lost: what was not signalled is in the outbox."""
        if self._running:
            self._stopping = True
            self._running.cancel()
            await asyncio.wait((self._running,))
            self._running = None
        self._role = Role.STOPPED
        _log.info("listener stopped")

    def status(self) -> ListenerStatus:
        """What it is doing now."""
        return ListenerStatus(
            role=self._role,
            waiting=self._router.waiting,
            under_way=self._router.under_way,
            signalled=self._router.signalled,
            swept=self._router.swept,
            heard=self._ear.heard,
            garbage=self._ear.garbage,
            debounced=self._router.debounced,
            hushed=self._hush.hushed,
            not_signalled=self._router.not_signalled,
            reconnects=self._reconnects,
            sweeping=self._router.sweeping,
            overlooked=dict(self._census.overlooked),
            filling=self._filler.filling,
            temporal_away=self._router.away,
        )

    async def _run(self, stream: NotificationStream) -> None:
        while True:
            began = time.monotonic()
            try:
                await self._serve(stream)
            except* EvervecError as errors:
                self._role = Role.RECONNECTING
                self._reconnects += 1
                _log.warning("PostgreSQL is away: reconnecting", error=_tell(errors))
            if self._stopping:
                return  # a task group whose parts fail while it is cancelled tells of the failures alone
            if time.monotonic() - began > STEADY_SECONDS:
                self._backoff.reset()
            stream = await self._reconnect()

    async def _reconnect(self) -> NotificationStream:
        while True:
            await asyncio.sleep(self._backoff.next())
            with suppress(EvervecError):
                return await NotificationStream.open(self._settings.listen_conninfo)

    async def _serve(self, stream: NotificationStream) -> None:
        """One connection's life."""
        try:
            while True:
                self._role = Role.STANDBY
                if await self._standby.wait(Outbox(stream.connection)):
                    await self._work(stream, Role.LEADING)
                with suppress(TimeoutError):
                    async with asyncio.timeout(HELP_SECONDS):
                        await self._work(stream, Role.HELPING)
                await stream.unlisten()
        finally:
            await stream.close()

    async def _work(self, stream: NotificationStream, role: Role) -> None:
        # Who listens before the first look misses nothing: what commits before the look is seen, later it is heard.
        await stream.listen()
        async with (
            self._outbox() as outbox,
            self._outbox() as filling,
            self._outbox() as counting,
            self._outbox() as hushing,
            asyncio.TaskGroup() as parts,
        ):
            self._lanes.instance = await outbox.instance()
            self._role = role
            _log.info("listener leads" if role is Role.LEADING else "listener helps", instance=self._lanes.instance)
            parts.create_task(self._ear.run(stream))
            parts.create_task(self._lookout.run(outbox))
            parts.create_task(self._router.run(outbox))
            parts.create_task(self._filler.run(filling))
            parts.create_task(self._census.run(counting))
            parts.create_task(self._unheard.run(counting))
            parts.create_task(self._hush.run(hushing))
            if self._settings.metrics_address:
                parts.create_task(self.measures.run(counting))
            if role is Role.LEADING:
                parts.create_task(self._keep_schedule())

    @asynccontextmanager
    async def _outbox(self) -> AsyncIterator[Outbox]:
        connection = await connect_database(self._settings.database_conninfo, application_name="evervec listener")
        async with connection:
            yield Outbox(connection)

    async def _keep_schedule(self) -> None:
        """Make the schedule of the safety net. It can wait, and where it can't be had all else goes on without."""
        backoff = Backoff(first=1.0, longest=60.0)
        while True:
            try:
                await self._lanes.ensure_schedule()
            except (EvervecError, RPCError) as error:
                if isinstance(error, RPCError) and error.status in _NO_SCHEDULES:
                    _log.warning("no schedule sweeps what nobody hears of", error=error.status.name)
                    return
                await asyncio.sleep(backoff.next())
            else:
                return


def _tell(errors: BaseExceptionGroup[EvervecError]) -> str:
    """The first error in one line; of the database's own words only the SQLSTATE, since they may quote rows."""
    error: BaseException = errors
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return describe_error(error) if isinstance(error, DatabaseError) else str(error)


async def run_listener(settings: Settings) -> None:
    """Listen until cancelled.

    ServiceUnreachableError when PostgreSQL or Temporal does not answer at the start. Later the listener waits for them.
    """
    listener = Listener(settings)
    with traced("evervec-listener"), served(settings.metrics_address, listener.measures):
        await listener.start()
        try:
            await listener.wait()
        finally:
            await listener.stop()
