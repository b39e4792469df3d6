"""What settings do to the pipeline. Those of Temporal, of models and of the command line are in the tests of these."""

import asyncio
import time
import uuid
from collections.abc import AsyncIterator
from datetime import timedelta
from itertools import pairwise

import pytest
import pytest_asyncio
from pydantic import SecretStr
from temporalio.client import WorkflowExecutionDescription, WorkflowExecutionStatus

from evervec.temporal import item_workflow_id
from tests.integration.contract import fresh_database
from tests.integration.pipeline import Site, Table, until

pytestmark = pytest.mark.asyncio(loop_scope="module")

DEBOUNCE_MS, DEBOUNCE_MAX_MS = 600, 1200
TRIES = 5
TASK_QUEUE = f"queue-{uuid.uuid4().hex}"


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def site(postgres: str, template_database: str, temporal_address: str) -> AsyncIterator[Site]:
    """A pipeline with everything set to something else than the default."""
    with fresh_database(postgres, template_database) as database:
        changes = {
            "task_queue": TASK_QUEUE,
            "listen_url": SecretStr(database),
            "debounce_ms": DEBOUNCE_MS,
            "debounce_max_ms": DEBOUNCE_MAX_MS,
            "item_idle_seconds": 1,
            "max_attempts": 1,
        }
        async with Site.open(database, temporal_address, **changes) as site, site.running():
            yield site


@pytest_asyncio.fixture(loop_scope="module")
async def items(site: Site) -> Table:
    """A watched table with one row that has its vector."""
    return await embedded_row(site)


async def embedded_row(site: Site) -> Table:
    table = Table(site, f"items {uuid.uuid4().hex}", "column")
    await table.create()
    # It is there before the table is watched, so it is enqueued once. Where a first fill enqueues it again while it is
    # being embedded, the listener may be waiting for it to be quiet when it has its vector already.
    await table.fill(1)
    await table.watch()
    await table.fresh()
    return table


async def workflow(items: Table) -> WorkflowExecutionDescription:
    """What Temporal knows of the workflow of the table's first row."""
    instance = await items.site.value("SELECT evervec.instance_id()")
    return await items.site.client.get_workflow_handle(item_workflow_id(instance, items.source, "1")).describe()


async def test_debounce_ms_is_how_long_an_item_must_be_quiet(items: Table) -> None:
    before = await items.site.value("SELECT clock_timestamp()")
    await items.do("UPDATE {t} SET name = 'edited'")
    await items.fresh()
    assert await items.site.value(embedded_at(items)) - before >= timedelta(milliseconds=DEBOUNCE_MS)


async def test_debounce_max_ms_is_how_long_a_busy_item_waits_at_most(site: Site) -> None:
    for _ in range(TRIES):
        waited, longest_pause = await kept_busy(await embedded_row(site))
        if longest_pause < DEBOUNCE_MS / 1000 / 2:
            break
    else:
        pytest.fail("in each try the row was quiet for a while")
    assert waited >= timedelta(milliseconds=DEBOUNCE_MAX_MS)


async def kept_busy(items: Table) -> tuple[timedelta, float]:
    """Edit the row until it is embedded meanwhile: how long that took, and the longest time without an edit."""
    before = await items.site.value(embedded_at(items))
    started = await items.site.value("SELECT clock_timestamp()")
    edited = [time.monotonic()]

    async def embedded_while_it_is_edited() -> bool:
        # Several edits in each window: the item is never quiet. But not one after the other without a pause, in which a
        # vector can be written: one of an older text never is.
        await items.do("UPDATE {t} SET description = gen_random_uuid()::text")
        edited.append(time.monotonic())
        await asyncio.sleep(DEBOUNCE_MS / 1000 / 6)
        return bool(await items.site.value(embedded_at(items)) != before)

    await until(embedded_while_it_is_edited)
    edited.append(time.monotonic())
    waited = await items.site.value(embedded_at(items)) - started
    await items.fresh()
    return waited, max(later - sooner for sooner, later in pairwise(edited))


def embedded_at(items: Table) -> str:
    return f"SELECT embedded_at FROM {items.identifier.as_string()}"


async def test_task_queue_is_where_the_work_is(items: Table) -> None:
    assert (await workflow(items)).task_queue == TASK_QUEUE


async def test_item_idle_seconds_is_how_long_a_workflow_waits_for_another_change(items: Table) -> None:
    async def ended() -> bool:
        return (await workflow(items)).status is WorkflowExecutionStatus.COMPLETED

    await until(ended)
    await items.do("UPDATE {t} SET name = 'edited after the end'")
    await items.fresh()


async def test_max_attempts_is_when_an_item_is_given_up(items: Table) -> None:
    await items.do("UPDATE {t} SET name = 'evervec-poison'")
    await items.settled()
    assert [row[:3] for row in await items.outbox()] == [("1", "failed", 1)]


async def test_listen_url_is_where_the_listener_hears(site: Site) -> None:
    query = (
        "SELECT usename = current_user FROM pg_stat_activity "
        "WHERE datname = current_database() AND application_name = 'evervec listener' ORDER BY 1"
    )

    async def leads() -> bool:  # it makes its other connections when it begins to lead
        return len(await site.run(query)) == 5

    await until(leads)
    # DATABASE_URL logs in as a role with a listener's rights, LISTEN_URL as the owner.
    assert await site.run(query) == [(False,), (False,), (False,), (False,), (True,)]
