"""What may happen between two steps of a worker, with real connections; and what would be lost without each protection.

Each scenario asserts that nothing is lost. LOSSES says which protections have to be taken out together until it does
lose something: so the scenarios would notice, and each protection has a scenario that needs it.
"""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from itertools import combinations

import psycopg
import pytest

from evervec.messages import Outcome
from tests.integration.pauses import PAUSES
from tests.integration.sessions import Lab, shared_database, vector_of

Scenario = Callable[[Lab], Awaitable[None]]

ACKED = "'embedded', 'unchanged', 'ineligible', 'gone')"
PROTECTIONS: dict[str, tuple[str | None, *tuple[tuple[str, str], ...]]] = {
    "ack only the version that was read": ("write_back", ("o.version = done.version", "true")),
    "each enqueue has a new version": (None, ("version = excluded.version,", "")),
    "ack the row that was locked, not its successor": (
        "write_back",
        ("SELECT o.place", "SELECT done.item_key"),
        ("o.ctid = w.place", "o.source = $5 AND o.item_key = w.item_key"),
    ),
    "never wait for an outbox row": ("write_back", ("FOR UPDATE SKIP LOCKED", "FOR UPDATE")),
    "lock the item first": ("write_back", ("FOR NO KEY UPDATE SKIP LOCKED", "")),
    "do not ack what somebody holds": ("write_back", (ACKED, ACKED.replace(")", ", 'locked')"))),
    "do not ack what is stale": ("write_back", (ACKED, ACKED.replace(")", ", 'superseded')"))),
    "compare the hash on the locked row": ("write_sql", ("g.h = i.content_hash", "true")),
    "write to the row that was locked, not its successor": ("write_sql", ("'t.ctid = fit.place'", "'t.%2$I = fit.id'")),
    "never wait for long": ("write_back", ("'250ms'", "'30s'")),
    "count failures of the present version only": ("record_failures", ("AND o.version = k.version", "")),
}
LOOKS_ONCE = "SET deadlock_timeout = '3s'"
"""For whoever waits longest, who looks for a deadlock once: by then the other has come to the lock, however slowly."""
LOOKS_LATE = " SET deadlock_timeout TO '30s'\n"
"""For the other, who would be the first to look where the machine is busy."""


@pytest.fixture(scope="module")
def labs(postgres: str, template_database: str) -> Iterator[str]:
    with shared_database(postgres, template_database) as conninfo:
        yield conninfo


@pytest.fixture(params=["column", "table"])
async def lab(labs: str, request: pytest.FixtureRequest) -> AsyncIterator[Lab]:
    """Items 1 and 2, both fresh."""
    async with Lab.open(labs, request.param, (1, "A"), (2, "Z")) as opened:
        yield opened


async def take_out(lab: Lab, *protections: str) -> None:
    for protection in protections:
        function, *changes = PROTECTIONS[protection]
        for name in [function] if function else await lab.trigger_functions():
            await lab.rewrite(name, *changes)


# The interleavings that decided the design


async def an_item_locked_by_an_edit_is_skipped_and_the_edit_rolls_back(lab: Lab) -> None:
    worker, user = await lab.worker(), await lab.session()
    await lab.edit("B")
    states = await worker.read(1)
    await user.run("BEGIN")
    await lab.edit("C", by=user)
    write_back = lab.start(worker.write_back(states))
    await lab.waits_or_ends(worker, write_back)
    await user.run("ROLLBACK")
    assert await write_back == {"1": Outcome.LOCKED}
    await lab.assert_ends_true()


async def an_item_locked_by_nothing_but_a_lock_is_skipped(lab: Lab) -> None:
    worker, user = await lab.worker(), await lab.session()
    await lab.edit("B")
    await user.run("BEGIN")
    await user.run("SELECT FROM items WHERE id = 1 FOR UPDATE")
    assert await worker.work(1) == {"1": Outcome.LOCKED}
    await user.run("ROLLBACK")
    await lab.assert_ends_true()


async def a_b_a_looks_fresh_and_an_edit_to_b_commits_before_the_ack(lab: Lab) -> None:
    worker = await lab.worker()
    await lab.edit("B")
    await lab.edit("A")
    states = await worker.read(1)
    assert states[0].fresh
    assert states[0].outbox_version is not None
    await lab.edit("B")
    await worker.write_back(states)
    await lab.assert_ends_true()


async def a_fresh_item_is_acked_while_an_edit_is_uncommitted(lab: Lab) -> None:
    worker, user = await lab.worker(), await lab.session()
    await lab.edit("B")
    await lab.edit("A")
    states = await worker.read(1)
    assert states[0].fresh
    await user.run("BEGIN")
    await lab.edit("B", by=user)
    write_back = lab.start(worker.write_back(states))
    await lab.waits_or_ends(worker, write_back)
    await user.run("COMMIT")
    await write_back
    await lab.assert_ends_true()


async def make_orphan(lab: Lab) -> None:
    """Item 2 is deleted but waits in the outbox: a re-fire had read it before."""
    user, dba = await lab.session(), await lab.session()
    await lab.rewrite("refire_page", ("'250ms'", "'30s'"))
    await user.run("BEGIN")
    await lab.edit("B", by=user)
    refire = lab.start(dba.run("SELECT evervec.refire('items', force => true)"))
    await lab.waits(dba)
    await lab.observer.run("DELETE FROM items WHERE id = 2")
    await user.run("ROLLBACK")
    await refire
    assert await lab.outbox(2) is not None


async def a_deleted_key_is_acked_while_it_is_inserted_again(lab: Lab) -> None:
    worker, user = await lab.worker(), await lab.session()
    await make_orphan(lab)
    states = await worker.read(2)
    assert not states[0].exists
    await user.run("BEGIN")
    await user.run("INSERT INTO items (id, name) VALUES (2, 'Z')")
    write_back = lab.start(worker.write_back(states))
    await lab.waits_or_ends(worker, write_back)
    await user.run("COMMIT")
    await write_back
    await lab.assert_ends_true()


async def a_deleted_key_is_inserted_again_between_the_look_and_the_ack(lab: Lab) -> None:
    worker = await lab.worker()
    await make_orphan(lab)
    await lab.rewrite("write_back", PAUSES["seen"])
    await lab.close_gate()
    write_back = lab.start(worker.work(2))
    await lab.waits(worker)
    await lab.observer.run("INSERT INTO items (id, name) VALUES (2, 'Z')")
    await lab.open_gate()
    assert await write_back == {"2": Outcome.GONE}
    await lab.assert_ends_true()


async def an_uncommitted_edit_commits_and_no_older_vector_is_written(lab: Lab) -> None:
    worker, user = await lab.worker(), await lab.session()
    await lab.edit("B")
    states = await worker.read(1)
    await user.run("BEGIN")
    await lab.edit("C", by=user)
    write_back = lab.start(worker.write_back(states))
    await lab.waits_or_ends(worker, write_back)
    await user.run("COMMIT")
    await write_back
    assert await lab.vector() == list(vector_of("A"))
    await lab.assert_ends_true()


async def an_edit_commits_before_the_row_is_locked_and_no_older_vector_is_written(lab: Lab) -> None:
    worker = await lab.worker()
    await lab.edit("B")
    await lab.rewrite("write_back", PAUSES["source"])
    await lab.close_gate()
    write_back = lab.start(worker.work(1))
    await lab.waits(worker)
    await lab.edit("C")
    await lab.open_gate()
    await write_back
    assert await lab.vector() == list(vector_of("A"))
    await lab.assert_ends_true()


async def an_uncommitted_edit_rolls_back_and_the_retry_writes_and_acks(lab: Lab) -> None:
    worker, user = await lab.worker(), await lab.session()
    await lab.edit("B")
    states = await worker.read(1)
    await user.run("BEGIN")
    await lab.edit("C", by=user)
    write_back = lab.start(worker.write_back(states))
    await lab.waits_or_ends(worker, write_back)
    assert await lab.vector() == list(vector_of("A"))
    await user.run("ROLLBACK")
    assert await write_back == {"1": Outcome.LOCKED}
    assert await lab.outbox() == states[0].outbox_version
    assert await worker.write_back(states) == {"1": Outcome.EMBEDDED}
    assert await lab.vector() == list(vector_of("B"))
    await lab.assert_true(drained=True)


async def a_refire_edits_what_the_worker_writes_back_and_is_never_the_deadlock_victim(lab: Lab) -> None:
    worker, dba = await lab.worker(), await lab.session()
    await lab.edit("B")
    await lab.rewrite("write_back", PAUSES["written"], (" SET lock_timeout", LOOKS_LATE + " SET lock_timeout"))
    await lab.close_gate()
    await dba.run(LOOKS_ONCE)
    await dba.run("BEGIN")
    await dba.run("SELECT evervec.refire('items')")
    write_back = lab.start(worker.work(1))
    await lab.waits(worker)
    # First the DBA waits for the item, then the worker comes to the outbox row: whoever waits longest is the victim.
    edit = lab.start(lab.edit("C", by=dba))
    await lab.waits_or_ends(dba, edit)
    await lab.open_gate()
    outcomes, edited = await asyncio.gather(write_back, edit, return_exceptions=True)
    assert not isinstance(edited, psycopg.Error)
    assert outcomes in ({"1": Outcome.EMBEDDED}, {"1": Outcome.LOCKED})
    await dba.run("COMMIT")
    await lab.assert_ends_true()


# Further ones


async def a_forced_refire_between_read_and_ack_is_still_done(lab: Lab) -> None:
    worker = await lab.worker()
    await lab.edit("B")
    states = await worker.read(1)
    await lab.observer.run("SELECT evervec.refire('items', 'id = 1', force => true)")
    assert await worker.write_back(states) == {"1": Outcome.EMBEDDED}
    [state] = await worker.read(1)
    assert state.forced
    assert await worker.work(1) == {"1": Outcome.EMBEDDED}
    await lab.assert_true(drained=True)


async def a_failure_is_recorded_after_the_content_changed(lab: Lab) -> None:
    worker = await lab.worker()
    await lab.edit("B")
    [state] = await worker.read(1)
    await lab.edit("C")
    version = state.outbox_version
    assert not await worker.items.record_failure("items", "1", version, "an error", max_attempts=1)
    await lab.assert_ends_true()


LOSSES: list[tuple[Scenario, list[str]]] = [
    (
        an_item_locked_by_an_edit_is_skipped_and_the_edit_rolls_back,
        ["do not ack what somebody holds", "never wait for an outbox row"],
    ),
    (an_item_locked_by_nothing_but_a_lock_is_skipped, ["do not ack what somebody holds"]),
    (
        a_b_a_looks_fresh_and_an_edit_to_b_commits_before_the_ack,
        ["ack only the version that was read", "do not ack what is stale"],
    ),
    (
        a_b_a_looks_fresh_and_an_edit_to_b_commits_before_the_ack,
        ["each enqueue has a new version", "do not ack what is stale"],
    ),
    (
        a_fresh_item_is_acked_while_an_edit_is_uncommitted,
        [
            "ack only the version that was read",
            "ack the row that was locked, not its successor",
            "lock the item first",
            "never wait for an outbox row",
        ],
    ),
    (
        a_fresh_item_is_acked_while_an_edit_is_uncommitted,
        [
            "each enqueue has a new version",
            "ack the row that was locked, not its successor",
            "lock the item first",
            "never wait for an outbox row",
        ],
    ),
    (
        a_deleted_key_is_acked_while_it_is_inserted_again,
        [
            "ack only the version that was read",
            "ack the row that was locked, not its successor",
            "never wait for an outbox row",
        ],
    ),
    (
        a_deleted_key_is_inserted_again_between_the_look_and_the_ack,
        ["ack only the version that was read", "ack the row that was locked, not its successor"],
    ),
    (
        a_deleted_key_is_inserted_again_between_the_look_and_the_ack,
        ["each enqueue has a new version", "ack the row that was locked, not its successor"],
    ),
    (
        an_uncommitted_edit_commits_and_no_older_vector_is_written,
        ["lock the item first", "write to the row that was locked, not its successor"],
    ),
    (
        an_edit_commits_before_the_row_is_locked_and_no_older_vector_is_written,
        ["compare the hash on the locked row"],
    ),
    (
        an_uncommitted_edit_rolls_back_and_the_retry_writes_and_acks,
        ["do not ack what somebody holds", "never wait for an outbox row"],
    ),
    (
        a_refire_edits_what_the_worker_writes_back_and_is_never_the_deadlock_victim,
        ["never wait for an outbox row", "never wait for long"],
    ),
    (a_forced_refire_between_read_and_ack_is_still_done, ["ack only the version that was read"]),
    (a_failure_is_recorded_after_the_content_changed, ["count failures of the present version only"]),
]
SCENARIOS = list(dict.fromkeys(scenario for scenario, _ in LOSSES))
# A table beside is written to by its key.
FOR_COLUMNS_ALONE = an_uncommitted_edit_commits_and_no_older_vector_is_written
WITH_ONE_LEFT = [
    (scenario, kept)
    for scenario, needed in LOSSES
    for kept in combinations(needed, len(needed) - 1)
    if kept and scenario is not FOR_COLUMNS_ALONE
]


@pytest.mark.parametrize("scenario", SCENARIOS)
async def test_nothing_is_lost(lab: Lab, scenario: Scenario) -> None:
    await scenario(lab)


@pytest.mark.parametrize(("scenario", "protections"), LOSSES)
async def test_it_would_be_noticed_without(lab: Lab, scenario: Scenario, protections: list[str]) -> None:
    await take_out(lab, *protections)
    if "never wait for long" not in protections:  # else a slow machine might give up waiting, and so be right
        await take_out(lab, "never wait for long")
    with pytest.raises(AssertionError):
        await scenario(lab)


@pytest.mark.parametrize(("scenario", "protections"), WITH_ONE_LEFT)
async def test_one_protection_is_enough(lab: Lab, scenario: Scenario, protections: tuple[str, ...]) -> None:
    await take_out(lab, *protections)
    await scenario(lab)


async def test_a_retry_waits_for_who_touches_its_item(lab: Lab) -> None:
    dba, other = await lab.session(), await lab.session()
    await lab.rewrite("retry", ("'250ms'", "'30s'"))
    await lab.edit("B")
    await dba.run(
        "SELECT evervec.record_failures('items', '{1}', ARRAY(SELECT version FROM evervec.outbox), '{bad}', 1)"
    )
    await other.run("BEGIN")
    await other.run("UPDATE evervec.outbox SET last_error = 'the other lane''s'")
    retry = lab.start(dba.value("SELECT evervec.retry('items')"))
    await lab.waits(dba)
    await other.run("COMMIT")
    assert await retry == 1
    await lab.assert_ends_true()
