"""What Temporal's own pages can list of items and sweeps; and a namespace where nothing may be listed."""

import re
import uuid
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from structlog.testing import capture_logs
from temporalio.client import ScheduleOverlapPolicy, WorkflowExecution
from temporalio.common import SearchAttributeKey

from evervec import temporal
from evervec.temporal import item_workflow_id, sweep_workflow_id
from tests.integration.pipeline import Site, Table, new_table, until
from tests.integration.temporal_lab import new_namespace

BULK = 20


@pytest.fixture
async def site(database: str, temporal_address: str) -> AsyncIterator[Site]:
    async with Site.open(database, temporal_address, max_attempts=1, sweep_threshold=5) as site:
        yield site


def saved_queries() -> dict[str, str]:
    """The queries that docs/operations.md tells to save."""
    text = (Path(__file__).parents[2] / "docs" / "operations.md").read_text(encoding="utf-8")
    return dict(re.findall(r"^\| (.+?) \| `(\w+ ?[=>].+)` \|$", text, re.MULTILINE))


async def listed(site: Site, query: str, instance: str) -> set[str]:
    """The ids of this database's workflows that a query finds."""
    found = [entry async for entry in site.client.list_workflows(query)]
    return {entry.id for entry in found if instance in entry.id}


async def test_saved_queries_find_what_they_promise(site: Site) -> None:
    queries = saved_queries()
    assert len(queries) == 5
    table = await new_table(site, "column", name=f"items {uuid.uuid4().hex}")
    instance = await site.value("SELECT evervec.instance_id()")
    async with site.running():
        await table.do("INSERT INTO {t} VALUES (1, 'drill'), (2, 'evervec-poison')")
        await table.settled()

        def item(key: str) -> str:
            return item_workflow_id(instance, table.source, key)

        async def find(name: str, *expected: str) -> None:
            query = queries[name].replace("items", table.source)

            async def found() -> bool:
                return await listed(site, query, instance) == {*expected}

            try:
                await until(found)
            except TimeoutError:
                raise AssertionError((name, query, await listed(site, query, instance))) from None

        await find("items that were given up", item("2"))
        await find("items of one source", item("1"), item("2"))
        # A source that is paused while a signal is under way leaves its item pending.
        await site.run("SELECT evervec.pause(%s)", table.source)
        await table.do("UPDATE {t} SET name = 'edited' WHERE id = 1")
        await temporal.start_item_workflow(site.client, site.settings, instance, table.source, "1", content_hash=None)
        await find("items that wait", item("1"))
        await site.run("SELECT evervec.resume(%s)", table.source)
        await table.do("UPDATE {t} SET name = 'saw' WHERE id = 2")
        await find("items that wait")
        await find("items that were given up")
        await table.do("INSERT INTO {t} SELECT n, 'bulk ' || n FROM generate_series(100, %s) AS n", 99 + BULK)
        await table.settled()
        await find("sweeps of one source", sweep_workflow_id(instance, table.source))
        await find("sweeps that run")


async def test_an_edit_that_is_held_up_shows_as_pending(site: Site) -> None:
    table = await new_table(site, "column", name=f"items {uuid.uuid4().hex}")
    instance = await site.value("SELECT evervec.instance_id()")
    handle = site.client.get_workflow_handle(item_workflow_id(instance, table.source, "1"))

    async def shows(state: str) -> bool:
        attributes = (await handle.describe()).typed_search_attributes
        return attributes.get(SearchAttributeKey.for_keyword("EvervecState")) == state

    async with site.running():
        await table.do("INSERT INTO {t} VALUES (1, 'drill')")
        await table.fresh()
        await until(lambda: shows("fresh"))
        await site.run("ALTER FUNCTION evervec.write_back RENAME TO taken_away")
        await table.do("UPDATE {t} SET name = 'edited' WHERE id = 1")
        await until(lambda: shows("pending"))
        await site.run("ALTER FUNCTION evervec.taken_away RENAME TO write_back")
        await table.fresh()
        await until(lambda: shows("fresh"))


async def _edited(table: Table) -> None:
    await table.do("INSERT INTO {t} VALUES (1, 'drill'), (2, 'saw')")
    await table.fresh()
    await table.do("UPDATE {t} SET name = 'edited' WHERE id = 1")
    await table.fresh()
    await table.do("INSERT INTO {t} SELECT n, 'bulk ' || n FROM generate_series(100, %s) AS n", 99 + BULK)
    await table.fresh()


async def test_a_namespace_without_the_attributes_does_all_the_work(
    database: str, temporal_address: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def refused(_client: object) -> bool:
        return False

    monkeypatch.setattr(temporal, "_register_missing", refused)
    namespace = (await new_namespace(temporal_address)).namespace
    async with Site.open(database, temporal_address, temporal_namespace=namespace, sweep_threshold=5) as site:
        table = await new_table(site, "column")
        # One worker throughout: what was handed to one that stops is tried again after a minute.
        with capture_logs() as logs:
            async with site.working():
                async with site.listening():
                    await _edited(table)
                    # The safety net starts a sweep, and goes without the attributes as well.
                    await site.run("SELECT evervec.pause(%s)", table.source)
                    await table.do("UPDATE {t} SET name = 'overlooked' WHERE id = 2")
                    await site.run("UPDATE evervec.outbox SET queued_at = now() - interval '2 min', due_at = queued_at")
                    net = await site.safety_net()
                await site.run("SELECT evervec.resume(%s)", table.source)
                await net.trigger(overlap=ScheduleOverlapPolicy.ALLOW_ALL)  # its own run may be open
                await table.fresh()
        assert any("temporal operator search-attribute create" in line.get("reason", "") for line in logs)
        found: list[WorkflowExecution] = []

        async def all_are_listed() -> bool:  # the server lists a workflow some time after it began
            found[:] = [entry async for entry in site.client.list_workflows()]
            return {entry.workflow_type for entry in found} == {
                *("ItemEmbeddingWorkflow", "EmbeddingSweepWorkflow", "EmbeddingSafetyNetWorkflow")
            }

        await until(all_are_listed)
        assert all("Evervec" not in str(entry.typed_search_attributes) for entry in found)
