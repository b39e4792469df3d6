"""What Prometheus is told: the worker's measurements, and the page that a process serves. docs/metrics.md lists all.

A listener's come from what it keeps of itself, see `listener/measures.py`. No label holds a key.
"""

import socket
import time
import urllib.request
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from enum import StrEnum
from functools import cache

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    Info,
    Metric,
    ProcessCollector,
    disable_created_metrics,
)
from prometheus_client.exposition import start_http_server
from prometheus_client.parser import text_string_to_metric_families
from prometheus_client.registry import Collector
from temporalio.runtime import PrometheusConfig, Runtime, TelemetryConfig

from evervec import __version__
from evervec.errors import ConfigurationError
from evervec.latency import LATENCY_BUCKETS
from evervec.settings import split_address

ENCODE_BUCKETS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0)
WRITE_BACK_BUCKETS = (0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0)
SCRAPE_SECONDS = 2.0
PORTS_TRIED = 5


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


class SdkMetrics(Collector):
    """What Temporal's SDK measures. It serves that on a port of its own, on the loopback interface."""

    def __init__(self) -> None:
        self.runtime, address = _runtime()
        self._url = f"http://{address}/metrics"

    def collect(self) -> Iterable[Metric]:
        """What it says now."""
        with suppress(OSError), urllib.request.urlopen(self._url, timeout=SCRAPE_SECONDS) as page:  # noqa: S310 - http
            yield from text_string_to_metric_families(page.read().decode())


@cache
def sdk_metrics() -> SdkMetrics:
    """The one of this process, made when it is first asked for: with it come a runtime and its threads."""
    return SdkMetrics()


def _runtime() -> tuple[Runtime, str]:
    """A runtime that measures, and the address where it says what. It does not tell a port that it chose itself."""
    for attempt in range(1, PORTS_TRIED + 1):
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            address = f"127.0.0.1:{probe.getsockname()[1]}"
        page = PrometheusConfig(
            bind_address=address, counters_total_suffix=True, unit_suffix=True, durations_as_seconds=True
        )
        try:
            return Runtime(telemetry=TelemetryConfig(metrics=page)), address
        except ValueError:  # somebody else was quicker
            if attempt == PORTS_TRIED:
                raise
    raise AssertionError


@contextmanager
def served(address: str | None, measures: Collector | CollectorRegistry) -> Iterator[None]:
    """Serve the measures at `http://{address}/metrics` while the block runs, with those of process and SDK.

    ConfigurationError when that is somebody else's. Without an address nothing is served.
    """
    if address is None:
        yield
        return
    host, port = split_address(address)
    registry = CollectorRegistry()
    ProcessCollector(registry=registry)
    Info("evervec_build", "The program", registry=registry).info({"version": __version__})
    for collector in (measures, sdk_metrics()):
        registry.register(collector)
    try:
        server, thread = start_http_server(port, host, registry)
    except OSError as error:
        raise ConfigurationError(
            f"EVERVEC_METRICS_ADDRESS: nothing can be served at {address} ({error.strerror or error}); "
            "each process needs an address of its own"
        ) from None
    try:
        yield
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


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
