"""The sweep's workflow and the safety net on a real server, their activities played by the test."""

import asyncio

import pytest
from temporalio.api.enums.v1 import EventType
from temporalio.client import WorkflowExecutionStatus

from evervec.errors import DimensionError, SourceNotFoundError
from evervec.messages import Outcome
from tests.integration.sweep_lab import sweep_lab, sweep_status
from tests.integration.temporal_lab import WAIT_SECONDS, closed_as, until
from workflows import sweep


async def test_every_key_is_taken_once_and_few_events_are_written(temporal_address: str) -> None:
    async with sweep_lab(temporal_address) as bench:
        bench.outbox.fill(5000)
        handle = await bench.sweep()
        await asyncio.wait_for(handle.result(), WAIT_SECONDS)
        taken = [key for batch in bench.outbox.batches for key in batch.item_keys]
        assert sorted(taken) == [f"{number:06}" for number in range(5000)]
        assert max(len(batch.item_keys) for batch in bench.outbox.batches) == sweep.LARGEST_BATCH
        status = await sweep_status(handle)
        assert (status.items, status.embedded, status.pass_number) == (5000, 5000, 2)
        assert status.items_per_second > 0
        assert (await handle.describe()).history_length / 5000 < 0.05


async def test_a_signal_that_comes_with_the_last_answer_is_not_lost(temporal_address: str) -> None:
    async with sweep_lab(temporal_address) as bench:
        bench.outbox.fill(1)
        await bench.sweep()
        await bench.outbox.on_batch.wait()
        for number in range(20):
            bench.outbox.items[f"late {number}"] = Outcome.EMBEDDED
            await bench.sweep()
        await until(lambda: not bench.outbox.items)


async def test_a_rate_that_changes_meanwhile_is_followed(temporal_address: str) -> None:
    async with sweep_lab(temporal_address) as bench:
        bench.outbox.fill(2000)
        bench.outbox.rate = 20
        handle = await bench.sweep()
        await until(lambda: len(bench.outbox.batches) > 2)
        bench.outbox.rate = None
        await asyncio.wait_for(handle.result(), WAIT_SECONDS)
        sizes = [(batch.rate, len(batch.item_keys)) for batch in bench.outbox.batches]
        assert sizes[1:3] == [(20.0, 100)] * 2
        assert sizes[-2][0] is None
        assert sum(size for _, size in sizes) == 2000


async def test_it_rests_while_all_is_locked_and_a_signal_wakes_it(temporal_address: str) -> None:
    async with sweep_lab(temporal_address) as bench:
        bench.outbox.fill(3, Outcome.LOCKED)
        handle = await bench.sweep()
        await until(lambda: len(bench.outbox.batches) == 3)  # at once, after 1 s, after 2 more; then it rests for 4
        bench.outbox.fill(3)
        await bench.sweep()
        await asyncio.wait_for(handle.result(), WAIT_SECONDS)
        status = await sweep_status(handle)
        assert (status.embedded, status.locked) == (3, 9)
        events = (await handle.fetch_history()).events
        rests_over = [event for event in events if event.event_type == EventType.EVENT_TYPE_TIMER_FIRED]
        assert len(rests_over) == 2  # the signal ended the third rest, or came before it


async def test_it_waits_for_what_is_not_due_yet(temporal_address: str) -> None:
    async with sweep_lab(temporal_address) as bench:
        bench.outbox.wait_seconds = 0.3
        handle = await bench.sweep()
        await until(lambda: len(bench.outbox.fetches) >= 2)
        bench.outbox.fill(1)
        bench.outbox.wait_seconds = None
        await asyncio.wait_for(handle.result(), WAIT_SECONDS)
        assert not bench.outbox.items
        assert len(bench.outbox.fetches) < 10


@pytest.mark.parametrize("why", ["paused", "unwatched"])
async def test_it_ends_where_there_is_nothing_to_be_done(temporal_address: str, why: str) -> None:
    async with sweep_lab(temporal_address) as bench:
        bench.outbox.fill(10)
        bench.outbox.paused = why == "paused"
        bench.outbox.error = SourceNotFoundError("items") if why == "unwatched" else None
        handle = await bench.sweep()
        await asyncio.wait_for(handle.result(), WAIT_SECONDS)
        assert len(bench.outbox.batches) == (why == "unwatched")


async def test_what_no_retry_helps_is_told_and_waits_for_a_signal(temporal_address: str) -> None:
    async with sweep_lab(temporal_address) as bench:
        bench.outbox.fill(10)
        bench.outbox.error = DimensionError("768 is not 512")
        handle = await bench.sweep()

        async def told() -> bool:
            return (await sweep_status(handle)).last_error == "768 is not 512"

        await until(told)
        assert len(bench.outbox.batches) == 1
        bench.outbox.error = None
        await bench.sweep()
        await asyncio.wait_for(handle.result(), WAIT_SECONDS)
        assert not bench.outbox.items


async def test_it_can_be_cancelled_in_the_middle_and_begun_again(temporal_address: str) -> None:
    async with sweep_lab(temporal_address) as bench:
        bench.outbox.fill(1000)
        bench.outbox.stuck = True
        handle = await bench.sweep()
        await until(lambda: len(bench.outbox.batches) == sweep.LANES)
        await handle.cancel()

        async def cancelled() -> bool:
            return await closed_as(handle) is WorkflowExecutionStatus.CANCELED

        await until(cancelled)
        bench.outbox.stuck = False
        again = await bench.sweep()
        await asyncio.wait_for(again.result(), WAIT_SECONDS)
        assert not bench.outbox.items


async def test_the_safety_net_starts_the_sweeps_that_are_not_open(temporal_address: str) -> None:
    async with sweep_lab(temporal_address) as bench:
        bench.outbox.items = {"first": Outcome.LOCKED, "second": Outcome.LOCKED}
        open_one = await bench.sweep("first")
        run_id = (await open_one.describe()).run_id
        await asyncio.wait_for((await bench.safety_net()).result(), WAIT_SECONDS)
        assert (await open_one.describe()).run_id == run_id
        found = bench.client.get_workflow_handle(f"embedding-sweep/{bench.instance}/second")
        assert await closed_as(found) is None
        description = await found.describe()
        assert description.search_attributes["EvervecSource"] == ["second"]
        for handle in (open_one, found):
            await handle.terminate()
