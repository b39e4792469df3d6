"""The worker as a process, on a real database and a real Temporal server; the test rings in the listener's place."""

import asyncio
import json
import os
import signal
import subprocess
import sys
import uuid
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, LiteralString

import numpy as np
import psycopg
import pytest

from embedding.stub import StubEmbedder
from evervec.messages import ItemWorkflowState, Outcome
from evervec.settings import Settings
from evervec.temporal import connect, ensure_search_attributes, start_item_workflow
from tests.integration.temporal_lab import Handle, new_key, status_of, until, until_rounds

CANARY = "CANARY-51be"
DIMENSION = 8


class WorkerProcess:
    """`evervec worker`, its log in a file."""

    def __init__(self, environment: dict[str, str], log: Path) -> None:
        self.log = log
        with log.open("ab") as stderr:
            self.process = subprocess.Popen(
                [str(Path(sys.executable).with_name("evervec")), "worker"], env=os.environ | environment, stderr=stderr
            )

    def lines(self, event: str) -> list[dict[str, Any]]:
        """What it logged of an event."""
        whole = [line for line in self.log.read_text().splitlines(keepends=True) if line.endswith("\n")]
        logged = [json.loads(line) for line in whole if line.startswith("{")]
        return [line for line in logged if line["event"] == event]

    def end(self, how: signal.Signals) -> int:
        """Send the signal and wait for the end: the exit code."""
        self.process.send_signal(how)
        return self.process.wait(timeout=60)


@dataclass
class Bench:
    """A database with a watched table, and workers on a task queue of their own."""

    database: str
    environment: dict[str, str]
    settings: Settings
    folder: Path
    workers: list[WorkerProcess]

    def start_worker(self, **environment: str) -> WorkerProcess:
        log = self.folder / f"worker-{len(self.workers)}.log"
        worker = WorkerProcess(self.environment | environment, log)
        self.workers.append(worker)
        return worker

    async def run(self, statement: LiteralString, *parameters: object) -> list[tuple[Any, ...]]:
        async with await psycopg.AsyncConnection.connect(self.database, autocommit=True) as connection:
            cursor = await connection.execute(statement, parameters or None)
            return await cursor.fetchall() if cursor.description else []

    async def insert(self, text: str) -> str:
        """A new item: its key."""
        key = new_key()
        await self.run("INSERT INTO things (id, name) VALUES (%s, %s)", key, text)
        return key

    async def ring(self, key: str) -> Handle:
        """Tell the item's workflow, as the listener would."""
        client = await connect(self.settings)
        await ensure_search_attributes(client)
        [[instance]] = await self.run("SELECT evervec.instance_id()")
        return await start_item_workflow(client, self.settings, instance, "things", key, content_hash=None)

    async def vector(self, key: str) -> list[float] | None:
        [[vector]] = await self.run("SELECT embedding::real[] FROM things WHERE id = %s", key)
        return None if vector is None else list(vector)

    async def outbox(self, key: str) -> tuple[Any, ...] | None:
        rows = await self.run("SELECT state, attempts, last_error FROM evervec.outbox WHERE item_key = %s", key)
        return rows[0] if rows else None

    async def embedded(self, key: str) -> bool:
        return await self.vector(key) is not None and await self.outbox(key) is None


@pytest.fixture
async def bench(database: str, temporal_address: str, tmp_path: Path) -> AsyncIterator[Bench]:
    environment = {
        "EVERVEC_DATABASE_URL": database,
        "EVERVEC_TEMPORAL_ADDRESS": temporal_address,
        "EVERVEC_TASK_QUEUE": uuid.uuid4().hex,
        "EVERVEC_LOG_FORMAT": "json",
        "EVERVEC_MAX_ATTEMPTS": "2",
    }
    settings = Settings(temporal_address=temporal_address, task_queue=environment["EVERVEC_TASK_QUEUE"])
    bench = Bench(database, environment, settings, tmp_path, [])
    await bench.run("CREATE TABLE things (id text PRIMARY KEY, name text)")
    await watch(bench, f"stub:{DIMENSION}")
    yield bench
    for worker in bench.workers:
        if worker.process.poll() is None:
            worker.end(signal.SIGKILL)


async def watch(bench: Bench, model: str) -> None:
    await bench.run("SELECT evervec.watch('things', '{name}', model => %s, dimension => %s)", model, DIMENSION)


@asynccontextmanager
async def table_held(bench: Bench) -> AsyncIterator[None]:
    """A user's transaction that nobody can read the items beside, while the block runs."""
    async with await psycopg.AsyncConnection.connect(bench.database) as connection:
        await connection.execute("LOCK TABLE things")
        yield
        await connection.rollback()


@asynccontextmanager
async def row_held(bench: Bench, key: str) -> AsyncIterator[None]:
    """A user's transaction that holds the item's row while the block runs."""
    async with await psycopg.AsyncConnection.connect(bench.database) as connection:
        await connection.execute("SELECT FROM things WHERE id = %s FOR UPDATE", [key])
        yield
        await connection.rollback()


async def is_fresh(handle: Handle) -> bool:
    """Whether the workflow knows that the item is fresh: the vector is written a moment before the activity ends."""
    return (await status_of(handle)).state is ItemWorkflowState.FRESH


async def pending_attempt(handle: Handle) -> int:
    """The number of the attempt that is under way or waits, 0 when there is none."""
    pending = (await handle.describe()).raw_description.pending_activities
    return pending[0].attempt if pending else 0


async def test_a_changed_row_gets_its_vector(bench: Bench) -> None:
    worker = bench.start_worker()
    key = await bench.insert("a drill")
    status = await until_rounds(await bench.ring(key), 1)
    assert (status.state, status.last_outcome) == (ItemWorkflowState.FRESH, Outcome.EMBEDDED)
    [[content_hash]] = await bench.run("SELECT embedding_hash FROM things WHERE id = %s", key)
    assert status.content_hash == content_hash
    expected = StubEmbedder(DIMENSION).encode(["a drill"], "")[0]
    np.testing.assert_allclose(np.array(await bench.vector(key)), expected, rtol=1e-6)
    assert await bench.outbox(key) is None
    [line] = worker.lines("item done")
    assert (line["source"], line["key"], line["outcome"]) == ("things", key, "embedded")
    assert worker.end(signal.SIGTERM) == 0


async def test_no_word_of_a_row_leaves_the_worker(bench: Bench) -> None:
    await bench.run("ALTER TABLE things ADD CHECK (embedding IS NULL)")
    worker = bench.start_worker()
    key = await bench.insert(f"a drill that the table's check refuses, {CANARY}")
    handle = await bench.ring(key)
    status = await until_rounds(handle, 1)
    assert (status.state, status.last_error) == (ItemWorkflowState.FAILED, "DatabaseError [23514]")
    assert (await bench.outbox(key) or ())[:2] == ("failed", 2)
    assert CANARY not in (await handle.fetch_history()).to_json()
    assert worker.end(signal.SIGTERM) == 0
    assert worker.lines("item not embedded")[0]["error"] == "DatabaseError [23514]"
    assert CANARY not in worker.log.read_text()


async def test_a_poisoned_item_fails_and_its_next_edit_is_embedded(bench: Bench) -> None:
    bench.start_worker()
    key = await bench.insert("evervec-poison")
    handle = await bench.ring(key)
    assert (await until_rounds(handle, 1)).state is ItemWorkflowState.FAILED
    await bench.run("UPDATE things SET name = 'a remedy' WHERE id = %s", key)
    await bench.ring(key)
    assert (await until_rounds(handle, 2)).state is ItemWorkflowState.FRESH
    assert await bench.embedded(key)


async def test_a_worker_that_is_asked_to_stop_ends_what_it_began(bench: Bench) -> None:
    worker = bench.start_worker()
    key = await bench.insert("a drill")
    # A row that is held would be given up after some seconds; a read waits for as long as it takes.
    async with table_held(bench):
        handle = await bench.ring(key)

        async def begun() -> bool:
            return await pending_attempt(handle) == 1 and bool(worker.lines("worker ready"))

        await until(begun)
        worker.process.send_signal(signal.SIGTERM)
        await until(lambda: bool(worker.lines("worker stops")))
    assert await asyncio.to_thread(worker.process.wait, 40) == 0, worker.log.read_text()
    assert await bench.embedded(key)


async def test_what_a_killed_worker_began_is_done_by_another(bench: Bench) -> None:
    worker = bench.start_worker()
    key = await bench.insert("a drill")
    async with row_held(bench, key):
        handle = await bench.ring(key)

        async def begun() -> bool:
            return await pending_attempt(handle) == 1

        await until(begun)
        worker.end(signal.SIGKILL)
    bench.start_worker()
    await until(lambda: bench.embedded(key), seconds=40)
    await until(lambda: is_fresh(handle))


async def test_a_model_that_cannot_be_loaded_keeps_items_pending_and_harms_no_other(bench: Bench) -> None:
    await bench.run("CREATE TABLE others (id text PRIMARY KEY, name text)")
    await bench.run("SELECT evervec.watch('others', '{name}', model => '/no/such/folder', dimension => %s)", DIMENSION)
    worker = bench.start_worker(HF_HUB_OFFLINE="1")
    key = await bench.insert("a drill")
    await bench.ring(key)
    await until(lambda: bench.embedded(key))
    await until(lambda: bool(worker.lines("model unavailable")))
    [line] = worker.lines("model unavailable")
    assert line["model"] == "/no/such/folder"

    await watch(bench, "/no/such/folder")
    key = await bench.insert("a ladder")
    handle = await bench.ring(key)

    async def noted() -> bool:
        return "/no/such/folder" in str(await bench.outbox(key))

    await until(noted)
    state, attempts, _ = await bench.outbox(key) or ("", 0, "")
    assert (state, attempts) == ("pending", 0)
    await watch(bench, f"stub:{DIMENSION}")
    await until(lambda: bench.embedded(key), seconds=60)
    await until(lambda: is_fresh(handle))
