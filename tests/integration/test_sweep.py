"""A source's sweep on the real servers: worker, database, Temporal; the test starts it in the listener's place."""

import asyncio
from collections.abc import AsyncIterator

import pytest
from temporalio.client import WorkflowHandle

from evervec.messages import SWEEP_STATUS_QUERY, SweepStatus
from evervec.temporal import start_sweep_workflow
from tests.integration.pipeline import DESTINATIONS, WAIT_SECONDS, Site, Table, new_table, until

Handle = WorkflowHandle[object, None]


@pytest.fixture
async def site(database: str, temporal_address: str) -> AsyncIterator[Site]:
    async with Site.open(database, temporal_address, max_attempts=3) as site:
        yield site


async def filled(site: Site, rows: int, destination: str = "column") -> Table:
    """A table whose rows all wait."""
    table = await new_table(site, destination)
    await table.fill(rows)
    await site.run("UPDATE evervec.source SET filling = false")
    return table


async def sweep(table: Table) -> Handle:
    """Start the table's sweep, or tell it to look again."""
    instance = await table.site.value("SELECT evervec.instance_id()")
    return await start_sweep_workflow(table.site.client, table.site.settings, instance, table.source)


async def status_of(handle: Handle) -> SweepStatus:
    status: SweepStatus = await handle.query(SWEEP_STATUS_QUERY, result_type=SweepStatus)
    return status


@pytest.mark.parametrize("destination", DESTINATIONS)
async def test_a_sweep_embeds_all_that_waits_and_ends(site: Site, destination: str) -> None:
    table = await filled(site, 3000, destination)
    async with site.working():
        handle = await sweep(table)
        await asyncio.wait_for(handle.result(), WAIT_SECONDS)
        await table.fresh()
        status = await status_of(handle)
    assert (status.items, status.embedded, status.others, status.last_error) == (3000, 3000, 0, None)
    assert (await handle.describe()).history_length / 3000 <= 0.1


async def test_bad_rows_harm_only_themselves(site: Site) -> None:
    table = await filled(site, 500)
    await table.do("UPDATE {t} SET name = 'evervec-poison' WHERE id IN (7, 300)")
    await table.do("ALTER TABLE {e} ADD CHECK (embedding IS NULL OR id <> 44)")
    async with site.working():
        handle = await sweep(table)

        async def only_bad_ones_wait() -> bool:
            return [key for key, *_ in await table.outbox()] == ["300", "44", "7"]

        await until(only_bad_ones_wait)
        assert {state for _, state, *_ in await table.outbox()} == {"pending"}
        await asyncio.wait_for(handle.result(), WAIT_SECONDS)
        status = await status_of(handle)
    assert [(key, state, attempts) for key, state, attempts, _ in await table.outbox()] == [
        ("300", "failed", 3),
        ("44", "failed", 3),
        ("7", "failed", 3),
    ]
    assert (status.embedded, status.failed) == (497, 3)
