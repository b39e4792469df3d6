"""A table of a million rows, without a model: time an item, memory, and status."""

import shutil
import time
from statistics import median

from tests.bench.corpus import corpus
from tests.bench.measurement import Bench, Outcome
from tests.bench.models import STUB
from tests.bench.pipeline import Pipeline, cpu_seconds, peak_mb
from tests.integration.program import Program

TEXTS = 20_000
BYTES_A_ROW = 25_000
"""Of disk, at most: the vector twice until a vacuum, and the write-ahead log."""
STATUS_REPETITIONS = 5


async def scale(bench: Bench) -> Outcome:
    """Forced re-fires of 10,000 rows some times, and of 1,000,000 once."""
    plan = bench.plan
    _check_disk(bench, plan.scale_rows)
    async with bench.servers.pipeline(STUB) as pipeline:
        await _filled(pipeline, plan.small_rows)
        small = []
        for _ in range(plan.repetitions):
            small.append(await pipeline.backfill())
            await pipeline.settled()
        bench.say(f"  {plan.small_rows / median(small):,.0f} items/s with {plan.small_rows:,} rows")

    async with bench.servers.pipeline(STUB) as pipeline:
        listener, worker = await _filled(pipeline, plan.scale_rows)
        bench.say(f"  {plan.scale_rows:,} rows are filled")
        events = await pipeline.events()
        large = await pipeline.backfill()
        await pipeline.settled()
        bench.say(f"  {plan.scale_rows / large:,.0f} items/s with {plan.scale_rows:,} rows")
        status = [await _status_ms(pipeline) for _ in range(STATUS_REPETITIONS)]
        return Outcome(
            {
                "cost_ratio_1m_to_10k": (large / plan.scale_rows) / (median(small) / plan.small_rows),
                "listener_peak_mb": peak_mb(listener),
                "worker_peak_mb": peak_mb(worker),
                "status_ms_million": median(status),
            },
            {
                "scale_small_seconds": small,
                "scale_large_seconds": [large],
                "scale_events_per_item": [(await pipeline.events() - events) / plan.scale_rows],
                "scale_listener_cpu_seconds": [cpu_seconds(listener)],
                "scale_worker_cpu_seconds": [cpu_seconds(worker)],
                "scale_status_ms": status,
            },
        )


def _check_disk(bench: Bench, rows: int) -> None:
    free, needed = shutil.disk_usage(bench.servers.folder).free, rows * BYTES_A_ROW
    if free < needed:
        raise SystemExit(
            f"{bench.servers.folder.parent} has {free / 1e9:.0f} GB, {rows:,} rows need {needed / 1e9:.0f}: "
            "name another folder with TMPDIR"
        )


async def _filled(pipeline: Pipeline, rows: int) -> tuple[Program, Program]:
    """A table of so many rows, each with a text of its own and its vector; the listener and the worker."""
    await pipeline.create()
    await pipeline.site.run("SELECT evervec.pause('items')")
    texts = corpus(min(rows, TEXTS))
    await pipeline.insert(f"{texts[number % len(texts)]} ({number})" for number in range(rows))
    await pipeline.site.run("VACUUM ANALYZE items")
    listener, worker = await pipeline.start_listener(), await pipeline.start_worker()
    await pipeline.site.run("SELECT evervec.resume('items')")
    await pipeline.settled()
    await pipeline.site.run("VACUUM items, evervec.outbox")
    return listener, worker


async def _status_ms(pipeline: Pipeline) -> float:
    started = time.perf_counter()
    await pipeline.site.run("SELECT * FROM evervec.status")
    return (time.perf_counter() - started) * 1000
