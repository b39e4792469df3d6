"""The processes are killed at bad moments; nobody but them makes good what was missed."""

import signal
from collections.abc import AsyncIterator
from pathlib import Path

import psycopg
import pytest
from temporalio.api.enums.v1 import PendingActivityState

from evervec.temporal import item_workflow_id
from tests.integration.pipeline import DESTINATIONS, Site, Table, new_table, until
from tests.integration.program import Program, programs

ROWS = 25
"""In each of two tables."""


@pytest.fixture
async def site(database: str, temporal_address: str) -> AsyncIterator[Site]:
    async with Site.open(database, temporal_address) as site:
        yield site


@pytest.fixture
async def tables(site: Site) -> list[Table]:
    """One table for each destination."""
    return [await new_table(site, destination) for destination in DESTINATIONS]


async def fill(tables: list[Table], rows: int) -> None:
    for table in tables:
        await table.fill(rows)


async def all_fresh(tables: list[Table]) -> None:
    for table in tables:
        assert await table.fresh()


async def change(table: Table) -> None:
    """Change the three rows, one by deleting it, and insert others: ROWS changes."""
    await table.do("UPDATE {t} SET name = 'changed meanwhile'")
    await table.do("DELETE FROM {t} WHERE id = 1")
    await table.do("INSERT INTO {t} SELECT n, 'new ' || n FROM generate_series(4, %s) AS n", ROWS)
    # Nobody was told of these; a signal from before may still be under way for the others.
    assert {key for key, *_ in await table.outbox()} >= {str(key) for key in range(4, ROWS + 1)}


async def test_a_killed_listener_comes_back(site: Site, tables: list[Table], tmp_path: Path) -> None:
    listener = Program("listener", site.settings, tmp_path / "first.log")
    async with site.working(), programs(listener):
        await fill(tables, 3)
        await all_fresh(tables)
        await listener.end(signal.SIGKILL)
        for table in tables:
            await change(table)
        again = Program("listener", site.settings, tmp_path / "second.log")
        async with programs(again):
            await all_fresh(tables)
            assert await again.end() == 0


async def test_a_killed_worker_comes_back(site: Site, tables: list[Table], tmp_path: Path) -> None:
    worker = Program("worker", site.settings, tmp_path / "first.log")
    async with site.listening(), programs(worker):
        await fill(tables, 3)
        await all_fresh(tables)
        await in_the_middle_of_an_activity(tables[0], worker)
        for table in tables:
            await change(table)
        again = Program("worker", site.settings, tmp_path / "second.log")
        async with programs(again):
            await all_fresh(tables)
            assert await again.end() == 0


async def in_the_middle_of_an_activity(table: Table, worker: Program) -> None:
    """Kill the worker while it tries to write a vector back into a row that a user's transaction holds."""
    site = table.site
    workflow = site.client.get_workflow_handle(
        item_workflow_id(await site.value("SELECT evervec.instance_id()"), table.source, "3")
    )

    async def under_way() -> bool:
        pending = (await workflow.describe()).raw_description.pending_activities
        return [activity.state for activity in pending] == [PendingActivityState.PENDING_ACTIVITY_STATE_STARTED]

    await site.run("SELECT evervec.pause(%s)", table.source)
    await table.do("UPDATE {t} SET name = 'to be written when the worker dies' WHERE id = 3")
    async with await psycopg.AsyncConnection.connect(site.conninfo) as user:
        await user.execute(table.statement("SELECT FROM {t} WHERE id = 3 FOR UPDATE"))
        await site.run("SELECT evervec.resume(%s)", table.source)
        await until(under_way)
        await worker.end(signal.SIGKILL)
