"""What was signalled and has not left the outbox yet."""

from collections import Counter, OrderedDict
from dataclasses import dataclass
from itertools import islice

from listener.debounce import Clock, Key

FIRST_SECONDS = 30.0
LONGEST_SECONDS = 600.0
SLOW_TRIES = 3


@dataclass(slots=True)
class _Sent:
    version: int
    tries: int
    due: float

    @property
    def under_way(self) -> bool:
        return self.tries < SLOW_TRIES


class Sent:
    """Remembers up to `capacity` signalled items, each until it is due again: 30 s, doubling to 10 min.

    An item is under way from its first signal until it leaves the outbox or was signalled three times in vain: what is
    stuck must not hold up the others.
    """

    def __init__(self, capacity: int, clock: Clock) -> None:
        self._capacity = capacity
        self._clock = clock
        self._sent: OrderedDict[Key, _Sent] = OrderedDict()
        self._under_way: Counter[str] = Counter()

    def __len__(self) -> int:
        return len(self._sent)

    def __contains__(self, key: Key) -> bool:
        return key in self._sent

    def under_way(self, source: str) -> int:
        """How many items of this source are under way."""
        return self._under_way[source]

    def rests(self, key: Key, version: int) -> bool:
        """Whether this version was signalled and is not due again."""
        sent = self._sent.get(key)
        return sent is not None and sent.version == version and self._clock() < sent.due

    def add(self, key: Key, version: int) -> int:
        """The item is being signalled; returns for the how-manieth time since this version came."""
        former = self._take(key)
        tries = former.tries + 1 if former and former.version == version else 1
        pause = min(LONGEST_SECONDS, FIRST_SECONDS * 2 ** min(tries - 1, 10))
        self._remember(key, _Sent(version, tries, self._clock() + pause))
        return tries

    def forget(self, key: Key) -> None:
        """The item left the outbox, or its signal did not get through."""
        self._take(key)

    def _take(self, key: Key) -> _Sent | None:
        sent = self._sent.pop(key, None)
        if sent and sent.under_way:
            self._under_way[key.source] -= 1
            if not self._under_way[key.source]:
                del self._under_way[key.source]
        return sent

    def next_keys(self, limit: int) -> list[Key]:
        """The keys whose turn it is to be looked for in the outbox; all get their turn."""
        keys = list(islice(self._sent, limit))
        for key in keys:
            self._sent.move_to_end(key)
        return keys

    def _remember(self, key: Key, sent: _Sent) -> None:
        while len(self._sent) >= self._capacity:
            self.forget(next(iter(self._sent)))
        self._sent[key] = sent
        if sent.under_way:
            self._under_way[key.source] += 1
