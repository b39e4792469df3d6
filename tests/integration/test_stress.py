"""Users, workers and administrators do what they like to few items, all at once: in the end every vector is right."""

import asyncio
import random
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import suppress

import psycopg
import pytest

from evervec.errors import DatabaseError
from tests.integration.sessions import Lab, shared_database

SECONDS = 4.0
SEED = 1
LEAST_STEPS = 2
"""Of each, however long one of them waits for the others."""
KEYS = 25
WRITERS = 4
WORKERS = 2
CHANGES = [
    "INSERT INTO items (id, name) VALUES ({key}, '{text}')",
    "INSERT INTO items (id, name) VALUES ({key}, '{text}') ON CONFLICT (id) DO UPDATE SET name = excluded.name",
    "UPDATE items SET name = '{text}' WHERE id = {key}",
    "UPDATE items SET description = '{text}' WHERE id = {key}",
    "UPDATE items SET name = '{text}' WHERE id BETWEEN {key} AND {other}",
    "UPDATE items SET name = ' ' WHERE id = {key}",
    "UPDATE items SET active = NOT active WHERE id = {key}",
    "UPDATE items SET id = id, name = name WHERE id = {key}",
    "UPDATE items SET price = price + 1 WHERE id = {key}",
    "UPDATE items SET id = {other} WHERE id = {key}",
    "DELETE FROM items WHERE id = {key}",
    "SELECT FROM items WHERE id = {key} FOR UPDATE",
]
REFIRES = [
    "SELECT evervec.refire('items')",
    "SELECT evervec.refire('items', 'id % 2 = 1', force => true)",
    "SELECT evervec.retry('items')",
]
LEVELS = ["READ COMMITTED"] * 4 + ["REPEATABLE READ", "SERIALIZABLE"]
# What users do to each other, watched tables or not.
THEIR_OWN_AFFAIR = (
    psycopg.errors.UniqueViolation,
    psycopg.errors.SerializationFailure,
    psycopg.errors.DeadlockDetected,
)


@pytest.fixture(scope="module")
def labs(postgres: str, template_database: str) -> Iterator[str]:
    with shared_database(postgres, template_database) as conninfo:
        yield conninfo


@pytest.fixture(params=["column", "table"])
async def lab(labs: str, request: pytest.FixtureRequest) -> AsyncIterator[Lab]:
    items = [(key, "ABC"[key % 3]) for key in range(KEYS)]
    async with Lab.open(labs, request.param, *items) as opened:
        yield opened


async def write(lab: Lab, chance: random.Random) -> Callable[[], Awaitable[None]]:
    """A user: transactions of a few changes, some of them taken back in part or as a whole."""
    user = await lab.session()

    async def transaction() -> None:
        await user.run(f"BEGIN ISOLATION LEVEL {chance.choice(LEVELS)}")
        try:
            for _ in range(chance.randint(1, 4)):
                if chance.random() < 0.2:
                    await user.run("SAVEPOINT s")
                    await user.run(change(chance))
                    await user.run("ROLLBACK TO s")
                await user.run(change(chance))
                await asyncio.sleep(chance.random() * 0.005)
            await user.run("COMMIT" if chance.random() < 0.8 else "ROLLBACK")
        except THEIR_OWN_AFFAIR:
            await user.run("ROLLBACK")

    return transaction


def change(chance: random.Random) -> str:
    """One of CHANGES, with few texts, so that many a change is taken back by the next."""
    key = chance.randrange(KEYS)
    return chance.choice(CHANGES).format(key=key, other=key + chance.randint(1, 3), text=chance.choice("ABC"))


async def work(lab: Lab, chance: random.Random) -> Callable[[], Awaitable[None]]:
    """A worker that takes its time to embed, and now and then fails to."""
    worker, listener = await lab.worker(), await lab.session()

    async def batch() -> None:
        waiting = await listener.run("SELECT item_key FROM evervec.pending_items(NULL, NULL, 100)")
        keys = [key for (key,) in waiting if chance.random() < 0.3]
        states = await worker.read(*keys)
        await asyncio.sleep(chance.random() * 0.02)
        if states and chance.random() < 0.1:
            failed = states.pop()
            try:
                await worker.items.record_failure("items", failed.item_key, failed.outbox_version, "x", max_attempts=2)
            except DatabaseError as error:
                assert error.sqlstate == "55P03"  # noqa: PT017 - a user holds the outbox row: nothing was counted
        await worker.write_back(states)

    return batch


async def administer(lab: Lab, chance: random.Random) -> Callable[[], Awaitable[None]]:
    """An administrator, who re-fires, changes the model, and empties the table."""
    dba = await lab.session()

    async def step() -> None:
        await asyncio.sleep(0.1)
        match chance.choice(["refire", "refire", "refire", "fill", "fill", "watch", "truncate"]):
            case "refire":
                await dba.run(chance.choice(REFIRES))
            case "fill":
                with suppress(psycopg.errors.LockNotAvailable):  # it gives way to users, and is called again
                    await dba.run("SELECT * FROM evervec.fill_page(10)")
            case "watch":
                await lab.watch(chance.choice(["a model", "another model"]), by=dba, fill=False)
            case "truncate":
                await dba.run("TRUNCATE items")

    return step


async def check(lab: Lab) -> Callable[[], Awaitable[None]]:
    """At every moment, what is stale is waiting."""

    async def look() -> None:
        await lab.assert_true()
        await asyncio.sleep(0.01)

    return look


@pytest.mark.parametrize("administrators", [0, 2])
async def test_in_the_end_every_vector_is_right(lab: Lab, administrators: int) -> None:
    chance = random.Random(SEED)
    steps = [await write(lab, chance) for _ in range(WRITERS)]
    steps += [await work(lab, chance) for _ in range(WORKERS)]
    steps += [await administer(lab, chance) for _ in range(administrators)]
    if not administrators:  # a model that has just been changed makes items stale that its first fill has not seen yet
        steps.append(await check(lab))
    stop = asyncio.get_running_loop().time() + SECONDS
    await asyncio.gather(*(repeat(step, stop) for step in steps))
    await lab.fill()
    await lab.observer.run("SELECT evervec.retry('items')")
    await lab.assert_ends_true()


async def repeat(step: Callable[[], Awaitable[None]], stop: float) -> None:
    count = 0
    while asyncio.get_running_loop().time() < stop or count < LEAST_STEPS:
        await step()
        count += 1
