"""What can go wrong: small classes with one face."""

from tests.chaos.faults.base import Fault
from tests.chaos.faults.network import Frozen, HalfOpen
from tests.chaos.faults.people import ConnectionsCut, QueueFull, Refired
from tests.chaos.faults.processes import (
    ListenerKilled,
    ListenerStopped,
    SecondListener,
    SecondWorker,
    WorkerChanged,
    WorkerKilled,
    WorkerStopped,
)
from tests.chaos.faults.servers import PostgresCrashed, PostgresStopped, TemporalKilled, TemporalStopped

__all__ = ["KINDS", "Fault"]

KINDS: dict[str, type[Fault]] = {
    fault.kind: fault
    for fault in (
        ListenerKilled,
        WorkerKilled,
        TemporalKilled,
        PostgresCrashed,
        PostgresStopped,
        ListenerStopped,
        WorkerStopped,
        TemporalStopped,
        HalfOpen,
        Frozen,
        QueueFull,
        WorkerChanged,
        SecondListener,
        SecondWorker,
        ConnectionsCut,
        Refired,
    )
}
