"""The bell is silenced while writers are many, for as long as the database says, and nothing is lost by it."""

import asyncio
import signal
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import psycopg
import pytest

from db.connection import connect
from db.outbox import Outbox
from evervec.errors import DatabaseError
from evervec.temporal import sweep_workflow_id
from listener.daemon import Listener
from listener.lookout import Lookout, Reader
from listener.notify import Ear
from tests.integration.listener_lab import EVERY_BELL, WATCH, Lab, eventually, quiet

BELL = 731031240
WRITERS = 4
ROWS = 500
TRIES = 20
MARK = "somebody else's"
HUSHED = """
    SELECT FROM pg_locks l JOIN pg_stat_activity a USING (pid)
    WHERE l.locktype = 'advisory' AND l.granted AND l.classid::bigint = %s
      AND a.application_name = 'evervec listener'
"""


@pytest.fixture
async def lab(database: str, temporal_address: str) -> AsyncIterator[Lab]:
    """With the source `items` that many write, and the source `other` that is edited now and then."""
    async with Lab.open(database, temporal_address) as lab:
        await lab.do("INSERT INTO items SELECT n, 'item ' || n FROM generate_series(1, %s) AS n", ROWS)
        await lab.do("CREATE TABLE other (id int PRIMARY KEY, name text)")
        await lab.do(WATCH)
        await lab.do("SELECT evervec.watch('other', '{name}', model => 'stub:4')")
        await lab.do("UPDATE evervec.source SET filling = false")
        yield lab


class Flood:
    """Writers who edit rows of `items`, each row again and again, until the block ends."""

    def __init__(self) -> None:
        self.edits = 0

    async def write(self, conninfo: str) -> None:
        async with await psycopg.AsyncConnection.connect(conninfo, autocommit=True) as writer:
            while True:
                await writer.execute(
                    "UPDATE items SET name = md5(random()::text) WHERE id = 1 + floor(%s * random())", (ROWS,)
                )
                self.edits += 1


@asynccontextmanager
async def flood(lab: Lab) -> AsyncIterator[Flood]:
    flood = Flood()
    writers = [asyncio.create_task(flood.write(lab.owner_conninfo)) for _ in range(WRITERS)]
    try:
        yield flood
    finally:
        for writer in writers:
            writer.cancel()
        await asyncio.gather(*writers, return_exceptions=True)


async def hushes(listener: Listener, count: int) -> None:
    """Wait until the bell was silenced so many more times."""
    before = listener.status().hushed
    await eventually(lambda: listener.status().hushed >= before + count)


async def hushed(lab: Lab) -> bool:
    """Whether a listener keeps the bell silent at this moment."""
    return bool(await (await lab.owner.execute(HUSHED, (BELL,))).fetchall())


async def hushed_or_over(lab: Lab, hush: asyncio.Task[bool]) -> bool:
    """Whether a listener keeps the bell silent, or has done so before anybody looked."""
    return hush.done() or await hushed(lab)


async def rings(lab: Lab) -> bool:
    """Whether an edit is rung."""
    async with await psycopg.AsyncConnection.connect(lab.owner_conninfo, autocommit=True) as ears:
        await ears.execute("LISTEN evervec")
        await lab.do("UPDATE items SET name = md5(random()::text) WHERE id = 1")
        return bool([notice async for notice in ears.notifies(timeout=0.1, stop_after=1)])


async def test_little_is_heard_of_a_flood_and_an_edit_elsewhere_goes_live_soon(lab: Lab) -> None:
    await lab.do("SELECT evervec.pause('items')")
    async with lab.listener() as listener:
        async with flood(lab) as writers:
            await hushes(listener, 3)
            heard, edits, began = listener.status().heard, writers.edits, time.monotonic()
            for key in range(1, 6):
                await lab.do("INSERT INTO other VALUES (%s, 'saw')", key)
                await eventually(lambda key=key: lab.signals(str(key), "other"), seconds=5)
            await hushes(listener, 5)
            seconds = time.monotonic() - began
            assert (listener.status().heard - heard) / seconds < 200
            assert listener.status().heard - heard < (writers.edits - edits) / 2
            assert listener.status().swept == 0
        # It is over: what is written after the last hush is heard at once.
        await quiet(lab, listener)
        silenced, heard = listener.status().hushed, listener.status().heard
        await lab.do("INSERT INTO other VALUES (6, 'drill')")
        await eventually(lambda: listener.status().heard > heard, seconds=5)
        await eventually(lambda: lab.signals("6", "other"), seconds=5)
        assert listener.status().hushed == silenced


async def test_a_flood_of_a_source_that_is_not_paused_loses_nothing(lab: Lab) -> None:
    await lab.do("SELECT evervec.refire('items')")
    async with lab.listener() as listener, lab.worker():
        async with flood(lab):
            await hushes(listener, 5)
        await eventually(lab.all_fresh, seconds=60)


class Noted:
    """When what happened in a listener."""

    def __init__(self) -> None:
        self.marks: list[float] = []
        """A notification `MARK` was heard."""
        self.looks: list[float] = []
        """A look into the outbox began, which has ended."""

    def looked(self) -> bool:
        """Whether all that was rung before the last mark has had its look."""
        return bool(self.looks) and self.looks[-1] >= self.marks[-1]


@pytest.fixture
def noted(monkeypatch: pytest.MonkeyPatch) -> Noted:
    noted, hear, look = Noted(), Ear.hear, Lookout.look

    def note_mark(ear: Ear, payload: str) -> None:
        hear(ear, payload)
        if payload == MARK:
            noted.marks.append(time.monotonic())

    async def note_look(lookout: Lookout, outbox: Reader) -> float:
        began = time.monotonic()
        took = await look(lookout, outbox)
        noted.looks.append(began)
        return took

    monkeypatch.setattr(Ear, "hear", note_mark)
    monkeypatch.setattr(Lookout, "look", note_look)
    return noted


async def test_what_was_not_rung_is_found_when_the_hush_is_over(
    lab: Lab, noted: Noted, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("listener.hush.FIRST_SECONDS", 1.0)
    monkeypatch.setattr("listener.lookout.IDLE_SECONDS", 600.0)
    await lab.do("SELECT evervec.pause('items')")
    async with lab.listener() as listener:
        for key in range(1, TRIES):
            async with flood(lab):
                await eventually(lambda: hushed(lab))
            # What was rung before is heard before this; the look that follows is the last one until the hush is over.
            await lab.do("SELECT pg_notify('evervec', %s)", MARK)
            await eventually(lambda key=key: len(noted.marks) == key)
            await eventually(noted.looked)
            heard = listener.status().heard
            await lab.do("INSERT INTO other VALUES (%s, 'saw')", key)
            await eventually(lambda key=key: lab.signals(str(key), "other"))
            if listener.status().heard == heard:
                return
    pytest.fail("each hush was over before there was an edit in it")


@pytest.mark.parametrize("how", [signal.SIGSTOP, signal.SIGKILL])
async def test_a_listener_that_is_stopped_does_not_keep_the_bell_silent(lab: Lab, how: signal.Signals) -> None:
    await lab.do("SELECT evervec.pause('items')")
    async with lab.process() as process:
        async with flood(lab):
            await eventually(lambda: hushed(lab))
            process.send_signal(how)
        await eventually(lambda: rings(lab), seconds=5)
        assert not await hushed(lab)


async def test_while_a_sweep_is_open_an_edit_that_would_go_live_is_heard(lab: Lab) -> None:
    """What is not heard of but found would be left to the sweep. There is no worker, so it does not end."""
    await lab.do("SELECT evervec.pause('items')")
    await lab.do("INSERT INTO other SELECT n, 'other ' || n FROM generate_series(1, 1000) AS n")
    async with lab.listener() as listener:
        await eventually(lambda: listener.status().swept)
        await eventually(lambda: listener.status().under_way == 0)
        silenced = listener.status().hushed
        async with flood(lab) as writers:

            async def edited(key: int) -> bool:
                # The bell may be taken by one of the writers.
                await lab.do("UPDATE other SET name = md5(random()::text) WHERE id = %s", key)
                await asyncio.sleep(0.1)
                return bool(await lab.signals(str(key), "other"))

            for key in (1, 2, 3):
                await eventually(lambda key=key: edited(key))
            await eventually(lambda: writers.edits > 100)
            assert listener.status().hushed == silenced
            # The sweep ends.
            await lab.do("DELETE FROM evervec.outbox WHERE source = 'other'")
            await lab.client.get_workflow_handle(sweep_workflow_id(lab.instance, "other")).terminate()
            await hushes(listener, 1)


@pytest.mark.parametrize("begins", ["alone", "right after a re-fire"])
async def test_an_edit_that_nobody_rings_for_goes_live_though_a_sweep_is_open(lab: Lab, begins: str) -> None:
    """The sweep, which has no worker, would come to it last; it was kept from ringing by others of the same second."""
    await lab.do("INSERT INTO other SELECT n, 'other ' || n FROM generate_series(1, 1000) AS n")
    async with lab.listener() as listener, await psycopg.AsyncConnection.connect(lab.conninfo) as ringing:
        await eventually(lambda: listener.status().sweeping == ["other"])
        await eventually(lambda: listener.status().under_way == 0)
        if begins == "right after a re-fire":
            await lab.do("SELECT evervec.refire('other', 'id > 500')")
            await eventually(lambda: listener.status().heard == 1)
        await ringing.execute(EVERY_BELL)
        heard = listener.status().heard
        deadline = time.monotonic() + 10
        while not await lab.signals("1", "other"):
            assert time.monotonic() < deadline, "no edit went live within 10 s"
            # What is enqueued before bulk work was seen last is taken for a part of it.
            await lab.do("UPDATE other SET name = md5(random()::text) WHERE id = 1")
            await asyncio.sleep(0.5)
        assert listener.status().heard == heard
        assert listener.status().sweeping == ["other"]
        assert listener.status().signalled < 10


async def test_a_hush_lasts_as_long_as_it_was_asked_for(lab: Lab) -> None:
    async with await connect(lab.conninfo, application_name="evervec listener") as connection:
        for _ in range(TRIES):
            began = time.monotonic()
            hush = asyncio.create_task(Outbox(connection).hush(0.5))
            await eventually(lambda hush=hush: hushed_or_over(lab, hush))
            rung = await rings(lab)
            during = await hushed(lab)
            assert await hush
            assert time.monotonic() - began >= 0.5
            if during:
                break
        assert during, "each hush was over before there was an edit in it"
        assert not rung
        await eventually(lambda: rings(lab))


async def test_a_transaction_that_stays_open_does_not_keep_the_bell_from_being_silenced(lab: Lab) -> None:
    async with (
        await connect(lab.conninfo, application_name="evervec listener") as connection,
        await psycopg.AsyncConnection.connect(lab.owner_conninfo) as other,
    ):
        await other.execute("UPDATE items SET name = 'edited' WHERE id = 1")
        assert await Outbox(connection).hush(0.01)
        await other.commit()


async def test_who_finds_the_bell_silenced_does_not_wait_for_long(lab: Lab) -> None:
    async with (
        await connect(lab.conninfo, application_name="evervec listener") as connection,
        await connect(lab.conninfo, application_name="evervec listener") as other,
    ):
        for _ in range(TRIES):
            silencing = asyncio.create_task(Outbox(other).hush(1.0))
            await eventually(lambda silencing=silencing: hushed_or_over(lab, silencing))
            too = await Outbox(connection).hush(0.1)
            during = await hushed(lab)
            assert await silencing
            if during:
                break
        assert during, "each hush was over before another one was asked for"
        assert not too
        assert await Outbox(connection).hush(0.01)


@pytest.mark.parametrize("time", ["0", "-1 s", "1001 ms", "1 year", None])
async def test_nobody_silences_the_bell_for_more_than_a_second(lab: Lab, time: str | None) -> None:
    async with await connect(lab.conninfo, application_name="evervec listener") as connection:
        with pytest.raises(psycopg.errors.InvalidParameterValue):
            await connection.execute("SELECT evervec.hush(%s::interval)", (time,))


async def test_a_listener_that_may_not_hush_goes_on_without(lab: Lab) -> None:
    await lab.do("REVOKE EXECUTE ON FUNCTION evervec.hush FROM evervec_listener")
    await lab.do("SELECT evervec.pause('items')")
    async with await connect(lab.conninfo, application_name="evervec listener") as connection:
        with pytest.raises(DatabaseError):
            await Outbox(connection).hush(0.1)
    async with lab.listener() as listener, flood(lab):
        await eventually(lambda: listener.status().heard > 100)
        await lab.do("INSERT INTO other VALUES (1, 'saw')")
        await eventually(lambda: lab.signals("1", "other"), seconds=5)
        assert listener.status().hushed == 0
