"""Two listeners and two workers: one of each is killed, stopped or replaced, and the other does the work."""

import asyncio
import os
import shutil
import signal
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from functools import partial
from itertools import count
from pathlib import Path

import pytest
from temporalio.api.enums.v1 import EventType, PendingWorkflowTaskState

from evervec.temporal import item_workflow_id
from listener.daemon import Listener
from service.worker import MAX_WORKFLOW_TASKS
from tests.chaos.noting_worker import FILE
from tests.integration.pipeline import DESTINATIONS, CountedStub, Encodings, Site, Table, new_table, until
from tests.integration.program import Program, programs

pytestmark = pytest.mark.chaos

LEADS, STANDS_BY, HELPS = "listener leads", "standing by: another listener leads", "listener helps"
LEADS_WITHIN, HELPS_WITHIN = 5.0, 15.0
PACKAGES = ("activities", "cli", "db", "embedding", "evervec", "listener", "service", "workflows")
EDIT_SECONDS = 0.05
ROWS = 3000
WORKFLOWS = 150


@pytest.fixture
async def site(database: str, temporal_address: str) -> AsyncIterator[Site]:
    async with Site.open(database, temporal_address) as site:
        yield site


@pytest.fixture
async def tables(site: Site) -> list[Table]:
    """One table for each destination."""
    return [await new_table(site, destination) for destination in DESTINATIONS]


@pytest.fixture
def encodings(monkeypatch: pytest.MonkeyPatch) -> Iterator[Encodings]:
    """What a worker in this process encodes."""
    monkeypatch.setattr("embedding.stub.StubEmbedder", CountedStub)
    CountedStub.encodings.texts.clear()
    yield CountedStub.encodings
    CountedStub.encodings.texts.clear()


@asynccontextmanager
async def two_listeners(site: Site, folder: Path) -> AsyncIterator[tuple[Program, Program]]:
    """One that leads and one that stands by."""
    leader = Program("listener", site.settings, folder / "leader.log")
    async with programs(leader):
        await leader.logged(LEADS)
        other = Program("listener", site.settings, folder / "other.log")
        async with programs(other):
            await other.logged(STANDS_BY)
            yield leader, other


async def all_fresh(tables: list[Table]) -> None:
    for table in tables:
        await table.fresh()


async def test_when_the_leading_listener_is_killed_the_other_leads(
    site: Site, tables: list[Table], tmp_path: Path, encodings: Encodings
) -> None:
    async with site.working(), two_listeners(site, tmp_path) as (leader, other):
        for table in tables:
            await table.fill(20)
        await all_fresh(tables)
        killed = time.monotonic()
        await leader.end(signal.SIGKILL)
        for table in tables:
            await table.do("UPDATE {t} SET name = name || ' after the kill'")
        await other.logged(LEADS)
        assert time.monotonic() - killed < LEADS_WITHIN
        await all_fresh(tables)
    assert len(encodings.of("after the kill")) == 20  # the other table's texts are the same, and remembered


async def test_when_the_leading_listener_is_stopped_the_other_does_its_work(
    site: Site, tables: list[Table], tmp_path: Path, encodings: Encodings
) -> None:
    async with site.working(), two_listeners(site, tmp_path) as (leader, other):
        for table in tables:
            await table.fill(20)
        await all_fresh(tables)
        os.kill(leader.pid, signal.SIGSTOP)
        stopped = time.monotonic()
        for table in tables:
            await table.do("UPDATE {t} SET name = name || ' after the stop'")
        await all_fresh(tables)
        assert time.monotonic() - stopped < HELPS_WITHIN
        assert other.lines(HELPS)
        await edit_for_a_while(tables, "while it is stopped")
        os.kill(leader.pid, signal.SIGCONT)
        await edit_for_a_while(tables, "while both are at work")
        assert (leader.code, other.code) == (None, None)
    assert len(encodings.of("after the stop")) == 20
    assert len(encodings.of("while both are at work")) == len(set(encodings.of("while both are at work")))


async def edit_for_a_while(tables: list[Table], word: str) -> None:
    """Edits one after the other, each embedded before the next."""
    for number in range(5):
        for table in tables:
            await table.do("UPDATE {t} SET name = %s WHERE id = 1", f"edit {number} {word}")
        await all_fresh(tables)


def noted(path: Path) -> list[str]:
    """The texts that a worker has encoded; the one that it encodes first, to load the model, is nobody's."""
    return [text for text in path.read_text().splitlines() if text != "evervec"] if path.exists() else []


async def test_when_a_worker_is_killed_the_other_does_again_what_was_in_its_hands_and_no_more(
    site: Site, tables: list[Table], tmp_path: Path
) -> None:
    table = tables[0]
    notes = [tmp_path / "first.txt", tmp_path / "second.txt"]
    first, second = (
        Program("worker", site.settings, note.with_suffix(".log"), "tests.chaos.noting_worker", **{FILE: str(note)})
        for note in notes
    )
    async with site.listening(), programs(first, second):
        for worker in (first, second):
            await worker.logged("worker ready")
        await table.fill(ROWS)
        await until(lambda: max(map(len, map(noted, notes))) > ROWS / 6)
        if len(noted(notes[0])) <= ROWS / 6:
            first, second = second, first
            notes.reverse()
        await first.end(signal.SIGKILL)
        await table.fresh()
        assert await second.end() == 0
    killed, survivor = map(noted, notes)
    assert len(killed) < ROWS
    assert len(set(killed)) + len(set(survivor)) == len(killed) + len(survivor)
    assert len(set(killed) | set(survivor)) == ROWS
    reported = sum(line.get("embedded", 0) for line in first.lines("batch done"))
    assert len(set(killed) & set(survivor)) <= len(killed) - reported


async def test_workers_are_replaced_one_by_one_by_a_new_build_while_edits_go_on(
    site: Site, tables: list[Table], tmp_path: Path
) -> None:
    build = new_build(tmp_path / "build")
    old = [Program("worker", site.settings, tmp_path / f"old-{number}.log") for number in range(2)]
    new = []
    async with site.listening(), programs(*old):
        for worker in old:
            await worker.logged("worker ready")
        for table in tables:
            await table.fill(20)
        async with editing(tables):
            for number, worker in enumerate(old):
                replacement = Program(
                    "worker", site.settings, tmp_path / f"new-{number}.log", PYTHONPATH=str(build), PYTHONSAFEPATH="1"
                )
                new.append(replacement)
                async with asyncio.timeout(60):
                    await replacement.logged("worker ready")
                    assert await worker.end() == 0
                await replacement.logged("item done")
            # The item that is looked at below may have been at an old one until now.
            await until(lambda: was_at(site, tables[0], "1", new))
        async with programs(*new):
            await all_fresh(tables)
            assert [await worker.end() for worker in new] == [0, 0]
    for worker in old + new:
        assert worker.lines("item not embedded") == worker.lines("batch not embedded") == []
    workers = await workers_of(site, tables[0], "1")
    assert all(workers & {worker.pid for worker in build} for build in (old, new))


async def test_a_worker_takes_no_more_workflow_tasks_than_it_can_end_in_time(
    database: str, temporal_address: str, tmp_path: Path
) -> None:
    async with Site.open(database, temporal_address, sweep_threshold=1000) as site, site.listening() as listener:
        table = await new_table(site, DESTINATIONS[0])
        await table.fill(WORKFLOWS)
        await until(lambda: listener.status().signalled >= WORKFLOWS)
        worker = Program("worker", site.settings, tmp_path / "worker.log")
        async with programs(worker):
            await worker.logged("item done")
            os.kill(worker.pid, signal.SIGSTOP)
            while not (taken := await workflow_tasks_taken(site, table)):  # it had done them all before it was stopped
                signalled = listener.status().signalled
                await table.do("UPDATE {t} SET name = name || '.'")
                await until(partial(has_signalled, listener, signalled + WORKFLOWS))
                os.kill(worker.pid, signal.SIGCONT)
                await asyncio.sleep(EDIT_SECONDS)
                os.kill(worker.pid, signal.SIGSTOP)
            assert 0 < taken <= MAX_WORKFLOW_TASKS
            os.kill(worker.pid, signal.SIGCONT)
            await table.fresh()


def has_signalled(listener: Listener, times: int) -> bool:
    """Whether a listener has signalled workflows so often."""
    return listener.status().signalled >= times


async def workflow_tasks_taken(site: Site, table: Table) -> int:
    """How many workflow tasks workers have in their hands."""
    instance = await site.value("SELECT evervec.instance_id()")
    taken = 0
    for key in range(1, WORKFLOWS + 1):
        handle = site.client.get_workflow_handle(item_workflow_id(instance, table.source, str(key)))
        task = (await handle.describe()).raw_description.pending_workflow_task
        taken += task.state == PendingWorkflowTaskState.PENDING_WORKFLOW_TASK_STATE_STARTED
    return taken


def new_build(folder: Path) -> Path:
    """A copy of evervec with another version, and so with other code."""
    here = Path(__file__).parents[2]
    for package in PACKAGES:
        shutil.copytree(here / package, folder / package, ignore=shutil.ignore_patterns("__pycache__"))
    init = folder / "evervec" / "__init__.py"
    init.write_text(init.read_text().replace("__version__ = ", "__version__ = 'next' or "))
    return folder


@asynccontextmanager
async def editing(tables: list[Table]) -> AsyncIterator[None]:
    """Somebody edits the first rows, again and again, while the block runs."""
    stop = asyncio.Event()

    async def edit() -> None:
        for number in count():
            if stop.is_set():
                return
            for table in tables:
                await table.do("UPDATE {t} SET name = %s WHERE id = %s", f"edit {number}", number % 5 + 1)
            await asyncio.sleep(EDIT_SECONDS)

    async with asyncio.TaskGroup() as group:
        group.create_task(edit())
        try:
            yield
        finally:
            stop.set()


async def workers_of(site: Site, table: Table, key: str) -> set[int]:
    """The process ids of the workers that an item's workflow has had, in all of its runs.

    From the present run back to the first: the list of workflows may not have the last one yet.
    """
    instance = await site.value("SELECT evervec.instance_id()")
    workflow_id = item_workflow_id(instance, table.source, key)
    workers: set[int] = set()
    run_id: str | None = None
    while run_id != "":
        history = await site.client.get_workflow_handle(workflow_id, run_id=run_id).fetch_history()
        workers |= {
            int(event.workflow_task_completed_event_attributes.identity.partition("@")[0])
            for event in history.events
            if event.event_type == EventType.EVENT_TYPE_WORKFLOW_TASK_COMPLETED
        }
        run_id = history.events[0].workflow_execution_started_event_attributes.continued_execution_run_id
    return workers


async def was_at(site: Site, table: Table, key: str, workers: list[Program]) -> bool:
    """Whether an item's workflow has had one of these workers."""
    return bool(await workers_of(site, table, key) & {worker.pid for worker in workers})
