"""What a worker has done, summed up in memory and told to the database now and then."""

import asyncio
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import Self

from db.items import Items, WriteBack
from db.work import Work
from evervec import metrics
from evervec.latency import latency_bucket
from evervec.log import describe_error, get_logger
from evervec.messages import Outcome
from evervec.metrics import Lane

FLUSH_SECONDS = 5.0
CLOSE_SECONDS = 2.0
"""How long a stop waits for the last sums to be told."""

NEEDED_NO_VECTOR = {Outcome.UNCHANGED, Outcome.INELIGIBLE, Outcome.GONE}

log = get_logger(__name__)


class Tally:
    """Counts, and tells every few seconds while there is something to tell. What it cannot tell is lost: statistics.

    Prometheus is told at once.
    """

    def __init__(self, items: Items) -> None:
        self._items = items
        self._sums: dict[str, Work] = {}
        self._telling: asyncio.Task[None] | None = None
        self._refused = False

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    def stored(self, source: str, lane: Lane, writes: Sequence[WriteBack], outcomes: Mapping[str, Outcome]) -> None:
        """These write-backs were made just now."""
        work, now = self._work(source), time.monotonic()
        became = Counter(outcomes[write.item_key] for write in writes)
        work.embedded += became[Outcome.EMBEDDED]
        work.skipped += sum(became[outcome] for outcome in NEEDED_NO_VECTOR)
        for outcome, number in became.items():
            metrics.ITEMS.labels(source, lane, outcome).inc(number)
        latency = metrics.COMMIT_TO_VECTOR.labels(source, lane)
        for write in writes:
            if write.queued_at is not None and outcomes[write.item_key] is Outcome.EMBEDDED:
                work.latency[latency_bucket(now - write.queued_at)] += 1
                latency.observe(now - write.queued_at)

    def failed(self, source: str, lane: Lane, attempts: int, given_up: int) -> None:
        """So many attempts failed by the items' own fault, and so many of the items were given up for that."""
        self._work(source).failed += given_up
        metrics.FAILED_ATTEMPTS.labels(source, lane).inc(attempts)
        metrics.ITEMS.labels(source, lane, Outcome.FAILED).inc(given_up)

    async def close(self) -> None:
        """Tell what is left, if the database answers soon."""
        if self._telling:
            self._telling.cancel()
            await asyncio.wait([self._telling])
        with suppress(TimeoutError):
            async with asyncio.timeout(CLOSE_SECONDS):
                await self._tell()

    def _work(self, source: str) -> Work:
        if self._telling is None or self._telling.done():
            self._telling = asyncio.create_task(self._tell_now_and_then(), name="evervec-tally")
        return self._sums.setdefault(source, Work())

    async def _tell_now_and_then(self) -> None:
        while self._sums:
            await asyncio.sleep(FLUSH_SECONDS)
            await self._tell()

    async def _tell(self) -> None:
        sums, self._sums = self._sums, {}
        try:
            if sums:
                await self._items.record_work(sums)
            self._refused = False
        except Exception as error:  # noqa: BLE001 - statistics; whatever it is, the work goes on
            if not self._refused:
                log.warning("what was done could not be recorded", error=describe_error(error))
            self._refused = True
