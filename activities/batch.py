"""What a sweep asks for: bring many vectors in line with their rows."""

import asyncio
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from datetime import timedelta
from typing import TypeVar

from temporalio import activity
from temporalio.exceptions import ApplicationError

from activities.faults import database_blames_item, encoder_blames_item, reason_of
from activities.heartbeat import heartbeats
from activities.instance import InstanceCheck
from activities.store import store_item_embedding
from activities.tally import Tally
from db.items import FailedAttempt, Items, ItemState, WriteBack
from embedding.encoder import Encoder
from evervec import metrics
from evervec.errors import BadItemError, ConfigurationError
from evervec.log import describe_error, get_logger
from evervec.messages import (
    BATCH_GENERATE_EMBEDDINGS,
    BatchEmbeddingRequest,
    BatchEmbeddingResult,
    ItemEmbeddingResult,
    Outcome,
)
from evervec.metrics import Lane
from evervec.settings import Settings
from evervec.temporal import failure_of, passing_failure
from evervec.tracing import span

BATCHES_AT_ONCE = 4
"""Of all sources: enough to keep the encoder busy, and few enough to leave slots and connections to live edits."""
BUSY_RETRY = timedelta(seconds=1)
PACE_SECONDS = 0.5
"""With a rate, items are taken in portions of so long."""
LOCK_WAITS = (0.05, 0.1, 0.2)
"""Seconds before each further try at rows that were locked; the next pass comes soon enough for the others."""

DONE = (Outcome.EMBEDDED, Outcome.UNCHANGED, Outcome.INELIGIBLE, Outcome.GONE)

T = TypeVar("T")
Bad = list[tuple[ItemState | WriteBack, Exception]]
"""Items whose attempt failed, and the errors that they are to blame for."""

log = get_logger(__name__)


class BatchActivities:
    """The activities on many items. They may run twice, late or in parallel: the database compares before it sets."""

    def __init__(
        self, items: Items, encoder: Encoder, settings: Settings, instance: InstanceCheck, tally: Tally
    ) -> None:
        self._items = items
        self._tally = tally
        self._encoder = encoder
        self._max_attempts = settings.max_attempts
        self._instance = instance
        self._running = 0

    @activity.defn(name=BATCH_GENERATE_EMBEDDINGS)
    async def batch_generate_embeddings(self, request: BatchEmbeddingRequest) -> BatchEmbeddingResult:
        """Read the items, embed those whose vectors are stale, write the vectors back and ack the changes."""
        if self._running >= BATCHES_AT_ONCE:
            raise passing_failure("WorkerBusy", next_retry_delay=BUSY_RETRY)
        about = log.bind(source=request.source, items=len(request.item_keys), workflow=activity.info().workflow_id)
        started = time.perf_counter()
        self._running += 1
        try:
            async with heartbeats():
                await self._instance.check()
                batch = Batch(self._items, self._encoder, self._tally, request, self._max_attempts)
                await batch.run()
        except ApplicationError as failure:
            about.info("batch waits", reason=failure.type)
            raise
        except Exception as error:  # noqa: BLE001 - no error leaves the worker but by its class
            metrics.ACTIVITY_FAILURES.labels(BATCH_GENERATE_EMBEDDINGS).inc()
            about.warning("batch not embedded", error=describe_error(error))
            raise failure_of(error) from None
        finally:
            self._running -= 1
        seconds = time.perf_counter() - started
        about.info("batch done", **batch.outcomes(), ms=round(seconds * 1000))
        return batch.result(seconds)


class Batch:
    """One batch on its way, and what has become of its items so far."""

    def __init__(
        self, items: Items, encoder: Encoder, tally: Tally, request: BatchEmbeddingRequest, max_attempts: int
    ) -> None:
        self._items = items
        self._encoder = encoder
        self._tally = tally
        self._request = request
        self._source = request.source
        self._max_attempts = max_attempts
        self._counts: Counter[Outcome] = Counter()
        self._failures: list[ItemEmbeddingResult] = []

    async def run(self) -> None:
        """Do it all. What is nobody's fault (the model or the database is away) is raised, and all may be run again."""
        rate = self._request.rate
        portion = len(self._request.item_keys) if rate is None else max(1, int(rate * PACE_SECONDS))
        started, done = time.perf_counter(), 0
        for keys in _parts(self._request.item_keys, portion):
            with span("read", items=len(keys)):
                states = await self._items.read(self._source, keys)
            await self._embed(states)
            if Outcome.PAUSED in self._counts:
                return
            done += len(keys)
            if rate is not None:
                await asyncio.sleep(started + done / rate - time.perf_counter())

    async def _embed(self, states: Sequence[ItemState]) -> None:
        """Bring these items in line, or leave them all if their source is paused."""
        writes: list[WriteBack] = []
        stale: list[ItemState] = []
        force = self._request.force_regenerate
        for state in states:
            if state.paused:
                self._counts[Outcome.PAUSED] += 1
            elif not state.stale(forced=force):
                writes.append(state.written_back())
            elif state.failed and not force:
                self._counts[Outcome.FAILED] += 1  # given up since it was fetched
            else:
                stale.append(state)
        bad: Bad = []
        await self._write(writes, bad)
        if stale:
            await self._encode(stale, bad)
        if bad:
            await self._record(bad)

    async def _encode(self, states: Sequence[ItemState], bad: Bad) -> None:
        """Embed and write all that can be; where the model fails on them, the halves, down to those that are to blame.

        A half that is good is written at once.
        """
        texts = [state.content or "" for state in states]
        try:
            with span("encode", model=states[0].model.name, items=len(texts)):
                answers = await self._encoder.embed_each(states[0].model, texts, live=False)
        except ConfigurationError as error:
            await self._items.note_error(self._source, states, str(error))
            raise
        except Exception as error:
            if not encoder_blames_item(error):
                raise
            if len(states) == 1:
                bad.append((states[0], error))
                return
            for half in _halves(states):
                await self._encode(half, bad)
            return
        writes: list[WriteBack] = []
        for state, answer in zip(states, answers, strict=True):
            if isinstance(answer, BadItemError):
                bad.append((state, answer))
            else:
                writes.append(state.written_back(answer))
        await self._write(writes, bad)

    async def _write(self, writes: Sequence[WriteBack], bad: Bad) -> None:
        """Write back, at first without waiting for rows that somebody holds."""
        locked: list[WriteBack] = []
        for part in _parts(writes, self._request.batch_size):
            locked += await self._store(part, (0.0,), bad)
        for part in _parts(locked, self._request.batch_size):
            self._counts[Outcome.LOCKED] += len(await self._store(part, LOCK_WAITS, bad))

    async def _store(
        self,
        writes: Sequence[WriteBack],
        waits: Sequence[float],
        bad: Bad,
    ) -> list[WriteBack]:
        """Write these back; where that fails, the halves, down to the rows at fault. Returns what is locked."""
        try:
            outcomes = await store_item_embedding(
                self._items, self._tally, Lane.SWEEP, self._source, writes, waits=waits
            )
        except Exception as error:
            if not database_blames_item(error):
                raise
            if len(writes) == 1:
                bad.append((writes[0], error))
                return []
            return [locked for half in _halves(writes) for locked in await self._store(half, waits, bad)]
        self._counts.update(outcome for outcome in outcomes.values() if outcome is not Outcome.LOCKED)
        return [write for write in writes if outcomes[write.item_key] is Outcome.LOCKED]

    async def _record(self, bad: Bad) -> None:
        """Count the attempts that failed."""
        failed = [FailedAttempt(item.item_key, item.outbox_version, reason_of(error)) for item, error in bad]
        given_up = await self._items.record_failures(self._source, failed, self._max_attempts)
        self._counts[Outcome.FAILED] += len(given_up)
        self._tally.failed(self._source, Lane.SWEEP, attempts=len(bad), given_up=len(given_up))
        self._failures += [
            ItemEmbeddingResult(item_key=item.item_key, outcome=Outcome.FAILED, error_message=describe_error(error))
            for item, error in bad
        ]

    def outcomes(self) -> dict[str, int]:
        """How many items had each outcome, and how many attempts failed."""
        return {outcome.value: count for outcome, count in self._counts.items()} | {"failed": len(self._failures)}

    def result(self, seconds: float) -> BatchEmbeddingResult:
        """What became of the items."""
        return BatchEmbeddingResult(
            total_items=len(self._request.item_keys),
            successful=sum(self._counts[outcome] for outcome in DONE),
            failed=len(self._failures),
            results=self._failures,
            counts=dict(self._counts),
            seconds=seconds,
        )


def _parts(items: Sequence[T], size: int) -> Iterator[Sequence[T]]:
    """The items in parts of at most so many."""
    return (items[start : start + size] for start in range(0, len(items), size))


def _halves(items: Sequence[T]) -> tuple[Sequence[T], Sequence[T]]:
    middle = len(items) // 2
    return items[:middle], items[middle:]
