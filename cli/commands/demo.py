"""`evervec demo`: the whole stack on a fresh directory, with items that are embedded, edited and searched."""

import asyncio
import os
import shutil
import tempfile
import time
from importlib.resources import files
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from cli.processes import run_async
from db.connection import connect
from evervec.errors import ConfigurationError, EvervecError
from evervec.log import configure_logging
from evervec.settings import LogLevel, Settings, load_settings

if TYPE_CHECKING:
    from cli.demo.edits import Edit, Editor

MODEL = "bundled:use-multilingual-v3"
EMBED_SECONDS = 120.0
# German words that find English things, and the other way round.
QUERIES = (
    "Fahrrad für ein Kind",
    "Eis selber machen",
    "Bewerbung schreiben",
    "cat sitting while I am on holiday",
    "clean the carpet",
    "help with maths",
)
HITS = 3


def demo() -> None:
    """Show it all: start the stack on a fresh directory, embed 200 items, edit some, search, and clean up."""
    run_async(_demo())


async def _demo() -> None:
    try:
        from cli.stack.local import LocalStack  # noqa: PLC0415 - an extra, which other commands do without
    except ModuleNotFoundError as error:
        raise ConfigurationError(f"{error.name} is not installed: pip install 'evervec[stack]'") from None
    console = Console(highlight=False, soft_wrap=True)
    settings = _settings_of_its_own()
    directory = _fresh_directory()
    try:
        async with LocalStack(directory, settings, say=lambda line: console.print(f"· {line}", markup=False)) as stack:
            await _show(console, stack.settings)
    finally:
        shutil.rmtree(directory, ignore_errors=True)


def _fresh_directory() -> Path:
    directory = Path(tempfile.mkdtemp(prefix="evervec-demo-"))
    # PostgreSQL may have to run as another user, who has to get in.
    directory.chmod(0o711)
    return directory


def _settings_of_its_own() -> Settings:
    """The defaults: the demo works on servers of its own, not on those that the environment names."""
    for name in [*os.environ]:
        if name.startswith("EVERVEC_") or name in {"SENTENCE_TRANSFORMER_MODEL", "EMBEDDING_DIMENSION"}:
            del os.environ[name]
    os.environ["EVERVEC_MODEL"] = MODEL
    settings = load_settings()
    # Listener and worker log to files; here the demo speaks.
    configure_logging(settings.model_copy(update={"log_level": LogLevel.WARNING}))
    return settings


async def _show(console: Console, settings: Settings) -> None:
    from cli.demo.edits import Editor  # noqa: PLC0415 - beside the stack, which is an extra

    async with await connect(settings.database_conninfo, application_name="evervec demo") as connection:
        editor = Editor(connection)
        console.rule("200 things of a neighbourhood, half in German, half in English")
        await connection.execute(files("cli.demo").joinpath("items.sql").read_bytes())
        embedded = await _embed(console, editor)
        edits = await _edit(console, editor)
        items = (await editor.row("coverage"))["total"]
    hits = await _search(console, settings)
    _summarise(console, items, embedded, edits, hits)


async def _embed(console: Console, editor: "Editor") -> int:
    """Watch the table and wait for the first fill; returns how many items it embedded."""
    console.print("[bold]evervec watch items --text name,description,category,type,status …[/bold]")
    started, deadline = await editor.before(), time.monotonic() + EMBED_SECONDS
    await editor.row("watch")
    columns = (TextColumn("embedding"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=console) as progress:
        bar = progress.add_task("embedding", total=None)
        while True:
            state = await editor.row("coverage")
            progress.update(bar, total=state["eligible"], completed=state["fresh"])
            if state["fresh"] == state["eligible"] and not state["filling"]:
                break
            if time.monotonic() > deadline:
                raise EvervecError("the items were not embedded in time: see the logs of listener and worker")
            await asyncio.sleep(0.1)
    console.print(
        f"{state['total']} items, {state['eligible']} of them eligible (the others are inactive or have no description)"
    )
    return await editor.embedded_since(started)


async def _edit(console: Console, editor: "Editor") -> list["Edit"]:
    """Edit the table in plain SQL; returns what came of each edit."""
    console.rule("Edits in plain SQL: nobody who writes the table knows of evervec")
    started = await editor.before()
    edits = [
        await editor.edit("UPDATE a description", "update"),
        await editor.edit("UPDATE that changes nothing", "touch"),
        await editor.edit("UPDATE of another column, all rows", "other_column"),
        await editor.edit("INSERT one item", "insert"),
        await editor.edit("UPDATE, and UPDATE back at once", "change", "revert"),
        await editor.copy("COPY twelve items"),
        await editor.edit("DELETE one item", "delete"),
    ]
    table = Table("edit", "embedded", "commit to vector")
    for edit in edits:
        table.add_row(
            edit.what, str(edit.embedded), f"{edit.milliseconds:.0f} ms" if edit.embedded else "nothing to do"
        )
    console.print(table)
    # Each edit was counted when it had settled: whatever a "nothing to do" caused later shows up here.
    if await editor.embedded_since(started) != sum(edit.embedded for edit in edits):
        raise EvervecError("something was embedded that no edit asked for")
    return edits


async def _search(console: Console, settings: Settings) -> int:
    """Search in one language for what is described in the other; returns the number of hits."""
    from service import EmbeddingService  # noqa: PLC0415 - it brings Temporal's client, which takes long to import

    console.rule("Search across languages")
    hits = 0
    async with EmbeddingService(settings, source="items") as service:
        for text in QUERIES:
            found = await service.find_similar_items(text, limit=HITS)
            console.print(f"[bold]{text}[/bold]")
            for item in found:
                name = item.content.split(" | ")[0]
                console.print(f"  {1 - item.distance:.2f}  {name}", markup=False)
            hits += len(found)
    return hits


def _summarise(console: Console, items: int, embedded: int, edits: list["Edit"], hits: int) -> None:
    console.rule("Summary")
    followed = [edit for edit in edits if edit.embedded]
    skipped = [edit for edit in edits if edit.unchanged]
    facts = {
        "items": f"{items}",
        "embedded": f"{embedded + sum(edit.embedded for edit in edits)}",
        "skipped as unchanged": f"{len(skipped)} edits, which cost no embedding",
        "median commit to vector": f"{median(edit.milliseconds for edit in followed):.0f} ms, debounce included",
        "search hits": f"{hits}",
    }
    for name, value in facts.items():
        console.print(f"  {name:<24} {value}", markup=False)
