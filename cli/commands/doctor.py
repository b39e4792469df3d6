"""`evervec doctor`: whether the set-up is right, and what to do where it is not."""

import logging
import os
from collections.abc import AsyncIterator
from typing import Annotated

import typer
from rich.console import Console, RenderableType
from rich.table import Table
from rich.text import Text

from cli.commands.options import Json
from cli.output import counted, print_json, printable, stdout
from cli.processes import run_async
from service.doctor.check import Check

NAME_WIDTH = 20


def doctor(
    quick: Annotated[bool, typer.Option("--quick", help="leave out what takes long: loading the models")] = False,
    as_json: Json = False,
) -> None:
    """Check everything that a set-up can have wrong, and say what to do. Exit 1 when something is.

    A server that does not answer is a fault like any other.
    Advice is none: it says what could be better, or was perhaps forgotten.
    """
    if "EVERVEC_LOG_LEVEL" not in os.environ:
        logging.getLogger().setLevel(logging.CRITICAL)  # the checks say it all
    console = None if as_json else stdout()
    checks = run_async(_doctor(console, models=not quick))
    ok = all(check.ok for check in checks)
    if as_json:
        print_json({"ok": ok, "checks": [_document(check) for check in checks]})
    if not ok:
        raise typer.Exit(1)


async def _doctor(console: Console | None, *, models: bool) -> list[Check]:
    # Temporal's client takes long to import.
    from service.doctor.diagnose import diagnose  # noqa: PLC0415

    checks: list[Check] = []
    if console is None:
        return [check async for check in diagnose(models=models)]
    async for group in _by_source(diagnose(models=models)):
        console.print(_shown(group))
        checks += group
    faults = sum(not check.ok for check in checks)
    verdict = f"{counted(faults, 'fault')} found" if faults else "nothing is wrong"
    console.print(f"\n{counted(len(checks), 'check')}: {verdict}")
    return checks


async def _by_source(checks: AsyncIterator[Check]) -> AsyncIterator[list[Check]]:
    """Checks as they come; those of one source together."""
    group: list[Check] = []
    async for check in checks:
        if group and (check.source is None or check.source != group[0].source):
            yield group
            group = []
        group.append(check)
    yield group


def _shown(group: list[Check]) -> RenderableType:
    rows = Table.grid(padding=(0, 2, 0, 0))
    rows.add_column(width=6)
    rows.add_column(width=NAME_WIDTH, overflow="fold")
    rows.add_column(overflow="fold")
    source = group[0].source
    if source and all(check.ok and not check.remedy for check in group):
        return _row(rows, "ok", source, ", ".join(check.name for check in group))
    if source:
        rows.add_row("", Text(printable(source), style="bold"))
    for check in group:
        _row(rows, "fault" if not check.ok else "advice" if check.remedy else "ok", check.name, check.detail)
        if check.remedy:
            rows.add_row("", "", f"-> {printable(check.remedy)}")
    return rows


def _row(rows: Table, word: str, name: str, detail: str) -> Table:
    style = {"ok": "green", "advice": "yellow", "fault": "bold red"}[word]
    rows.add_row(Text(word, style=style), printable(name), printable(detail))
    return rows


def _document(check: Check) -> dict[str, object]:
    name = f"{check.source}: {check.name}" if check.source else check.name
    return {"name": name, "ok": check.ok, "detail": check.detail, "remedy": check.remedy}
