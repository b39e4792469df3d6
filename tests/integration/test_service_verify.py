import asyncio
from collections.abc import AsyncIterator

import psycopg
import pytest

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
