"""A workflow test's bench: a client, a task queue of its own, and an activity that answers as the test says."""

import asyncio
import time
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass

from google.protobuf.duration_pb2 import Duration
from temporalio import activity
from temporalio.api.workflowservice.v1 import RegisterNamespaceRequest
from temporalio.client import Client, WorkflowExecutionStatus, WorkflowHandle
from temporalio.service import RPCError, RPCStatusCode
from temporalio.worker import Worker

from evervec.messages import (
    GENERATE_ITEM_EMBEDDING,
    ITEM_CHANGED_SIGNAL,
    ITEM_STATUS_QUERY,
    ITEM_WORKFLOW,
    ItemChange,
    ItemEmbeddingRequest,
    ItemEmbeddingResult,
    ItemWorkflowInput,
    ItemWorkflowStatus,
    Outcome,
)
from evervec.settings import Settings
from evervec.temporal import connect, ensure_search_attributes, item_workflow_id, start_item_workflow
from workflows import all_workflows

INSTANCE = "lab"
SOURCE = "items"
WAIT_SECONDS = 30.0

Answer = Callable[[ItemEmbeddingRequest], Awaitable[ItemEmbeddingResult]]
Handle = WorkflowHandle[object, None]


def answered(request: ItemEmbeddingRequest, outcome: Outcome = Outcome.EMBEDDED) -> ItemEmbeddingResult:
    return ItemEmbeddingResult(item_key=request.item_key, outcome=outcome, content_hash=request.content_hash)


async def embedded(request: ItemEmbeddingRequest) -> ItemEmbeddingResult:
    return answered(request)


class FakeActivity:
    """Stands in for the real activity under its name, and remembers what it was asked."""

    def __init__(self, answer: Answer = embedded) -> None:
        self.answer = answer
        self.requests: list[ItemEmbeddingRequest] = []

    @activity.defn(name=GENERATE_ITEM_EMBEDDING)
    async def generate(self, request: ItemEmbeddingRequest) -> ItemEmbeddingResult:
        self.requests.append(request)
        return await self.answer(request)

    def last_hash(self, key: str) -> str | None:
        return next((asked.content_hash for asked in reversed(self.requests) if asked.item_key == key), None)


@dataclass
class Lab:
    """Everything that one test works with."""

    client: Client
    settings: Settings
    activity: FakeActivity

    async def change(self, key: str, content_hash: str, *, force: bool = False, searchable: bool = True) -> Handle:
        """Tell the item's workflow that the item changed, as the listener does."""
        return await start_item_workflow(
            self.client,
            self.settings,
            INSTANCE,
            SOURCE,
            key,
            content_hash=content_hash,
            force=force,
            searchable=searchable,
        )

    async def change_impatient(self, key: str, content_hash: str, idle_seconds: float) -> Handle:
        """The same for a workflow with a shorter idle time than settings allow."""
        return await self.client.start_workflow(
            ITEM_WORKFLOW,
            ItemWorkflowInput(source=SOURCE, item_key=key, idle_seconds=idle_seconds),
            id=item_workflow_id(INSTANCE, SOURCE, key),
            task_queue=self.settings.task_queue,
            start_signal=ITEM_CHANGED_SIGNAL,
            start_signal_args=[ItemChange(content_hash=content_hash)],
            result_type=type(None),
        )


@asynccontextmanager
async def lab(address: str, answer: Answer = embedded, *, idle_seconds: int = 3600) -> AsyncIterator[Lab]:
    settings = Settings(temporal_address=address, task_queue=uuid.uuid4().hex, item_idle_seconds=idle_seconds)
    client = await connect(settings)
    await ensure_search_attributes(client)
    fake = FakeActivity(answer)
    async with Worker(client, task_queue=settings.task_queue, workflows=all_workflows(), activities=[fake.generate]):
        yield Lab(client, settings, fake)


async def new_namespace(address: str) -> Client:
    """A client of a namespace in which nothing is registered."""
    name = f"test-{uuid.uuid4().hex}"
    client = await connect(Settings(temporal_address=address, temporal_namespace=name))
    await client.workflow_service.register_namespace(
        RegisterNamespaceRequest(namespace=name, workflow_execution_retention_period=Duration(seconds=24 * 3600))
    )

    async def known() -> bool:
        try:
            await client.count_workflows()
        except RPCError as error:
            if error.status is not RPCStatusCode.NOT_FOUND:
                raise
            return False
        return True

    await until(known)
    return client


def new_key() -> str:
    """A key that no other test uses: all tests share one server."""
    return uuid.uuid4().hex


async def status_of(handle: Handle) -> ItemWorkflowStatus:
    status: ItemWorkflowStatus = await handle.query(ITEM_STATUS_QUERY, result_type=ItemWorkflowStatus)
    return status


async def history_length(handle: Handle) -> int:
    return (await handle.describe()).history_length


async def closed_as(handle: Handle) -> WorkflowExecutionStatus | None:
    """How the workflow ended, None while it runs."""
    status = (await handle.describe()).status
    return None if status is WorkflowExecutionStatus.RUNNING else status


async def until(condition: Callable[[], bool | Awaitable[bool]], seconds: float = WAIT_SECONDS) -> None:
    """Wait until the condition holds; TimeoutError when it does not in time."""
    deadline = time.monotonic() + seconds
    while True:
        met = condition()
        if met if isinstance(met, bool) else await met:
            return
        if time.monotonic() > deadline:
            raise TimeoutError(f"not met within {seconds:.0f} s")
        await asyncio.sleep(0.02)


async def until_rounds(handle: Handle, rounds: int) -> ItemWorkflowStatus:
    """Wait until the workflow has made so many rounds: its status then."""

    async def made() -> bool:
        return (await status_of(handle)).rounds >= rounds

    await until(made)
    return await status_of(handle)
