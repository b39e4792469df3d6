"""`python -m tests.chaos`: see docs/chaos.md."""

import argparse
import asyncio
import os
import random
import shutil
import signal
import sys
import time
from collections.abc import Coroutine
from dataclasses import replace
from pathlib import Path
from typing import TypeVar

from rich.console import Console

from evervec.log import configure_logging
from evervec.settings import LogLevel, Settings
from tests.chaos.faults import KINDS
from tests.chaos.plan import SHORT, Times
from tests.chaos.report import tell
from tests.chaos.run import Orders, Report, run
from tests.chaos.site import QUICK_TABLES, TABLES, temporary_folder
from tests.integration.commands import FOREIGN

T = TypeVar("T")


def main() -> None:
    """Run what the arguments say; exit 1 when something is wrong."""
    arguments = _arguments()
    prepare()
    console = Console(highlight=False, width=100)
    orders = Orders(
        arguments.seed,
        arguments.faults,
        arguments.rate,
        _times(arguments),
        QUICK_TABLES if arguments.short else TABLES,
        kinds=arguments.only or tuple(KINDS),
    )
    good = False
    with temporary_folder() as folder:
        try:
            good = tell(asyncio.run(stoppable(_run(orders, folder, console))), console)
        finally:
            if not good and arguments.keep:
                console.print(f"logs: {arguments.keep}")
                shutil.copytree(folder, arguments.keep, ignore=shutil.ignore_patterns("cluster"), dirs_exist_ok=True)
    sys.exit(0 if good else 1)


def prepare() -> None:
    """Run with evervec's defaults, whatever is set here, and in silence."""
    for name in [name for name in os.environ if name.startswith(FOREIGN)]:
        del os.environ[name]
    configure_logging(Settings(log_level=LogLevel.ERROR))


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tests.chaos", description=__doc__)
    parser.add_argument("--seed", type=int, default=random.randrange(10_000), help="the same seed, the same plan")
    parser.add_argument("--faults", type=int, default=100)
    parser.add_argument("--rate", type=float, default=40.0, help="transactions a second")
    parser.add_argument("--short", action="store_true", help="faults that are short and follow each other quickly")
    parser.add_argument("--pause", type=float, metavar="SECONDS", help="how long each SIGSTOP lasts")
    parser.add_argument(
        "--only", action="append", choices=list(KINDS), metavar="KIND", help="this kind; may be repeated"
    )
    parser.add_argument("--keep", type=Path, help="where to copy the logs when something is wrong")
    return parser.parse_args()


def _times(arguments: argparse.Namespace) -> Times:
    times = SHORT if arguments.short else Times()
    return replace(times, pauses=(arguments.pause,)) if arguments.pause else times


async def _run(orders: Orders, folder: Path, console: Console) -> Report:
    started = time.monotonic()
    return await run(
        orders, folder, lambda line: console.print(f"{time.monotonic() - started:6.1f}  {line}", markup=False)
    )


async def stoppable(work: Coroutine[None, None, T]) -> T:
    """Stop what was started also when this process is told to end."""
    task = asyncio.ensure_future(work)
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, task.cancel)
    return await task


if __name__ == "__main__":
    main()
