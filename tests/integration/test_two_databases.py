"""Two databases with the same sources and keys share a Temporal namespace and even the task queue."""

from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from functools import partial

import pytest
from temporalio.service import RPCError

from evervec.settings import Settings
from evervec.temporal import item_workflow_id
from tests.integration.contract import fresh_database
from tests.integration.pipeline import DESTINATIONS, Site, Table, new_table, until


@pytest.fixture
async def sites(postgres: str, template_database: str, temporal_address: str) -> AsyncIterator[list[Site]]:
    async with AsyncExitStack() as stack:
        databases = [stack.enter_context(fresh_database(postgres, template_database)) for _ in range(2)]
        queue = Settings().task_queue  # nobody sets it: the default one for both
        yield [
            await stack.enter_async_context(Site.open(database, temporal_address, task_queue=queue))
            for database in databases
        ]


async def fill_both(sites: list[Site], destination: str) -> list[Table]:
    """The table `items` in each database: the same keys, other texts."""
    tables = [await new_table(site, destination, name="items") for site in sites]
    for number, table in enumerate(tables):
        await table.do("INSERT INTO {t} SELECT n, 'item ' || n, %s FROM generate_series(1, 10) AS n", f"of {number}")
    return tables


@pytest.mark.parametrize("destination", DESTINATIONS)
async def test_each_database_gets_its_own_vectors(sites: list[Site], destination: str) -> None:
    tables = await fill_both(sites, destination)
    async with sites[0].running(), sites[1].running():
        for table in tables:
            await table.fresh()
    first, second = [await table.vectors() for table in tables]
    assert all(first[key] != second[key] for key in first)


async def test_a_worker_leaves_another_databases_items_alone(sites: list[Site]) -> None:
    theirs, ours = await fill_both(sites, "column")
    instance = await theirs.site.value("SELECT evervec.instance_id()")
    async with theirs.site.listening():
        async with ours.site.running():
            await ours.fresh()
            for key in await theirs.vectors():
                await until(partial(turned_away, theirs.site, item_workflow_id(instance, theirs.source, key)))
        assert {row[1:] for row in await theirs.outbox()} == {("pending", 0, None)}
        async with theirs.site.working():
            await theirs.fresh()


async def turned_away(site: Site, workflow_id: str) -> int:
    """How often a worker turned the workflow's request away."""
    try:
        pending = (await site.client.get_workflow_handle(workflow_id).describe()).raw_description.pending_activities
    except RPCError:
        return 0  # there is no such workflow yet
    return pending[0].attempt - 1 if pending else 0
