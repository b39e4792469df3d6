"""A source's sweep on the real servers: worker, database, Temporal; the test starts it in the listener's place."""

import asyncio
import signal
import time
from collections.abc import AsyncIterator
from pathlib import Path

import psycopg
import pytest

from evervec.temporal import start_sweep_workflow
from tests.integration.pipeline import (
    DESTINATIONS,
    WAIT_SECONDS,
    CountedStub,
    Encodings,
    Site,
    Table,
    new_table,
    until,
)
from tests.integration.program import Program, programs
from tests.integration.sweep_lab import sweep_status
from tests.integration.temporal_lab import Handle, closed_as


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


@pytest.mark.parametrize("destination", DESTINATIONS)
async def test_a_sweep_embeds_all_that_waits_and_ends(site: Site, destination: str) -> None:
    table = await filled(site, 3000, destination)
    async with site.working():
        handle = await sweep(table)
        await asyncio.wait_for(handle.result(), WAIT_SECONDS)
        await table.fresh()
        status = await sweep_status(handle)
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
        status = await sweep_status(handle)
    assert [(key, state, attempts) for key, state, attempts, _ in await table.outbox()] == [
        ("300", "failed", 3),
        ("44", "failed", 3),
        ("7", "failed", 3),
    ]
    assert (status.embedded, status.failed) == (497, 3)


@pytest.fixture
def encodings(monkeypatch: pytest.MonkeyPatch) -> Encodings:
    """What the stub encodes in this test."""
    fresh = Encodings()
    monkeypatch.setattr(CountedStub, "encodings", fresh)
    monkeypatch.setattr("embedding.stub.StubEmbedder", CountedStub)
    return fresh


async def ended(handle: Handle) -> None:
    await asyncio.wait_for(handle.result(), WAIT_SECONDS)


async def test_what_users_do_while_a_batch_runs_is_respected(site: Site, encodings: Encodings) -> None:
    table = await filled(site, 100)
    async with (
        site.working(),
        await psycopg.AsyncConnection.connect(site.conninfo) as user,
    ):
        with encodings.held("item 50 | number 50") as gate:
            handle = await sweep(table)
            await asyncio.to_thread(gate.reached.wait, WAIT_SECONDS)
            await table.do("UPDATE {t} SET name = 'edited' WHERE id = 1")
            await table.do("DELETE FROM {t} WHERE id = 2")
            await user.execute(table.statement("UPDATE {t} SET name = 'to be rolled back' WHERE id = 3"))

        async def only_the_locked_one_waits() -> bool:
            return [key for key, *_ in await table.outbox()] == ["3"]

        await until(only_the_locked_one_waits)
        await user.rollback()
        await ended(handle)
        await table.fresh()
    assert len(encodings.of("item 99 |")) == 1
    assert len(encodings.of("edited")) == 1


async def test_a_paused_source_is_left_and_taken_up_again(site: Site, encodings: Encodings) -> None:
    table = await filled(site, 1000)
    async with site.working():
        # At whichever comes first, so that no more is in hand than a batch for each lane.
        with encodings.held(*(f"item {number} | number {number}" for number in range(1, 1001))) as gate:
            handle = await sweep(table)
            await asyncio.to_thread(gate.reached.wait, WAIT_SECONDS)
            await site.run("SELECT evervec.pause(%s)", table.source)
        await ended(handle)
        assert await table.outbox()
        await site.run("SELECT evervec.resume(%s)", table.source)
        await ended(await sweep(table))
        await table.fresh()


async def test_a_cancelled_sweep_loses_nothing(site: Site, encodings: Encodings) -> None:
    table = await filled(site, 1000)
    async with site.working():
        with encodings.held("item 50 | number 50") as gate:
            handle = await sweep(table)
            await asyncio.to_thread(gate.reached.wait, WAIT_SECONDS)
            await handle.cancel()
            await until(lambda: closed_as(handle))
        await ended(await sweep(table))
        await table.fresh()


async def test_a_throttled_sweep_is_slow(site: Site) -> None:
    table = await filled(site, 400)
    await site.run("SELECT evervec.throttle(%s, 40)", table.source)
    async with site.working():
        started = time.monotonic()
        handle = await sweep(table)

        async def some_are_done() -> bool:
            return len(await table.outbox()) <= 340

        await until(some_are_done)
        assert time.monotonic() - started >= 1
        assert (await sweep_status(handle)).rate == 40
        await handle.cancel()


async def test_a_rate_ends_with_the_work_it_was_set_for(site: Site) -> None:
    table = await filled(site, 10)
    await site.run("SELECT evervec.throttle(%s, 1000)", table.source)
    async with site.working():
        await ended(await sweep(table))
    assert await site.value("SELECT rate FROM evervec.source WHERE name = %s", table.source) is None
    for rate in (0, -1, "NaN", "Infinity"):
        with pytest.raises(psycopg.errors.InvalidParameterValue, match="a rate is a number"):
            await site.run("SELECT evervec.throttle(%s, %s)", table.source, rate)
    with pytest.raises(psycopg.errors.NoDataFound):
        await site.run("SELECT evervec.throttle('no such source', 1)")


async def test_sources_are_swept_side_by_side(site: Site) -> None:
    tables = [await filled(site, 500) for _ in range(3)]
    await site.run("SELECT evervec.throttle(%s, 20)", tables[0].source)
    async with site.working():
        handles = [await sweep(table) for table in tables]
        for handle, table in zip(handles[1:], tables[1:], strict=True):
            await ended(handle)
            await table.fresh()
        assert await tables[0].outbox()
        await handles[0].cancel()


async def test_a_page_holds_what_may_be_taken_now(site: Site) -> None:
    table = await filled(site, 5)
    ages = (
        "UPDATE evervec.outbox SET queued_at = now() - %s::interval, due_at = now() - %s::interval WHERE item_key = %s"
    )
    await site.run(ages, "10 min", "9 min", "1")  # quiet for long enough
    await site.run(ages, "10 min", "1 min", "2")  # edited not long ago
    await site.run(ages, "90 min", "1 min", "3")  # edited all the time
    failure = "SELECT evervec.record_failures(%s, ARRAY[%s], ARRAY[version], ARRAY['x'], 5) FROM evervec.outbox "
    failed_now = (
        "SELECT due_at - make_interval(secs => %s) BETWEEN %s AND clock_timestamp() "
        "FROM evervec.outbox WHERE item_key = %s"
    )
    for key, attempts, delay in (("4", 1, 1), ("5", 3, 4)):
        for _ in range(attempts):
            before = await site.value("SELECT clock_timestamp()")
            await site.run(failure + "WHERE item_key = %s", table.source, key, key)
        assert await site.value(failed_now, delay, before, key)
    # A minute later than that, so that it is not yet come when the pages are asked for.
    await site.run("UPDATE evervec.outbox SET due_at = due_at + interval '1 min' WHERE attempts > 0")
    page = "SELECT item_keys, wait_seconds FROM evervec.sweep_page(%s, %s, 10, '5 min', '60 min')"
    assert await site.run(page, table.source, None) == [(["1", "3"], None)]
    assert await site.run(page, table.source, "1") == [(["3"], None)]
    assert await site.run(page, table.source, "3") == [([], None)]
    await table.do("DELETE FROM {t} WHERE id IN (1, 3)")
    [(keys, wait)] = await site.run(page, table.source, None)
    assert keys == []
    assert 0 < wait < 61.5
    await table.do("DELETE FROM {t}")
    assert await site.run(page, table.source, None) == [([], None)]


async def test_the_safety_net_finds_sources_in_which_something_waits_for_long(site: Site) -> None:
    old, young, paused, failing = [await filled(site, 2) for _ in range(4)]
    aged = "UPDATE evervec.outbox SET queued_at = queued_at - interval '1 hour' WHERE source = ANY (%s)"
    await site.run(aged, [old.source, paused.source, failing.source])
    await site.run("SELECT evervec.pause(%s)", paused.source)
    await site.run(
        "SELECT evervec.record_failures(source, array_agg(item_key), array_agg(version), array_agg('x'::text), 5) "
        "FROM evervec.outbox WHERE source = %s GROUP BY source",
        failing.source,
    )
    # Its next attempt is due in a second: in an hour and a second, however long this takes.
    await site.run("UPDATE evervec.outbox SET due_at = due_at + interval '1 hour' WHERE source = %s", failing.source)
    assert young.source
    assert await site.run("SELECT evervec.sources_waiting('1 minute')") == [(old.source,)]


@pytest.mark.long
async def test_what_a_killed_worker_had_in_hand_is_done_by_another(site: Site, tmp_path: Path) -> None:
    table = await filled(site, 5000)
    first = Program("worker", site.settings, tmp_path / "first.log")
    async with programs(first):
        await first.logged("worker ready")
        handle = await sweep(table)

        async def begun() -> bool:
            return len(await table.outbox()) < 4500

        await until(begun)
        await first.end(signal.SIGKILL)
        async with site.working():
            await ended(handle)
            await table.fresh()
