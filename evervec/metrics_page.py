"""The page that a process serves to Prometheus: its measures, and those of Temporal's SDK."""

import socket
import urllib.request
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from functools import cache

from prometheus_client import CollectorRegistry, Info, Metric, ProcessCollector
from prometheus_client.exposition import start_http_server
from prometheus_client.parser import text_string_to_metric_families
from prometheus_client.registry import Collector
from temporalio.runtime import PrometheusConfig, Runtime, TelemetryConfig

from evervec import __version__
from evervec.errors import ConfigurationError
from evervec.settings import split_address

SCRAPE_SECONDS = 2.0
PORTS_TRIED = 5


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
