"""The two ways to Temporal: an item's own workflow, and its source's sweep."""

from temporalio.client import Client

from db.outbox import OutboxItem
from evervec.metrics_page import sdk_metrics
from evervec.schedule import ensure_schedule
from evervec.settings import Settings
from evervec.temporal import (
    connect,
    ensure_search_attributes,
    fits_workflow_id,
    start_item_workflow,
    start_sweep_workflow,
    sweep_is_open,
)


class Lanes:
    """Starts and signals workflows, once it is connected. Errors: ServiceUnreachableError, and Temporal's own."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._client: Client | None = None
        self._searchable = True
        self.instance = ""
        """The installation whose workflows these are."""

    async def connect(self) -> None:
        """Connect, and see to it that the namespace has what workflows need."""
        client = await connect(self._settings, sdk_metrics().runtime if self._settings.metrics_address else None)
        self._searchable = await ensure_search_attributes(client)
        self._client = client

    @property
    def _temporal(self) -> Client:
        assert self._client  # noqa: S101 - the listener connects before anything can be signalled
        return self._client

    def fits(self, item: OutboxItem) -> bool:
        """Whether the item's key is short enough for a workflow of its own."""
        return fits_workflow_id(self.instance, item.source, item.item_key)

    async def signal_item(self, item: OutboxItem) -> None:
        """Tell the item's workflow that it changed; start it where there is none."""
        await start_item_workflow(
            self._temporal,
            self._settings,
            self.instance,
            item.source,
            item.item_key,
            content_hash=item.content_hash,
            searchable=self._searchable,
        )

    async def signal_sweep(self, source: str) -> None:
        """Tell the source's sweep that items wait; start it where there is none."""
        await start_sweep_workflow(self._temporal, self._settings, self.instance, source, searchable=self._searchable)

    async def sweep_is_open(self, source: str) -> bool:
        """Whether the source's sweep is at work."""
        return await sweep_is_open(self._temporal, self.instance, source)

    async def ensure_schedule(self) -> None:
        """Make the schedule of the safety net, or bring it up to date."""
        await ensure_schedule(self._temporal, self._settings, self.instance, searchable=self._searchable)
