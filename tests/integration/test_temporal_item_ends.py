"""How an item's workflow ends: idle, or continued as new. No change is lost at either end.

These run on a Temporal server of their own: one that suggests continue-as-new early, and can skip time.
"""

import asyncio
import random
import shutil
import sys
from collections.abc import Iterator
from datetime import timedelta
from functools import partial
from pathlib import Path

import pytest
from temporalio.testing import TimeSkipper, WorkflowEnvironment

from evervec.messages import ItemEmbeddingRequest, ItemEmbeddingResult, ItemWorkflowState
from tests.integration.temporal_lab import (
    SOURCE,
    Handle,
    Lab,
    answered,
    closed_as,
    lab,
    new_key,
    status_of,
    until,
    until_rounds,
)

EVENTS_OF_A_RUN = 60
EVENTS_OF_A_ROUND = 12
IDLE_SECONDS = 3600
SHORT_IDLE_SECONDS = 0.1
STARTUP = timedelta(seconds=45)
ITEMS, EDITS = 8, 25


@pytest.fixture(scope="module")
def special_address() -> Iterator[str]:
    """A server with the options that these tests need."""
    options = (
        f"limit.historyCount.suggestContinueAsNew={EVENTS_OF_A_RUN}",
        "frontend.WorkflowTimeSkippingEnabled=true",
    )
    beside = Path(sys.executable).with_name("temporal")

    def start() -> WorkflowEnvironment:
        return asyncio.run(
            WorkflowEnvironment.start_local(
                dev_server_existing_path=str(beside) if beside.exists() else shutil.which("temporal"),
                dev_server_extra_args=[word for option in options for word in ("--dynamic-config-value", option)],
                dev_server_startup_timeout=STARTUP,
            )
        )

    try:
        environment = start()
    except RuntimeError:  # it ends where one of its ports is somebody else's meanwhile: the next one has others
        environment = start()
    yield environment.client.service_client.config.target_host
    asyncio.run(environment.shutdown())


async def is_fresh(handle: Handle) -> bool:
    return (await status_of(handle)).state is ItemWorkflowState.FRESH


async def has_noted(handle: Handle, content_hash: str) -> bool:
    return (await status_of(handle)).content_hash == content_hash


async def test_it_ends_after_the_idle_time(special_address: str) -> None:
    async with lab(special_address, idle_seconds=IDLE_SECONDS) as bench:
        handle = await bench.change(new_key(), "hash-1")
        await until_rounds(handle, 1)
        time = TimeSkipper(bench.client)
        await time.fast_forward(handle, IDLE_SECONDS - 60)
        assert await closed_as(handle) is None
        await time.fast_forward(handle, 120)
        await handle.result()


async def test_an_edit_begins_the_idle_time_anew(special_address: str) -> None:
    async with lab(special_address, idle_seconds=IDLE_SECONDS) as bench:
        key = new_key()
        handle = await bench.change(key, "hash-1")
        await until_rounds(handle, 1)
        time = TimeSkipper(bench.client)
        await time.fast_forward(handle, IDLE_SECONDS / 2)
        await bench.change(key, "hash-2")
        await until_rounds(handle, 2)
        await time.fast_forward(handle, IDLE_SECONDS - 60)
        assert await closed_as(handle) is None
        await time.fast_forward(handle, 120)
        await handle.result()


async def test_no_change_is_lost_at_the_idle_end(special_address: str) -> None:
    runs: set[str | None] = set()

    async def edit_around_the_end(bench: Lab) -> None:
        key = new_key()
        for number in range(EDITS):
            handle = await bench.change_impatient(key, f"hash-{number}", SHORT_IDLE_SECONDS)
            runs.add(handle.result_run_id or handle.first_execution_run_id)
            await until(lambda expected=f"hash-{number}": bench.activity.last_hash(key) == expected)  # type: ignore[misc]
            # Aimed at the moment in which the workflow ends, not a wait for anything.
            await asyncio.sleep(SHORT_IDLE_SECONDS + random.uniform(-0.05, 0.05))

    async with lab(special_address) as bench:
        await asyncio.gather(*(edit_around_the_end(bench) for _ in range(ITEMS)))
        print(f"{len(runs)} runs for {ITEMS * EDITS} edits")  # noqa: T201
        assert len(runs) > 2 * ITEMS


async def test_no_change_is_lost_when_it_continues_as_new(special_address: str) -> None:
    async def quick(request: ItemEmbeddingRequest) -> ItemEmbeddingResult:
        await asyncio.sleep(random.uniform(0, 0.03))
        return answered(request)

    async def edit_without_pause(bench: Lab) -> None:
        key = new_key()

        def is_asked(content_hash: str) -> bool:
            return bench.activity.last_hash(key) == content_hash

        for number in range(80):
            handle = await bench.change(key, f"hash-{number}")
            if number % 4 == 0:  # a round for this one at least, however slow rounds are
                await until(partial(is_asked, f"hash-{number}"))
        await until(partial(is_asked, "hash-79"))
        await until(lambda: is_fresh(handle))
        status = await status_of(handle)
        assert status.content_hash == "hash-79"
        assert status.rounds > EVENTS_OF_A_RUN / EVENTS_OF_A_ROUND, "rounds of earlier runs count"
        description = await handle.describe()
        assert description.run_id != description.raw_description.workflow_execution_info.first_run_id

    async with lab(special_address, quick) as bench:
        await asyncio.gather(*(edit_without_pause(bench) for _ in range(4)))


async def test_signals_during_a_long_retry_do_not_fill_the_history(special_address: str) -> None:
    release = asyncio.Event()

    async def stuck(request: ItemEmbeddingRequest) -> ItemEmbeddingResult:
        await release.wait()
        return answered(request)

    async with lab(special_address, stuck) as bench:
        key = new_key()
        first = await bench.change(key, "hash-0", force=True)
        for number in range(1, 2 * EVENTS_OF_A_RUN):
            handle = await bench.change(key, f"hash-{number}")
            # The history is as long as the worker lets it become: one that is slow must not be left behind.
            await until(partial(has_noted, handle, f"hash-{number}"))
        description = await handle.describe()
        assert description.run_id != first.result_run_id
        assert description.history_length < 1.5 * EVENTS_OF_A_RUN
        release.set()
        await until(lambda: is_fresh(handle))
        assert (await status_of(handle)).content_hash == f"hash-{2 * EVENTS_OF_A_RUN - 1}"
        *repeated, _last = bench.activity.requests
        assert len(repeated) > 1
        assert all(request.force_regenerate for request in repeated), "a round that is begun again is still forced"
        attributes = {pair.key.name: pair.value for pair in (await handle.describe()).typed_search_attributes}
        assert (attributes["EvervecSource"], attributes["EvervecState"]) == (SOURCE, "fresh")
