"""Which items go to Temporal, when, and by which lane."""

import asyncio
from collections.abc import Sequence
from contextlib import suppress
from itertools import chain
from typing import Protocol

from temporalio.exceptions import TemporalError
from temporalio.service import RPCError, RPCStatusCode

from db.outbox import OutboxItem
from evervec.errors import DatabaseError, EvervecError
from evervec.log import describe_error, get_logger
from evervec.settings import Settings
from evervec.tracing import span
from listener.backoff import Backoff
from listener.debounce import Clock, Debouncer, Due, Key
from listener.sent import Sent
from listener.sweeps import Sweeps
from listener.vain import Vain

CAPACITY = 10_000
"""Items held; what does not fit is found in the outbox."""
BATCH = 32
CALLS = 32
"""Calls to Temporal at once."""
SWEEP = "\0"
"""In place of a key: the source's sweep. No key has a NUL in it, since PostgreSQL has none in its texts."""

# What these say is wrong with the one workflow that was called, not with Temporal.
_ITS_OWN_FAULT = {RPCStatusCode.INVALID_ARGUMENT, RPCStatusCode.FAILED_PRECONDITION, RPCStatusCode.OUT_OF_RANGE}

_log = get_logger(__name__)


class Finder(Protocol):
    """The outbox, as far as the router needs it."""

    async def find(self, keys: Sequence[tuple[str, str]]) -> list[OutboxItem]:
        """Those of the items that are pending in sources that are not paused."""


class Ways(Protocol):
    """Temporal, as far as the router needs it."""

    def fits(self, item: OutboxItem) -> bool:
        """Whether the item can have a workflow of its own."""

    async def signal_item(self, item: OutboxItem) -> None:
        """Tell the item's workflow that it changed."""

    async def signal_sweep(self, source: str) -> None:
        """Tell the source's sweep that items wait."""

    async def sweep_is_open(self, source: str) -> bool:
        """Whether the source's sweep is at work."""


class Router:
    """Items, and sweeps to be started, that wait to be quiet; and their way from there to Temporal.

    What is heard by NOTIFY goes live, whatever the source's sweep does, unless more than `sweep_threshold` items of the
    source are on their way already: the rest is found in the outbox. What is found there goes the same way if it
    is few; what is more than the threshold, throttled, or has a key too long for a workflow, is the sweep's, and so is
    all that is found while the sweep is open, but for a few that are new.

    What is due is looked up in the outbox before it is signalled: a notification is a hint that anybody can forge.
    """

    def __init__(self, settings: Settings, ways: Ways, clock: Clock) -> None:
        self._waiting = Debouncer(settings.debounce_ms / 1000, settings.debounce_max_ms / 1000, CAPACITY, clock)
        self.threshold = settings.sweep_threshold
        """More waiting items of a source than these are bulk work."""
        self._sent = Sent(CAPACITY, clock)
        self._sweeps = Sweeps(ways.sweep_is_open, clock)
        self._vain = Vain(clock)
        self._latest: dict[str, int] = {}  # the highest version of each source that a sweep should know of
        self._in_hand: list[Key] = []  # taken out of those that wait, and not sent yet
        self._ways = ways
        self._filled = asyncio.Event()
        self._calls = asyncio.Semaphore(CALLS)
        self._backoff = Backoff()
        self.away = False
        """Temporal does not take our calls."""
        self.signalled = 0
        """Signals to items' workflows that got through."""
        self.swept = 0
        """Signals to sweeps that got through."""
        self.not_signalled = 0
        """Signals that did not get through."""
        self.debounced = 0
        """Changes that were heard of while their items waited already."""

    @property
    def waiting(self) -> int:
        """Items that wait to be quiet, and sweeps to be started."""
        return len(self._waiting)

    @property
    def under_way(self) -> int:
        """Items that were signalled and not seen to leave the outbox yet."""
        return len(self._sent)

    @property
    def sweeping(self) -> list[str]:
        """The sources whose sweeps were at work not long ago."""
        return self._sweeps.open()

    # What comes in by NOTIFY. None of this waits.

    def changed(self, key: Key, content_hash: str) -> bool:
        """The item was heard of; of no use when it waits already, or may not go live."""
        waits = key in self._waiting
        self.debounced += waits
        takes = waits or key in self._sent or (self._has_room(key.source) and self._vain.heeds(key.source))
        return takes and self._put(key, content_hash) and not waits

    def gone(self, key: Key) -> bool:
        """The item was deleted: nothing waits for it any more, and its workflow ends by itself."""
        known = key in self._waiting or key in self._sent
        self._waiting.drop(key)
        self._sent.forget(key)
        return known

    def may_go_deaf(self) -> bool:
        """Whether what is not heard of, but found a moment later, fares no worse.

        What is found while its source's sweep is open, or about to be, is left to that, and might have gone live.
        """
        starting = (source for source in self._latest if self._is_starting(Key(source, SWEEP)))
        return not any(self._has_room(source) for source in chain(self._sweeps.open(), starting))

    def _is_starting(self, sweep: Key) -> bool:
        return sweep in self._waiting or sweep in self._in_hand

    def _has_room(self, source: str) -> bool:
        return self._on_their_way(source) < self.threshold

    def _on_their_way(self, source: str) -> int:
        in_hand = sum(key.source == source and key not in self._sent for key in self._in_hand)
        return self._waiting.count(source) + in_hand + self._sent.under_way(source)

    def _put(self, key: Key, content_hash: str | None) -> bool:
        self._filled.set()
        return self._waiting.put(key, content_hash)

    # What is found in the outbox.

    async def found(self, source: str, items: Sequence[OutboxItem], seen_at: float) -> None:
        """These items of one source were in the outbox at `seen_at`; more than `threshold` of them stand for many."""
        self._vain.forget(source)
        new = [item for item in items if not self._knows(item, seen_at)]
        if not new:
            return
        bulk = len(items) > self.threshold or any(item.throttled or not self._ways.fits(item) for item in new)
        version = max(item.version for item in items)
        news = self._sweeps.is_news(source, version)
        # Bulk that the sweep may not know of needs no question: to tell the sweep is to start it where there is none.
        is_open = (bulk and news) or await self._sweeps.is_open(source)
        if not (is_open or bulk):
            for item in new:
                if not self._knows(item, seen_at):  # it may have been heard of while Temporal was asked
                    self._put(Key(source, item.item_key), item.content_hash)
        elif news or not is_open:
            self._tell_sweep(source, version)

    def unheard(self, items: Sequence[OutboxItem], seen_at: float) -> None:
        """These few items of one source are new; nobody may have rung for them, and its sweep comes to them last."""
        for item in items:
            if self._ways.fits(item) and self._has_room(item.source) and not self._knows(item, seen_at):
                self._put(Key(item.source, item.item_key), item.content_hash)

    def _knows(self, item: OutboxItem, seen_at: float) -> bool:
        key = Key(item.source, item.item_key)
        if key in self._waiting:
            self._waiting.see(key, item.content_hash, seen_at)
            return True
        # What is in hand is signalled as it stands in the outbox now. If it waited once more, its next change would be
        # thought to have waited since then.
        return key in self._in_hand or self._sent.rests(key, item.version)

    def _tell_sweep(self, source: str, version: int) -> None:
        # The window begins with the first news and not anew with each: the sweep itself leaves alone what is not quiet.
        key = Key(source, SWEEP)
        self._latest[source] = max(version, self._latest.get(source, 0))
        if key not in self._waiting:
            self._put(key, None)

    async def settle(self, outbox: Finder, limit: int = 500) -> None:
        """Look for signalled items in the outbox, and forget those that have left it."""
        keys = self._sent.next_keys(limit)
        for key in set(keys) - {Key(item.source, item.item_key) for item in await outbox.find(keys)}:
            self._sent.forget(key)

    # What goes out.

    async def run(self, outbox: Finder) -> None:
        """Signal what is due, until cancelled. ServiceUnreachableError when the database is lost."""
        async with asyncio.TaskGroup() as calls:
            while True:
                if self.away:
                    await asyncio.sleep(self._backoff.next())
                due = await self._next_due(1 if self.away else BATCH)
                waited = {each.key: each.waited for each in due}
                self._in_hand = [*waited]
                for key, item in await self._confirm(outbox, self._in_hand):
                    await self._calls.acquire()
                    if item:
                        self._sent.add(key, item.version)
                    call = calls.create_task(self._send(key, item, waited[key]))
                    if self.away:
                        await call
                self._in_hand = []

    async def _next_due(self, limit: int) -> list[Due]:
        while True:
            if due := self._waiting.pop_due(limit):
                return due
            self._in_hand = []
            self._filled.clear()
            with suppress(TimeoutError):
                async with asyncio.timeout(self._waiting.due_in()):
                    await self._filled.wait()

    async def _confirm(self, outbox: Finder, keys: list[Key]) -> list[tuple[Key, OutboxItem | None]]:
        """Sweeps, and those of the items that wait and were not signalled yet."""
        confirmed: list[tuple[Key, OutboxItem | None]] = [(key, None) for key in keys if key.item_key == SWEEP]
        items = [key for key in keys if key.item_key != SWEEP]
        try:
            pending = await outbox.find(items)
        except (DatabaseError, UnicodeEncodeError) as error:  # a forged key that the encoding does not have
            _log.warning("notified items could not be looked up", items=len(items), error=describe_error(error))
            return confirmed
        self._vain.looked_up(items, (item.source for item in pending))
        for item in pending:
            key = Key(item.source, item.item_key)
            if not self._ways.fits(item):
                self._tell_sweep(item.source, item.version)
            elif not self._sent.rests(key, item.version):
                confirmed.append((key, item))
        return confirmed

    async def _send(self, key: Key, item: OutboxItem | None, waited: float) -> None:
        latest = self._latest.get(key.source, 0)
        try:
            with span(
                "item changed" if item else "items wait", waited=waited, source=key.source, key=item and item.item_key
            ):
                await (self._ways.signal_item(item) if item else self._ways.signal_sweep(key.source))
        except (EvervecError, TemporalError) as error:
            self._not_sent(key, item, error)
        else:
            if item:
                self.signalled += 1
            else:
                self._sweeps.told(key.source, latest)
                self.swept += 1
            self._here()
        finally:
            self._calls.release()

    def _not_sent(self, key: Key, item: OutboxItem | None, error: Exception) -> None:
        self.not_signalled += 1
        status = error.status if isinstance(error, RPCError) else None
        name = status.name if status else describe_error(error)
        if status in _ITS_OWN_FAULT:
            about = {"key": item.item_key, "hash": item.content_hash} if item else {}
            _log.error("Temporal refused to start or signal a workflow", source=key.source, error=name, **about)
            return  # an item is remembered as sent, and tried again more and more rarely
        self._sent.forget(key)
        if key not in self._waiting:
            self._put(key, item and item.content_hash)
        if not self.away:
            _log.warning("Temporal is away; what changes meanwhile waits in the outbox", error=name)
            self.away = True

    def _here(self) -> None:
        self._backoff.reset()
        if self.away:
            _log.info("Temporal is back")
            self.away = False
