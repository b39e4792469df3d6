"""Arguments and options that several commands share."""

from typing import Annotated

import typer

from cli.completion import complete_sources
from cli.output import split_list

Source = Annotated[
    str,
    typer.Argument(metavar="SOURCE", help="a source's name, see `evervec status`", autocompletion=complete_sources),
]
AnySource = Annotated[
    str | None,
    typer.Argument(metavar="SOURCE", help="a source's name; without it: all of them", autocompletion=complete_sources),
]
Ids = Annotated[
    str | None, typer.Option("--ids", metavar="KEY,…", help='keys of items; one that holds a comma: "in quotes"')
]
Json = Annotated[bool, typer.Option("--json", help="print one JSON document")]
Wait = Annotated[bool, typer.Option("--wait", help="wait until the items are embedded, or failed (exit 1)")]


def parse_ids(ids: str | None) -> list[str] | None:
    """The keys of `--ids`, each once; None when it was not given."""
    return None if ids is None else list(dict.fromkeys(split_list(ids)))
