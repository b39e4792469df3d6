"""The page that a process serves to Prometheus: its measures, and those of Temporal's SDK."""

import socket
from collections.abc import Iterable, Iterator
from contextlib import closing, contextmanager, suppress
from functools import cache
from http.client import HTTPConnection, HTTPException

from prometheus_client import CollectorRegistry, Info, Metric, ProcessCollector
from prometheus_client.exposition import start_http_server
from prometheus_client.parser import text_string_to_metric_families
from prometheus_client.registry import Collector
from temporalio.runtime import PrometheusConfig, Runtime, TelemetryConfig

from evervec import __version__
from evervec.errors import ConfigurationError
from evervec.settings import split_address

HERE = "127.0.0.1"
SCRAPE_SECONDS = 2.0
PORTS_TRIED = 5


class SdkMetrics(Collector):
    """What Temporal's SDK measures. It serves that on a port of its own, on the loopback interface."""

    def __init__(self) -> None:
        self.runtime, self._port = _runtime()

    def collect(self) -> Iterable[Metric]:
        """What it says now."""
        # Without a proxy, whatever the environment says.
        with suppress(OSError, HTTPException), closing(HTTPConnection(HERE, self._port, SCRAPE_SECONDS)) as connection:
            connection.request("GET", "/metrics")
            yield from text_string_to_metric_families(connection.getresponse().read().decode())


@cache
def sdk_metrics() -> SdkMetrics:
    """The one of this process, made when it is first asked for: with it come a runtime and its threads."""
    return SdkMetrics()


def _runtime() -> tuple[Runtime, int]:
    """A runtime that measures, and the port where it says what. It does not tell a port that it chose itself."""
    for attempt in range(1, PORTS_TRIED + 1):
        with socket.socket() as probe:
            probe.bind((HERE, 0))
            port: int = probe.getsockname()[1]
        page = PrometheusConfig(
            bind_address=f"{HERE}:{port}", counters_total_suffix=True, unit_suffix=True, durations_as_seconds=True
        )
        try:
            return Runtime(telemetry=TelemetryConfig(metrics=page)), port
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
