"""Which items go to Temporal, when, and how many at a time."""

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from typing import Protocol

from temporalio.exceptions import TemporalError
from temporalio.service import RPCError, RPCStatusCode

from db.outbox import OutboxItem
from evervec.errors import DatabaseError, EvervecError
from evervec.log import describe_error, get_logger
from evervec.settings import Settings
from listener.backoff import Backoff
from listener.debounce import Clock, Debouncer, Key
from listener.sent import Sent
from listener.window import Window

CAPACITY = 10_000
"""Items held in each lane; what does not fit is found in the outbox."""
SENT_CAPACITY = 20_000
BATCH = 32
CALLS = 32
"""Calls to Temporal at once."""

# What these say is wrong with the one workflow that was called, not with Temporal.
_ITS_OWN_FAULT = {RPCStatusCode.INVALID_ARGUMENT, RPCStatusCode.FAILED_PRECONDITION, RPCStatusCode.OUT_OF_RANGE}

_log = get_logger(__name__)


class Finder(Protocol):
    """The outbox, as far as the router needs it."""

    async def find(self, keys: Sequence[tuple[str, str]]) -> list[OutboxItem]:
        """Those of the items that are pending in sources that are not paused."""


class Router:
    """Two lanes of items that wait to be quiet, and the way from there to Temporal.

    What is heard by NOTIFY is live, unless a source has more than `sweep_threshold` items waiting: then it is bulk, and
    found in the outbox like all else that was not heard. Live items go first, and are not held up by the window that
    bulk items have to pass.

    What is due is looked up in the outbox before it is signalled: a notification is a hint that anybody can forge.
    """

    def __init__(
        self,
        settings: Settings,
        signal: Callable[[OutboxItem], Awaitable[None]],
        fits: Callable[[OutboxItem], bool],
        clock: Clock,
    ) -> None:
        window, longest = settings.debounce_ms / 1000, settings.debounce_max_ms / 1000
        self._live = Debouncer(window, longest, CAPACITY, clock)
        self._bulk = Debouncer(window, longest, CAPACITY, clock)
        self._debounce_seconds = window
        self._threshold = settings.sweep_threshold
        self._sent = Sent(SENT_CAPACITY, clock)
        self._window = Window(clock)
        self._signal = signal
        self._fits = fits
        self._filled = asyncio.Event()
        self._calls = asyncio.Semaphore(CALLS)
        self._backoff = Backoff()
        self.away = False
        """Temporal does not take our calls."""
        self.signalled = 0
        """Signals that got through."""

    @property
    def waiting(self) -> int:
        """Items that wait to be quiet."""
        return len(self._live) + len(self._bulk)

    @property
    def under_way(self) -> int:
        """Items that were signalled and not seen to leave the outbox yet."""
        return len(self._sent)

    # What comes in. None of these waits.

    def changed(self, key: Key, content_hash: str) -> None:
        """The item was heard of."""
        if key in self._live or self._live.count(key.source) < self._threshold:
            self._bulk.drop(key)
            self._put(self._live, key, content_hash)
        elif key in self._bulk:
            self._put(self._bulk, key, content_hash)

    def gone(self, key: Key) -> None:
        """The item was deleted: nothing waits for it any more, and its workflow ends by itself."""
        self._live.drop(key)
        self._bulk.drop(key)
        self._sent.forget(key)

    def seen(self, item: OutboxItem, seen_at: float) -> bool:
        """The item was in the outbox at `seen_at`. Returns whether that was news, and there was room for it."""
        key = Key(item.source, item.item_key)
        for lane in (self._live, self._bulk):
            if key in lane:
                lane.see(key, item.content_hash, seen_at)
                return False
        if self._sent.rests(key, item.version) or not self._has_room(key):
            return False
        return self._put(self._bulk, key, item.content_hash)

    def _has_room(self, key: Key) -> bool:
        if key in self._sent:
            return True
        under_way = self._sent.under_way(key.source) + self._bulk.count(key.source)
        # What a stage of the way holds is the rate times the time that it takes; the window is the rate of a second.
        return under_way < self._window.size(key.source) * (1 + self._debounce_seconds)

    def _put(self, lane: Debouncer, key: Key, content_hash: str | None) -> bool:
        taken = lane.put(key, content_hash)
        self._filled.set()
        return taken

    # What goes out.

    async def settle(self, outbox: Finder, limit: int = 500) -> int:
        """Look for signalled items in the outbox; returns how many have left it."""
        keys = self._sent.next_keys(limit)
        if not keys:
            return 0
        left = set(keys) - {Key(item.source, item.item_key) for item in await outbox.find(keys)}
        for key in left:
            self._sent.forget(key)
            self._window.done(key.source)
        return len(left)

    async def run(self, outbox: Finder) -> None:
        """Signal what is due, until cancelled. ServiceUnreachableError when the database is lost."""
        async with asyncio.TaskGroup() as calls:
            while True:
                if self.away:
                    await asyncio.sleep(self._backoff.next())
                lane, keys = await self._next_due(1 if self.away else BATCH)
                for item in await self._confirm(outbox, keys):
                    await self._calls.acquire()
                    call = calls.create_task(self._send(item, lane))
                    if self.away:
                        await call

    async def _next_due(self, limit: int) -> tuple[Debouncer, list[Key]]:
        while True:
            for lane in (self._live, self._bulk):
                if due := lane.pop_due(limit):
                    return lane, [key for key, _hash in due]
            self._filled.clear()
            pauses = [pause for lane in (self._live, self._bulk) if (pause := lane.due_in()) is not None]
            with suppress(TimeoutError):
                async with asyncio.timeout(min(pauses, default=None)):
                    await self._filled.wait()

    async def _confirm(self, outbox: Finder, keys: list[Key]) -> list[OutboxItem]:
        try:
            pending = await outbox.find(keys)
        except (DatabaseError, UnicodeEncodeError) as error:  # a forged key that the encoding does not have
            _log.warning("notified items could not be looked up", items=len(keys), error=describe_error(error))
            return []
        return [item for item in pending if self._may_be_sent(item)]

    def _may_be_sent(self, item: OutboxItem) -> bool:
        key = Key(item.source, item.item_key)
        if self._sent.rests(key, item.version):
            return False
        if self._fits(item):
            return True
        if self._sent.park(key, item.version):
            _log.warning("a key is too long for a workflow id: the item stays in the outbox", source=item.source)
        return False

    async def _send(self, item: OutboxItem, lane: Debouncer) -> None:
        key = Key(item.source, item.item_key)
        self._sent.add(key, item.version)
        try:
            await self._signal(item)
        except (EvervecError, TemporalError) as error:
            self._not_sent(key, item, lane, error)
        else:
            self.signalled += 1
            self._here()
        finally:
            self._calls.release()

    def _not_sent(self, key: Key, item: OutboxItem, lane: Debouncer, error: Exception) -> None:
        status = error.status if isinstance(error, RPCError) else None
        name = status.name if status else describe_error(error)
        if status in _ITS_OWN_FAULT:
            _log.error("Temporal refused to start or signal an item's workflow", source=item.source, error=name)
            return  # remembered as sent: tried again, more and more rarely
        self._sent.forget(key)
        if key not in lane:
            self._put(lane, key, item.content_hash)
        if not self.away:
            _log.warning("Temporal is away; what changes meanwhile waits in the outbox", error=name)
            self.away = True

    def _here(self) -> None:
        self._backoff.reset()
        if self.away:
            _log.info("Temporal is back")
            self.away = False
