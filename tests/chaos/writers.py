"""Who writes the tables: transactions of all kinds, each noted in the ledger when it is known to be committed."""

import asyncio
import random
import time
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field

from psycopg import AsyncConnection, Error

from tests.chaos.changes import MIX, Connection, Hand
from tests.chaos.ledger import Changes, Draft, Key, Ledger, Row, Rows
from tests.chaos.site import Site

LOST = ("08", "57P")
"""Classes of SQLSTATE that say that the connection went, or cannot be had."""
WRITERS, RIVALS = 8, 2
RETRY_SECONDS = 0.2
LONG_SECONDS = (0.5, 3.0)
"""How long a long transaction rests before its end."""
RIVAL_SECONDS = (0.5, 8.0)
"""How long a rival holds a row: longer than a worker waits before it tries again."""


@dataclass
class Tally:
    """What became of all transactions."""

    outcomes: Counter[str] = field(default_factory=Counter)
    changes: Counter[str] = field(default_factory=Counter)
    errors: list[str] = field(default_factory=list)
    """What should not have happened to a writer: because of evervec, or of a mistake in here."""
    committed: int = 0
    """Transactions with changes that are known to be committed."""


class User(ABC):
    """Somebody with a connection, which may be lost while PostgreSQL itself is disturbed, and must not be otherwise."""

    def __init__(self, site: Site, ledger: Ledger, tally: Tally, name: str, seed: int) -> None:
        self.site = site
        self.ledger = ledger
        self.tally = tally
        self.name = name
        self.chance = random.Random(f"{seed} {name}")
        self._connection: Connection | None = None
        self._connected_at = 0.0

    async def run(self, pause: float, stop: asyncio.Event) -> None:
        """Do a transaction every `pause` seconds until told to stop; what was missed is made up for, up to a point."""
        due = time.monotonic() + self.chance.random() * pause
        while not stop.is_set():
            await asyncio.sleep(max(0.0, due - time.monotonic()))
            due = max(due + pause, time.monotonic() - 20 * pause)
            await self._step()
        if self._connection:
            await self._connection.close()

    @abstractmethod
    async def transaction(self, connection: Connection) -> None:
        """Do something."""

    async def lost(self) -> None:
        """The connection was lost in the middle of it."""
        self.tally.outcomes["lost with PostgreSQL"] += 1

    async def connect(self) -> Connection:
        """The connection, made if need be."""
        if not self._connection:
            self._connection = await AsyncConnection.connect(
                self.site.conninfo, autocommit=True, application_name="a writer"
            )
            self._connected_at = time.monotonic()
        return self._connection

    async def _step(self) -> None:
        try:
            await self.transaction(await self.connect())
        except Error as error:
            connected = self._connection is not None
            died = connected and self.site.died_with_postgres(self._connected_at)
            await self._drop()
            if not self._excused(error, died=died):
                self.tally.errors.append(f"{self.name}: {type(error).__name__}: {error}".strip())
            elif connected:
                await self.lost()
            await asyncio.sleep(RETRY_SECONDS)

    def _excused(self, error: Error, *, died: bool) -> bool:
        """A rival may have rested with a connection that died for longer than the aftermath lasts."""
        return (died or self.site.is_disturbed) and (error.sqlstate is None or error.sqlstate.startswith(LOST))

    async def _drop(self) -> None:
        if self._connection:
            with suppress(Error):
                await self._connection.close()
        self._connection = None


class Writer(User):
    """Writes rows of its own, so that it alone knows what the last of its transactions left of them."""

    def __init__(self, site: Site, ledger: Ledger, tally: Tally, number: int, seed: int) -> None:
        super().__init__(site, ledger, tally, f"writer {number}", seed)
        self._hands = [Hand(table.name, number, self.chance) for table in site.tables]
        self._draft = Draft(ledger)
        self._committing = False
        self._unknown: Changes | None = None
        """What a transaction did of which it is not known whether it is committed."""

    async def transaction(self, connection: Connection) -> None:
        """A few changes, some of them rolled back to a savepoint; then a commit, or a rollback."""
        await self._recall(connection)
        self._draft = Draft(self.ledger)
        self._committing = False
        await connection.execute("BEGIN")
        for _ in range(self.chance.choice((1, 1, 1, 2, 3))):
            await self._change(connection)
        if self.chance.random() < 0.02:
            await asyncio.sleep(self.chance.uniform(*LONG_SECONDS))
        if self.chance.random() < 0.08:
            await connection.execute("ROLLBACK")
            self.tally.outcomes["rolled back"] += 1
            return
        self._committing = True
        await connection.execute("COMMIT")
        self._committing = False
        self._committed("committed", self._draft.changes)
        self.ledger.commit(self._draft.changes)

    async def settle(self) -> None:
        """At the end, with PostgreSQL back: learn what became of the last transaction."""
        try:
            await self._recall(await self.connect())
        finally:
            await self._drop()

    async def lost(self) -> None:
        """Without an answer to COMMIT nobody knows."""
        if self._committing:
            self._unknown = self._draft.changes
            self._committing = False
        else:
            await super().lost()

    async def _change(self, connection: Connection) -> None:
        [change] = self.chance.choices(list(MIX), list(MIX.values()))
        in_vain = self.chance.random() < 0.08
        if in_vain:
            await connection.execute("SAVEPOINT s")
            self._draft.save()
        await change(self.chance.choice(self._hands), connection, self._draft)
        if in_vain:
            await connection.execute("ROLLBACK TO s")
            self._draft.back()
        self.tally.changes[change.__name__] += 1

    def _committed(self, how: str, changes: Changes) -> None:
        self.tally.outcomes[how if changes else "committed, nothing changed"] += 1
        self.tally.committed += bool(changes)

    async def _recall(self, connection: Connection) -> None:
        """Read what became of the transaction whose answer was lost: its session is gone, so that is settled."""
        if self._unknown is None:
            return
        unknown, found = self._unknown, await _read(connection, self._unknown)
        self._unknown = None
        try:
            done = self.ledger.settle(unknown, found)
        except AssertionError as error:
            self.tally.errors.append(f"{self.name}: {error}")
            return
        if done:
            self._committed("answer lost, committed", unknown)
        else:
            self.tally.outcomes["answer lost, not committed"] += 1


class Rival(User):
    """Edits a row of somebody else's, makes everybody wait who wants it, and takes it back."""

    async def transaction(self, connection: Connection) -> None:
        """One row in each, so that there is no deadlock that would be the users' own affair."""
        if not self.ledger.rows:
            return
        # Often one that is about to be embedded: it is read, but can not be written, and may be edited before it can.
        lately = [key for key in self.ledger.lately if key in self.ledger.rows]
        key = self.chance.choice(lately if lately and self.chance.random() < 0.7 else sorted(self.ledger.rows))
        await connection.execute("BEGIN")
        await connection.execute(f"UPDATE {key.table} SET name = name || ' never' WHERE id = %s", (key.id,))
        await asyncio.sleep(self.chance.uniform(*RIVAL_SECONDS))
        await connection.execute("ROLLBACK")
        self.tally.outcomes["rolled back by a rival"] += 1


@asynccontextmanager
async def writing(site: Site, rate: float, seed: int) -> AsyncIterator[tuple[Ledger, Tally]]:
    """Users who write so many transactions a second while the block runs, and end what they began."""
    ledger, tally, stop = Ledger(), Tally(), asyncio.Event()
    writers = [Writer(site, ledger, tally, number, seed) for number in range(WRITERS)]
    rivals = [Rival(site, ledger, tally, f"rival {number}", seed) for number in range(RIVALS)]
    async with asyncio.TaskGroup() as users:
        for writer in writers:
            users.create_task(writer.run(WRITERS / rate, stop))
        for rival in rivals:
            users.create_task(rival.run(1.0, stop))
        try:
            yield ledger, tally
        finally:
            stop.set()
    for writer in writers:
        await writer.settle()


async def _read(connection: Connection, keys: Changes) -> Rows:
    """The rows that there are now."""
    found: dict[Key, Row] = {}
    for table in {key.table for key in keys}:
        cursor = await connection.execute(
            f"SELECT id, name, description, active FROM {table} WHERE id = ANY (%s)",
            ([key.id for key in keys if key.table == table],),
        )
        found |= {Key(table, row[0]): Row(*row[1:]) for row in await cursor.fetchall()}
    return found
