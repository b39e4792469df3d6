"""What an item's workflow asks for: bring one vector in line with its row."""

import time
from contextlib import suppress
from datetime import timedelta

from temporalio import activity
from temporalio.exceptions import ApplicationError
from temporalio.service import RPCError

from activities.faults import database_blames_item, encoder_blames_item, reason_of
from activities.heartbeat import heartbeats
from activities.instance import InstanceCheck
from activities.store import store_item_embedding
from activities.tally import Tally
from db.items import Items, ItemState
from db.vectors import Vector
from embedding.encoder import Encoder
from evervec import metrics
from evervec.errors import ConfigurationError
from evervec.log import describe_error, get_logger
from evervec.messages import (
    GENERATE_ITEM_EMBEDDING,
    ITEM_HELD_UP_SIGNAL,
    ItemEmbeddingRequest,
    ItemEmbeddingResult,
    Outcome,
)
from evervec.metrics import Lane
from evervec.settings import Settings
from evervec.temporal import failure_of, passing_failure
from evervec.tracing import span

LOCKED_RETRY = timedelta(seconds=5)
HELD_UP_ATTEMPT = 3
"""When this attempt fails, the item's workflow is told; before that it may soon be over."""
SIGNAL_TIMEOUT = timedelta(seconds=3)

log = get_logger(__name__)


class ItemActivities:
    """The activities on one item. A step may run twice, late or in parallel: the database compares before it sets."""

    def __init__(
        self, items: Items, encoder: Encoder, settings: Settings, instance: InstanceCheck, tally: Tally
    ) -> None:
        self._items = items
        self._tally = tally
        self._encoder = encoder
        self._max_attempts = settings.max_attempts
        self._instance = instance

    @activity.defn(name=GENERATE_ITEM_EMBEDDING)
    async def generate_item_embedding(self, request: ItemEmbeddingRequest) -> ItemEmbeddingResult:
        """Read the item, embed it if its vector is stale, write the vector back and ack the change."""
        about = log.bind(
            source=request.source,
            key=request.item_key,
            hash=request.content_hash,
            workflow=activity.info().workflow_id,
        )
        started = time.perf_counter()
        try:
            async with heartbeats():
                await self._instance.check()
                result = await self._generate(request)
        except ApplicationError as failure:
            about.info("item waits", reason=failure.type, ms=_since(started))
            await _tell_if_held_up()
            raise
        except Exception as error:  # noqa: BLE001 - no error leaves the worker but by its class
            metrics.ACTIVITY_FAILURES.labels(GENERATE_ITEM_EMBEDDING).inc()
            about.warning("item not embedded", error=describe_error(error), ms=_since(started))
            await _tell_if_held_up()
            raise failure_of(error) from None
        about.info("item done", hash=result.content_hash, outcome=result.outcome.value, ms=_since(started))
        return result

    async def _generate(self, request: ItemEmbeddingRequest) -> ItemEmbeddingResult:
        with span("read"):
            [state] = await self._items.read(request.source, [request.item_key])
        if state.paused:
            return _result(state, Outcome.PAUSED)
        vector = None
        if state.stale(forced=request.force_regenerate):
            if state.failed and not request.force_regenerate:
                return _result(state, Outcome.FAILED)  # a late signal: nobody asked to try it again
            try:
                vector = await self._embed(state)
            except ConfigurationError as error:
                await self._items.note_error(state.source, [state], str(error))
                raise
            except Exception as error:
                if not encoder_blames_item(error):
                    raise
                return await self._count_failure(state, error)
        try:
            return _result(state, await self._store(state, vector), vector)
        except Exception as error:
            if not database_blames_item(error):
                raise
            return await self._count_failure(state, error)

    async def _embed(self, state: ItemState) -> Vector:
        vector: Vector
        with span("encode", model=state.model.name):
            [vector] = await self._encoder.embed(state.model, [state.content or ""], live=True)
        return vector

    async def _store(self, state: ItemState, vector: Vector | None) -> Outcome:
        writes = [state.written_back(vector)]
        outcomes = await store_item_embedding(self._items, self._tally, Lane.LIVE, state.source, writes)
        outcome = outcomes[state.item_key]
        if outcome is Outcome.LOCKED:
            raise passing_failure("ItemLocked", next_retry_delay=LOCKED_RETRY)
        return outcome

    async def _count_failure(self, state: ItemState, error: Exception) -> ItemEmbeddingResult:
        """Count the attempt; raise the error while there are attempts left."""
        given_up = await self._given_up(state, error)
        self._tally.failed(state.source, Lane.LIVE, attempts=1, given_up=given_up)
        if not given_up:
            raise error
        return _result(state, Outcome.FAILED, error=error)

    async def _given_up(self, state: ItemState, error: Exception) -> bool:
        if state.outbox_version is None:  # asked for by hand: there is no row to count in
            return activity.info().attempt >= self._max_attempts
        return await self._items.record_failure(
            state.source, state.item_key, state.outbox_version, reason_of(error), max_attempts=self._max_attempts
        )


async def _tell_if_held_up() -> None:
    """Have the workflow show that its item is pending. It may not hear of it: that is all."""
    about = activity.info()
    if about.attempt == HELD_UP_ATTEMPT and about.workflow_id:
        handle = activity.client().get_workflow_handle(about.workflow_id, run_id=about.workflow_run_id)
        with suppress(RPCError):
            await handle.signal(ITEM_HELD_UP_SIGNAL, rpc_timeout=SIGNAL_TIMEOUT)


def _result(
    state: ItemState, outcome: Outcome, vector: Vector | None = None, error: Exception | None = None
) -> ItemEmbeddingResult:
    return ItemEmbeddingResult(
        item_key=state.item_key,
        outcome=outcome,
        embedding_dimensions=None if vector is None else len(vector),
        error_message=describe_error(error) if error else None,
        content_hash=state.content_hash,
    )


def _since(started: float) -> int:
    """Milliseconds since `started`."""
    return round((time.perf_counter() - started) * 1000)
