"""What a worker measures, for Prometheus: docs/metrics.md lists it. `metrics_page` serves it.

A listener's measures come from what it keeps of itself, see `listener/measures.py`. No label holds a key.
"""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from enum import StrEnum

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, disable_created_metrics

from evervec.latency import LATENCY_BUCKETS

ENCODE_BUCKETS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0)
WRITE_BACK_BUCKETS = (0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0)


# A timestamp beside each counter and histogram, which nobody asks for.
disable_created_metrics()  # type: ignore[no-untyped-call]


class Lane(StrEnum):
    """The way that an item took."""

    LIVE = "live"
    SWEEP = "sweep"


WORK = CollectorRegistry()
"""What a worker measures."""

READY = Gauge("evervec_worker_ready", "1 while the worker asks Temporal for work", registry=WORK)
ITEMS = Counter("evervec_items", "Items by what became of them", ["source", "lane", "outcome"], registry=WORK)
FAILED_ATTEMPTS = Counter(
    "evervec_failed_attempts", "Attempts that failed by the item's own fault", ["source", "lane"], registry=WORK
)
ACTIVITY_FAILURES = Counter(
    "evervec_activity_failures", "Attempts at an activity that ended in an error", ["activity"], registry=WORK
)
COMMIT_TO_VECTOR = Histogram(
    "evervec_commit_to_vector_seconds",
    "Time from an item's first enqueue to its vector",
    ["source", "lane"],
    buckets=LATENCY_BUCKETS,
    registry=WORK,
)
WRITE_BACK_SECONDS = Histogram(
    "evervec_write_back_seconds", "Time of a write-back", ["lane"], buckets=WRITE_BACK_BUCKETS, registry=WORK
)
WRITE_BACK_ERRORS = Counter("evervec_write_back_errors", "Write-backs that the database refused", registry=WORK)
OVERLOOKED = Counter(
    "evervec_overlooked_items", "Stale items that no trigger saw, found by a walk", ["source"], registry=WORK
)
ENCODE_SECONDS = Histogram(
    "evervec_encode_seconds", "Time of a step of the encoder", ["model"], buckets=ENCODE_BUCKETS, registry=WORK
)
ENCODE_TEXTS = Counter("evervec_encode_texts", "Texts that a model has read", ["model"], registry=WORK)
ENCODE_TOKENS = Counter("evervec_encode_tokens", "Tokens that a model has read", ["model"], registry=WORK)
TRUNCATED_TEXTS = Counter(
    "evervec_truncated_texts", "Texts that were longer than the model reads", ["model"], registry=WORK
)
CACHED_TEXTS = Counter("evervec_cached_texts", "Texts that were embedded shortly before", registry=WORK)
MODEL_LOAD_SECONDS = Gauge("evervec_model_load_seconds", "Time of a model's last load", ["model"], registry=WORK)
MODEL_LOAD_FAILURES = Counter("evervec_model_load_failures", "Loads of a model that failed", ["model"], registry=WORK)


@contextmanager
def timed(histogram: Histogram, errors: Counter) -> Iterator[None]:
    """Observe how long the block takes, and count what it raises."""
    started = time.perf_counter()
    try:
        yield
    except Exception:
        errors.inc()
        raise
    finally:
        histogram.observe(time.perf_counter() - started)
