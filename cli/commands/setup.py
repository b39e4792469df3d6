"""`evervec init`, `watch`, `unwatch` and `uninstall`: the schema and its sources."""

import sys
from dataclasses import replace
from typing import Annotated

import typer

from cli.commands.options import Source
from cli.commands.plan import show_plan
from cli.output import counted, note, split_list
from cli.processes import run_async
from cli.session import command_settings, open_sources
from db.connection import describe
from db.schema import apply_schema
from db.sources import Sources, WatchOptions
from evervec.errors import ConfigurationError, EvervecError, ModelUnavailableError
from evervec.model import ModelSpec
from evervec.settings import Settings


def init() -> None:
    """Install evervec's schema into the database, or bring it up to date."""
    conninfo = command_settings().database_conninfo
    for notice in run_async(apply_schema(conninfo)):
        note(f"note: {notice}")
    typer.echo(f"evervec is installed in {describe(conninfo)}")


def watch(
    table: Annotated[str, typer.Argument(metavar="TABLE", help="as SQL names it: items, shop.items, '\"Items\"'")],
    *,
    text: Annotated[str, typer.Option(metavar="COLUMN,…", help="the columns whose text is embedded")],
    required: Annotated[str, typer.Option(metavar="COLUMN,…", help="columns that must not be blank")] = "",
    active: Annotated[
        str | None, typer.Option(metavar="COLUMN|SQL", help="a boolean column or a predicate: which rows to embed")
    ] = None,
    key: Annotated[str | None, typer.Option(metavar="COLUMN", help="default: the primary key")] = None,
    source: Annotated[str | None, typer.Option(metavar="NAME", help="default: the table's name")] = None,
    model: Annotated[str | None, typer.Option(help="default: EVERVEC_MODEL, else the source's own")] = None,
    dimension: Annotated[int | None, typer.Option(min=1, help="default: EVERVEC_DIMENSION, else the model's")] = None,
    prompt: Annotated[str, typer.Option(help="put before each text, and before what is searched for")] = "",
    revision: Annotated[str, typer.Option(help="of the model, a commit for example")] = "",
    destination: Annotated[
        str,
        typer.Option(metavar="column|table", help="keep vectors in the table itself, or in a table beside it"),
    ] = "column",
    embedding: Annotated[str, typer.Option(metavar="COLUMN", help="the column of the vectors")] = "embedding",
    overwrite: Annotated[bool, typer.Option("--overwrite", help="give up what that column holds")] = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="say what it would take: rows, time, disk; change nothing")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="print the dry run as one JSON document")] = False,
) -> None:
    """Watch a table: from now on each row's embedding follows its text. Again with other options: alter the source."""
    if as_json and not dry_run:
        raise ConfigurationError("--json goes with --dry-run")
    options = WatchOptions(
        relation=table,
        text_columns=split_list(text),
        required=split_list(required),
        active=active,
        key=key,
        source=source,
        model=model,
        dimension=dimension,
        prompt=prompt,
        revision=revision,
        destination=destination,
        embedding=embedding,
        overwrite=overwrite,
    )
    run_async(_plan(options, command_settings(), as_json) if dry_run else _watch(options, command_settings()))


async def _plan(options: WatchOptions, settings: Settings, as_json: bool) -> None:
    async with open_sources(settings) as sources:
        await show_plan(sources, await _with_model(options, settings, sources), settings, as_json=as_json)


async def _watch(options: WatchOptions, settings: Settings) -> None:
    async with open_sources(settings) as sources:
        watched = await sources.get(await sources.watch(await _with_model(options, settings, sources)))
    typer.echo(
        f"watching {options.relation} as source {watched.name!r}: {watched.model.name}, "
        f"{watched.model.dimension} dimensions; listener and worker embed its rows from now on"
    )


async def _with_model(options: WatchOptions, settings: Settings, sources: Sources) -> WatchOptions:
    """The options with the environment's model and dimension where they name none.

    What neither names is left to the database: a source that exists keeps its model.
    """
    model = options.model or (settings.model if "model" in settings.model_fields_set else None)
    if options.dimension is not None or model is None:
        return replace(options, model=model, dimension=options.dimension or settings.dimension)
    known = await sources.known_dimension(model, options.revision)
    if options.model is None or known is None:
        known = _environment_dimension(settings, model) or known
    return replace(options, model=model, dimension=known or _learn_dimension(model, options, settings))


def _environment_dimension(settings: Settings, model: str) -> int | None:
    """EVERVEC_DIMENSION, which belongs to EVERVEC_MODEL if that is set too."""
    return settings.dimension if "model" not in settings.model_fields_set or model == settings.model else None


def _learn_dimension(model: str, options: WatchOptions, settings: Settings) -> int:
    # Not needed where the dimension is known, and heavy.
    from embedding import load_embedder  # noqa: PLC0415

    note(f"loading {model} to learn its dimension")
    try:
        return load_embedder(ModelSpec(model, options.revision, 0, options.prompt), settings).dimension
    except ModelUnavailableError as error:
        raise ModelUnavailableError(f"{error}. If the workers have it, say its dimension: --dimension N") from None


def unwatch(source: Source) -> None:
    """Forget a source: its triggers and what waits. The embeddings stay."""
    run_async(_unwatch(source))


async def _unwatch(source: str) -> None:
    async with open_sources(command_settings()) as sources:
        await sources.unwatch(source)
    typer.echo(f"{source} is not watched any more; its embeddings are still there")


def uninstall(
    yes: Annotated[bool, typer.Option("--yes", "-y", help="do not ask")] = False,
) -> None:
    """Remove evervec from the database: schema, sources, triggers and what waits. The embeddings stay.

    Stop listeners and workers first. The safety net's schedule in Temporal is deleted too.
    """
    settings = command_settings()
    names = run_async(_installed(settings))
    what = f"evervec, and with it {counted(len(names), 'source')}" + (f" ({', '.join(names)})" if names else "")
    place = describe(settings.database_conninfo)
    if not yes:
        if not sys.stdin.isatty():
            raise ConfigurationError(f"this removes {what} from {place}: say --yes if that is meant")
        typer.confirm(f"Remove {what} from {place}? The embeddings stay.", abort=True, err=True)
    run_async(_uninstall(settings))
    typer.echo(f"evervec is removed from {place}; the embeddings are still there")


async def _installed(settings: Settings) -> list[str]:
    async with open_sources(settings) as sources:
        return await sources.names()


async def _uninstall(settings: Settings) -> None:
    async with open_sources(settings) as sources:
        instance = await sources.instance()
        await sources.uninstall()
    # Temporal's client takes long to import.
    from evervec.schedule import delete_schedule, schedule_id  # noqa: PLC0415
    from evervec.temporal import connect  # noqa: PLC0415

    try:
        await delete_schedule(await connect(settings), instance)
    except EvervecError as error:
        note(f"note: the schedule {schedule_id(instance)} is left in Temporal: {error}")
