"""What other Python programs call to have items embedded, and to search them."""

import asyncio
from collections.abc import Iterable
from contextlib import AsyncExitStack
from typing import Self

from temporalio.client import Client
from temporalio.service import RPCError, RPCStatusCode

from db.connection import open_pool
from db.sources import Hit, Sources
from embedding.encoder import Encoder
from evervec.errors import ConfigurationError, ItemNotFoundError
from evervec.settings import Settings, load_settings
from evervec.temporal import (
    connect,
    ensure_search_attributes,
    fits_workflow_id,
    item_workflow_id,
    start_item_workflow,
    start_sweep_workflow,
    sweep_workflow_id,
    unreachable_if_away,
)
from service.refire import check_keys, refire_keys
from service.search import search
from service.workflow import WorkflowStatus, workflow_status

POOL_SIZE = 4
STARTS_AT_ONCE = 32


class EmbeddingService:
    """The embeddings of one source.

        async with EmbeddingService(settings, source="items") as service:
            await service.start_item_embedding(42)
            hits = await service.find_similar_items("something to drill with")

    Temporal is connected to, and the model loaded, when a method first needs it. Every method may raise
    ServiceUnreachableError, and those that read the source SourceNotFoundError.
    """

    def __init__(self, settings: Settings | None = None, source: str | None = None) -> None:
        """Settings default to the environment's, the source to the only one that there is."""
        self._settings = settings or load_settings()
        self._wanted = source
        self._resources = AsyncExitStack()
        self._connecting = asyncio.Lock()
        self._temporal: Client | None = None
        self._searchable = True

    @classmethod
    async def connect(cls, settings: Settings | None = None, source: str | None = None) -> Self:
        """A service that is ready; whoever calls this calls `close` in the end."""
        service = cls(settings, source)
        await service.start()
        return service

    async def start(self) -> None:
        """Connect to the database and find the source.

        ConfigurationError when no source is named and there is not just one.
        """
        try:
            pool = await self._resources.enter_async_context(
                open_pool(self._settings.database_conninfo, size=POOL_SIZE, application_name="evervec service")
            )
            self._sources = Sources(pool)
            self._source = await self._find_source()
            self._instance = await self._sources.instance()
            self._encoder = await self._resources.enter_async_context(Encoder(self._settings))
        except BaseException:
            await self.close()
            raise

    async def close(self) -> None:
        """Release the connections and the model."""
        await self._resources.aclose()

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def start_item_embedding(self, item_key: object, force_regenerate: bool = False) -> str:
        """Have an item embedded if its vector is stale (forced: in any case); returns its workflow's id.

        ItemNotFoundError when no row has this key.
        """
        [workflow_id] = await self.start_batch_embedding([item_key], force_regenerate)
        return workflow_id

    async def start_batch_embedding(self, item_keys: Iterable[object], force_regenerate: bool = False) -> list[str]:
        """The same for many items; returns the ids of the workflows that embed them.

        Up to `sweep_threshold` keys: an id for each, in their order; a key too long for a workflow of its own has the
        id of the source's sweep. More keys: one id, that of the sweep, which embeds all that waits in the source.
        It ends when nothing does.

        ItemNotFoundError when a key has no row: then nothing is started.
        """
        keys = [str(key) for key in item_keys]
        await check_keys(self._sources, self._source, keys)
        client = await self._client()
        # In the outbox first: from here on it gets done, whatever becomes of this process.
        await refire_keys(self._sources, self._source, keys, force=force_regenerate)
        if len(keys) > self._settings.sweep_threshold:
            return [await self._start_sweep(client)]
        at_once = asyncio.Semaphore(STARTS_AT_ONCE)

        async def start(key: str) -> str:
            async with at_once:
                return await self._start(client, key)

        return await asyncio.gather(*map(start, keys))

    async def _start(self, client: Client, key: str) -> str:
        if not fits_workflow_id(self._instance, self._source, key):
            return await self._start_sweep(client)
        # That it is forced, the outbox says; said twice, it would be embedded twice.
        await start_item_workflow(
            client,
            self._settings,
            self._instance,
            self._source,
            key,
            content_hash=None,
            searchable=self._searchable,
        )
        return item_workflow_id(self._instance, self._source, key)

    async def _start_sweep(self, client: Client) -> str:
        await start_sweep_workflow(client, self._settings, self._instance, self._source, searchable=self._searchable)
        return sweep_workflow_id(self._instance, self._source)

    async def get_embedding_status(self, workflow_id: str) -> WorkflowStatus:
        """Where a workflow stands: Temporal's status, the item's state, rounds and last error; of a sweep its counts.

        ItemNotFoundError when there is no such workflow.
        """
        status = await workflow_status(await self._client(), workflow_id)
        if status is None:
            raise ItemNotFoundError(f"there is no workflow {workflow_id!r}")
        return status

    async def cancel_embedding_workflow(self, workflow_id: str) -> None:
        """Cancel a workflow that runs, an item's or a sweep. What waits stays in the outbox and is taken up anew.

        To stop the work on a source, pause it. One that has ended is left alone; ItemNotFoundError when there is none.
        """
        client = await self._client()
        try:
            with unreachable_if_away(client):
                await client.get_workflow_handle(workflow_id).cancel()
        except RPCError as error:
            if error.status is RPCStatusCode.NOT_FOUND:
                raise ItemNotFoundError(f"there is no workflow {workflow_id!r}") from None
            raise

    async def find_similar_items(self, query_text: str, limit: int = 10) -> list[Hit]:
        """The eligible items nearest to the text: key, cosine distance and content of each, the nearest first.

        The text is embedded like the items: same model, same prompt. ModelUnavailableError when the model cannot be
        loaded here, ConfigurationError when the text is blank.
        """
        return await search(self._sources, self._encoder, self._source, query_text, limit)

    async def _find_source(self) -> str:
        names = await self._sources.names(self._wanted)
        if len(names) != 1:
            raise ConfigurationError(f"name one of the sources: there are {', '.join(names) or 'none'}")
        return names[0]

    async def _client(self) -> Client:
        async with self._connecting:
            if self._temporal is None:
                client = await connect(self._settings)
                self._searchable = await ensure_search_attributes(client)
                self._temporal = client
            return self._temporal
