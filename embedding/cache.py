"""Vectors that were computed lately: a retry, or an edit and its undo, costs no second embedding."""

import hashlib
from collections import OrderedDict
from collections.abc import Callable
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from evervec.model import ModelSpec

CACHE_BYTES = 12 * 1024 * 1024
"""Enough for three batches that may have to be done again. More would only be there for old texts, and a worker that
embeds new texts all day fills it, whatever its size."""
ENTRY_BYTES = 250
"""What an entry takes besides its numbers, about."""

Key = bytes
Row = NDArray[np.float32]


class VectorCache:
    """The least recently used vectors leave first. For one thread."""

    def __init__(self, size: int = CACHE_BYTES) -> None:
        self._left = size
        self._rows: OrderedDict[Key, Row] = OrderedDict()

    def get(self, key: Key) -> Row | None:
        """The vector, if it is still known."""
        row = self._rows.get(key)
        if row is not None:
            self._rows.move_to_end(key)
        return row

    def put(self, key: Key, row: Row) -> None:
        """Remember a copy: a row of a batch would keep the whole batch in memory."""
        if key in self._rows:
            return
        row = self._rows[key] = row.copy()
        self._left -= row.nbytes + ENTRY_BYTES
        while self._left < 0:
            _, oldest = self._rows.popitem(last=False)
            self._left += oldest.nbytes + ENTRY_BYTES


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
