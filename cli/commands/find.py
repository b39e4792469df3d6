"""`evervec search`."""

from typing import Annotated

import typer

from cli.commands.options import Json, Source
from cli.output import note, print_json, shortened, stdout, table
from cli.processes import run_async
from cli.session import command_settings, open_sources
from embedding.encoder import Encoder
from service.search import search as search_items


def search(
    source: Source,
    text: Annotated[str, typer.Argument(metavar="TEXT")],
    limit: Annotated[int, typer.Option(min=1, max=1000, help="how many items at most")] = 10,
    as_json: Json = False,
) -> None:
    """Find the active items that are nearest in meaning to a text. The source's model is loaded for it."""
    run_async(_search(source, text, limit, as_json))


async def _search(source: str, text: str, limit: int, as_json: bool) -> None:
    settings = command_settings()
    async with open_sources(settings) as sources, Encoder(settings) as encoder:
        hits = await search_items(sources, encoder, source, text, limit)
    if as_json:
        print_json({"source": source, "query": text, "results": [hit._asdict() for hit in hits]})
    elif hits:
        rows = [[hit.key, f"{hit.distance:.4f}", shortened(hit.content)] for hit in hits]
        stdout().print(table(["key", "distance", "content"], rows, right=["distance"]))
    else:
        note(f"no item of {source!r} has a vector of its present model yet: `evervec status {source}`")
