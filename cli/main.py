"""`evervec`: the commands, put together."""

from collections.abc import Callable
from importlib.metadata import version
from typing import Annotated

import typer

from cli.commands import check, demo, doctor, find, look, processes, setup, status, up, work
from cli.errors import exit_code_of
from cli.examples import examples_help
from cli.processes import exit_without_teardown
from cli.reference import environment_help
from evervec.errors import ConfigurationError
from evervec.log import configure_logging
from evervec.settings import load_settings

# In the order in which the help shows them. A function's parameters and docstring are the command's.
COMMANDS: dict[str, tuple[Callable[..., None], ...]] = {
    "Set up": (up.up, demo.demo, setup.init, setup.watch, setup.unwatch, setup.uninstall),
    "Run": (processes.listener, processes.worker, processes.dashboard),
    "Look": (status.status, look.item, look.failures, find.search, check.verify, doctor.doctor),
    "Work": (work.backfill, work.regenerate, work.retry, work.pause, work.resume),
}

app = typer.Typer(
    name="evervec",
    epilog=environment_help(),
    invoke_without_command=True,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
)
for panel, commands in COMMANDS.items():
    for command in commands:
        app.command(rich_help_panel=panel, epilog=examples_help(command.__name__))(command)


def _show_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"evervec {version('evervec')}")
        raise typer.Exit


@app.callback()
def evervec(
    context: typer.Context,
    _version: Annotated[
        bool, typer.Option("--version", callback=_show_version, is_eager=True, help="Show the version.")
    ] = False,
) -> None:
    """Keep vector embeddings true to the Postgres rows they describe."""
    if context.invoked_subcommand is None:
        typer.echo(context.get_help())
        raise typer.Exit
    try:
        configure_logging(load_settings())
    except ConfigurationError:
        # What is wrong with the settings, the doctor says among all else.
        if context.invoked_subcommand != doctor.doctor.__name__:
            raise


def run() -> None:
    """Run the command line and exit with its code."""
    exit_without_teardown(lambda: exit_code_of(lambda: app(standalone_mode=False)))


if __name__ == "__main__":
    run()
