"""Records histories of the present version: `python -m tests.histories.record [NAME…]`."""

import asyncio
import os
import shutil
import socket
import sys
from collections.abc import Awaitable, Callable, Collection, Iterable
from pathlib import Path
from typing import Any, TypeVar

from temporalio.client import WorkflowHistory
from temporalio.testing import WorkflowEnvironment

from evervec import __version__
from evervec.errors import DimensionError, SourceNotFoundError
from evervec.messages import ITEM_HELD_UP_SIGNAL, ItemEmbeddingRequest, ItemEmbeddingResult, Outcome
from tests.integration.sweep_lab import SweepLab, sweep_lab, sweep_status
from tests.integration.temporal_lab import (
    Handle,
    Lab,
    answered,
    closed_as,
    lab,
    new_key,
    until,
    until_rounds,
)
from workflows.sweep import LANES

Scenario = TypeVar("Scenario", bound=Callable[[Any], Awaitable[Handle]])

FOLDER = Path(__file__).parent
SUGGEST_CONTINUE_AS_NEW = "limit.historyCount.suggestContinueAsNew=150"


async def as_the_hash_says(request: ItemEmbeddingRequest) -> ItemEmbeddingResult:
    """The hash of each change names what becomes of it."""
    match request.content_hash:
        case "misfit":
            raise DimensionError
        case "stuck":
            await asyncio.Event().wait()
    return answered(request, Outcome(request.content_hash or Outcome.EMBEDDED))


async def edits(bench: Lab) -> Handle:
    """An item's life: each outcome once, an error that no retry helps, forced work; it runs still."""
    key = new_key()
    changes = [
        "embedded",
        "unchanged",
        "failed",
        "embedded",
        "paused",
        "superseded",
        "misfit",
        "ineligible",
        "embedded",
    ]
    for rounds, change in enumerate(changes, start=1):
        handle = await bench.change(key, change, force=rounds % 2 == 0)
        await until_rounds(handle, rounds)
    return handle


async def changes_during_a_round(bench: Lab) -> Handle:
    """Several changes that wait for the same next round."""
    key = new_key()
    handle = await bench.change(key, "embedded")
    for _ in range(5):
        await bench.change(key, "embedded")
    await until_rounds(handle, 2)
    return handle


async def state_at_rest(bench: Lab) -> Handle:
    """A state that is shown only when a round has ended with another one; the workflow runs still."""
    key = new_key()
    for rounds, change in enumerate(["embedded", "embedded", "failed", "embedded", "paused", "embedded"], start=1):
        handle = await bench.change(key, change)
        await until_rounds(handle, rounds)
    return handle


async def state_not_shown(bench: Lab) -> Handle:
    """The same where the namespace does not know the attributes."""
    key = new_key()
    for rounds, change in enumerate(["embedded", "failed", "embedded"], start=1):
        handle = await bench.change(key, change, searchable=False)
        await until_rounds(handle, rounds)
    return handle


async def held_up(bench: Lab) -> Handle:
    """A round that does not end, of which the activity tells; the workflow runs still."""
    key = new_key()
    handle = await bench.change(key, "embedded")
    await until_rounds(handle, 1)
    await bench.change(key, "stuck")
    await until(lambda: len(bench.activity.requests) == 2)
    await handle.signal(ITEM_HELD_UP_SIGNAL)

    async def shown() -> bool:
        return "pending" in str((await handle.describe()).typed_search_attributes)

    await until(shown)
    return handle


async def gone(bench: Lab) -> Handle:
    """The end of a deleted item."""
    handle = await bench.change(new_key(), "gone")
    await handle.result()
    return handle


async def idle(bench: Lab) -> Handle:
    """An edit, and the end after the idle time, counted from the edit."""
    key = new_key()
    handle = await bench.change_impatient(key, "embedded", 2)
    await until_rounds(handle, 1)
    await bench.change_impatient(key, "embedded", 2)
    await handle.result()
    return handle


async def cancelled(bench: Lab) -> Handle:
    """Cancelled in the middle of a round."""
    handle = await bench.change(new_key(), "stuck")
    await until(lambda: bool(bench.activity.requests))
    await handle.cancel()

    async def closed() -> bool:
        return await closed_as(handle) is not None

    await until(closed)
    return handle


async def continued_after_its_rounds(bench: Lab) -> Handle:
    """The first of two runs."""
    key, rounds = new_key(), 1
    handle = await bench.change(key, "embedded")
    while (await handle.describe()).run_id == handle.result_run_id:
        await until_rounds(handle, rounds)
        await bench.change(key, "embedded")
        rounds += 1
    return await _first_run(bench, handle)


async def continued_during_a_round(bench: Lab) -> Handle:
    """The first of two runs, begun again while its round goes on."""
    key = new_key()
    handle = await bench.change(key, "stuck")
    while (await handle.describe()).run_id == handle.result_run_id:
        await bench.change(key, "stuck")
    return await _first_run(bench, handle)


async def _first_run(bench: Lab | SweepLab, handle: Handle) -> Handle:
    first = (await handle.describe()).raw_description.workflow_execution_info.first_run_id
    return bench.client.get_workflow_handle(handle.id, run_id=first)


async def sweep_with_all_turns(bench: SweepLab) -> Handle:
    """A rate that is lifted, items that are locked for a while, others that are not due, a signal, and the end."""
    outbox = bench.outbox
    outbox.fill(1500)
    outbox.items |= {"locked": Outcome.LOCKED}
    outbox.rate = 40
    handle = await bench.sweep()
    await until(lambda: len(outbox.batches) == 2)
    outbox.rate = None
    await until(lambda: [*outbox.items] == ["locked"])
    passes = len(outbox.fetches)
    await until(lambda: len(outbox.fetches) > passes + 2)
    outbox.items.clear()
    outbox.wait_seconds = 0.5
    await bench.sweep()
    passes = len(outbox.fetches)
    await until(lambda: len(outbox.fetches) > passes + 1)
    outbox.wait_seconds = None
    await handle.result()
    return handle


async def sweep_paused(bench: SweepLab) -> Handle:
    """A source that is paused in the middle."""
    bench.outbox.fill(2000)
    bench.outbox.rate = 20
    handle = await bench.sweep()
    await bench.outbox.on_batch.wait()
    bench.outbox.paused = True
    await handle.result()
    return handle


async def sweep_of_a_misfit(bench: SweepLab) -> Handle:
    """An error that no retry helps, a signal after it was put right, and a source that is unwatched then."""
    outbox = bench.outbox
    outbox.fill(10)
    outbox.error = DimensionError()
    handle = await bench.sweep()

    async def told() -> bool:
        return (await sweep_status(handle)).last_error is not None

    await until(told)
    outbox.error = SourceNotFoundError("items")
    await bench.sweep()
    await handle.result()
    return handle


async def sweep_cancelled(bench: SweepLab) -> Handle:
    """Cancelled while batches run."""
    bench.outbox.fill(1000)
    bench.outbox.stuck = True
    handle = await bench.sweep()
    await until(lambda: len(bench.outbox.batches) == LANES)
    await handle.cancel()

    async def closed() -> bool:
        return await closed_as(handle) is not None

    await until(closed)
    return handle


async def sweep_continued(bench: SweepLab) -> Handle:
    """The first of several runs, begun again in the middle of a pass."""
    bench.outbox.fill(5000)
    bench.outbox.rate = 20
    handle = await bench.sweep()

    async def continued() -> bool:
        return (await bench.client.get_workflow_handle(handle.id).describe()).run_id != handle.result_run_id

    await until(continued)
    bench.outbox.rate = None
    await bench.sweep()
    await bench.client.get_workflow_handle(handle.id).result()
    assert not bench.outbox.items
    return await _first_run(bench, handle)


async def safety_net(bench: SweepLab) -> Handle:
    """One sweep that is open already, one that is not."""
    bench.outbox.items = {"first": Outcome.LOCKED, "second": Outcome.LOCKED}
    await bench.sweep("first")
    handle = await bench.safety_net()
    await handle.result()
    return handle


SCENARIOS: list[Callable[[Lab], Awaitable[Handle]]] = [
    edits,
    changes_during_a_round,
    state_at_rest,
    state_not_shown,
    held_up,
    gone,
    idle,
    cancelled,
    continued_after_its_rounds,
    continued_during_a_round,
]
SWEEPS: list[Callable[[SweepLab], Awaitable[Handle]]] = [
    sweep_with_all_turns,
    sweep_paused,
    sweep_of_a_misfit,
    sweep_cancelled,
    sweep_continued,
    safety_net,
]


async def record(names: Collection[str]) -> None:
    """Play the scenarios of these names, or all, and write their histories."""
    folder = FOLDER / __version__
    folder.mkdir(exist_ok=True)
    beside = Path(sys.executable).with_name("temporal")
    async with await WorkflowEnvironment.start_local(
        dev_server_existing_path=str(beside) if beside.exists() else shutil.which("temporal"),
        dev_server_extra_args=["--dynamic-config-value", SUGGEST_CONTINUE_AS_NEW],
    ) as environment:
        address = environment.client.service_client.config.target_host
        for scenario in _named(SCENARIOS, names):
            async with lab(address, as_the_hash_says) as bench:
                _write(folder / f"{scenario.__name__}.json", await (await scenario(bench)).fetch_history())
        for sweep in _named(SWEEPS, names):
            async with sweep_lab(address) as sweeps:
                _write(folder / f"{sweep.__name__}.json", await (await sweep(sweeps)).fetch_history())


def _named(scenarios: Iterable[Scenario], names: Collection[str]) -> list[Scenario]:
    return [scenario for scenario in scenarios if not names or scenario.__name__ in names]


def _write(path: Path, history: WorkflowHistory) -> None:
    text = history.to_json().replace(f"{os.getpid()}@{socket.gethostname()}", "recorder")
    path.write_text(text, encoding="utf-8")
    print(f"{path.stem}: {len(history.events)} events")  # noqa: T201


if __name__ == "__main__":
    asyncio.run(record(sys.argv[1:]))
