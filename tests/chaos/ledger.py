"""What was committed, told apart from what is not known, in the harness's own memory."""

from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import NamedTuple


class Key(NamedTuple):
    """Names a row."""

    table: str
    id: int


class Row(NamedTuple):
    """What a row's embedding depends on."""

    name: str | None
    description: str | None
    active: bool = True

    @property
    def eligible(self) -> bool:
        """Whether it is to have a vector. Written down once more: not taken from the code under test."""
        return self.active and bool((self.name or "").strip())

    @property
    def content(self) -> str:
        """What is embedded."""
        return " | ".join(text for text in (self.name, self.description) if text and text.strip())


Rows = dict[Key, Row]
Changes = dict[Key, Row | None]
"""What a transaction leaves of the rows that it changed; None: deleted."""


@dataclass
class Ledger:
    """The rows as they were last committed."""

    rows: Rows = field(default_factory=dict)
    changed: set[Key] = field(default_factory=set)
    """All keys that were ever written."""
    lately: deque[Key] = field(default_factory=lambda: deque(maxlen=4))
    """Rows that were written last."""

    def commit(self, changes: Mapping[Key, Row | None]) -> None:
        """The transaction was committed."""
        self.changed |= changes.keys()
        for key, row in changes.items():
            if row is None:
                self.rows.pop(key, None)
            else:
                self.rows[key] = row
                self.lately.append(key)

    def settle(self, changes: Changes, found: Mapping[Key, Row]) -> bool:
        """Whether a transaction whose answer was lost had been committed, seen from what is there now; notes it.

        An AssertionError when it is there in part.
        """
        before = {key: self.rows.get(key) for key in changes}
        now = {key: found.get(key) for key in changes}
        assert now in (before, changes), f"neither done nor undone: {now}, which was {before}"
        if now == before:
            return False
        self.commit(changes)
        return True


class Draft:
    """A transaction's view of a ledger: its own changes before what is committed."""

    def __init__(self, ledger: Ledger) -> None:
        self._ledger = ledger
        self.changes: Changes = {}
        self._saved: Changes = {}

    def get(self, key: Key) -> Row | None:
        """The row as the transaction sees it."""
        return self.changes[key] if key in self.changes else self._ledger.rows.get(key)

    def set(self, key: Key, row: Row | None) -> None:
        """The transaction writes the row, or deletes it."""
        self.changes[key] = row

    def save(self) -> None:
        """A savepoint."""
        self._saved = dict(self.changes)

    def back(self) -> None:
        """Roll back to the savepoint."""
        self.changes = dict(self._saved)
