"""`python -m tests.chaos.soak`: edits for a long time, and nothing grows that should not."""

import argparse
import asyncio
import statistics
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path

import psutil
import psycopg
from rich.console import Console
from rich.table import Table
from temporalio.client import Client

from tests.chaos.__main__ import prepare, stoppable
from tests.chaos.site import TABLES, Site, temporary_folder
from tests.integration.pipeline import until

ITEMS = 200
"""In each table: an item is edited every few seconds."""
LOOK_SECONDS = 5.0
WARM_UP_MINUTES = 2
LEAST_MINUTES = 4
MOST_GROWTH = 0.05
SETTLE_SECONDS = 120.0
LONGEST_HISTORY = 10_240
"""Events: from here on Temporal warns; at 51,200 it ends the workflow."""
LARGEST_HISTORY = 10_000_000
"""Bytes: the same."""

Say = Callable[[str], None]


@dataclass
class Minute:
    """What was seen in a minute, the median of several looks; bytes."""

    listener: list[int] = field(default_factory=list)
    worker: list[int] = field(default_factory=list)
    pending: list[int] = field(default_factory=list)
    edits: int = 0


@dataclass
class Soak:
    """What came of it."""

    minutes: list[Minute] = field(default_factory=list)
    left: int = -1
    """Items that still wait in the end."""
    histories: int = 0
    longest_history: int = 0
    largest_history: int = 0

    def growth(self, name: str) -> float:
        """Of a process's memory, from the end of the warm-up to the last minute, as a share."""
        first, last = self.minutes[WARM_UP_MINUTES], self.minutes[-1]
        return float(statistics.median(getattr(last, name)) / statistics.median(getattr(first, name)) - 1)

    @property
    def wrong(self) -> list[str]:
        """All that is not as it should be."""
        wrong = [
            f"the {n} grew by {self.growth(n):.1%}" for n in ("listener", "worker") if self.growth(n) > MOST_GROWTH
        ]
        if self.left:
            wrong.append(f"{self.left} items still wait")
        if self.longest_history > LONGEST_HISTORY or self.largest_history > LARGEST_HISTORY:
            wrong.append(f"a history of {self.longest_history} events, one of {self.largest_history} bytes")
        return wrong


async def soak(minutes: int, rate: float, folder: Path, say: Say) -> Soak:
    """Edit, look, and edit on."""
    found = Soak()
    async with Site.open(TABLES, folder) as site:
        await _fill(site)
        for post in (site.listeners[0], site.workers[0]):
            post.open()
            await post.ready()
        await _settle(site)
        edits = count()
        editor = asyncio.create_task(_edit(site, rate, edits))
        for number in range(1, minutes + 1):
            before = next(edits)
            minute = await _watch(site)
            minute.edits = next(edits) - before
            found.minutes.append(minute)
            say(f"minute {number}: {_line(minute)}")
            if editor.done():
                break
        editor.cancel()
        await asyncio.gather(editor, return_exceptions=True)
        await _settle(site)
        found.left = await site.pending()
        await _look_at_histories(site, found)
    return found


async def _settle(site: Site) -> None:
    async def settled() -> bool:
        return await site.pending() == 0

    with suppress(TimeoutError):
        await until(settled, SETTLE_SECONDS)


async def _fill(site: Site) -> None:
    for table in site.tables:
        await site.run(f"INSERT INTO {table.name} SELECT n, 'item ' || n FROM generate_series(1, {ITEMS}) AS n")


async def _edit(site: Site, rate: float, edits: "count[int]") -> None:
    """An edit after the other, so many a second, of all items in turn."""
    due = time.monotonic()
    async with await psycopg.AsyncConnection.connect(site.conninfo, autocommit=True) as connection:
        for number in edits:
            table = site.tables[number % len(site.tables)]
            await connection.execute(
                f"UPDATE {table.name} SET name = %s WHERE id = %s",
                (f"edit {number} of an item", number // len(site.tables) % ITEMS + 1),
            )
            due += 1 / rate
            await asyncio.sleep(max(0.0, due - time.monotonic()))


async def _watch(site: Site) -> Minute:
    minute, end = Minute(), time.monotonic() + 60
    listener, worker = (psutil.Process(post.pid) for post in (site.listeners[0], site.workers[0]))
    while time.monotonic() < end:
        minute.listener.append(listener.memory_info().rss)
        minute.worker.append(worker.memory_info().rss)
        minute.pending.append(await site.pending())
        await asyncio.sleep(LOOK_SECONDS)
    return minute


async def _look_at_histories(site: Site, found: Soak) -> None:
    client = await Client.connect(site.temporal.address)
    async for workflow in client.list_workflows():
        description = await client.get_workflow_handle(workflow.id, run_id=workflow.run_id).describe()
        info = description.raw_description.workflow_execution_info
        found.histories += 1
        found.longest_history = max(found.longest_history, info.history_length)
        found.largest_history = max(found.largest_history, info.history_size_bytes)


def _line(minute: Minute) -> str:
    listener, worker = (statistics.median(sizes) / 1e6 for sizes in (minute.listener, minute.worker))
    return (
        f"listener {listener:.1f} MB, worker {worker:.1f} MB, "
        f"{statistics.median(minute.pending):.0f} pending (at most {max(minute.pending)}), {minute.edits} edits"
    )


def _tell(found: Soak, console: Console) -> None:
    table = Table(title=f"{len(found.minutes)} minutes, {sum(minute.edits for minute in found.minutes)} edits")
    for name in ("", "after 2 minutes, MB", "at the end, MB", "growth"):
        table.add_column(name, justify="left" if not name else "right")
    for name in ("listener", "worker"):
        first, last = (
            statistics.median(getattr(minute, name)) / 1e6
            for minute in (found.minutes[WARM_UP_MINUTES], found.minutes[-1])
        )
        table.add_row(name, f"{first:.1f}", f"{last:.1f}", f"{found.growth(name):+.1%}")
    console.print(table)
    console.print(
        f"{found.left} items wait in the end; {found.histories} histories, the longest of {found.longest_history} "
        f"events, the largest of {found.largest_history / 1e6:.2f} MB"
    )
    for line in found.wrong:
        console.print(f"WRONG: {line}", style="red", markup=False)


def main() -> None:
    """Run it; exit 1 when something is wrong."""
    parser = argparse.ArgumentParser(prog="python -m tests.chaos.soak", description=__doc__)
    parser.add_argument("--minutes", type=int, default=20, help=f"at least {LEAST_MINUTES}")
    parser.add_argument("--rate", type=float, default=20.0, help="edits a second")
    arguments = parser.parse_args()
    prepare()
    console = Console(highlight=False, width=100)
    with temporary_folder() as folder:
        minutes = max(LEAST_MINUTES, arguments.minutes)
        found = asyncio.run(stoppable(soak(minutes, arguments.rate, folder, console.print)))
        _tell(found, console)
    sys.exit(1 if found.wrong else 0)


if __name__ == "__main__":
    main()
