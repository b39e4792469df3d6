"""How long to wait before the next try."""

import random


class Backoff:
    """Doubles from `first` to `longest` seconds, with jitter, until `reset`."""

    def __init__(self, first: float = 0.1, longest: float = 10.0) -> None:
        self._first = first
        self._longest = longest
        self._delay = first

    def next(self) -> float:
        """Seconds to wait: between half of the present delay and all of it."""
        delay = self._delay * random.uniform(0.5, 1.0)  # noqa: S311 - spreads load, hides nothing
        self._delay = min(self._longest, self._delay * 2)
        return delay

    def reset(self) -> None:
        """It worked: start small again."""
        self._delay = self._first
