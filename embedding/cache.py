"""Vectors that were computed lately: a retry, or an edit and its undo, costs no second embedding."""

import hashlib
from collections import OrderedDict
from collections.abc import Callable
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from evervec.model import ModelSpec

CACHE_BYTES = 10 * 1024 * 1024
"""Enough for three batches that may have to be done again. More would only be there for old texts, and a worker that
embeds new texts all day fills it, whatever its size."""

Key = bytes
Row = NDArray[np.float32]


class VectorCache:
    """The vectors that came first leave first. For one thread.

    It takes its memory at once, and goes round in it: thousands of small arrays would make the process grow for as
    long as they become more, and leave holes when they go.
    """

    def __init__(self, size: int = CACHE_BYTES) -> None:
        self._room = np.full(size // 4, np.nan, dtype=np.float32)  # written to, or it would be memory by name only
        self._places: OrderedDict[Key, slice] = OrderedDict()
        self._here = 0

    def get(self, key: Key) -> Row | None:
        """The vector, if it is still known."""
        place = self._places.get(key)
        return None if place is None else self._room[place].copy()

    def put(self, key: Key, row: Row) -> None:
        """Remember a copy."""
        if key in self._places or row.size > self._room.size:
            return
        if self._here + row.size > self._room.size:
            self._forget_until(self._room.size)
            self._here = 0
        end = self._here + row.size
        self._forget_until(end)
        self._places[key] = slice(self._here, end)
        self._room[self._here : end] = row
        self._here = end

    def _forget_until(self, end: int) -> None:
        """Forget what begins between here and there: it is the oldest, from the round before."""
        while self._places:
            oldest = next(iter(self._places))
            if not self._here <= self._places[oldest].start < end:
                return
            del self._places[oldest]


@lru_cache(maxsize=64)
def keys_of(model: ModelSpec) -> Callable[[str], Key]:
    """Gives a text's key: the SHA-256 of all that decides its vector. UnicodeEncodeError if it is no Unicode."""
    # None of these holds a NUL: PostgreSQL has no such text.
    start = hashlib.sha256(f"{model.name}\0{model.revision}\0{model.dimension}\0{model.prompt}\0".encode())

    def key(text: str) -> Key:
        digest = start.copy()
        digest.update(text.encode())
        return digest.digest()

    return key
