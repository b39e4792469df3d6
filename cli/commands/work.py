"""`evervec backfill`, `regenerate`, `retry`, `pause` and `resume`: set the pipeline to work."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Annotated

import typer
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    Task,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.text import Text

from cli.commands.options import AnySource, Ids, Json, Source, Wait, parse_ids
from cli.output import counted, note, print_json, shortened, stderr
from cli.processes import run_async
from cli.session import command_settings, open_sources
from db.sources import Sources, Waiting
from evervec.errors import ConfigurationError
from service.refire import check_keys, check_predicate, refire, refire_keys, wait_until_done
from service.refire import retry as retry_items

NAME_LENGTH = 24
"""Of a source's name beside a bar: 80 columns are to hold both."""


@dataclass(slots=True)
class Work:
    """What became of one source's items; pending and failed are None when nobody waited."""

    source: str
    enqueued: int = 0
    pending: int | None = None
    failed: int | None = None
    paused: bool = False

    @property
    def ok(self) -> bool:
        """Nothing failed, and nothing is left that was waited for."""
        return not (self.pending or self.failed)


class RateColumn(ProgressColumn):
    """How many items a second are done."""

    def render(self, task: Task) -> Text:
        """`123/s`, or nothing as long as it is not known."""
        return Text(f"{task.speed:,.0f}/s" if task.speed else "", style="progress.data.speed")


def backfill(
    source: AnySource = None,
    where: Annotated[str, typer.Option(metavar="SQL", help="only rows that satisfy this predicate")] = "true",
    rate: Annotated[
        float | None,
        typer.Option(min=0.01, metavar="N", help="embed N items a second at most; run it again to change that"),
    ] = None,
    wait: Wait = False,
    as_json: Json = False,
) -> None:
    """Enqueue every eligible item whose vector is not that of its content, failed ones too."""
    _report(run_async(_backfill(source, where, rate, wait)), as_json)


async def _backfill(source: str | None, where: str, rate: float | None, wait: bool) -> list[Work]:
    async with open_sources(command_settings()) as sources:
        names = await sources.names(source)
        for name in names:
            await check_predicate(sources, name, where)
        return [await _refire(sources, name, where=where, rate=rate, wait=wait) for name in names]


def regenerate(
    source: Source,
    ids: Ids = None,
    everything: Annotated[bool, typer.Option("--all", help="every eligible item")] = False,
    wait: Wait = False,
    as_json: Json = False,
) -> None:
    """Embed items again even if nothing changed; the old vectors are found until the new ones are there."""
    keys = parse_ids(ids)
    if (keys is None) is not everything:
        raise ConfigurationError("say which items: either --ids KEY,… or --all")
    _report([run_async(_regenerate(source, keys, wait))], as_json)


async def _regenerate(source: str, keys: list[str] | None, wait: bool) -> Work:
    async with open_sources(command_settings()) as sources:
        await sources.get(source)
        if keys is None:
            return await _refire(sources, source, force=True, wait=wait)
        await check_keys(sources, source, keys)
        work, after = Work(source), await sources.last_version()
        work.enqueued = await refire_keys(sources, source, keys, force=True)
        if work.enqueued < len(keys):
            note(f"{counted(len(keys) - work.enqueued, 'item')} not eligible: `evervec item {source} KEY` says why")
        if wait:
            with _progress() as bar:
                await _wait(sources, work, bar, bar.add_task(source, total=None), after=after, keys=keys)
        return work


async def _refire(
    sources: Sources, source: str, *, where: str = "true", force: bool = False, rate: float | None = None, wait: bool
) -> Work:
    """Enqueue page by page, and wait for it if asked to."""
    work, after = Work(source), await sources.last_version()
    with _progress() as bar:
        name = shortened(source, NAME_LENGTH)
        task = bar.add_task(f"{name}: enqueueing", total=None)
        async for progress in refire(sources, source, predicate=where, force=force, rate=rate):
            work.enqueued = progress.enqueued
            bar.update(task, description=f"{name}: {progress.scanned:,} rows seen, {progress.enqueued:,} enqueued")
        if wait:
            await _wait(sources, work, bar, task, after=after)
    return work


async def _wait(
    sources: Sources, work: Work, bar: Progress, task: TaskID, *, after: int, keys: Sequence[str] | None = None
) -> None:
    """Show the items leaving the outbox."""
    total, reason = work.enqueued, None
    async for waiting in wait_until_done(sources, work.source, after=after, item_keys=keys):
        total = max(total, waiting.pending + waiting.failed)
        bar.update(task, description=_describe(work.source, waiting), total=total, completed=total - waiting.pending)
        if waiting.reason and waiting.reason != reason:
            bar.console.print(f"{work.source}: items wait: {waiting.reason}")
        reason = waiting.reason
        work.pending, work.failed, work.paused = waiting.pending, waiting.failed, waiting.paused


def _describe(source: str, waiting: Waiting) -> str:
    name = shortened(source, NAME_LENGTH)
    if waiting.filling:
        return f"{name}: first fill"
    return f"{name}: {waiting.failed:,} failed" if waiting.failed else name


def _progress() -> Progress:
    columns = (
        TextColumn("{task.description}", markup=False),
        BarColumn(bar_width=None),
        MofNCompleteColumn(),
        RateColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
    )
    console = stderr()
    return Progress(*columns, console=console, disable=not console.is_terminal, expand=True)


def _report(works: list[Work], as_json: bool) -> None:
    """Tell what was done; exit 1 when what was waited for did not come."""
    if as_json:
        print_json({"sources": [asdict(work) for work in works]})
    for work in works:
        if not as_json:
            typer.echo(f"{work.source}: {counted(work.enqueued, 'item')} enqueued")
        if work.paused and work.pending:
            left = counted(work.pending, "item")
            note(f"{work.source} is paused: {left} left waiting for `evervec resume {work.source}`")
        if work.failed:
            note(f"{work.source}: {counted(work.failed, 'item')} failed: `evervec failures {work.source}` says why")
    if not works:
        note("nothing is watched")
    if not all(work.ok for work in works):
        raise typer.Exit(1)


def retry(source: Source, ids: Ids = None) -> None:
    """Try failed items again, all of them or some."""
    run_async(_retry(source, parse_ids(ids)))


async def _retry(source: str, keys: list[str] | None) -> None:
    async with open_sources(command_settings()) as sources:
        if keys is not None:
            await check_keys(sources, source, keys)
        retried = await retry_items(sources, source, keys)
    typer.echo(f"{source}: {counted(retried, 'failed item')} back in the queue")


def pause(source: Source) -> None:
    """Stop the work on a source. Changes are recorded all the same."""
    run_async(_pause(source))


async def _pause(source: str) -> None:
    async with open_sources(command_settings()) as sources:
        await sources.pause(source)
    typer.echo(f"{source} is paused: its changes wait until `evervec resume {source}`")


def resume(source: Source) -> None:
    """Go on with the work on a paused source."""
    run_async(_resume(source))


async def _resume(source: str) -> None:
    async with open_sources(command_settings()) as sources:
        await sources.resume(source)
    typer.echo(f"{source} goes on")
