"""EmbeddingTemporalService: items embedded by workflows whose ids one knows, over Temporal.

Needs the extra `temporal`. What is started here is in evervec's outbox first, so it gets done whatever becomes of
Temporal or of this process.
"""

import asyncio
import os
import threading
from collections.abc import Coroutine, Iterable
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any, ClassVar, Self, TypeVar

from django.db import models
from temporalio.client import Client, WorkflowHandle, WorkflowQueryFailedError
from temporalio.common import SearchAttributeKey, SearchAttributePair, TypedSearchAttributes
from temporalio.runtime import Runtime, TelemetryConfig
from temporalio.service import RPCError, RPCStatusCode, TLSConfig

from django_evervec import conf, contract
from django_evervec.errors import TemporalError, WorkflowNotFoundError
from django_evervec.sources import embedded, the_model

T = TypeVar("T")

CONNECT_SECONDS = 10.0
STARTS_AT_ONCE = 32
TIMEOUT = timedelta(seconds=3)
MAX_ID_BYTES = 1000
"""Temporal's default limit; an item with a longer id is embedded by the source's sweep."""
_SOURCE = SearchAttributeKey.for_keyword("EvervecSource")
_STATE = SearchAttributeKey.for_keyword("EvervecState")


@dataclass(frozen=True)
class WorkflowStatus:
    """Where a workflow stands."""

    id: str
    status: str
    """Temporal's word: running, completed, canceled, terminated, timed_out, failed."""
    state: str | None = None
    """The item's: pending, fresh or failed; None for a sweep."""
    details: dict[str, Any] | None = None
    """The workflow's own answer: rounds and last error of an item, counts of a sweep; None when no worker answers."""


class EmbeddingTemporalService:
    """One instance a process, whoever asks for it; it connects when a method first needs it.

    service = EmbeddingTemporalService()
    workflow_id = service.start_item_embedding(item.pk)
    service.get_embedding_status(workflow_id).state

    Every method may raise TemporalError.
    """

    _instances: ClassVar[dict[int, Self]] = {}
    _making: ClassVar[threading.Lock] = threading.Lock()

    def __new__(cls) -> Self:
        """The instance of this process; a process that was forked makes its own."""
        with cls._making:
            if os.getpid() not in cls._instances:
                cls._instances.clear()
                cls._instances[os.getpid()] = made = super().__new__(cls)
                made._loop = None
                made._client = None
            return cls._instances[os.getpid()]

    _loop: asyncio.AbstractEventLoop | None
    _client: Client | None

    def start_item_embedding(
        self, item_id: object, *, force_regenerate: bool = False, model: type[models.Model] | None = None
    ) -> str:
        """Have an item embedded if its vector is stale (forced: in any case); returns its workflow's id."""
        return self.start_batch_embedding([item_id], force_regenerate=force_regenerate, model=model)[0]

    def start_batch_embedding(
        self, item_ids: Iterable[object], *, force_regenerate: bool = False, model: type[models.Model] | None = None
    ) -> list[str]:
        """The same for many items; returns the ids of the workflows that embed them.

        Up to EVERVEC_SWEEP_THRESHOLD items an id for each, in their order; more: one id, that of the source's sweep.
        `model` is the project's embedded one where there is only one.
        """
        about = embedded(model or the_model())
        keys = [str(key) for key in item_ids]
        contract.refire(about.using, about.source.name, keys, force=force_regenerate)
        instance = contract.instance_id(about.using)
        return self._run(self._start(instance, about.source.name, keys))

    def get_embedding_status(self, workflow_id: str) -> WorkflowStatus:
        """Where a workflow stands; WorkflowNotFoundError when there is none."""
        return self._run(self._status(workflow_id))

    def cancel_embedding_workflow(self, workflow_id: str) -> None:
        """Cancel a workflow that runs. What waits stays in the outbox and is taken up anew; evervec.pause stops work.

        WorkflowNotFoundError when there is none; one that has ended is left alone.
        """
        self._run(self._cancel(workflow_id))

    async def _start(self, instance: str, source: str, keys: list[str]) -> list[str]:
        client = await self._connected()
        sweep_id = f"embedding-sweep/{instance}/{source}"
        if len(keys) > (conf.number("EVERVEC_SWEEP_THRESHOLD") or 0):
            await _start_sweep(client, sweep_id, source)
            return [sweep_id]
        at_once = asyncio.Semaphore(STARTS_AT_ONCE)

        async def start(key: str) -> str:
            workflow_id = f"item-embedding/{instance}/{source}/{key}"
            async with at_once:
                if len(workflow_id.encode()) > MAX_ID_BYTES:
                    await _start_sweep(client, sweep_id, source)
                    return sweep_id
                await _start_item(client, workflow_id, source, key)
            return workflow_id

        return list(await asyncio.gather(*map(start, keys)))

    async def _status(self, workflow_id: str) -> WorkflowStatus:
        handle = (await self._connected()).get_workflow_handle(workflow_id)
        description = await handle.describe(rpc_timeout=TIMEOUT)
        details = await _ask(handle)
        state = description.typed_search_attributes.get(_STATE)
        return WorkflowStatus(
            workflow_id,
            description.status.name.lower() if description.status else "unknown",
            (details or {}).get("state", state),
            details,
        )

    async def _cancel(self, workflow_id: str) -> None:
        await (await self._connected()).get_workflow_handle(workflow_id).cancel()

    async def _connected(self) -> Client:
        if self._client is None:
            async with asyncio.timeout(CONNECT_SECONDS):
                self._client = await Client.connect(
                    conf.text("EVERVEC_TEMPORAL_ADDRESS") or "",
                    namespace=conf.text("EVERVEC_TEMPORAL_NAMESPACE") or "",
                    api_key=conf.text("EVERVEC_TEMPORAL_API_KEY"),
                    tls=_tls(),
                    # Not the default one: that does not work in a process forked from one that has used it.
                    runtime=Runtime(telemetry=TelemetryConfig()),
                )
        return self._client

    def _run(self, work: Coroutine[Any, Any, T]) -> T:
        """Run on the service's own thread: the client belongs to one event loop, views to many threads."""
        try:
            return asyncio.run_coroutine_threadsafe(work, self._running_loop()).result()
        except RPCError as error:
            if error.status is RPCStatusCode.NOT_FOUND and "namespace" not in error.message.lower():
                raise WorkflowNotFoundError(f"there is no such workflow: {error.message}") from error
            raise TemporalError(f"Temporal refuses: {error.message}") from error
        except (RuntimeError, TimeoutError, OSError) as error:
            address = conf.text("EVERVEC_TEMPORAL_ADDRESS")
            raise TemporalError(
                f"Temporal does not answer at {address} ({error}): start it, or check EVERVEC_TEMPORAL_ADDRESS"
            ) from error

    def _running_loop(self) -> asyncio.AbstractEventLoop:
        with self._making:
            if self._loop is None:
                self._loop = asyncio.new_event_loop()
                threading.Thread(target=self._loop.run_forever, name="evervec-temporal", daemon=True).start()
            return self._loop


async def _start_item(client: Client, workflow_id: str, source: str, key: str) -> None:
    """Tell an item's workflow that the item changed, starting it where there is none."""
    await client.start_workflow(
        "ItemEmbeddingWorkflow",
        {"source": source, "item_key": key, "idle_seconds": conf.number("EVERVEC_ITEM_IDLE_SECONDS")},
        id=workflow_id,
        task_queue=conf.text("EVERVEC_TASK_QUEUE") or "",
        start_signal="item_changed",
        start_signal_args=[{}],  # whether it is forced, the outbox says
        search_attributes=TypedSearchAttributes(
            [SearchAttributePair(_SOURCE, source), SearchAttributePair(_STATE, "pending")]
        ),
    )


async def _start_sweep(client: Client, workflow_id: str, source: str) -> None:
    await client.start_workflow(
        "EmbeddingSweepWorkflow",
        {"source": source},
        id=workflow_id,
        task_queue=conf.text("EVERVEC_TASK_QUEUE") or "",
        start_signal="items_waiting",
        search_attributes=TypedSearchAttributes([SearchAttributePair(_SOURCE, source)]),
    )


async def _ask(handle: WorkflowHandle[Any, Any]) -> dict[str, Any] | None:
    """The workflow's own answer, which takes a worker; None when there is none."""
    try:
        answer = await handle.query("status", rpc_timeout=TIMEOUT)
    except (RPCError, WorkflowQueryFailedError):
        return None
    return dict(answer)


def _tls() -> TLSConfig | bool:
    ca, cert, key, domain = (
        conf.text(f"EVERVEC_TEMPORAL_TLS_{name}")
        for name in ("SERVER_ROOT_CA_CERT", "CLIENT_CERT", "CLIENT_PRIVATE_KEY", "DOMAIN")
    )
    if not (ca or cert or key or domain):
        return conf.text("EVERVEC_TEMPORAL_API_KEY") is not None
    return TLSConfig(
        server_root_ca_cert=Path(ca).read_bytes() if ca else None,
        client_cert=Path(cert).read_bytes() if cert else None,
        client_private_key=Path(key).read_bytes() if key else None,
        domain=domain,
    )
