"""Which sources are heard of in vain: paused ones, and such as are not there."""

from collections.abc import Iterable

from listener.debounce import Clock, Key

ENOUGH = 8
"""So many items of a source looked up in a row, and none of them waiting."""
SECONDS = 1.0
"""Then one more is looked up in each such time."""
CAPACITY = 1000
"""Sources remembered; anybody may make up names."""


class Vain:
    """Remembers of which sources the last items that were looked up were not to be had.

    Without it each item that is written in a paused source would be looked up, and again with each edit.
    """

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._counts: dict[str, int] = {}
        self._until: dict[str, float] = {}

    def heeds(self, source: str) -> bool:
        """Whether an item of this source is worth a look-up; of one that is vain one in a second is."""
        until = self._until.get(source)
        if until is None:
            return True
        if until > self._clock():
            return False
        self._until[source] = self._clock() + SECONDS
        return True

    def looked_up(self, keys: Iterable[Key], waiting: Iterable[str]) -> None:
        """These items were looked up; those that wait are of these sources."""
        for key in keys:
            if key.source not in self._counts and len(self._counts) >= CAPACITY:
                self._counts.clear()
                self._until.clear()
            self._counts[key.source] = self._counts.get(key.source, 0) + 1
            if self._counts[key.source] >= ENOUGH:
                self._until[key.source] = self._clock() + SECONDS
        for source in waiting:
            self.forget(source)

    def forget(self, source: str) -> None:
        """An item of the source was found waiting."""
        self._counts.pop(source, None)
        self._until.pop(source, None)
