"""Wait to lead; or for the leader to be stuck."""

import asyncio
import time
from collections.abc import Sequence
from typing import Protocol

from db.outbox import OutboxItem
from evervec.errors import ServiceUnreachableError
from evervec.log import get_logger
from listener.debounce import Clock, Key

RETRY_SECONDS = 1.0
PATIENCE_SECONDS = 10.0
ANSWER_SECONDS = 10.0
"""How long a try may take. On a connection that died silently it would be a quarter of an hour, and nobody may lead."""
SAMPLE = 100

_log = get_logger(__name__)


class Candidate(Protocol):
    """The outbox, as far as one who wants to lead needs it, on the connection that is to hold the lock."""

    async def try_lead(self) -> bool:
        """Whether this connection leads now."""

    async def read(self, limit: int) -> list[OutboxItem]:
        """The first pending items."""

    async def find(self, keys: Sequence[tuple[str, str]]) -> list[OutboxItem]:
        """Those of the items that are pending."""


class Standby:
    """Tries every second to lead. A stopped leader keeps its lock; an outbox that nobody empties gives it away."""

    def __init__(self, clock: Clock = time.monotonic) -> None:
        self._clock = clock
        self._sample: list[Key] = []
        self._moved_at = clock()

    async def wait(self, outbox: Candidate) -> bool:
        """Wait for leadership. False: another leads, but does not do its work; two at work do no harm.

        ServiceUnreachableError when the database is lost.
        """
        self._moved_at = self._clock()
        told = False
        while True:
            try:
                async with asyncio.timeout(ANSWER_SECONDS):
                    if await outbox.try_lead():
                        return True
                    stuck = await self._stuck(outbox)
            except TimeoutError:
                raise ServiceUnreachableError(f"PostgreSQL did not answer within {ANSWER_SECONDS:g} s") from None
            if not told:
                _log.info("standing by: another listener leads")
                told = True
            if stuck:
                _log.warning("the outbox does not get emptier: helping the listener that leads")
                return False
            await asyncio.sleep(RETRY_SECONDS)

    async def _stuck(self, outbox: Candidate) -> bool:
        if len(await outbox.find(self._sample)) < len(self._sample) or not self._sample:
            self._sample = [Key(item.source, item.item_key) for item in await outbox.read(SAMPLE)]
            self._moved_at = self._clock()
        return self._clock() - self._moved_at > PATIENCE_SECONDS
