import asyncio
from collections.abc import AsyncIterator

import psycopg
import pytest

from db.sources import Waiting
from evervec.errors import DatabaseError, ItemNotFoundError, SourceNotFoundError
from service import refire as module
from service.refire import Progress, check_keys, check_predicate, refire, wait_until_done
from tests.integration.service_lab import Lab, open_lab

ROWS = "INSERT INTO items (id, name, description) SELECT g, 'name ' || g, 'd' FROM generate_series(1, 25) AS g"


@pytest.fixture
async def lab(database: str) -> AsyncIterator[Lab]:
    async with open_lab(database) as opened:
        await opened.fill()
        await opened.do(ROWS)
        await opened.do("DELETE FROM evervec.outbox")
        yield opened


async def waiting_keys(lab: Lab) -> object:
    return await lab.value("SELECT array_agg(item_key::int ORDER BY item_key::int) FROM evervec.outbox")


async def test_pages_reach_every_stale_item(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "PAGE_SIZE", 10)
    assert [progress.enqueued async for progress in refire(lab.sources, "items")] == [10, 20, 25]
    assert await waiting_keys(lab) == list(range(1, 26))


async def test_only_what_satisfies_the_predicate(lab: Lab) -> None:
    async for progress in refire(lab.sources, "items", predicate="id BETWEEN 3 AND 5 -- a comment"):
        assert progress.enqueued == 3
    assert await waiting_keys(lab) == [3, 4, 5]


async def test_force_takes_fresh_items_too(lab: Lab) -> None:
    async for _ in refire(lab.sources, "items"):
        await lab.work()
    assert [progress.enqueued async for progress in refire(lab.sources, "items")] == [0]
    assert [progress.enqueued async for progress in refire(lab.sources, "items", force=True)] == [25]


async def test_a_rate_is_the_sources_until_another_is_given(lab: Lab) -> None:
    assert [progress.enqueued async for progress in refire(lab.sources, "items", rate=50)] == [25]
    assert (await lab.sources.get("items")).rate == 50
    assert [progress.enqueued async for progress in refire(lab.sources, "items", rate=0.5)] == [25]
    assert (await lab.sources.get("items")).rate == 0.5
    # Where nothing waits there is nothing to hold back, nor anybody to lift the limit.
    await lab.sources.throttle("items", None)
    await lab.do("DELETE FROM evervec.outbox")
    assert [step.enqueued async for step in refire(lab.sources, "items", predicate="false", rate=1)] == [0]
    assert (await lab.sources.get("items")).rate is None


async def test_a_rate_comes_with_what_it_is_for(lab: Lab) -> None:
    """In one transaction: what is no rate enqueues nothing."""
    with pytest.raises(DatabaseError, match="a rate is a number of items a second above 0, not -1"):
        async for _ in refire(lab.sources, "items", rate=-1):
            pass
    assert await lab.value("SELECT count(*) FROM evervec.outbox") == 0


async def test_a_predicate_that_does_not_parse_is_one_clear_error(lab: Lab) -> None:
    with pytest.raises(DatabaseError, match="the predicate can't be evaluated"):
        await check_predicate(lab.sources, "items", "id <")
    with pytest.raises(SourceNotFoundError):
        await check_predicate(lab.sources, "nothing", "true")


async def test_unknown_keys_are_named(lab: Lab) -> None:
    await check_keys(lab.sources, "items", ["1", "25"])
    with pytest.raises(ItemNotFoundError, match="no item with the key 26, x"):
        await check_keys(lab.sources, "items", ["1", "26", "x"])


async def test_a_page_waits_for_a_users_transaction_without_holding_others_up(lab: Lab, database: str) -> None:
    async with await psycopg.AsyncConnection.connect(database) as user:
        await user.execute("UPDATE items SET name = 'edited' WHERE id = 7")
        pages = refire(lab.sources, "items")
        running: asyncio.Future[Progress] = asyncio.ensure_future(anext(pages))
        await user.execute("SELECT pg_sleep(0.3)")
        assert not running.done()
        # The page holds nothing for long: others get through, which they would not if it waited with its locks.
        await lab.do("SET lock_timeout = '1s'")
        await lab.do("UPDATE items SET name = 'also edited' WHERE id = 1")
        await user.rollback()
        assert (await running).enqueued == 25


async def test_waiting_ends_when_all_has_left_the_outbox(lab: Lab) -> None:
    after = await lab.sources.last_version()
    async for progress in refire(lab.sources, "items"):
        assert progress.enqueued == 25
    seen: list[Waiting] = []
    async for waiting in wait_until_done(lab.sources, "items", after=after):
        seen.append(waiting)
        if len(seen) == 2:
            await lab.do("INSERT INTO items VALUES (26, 'later', 'not waited for')")
            await lab.do("UPDATE items SET description = 'evervec-poison' WHERE id = 1")
            cursor = await lab.owner.execute("DELETE FROM evervec.outbox WHERE item_key::int BETWEEN 2 AND 25")
            assert cursor.rowcount == 24
    assert seen[0].pending == 25
    assert seen[-1].pending == 0


async def test_waiting_ends_with_failed_items_and_says_why_others_wait(lab: Lab) -> None:
    after = await lab.sources.last_version()
    await lab.do("UPDATE items SET description = 'evervec-poison' WHERE id = 1")
    await lab.work(max_attempts=2)
    waiting = await anext(wait_until_done(lab.sources, "items", after=after))
    assert (waiting.pending, waiting.failed) == (1, 0)
    assert "the stub refuses" in (waiting.reason or "")
    await lab.work(max_attempts=2)
    assert [step async for step in wait_until_done(lab.sources, "items", after=after)][-1].failed == 1
    # Of keys that did not fail, nothing is told.
    steps = [step async for step in wait_until_done(lab.sources, "items", after=after, item_keys=["2"])]
    assert steps[-1].failed == 0


async def test_a_first_fill_is_waited_for(lab: Lab) -> None:
    await lab.do("SELECT evervec.watch('items', '{name}', model => 'stub:8')")
    after = await lab.sources.last_version()
    steps = wait_until_done(lab.sources, "items", after=after)
    assert (await anext(steps)).filling
    assert (await anext(steps)).filling
    await lab.fill()
    pending = -1
    async for step in steps:
        await lab.work()
        pending = step.pending
    assert pending == 0


async def test_a_paused_source_is_not_waited_for(lab: Lab) -> None:
    async for _ in refire(lab.sources, "items"):
        await lab.sources.pause("items")
    [waiting] = [step async for step in wait_until_done(lab.sources, "items", after=0)]
    assert (waiting.paused, waiting.pending) == (True, 25)
    await lab.sources.unwatch("items")
    with pytest.raises(SourceNotFoundError):
        await anext(wait_until_done(lab.sources, "items", after=0))
