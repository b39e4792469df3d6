"""What was done: sums of a worker on their way to the database, and the history that it keeps of them."""

from dataclasses import dataclass, field
from datetime import datetime
from typing import NamedTuple

from evervec.latency import LATENCY_COUNTS


@dataclass(slots=True)
class Work:
    """What was done of one source since it was last told."""

    embedded: int = 0
    skipped: int = 0
    """Needed no vector: unchanged, ineligible or gone."""
    failed: int = 0
    """Given up."""
    latency: list[int] = field(default_factory=lambda: [0] * LATENCY_COUNTS)
    """How many of the vectors took how long, in the classes of `LATENCY_BUCKETS` and one more."""


class WorkMinute(NamedTuple):
    """What all workers did of one source in one minute."""

    source: str
    minute: datetime
    embedded: int
    skipped: int
    failed: int
    latency: list[int]
    """See `Work.latency`."""
