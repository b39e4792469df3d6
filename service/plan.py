"""What watching a table would take: how long, and how much disk."""

import time
from typing import NamedTuple

from db.plan import WatchPlan
from db.sources import Sources, WatchOptions
from embedding.encoder import Encoder

EXACT_ROWS = 50_000
"""A larger table is not read as a whole; so many of its rows are."""
TRIED_TEXTS = 64
PIPELINE_RATE = 10_000
"""Items a second that all but the model can do: `stub_items_per_s` in docs/benchmarks.md."""
ROW_BYTES = 160
"""What an item takes beside its vector, about: hash, model, time, and what PostgreSQL keeps of a row."""
PAGE_LOSS = 1.1
"""Pages are not filled to the last byte."""


class Estimate(NamedTuple):
    """What a plan takes; times are those of one worker on a machine like this one."""

    items_per_second: float | None
    """None where there was nothing to try the model with."""
    seconds: float | None
    vector_bytes: int
    """For vectors, and what is kept beside them."""
    rewritten_bytes: int
    """For new versions of the table's rows, until vacuum has freed the old ones."""


async def plan_watch(sources: Sources, options: WatchOptions) -> WatchPlan:
    """What `watch` would do; nothing changes. The errors are those of `watch`."""
    return await sources.plan_watch(options, exact=EXACT_ROWS, texts=TRIED_TEXTS)


def estimate(plan: WatchPlan, items_per_second: float | None) -> Estimate:
    """Time and disk of a plan, where the model does so many texts a second."""
    each = (4 * plan.dimension + 8) * PAGE_LOSS + ROW_BYTES
    rewritten = plan.bytes * plan.to_embed / max(plan.rows, 1) if plan.destination == "column" else 0
    seconds = None
    if items_per_second or not plan.to_embed:
        seconds = plan.to_embed / (items_per_second or 1) + plan.to_embed / PIPELINE_RATE
    return Estimate(items_per_second, seconds, round(plan.to_embed * each), round(rewritten))


async def try_model(plan: WatchPlan, encoder: Encoder) -> float | None:
    """How many of the table's texts a second the model does here; None without texts.

    ModelUnavailableError when it cannot be loaded here, DimensionError when its dimension is another.
    """
    if not plan.texts:
        return None
    await encoder.embed(plan.spec, ["evervec"], live=False)
    began = time.perf_counter()
    await encoder.embed_each(plan.spec, plan.texts, live=False)
    return len(plan.texts) / (time.perf_counter() - began)
