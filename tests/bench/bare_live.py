"""What an edit can't do without, bare: a workflow that hears a signal, one encode, one row written back."""

import asyncio
import time
import uuid
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import timedelta
from statistics import median
from typing import Any, Self

import psycopg
from temporalio import activity, workflow
from temporalio.client import WorkflowHandle
from temporalio.worker import UnsandboxedWorkflowRunner, Worker

from db.vectors import register_vectors
from embedding.base import Embedder
from tests.bench.pipeline import Pipeline

_UPDATE = """
    UPDATE bare SET embedding = %s::real[]::vector, embedding_hash = %s, embedding_model = 'bare', embedded_at = now()
    WHERE id = %s
"""


@workflow.defn
class BareWorkflow:
    """Awaits a signal and runs an activity that does nothing, again and again."""

    def __init__(self) -> None:
        self._signals = 0

    @workflow.run
    async def run(self) -> None:
        """Until it is terminated."""
        done = 0
        while True:
            await workflow.wait_condition(lambda: self._signals > done)  # noqa: B023 - it is called in this round
            done += 1
            await workflow.execute_activity("bare_activity", start_to_close_timeout=timedelta(seconds=30))

    @workflow.signal
    def ring(self) -> None:
        """Have the activity run once more."""
        self._signals += 1


class BareLive:
    """The three parts, to be timed in turn with the edits."""

    def __init__(self, pipeline: Pipeline, embedder: Embedder, connection: psycopg.AsyncConnection) -> None:
        self._pipeline = pipeline
        self._embedder = embedder
        self._connection = connection
        self._handle: WorkflowHandle[Any, Any]
        self._begun: asyncio.Future[float]
        self.signal_ms: list[float] = []
        self.encode_ms: list[float] = []
        self.write_ms: list[float] = []

    @classmethod
    @asynccontextmanager
    async def ready(cls, pipeline: Pipeline, embedder: Embedder) -> AsyncIterator[Self]:
        """With a worker of its own on the same server, and a table without triggers in the same database."""
        site = pipeline.site
        await site.run("CREATE TABLE bare (LIKE items INCLUDING ALL)")
        await site.run("INSERT INTO bare SELECT * FROM items")
        queue = uuid.uuid4().hex
        async with await psycopg.AsyncConnection.connect(site.conninfo, autocommit=True) as connection:
            register_vectors(connection)
            bare = cls(pipeline, embedder, connection)
            async with Worker(
                site.client,
                task_queue=queue,
                workflows=[BareWorkflow],
                activities=[bare.bare_activity],
                workflow_runner=UnsandboxedWorkflowRunner(),
            ):
                bare._handle = await site.client.start_workflow(BareWorkflow.run, id=queue, task_queue=queue)
                yield bare
                await bare._handle.terminate()

    @activity.defn
    async def bare_activity(self) -> None:
        """Tell when it began."""
        self._begun.set_result(time.perf_counter())

    async def warm_up(self, text: str) -> None:
        """Do each a few times without counting it."""
        for key in range(1, 6):
            await self.once(text, key)
        for values in (self.signal_ms, self.encode_ms, self.write_ms):
            values.clear()

    async def once(self, text: str, key: int) -> None:
        """Each of the three once."""
        self._begun = asyncio.get_running_loop().create_future()
        started = time.perf_counter()
        await self._handle.signal(BareWorkflow.ring)
        self.signal_ms.append((await self._begun - started) * 1000)
        # The activity's end is none of the three.
        await asyncio.sleep(0.05)
        started = time.perf_counter()
        [vector] = self._embedder.encode([text], "")
        self.encode_ms.append((time.perf_counter() - started) * 1000)
        started = time.perf_counter()
        await self._connection.execute(_UPDATE, [vector, f"{key:064x}", key])
        self.write_ms.append((time.perf_counter() - started) * 1000)

    @property
    def median_ms(self) -> float:
        """What the three take together."""
        return median(self.signal_ms) + median(self.encode_ms) + median(self.write_ms)
