"""What each of the three roles may: the least it needs."""

import uuid
from collections.abc import Iterator
from contextlib import contextmanager

import psycopg
import pytest

from tests.integration.contract import ITEMS, Lab, Source, connect, run, value


@contextmanager
def member_of(conninfo: str, role: str) -> Iterator[psycopg.Connection[tuple[object, ...]]]:
    """A session of a login role that is a member of one of the three roles, and nothing else."""
    name = f"member_{uuid.uuid4().hex}"
    with connect(conninfo) as admin:
        run(admin, f"CREATE ROLE {name} IN ROLE {role}")
        with connect(conninfo, name) as connection:
            yield connection
        run(admin, f"DROP ROLE {name}")


ALLOWED = {
    "evervec_viewer": {
        "status",
        "failures",
        "work_history",
        "listeners",
        "backlog_is_known",
        "count_now",
        "diagnose",
        "diagnose_sources",
    },
    "evervec_listener": {
        "instance_id",
        "pending_items",
        "waiting_items",
        "newest_items",
        "pending_among",
        "hush",
        "fill_page",
        "census_page",
        "count_outbox",
        "outbox_depth",
        "diagnose",
        "diagnose_sources",
    },
    "evervec_worker": {
        "instance_id",
        "models",
        "read_items",
        "write_back",
        "record_failures",
        "record_work",
        "note_errors",
        "sweep_page",
        "sources_waiting",
        "census_page",
        "diagnose",
        "diagnose_sources",
    },
}


@pytest.mark.parametrize("role", ALLOWED)
def test_a_role_has_the_least_it_needs(lab: Lab, role: str) -> None:
    source = lab.watched(1)
    with member_of(lab.conninfo, role) as connection:
        relations = run(
            connection,
            "SELECT relname FROM pg_class WHERE relnamespace = 'evervec'::regnamespace AND relkind IN ('r', 'v', 'S') "
            "AND CASE relkind WHEN 'S' THEN has_sequence_privilege(oid, 'USAGE, SELECT, UPDATE') "
            "ELSE has_table_privilege(oid, 'SELECT, INSERT, UPDATE, DELETE, TRUNCATE, TRIGGER, REFERENCES') END",
        )
        functions = run(
            connection,
            "SELECT DISTINCT proname FROM pg_proc WHERE pronamespace = 'evervec'::regnamespace AND "
            "has_function_privilege(oid, 'EXECUTE')",
        )
        assert {name for (name,) in relations + functions} == ALLOWED[role]
        assert not value(connection, "SELECT has_schema_privilege('evervec', 'CREATE')")
        for statement in ("SELECT * FROM evervec.source", "SELECT * FROM evervec.outbox", "DELETE FROM evervec.outbox",
                          f"SELECT * FROM {lab.schema}.items", f"SELECT * FROM {source.side_table or source.table}",
                          "SELECT evervec.refire('x')", "SELECT evervec.unwatch('x')", "SELECT evervec.uninstall()",
                          "CREATE TABLE evervec.mine (x int)"):  # fmt: skip
            with pytest.raises((psycopg.errors.InsufficientPrivilege, psycopg.errors.UndefinedTable)):
                run(connection, statement)


def test_a_viewer_sees_the_two_views(lab: Lab) -> None:
    source = lab.watched(2)
    lab.run("UPDATE items SET name = 'poison' WHERE id = 1")
    source.fail("1")
    with member_of(lab.conninfo, "evervec_viewer") as viewer:
        assert run(viewer, "SELECT total, fresh, failed FROM evervec.status WHERE source = %s", [source.name]) == [
            (2, 1, 1)
        ]
        assert run(viewer, "SELECT item_key FROM evervec.failures WHERE source = %s", [source.name]) == [("1",)]


def test_a_listener_and_a_worker_do_their_work(lab: Lab) -> None:
    lab.run(ITEMS)
    lab.run("INSERT INTO items SELECT n, 'name ' || n FROM generate_series(1, 3) AS n")
    source = lab.watch()
    with member_of(lab.conninfo, "evervec_listener") as listener, member_of(lab.conninfo, "evervec_worker") as worker:
        assert run(listener, "LISTEN evervec") == []
        assert run(listener, "SELECT scanned, enqueued, done FROM evervec.fill_page(100)") == [(3, 3, True)]
        waiting = run(
            listener, "SELECT item_key FROM evervec.pending_items(NULL, NULL, 10) WHERE source = %s", [source.name]
        )
        assert waiting == [("1",), ("2",), ("3",)]
        at_work = Source(worker, source.name, "items", source.side_table, source.text_columns)
        assert set(at_work.work(["1", "2"]).values()) == {"embedded"}
        version = source.outbox()["3"].version
        failure = "SELECT evervec.record_failures(%s, ARRAY['3'], ARRAY[%s::bigint], ARRAY['bad'], 5)"
        assert run(worker, failure, [source.name, version]) == []
        run(worker, "SELECT evervec.note_errors(%s, ARRAY['3'], ARRAY[%s::bigint], 'why')", [source.name, version])
        # The next attempt is due a second after the failed one: put off, however long the rest of this takes.
        lab.run(
            "UPDATE evervec.outbox SET due_at = due_at + interval '1 minute' "
            "WHERE source = %s AND due_at > queued_at + interval '1 s'",
            [source.name],
        )
        assert run(worker, "SELECT item_keys FROM evervec.sweep_page(%s, NULL, 10, '0', '0')", [source.name]) == [([],)]
        assert run(worker, "SELECT evervec.sources_waiting('1 minute')") == []
        assert run(worker, "SELECT count(*) > 0 FROM evervec.models()") == [(True,)]
        assert run(worker, "SELECT evervec.instance_id()") == run(listener, "SELECT evervec.instance_id()")
    assert source.outbox()["3"].attempts == 1
    assert source.assert_settled() == ["3"]


def test_a_hostile_search_path_or_role_gains_nothing(lab: Lab) -> None:
    """What SECURITY DEFINER functions call is looked up in pg_catalog, never in the caller's schemas."""
    pinned = lab.run(
        "SELECT oid::regprocedure::text FROM pg_proc WHERE pronamespace = 'evervec'::regnamespace AND prosecdef AND "
        "NOT 'search_path=pg_catalog, pg_temp' = ANY (coalesce(proconfig, '{}'))"
    )
    assert pinned == []
    open_to_all = lab.run(
        "SELECT oid::regprocedure::text FROM pg_proc p, aclexplode(coalesce(proacl, acldefault('f', proowner))) AS a "
        "WHERE pronamespace = 'evervec'::regnamespace AND a.grantee = 0"
    )
    assert open_to_all == []
