"""`python -m tests.bench`: see docs/benchmarks.md."""

import argparse
import asyncio
import os
import signal
import sys
import time
from collections.abc import Coroutine
from dataclasses import replace
from typing import Any

from rich.console import Console

from evervec.log import configure_logging
from evervec.settings import LogLevel, Settings
from tests.bench import backends, backfill, latency, lock, noop, scale, stub, writers
from tests.bench.figures import keys_of
from tests.bench.measurement import Bench, Measurement
from tests.bench.pipeline import Servers
from tests.bench.plan import QUICK, Plan
from tests.bench.report import report
from tests.bench.results import forget_figures, merge_details, merge_figures
from tests.integration.commands import FOREIGN

MEASUREMENTS: dict[str, Measurement] = {
    "backfill_minilm": backfill.minilm_on_torch,
    "backfill_bundled": backfill.bundled,
    "stub": stub.stub,
    "auto_minilm": backends.auto_minilm,
    "auto_mpnet": backends.auto_mpnet,
    "latency": latency.latency,
    "writers": writers.writers,
    "noop": noop.noop,
    "lock": lock.lock,
}
SCALE: dict[str, Measurement] = {"scale": scale.scale}


def main() -> None:
    """Run what the arguments name and tell what came out."""
    arguments = _arguments()
    _prepare()
    names = arguments.measurement or list(SCALE if arguments.scale else MEASUREMENTS)
    plan = QUICK if arguments.quick else Plan()
    if arguments.rows:
        plan = replace(plan, **{"scale_rows" if arguments.scale else "rows": arguments.rows})
    # The names of the figures say how many rows they stand for.
    kept = not arguments.quick and not (arguments.scale and arguments.rows)
    try:
        failed = asyncio.run(_stoppable(_run(names, plan, kept=kept)))
    except asyncio.CancelledError:
        sys.exit("stopped")
    if kept:
        report()
    if failed:
        sys.exit(f"not measured: {', '.join(failed)}")


def _prepare() -> None:
    """Measure with evervec's defaults, whatever is set here, and in silence."""
    for name in [name for name in os.environ if name.startswith(FOREIGN)]:
        del os.environ[name]
    os.environ |= {"HF_HUB_OFFLINE": "1", "HF_HUB_DISABLE_PROGRESS_BARS": "1", "TQDM_DISABLE": "1"}
    configure_logging(Settings(log_level=LogLevel.WARNING))


async def _stoppable(work: Coroutine[Any, Any, list[str]]) -> list[str]:
    """Stop what was started also when this process is told to end."""
    task = asyncio.ensure_future(work)
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, task.cancel)
    return await task


async def _run(names: list[str], plan: Plan, *, kept: bool) -> list[str]:
    """Do the measurements one after the other; those that failed."""
    console = Console(stderr=True, highlight=False)
    failed = []
    async with Servers.running() as servers:
        bench = Bench(servers, plan, console.print)
        for name in names:
            console.print(f"[bold]{name}[/bold]")
            if kept:
                forget_figures(keys_of(name))
            started = time.monotonic()
            try:
                outcome = await (MEASUREMENTS | SCALE)[name](bench)
                assert set(outcome.figures) == set(keys_of(name)), sorted(outcome.figures)
            except Exception:  # noqa: BLE001 - the other measurements are of use without this one
                console.print_exception()
                failed.append(name)
                continue
            seconds = time.monotonic() - started
            if kept:
                merge_figures(outcome.figures)
                merge_details(name, seconds, outcome.repetitions)
            for key, value in outcome.figures.items():
                console.print(f"  {key} = {value:.4g}")
            console.print(f"  {seconds:.0f} s")
    return failed


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tests.bench", description=__doc__)
    parser.add_argument("measurement", nargs="*", help=f"one or some of {', '.join(MEASUREMENTS | SCALE)}")
    parser.add_argument("--scale", action="store_true", help="the table of a million rows")
    parser.add_argument("--quick", action="store_true", help="small and fast: shows that it runs, no more")
    parser.add_argument(
        "--rows", type=int, help="real texts of a backfill; with --scale rows of the large table, and no figure is kept"
    )
    arguments = parser.parse_args()
    if unknown := set(arguments.measurement) - set(MEASUREMENTS | SCALE):
        parser.error(f"no measurement {', '.join(sorted(unknown))}: see --help")
    return arguments


if __name__ == "__main__":
    main()
