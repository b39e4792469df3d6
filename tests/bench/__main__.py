"""`python -m tests.bench`: see docs/benchmarks.md."""

import argparse
import asyncio
import os
import sys
import time
from dataclasses import replace

from rich.console import Console

from tests.bench import backends, backfill, latency, lock, noop, scale, stub, writers
from tests.bench.figures import keys_of
from tests.bench.measurement import Bench, Measurement
from tests.bench.pipeline import Servers
from tests.bench.plan import QUICK, Plan
from tests.bench.report import report
from tests.bench.results import forget_figures, merge_details, merge_figures

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
    os.environ["HF_HUB_OFFLINE"] = "1"
    names = arguments.measurement or list(SCALE if arguments.scale else MEASUREMENTS)
    plan = QUICK if arguments.quick else Plan()
    plan = replace(plan, **{"rows": arguments.rows} if arguments.rows else {})
    failed = asyncio.run(_run(names, plan, quick=arguments.quick))
    if not arguments.quick:
        report()
    if failed:
        sys.exit(f"not measured: {', '.join(failed)}")


async def _run(names: list[str], plan: Plan, *, quick: bool) -> list[str]:
    """Do the measurements one after the other; those that failed."""
    console = Console(stderr=True, highlight=False)
    failed = []
    async with Servers.running() as servers:
        bench = Bench(servers, plan, console.print)
        for name in names:
            console.print(f"[bold]{name}[/bold]")
            if not quick:
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
            if not quick:
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
    parser.add_argument("--rows", type=int, help="real texts of a backfill")
    return parser.parse_args()


if __name__ == "__main__":
    main()
