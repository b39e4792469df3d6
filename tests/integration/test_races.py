"""Further races between users, workers and administrators: none may lose a change or leave a false vector."""

import asyncio
from collections.abc import AsyncIterator, Iterator
from contextlib import suppress

import psycopg
import pytest

from evervec.errors import SourceNotFoundError
from evervec.messages import Outcome
from tests.integration.pauses import PAUSES
from tests.integration.sessions import Lab, Session, shared_database, vector_of

# What a user may do in one transaction to items 1 (stale: A became B) and 2 (fresh: Z).
CHANGES = {
    "edit": ["UPDATE items SET name = 'C' WHERE id = 1"],
    "edit of both": ["UPDATE items SET name = name || '!' WHERE id IN (1, 2)"],
    "revert": ["UPDATE items SET name = 'A' WHERE id = 1"],
    "edit and revert": ["UPDATE items SET name = 'C' WHERE id = 1", "UPDATE items SET name = 'B' WHERE id = 1"],
    "touch": ["UPDATE items SET id = id WHERE id = 1"],
    "another column": ["UPDATE items SET price = 9"],
    "deactivation": ["UPDATE items SET active = false WHERE id = 1"],
    "de- and reactivation": ["UPDATE items SET active = false", "UPDATE items SET active = true"],
    "blank": ["UPDATE items SET name = ' ' WHERE id = 1"],
    "delete": ["DELETE FROM items WHERE id = 1"],
    "delete, insert the same": ["DELETE FROM items", "INSERT INTO items (id, name) VALUES (1, 'B'), (2, 'Z')"],
    "delete, insert another": ["DELETE FROM items WHERE id = 1", "INSERT INTO items (id, name) VALUES (1, 'C')"],
    "upsert": ["INSERT INTO items (id, name) VALUES (1, 'C') ON CONFLICT (id) DO UPDATE SET name = excluded.name"],
    "new key": ["UPDATE items SET id = 9 WHERE id = 1"],
    "keys move up": ["UPDATE items SET id = 9 WHERE id = 2", "UPDATE items SET id = 2 WHERE id = 1"],
    "keys change places": [
        "UPDATE items SET id = 9 WHERE id = 1",
        "UPDATE items SET id = 1 WHERE id = 2",
        "UPDATE items SET id = 2 WHERE id = 9",
    ],
    "truncate": ["TRUNCATE items"],
    "truncate, insert": ["TRUNCATE items", "INSERT INTO items (id, name) VALUES (1, 'B'), (2, 'Y')"],
    "forced re-fire": ["SELECT evervec.refire('items', force => true)"],
    "re-fire and edit": ["SELECT evervec.refire('items')", "UPDATE items SET name = 'C' WHERE id = 1"],
    "savepoint": [
        "SAVEPOINT s",
        "UPDATE items SET name = 'C'",
        "ROLLBACK TO s",
        "UPDATE items SET name = 'D' WHERE id = 2",
    ],
}


@pytest.fixture(scope="module")
def labs(postgres: str, template_database: str) -> Iterator[str]:
    with shared_database(postgres, template_database) as conninfo:
        yield conninfo


@pytest.fixture(params=["column", "table"])
async def lab(labs: str, request: pytest.FixtureRequest) -> AsyncIterator[Lab]:
    """Items 1 and 2, both fresh."""
    async with Lab.open(labs, request.param, (1, "A"), (2, "Z")) as opened:
        yield opened


async def change(user: Session, statements: list[str]) -> None:
    await user.run("BEGIN")
    for statement in statements:
        await user.run(statement)


@pytest.mark.parametrize("end", ["COMMIT", "ROLLBACK"])
async def test_a_write_back_meets_an_open_transaction(lab: Lab, end: str) -> None:
    worker, user = await lab.worker(), await lab.session()
    for statements in CHANGES.values():
        await lab.reset((1, "A"), (2, "Z"))
        await lab.edit("B")
        states = await worker.read(1, 2)
        await change(user, statements)
        write_back = lab.start(worker.write_back(states))
        await lab.waits_or_ends(worker, write_back)
        await user.run(end)
        await write_back
        await lab.assert_ends_true()


@pytest.mark.parametrize("end", ["COMMIT", "ROLLBACK"])
@pytest.mark.parametrize("pause", ["start", "snapshot", "locked", "seen"])
async def test_something_changes_in_the_middle_of_a_write_back(lab: Lab, pause: str, end: str) -> None:
    worker, user = await lab.worker(), await lab.session()
    await lab.rewrite("write_back", PAUSES[pause])
    for statements in CHANGES.values():
        await lab.reset((1, "A"), (2, "Z"))
        await lab.edit("B")
        await lab.close_gate()
        write_back = lab.start(worker.work(1, 2))
        await lab.waits(worker)
        changed = lab.start(change(user, statements))
        await lab.waits_or_ends(user, changed)
        if changed.done() and "after" not in end:
            await user.run(end)
        await lab.open_gate()
        await asyncio.gather(write_back, changed)
        await user.run(end.split(maxsplit=1)[0])
        await lab.assert_ends_true()


@pytest.mark.parametrize("pause", PAUSES)
async def test_the_source_changes_in_the_middle_of_a_write_back(lab: Lab, pause: str) -> None:
    worker, dba = await lab.worker(), await lab.session()
    await lab.rewrite("write_back", PAUSES[pause])
    other = {"column": "table", "table": "column"}[lab.destination]
    watch = "SELECT evervec.watch('items', '{name}', model => 'another', dimension => 4, destination => '%s')"
    for statement in (
        watch % lab.destination,
        watch % other,
        "SELECT evervec.unwatch('items')",
        "SELECT evervec.unwatch('items'), " + (watch % lab.destination).removeprefix("SELECT "),
    ):
        await lab.reset((1, "A"), (2, "Z"))
        await lab.edit("B")
        await lab.close_gate()
        write_back = lab.start(worker.work(1, 2))
        await lab.waits(worker)
        altered = lab.start(dba.run(statement))
        await lab.waits_or_ends(dba, altered)
        await lab.open_gate()
        await altered
        with suppress(SourceNotFoundError):
            await write_back
        await lab.watch()
        await lab.assert_ends_true()


@pytest.mark.parametrize("model", ["stub:4", "stub:8"])
async def test_another_model_is_watched_before_the_write_back_holds_the_table(lab: Lab, model: str) -> None:
    worker = await lab.worker()
    await lab.edit("B")
    states = await worker.read(1)
    await lab.rewrite("write_back", PAUSES["start"])
    await lab.close_gate()
    write_back = lab.start(worker.write_back(states))
    await lab.waits(worker)
    watch = "SELECT evervec.watch('items', '{name}', model => %s, destination => %s)"
    await lab.observer.run(watch, model, lab.destination)
    await lab.open_gate()
    assert await write_back == {"1": Outcome.SUPERSEDED}
    assert await lab.vector() == (None if model == "stub:8" else list(vector_of("A")))
    assert await lab.outbox() == states[0].outbox_version


@pytest.mark.parametrize("level", ["REPEATABLE READ", "SERIALIZABLE"])
async def test_a_writer_whose_snapshot_is_older_than_the_vector(lab: Lab, level: str) -> None:
    worker, user = await lab.worker(), await lab.session()
    for statements in (*CHANGES.values(), ["DELETE FROM items", "INSERT INTO items (id, name) VALUES (1, 'A')"]):
        await lab.reset((1, "A"), (2, "Z"))
        await lab.edit("B")
        await user.run(f"BEGIN ISOLATION LEVEL {level}")
        await user.run("SELECT FROM items")
        # The vector of B is written, and the user's transaction still sees that of A.
        assert await worker.work(1) == {"1": Outcome.EMBEDDED}
        try:
            for statement in statements:
                await user.run(statement)
            await user.run("COMMIT")
        except psycopg.errors.SerializationFailure:
            await user.run("ROLLBACK")
        await lab.assert_true()
        await lab.drain()
        await lab.assert_true()


async def test_two_workers_write_back_the_same_item(lab: Lab) -> None:
    first, second = await lab.worker(), await lab.worker()
    await lab.edit("B")
    states = await first.read(1), await second.read(1)
    await lab.rewrite("write_back", PAUSES["written"])
    await lab.close_gate()
    tasks = [lab.start(first.write_back(states[0]))]
    await lab.waits(first)
    tasks.append(lab.start(second.write_back(states[1])))
    await lab.waits(second)
    await lab.open_gate()
    assert await asyncio.gather(*tasks) == [{"1": Outcome.EMBEDDED}, {"1": Outcome.LOCKED}]
    assert await second.write_back(states[1]) == {"1": Outcome.EMBEDDED}
    await lab.assert_true(drained=True)


async def test_a_row_that_refers_to_an_item_does_not_hold_up_its_vector(lab: Lab) -> None:
    worker, user = await lab.worker(), await lab.session()
    await lab.observer.run("CREATE TABLE offers (item bigint REFERENCES items)")
    await lab.edit("B")
    await user.run("BEGIN")
    await user.run("INSERT INTO offers VALUES (1)")
    assert await worker.work(1) == {"1": Outcome.EMBEDDED}
    await user.run("COMMIT")
    await lab.observer.run("DROP TABLE offers")
    await lab.assert_true(drained=True)


async def test_a_written_item_stays_in_the_outbox_while_somebody_holds_its_row_there(lab: Lab) -> None:
    worker, dba = await lab.worker(), await lab.session()
    await lab.edit("B")
    await dba.run("BEGIN")
    await dba.run("SELECT evervec.refire('items')")
    assert await worker.work(1) == {"1": Outcome.EMBEDDED}
    await dba.run("ROLLBACK")
    assert await lab.outbox() is not None
    assert await worker.work(1) == {"1": Outcome.UNCHANGED}
    await lab.assert_true(drained=True)


async def test_a_key_is_taken_by_another_row_while_it_is_embedded(lab: Lab) -> None:
    worker = await lab.worker()
    await lab.edit("B")
    states = await worker.read(1, 2)
    await lab.observer.run("UPDATE items SET id = 9 WHERE id = 1")
    await lab.observer.run("UPDATE items SET id = 1 WHERE id = 2")
    assert await worker.write_back(states) == {"1": Outcome.UNCHANGED, "2": Outcome.GONE}
    await lab.assert_ends_true()
    assert await lab.vector(9) == list(vector_of("B"))
    assert await lab.vector(1) == list(vector_of("Z"))


async def test_an_item_moves_to_another_partition_when_it_is_about_to_be_locked(lab: Lab) -> None:
    worker = await lab.worker()
    await lab.observer.run(
        "SELECT evervec.unwatch('items'); DROP TABLE items; DROP TABLE IF EXISTS items_embedding; "
        "CREATE TABLE items (id bigint PRIMARY KEY, name text, description text, active boolean DEFAULT true) "
        "PARTITION BY RANGE (id); CREATE TABLE items_low PARTITION OF items FOR VALUES FROM (0) TO (10); "
        "CREATE TABLE items_high PARTITION OF items FOR VALUES FROM (10) TO (20)"
    )
    await lab.watch()
    await lab.observer.run("INSERT INTO items (id, name) VALUES (1, 'A')")
    await lab.rewrite("write_back", PAUSES["snapshot"])
    await lab.close_gate()
    write_back = lab.start(worker.work(1))
    await lab.waits(worker)
    await lab.observer.run("UPDATE items SET id = 11")
    await lab.open_gate()
    assert await write_back == {"1": Outcome.LOCKED}
    await lab.assert_ends_true()
    assert await lab.vector(11) == list(vector_of("A"))


async def test_keys_change_places_in_one_statement(lab: Lab) -> None:
    await lab.observer.run("SELECT evervec.unwatch('items')")
    await lab.observer.run("ALTER TABLE items DROP CONSTRAINT items_pkey, ADD PRIMARY KEY (id) DEFERRABLE")
    await lab.watch()
    await lab.edit("B")
    await lab.edit("Y", 2)
    await lab.observer.run("UPDATE items SET id = 3 - id")
    await lab.assert_ends_true()
    assert await lab.vector(2) == list(vector_of("B"))


async def test_a_first_fill_gives_way_to_a_user(lab: Lab) -> None:
    user, filler = await lab.session(), await lab.session()
    await lab.observer.run("SELECT evervec.refire('items', force => true)")
    await user.run("SET deadlock_timeout = '5s'")  # the page gives up before, also where the machine is slow
    await user.run("BEGIN")
    await lab.edit("B", 2, by=user)
    await lab.observer.run("UPDATE evervec.source SET filling = true, fingerprint = 'another', filled_to = NULL")
    fill = lab.start(filler.run("SELECT * FROM evervec.fill_page(10)"))
    # It waits for 100 ms, which may be over before anybody looks.
    await lab.waits_or_ends(filler, fill)
    # The page holds the outbox row of item 1 and waits for that of item 2: a deadlock, if it did not give up.
    await lab.edit("B", by=user)
    with pytest.raises(psycopg.errors.LockNotAvailable):
        await fill
    await user.run("COMMIT")
    await lab.watch()
    await lab.assert_ends_true()


async def test_a_first_fill_enqueues_what_was_embedded_meanwhile(lab: Lab) -> None:
    worker, user, filler = await lab.worker(), await lab.session(), await lab.session()
    await lab.rewrite("fill_page", ("'100ms'", "'30s'"))
    await lab.edit("B", 2)
    await user.run("BEGIN")
    await lab.edit("B", by=user)
    await lab.observer.run("UPDATE evervec.source SET filling = true, filled_to = NULL")
    await lab.observer.run("INSERT INTO items (id, name) VALUES (0, 'N')")
    fill = lab.start(filler.run("SELECT * FROM evervec.fill_page(10)"))
    await lab.waits_or_ends(filler, fill)
    await worker.work(0, 2)
    await user.run("COMMIT")
    await fill
    await lab.assert_ends_true()


async def test_what_no_trigger_saw_while_a_page_of_a_first_fill_was_read_is_found_by_a_walk(lab: Lab) -> None:
    filler, loader = await lab.session(), await lab.session()
    pause = "  PERFORM public.pause();\n"
    await lab.rewrite("fill_page", ("  UPDATE evervec.source AS f", f"{pause}  UPDATE evervec.source AS f"))
    await lab.observer.run("SELECT pg_stat_force_next_flush()")
    await lab.observer.run("UPDATE evervec.source SET filling = true, filled_to = NULL")
    await lab.close_gate()
    fill = lab.start(filler.run("SELECT * FROM evervec.fill_page(10)"))
    await lab.waits(filler)
    await loader.run("SET session_replication_role = replica")
    await lab.edit("B", by=loader)
    await loader.run("SELECT pg_stat_force_next_flush()")
    await lab.open_gate()
    await fill
    await lab.observer.run("UPDATE evervec.total SET started_at = counted_at")
    assert await lab.observer.run("SELECT enqueued FROM evervec.census_page(10, true)") == [(1,)]
    await lab.assert_ends_true()


async def test_a_rate_that_comes_as_a_sweep_ends_is_kept(lab: Lab) -> None:
    sweep, user = await lab.session(), await lab.session()
    await lab.observer.run("SELECT evervec.throttle('items', 50)")
    lifts = "      PERFORM FROM evervec.source"
    await lab.rewrite("sweep_page", (lifts, f"      PERFORM public.pause();\n{lifts}"))
    await lab.close_gate()
    page = lab.start(sweep.run("SELECT * FROM evervec.sweep_page('items', NULL, 10, '0', '0')"))
    await lab.waits(sweep)
    await user.run("SELECT evervec.throttle('items', 10), evervec.refire_page('items', 'true', true, NULL, 10)")
    await lab.open_gate()
    await page
    assert await lab.observer.value("SELECT rate FROM evervec.source") == 10
    await lab.drain()
    await lab.observer.run("SELECT * FROM evervec.sweep_page('items', NULL, 10, '0', '0')")
    assert await lab.observer.value("SELECT rate FROM evervec.source") is None


async def test_a_failure_is_not_counted_while_the_item_is_edited(lab: Lab) -> None:
    worker, user = await lab.worker(), await lab.session()
    await lab.edit("B")
    [state] = await worker.read(1)
    await user.run("BEGIN")
    await lab.edit("C", by=user)
    assert not await worker.items.record_failure("items", "1", state.outbox_version, "an error", max_attempts=1)
    await user.run("COMMIT")
    assert not await worker.items.record_failure("items", "1", state.outbox_version, "an error", max_attempts=1)
    await lab.assert_ends_true()


async def test_a_retry_meets_an_edit(lab: Lab) -> None:
    worker, user, dba = await lab.worker(), await lab.session(), await lab.session()
    await lab.edit("B")
    [state] = await worker.read(1)
    assert await worker.items.record_failure("items", "1", state.outbox_version, "an error", max_attempts=1)
    await user.run("BEGIN")
    await lab.edit("C", by=user)
    retry = lab.start(dba.value("SELECT evervec.retry('items')"))
    await lab.waits(dba)
    await user.run("COMMIT")
    assert await retry == 0
    await lab.assert_ends_true()


async def test_a_refire_waits_for_whoever_holds_the_table(lab: Lab) -> None:
    user, dba = await lab.session(), await lab.session()
    await user.run("BEGIN")
    await user.run("LOCK TABLE items")
    refire = lab.start(dba.value("SELECT evervec.refire('items', 'id = 1', force => true)"))
    # It has given up once, and rests before it tries again.
    await lab.waits(dba, "Timeout")
    await user.run("COMMIT")
    assert await refire == 1
    await lab.assert_ends_true()


@pytest.mark.parametrize("known", [True, False])
async def test_two_watch_the_same_table_at_once(lab: Lab, known: bool) -> None:
    user, first, second = await lab.session(), await lab.session(), await lab.session()
    if not known:
        await lab.observer.run("SELECT evervec.unwatch('items')")
    await user.run("BEGIN")
    await user.run("SELECT FROM items")
    watch = "SELECT evervec.watch('items', '{name}', active => 'price >= 0', model => 'stub:4', destination => %s)"
    both = [lab.start(session.value(watch, lab.destination)) for session in (first, second)]
    await asyncio.gather(lab.waits(first), lab.waits(second))
    await user.run("COMMIT")
    async with asyncio.timeout(10):
        assert await asyncio.gather(*both) == ["items", "items"]
