"""`evervec verify`: whether every vector is the right one."""

from typing import Annotated, Any

import typer

from cli.commands.options import AnySource, Json
from cli.output import counted, note, print_json, stderr, stdout, table
from cli.processes import run_async
from cli.session import command_settings, open_sources
from db.sources import Sources
from embedding.encoder import Encoder
from evervec.settings import Settings
from service.verify import Verification
from service.verify import repair as repair_source
from service.verify import verify as verify_source

COLUMNS = ("source", "rows", "eligible", "fresh", "stale", "failed", "orphaned", "sampled", "mismatched", "ok")


def verify(
    source: AnySource = None,
    sample: Annotated[int, typer.Option(min=0, help="embed so many random items anew and compare the vectors")] = 0,
    repair: Annotated[bool, typer.Option("--repair", help="enqueue what was found")] = False,
    as_json: Json = False,
) -> None:
    """Compare every row's hash with its vector's. Exit 1 when something is not as it should be, repaired or not."""
    found = run_async(_verify(command_settings(), source, sample, repair))
    documents = [{column: getattr(one, column) for column in COLUMNS} for one in found]
    if as_json:
        print_json({"sources": documents})
    else:
        _show(documents)
    if not all(one.ok for one in found):
        raise typer.Exit(1)


async def _verify(settings: Settings, source: str | None, sample: int, repair: bool) -> list[Verification]:
    async with open_sources(settings) as sources, Encoder(settings) as encoder:
        found = [await _verify_one(sources, encoder, name, sample) for name in await sources.names(source)]
        for one in found if repair else []:
            if not one.ok:
                done = await repair_source(sources, one)
                enqueued, dropped = counted(done.enqueued, "item"), counted(done.dropped, "orphan")
                note(f"{one.source}: {enqueued} enqueued, {dropped} removed")
    return found


async def _verify_one(sources: Sources, encoder: Encoder, source: str, sample: int) -> Verification:
    with stderr().status(f"verifying {source}") as shown:
        return await verify_source(
            sources,
            encoder,
            source,
            sample=sample,
            tell=lambda so_far: shown.update(f"verifying {source}: {so_far.rows:,} rows, {so_far.sampled:,} vectors"),
        )


def _show(documents: list[dict[str, Any]]) -> None:
    if not documents:
        note("nothing is watched")
        return
    columns = COLUMNS[:-1] if any(document["sampled"] for document in documents) else COLUMNS[:-3]
    rows = [[*(document[column] for column in columns), "ok" if document["ok"] else "not ok"] for document in documents]
    stdout().print(table([*columns, ""], rows, right=columns[1:], gap=1))
