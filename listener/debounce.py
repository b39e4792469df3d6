"""Wait until an item is quiet: pure, without I/O, with a clock that is handed in."""

from collections import Counter, OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

Clock = Callable[[], float]


class Key(NamedTuple):
    """What names an item in all sources."""

    source: str
    item_key: str


class Due(NamedTuple):
    """An item that was quiet, or has waited for long."""

    key: Key
    content_hash: str | None
    """The last one."""
    waited: float
    """Seconds since its first change."""


@dataclass(slots=True)
class _Waiting:
    content_hash: str | None
    first_change: float
    last_change: float


class Debouncer:
    """Holds each changed item until it was quiet for `window` seconds, or has waited for `longest`.

    Both times are the same for all items. So the items sorted by their first change and by their last are two
    ordered dictionaries, and whatever is due stands at the front of one of them: no heap, and one
    timer is enough, whose time `due_in` tells. Holds `capacity` items at most.
    """

    def __init__(self, window: float, longest: float, capacity: int, clock: Clock) -> None:
        self._window = window
        self._longest = max(window, longest)
        self._capacity = capacity
        self._clock = clock
        self._waiting: OrderedDict[Key, _Waiting] = OrderedDict()  # in the order of first_change
        self._quiet: OrderedDict[Key, None] = OrderedDict()  # in the order of last_change
        self._sources: Counter[str] = Counter()

    def __len__(self) -> int:
        return len(self._waiting)

    def __contains__(self, key: Key) -> bool:
        return key in self._waiting

    def count(self, source: str) -> int:
        """How many items of this source wait."""
        return self._sources[source]

    def put(self, key: Key, content_hash: str | None) -> bool:
        """The item changed now: its window begins anew, its last hash wins. False: no room for another item."""
        now = self._clock()
        waiting = self._waiting.get(key)
        if waiting is None:
            if len(self._waiting) >= self._capacity:
                return False
            self._waiting[key] = _Waiting(content_hash, now, now)
            self._sources[key.source] += 1
        else:
            waiting.content_hash = content_hash
            waiting.last_change = now
        self._quiet[key] = None
        self._quiet.move_to_end(key)
        return True

    def see(self, key: Key, content_hash: str | None, seen_at: float) -> None:
        """A waiting item was seen at `seen_at` with this hash: only a change that was not heard of counts as one."""
        waiting = self._waiting[key]
        if waiting.last_change <= seen_at and waiting.content_hash != content_hash:
            self.put(key, content_hash)

    def drop(self, key: Key) -> None:
        """Forget the item, if it waits."""
        if self._waiting.pop(key, None) is not None:
            del self._quiet[key]
            self._sources[key.source] -= 1
            if not self._sources[key.source]:
                del self._sources[key.source]

    def due_in(self) -> float | None:
        """Seconds until the next item is due, 0 when one is; None when nothing waits."""
        if not self._waiting:
            return None
        quiet, oldest = next(iter(self._quiet)), next(iter(self._waiting))
        due = min(
            self._waiting[quiet].last_change + self._window,
            self._waiting[oldest].first_change + self._longest,
        )
        return max(0.0, due - self._clock())

    def pop_due(self, limit: int) -> list[Due]:
        """Take out up to `limit` items that are due."""
        taken: list[Due] = []
        now = self._clock()
        while self._waiting and len(taken) < limit:
            key = next(iter(self._waiting))
            if self._waiting[key].first_change + self._longest > now:
                key = next(iter(self._quiet))
                if self._waiting[key].last_change + self._window > now:
                    break
            waiting = self._waiting[key]
            taken.append(Due(key, waiting.content_hash, now - waiting.first_change))
            self.drop(key)
        return taken
