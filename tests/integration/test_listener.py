import asyncio
import signal
from collections.abc import AsyncIterator, Awaitable
from typing import Any

import psycopg
import pytest
import structlog
from temporalio.service import RPCError, RPCStatusCode

from db.connection import connect
from db.listen import NotificationStream
from db.outbox import Outbox
from evervec.errors import ConfigurationError, ServiceUnreachableError
from evervec.schedule import EVERY, schedule_id, turn_of
from listener import daemon, standby
from listener.daemon import Listener, run_listener
from listener.status import Role
from tests.integration.listener_lab import (
    EVERY_BELL,
    LEADERS_CONNECTIONS,
    WATCH,
    WATCH_FILLED,
    Lab,
    Proxy,
    eventually,
    quiet,
    settings_of,
)

LEADER = 7310312410226385252


@pytest.fixture
async def lab(database: str, temporal_address: str) -> AsyncIterator[Lab]:
    async with Lab.open(database, temporal_address) as lab:
        yield lab


async def test_a_changed_row_is_signalled(lab: Lab) -> None:
    await lab.do(WATCH)
    await lab.do("UPDATE evervec.source SET filling = false")  # a first fill would enqueue the row again
    async with lab.listener() as listener:
        await lab.do("INSERT INTO items VALUES (1, 'drill')")
        await lab.signalled(1)
        await lab.do("INSERT INTO items SELECT n, 'item ' || n FROM generate_series(2, 40) AS n")
        await lab.signalled(2, 20, 40)
        await eventually(lambda: listener.status().signalled == 40)
        assert listener.status().under_way == 40


async def test_many_rows_are_swept_and_an_edit_meanwhile_goes_live(lab: Lab) -> None:
    await lab.do(WATCH_FILLED)
    async with lab.listener(sweep_threshold=10) as listener:
        await lab.do("INSERT INTO items SELECT n, 'item ' || n FROM generate_series(1, 1000) AS n")
        await eventually(lambda: listener.status().swept)
        assert listener.status().signalled <= 10
        assert await lab.sweep_is_open()
        # What is heard takes the room of what was forgotten, and then the edit would be left to the sweep.
        await quiet(lab, listener)
        await lab.do("DELETE FROM evervec.outbox WHERE item_key::int < 900")
        await eventually(lambda: listener.status().under_way == 0)
        # So many rings may have been hushed; while the sweep is open and nothing under way, there is no other hush.
        await eventually(lab.bell_is_free)
        await lab.do("UPDATE items SET name = 'edited' WHERE id = 950")
        await lab.signalled(950)
        # So does what nobody hears of but is new and few; more of it is left to the sweep.
        await lab.do("DELETE FROM evervec.outbox")
        await lab.do("SELECT evervec.refire('items', 'id = 500')")
        await lab.signalled(500)
        before = listener.status().swept
        await lab.do("SELECT evervec.refire('items', 'id > 600')")
        await eventually(lambda: listener.status().swept > before)
        assert listener.status().signalled < 30
    async with lab.listener() as another, lab.worker():
        await lab.do("SELECT evervec.refire('items')")
        await eventually(lab.all_fresh, seconds=60)
        await eventually(lambda: another.status().under_way == 0)


async def test_a_thousand_edits_that_are_reverted_within_the_window_embed_nothing(lab: Lab) -> None:
    await lab.do(WATCH)
    async with lab.listener(sweep_threshold=4), lab.worker():
        await lab.do("INSERT INTO items SELECT n, 'item ' || n FROM generate_series(1, 1000) AS n")
        await eventually(lab.all_fresh, seconds=60)
    await lab.do("CREATE TABLE before AS SELECT id, embedded_at FROM items")
    times: dict[str, Any] = {"debounce_ms": 5000, "debounce_max_ms": 20_000, "sweep_threshold": 4}
    async with lab.listener(**times) as listener, lab.worker(**times):
        await lab.do("UPDATE items SET name = name || ' edited'")
        await eventually(lambda: listener.status().waiting)
        await lab.do("UPDATE items SET name = replace(name, ' edited', '')")
        await eventually(lab.all_fresh, seconds=60)
        await eventually(lambda: listener.status().swept)
    again = await lab.owner.execute("SELECT count(*) FROM items JOIN before USING (id, embedded_at)")
    assert await again.fetchone() == (1000,)


async def test_the_safety_net_is_made_and_kept_up_to_date(lab: Lab) -> None:
    async with lab.listener():
        await lab.safety_net(lab.settings().task_queue)
        await lab.client.get_schedule_handle(schedule_id(lab.instance)).pause()
    async with lab.listener(task_queue="another"):
        await lab.safety_net("another")
    net = await lab.client.get_schedule_handle(schedule_id(lab.instance)).describe()
    assert net.schedule.state.paused
    [interval] = net.schedule.spec.intervals
    assert (interval.every, interval.offset) == (EVERY, turn_of(lab.instance))


async def test_a_server_without_schedules_is_told_of_once(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    answers = [RPCError("later", RPCStatusCode.INTERNAL, b""), RPCError("never", RPCStatusCode.UNIMPLEMENTED, b"")]

    async def refuse(*_: object, **_options: object) -> None:
        raise answers.pop(0)

    monkeypatch.setattr("listener.lanes.ensure_schedule", refuse)
    await lab.do(WATCH)
    with structlog.testing.capture_logs() as logs:
        async with lab.listener():
            await eventually(lambda: not answers)
            await lab.do("INSERT INTO items VALUES (1, 'drill')")
            await lab.signalled(1)
    assert [entry["error"] for entry in logs if "schedule" in entry["event"]] == ["UNIMPLEMENTED"]


async def test_the_safety_net_sweeps_what_no_listener_sees(lab: Lab) -> None:
    await lab.do(WATCH)
    async with lab.listener():
        await lab.safety_net(lab.settings().task_queue)
    await lab.do("INSERT INTO items SELECT n, 'item ' || n FROM generate_series(1, 5) AS n")
    await lab.do("UPDATE evervec.outbox SET queued_at = queued_at - interval '2 minutes'")
    async with lab.worker():
        await lab.client.get_schedule_handle(schedule_id(lab.instance)).trigger()
        await eventually(lab.all_fresh, seconds=60)
    assert await lab.signals("1") == 0


LOADED_BEHIND_THE_TRIGGERS = """
    BEGIN;
    ALTER TABLE items DISABLE TRIGGER USER;
    UPDATE items SET name = name || ' changed' WHERE id <= 5;
    INSERT INTO items SELECT n, 'loaded ' || n FROM generate_series(1001, 1020) AS n;
    ALTER TABLE items ENABLE TRIGGER USER;
    COMMIT
"""


async def test_the_safety_net_finds_what_no_trigger_saw(lab: Lab) -> None:
    await lab.do(WATCH)
    # One worker throughout: what was handed to one that stops is tried again after a minute.
    async with lab.worker():
        async with lab.listener():
            await lab.safety_net(lab.settings().task_queue)
            # Nothing but what is triggered below: every five minutes it runs by itself.
            await lab.client.get_schedule_handle(schedule_id(lab.instance)).pause()
            await lab.do("INSERT INTO items SELECT n, 'item ' || n FROM generate_series(1, 10) AS n")
            await eventually(lab.all_fresh, seconds=60)
        await lab.do(LOADED_BEHIND_THE_TRIGGERS)
        await eventually(lab.counters_know)
        assert not await lab.waits()
        await lab.client.get_schedule_handle(schedule_id(lab.instance)).trigger()
        await eventually(lab.verified, seconds=60)


async def test_the_listener_finds_what_no_trigger_saw_in_a_large_source(lab: Lab) -> None:
    await lab.do(
        "CREATE OR REPLACE FUNCTION evervec.count_limit() RETURNS bigint LANGUAGE sql STABLE AS 'SELECT 5::bigint'"
    )
    await lab.do(WATCH)
    async with lab.listener(), lab.worker():
        await lab.do("INSERT INTO items SELECT n, 'item ' || n FROM generate_series(1, 10) AS n")
        await eventually(lab.all_fresh, seconds=60)
        await lab.do(LOADED_BEHIND_THE_TRIGGERS)
        await eventually(lab.verified, seconds=60)


async def test_rows_that_were_there_before_are_filled_in(lab: Lab) -> None:
    await lab.do("INSERT INTO items SELECT n, 'item ' || n FROM generate_series(1, 30) AS n")
    async with lab.listener() as listener, lab.worker():
        await lab.do(WATCH)
        await eventually(lab.all_fresh, seconds=60)
        await eventually(lambda: listener.status().filling is None)


async def test_a_large_source_is_counted_and_again_when_it_has_changed(lab: Lab) -> None:
    await lab.do(
        "CREATE OR REPLACE FUNCTION evervec.count_limit() RETURNS bigint LANGUAGE sql STABLE AS 'SELECT 10::bigint'"
    )
    await lab.do(WATCH)
    async with lab.listener():
        for rows in (40, 80):
            await lab.do(
                "INSERT INTO items SELECT n, 'item ' || n FROM generate_series(%s::int - 39, %s) AS n", rows, rows
            )
            await eventually(lambda rows=rows: lab.counted("items", rows))


async def test_a_long_outbox_is_counted(lab: Lab) -> None:
    await lab.do(
        "CREATE OR REPLACE FUNCTION evervec.outbox_limit() RETURNS bigint LANGUAGE sql STABLE AS 'SELECT 10::bigint'"
    )
    await lab.do(WATCH)
    async with lab.listener():
        await lab.do("INSERT INTO items SELECT n, 'item ' || n FROM generate_series(1, 40) AS n")
        await eventually(lambda: lab.waiting("items", 40))


async def test_what_changed_before_the_start_is_found_in_the_outbox(lab: Lab) -> None:
    await lab.do(WATCH)
    await lab.do("INSERT INTO items VALUES (1, 'drill')")
    async with lab.listener():
        await lab.signalled(1)


async def test_edits_within_the_window_are_one_signal(lab: Lab) -> None:
    await lab.do(WATCH)
    async with lab.listener(debounce_ms=3000, debounce_max_ms=9000) as listener:
        await lab.do("INSERT INTO items VALUES (1, 'drill')")
        await lab.do("UPDATE items SET name = 'hammer drill'")
        await lab.signalled(1)
        assert listener.status().heard == 2
        assert await lab.signals("1") == 1


async def test_a_deleted_row_is_not_signalled(lab: Lab) -> None:
    await lab.do(WATCH_FILLED)
    async with lab.listener(debounce_ms=3000, debounce_max_ms=3000) as listener:
        await lab.do("INSERT INTO items VALUES (1, 'drill')")
        await lab.do("DELETE FROM items")
        await lab.do("INSERT INTO items VALUES (2, 'saw')")
        await lab.signalled(2)
        assert await lab.signals("1") == 0
        await eventually(lambda: listener.status().signalled)
        assert listener.status().signalled == 1


async def test_a_change_that_rings_no_bell_is_found_within_a_second_or_so(lab: Lab, database: str) -> None:
    await lab.do(WATCH)
    async with lab.listener() as listener, await psycopg.AsyncConnection.connect(database) as other:
        await other.execute(EVERY_BELL)
        await lab.do("INSERT INTO items VALUES (1, 'drill')")
        await lab.signalled(1)
        assert listener.status().heard == 0


async def test_what_left_the_outbox_is_forgotten(lab: Lab) -> None:
    await lab.do(WATCH_FILLED)
    async with lab.listener() as listener:
        await lab.do("INSERT INTO items VALUES (1, 'drill'), (2, 'saw')")
        await eventually(lambda: listener.status().under_way == 2)
        await lab.do("DELETE FROM evervec.outbox WHERE item_key = '1'")
        await eventually(lambda: listener.status().under_way == 1)


async def test_a_paused_source_is_not_signalled_until_it_is_resumed(lab: Lab) -> None:
    await lab.do(WATCH)
    await lab.do("SELECT evervec.pause('items')")
    await lab.do("CREATE TABLE other (id int PRIMARY KEY, name text)")
    await lab.do("SELECT evervec.watch('other', '{name}', model => 'stub:4')")
    await lab.do("UPDATE evervec.source SET filling = false")  # a first fill would enqueue the rows again
    async with lab.listener() as listener:
        await lab.do("INSERT INTO items VALUES (1, 'drill')")
        await lab.do("INSERT INTO other VALUES (1, 'saw')")
        await eventually(lambda: lab.signals("1", "other"))
        await eventually(lambda: listener.status().signalled)
        assert listener.status().signalled == 1
        await lab.do("SELECT evervec.resume('items')")
        await lab.signalled(1)


async def test_garbage_on_the_channel_does_no_harm(lab: Lab) -> None:
    await lab.do(WATCH_FILLED)
    async with lab.listener() as listener:
        for payload in ("", "{", "[" * 7999, '{"source": "items", "items": [["' + "9" * 7900 + '", "h"]]}'):
            await lab.do("SELECT pg_notify('evervec', %s)", payload)
        await lab.do("""SELECT pg_notify('evervec', '{"source": "items", "items": [["forged", "h"]]}')""")
        await lab.do("INSERT INTO items VALUES (1, 'drill')")
        await lab.signalled(1)
        # Temporal knows of a signal before the listener knows that it does, and a look may find what is heard later.
        await eventually(lambda: listener.status().signalled and listener.status().heard >= 6)
        status = listener.status()
        assert (status.heard, status.garbage, status.signalled, status.role) == (6, 3, 1, Role.LEADING)
    assert await lab.signals("forged") == 0


async def test_a_key_too_long_for_a_workflow_id_is_swept(lab: Lab) -> None:
    await lab.do("CREATE TABLE long (id text PRIMARY KEY, name text)")
    await lab.do("SELECT evervec.watch('long', '{name}', model => 'stub:4')")
    await lab.do("INSERT INTO long VALUES (repeat('ä', 600), 'drill'), (repeat('k', 800), 'saw')")
    async with lab.listener() as listener:
        await eventually(lambda: listener.status().swept)
        assert await lab.sweep_is_open("long")


async def test_lost_connections_are_made_again_and_the_outbox_read(lab: Lab) -> None:
    await lab.do(WATCH)
    async with lab.listener() as listener:
        with structlog.testing.capture_logs() as logs:
            async with lab.owner.transaction():
                await lab.do("INSERT INTO items VALUES (1, 'drill')")
                assert await lab.cut() == LEADERS_CONNECTIONS
                await eventually(lambda: listener.status().role is not Role.LEADING)
            await lab.signalled(1)
        await eventually(lambda: listener.status().role is Role.LEADING)
        assert any(entry["event"] == "PostgreSQL is away: reconnecting" for entry in logs)
        await lab.do("INSERT INTO items VALUES (2, 'saw')")
        await lab.signalled(2)


async def test_a_connection_that_died_silently_is_found(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("listener.notify.IDLE_SECONDS", 0.2)
    monkeypatch.setattr("listener.notify.PING_SECONDS", 0.2)
    parts = psycopg.conninfo.conninfo_to_dict(lab.conninfo)
    await lab.do(WATCH)
    async with Proxy(str(parts["host"]), int(str(parts["port"]))) as proxy:
        through = psycopg.conninfo.make_conninfo(lab.conninfo, host="127.0.0.1", port=proxy.port)
        async with lab.listener(listen_url=through) as listener:
            proxy.freeze()
            await lab.do("INSERT INTO items VALUES (1, 'drill')")
            await eventually(lambda: listener.status().role is Role.RECONNECTING, seconds=30)
            proxy.thaw()
            await eventually(lambda: listener.status().role is Role.LEADING, seconds=30)
            await lab.do("INSERT INTO items VALUES (2, 'saw')")
            await lab.signalled(1, 2)


async def test_one_who_stands_by_finds_that_its_connection_died_silently(
    lab: Lab, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("listener.standby.ANSWER_SECONDS", 0.5)
    parts = psycopg.conninfo.conninfo_to_dict(lab.conninfo)
    await lab.do(WATCH)
    async with Proxy(str(parts["host"]), int(str(parts["port"]))) as proxy:
        through = psycopg.conninfo.make_conninfo(lab.conninfo, host="127.0.0.1", port=proxy.port)
        async with lab.listener() as leader, lab.listener(Role.STANDBY, listen_url=through) as other:
            proxy.strand()
            await leader.stop()
            await eventually(lambda: other.status().role is Role.LEADING, seconds=30)
            await lab.do("INSERT INTO items VALUES (1, 'drill')")
            await lab.signalled(1)


async def test_the_server_lets_go_of_a_listener_that_reads_no_more(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("db.listen.SILENCE_SECONDS", 1.0)
    stream = await NotificationStream.open(lab.conninfo)
    await stream.listen()
    assert await Outbox(stream.connection).try_lead()
    # More than the buffers of both ends take.
    for _ in range(20):
        await lab.do("SELECT pg_notify('evervec', n || repeat('x', 7900)) FROM generate_series(1, 200) AS n")
    await eventually(lambda: nothing(lab.connections()), seconds=60)
    async with await connect(lab.owner_conninfo, application_name="test") as other:
        assert await Outbox(other).try_lead()
    await stream.close()


async def test_temporal_may_go_and_come_back(lab: Lab) -> None:
    host, _, port = lab.settings().temporal_address.rpartition(":")
    await lab.do(WATCH)
    async with Proxy(host, int(port)) as proxy:
        with structlog.testing.capture_logs() as logs:
            async with lab.listener(temporal_address=proxy.address) as listener, lab.worker():
                await proxy.stop()
                await lab.do("INSERT INTO items SELECT n, 'item ' || n FROM generate_series(1, 30) AS n")
                await eventually(lambda: listener.status().temporal_away, seconds=30)
                await proxy.start()
                await eventually(lab.all_fresh, seconds=60)
                await eventually(lambda: not listener.status().temporal_away)
    told = [entry["event"] for entry in logs if entry["event"].startswith("Temporal")]
    assert told == ["Temporal is away; what changes meanwhile waits in the outbox", "Temporal is back"]


async def test_it_stops_though_postgresql_goes_at_that_moment(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    async def lost(_listener: Listener, stream: NotificationStream) -> None:
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            raise ExceptionGroup("parts", [ServiceUnreachableError("PostgreSQL does not answer")]) from None
        finally:
            await stream.close()

    monkeypatch.setattr(Listener, "_serve", lost)
    listener = Listener(lab.settings())
    await listener.start()
    await asyncio.sleep(0)  # let it begin to serve
    async with asyncio.timeout(10):
        await listener.stop()
    assert listener.status().role is Role.STOPPED


async def test_one_leads_and_another_takes_over(lab: Lab) -> None:
    await lab.do(WATCH_FILLED)
    async with lab.listener() as first, lab.listener(Role.STANDBY) as second:
        await lab.do("INSERT INTO items VALUES (1, 'drill')")
        await lab.signalled(1)
        await eventually(lambda: first.status().signalled)
        assert (first.status().signalled, second.status().signalled) == (1, 0)
        await first.stop()
        await lab.do("INSERT INTO items VALUES (2, 'saw')")
        await lab.signalled(2)
        assert second.status().role is Role.LEADING


async def test_a_leader_that_is_stuck_gets_help(lab: Lab, database: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(standby, "PATIENCE_SECONDS", 0.1)
    monkeypatch.setattr(daemon, "HELP_SECONDS", 1.0)
    await lab.do(WATCH)
    async with await psycopg.AsyncConnection.connect(database, autocommit=True) as stuck:
        await stuck.execute("SELECT pg_advisory_lock(%s)", (LEADER,))
        async with lab.listener(Role.STANDBY) as helper:
            await lab.do("INSERT INTO items VALUES (1, 'drill')")
            await lab.signalled(1)
            await eventually(lambda: helper.status().role is Role.HELPING)
            await lab.do("DELETE FROM items")
            await eventually(lambda: helper.status().role is Role.STANDBY)
            await stuck.execute("SELECT pg_advisory_unlock(%s)", (LEADER,))
            await eventually(lambda: helper.status().role is Role.LEADING)


async def test_two_leaders_do_no_harm(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    async def lead(_outbox: object) -> bool:
        return True

    monkeypatch.setattr("db.outbox.Outbox.try_lead", lead)
    await lab.do(WATCH_FILLED)
    async with lab.listener() as first, lab.listener() as second:
        await lab.do("INSERT INTO items SELECT n, 'item ' || n FROM generate_series(1, 20) AS n")
        await eventually(lambda: first.status().signalled >= 20 and second.status().signalled >= 20)
        await lab.signalled(*range(1, 21))
        assert await lab.signals("1") == 2


@pytest.mark.parametrize("away", [{"database_url": "postgresql://127.0.0.1:1/x"}, {"temporal_address": "127.0.0.1:1"}])
async def test_the_first_connect_fails_fast(lab: Lab, away: dict[str, str]) -> None:
    async with asyncio.timeout(15):
        with pytest.raises(ServiceUnreachableError, match=r"127\.0\.0\.1:1"):
            await run_listener(lab.settings(**away))


async def test_a_database_without_evervec_is_a_clear_error(empty_database: str, temporal_address: str) -> None:
    listener = Listener(settings_of(empty_database, temporal_address))
    with pytest.raises(ConfigurationError, match="evervec init"):
        await listener.start()


async def test_it_ends_when_it_is_cancelled(lab: Lab) -> None:
    running = asyncio.create_task(run_listener(lab.settings()))
    await eventually(lab.connections)
    running.cancel()
    async with asyncio.timeout(10):
        with pytest.raises(asyncio.CancelledError):
            await running
    await eventually(lambda: nothing(lab.connections()))


async def nothing(count: Awaitable[int]) -> bool:
    return await count == 0


async def test_a_programming_error_ends_it(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    async def broken(*_args: object) -> None:
        raise ZeroDivisionError

    monkeypatch.setattr("listener.lookout.Lookout.look", broken)
    async with asyncio.timeout(10):
        with pytest.raises(ExceptionGroup) as raised:
            await run_listener(lab.settings())
    assert raised.group_contains(ZeroDivisionError)


async def test_what_changes_while_it_is_killed_is_embedded_when_it_comes_back(lab: Lab) -> None:
    await lab.do(WATCH)
    async with lab.process() as first:
        await lab.do("INSERT INTO items VALUES (0, 'drill')")
        await lab.signalled(0)
        first.send_signal(signal.SIGKILL)
        await first.wait()
    await lab.do("INSERT INTO items SELECT n, 'item ' || n FROM generate_series(1, 50) AS n")
    async with lab.process() as second, lab.worker():
        await eventually(lab.all_fresh, seconds=60)
        second.send_signal(signal.SIGTERM)
        async with asyncio.timeout(10):
            assert await second.wait() == 0
