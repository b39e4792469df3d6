"""The write-back that all activities share."""

import asyncio
from collections import Counter
from collections.abc import Sequence

from activities.tally import Tally
from db.items import Items, WriteBack
from evervec import metrics
from evervec.messages import Outcome
from evervec.metrics import Lane
from evervec.tracing import span

LOCK_WAITS = (0.0, 0.05, 0.1, 0.2, 0.4, 0.8, 1.6)
"""Seconds before each try: most transactions that hold a row are over sooner than it would be embedded again."""


async def store_item_embedding(
    items: Items,
    tally: Tally,
    lane: Lane,
    source: str,
    writes: Sequence[WriteBack],
    *,
    waits: Sequence[float] | None = None,
) -> dict[str, Outcome]:
    """Write vectors back and ack their changes, an outcome for each key; LOCKED for rows that stayed locked."""
    outcomes: dict[str, Outcome] = {}
    for wait in LOCK_WAITS if waits is None else waits:
        await asyncio.sleep(wait)
        with (
            span("write back", source=source, items=len(writes)) as told,
            metrics.timed(metrics.WRITE_BACK_SECONDS.labels(lane), metrics.WRITE_BACK_ERRORS),
        ):
            found = await items.write_back(source, writes)
            told |= Counter(found.values())
        outcomes |= found
        tally.stored(source, lane, writes, outcomes)
        writes = [write for write in writes if outcomes[write.item_key] is Outcome.LOCKED]
        if not writes:
            break
    return outcomes
