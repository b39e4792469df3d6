"""What commands print: one JSON document or a table on stdout, everything else on stderr."""

import json
from collections.abc import Sequence
from datetime import datetime

import typer
from rich.console import Console
from rich.table import Table

MINUTE = 60
PIPE_WIDTH = 200
"""Of a table that goes into a file or another program."""


def print_json(document: object) -> None:
    """One JSON document on one line; times in ISO format."""
    typer.echo(json.dumps(document, ensure_ascii=False, default=_plain))


def _plain(value: object) -> str:
    if isinstance(value, datetime):
        return value.isoformat()
    raise TypeError(f"{type(value).__name__} is nothing that JSON has")


def stdout() -> Console:
    """A console for answers: what it prints is taken as it is, no markup."""
    console = Console(markup=False, highlight=False, emoji=False)
    if not console.is_terminal:
        console.width = PIPE_WIDTH
    return console


def stderr() -> Console:
    """A console for progress and notes."""
    return Console(stderr=True, markup=False, highlight=False, emoji=False, soft_wrap=True)


def note(line: str) -> None:
    """Tell people something on stderr."""
    stderr().print(line)


def table(
    columns: Sequence[str], rows: Sequence[Sequence[object]], *, right: Sequence[str] = (), gap: int = 2
) -> Table:
    """A plain table; the columns in `right` are numbers, and `gap` blanks are between columns."""
    made = Table(box=None, pad_edge=False, header_style="bold", padding=(0, gap, 0, 0))
    for column in columns:
        made.add_column(column, justify="right" if column in right else "left", overflow="fold")
    for row in rows:
        made.add_row(*map(printable, row))
    return made


def printable(value: object) -> str:
    """A value in one line, without what would move a terminal's cursor."""
    text = "-" if value is None else f"{value:,}" if type(value) is int else str(value)
    return "".join(character if character.isprintable() else " " for character in text)


def counted(number: int, thing: str) -> str:
    """`1 item`, `2,000 items`."""
    return f"{number:,} {thing}{'' if number == 1 else 's'}"


def duration(seconds: float) -> str:
    """`12 s`, `3 min`, `2 h 5 min`, `3 d 4 h`: two parts at most."""
    days, rest = divmod(round(seconds / MINUTE), 24 * 60)
    hours, minutes = divmod(rest, 60)
    if days:
        return f"{days} d {hours} h"
    if hours:
        return f"{hours} h {minutes} min"
    return f"{minutes} min" if seconds >= MINUTE else f"{seconds:.0f} s"


def shortened(text: str, length: int = 120) -> str:
    """The beginning of a long text."""
    return text if len(text) <= length else f"{text[: length - 1]}…"


def split_list(text: str) -> list[str]:
    """The parts of `a,b,"c,d"`: a part in double quotes may hold commas, and `""` for a quote."""
    parts, rest = [], text.strip()
    while rest:
        if rest.startswith('"'):
            part, rest = _quoted(rest)
        else:
            part, _, rest = (side.strip() for side in rest.partition(","))
        parts.append(part)
    if not all(parts):
        raise typer.BadParameter(f"{text!r} holds an empty name")
    return parts


def _quoted(text: str) -> tuple[str, str]:
    """The part in quotes that the text begins with, and what follows the comma after it."""
    end = 1
    while (end := text.find('"', end)) >= 0 and text[end + 1 : end + 2] == '"':
        end += 2
    rest = text[end + 1 :].strip() if end > 0 else "?"
    if rest and not rest.startswith(","):
        raise typer.BadParameter(f"{text!r}: a quote is not closed, or no comma follows it")
    return text[1:end].replace('""', '"'), rest[1:].strip()
