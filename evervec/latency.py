"""How long an item waits for its vector, from the commit that enqueued it: the classes in which that is counted."""

from bisect import bisect_left

LATENCY_BUCKETS = (
    *(0.05, 0.1, 0.15, 0.2, 0.3, 0.5, 0.75, 1.0, 1.5, 2.0, 3.0, 5.0, 10.0, 30.0),
    *(60.0, 300.0, 1800.0, 7200.0),
)
"""Upper bounds, in seconds. One more class counts what took longer. `evervec.work` documents the same."""
LATENCY_COUNTS = len(LATENCY_BUCKETS) + 1


def latency_bucket(seconds: float) -> int:
    """The class that a latency belongs to: the first whose upper bound is not below it."""
    return bisect_left(LATENCY_BUCKETS, seconds)
