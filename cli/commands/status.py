"""`evervec status`: how every source stands, once or live."""

import asyncio
import time
from collections import defaultdict
from collections.abc import AsyncIterator
from datetime import UTC, datetime
from typing import Annotated

import typer
from rich.console import Group
from rich.live import Live

from cli.commands.options import AnySource, Json
from cli.output import duration, note, print_json, printable, stdout, table
from cli.pace import Pace
from cli.processes import run_async, run_until_stopped
from cli.session import command_settings, open_sources
from db.sources import SourceStatus
from evervec.errors import ConfigurationError

NOTHING_WATCHED = "nothing is watched yet: `evervec watch TABLE --text a,b` adds a source"
REFRESH_SECONDS = 1.0
NUMBERS = ("total", "eligible", "fresh", "stale", "pending", "failed", "coverage")

Look = list[tuple[SourceStatus, Pace]]


def status(
    source: AnySource = None,
    watch: Annotated[bool, typer.Option("--watch", help="go on showing it, with rate and time left")] = False,
    as_json: Json = False,
) -> None:
    """Show how many items are fresh, stale, waiting and failed.

    With --watch Ctrl-C ends it; without a terminal there is a line whenever something changes.
    """
    if watch and as_json:
        raise ConfigurationError("--watch is for people, --json prints one document: leave one of them out")
    if watch:
        run_until_stopped(_watch(source))
    else:
        run_async(_status(source, as_json))


async def _status(source: str | None, as_json: bool) -> None:
    async with open_sources(command_settings()) as sources:
        found = await sources.status(source)
    if as_json:
        print_json({"sources": [one._asdict() for one in found]})
    elif found:
        stdout().print(_shown([(one, Pace()) for one in found]))
    else:
        note(NOTHING_WATCHED)


async def _watch(source: str | None) -> None:
    console = stdout()
    if console.is_terminal:
        with Live(console=console, auto_refresh=False) as live:
            async for look in _looks(source):
                live.update(_shown(look) if look else NOTHING_WATCHED, refresh=True)
        return
    before: dict[str, str] = {}
    async for look in _looks(source):
        for one, pace in look:
            line = _line(one, pace)
            if before.get(one.source) != line:
                typer.echo(f"{datetime.now(UTC):%Y-%m-%dT%H:%M:%SZ} {line}")
            before[one.source] = line


async def _looks(source: str | None) -> AsyncIterator[Look]:
    """How the sources stand, again and again."""
    paces: dict[str, Pace] = defaultdict(Pace)
    async with open_sources(command_settings()) as sources:
        while True:
            asked = time.monotonic()
            found = await sources.status(source)
            for one in found:
                paces[one.source].look(asked, one.pending)
            yield [(one, paces[one.source]) for one in found]
            # Counting a large table takes time: look rarely enough that it costs little.
            await asyncio.sleep(max(REFRESH_SECONDS, 4 * (time.monotonic() - asked)))


def _shown(look: Look) -> Group:
    rows = [[*one[:7], f"{one.coverage:.1%}"] for one, _ in look]
    about = [[one.source, line] for one, pace in look for line in _about(one, pace)]
    names = [row[0] if n == 0 or about[n - 1][0] != row[0] else "" for n, row in enumerate(about)]
    notes = table(["", ""], [[name, row[1]] for name, row in zip(names, about, strict=True)])
    notes.show_header = False
    return Group(table(["source", *NUMBERS], rows, right=NUMBERS, gap=1), "", notes)


def _about(one: SourceStatus, pace: Pace) -> list[str]:
    """What the numbers do not say."""
    lines = [f"{one.model}, {one.dimension:,} dimensions"]
    waiting = [f"the oldest has waited for {duration(one.oldest_pending_seconds)}"] if one.pending else []
    waiting += [f"paused: `evervec resume {one.source}` goes on"] if one.paused else []
    if waiting := [*waiting, *_progress(pace)]:
        lines.insert(0, ", ".join(waiting))
    return lines


def _progress(pace: Pace) -> list[str]:
    if not pace.rate or pace.seconds_left is None:
        return []
    rate = f"{pace.rate:,.0f}" if pace.rate >= 10 else f"{pace.rate:.1f}"  # noqa: PLR2004 - two digits are enough
    return [f"{rate}/s", f"{duration(pace.seconds_left)} left"]


def _line(one: SourceStatus, pace: Pace) -> str:
    facts = [
        f"{one.fresh:,} of {one.eligible:,} fresh",
        f"{one.pending:,} pending",
        f"{one.failed:,} failed",
        *(["paused"] if one.paused else []),
        *_progress(pace),
    ]
    return printable(f"{one.source}: {', '.join(facts)}")
