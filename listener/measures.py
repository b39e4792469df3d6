"""What Prometheus is told of a listener: what it does, and how deep the outbox is."""

import asyncio
import time
from collections.abc import Callable, Iterable
from typing import Protocol

from prometheus_client import Metric
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.registry import Collector

from db.outbox import OutboxDepth
from evervec.errors import ConfigurationError, DatabaseError
from evervec.log import describe_error, get_logger
from listener.status import ListenerStatus, Role

MEASURE_SECONDS = 5.0
REST = 20
"""The outbox is left alone so many times as long as it took to measure it."""

_log = get_logger(__name__)


class Measured(Protocol):
    """The database, as far as it is measured."""

    async def depth(self) -> list[OutboxDepth]:
        """What waits of each source."""

    async def queue_usage(self) -> float:
        """How much of the server's notification queue is taken, from 0 to 1."""


class Measures(Collector):
    """Looks into the database now and then while the listener works; the rest the listener tells at each scrape."""

    def __init__(self, status: Callable[[], ListenerStatus]) -> None:
        self._status = status
        self._depths: list[OutboxDepth] = []
        self._queue_usage: float | None = None

    async def run(self, database: Measured) -> None:
        """Measure until cancelled. ServiceUnreachableError when the database is lost."""
        try:
            while True:
                started = time.monotonic()
                await self._measure(database)
                await asyncio.sleep(max(MEASURE_SECONDS, REST * (time.monotonic() - started)))
        finally:
            # Whoever leads now measures; what is known here gets old.
            self._depths, self._queue_usage = [], None

    async def _measure(self, database: Measured) -> None:
        try:
            self._queue_usage = await database.queue_usage()
            self._depths = await database.depth()
        except (DatabaseError, ConfigurationError) as error:  # an earlier version's database
            _log.warning("the outbox could not be measured", error=describe_error(error))

    def collect(self) -> Iterable[Metric]:
        """What there is to tell now; called by another thread."""
        status = self._status()
        yield from _doing(status)
        yield from _counted(status)
        yield from self._outbox(status)

    def _outbox(self, status: ListenerStatus) -> Iterable[Metric]:
        items = GaugeMetricFamily("evervec_outbox_items", "Items in the outbox", labels=["source", "state"])
        oldest = GaugeMetricFamily(
            "evervec_oldest_pending_seconds", "Time since the oldest pending item was enqueued", labels=["source"]
        )
        sweeping = GaugeMetricFamily("evervec_sweep_running", "1 while a sweep is at work", labels=["source"])
        paused = GaugeMetricFamily("evervec_source_paused", "1 while a source is paused", labels=["source"])
        for depth in self._depths:
            items.add_metric([depth.source, "pending"], depth.pending)
            items.add_metric([depth.source, "failed"], depth.failed)
            oldest.add_metric([depth.source], depth.oldest_pending_seconds)
            sweeping.add_metric([depth.source], depth.source in status.sweeping)
            paused.add_metric([depth.source], depth.paused)
        yield from (items, oldest, sweeping, paused)
        if self._queue_usage is not None:
            yield GaugeMetricFamily(
                "evervec_notification_queue_usage_ratio",
                "How much of the server's notification queue is taken",
                value=self._queue_usage,
            )


def _doing(status: ListenerStatus) -> Iterable[Metric]:
    role = GaugeMetricFamily("evervec_listener_role", "1 for what the listener is", labels=["role"])
    for each in Role:
        role.add_metric([each], each is status.role)
    yield role
    for name, text, value in (
        ("evervec_debounce_items", "Items that wait to be quiet", status.waiting),
        ("evervec_under_way_items", "Items signalled and not seen to leave the outbox yet", status.under_way),
        ("evervec_temporal_away", "1 while Temporal takes no calls", status.temporal_away),
        ("evervec_first_fill_running", "1 while a source's first fill runs", status.filling is not None),
    ):
        yield GaugeMetricFamily(name, text, value=value)


def _counted(status: ListenerStatus) -> Iterable[Metric]:
    for name, text, value in (
        ("evervec_debounced", "Notified changes of items that waited already", status.debounced),
        ("evervec_hushes", "How often the bell was silenced", status.hushed),
        ("evervec_reconnects", "Lost connections to the database", status.reconnects),
        ("evervec_signal_failures", "Signals that did not get through to Temporal", status.not_signalled),
    ):
        yield CounterMetricFamily(name, text, value=value)
    notifications = CounterMetricFamily("evervec_notifications", "Notifications heard", labels=["kind"])
    notifications.add_metric(["item"], status.heard - status.garbage)
    notifications.add_metric(["foreign"], status.garbage)
    yield notifications
    signals = CounterMetricFamily("evervec_signals", "Signals to workflows", labels=["lane"])
    signals.add_metric(["live"], status.signalled)
    signals.add_metric(["sweep"], status.swept)
    yield signals
    overlooked = CounterMetricFamily(
        "evervec_overlooked_items", "Stale items that no trigger saw, found by a walk", labels=["source"]
    )
    for source, found in status.overlooked.items():
        overlooked.add_metric([source], found)
    yield overlooked
