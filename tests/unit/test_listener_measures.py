"""What Prometheus is told of the outbox, by a listener that works and by one that does not."""

from collections.abc import Iterator

import pytest
from structlog.testing import capture_logs

from db.outbox import OutboxDepth
from evervec.errors import DatabaseError, ServiceUnreachableError
from listener import measures
from listener.measures import Measures
from listener.status import ListenerStatus, Role

STATUS = ListenerStatus(
    role=Role.LEADING,
    waiting=1,
    under_way=2,
    signalled=3,
    swept=4,
    heard=7,
    garbage=2,
    debounced=6,
    hushed=8,
    not_signalled=9,
    reconnects=10,
    sweeping=["b"],
    overlooked={"a": 11},
    filling=None,
    temporal_away=True,
)
DEPTHS = [OutboxDepth("a", 5, 1, 2.5, paused=True), OutboxDepth("b", 0, 0, 0.0, paused=False)]


Sample = tuple[str, tuple[str, ...], float]


def samples(told: Measures) -> Iterator[Sample]:
    for family in told.collect():
        for sample in family.samples:
            yield sample.name, tuple(sample.labels.values()), sample.value


class FakeDatabase:
    """Refuses, answers, and is gone; before that it notes what is told."""

    def __init__(self, told: Measures) -> None:
        self.told = told
        self.asked = 0
        self.seen: set[Sample] = set()

    async def queue_usage(self) -> float:
        return 0.25

    async def depth(self) -> list[OutboxDepth]:
        self.asked += 1
        if self.asked == 1:
            raise DatabaseError("no function", sqlstate="42883")
        if self.asked == 2:
            return DEPTHS
        self.seen = {*samples(self.told)}
        raise ServiceUnreachableError("gone")


async def test_the_outbox_is_told_of_while_the_listener_works(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(measures, "MEASURE_SECONDS", 0.001)
    told = Measures(lambda: STATUS)
    database = FakeDatabase(told)
    with capture_logs() as logs, pytest.raises(ServiceUnreachableError):
        await told.run(database)
    assert [line["error"] for line in logs] == ["DatabaseError [42883]"]
    of_the_outbox = {
        ("evervec_outbox_items", ("a", "pending"), 5.0),
        ("evervec_outbox_items", ("a", "failed"), 1.0),
        ("evervec_outbox_items", ("b", "pending"), 0.0),
        ("evervec_oldest_pending_seconds", ("a",), 2.5),
        ("evervec_sweep_running", ("a",), 0.0),
        ("evervec_sweep_running", ("b",), 1.0),
        ("evervec_source_paused", ("a",), 1.0),
        ("evervec_notification_queue_usage_ratio", (), 0.25),
    }
    assert of_the_outbox <= database.seen
    assert not of_the_outbox & {*samples(told)}  # it does not work any more, and others may


def test_the_listener_tells_what_it_counts() -> None:
    found = {*samples(Measures(lambda: STATUS))}
    assert {
        ("evervec_listener_role", ("leading",), 1.0),
        ("evervec_listener_role", ("standby",), 0.0),
        ("evervec_debounce_items", (), 1.0),
        ("evervec_under_way_items", (), 2.0),
        ("evervec_signals_total", ("live",), 3.0),
        ("evervec_signals_total", ("sweep",), 4.0),
        ("evervec_notifications_total", ("item",), 5.0),
        ("evervec_notifications_total", ("foreign",), 2.0),
        ("evervec_debounced_total", (), 6.0),
        ("evervec_hushes_total", (), 8.0),
        ("evervec_signal_failures_total", (), 9.0),
        ("evervec_reconnects_total", (), 10.0),
        ("evervec_overlooked_items_total", ("a",), 11.0),
        ("evervec_temporal_away", (), 1.0),
        ("evervec_first_fill_running", (), 0.0),
    } <= found
