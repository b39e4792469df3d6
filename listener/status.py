"""What a listener is doing."""

from dataclasses import dataclass
from enum import StrEnum


class Role(StrEnum):
    """What a listener is doing."""

    STOPPED = "stopped"
    RECONNECTING = "reconnecting"
    STANDBY = "standby"
    HELPING = "helping"
    LEADING = "leading"


@dataclass(frozen=True)
class ListenerStatus:
    """What a listener is doing now; counts since it was started."""

    role: Role
    waiting: int
    """Items that wait to be quiet."""
    under_way: int
    """Items that were signalled and not seen to leave the outbox yet."""
    signalled: int
    """Signals to items' workflows."""
    swept: int
    """Signals to sweeps: that items wait."""
    heard: int
    """Notifications, garbage included."""
    garbage: int
    """Those that were not ours."""
    debounced: int
    """Notified changes of items that waited already."""
    hushed: int
    """How often the bell was silenced, since too much was heard that was of no use."""
    not_signalled: int
    """Signals that did not get through."""
    reconnects: int
    """Lost connections to the database."""
    sweeping: list[str]
    """The sources whose sweeps were at work not long ago."""
    overlooked: dict[str, int]
    """Stale items by source that no trigger saw."""
    filling: str | None
    """The source whose first fill runs."""
    temporal_away: bool
