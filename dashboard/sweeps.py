"""How far the sweeps are: what each has done, what is left, how fast it goes and when it will be done."""

import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import NamedTuple

from temporalio.client import Client

from db.sources import SourceStatus
from evervec.messages import SweepStatus
from evervec.temporal import sweep_workflow_id
from service.workflow import workflow_status

WINDOW_SECONDS = 20.0
"""The rate is that of so long."""
SHOWN_SECONDS = 60.0
"""How long a sweep is shown that has ended."""

Clock = Callable[[], float]


class Sample(NamedTuple):
    """What a sweep had done at a moment."""

    at: float
    items: int


@dataclass(frozen=True, slots=True)
class SweepView:
    """One sweep, for people."""

    source: str
    running: bool
    done: int
    """Items looked at."""
    left: int
    failed: int
    rate: float | None
    """Items a second, lately."""
    limit: float | None
    """Items a second that it may embed."""
    started_at: datetime
    last_error: str | None

    @property
    def share(self) -> float:
        """0 to 1; what is done of all that it has come across so far."""
        return 1.0 if not self.running else self.done / max(self.done + self.left, 1)

    @property
    def seconds_left(self) -> float | None:
        """None when nothing moves."""
        return self.left / self.rate if self.rate else None


class Track:
    """One source's sweep as it was seen."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._samples: deque[Sample] = deque()
        self.view: SweepView | None = None
        self.ended_at: float | None = None

    def running(self, status: SweepStatus, left: int) -> None:
        """It runs, and says how far it is."""
        now = self._clock()
        if self.view and self.view.started_at != status.started_at:
            self._samples.clear()
        self._samples.append(Sample(now, status.items))
        while len(self._samples) > 2 and self._samples[1].at < now - WINDOW_SECONDS:  # noqa: PLR2004 - a first and a last
            self._samples.popleft()
        self.ended_at = None
        self.view = SweepView(
            source=status.source,
            running=True,
            done=status.items,
            left=left,
            failed=status.failed,
            rate=self._rate(status),
            limit=status.rate,
            started_at=status.started_at,
            last_error=status.last_error,
        )

    def over(self) -> None:
        """It runs no more."""
        if self.view and self.view.running:
            self.ended_at = self._clock()
            done = self.view.done + self.view.left
            self.view = SweepView(
                source=self.view.source,
                running=False,
                done=done,
                left=0,
                failed=self.view.failed,
                rate=self.view.rate,
                limit=None,
                started_at=self.view.started_at,
                last_error=None,
            )

    def _rate(self, status: SweepStatus) -> float | None:
        first, last = self._samples[0], self._samples[-1]
        if last.at - first.at < 2:  # noqa: PLR2004 - seconds; too short to say
            return status.items_per_second or None
        return (last.items - first.items) / (last.at - first.at) or status.items_per_second or None

    @property
    def forgotten(self) -> bool:
        """Whether it has been over for so long that nobody asks any more."""
        return not self.view or (self.ended_at is not None and self._clock() - self.ended_at > SHOWN_SECONDS)


class Sweeps:
    """All sources' sweeps."""

    def __init__(self, clock: Clock = time.monotonic) -> None:
        self._clock = clock
        self._tracks: dict[str, Track] = {}

    @property
    def views(self) -> list[SweepView]:
        """Those that run, and those that ended a moment ago."""
        return [track.view for _, track in sorted(self._tracks.items()) if track.view and not track.forgotten]

    async def look(self, client: Client, instance: str, sources: Sequence[SourceStatus]) -> None:
        """Ask those that may run: of sources where something waits, and those that ran a moment ago.

        ServiceUnreachableError when Temporal is away.
        """
        known = {one.source for one in sources}
        self._tracks = {name: track for name, track in self._tracks.items() if name in known and not track.forgotten}
        for one in sources:
            track = self._tracks.get(one.source)
            if not one.pending and not (track and track.view and track.view.running):
                continue
            found = await workflow_status(client, sweep_workflow_id(instance, one.source))
            if found and found.status == "running":
                if found.sweep:  # else no worker answers: what was seen last stays
                    self._tracks.setdefault(one.source, Track(self._clock)).running(found.sweep, one.pending)
            elif track:
                track.over()
