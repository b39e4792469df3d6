"""What read_items and write_back say of items in every state, and what they leave behind."""

import math
from collections.abc import AsyncIterator, Iterator

import numpy as np
import pytest

from db.items import WriteBack
from evervec.errors import DatabaseError, SourceNotFoundError
from evervec.messages import Outcome
from tests.integration.sessions import Lab, embedded, shared_database, vector_of

HOSTILE_KEYS = [
    "abc",
    "",
    " 1",
    "1 ",
    "01",
    "1.0",
    "1e0",
    "'",
    "1'; DROP TABLE items; --",
    '"',
    "\\",
    "{1}",
    "NULL",
    "%s",
]
TOO_LARGE = "9" * 40


@pytest.fixture(scope="module")
def labs(postgres: str, template_database: str) -> Iterator[str]:
    with shared_database(postgres, template_database) as conninfo:
        yield conninfo


@pytest.fixture(params=["column", "table"])
async def lab(labs: str, request: pytest.FixtureRequest) -> AsyncIterator[Lab]:
    """Items 1 and 2, both fresh."""
    async with Lab.open(labs, request.param, (1, "A"), (2, "Z")) as opened:
        yield opened


async def test_a_stale_item(lab: Lab) -> None:
    worker = await lab.worker()
    await lab.edit("B")
    [state] = await worker.read(1)
    assert state.exists
    assert state.eligible
    assert not state.fresh
    assert not state.forced
    assert not state.failed
    assert not state.paused
    assert state.content == "B"
    assert state.embedding_hash not in {None, state.content_hash}
    assert state.outbox_version == await lab.outbox()
    assert (state.model.name, state.model.dimension) == ("a model", 4)
    assert await worker.write_back([state]) == {"1": Outcome.EMBEDDED}
    [state] = await worker.read(1)
    assert state.fresh
    assert state.outbox_version is None
    stored = "SELECT embedding_model, embedded_at BETWEEN now() - interval '1 min' AND now() FROM {}"
    table = "items" if lab.destination == "column" else "items_embedding"
    assert (await lab.observer.run(stored.format(table) + " WHERE id = 1")) == [("a model", True)]


async def test_a_fresh_item_in_the_outbox(lab: Lab) -> None:
    worker = await lab.worker()
    await lab.edit("B")
    await lab.edit("A")
    assert await worker.work(1) == {"1": Outcome.UNCHANGED}
    await lab.assert_true(drained=True)


@pytest.mark.parametrize("change", ["active = false", "name = E' \\t\\u00a0'", "name = NULL"])
async def test_an_ineligible_item(lab: Lab, change: str) -> None:
    worker = await lab.worker()
    await lab.edit("B")
    await lab.observer.run(f"UPDATE items SET {change} WHERE id = 1")
    [state] = await worker.read(1)
    assert state.exists
    assert not state.eligible
    assert not state.fresh
    write = WriteBack("1", state.outbox_version, state.content_hash, vector_of("B"))
    assert await worker.items.write_back("items", [write]) == {"1": Outcome.INELIGIBLE}
    assert await lab.vector() == list(vector_of("A"))
    await lab.assert_true(drained=True)


async def test_an_item_that_is_gone(lab: Lab) -> None:
    worker = await lab.worker()
    await lab.edit("B")
    states = await worker.read(1, 3)
    await lab.observer.run("DELETE FROM items WHERE id = 1")
    assert await worker.write_back(states) == {"1": Outcome.GONE, "3": Outcome.GONE}
    [state] = await worker.read(1)
    assert not state.exists
    assert not state.eligible
    assert (state.content, state.content_hash, state.embedding_hash) == (None, None, None)
    await lab.assert_true(drained=True)


async def test_a_superseded_item_keeps_its_old_vector_and_its_place(lab: Lab) -> None:
    worker = await lab.worker()
    await lab.edit("B")
    states = await worker.read(1)
    await lab.edit("C")
    assert await worker.write_back(states) == {"1": Outcome.SUPERSEDED}
    assert await lab.vector() == list(vector_of("A"))
    assert await lab.outbox() is not None


async def test_a_stale_item_is_not_acknowledged_without_a_vector(lab: Lab) -> None:
    worker = await lab.worker()
    await lab.edit("B")
    assert await worker.items.write_back("items", [WriteBack("1", await lab.outbox())]) == {"1": Outcome.SUPERSEDED}
    assert await lab.outbox() is not None


async def test_a_forced_item_is_embedded_though_it_is_fresh(lab: Lab) -> None:
    worker = await lab.worker()
    await lab.observer.run("SELECT evervec.refire('items', 'id = 1', force => true)")
    [state] = await worker.read(1)
    assert state.fresh
    assert state.forced
    vector = np.array([1, 2, 3, 4], np.float32)
    write = WriteBack("1", state.outbox_version, state.content_hash, vector)
    assert await worker.items.write_back("items", [write]) == {"1": Outcome.EMBEDDED}
    assert await lab.vector() == [1, 2, 3, 4]
    assert await lab.outbox() is None


async def test_a_failed_item_is_read_as_failed_and_embedded_all_the_same(lab: Lab) -> None:
    worker = await lab.worker()
    await lab.edit("B")
    version = await lab.outbox()
    assert not await worker.items.record_failure("items", "1", version, "an error", max_attempts=2)
    assert await worker.items.record_failure("items", "1", version, "an error", max_attempts=2)
    [state] = await worker.read(1)
    assert state.failed
    assert await worker.write_back([state]) == {"1": Outcome.EMBEDDED}
    await lab.assert_true(drained=True)


async def test_a_paused_source(lab: Lab) -> None:
    worker = await lab.worker()
    await lab.observer.run("SELECT evervec.pause('items')")
    await lab.edit("B")
    [state] = await worker.read(1)
    assert state.paused
    assert state.outbox_version is not None
    await lab.observer.run("SELECT evervec.resume('items')")
    await lab.assert_ends_true()


async def test_an_item_that_waits_for_nothing_may_be_written(lab: Lab) -> None:
    worker = await lab.worker()
    [state] = await worker.read(1)
    assert state.outbox_version is None
    write = WriteBack("1", None, state.content_hash, np.array([1, 2, 3, 4], np.float32))
    assert await worker.items.write_back("items", [write]) == {"1": Outcome.EMBEDDED}
    assert await lab.vector() == [1, 2, 3, 4]


async def test_an_unknown_source(lab: Lab) -> None:
    worker = await lab.worker()
    with pytest.raises(SourceNotFoundError):
        await worker.items.read("other", ["1"])
    with pytest.raises(SourceNotFoundError):
        await worker.items.write_back("other", [WriteBack("1", 1)])


async def test_the_table_of_a_source_is_gone(lab: Lab) -> None:
    worker = await lab.worker()
    await lab.observer.run("DROP TABLE items")
    with pytest.raises(SourceNotFoundError):
        await worker.items.read("items", ["1"])
    with pytest.raises(SourceNotFoundError):
        await worker.items.write_back("items", [WriteBack("1", 1)])


async def test_no_items_at_all(lab: Lab) -> None:
    worker = await lab.worker()
    assert await worker.items.read("items", []) == []
    assert await worker.items.write_back("items", []) == {}


async def test_hostile_keys_are_no_items(lab: Lab) -> None:
    worker = await lab.worker()
    keys = [*HOSTILE_KEYS, TOO_LARGE]
    states = {state.item_key: state for state in await worker.items.read("items", keys)}
    assert set(states) == set(keys)
    assert not any(state.exists for state in states.values())
    writes = [WriteBack(key, 1, "a" * 64, vector_of(key)) for key in keys]
    assert set((await worker.items.write_back("items", writes)).values()) == {Outcome.GONE}
    assert await lab.vector() == list(vector_of("A"))
    await lab.assert_true(drained=True)


async def test_hostile_keys_of_a_text_column_are_items_like_others(lab: Lab) -> None:
    worker = await lab.worker()
    await lab.observer.run("SELECT evervec.unwatch('items')")
    await lab.observer.run("TRUNCATE items; DROP TABLE IF EXISTS items_embedding")
    await lab.observer.run("ALTER TABLE items ALTER id TYPE text")
    await lab.watch()
    for key in HOSTILE_KEYS:
        await lab.observer.run("INSERT INTO items (id, name) VALUES (%s, %s)", key, f"name of {key}")
    assert set((await worker.work(*HOSTILE_KEYS)).values()) == {Outcome.EMBEDDED}
    await lab.assert_true(drained=True)


@pytest.mark.parametrize("length", [0, 1, 3, 5, 8])
async def test_a_vector_of_the_wrong_length_is_an_error_and_writes_nothing(lab: Lab, length: int) -> None:
    worker = await lab.worker()
    await lab.edit("B")
    await lab.edit("Y", 2)
    right, wrong = embedded(await worker.read(1, 2))
    wrong = WriteBack(wrong.item_key, wrong.outbox_version, wrong.content_hash, np.ones(length, np.float32))
    with pytest.raises(DatabaseError, match="dimensions"):
        await worker.items.write_back("items", [right, wrong])
    assert await lab.vector() == list(vector_of("A"))
    assert await lab.vector(2) == list(vector_of("Z"))
    assert await lab.outbox() is not None
    assert await lab.outbox(2) is not None


@pytest.mark.parametrize("value", [math.nan, math.inf])
async def test_a_vector_that_is_not_finite_is_an_error_and_writes_nothing(lab: Lab, value: float) -> None:
    worker = await lab.worker()
    await lab.edit("B")
    await lab.edit("Y", 2)
    right, wrong = embedded(await worker.read(1, 2))
    wrong = WriteBack(wrong.item_key, wrong.outbox_version, wrong.content_hash, np.full(4, value, np.float32))
    with pytest.raises(DatabaseError, match="not allowed in vector"):
        await worker.items.write_back("items", [right, wrong])
    assert await lab.vector() == list(vector_of("A"))
    assert await lab.outbox() is not None


async def test_vectors_are_stored_bit_by_bit(lab: Lab) -> None:
    worker = await lab.worker()
    smallest = np.finfo(np.float32).smallest_subnormal
    vectors = np.array(
        [[0.1, -0.0, 1 / 3, smallest], [np.finfo(np.float32).max, np.finfo(np.float32).min, np.float32(np.pi), 1e-30]],
        np.float32,
    )
    await lab.edit("B")
    await lab.edit("Y", 2)
    writes = [
        WriteBack(state.item_key, state.outbox_version, state.content_hash, vector)
        for state, vector in zip(await worker.read(1, 2), vectors, strict=True)
    ]
    await worker.items.write_back("items", writes)
    stored = np.array([await lab.vector(1), await lab.vector(2)], np.float32)
    assert stored.tobytes() == vectors.tobytes()


async def test_a_batch_of_256_with_mixed_outcomes(lab: Lab) -> None:
    worker, user = await lab.worker(), await lab.session()
    await lab.observer.run("INSERT INTO items (id, name) SELECT n, 'name ' || n FROM generate_series(3, 256) AS n")
    states = await worker.read(*range(1, 257))
    await lab.observer.run("UPDATE items SET name = 'new' WHERE id % 8 = 3")
    await lab.observer.run("UPDATE items SET active = false WHERE id % 8 = 4")
    await lab.observer.run("DELETE FROM items WHERE id % 8 = 5")
    await user.run("BEGIN")
    await user.run("SELECT FROM items WHERE id % 8 = 6 FOR UPDATE")
    expected = {3: Outcome.SUPERSEDED, 4: Outcome.INELIGIBLE, 5: Outcome.GONE, 6: Outcome.LOCKED}
    assert await worker.write_back(states) == {
        str(key): Outcome.UNCHANGED if key in {1, 2} else expected.get(key % 8, Outcome.EMBEDDED)
        for key in range(1, 257)
    }
    await user.run("ROLLBACK")
    await lab.assert_ends_true()


async def test_neither_a_write_back_nor_an_update_of_another_column_is_a_change(lab: Lab) -> None:
    worker, listener = await lab.worker(), await lab.session()
    await lab.edit("B")
    await listener.run("LISTEN evervec")
    assert await worker.work(1) == {"1": Outcome.EMBEDDED}
    await lab.observer.run("UPDATE items SET price = price + 1")
    assert await lab.observer.run("SELECT * FROM evervec.outbox") == []
    # Whatever was rung before this comes before it.
    await lab.observer.run("NOTIFY evervec, 'the end'")
    heard = [notify.payload async for notify in listener.connection.notifies(timeout=10, stop_after=1)]
    assert heard == ["the end"]


async def test_a_before_trigger_of_the_users_may_rewrite_the_text_in_a_write_back(lab: Lab) -> None:
    await lab.observer.run(
        "CREATE FUNCTION pg_temp.shout() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN NEW.name := upper(NEW.name); "
        "RETURN NEW; END $$"
    )
    await lab.edit("b")
    await lab.observer.run("CREATE TRIGGER shout BEFORE UPDATE ON items FOR EACH ROW EXECUTE FUNCTION pg_temp.shout()")
    await lab.assert_ends_true()
