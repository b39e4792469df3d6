from collections.abc import AsyncIterator
from contextlib import suppress

import pytest
from pydantic import SecretStr

from evervec.errors import (
    ConfigurationError,
    ItemNotFoundError,
    ModelUnavailableError,
    ServiceUnreachableError,
    SourceNotFoundError,
)
from service import EmbeddingService
from service.workflow import WorkflowStatus
from tests.integration.pipeline import Site, Table, new_table, until


@pytest.fixture
async def site(database: str, temporal_address: str) -> AsyncIterator[Site]:
    async with Site.open(database, temporal_address) as opened:
        yield opened


@pytest.fixture
async def table(site: Site) -> Table:
    made = await new_table(site, "column", name="items")
    await made.fill(3)
    return made


async def asked(service: EmbeddingService, workflow_id: str, *, answered: bool = False) -> WorkflowStatus:
    """Where a workflow stands, asked again where Temporal takes longer than a status waits for it.

    `answered`: by a worker too, which a status does not wait for any longer.
    """
    found: list[WorkflowStatus] = []

    async def told() -> bool:
        with suppress(ServiceUnreachableError):
            status = await service.get_embedding_status(workflow_id)
            if status.rounds is not None or not answered:
                found.append(status)
        return bool(found)

    await until(told)
    return found[0]


async def fresh(service: EmbeddingService, workflow_id: str) -> bool:
    return (await asked(service, workflow_id)).state == "fresh"


async def test_an_item_a_batch_and_a_search(site: Site, table: Table) -> None:
    await site.run("DELETE FROM evervec.outbox")
    async with site.working(), EmbeddingService(site.settings, source="items") as service:
        workflow_id = await service.start_item_embedding(1)
        assert workflow_id.startswith("item-embedding/")
        assert workflow_id.endswith("/items/1")
        await until(lambda: fresh(service, workflow_id))
        status = await asked(service, workflow_id, answered=True)
        assert (status.id, status.status, status.rounds, status.last_error) == (workflow_id, "running", 1, None)

        others = await service.start_batch_embedding(["3", 2])
        assert [other.rpartition("/")[2] for other in others] == ["3", "2"]
        for other in others:
            await until(lambda other=other: fresh(service, other))
        assert len([vector for vector in (await table.vectors()).values() if vector]) == 3

        hits = await service.find_similar_items("item 2 | number 2", limit=2)
        assert len(hits) == 2
        assert hits[0].key == "2"
        assert hits[0].distance == pytest.approx(0, abs=1e-6)
        assert hits[0].content == "item 2 | number 2"


async def test_forced_regeneration_happens_once(site: Site, table: Table) -> None:
    async with site.working(), EmbeddingService(site.settings) as service:
        workflow_id = await service.start_item_embedding(1)
        await until(lambda: fresh(service, workflow_id))
        embedded_at = "SELECT embedded_at FROM items WHERE id = 1"
        before = await site.value(embedded_at)
        await service.start_item_embedding(1)
        await until(lambda: rounds(service, workflow_id, 2))
        assert await site.value(embedded_at) == before
        await service.start_item_embedding(1, force_regenerate=True)
        await until(lambda: rounds(service, workflow_id, 3))
        assert await site.value(embedded_at) > before
    assert table.source == "items"


async def rounds(service: EmbeddingService, workflow_id: str, number: int) -> bool:
    return (await asked(service, workflow_id)).rounds == number


async def test_a_cancelled_workflow_leaves_its_item_in_the_outbox(site: Site, table: Table) -> None:
    async with EmbeddingService(site.settings) as service:
        workflow_id = await service.start_item_embedding(1)
        status = await asked(service, workflow_id)
        # No worker runs: Temporal knows the state, nobody the rounds.
        assert (status.status, status.state, status.rounds) == ("running", "pending", None)
        await service.cancel_embedding_workflow(workflow_id)
        assert "1" in [key for key, *_ in await table.outbox()]
        async with site.working():
            await until(lambda: ended(service, workflow_id))
        await service.cancel_embedding_workflow(workflow_id)


async def ended(service: EmbeddingService, workflow_id: str) -> bool:
    return (await asked(service, workflow_id)).status == "canceled"


async def test_what_is_not_there(site: Site, table: Table) -> None:
    async with EmbeddingService(site.settings) as service:
        with pytest.raises(ItemNotFoundError, match="no item with the key 4711"):
            await service.start_batch_embedding([1, 4711])
        with pytest.raises(ItemNotFoundError, match="no workflow 'nothing'"):
            await service.get_embedding_status("nothing")
        with pytest.raises(ItemNotFoundError, match="no workflow 'nothing'"):
            await service.cancel_embedding_workflow("nothing")
        with pytest.raises(ConfigurationError, match="no text"):
            await service.find_similar_items("  ")
    with pytest.raises(SourceNotFoundError):
        await EmbeddingService.connect(site.settings, source="nothing")
    assert table.source == "items"


async def test_the_source_need_be_named_only_if_there_are_several(site: Site, table: Table) -> None:
    await new_table(site, "column", name="other")
    with pytest.raises(ConfigurationError, match="there are items, other"):
        await EmbeddingService.connect(site.settings)
    service = await EmbeddingService.connect(site.settings, source=table.source)
    await service.close()


async def test_services_that_are_away(site: Site, table: Table) -> None:
    away = site.changed(temporal_address="127.0.0.1:1")
    async with EmbeddingService(away, source=table.source) as service:
        assert await service.find_similar_items("no vectors yet") == []
        with pytest.raises(ServiceUnreachableError, match="Temporal does not answer"):
            await service.start_item_embedding(1)
    with pytest.raises(ServiceUnreachableError, match="PostgreSQL"):
        await EmbeddingService.connect(site.changed(database_url=SecretStr("postgresql://127.0.0.1:1/x")))


async def test_a_model_that_is_not_here(site: Site, table: Table) -> None:
    await table.watch(model="no-such/model", dimension=4)
    async with EmbeddingService(site.settings) as service:
        with pytest.raises(ModelUnavailableError):
            await service.find_similar_items("text")


async def test_a_key_too_long_for_a_workflow_is_the_sweeps(site: Site) -> None:
    table = await new_table(site, "column", name="items", key_type="text")
    await table.do("INSERT INTO {t} VALUES (repeat('k', 990), 'long', ''), ('short', 'short', '')")
    async with site.working(), EmbeddingService(site.settings) as service:
        short, long = await service.start_batch_embedding(["short", "k" * 990])
        assert (short.startswith("item-embedding/"), long.startswith("embedding-sweep/")) == (True, True)
        await until(lambda: emptied(table))


async def test_many_items_are_the_sweeps(site: Site, table: Table) -> None:
    few = site.changed(sweep_threshold=2)
    async with EmbeddingService(few) as service:
        [workflow_id] = await service.start_batch_embedding([1, 2, 3])
        assert workflow_id.startswith("embedding-sweep/")
        # No worker runs: what the sweep has done nobody knows.
        status = await asked(service, workflow_id)
        assert (status.status, status.state, status.sweep) == ("running", None, None)
        await service.cancel_embedding_workflow(workflow_id)
        async with site.working():
            await until(lambda: ended(service, workflow_id))
            assert len(await table.outbox()) == 3
            assert await service.start_batch_embedding([1, 2, 3]) == [workflow_id]
            await until(lambda: completed(service, workflow_id))
            assert await table.outbox() == []
            status = await asked(service, workflow_id, answered=True)
    assert status.sweep
    assert (status.sweep.embedded, status.last_error) == (3, None)


async def completed(service: EmbeddingService, workflow_id: str) -> bool:
    return (await asked(service, workflow_id)).status == "completed"


async def emptied(table: Table) -> bool:
    return not await table.outbox()
