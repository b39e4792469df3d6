"""The item's workflow on a real server, its activity played by the test."""

import asyncio
import json

import pytest
from temporalio.client import WorkflowExecutionStatus
from temporalio.exceptions import ApplicationError

from evervec.errors import ConfigurationError, DimensionError, SourceNotFoundError
from evervec.messages import ItemEmbeddingRequest, ItemEmbeddingResult, ItemWorkflowState, Outcome
from tests.integration.temporal_lab import (
    SOURCE,
    answered,
    closed_as,
    history_length,
    lab,
    new_key,
    status_of,
    until,
    until_rounds,
)
from workflows.item import MOST_ROUNDS

EVENT_BUDGET = 10


async def test_a_change_is_embedded_and_told_by_query(temporal_address: str) -> None:
    async with lab(temporal_address) as bench:
        key = new_key()
        handle = await bench.change(key, "hash-1")
        status = await until_rounds(handle, 1)
        assert bench.activity.requests == [ItemEmbeddingRequest(source=SOURCE, item_key=key, content_hash="hash-1")]
        assert (status.source, status.item_key, status.content_hash) == (SOURCE, key, "hash-1")
        assert (status.state, status.last_outcome) == (ItemWorkflowState.FRESH, Outcome.EMBEDDED)
        assert await closed_as(handle) is None


async def test_changes_during_a_round_become_one_more(temporal_address: str) -> None:
    release = asyncio.Event()

    async def slow(request: ItemEmbeddingRequest) -> ItemEmbeddingResult:
        await release.wait()
        return answered(request)

    async with lab(temporal_address, slow) as bench:
        key = new_key()
        handle = await bench.change(key, "hash-0")
        await until(lambda: bool(bench.activity.requests))
        for number in range(1, 20):
            await bench.change(key, f"hash-{number}")
        release.set()
        status = await until_rounds(handle, 2)
        assert [request.content_hash for request in bench.activity.requests] == ["hash-0", "hash-19"]
        assert status.content_hash == "hash-19"


async def test_an_edit_costs_few_history_events(temporal_address: str) -> None:
    async with lab(temporal_address) as bench:
        key = new_key()
        handle = await bench.change(key, "hash-0")
        await until_rounds(handle, 1)
        before = await history_length(handle)
        edits = MOST_ROUNDS - 1
        for number in range(1, edits + 1):
            await bench.change(key, f"hash-{number}")
            await until_rounds(handle, 1 + number)
        events = (await history_length(handle) - before) / edits
        print(f"history events of one live edit of an item whose workflow exists: {events:g}")  # noqa: T201
        assert events <= EVENT_BUDGET


async def test_a_run_has_few_rounds_and_the_next_one_goes_on(temporal_address: str) -> None:
    async with lab(temporal_address) as bench:
        key = new_key()
        for number in range(MOST_ROUNDS):
            handle = await bench.change(key, f"hash-{number}")
            await until_rounds(handle, number + 1)
        first = (await handle.describe()).run_id
        assert (await handle.describe()).raw_description.workflow_execution_info.first_run_id == first
        handle = await bench.change(key, "hash-last")
        status = await until_rounds(handle, MOST_ROUNDS + 1)
        assert (await handle.describe()).run_id != first
        assert (status.content_hash, status.rounds) == ("hash-last", MOST_ROUNDS + 1)
        assert await history_length(handle) < 2 * EVENT_BUDGET
        assert len(bench.activity.requests) == MOST_ROUNDS + 1


async def test_states_can_be_listed(temporal_address: str) -> None:
    outcome = Outcome.EMBEDDED

    async def as_told(request: ItemEmbeddingRequest) -> ItemEmbeddingResult:
        return answered(request, outcome)

    async with lab(temporal_address, as_told) as bench:
        key = new_key()
        handle = await bench.change(key, "hash-1")

        async def listed_as(state: ItemWorkflowState) -> bool:
            found = bench.client.list_workflows(
                f"WorkflowId = '{handle.id}' AND EvervecSource = '{SOURCE}' AND EvervecState = '{state.value}'"
            )
            return [entry.id async for entry in found] == [handle.id]

        await until(lambda: listed_as(ItemWorkflowState.FRESH))
        outcome = Outcome.FAILED
        await bench.change(key, "hash-2")
        await until(lambda: listed_as(ItemWorkflowState.FAILED))
        outcome = Outcome.PAUSED
        await bench.change(key, "hash-3")
        await until(lambda: listed_as(ItemWorkflowState.PENDING))


async def test_a_workflow_says_in_a_line_what_it_is_for(temporal_address: str) -> None:
    async with lab(temporal_address) as bench:
        key = f"<script>alert(1)</script>\n{new_key()}{'ü' * 200}"
        handle = await bench.change(key, "hash-1")
        description = await handle.describe()
        summary = await description.static_summary()
        assert summary is not None
        assert summary.startswith(f"keeps item <script>alert(1)</script> {key.split()[1][:32]}")
        assert summary.endswith("…")
        assert "evervec item" in (await description.static_details() or "")


async def test_it_ends_when_the_item_is_gone_and_a_later_change_starts_it_again(temporal_address: str) -> None:
    outcome = Outcome.GONE

    async def as_told(request: ItemEmbeddingRequest) -> ItemEmbeddingResult:
        return answered(request, outcome)

    async with lab(temporal_address, as_told) as bench:
        key = new_key()
        handle = await bench.change(key, "hash-1")
        await handle.result()
        outcome = Outcome.EMBEDDED
        again = await bench.change(key, "hash-2")
        status = await until_rounds(again, 1)
        assert (status.rounds, status.state) == (1, ItemWorkflowState.FRESH)


async def test_a_change_that_comes_while_a_gone_item_is_read_is_not_lost(temporal_address: str) -> None:
    release = asyncio.Event()

    async def gone_at_first(request: ItemEmbeddingRequest) -> ItemEmbeddingResult:
        if request.content_hash == "back":
            return answered(request)
        await release.wait()
        return answered(request, Outcome.GONE)

    async with lab(temporal_address, gone_at_first) as bench:
        key = new_key()
        handle = await bench.change(key, "gone")
        await until(lambda: bool(bench.activity.requests))
        await bench.change(key, "back")
        release.set()
        assert (await until_rounds(handle, 2)).content_hash == "back"


async def test_a_failed_item_waits_for_its_next_edit(temporal_address: str) -> None:
    async def bad_at_first(request: ItemEmbeddingRequest) -> ItemEmbeddingResult:
        if request.content_hash == "good":
            return answered(request)
        return ItemEmbeddingResult(item_key=request.item_key, outcome=Outcome.FAILED, error_message="BadItemError")

    async with lab(temporal_address, bad_at_first) as bench:
        key = new_key()
        handle = await bench.change(key, "bad")
        status = await until_rounds(handle, 1)
        assert (status.state, status.last_error) == (ItemWorkflowState.FAILED, "BadItemError")
        await bench.change(key, "good")
        status = await until_rounds(handle, 2)
        assert (status.state, status.last_error) == (ItemWorkflowState.FRESH, None)


@pytest.mark.parametrize("error", [DimensionError("768 is not 512"), ConfigurationError("a blank setting")])
async def test_an_error_that_no_retry_helps_leaves_it_pending(temporal_address: str, error: ConfigurationError) -> None:
    async def misconfigured(request: ItemEmbeddingRequest) -> ItemEmbeddingResult:
        if request.content_hash == "good":
            return answered(request)
        raise error

    async with lab(temporal_address, misconfigured) as bench:
        key = new_key()
        handle = await bench.change(key, "too early")
        status = await until_rounds(handle, 1)
        assert (status.state, status.last_error) == (ItemWorkflowState.PENDING, str(error))
        assert await closed_as(handle) is None
        await bench.change(key, "good")
        assert (await until_rounds(handle, 2)).state is ItemWorkflowState.FRESH


async def test_it_ends_when_its_source_is_no_longer_watched(temporal_address: str) -> None:
    async def unwatched(request: ItemEmbeddingRequest) -> ItemEmbeddingResult:
        raise SourceNotFoundError(request.source)

    async with lab(temporal_address, unwatched) as bench:
        handle = await bench.change(new_key(), "hash-1")
        await handle.result()
        assert len(bench.activity.requests) == 1


async def test_what_was_forced_while_paused_is_forced_afterwards(temporal_address: str) -> None:
    outcome = Outcome.PAUSED

    async def as_told(request: ItemEmbeddingRequest) -> ItemEmbeddingResult:
        return answered(request, outcome)

    async with lab(temporal_address, as_told) as bench:
        key = new_key()
        handle = await bench.change(key, "hash-1", force=True)
        assert (await until_rounds(handle, 1)).state is ItemWorkflowState.PENDING
        outcome = Outcome.EMBEDDED
        for rounds in (2, 3):
            await bench.change(key, "hash-1")
            await until_rounds(handle, rounds)
        assert [request.force_regenerate for request in bench.activity.requests] == [True, True, False]


async def test_attempts_are_repeated_until_one_succeeds(temporal_address: str) -> None:
    async def second_time(request: ItemEmbeddingRequest) -> ItemEmbeddingResult:
        if len(bench.activity.requests) < 2:
            raise OSError
        return answered(request)

    async with lab(temporal_address, second_time) as bench:
        handle = await bench.change(new_key(), "hash-1")
        assert (await until_rounds(handle, 1)).state is ItemWorkflowState.FRESH


async def test_it_can_be_cancelled_in_the_middle_of_a_round(temporal_address: str) -> None:
    async def never(_request: ItemEmbeddingRequest) -> ItemEmbeddingResult:
        await asyncio.Event().wait()
        raise AssertionError

    async with lab(temporal_address, never) as bench:
        handle = await bench.change(new_key(), "hash-1")
        await until(lambda: bool(bench.activity.requests))
        await handle.cancel()

        async def cancelled() -> bool:
            return await closed_as(handle) is WorkflowExecutionStatus.CANCELED

        await until(cancelled)


@pytest.mark.parametrize("kind", [ValueError, ApplicationError])
async def test_no_word_of_an_error_gets_into_the_history(temporal_address: str, kind: type[Exception]) -> None:
    canary = "CANARY-7f3a"
    looked = asyncio.Event()

    async def tells_all(request: ItemEmbeddingRequest) -> ItemEmbeddingResult:
        if len(bench.activity.requests) > 1:
            await looked.wait()
            return answered(request)
        raise kind(f"not stored: {canary}") from ValueError(f"DETAIL: Failing row contains ({canary}).")

    async with lab(temporal_address, tells_all) as bench:
        handle = await bench.change(new_key(), "hash-1")
        await until(lambda: bool(bench.activity.requests))

        async def retrying() -> bool:
            pending = (await handle.describe()).raw_description.pending_activities
            return any(entry.HasField("last_failure") for entry in pending)

        await until(retrying)
        pending = (await handle.describe()).raw_description
        looked.set()
        await until_rounds(handle, 1)
        history = await handle.fetch_history()
        assert kind.__name__ in str(pending)
        assert canary not in str(pending)
        assert kind.__name__ in history.to_json()
        assert canary not in json.dumps(history.to_json_dict())


async def test_a_query_is_answered_after_the_end(temporal_address: str) -> None:
    async def gone(request: ItemEmbeddingRequest) -> ItemEmbeddingResult:
        return answered(request, Outcome.GONE)

    async with lab(temporal_address, gone) as bench:
        handle = await bench.change(new_key(), "hash-1")
        await handle.result()
        assert (await status_of(handle)).last_outcome is Outcome.GONE
