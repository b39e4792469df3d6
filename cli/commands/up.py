"""`evervec up`: the whole stack on this machine, in one foreground command."""

import asyncio
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console

from cli.processes import run_until_stopped
from evervec.errors import ConfigurationError
from evervec.settings import Settings, load_settings

if TYPE_CHECKING:
    from cli.stack.local import LocalStack

DataDir = Annotated[Path, typer.Option(help="where the data stays; made when it is not there")]


def up(data_dir: DataDir = Path(".evervec")) -> None:
    """Run the whole stack on this machine: PostgreSQL, Temporal, listener, worker, dashboard. Ctrl-C stops it.

    A server whose address is in the environment (EVERVEC_DATABASE_URL, EVERVEC_TEMPORAL_ADDRESS) is used, not started.
    """
    run_until_stopped(_up(data_dir, load_settings()))


async def _up(data_dir: Path, settings: Settings) -> None:
    try:
        from cli.stack.local import LocalStack  # noqa: PLC0415 - an extra, which other commands do without
    except ModuleNotFoundError as error:
        raise ConfigurationError(f"{error.name} is not installed: pip install 'evervec[stack]'") from None
    console = Console(highlight=False, soft_wrap=True)
    started = asyncio.get_running_loop().time()
    async with LocalStack(data_dir, settings, ui=True, say=lambda line: console.print(line, markup=False)) as stack:
        console.print(f"[bold]ready[/bold] after {asyncio.get_running_loop().time() - started:.1f} s")
        _show(console, stack, data_dir)
        await stack.supervise()


def _show(console: Console, stack: "LocalStack", data_dir: Path) -> None:
    """Say where everything is and how to go on."""
    env_file = data_dir / "env"
    facts = {"logs": str(data_dir / "log"), "addresses": str(env_file)}
    if stack.postgres:
        facts["database"] = f"{stack.postgres.url} (with its password in {env_file})"
    if stack.temporal:
        facts["Temporal"] = f"{stack.temporal.address}, web page {stack.temporal.ui_url}"
    if stack.dashboard_url:
        facts["dashboard"] = stack.dashboard_url
    for name, value in facts.items():
        console.print(f"  {name:<10} {value}", markup=False)
    console.print(f"In another terminal: set -a; . {env_file}; set +a; evervec status", markup=False)
    console.print("Ctrl-C stops it all; the data stays", markup=False)
