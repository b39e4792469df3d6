"""A sweep test's bench: an outbox in memory, behind the names of the real activities."""

import asyncio
import uuid
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

from temporalio import activity
from temporalio.client import Client
from temporalio.worker import Worker

from evervec.messages import (
    BATCH_GENERATE_EMBEDDINGS,
    FETCH_ITEMS_FOR_EMBEDDING,
    FIND_WAITING_SOURCES,
    SAFETY_NET_WORKFLOW,
    SWEEP_STATUS_QUERY,
    BatchEmbeddingRequest,
    BatchEmbeddingResult,
    FetchItemsRequest,
    FetchItemsResult,
    Outcome,
    SafetyNetInput,
    SweepStatus,
    WaitingSourcesRequest,
    WaitingSourcesResult,
)
from evervec.settings import Settings
from evervec.temporal import connect, ensure_search_attributes, start_sweep_workflow, sweep_workflow_id
from tests.integration.temporal_lab import Handle, new_key
from workflows import all_workflows


@dataclass
class FakeOutbox:
    """Items that wait, as the workflow gets to know of them."""

    items: dict[str, Outcome] = field(default_factory=dict)
    """What becomes of each item; those that are not settled stay."""
    paused: bool = False
    rate: float | None = None
    wait_seconds: float | None = None
    error: Exception | None = None
    """What batches raise."""
    stuck: bool = False
    """Whether batches last until they are cancelled."""
    on_batch: asyncio.Event = field(default_factory=asyncio.Event)
    fetches: list[FetchItemsRequest] = field(default_factory=list)
    batches: list[BatchEmbeddingRequest] = field(default_factory=list)

    def fill(self, count: int, outcome: Outcome = Outcome.EMBEDDED) -> None:
        self.items |= {f"{number:06}": outcome for number in range(count)}

    @activity.defn(name=FETCH_ITEMS_FOR_EMBEDDING)
    async def fetch(self, request: FetchItemsRequest) -> FetchItemsResult:
        self.fetches.append(request)
        if self.paused:
            return FetchItemsResult(item_keys=[], last=True, paused=True)
        keys = sorted(key for key in self.items if request.after is None or key > request.after)[: request.limit]
        return FetchItemsResult(
            item_keys=keys, last=len(keys) < request.limit, rate=self.rate, wait_seconds=self.wait_seconds
        )

    @activity.defn(name=BATCH_GENERATE_EMBEDDINGS)
    async def batch(self, request: BatchEmbeddingRequest) -> BatchEmbeddingResult:
        self.batches.append(request)
        self.on_batch.set()
        if self.stuck:
            await asyncio.Event().wait()
        if self.error:
            raise self.error
        counts: dict[Outcome, int] = {}
        for key in request.item_keys:
            outcome = self.items.get(key, Outcome.GONE)
            counts[outcome] = counts.get(outcome, 0) + 1
            if outcome is Outcome.EMBEDDED:
                del self.items[key]
        done = counts.get(Outcome.EMBEDDED, 0) + counts.get(Outcome.GONE, 0)
        return BatchEmbeddingResult(total_items=len(request.item_keys), successful=done, counts=counts, seconds=0.1)

    @activity.defn(name=FIND_WAITING_SOURCES)
    async def find(self, request: WaitingSourcesRequest) -> WaitingSourcesResult:
        sources = [*self.items]
        return WaitingSourcesResult(sweeps={source: sweep_workflow_id(request.instance, source) for source in sources})


@dataclass
class SweepLab:
    """Everything that one test works with."""

    client: Client
    settings: Settings
    outbox: FakeOutbox
    instance: str = field(default_factory=new_key)

    async def sweep(self, source: str = "items") -> Handle:
        """Tell the sweep that items wait, as the listener does."""
        return await start_sweep_workflow(self.client, self.settings, self.instance, source)

    async def safety_net(self) -> Handle:
        """Start the safety net, as its schedule does."""
        return await self.client.start_workflow(
            SAFETY_NET_WORKFLOW,
            SafetyNetInput(instance=self.instance),
            id=f"embedding-sweeps/{self.instance}",
            task_queue=self.settings.task_queue,
            result_type=type(None),
        )


@asynccontextmanager
async def sweep_lab(address: str) -> AsyncIterator[SweepLab]:
    settings = Settings(temporal_address=address, task_queue=uuid.uuid4().hex)
    client = await connect(settings)
    await ensure_search_attributes(client)
    outbox = FakeOutbox()
    activities: list[Callable[..., Any]] = [outbox.fetch, outbox.batch, outbox.find]
    async with Worker(client, task_queue=settings.task_queue, workflows=all_workflows(), activities=activities):
        yield SweepLab(client, settings, outbox)


async def sweep_status(handle: Handle) -> SweepStatus:
    status: SweepStatus = await handle.query(SWEEP_STATUS_QUERY, result_type=SweepStatus)
    return status
