"""What a writer does to its rows: each a statement, and what it leaves of them."""

import random
from collections import deque
from collections.abc import Awaitable, Callable
from typing import Any

import psycopg

from tests.chaos.ledger import Draft, Key, Row

Connection = psycopg.AsyncConnection[Any]

ROOM = 300
"""How many rows a writer may have in a table: so many that the next edit of one that was lost is far."""
MANY = 60
"""How many rows a bulk statement has at most."""
WORDS = (
    "drill",
    "saw",
    "ladder",
    "Bohrmaschine",
    "Kinderfahrrad",
    "Zelt",
    "tent",
    "Beamer",
    "Säge",
    "blue",
    "neu",
    "🚲",
)
FEW_TEXTS = ("drill", "saw", "a tent for four")
"""What is written again and again, so that many a vector is that of another row, or of the day before."""


class Hand:
    """One writer's rows of one table."""

    def __init__(self, table: str, number: int, chance: random.Random) -> None:
        self.table = table
        self.chance = chance
        self.former: dict[Key, Row] = {}
        """What rows were before they were edited last."""
        self.edited: deque[Key] = deque(maxlen=2)
        """Rows that were edited last."""
        self._keys = [Key(table, number * ROOM + n) for n in range(ROOM)]

    def there(self, draft: Draft) -> list[Key]:
        """The keys of its rows."""
        return [key for key in self._keys if draft.get(key)]

    def free(self, draft: Draft) -> list[Key]:
        """The keys that no row has."""
        return [key for key in self._keys if not draft.get(key)]

    def one(self, keys: list[Key]) -> Key | None:
        """One of the keys, if there is any."""
        return self.chance.choice(keys) if keys else None

    def some(self, keys: list[Key]) -> list[Key]:
        """Some of the keys."""
        most = min(len(keys), MANY)
        return self.chance.sample(keys, self.chance.randint(min(1, most), most))

    def text(self) -> str:
        """Mostly a new one."""
        dice = self.chance.random()
        if dice < 0.15:
            return self.chance.choice(FEW_TEXTS)
        length = 400 if dice > 0.97 else self.chance.randint(2, 12)
        return f"{' '.join(self.chance.choices(WORDS, k=length))} {self.chance.randrange(1_000_000)}"

    def row(self) -> Row:
        """A new row."""
        return Row(self.text(), self.chance.choice((self.text(), self.text(), None, " ")))


Change = Callable[[Hand, Connection, Draft], Awaitable[None]]


async def insert(hand: Hand, connection: Connection, draft: Draft) -> None:
    if key := hand.one(hand.free(draft)):
        row = hand.row()
        await connection.execute(
            f"INSERT INTO {hand.table} (id, name, description) VALUES (%s, %s, %s)", (key.id, *row[:2])
        )
        draft.set(key, row)


async def upsert(hand: Hand, connection: Connection, draft: Draft) -> None:
    key, row = hand.one(hand.there(draft) + hand.free(draft)), hand.row()
    if key:
        former = draft.get(key)
        await connection.execute(
            f"INSERT INTO {hand.table} (id, name, description) VALUES (%s, %s, %s) "
            "ON CONFLICT (id) DO UPDATE SET name = excluded.name, description = excluded.description",
            (key.id, *row[:2]),
        )
        draft.set(key, row._replace(active=former.active) if former else row)


async def edit(hand: Hand, connection: Connection, draft: Draft) -> None:
    if (key := hand.one(hand.there(draft))) and (row := draft.get(key)):
        hand.former[key] = row
        hand.edited.append(key)
        await _update(hand, connection, draft, key, row._replace(name=hand.text(), description=hand.row().description))


async def edit_again(hand: Hand, connection: Connection, draft: Draft) -> None:
    """In a later transaction, mostly: perhaps while the first text is embedded, or somebody else holds the row."""
    key = hand.one([key for key in hand.edited if draft.get(key)])
    if key and (row := draft.get(key)):
        await _update(hand, connection, draft, key, row._replace(name=hand.text()))


async def edit_one_column(hand: Hand, connection: Connection, draft: Draft) -> None:
    if (key := hand.one(hand.there(draft))) and (row := draft.get(key)):
        hand.former[key] = row
        row = row._replace(description=hand.text())
        await connection.execute(f"UPDATE {hand.table} SET description = %s WHERE id = %s", (row.description, key.id))
        draft.set(key, row)


async def revert(hand: Hand, connection: Connection, draft: Draft) -> None:
    """In a later transaction, mostly: perhaps while the edit is embedded."""
    key = hand.one([key for key in hand.former if draft.get(key)])
    if key and (row := draft.get(key)):
        former = hand.former.pop(key)
        await _update(hand, connection, draft, key, row._replace(name=former.name, description=former.description))


async def edit_and_revert(hand: Hand, connection: Connection, draft: Draft) -> None:
    if (key := hand.one(hand.there(draft))) and (row := draft.get(key)):
        await _update(hand, connection, draft, key, row._replace(name=hand.text()))
        await _update(hand, connection, draft, key, row)


async def blank(hand: Hand, connection: Connection, draft: Draft) -> None:
    if (key := hand.one(hand.there(draft))) and (row := draft.get(key)):
        await _update(hand, connection, draft, key, row._replace(name=hand.chance.choice((None, " \n"))))


async def switch(hand: Hand, connection: Connection, draft: Draft) -> None:
    if (key := hand.one(hand.there(draft))) and (row := draft.get(key)):
        await connection.execute(f"UPDATE {hand.table} SET active = NOT active WHERE id = %s", (key.id,))
        draft.set(key, row._replace(active=not row.active))


async def touch(hand: Hand, connection: Connection, draft: Draft) -> None:
    if key := hand.one(hand.there(draft)):
        await connection.execute(f"UPDATE {hand.table} SET id = id, price = 1 WHERE id = %s", (key.id,))


async def reprice(hand: Hand, connection: Connection, draft: Draft) -> None:
    if key := hand.one(hand.there(draft)):
        await connection.execute(f"UPDATE {hand.table} SET price = random() WHERE id = %s", (key.id,))


async def delete(hand: Hand, connection: Connection, draft: Draft) -> None:
    if key := hand.one(hand.there(draft)):
        await connection.execute(f"DELETE FROM {hand.table} WHERE id = %s", (key.id,))
        draft.set(key, None)


async def move(hand: Hand, connection: Connection, draft: Draft) -> None:
    key, free = hand.one(hand.there(draft)), hand.one(hand.free(draft))
    if key and free:
        await connection.execute(f"UPDATE {hand.table} SET id = %s WHERE id = %s", (free.id, key.id))
        draft.set(free, draft.get(key))
        draft.set(key, None)


async def edit_many(hand: Hand, connection: Connection, draft: Draft) -> None:
    keys, text = hand.some(hand.there(draft)), hand.text()
    await connection.execute(
        f"UPDATE {hand.table} SET name = %s || id WHERE id = ANY (%s)", (text, [key.id for key in keys])
    )
    for key in keys:
        if row := draft.get(key):
            draft.set(key, row._replace(name=f"{text}{key.id}"))


async def insert_many(hand: Hand, connection: Connection, draft: Draft) -> None:
    keys, text = hand.some(hand.free(draft)), hand.text()
    await connection.execute(
        f"INSERT INTO {hand.table} (id, name) SELECT id, %s || id FROM unnest(%s::bigint[]) AS id",
        (text, [key.id for key in keys]),
    )
    for key in keys:
        draft.set(key, Row(f"{text}{key.id}", None))


async def copy(hand: Hand, connection: Connection, draft: Draft) -> None:
    rows = {key: hand.row() for key in hand.some(hand.free(draft))}
    async with connection.cursor().copy(f"COPY {hand.table} (id, name, description) FROM STDIN") as stream:
        for key, row in rows.items():
            await stream.write_row((key.id, *row[:2]))
    for key, row in rows.items():
        draft.set(key, row)


async def delete_many(hand: Hand, connection: Connection, draft: Draft) -> None:
    keys = hand.some(hand.there(draft))
    await connection.execute(f"DELETE FROM {hand.table} WHERE id = ANY (%s)", ([key.id for key in keys],))
    for key in keys:
        draft.set(key, None)


async def _update(hand: Hand, connection: Connection, draft: Draft, key: Key, row: Row) -> None:
    await connection.execute(
        f"UPDATE {hand.table} SET name = %s, description = %s WHERE id = %s", (row.name, row.description, key.id)
    )
    draft.set(key, row)


MIX: dict[Change, float] = {
    insert: 14,
    upsert: 6,
    edit: 24,
    edit_again: 12,
    edit_one_column: 8,
    revert: 8,
    edit_and_revert: 4,
    blank: 3,
    switch: 4,
    touch: 3,
    reprice: 3,
    delete: 7,
    move: 4,
    edit_many: 1.5,
    insert_many: 2,
    copy: 0.5,
    delete_many: 0.4,
}
"""Each with its weight."""
