"""The listener and the worker as processes that Prometheus could ask, and what they would say."""

import asyncio
import random
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, closing, suppress
from dataclasses import dataclass
from http.client import HTTPConnection
from pathlib import Path

from prometheus_client.metrics_core import Metric
from prometheus_client.parser import text_string_to_metric_families

from tests.integration.pipeline import Site
from tests.integration.program import Program, programs

SERIES = {"histogram": ("_bucket", "_count", "_sum"), "counter": ("_total",), "info": ("_info",)}


def free_address() -> str:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return f"127.0.0.1:{probe.getsockname()[1]}"


def free_neighbours() -> tuple[str, str]:
    """Two addresses, the second one with the next port.

    Not of the ports that Linux gives away itself: every other of these may be somebody's end of a connection, and for a
    minute after its end, before a process that starts has come so far as to bind it.
    """
    host = "127.0.0.1"
    while True:
        port = random.SystemRandom().randrange(20_000, 30_000)
        with suppress(OSError), socket.create_server((host, port)), socket.create_server((host, port + 1)):
            return f"{host}:{port}", f"{host}:{port + 1}"


async def scrape(address: str) -> dict[str, Metric]:
    """The metrics that a process serves, by their names as `docs/metrics.md` has them."""

    def read() -> str:
        with closing(HTTPConnection(address, timeout=10)) as connection:
            connection.request("GET", "/metrics")
            return connection.getresponse().read().decode()

    families = text_string_to_metric_families(await asyncio.to_thread(read))
    return {_name(family): family for family in families}


def _name(family: Metric) -> str:
    return family.name + {"counter": "_total", "info": "_info"}.get(family.type, "")


def value(families: dict[str, Metric], name: str, **labels: str) -> float:
    """The sum of the samples with these labels, 0 when there are none. `name` is a sample's."""
    family = next((family for key, family in families.items() if name.startswith(key)), None)
    return sum(
        sample.value
        for sample in (family.samples if family else [])
        if sample.name == name and labels.items() <= sample.labels.items()
    )


def series(families: dict[str, Metric]) -> set[str]:
    """The names that a query may use."""
    return {sample.name for family in families.values() for sample in family.samples}


@dataclass
class Processes:
    """A listener and a worker at work."""

    listener: str
    worker: str

    async def asked(self) -> tuple[dict[str, Metric], dict[str, Metric]]:
        """What the two say now."""
        return await scrape(self.listener), await scrape(self.worker)


@asynccontextmanager
async def processes(site: Site, folder: Path) -> AsyncIterator[Processes]:
    """Both, with their metrics served."""
    addresses = Processes(free_address(), free_address())
    listener = Program("listener", site.settings, folder / "listener.log", EVERVEC_METRICS_ADDRESS=addresses.listener)
    worker = Program("worker", site.settings, folder / "worker.log", EVERVEC_METRICS_ADDRESS=addresses.worker)
    async with programs(listener, worker):
        await listener.logged("listener leads")
        await worker.logged("worker ready")
        yield addresses
        assert [await program.end() for program in (listener, worker)] == [0, 0]
