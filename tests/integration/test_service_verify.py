import asyncio
import resource
import time
from collections.abc import AsyncIterator
from pathlib import Path

import psycopg
import pytest

from embedding.encoder import Encoder
from evervec.settings import Settings
from service.verify import Repair, Verification, repair, verify
from tests.integration.service_lab import Lab, open_lab

ROWS = """
    INSERT INTO items (id, name, description, active)
    SELECT g, 'name ' || g, CASE WHEN g % 10 > 0 THEN 'description' END, g % 7 > 0 FROM generate_series(1, 100) AS g
"""
ELIGIBLE = 77


@pytest.fixture
async def lab(database: str) -> AsyncIterator[Lab]:
    async with open_lab(database) as opened:
        await opened.fill()
        await opened.do(ROWS)
        await opened.work()
        yield opened


async def look(lab: Lab, *, sample: int = 0) -> Verification:
    return await verify(lab.sources, lab.encoder, "items", sample=sample, tell=lambda _: None)


async def test_everything_is_right(lab: Lab) -> None:
    found = await look(lab, sample=1000)
    assert (found.rows, found.eligible, found.fresh, found.stale) == (100, ELIGIBLE, ELIGIBLE, 0)
    assert (found.sampled, found.mismatched, found.ok) == (ELIGIBLE, 0, True)


async def test_pages_add_up(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("service.verify.COUNT_ROWS", 7)
    assert (await look(lab)).rows == 100
    monkeypatch.setattr("service.verify.COUNT_ROWS", 50)
    assert (await look(lab)).rows == 100


async def test_what_is_lost_is_found_and_repaired(lab: Lab) -> None:
    await lab.do("UPDATE items SET name = name || '!' WHERE id IN (1, 2, 3)")
    await lab.do("DELETE FROM evervec.outbox")
    for key in ("4711", "no number"):
        await lab.do("INSERT INTO evervec.outbox (source, item_key, version) VALUES ('items', %s, 1)", key)
    found = await look(lab)
    assert (found.stale, found.orphaned, found.ok) == (3, 2, False)
    assert await repair(lab.sources, found) == Repair(enqueued=3, dropped=2)
    await lab.work()
    assert (await look(lab)).ok


async def test_what_was_loaded_while_triggers_were_off_is_found_and_repaired(lab: Lab) -> None:
    await lab.do("ALTER TABLE items DISABLE TRIGGER USER")
    await lab.do("UPDATE items SET name = 'changed' WHERE id <= 10")
    await lab.do("INSERT INTO items SELECT g, 'new', 'new' FROM generate_series(101, 110) AS g")
    await lab.do("DELETE FROM items WHERE id = 99")
    await lab.do("ALTER TABLE items ENABLE TRIGGER USER")
    assert await lab.value("SELECT count(*) FROM evervec.outbox") == 0
    found = await look(lab)
    assert (found.rows, found.stale, found.orphaned, found.ok) == (109, 8 + 10, 0, False)
    assert await repair(lab.sources, found) == Repair(enqueued=18, dropped=0)
    await lab.work()
    assert (await look(lab, sample=1000)).ok


async def test_a_sample_is_as_large_as_asked_for_and_from_all_pages(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("service.verify.COUNT_ROWS", 7)
    await lab.do("UPDATE items SET embedding = '[1,2,3,4,5,6,7,8]' WHERE id % 10 = 5")
    found = await look(lab, sample=1000)
    assert (found.sampled, sorted(map(int, found.mismatched_keys))) == (ELIGIBLE, [5, 15, 25, 45, 55, 65, 75, 85, 95])
    seen = {key for _ in range(16) for key in (await look(lab, sample=60)).mismatched_keys}
    assert seen == set(found.mismatched_keys)
    assert (await look(lab, sample=30)).sampled == 30


async def test_an_item_that_the_model_refuses_by_now_is_mismatched(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("embedding.stub.POISON", "name 11 |")
    async with Encoder(Settings()) as lab.encoder:
        assert (await look(lab, sample=1000)).mismatched_keys == ["11"]


async def test_a_wrong_vector_is_found_by_a_sample_only(lab: Lab) -> None:
    await lab.do("UPDATE items SET embedding = '[1,2,3,4,5,6,7,8]' WHERE id = 5")
    assert (await look(lab)).ok
    found = await look(lab, sample=1000)
    assert (found.mismatched_keys, found.ok) == (["5"], False)
    assert await repair(lab.sources, found) == Repair(enqueued=1, dropped=0)
    await lab.work()
    assert (await look(lab, sample=1000)).ok


async def test_a_vector_without_direction_is_no_match(lab: Lab) -> None:
    await lab.do("UPDATE items SET embedding = '[0,0,0,0,0,0,0,0]' WHERE id = 5")
    assert (await look(lab, sample=1000)).mismatched_keys == ["5"]


async def test_failed_items_are_enqueued_whatever_they_are_by_now(lab: Lab) -> None:
    await lab.do("UPDATE items SET description = 'evervec-poison' WHERE id IN (1, 2)")
    await lab.work()
    await lab.do("UPDATE items SET active = false WHERE id = 2")
    found = await look(lab)
    assert found.stale == 1
    assert not found.ok
    await repair(lab.sources, found)
    assert await lab.value("SELECT count(*) FROM evervec.outbox WHERE state = 'failed'") == 0
    assert await lab.value("SELECT count(*) FROM evervec.outbox WHERE item_key = '1' AND attempts = 0") == 1


async def test_an_orphan_whose_item_is_inserted_meanwhile_is_kept(lab: Lab, database: str) -> None:
    for key in ("4711", "4712"):
        await lab.do("INSERT INTO evervec.outbox (source, item_key, version) VALUES ('items', %s, 0)", key)
    async with await psycopg.AsyncConnection.connect(database) as user:
        await user.execute("INSERT INTO items VALUES (4711, 'new', 'new')")
        dropping = asyncio.create_task(lab.sources.drop_orphans("items"))
        while not await lab.value("SELECT EXISTS (SELECT FROM pg_locks WHERE NOT granted)"):
            assert not dropping.done()
        await user.commit()
        assert await dropping == 1
    assert await lab.value("SELECT array_agg(item_key) FROM evervec.outbox") == ["4711"]


MILLION = """
    INSERT INTO items (name, description, embedding, embedding_hash, embedding_model)
    SELECT name, description, embedding, embedding_hash, embedding_model FROM items, generate_series(2, 1000000)
"""


def resident() -> int:
    """Bytes of this process in memory."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * resource.getpagesize()


async def wants_the_table(database: str, seconds: list[float]) -> None:
    """Somebody who now and then wants the whole table for himself, and how long he waited."""
    async with await psycopg.AsyncConnection.connect(database) as user:
        while True:
            started = time.monotonic()
            await user.execute("LOCK TABLE items IN ACCESS EXCLUSIVE MODE")
            await user.commit()
            seconds.append(time.monotonic() - started)
            await asyncio.sleep(0.1)


@pytest.mark.long
async def test_a_million_rows_are_verified_in_steady_memory_and_without_long_locks(database: str) -> None:
    async with open_lab(database) as lab:
        # A lock that waits for an autovacuum gets it after `deadlock_timeout`, one second: nothing of ours.
        await lab.do("ALTER TABLE items SET (autovacuum_enabled = false, toast.autovacuum_enabled = false)")
        await lab.do("INSERT INTO items (name, description) VALUES ('name', 'text')")
        await lab.work()
        await lab.do("ALTER TABLE items DISABLE TRIGGER USER")
        await lab.do(MILLION)
        await lab.do("UPDATE items SET name = 'changed' WHERE id % 100000 = 0")
        await lab.do("ALTER TABLE items ENABLE TRIGGER USER")
        await lab.do("UPDATE evervec.source SET filling = false")
        await lab.do("ANALYZE items")
        waits: list[float] = []
        waiting = asyncio.create_task(wants_the_table(database, waits))
        sizes: list[int] = []
        found = await verify(lab.sources, lab.encoder, "items", sample=20_000, tell=lambda _: sizes.append(resident()))
        waiting.cancel()
        growth = max(sizes) - sizes[len(sizes) // 20]
        print(f"memory grew by {growth / 1e6:.1f} MB; the longest wait for the table: {max(waits):.2f} s")  # noqa: T201
        assert (found.rows, found.stale, found.sampled, found.mismatched) == (1_000_000, 10, 20_000, 0)
        assert growth < 20_000_000
        assert len(waits) > 10
        assert max(waits) < 1
        assert (await repair(lab.sources, found)).enqueued == 10
