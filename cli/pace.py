"""How quickly what waits becomes less, from one look to the next."""

from collections import deque

WINDOW_SECONDS = 30.0
"""Long enough to be steady, short enough to follow a change."""


class Pace:
    """The pace of one source."""

    def __init__(self) -> None:
        self._looks: deque[tuple[float, int]] = deque()

    def look(self, now: float, waiting: int) -> None:
        """Note how many items wait at a moment, in seconds of a steady clock."""
        self._looks.append((now, waiting))
        while len(self._looks) > 2 and self._looks[1][0] <= now - WINDOW_SECONDS:  # noqa: PLR2004 - both ends of it
            self._looks.popleft()

    @property
    def rate(self) -> float | None:
        """Items a second by which it becomes less; None while it does not, or is not known yet."""
        if len(self._looks) < 2:  # noqa: PLR2004 - both ends of it
            return None
        (began, before), (ended, after) = self._looks[0], self._looks[-1]
        return (before - after) / (ended - began) if before > after and ended > began else None

    @property
    def seconds_left(self) -> float | None:
        """Until nothing waits, at this rate; None when that is not known."""
        return self._looks[-1][1] / self.rate if self.rate else None
