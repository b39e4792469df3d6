"""How soon an edit's vector is there, with nothing else to do and with a backfill running."""

import asyncio
from statistics import median

from embedding.embedders import load_embedder
from evervec.messages import ITEM_WORKFLOW
from evervec.settings import Settings
from tests.bench.bare_live import BareLive
from tests.bench.corpus import corpus
from tests.bench.edits import Edits
from tests.bench.measurement import Bench, Outcome, percentile
from tests.bench.models import BUNDLED
from tests.bench.pipeline import Pipeline

DEBOUNCE_MS = 20
IDLE_PAUSE = (0.05, 0.35)
"""Seconds between two edits: shortest, longest."""
BUSY_PAUSE = (0.02, 0.15)


async def latency(bench: Bench) -> Outcome:
    """Edits of items whose workflows are open; the bare parts in turn with them."""
    plan = bench.plan
    texts = corpus(plan.open_items + 4 * plan.edits + plan.busy_rows)
    new_texts = texts[plan.open_items + plan.busy_rows :]
    embedder = await asyncio.to_thread(load_embedder, BUNDLED, Settings())
    async with bench.servers.pipeline(BUNDLED, debounce_ms=DEBOUNCE_MS) as pipeline:
        await pipeline.create()
        await pipeline.insert(texts[: plan.open_items])
        await pipeline.start_listener()
        await pipeline.start_worker()
        await pipeline.settled()
        async with (
            Edits.of(pipeline, plan.open_items, new_texts) as edits,
            BareLive.ready(pipeline, embedder) as bare,
        ):
            await edits.open_all()
            await bare.warm_up(texts[0])
            idle = []
            events = await pipeline.events(ITEM_WORKFLOW)
            for number in range(plan.edits):
                idle += await edits.some(1, *IDLE_PAUSE)
                await bare.once(new_texts[-number], 1 + number % plan.open_items)
            events_per_edit = (await pipeline.events(ITEM_WORKFLOW) - events) / plan.edits
            bench.say(f"  idle: median {median(idle):.1f} ms, bare {bare.median_ms:.1f} ms")
            busy = await _with_backfill(bench, pipeline, edits, texts[plan.open_items : -len(new_texts)])
            bench.say(f"  with a backfill: median {median(busy):.1f} ms")
    return Outcome(
        {
            "latency_ratio_to_bare": (median(idle) - DEBOUNCE_MS) / bare.median_ms,
            "latency_idle_p50_ms": median(idle),
            "latency_idle_p95_ms": percentile(idle, 95),
            "latency_idle_p95_to_p50": percentile(idle, 95) / median(idle),
            "latency_busy_p95_ms": percentile(busy, 95),
            "latency_busy_to_idle": percentile(busy, 95) / percentile(idle, 95),
            "events_per_item_live": events_per_edit,
        },
        {
            "latency_idle_ms": idle,
            "latency_busy_ms": busy,
            "latency_bare_signal_ms": bare.signal_ms,
            "latency_bare_encode_ms": bare.encode_ms,
            "latency_bare_write_ms": bare.write_ms,
        },
    )


async def _with_backfill(bench: Bench, pipeline: Pipeline, edits: Edits, texts: tuple[str, ...]) -> list[float]:
    """Edits while many other rows of the table are embedded, and embedded anew if that ends before the edits do."""
    plan = bench.plan
    await pipeline.insert(texts, first=plan.open_items + 1)
    backfill: asyncio.Future[object] = asyncio.ensure_future(pipeline.settled())
    taken: list[float] = []
    while len(taken) < plan.edits:
        if backfill.done():
            await backfill
            backfill = asyncio.ensure_future(pipeline.backfill(f"id > {plan.open_items}"))
        taken += await edits.some(1, *BUSY_PAUSE)
    backfill.cancel()
    await asyncio.wait([backfill])
    return taken
