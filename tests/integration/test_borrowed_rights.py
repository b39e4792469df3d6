"""Nobody comes to the rights of evervec's owner by way of evervec: not who owns a watched table, nor who calls."""

import asyncio
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress

import psycopg
import pytest

from db.schema import apply_schema
from evervec.errors import DatabaseError
from tests.integration.attack import Mallory, functions_of_evervec, refused, shadow_everything
from tests.integration.contract import Connection, Lab, connect, fresh_database, lab_in, run, value
from tests.integration.test_roles import ALLOWED, member_of

TABLE = "CREATE TABLE goods (id bigint PRIMARY KEY, name text, description text, active boolean NOT NULL DEFAULT true)"
WATCH = "SELECT evervec.watch(%s::regclass, '{name}', source => %s, model => 'stub:8', destination => %s)"
VECTOR = "'{1,0,0,0,0,0,0,0}'::real[]"


@pytest.fixture
def mallory(contract_database: str) -> Iterator[Mallory]:
    with Mallory.at(contract_database) as mallory:
        yield mallory


def watch(mallory: Mallory, destination: str = "column", **options: str) -> str:
    """Have evervec's owner watch Mallory's table."""
    more = "".join(f", {name} => %s" for name in options)
    arguments = [f"{mallory.name}.goods", mallory.name, destination, *options.values()]
    return str(value(mallory.admin, f"{WATCH[:-1]}{more})", arguments))


def booby_trap(mallory: Mallory) -> None:
    """All that a table's owner can have run by whoever writes or reads the table."""
    strike = f"{mallory.name}.strike"
    mallory.do(
        f"CREATE FUNCTION sprung() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN PERFORM {strike}('trigger'); "
        "RETURN NEW; END $$"
    )
    mallory.do("CREATE TRIGGER trap BEFORE UPDATE ON goods FOR EACH ROW EXECUTE FUNCTION sprung()")
    mallory.do(f"ALTER TABLE goods ADD CHECK ({strike}('check'))")


def put_to_work(connection: Connection, source: str) -> None:
    """Do all that listener, worker and people do with a source, as far as it is not refused."""
    for call in (
        "fill_page(100)",
        "census_page(100)",
        "read_items({s}, '{{1}}')",
        "write_back({s}, '{{1}}', '{{1}}', ARRAY[(SELECT content_hash FROM evervec.read_items({s}, '{{1}}'))], {v})",
        "refire({s}, 'true', true)",
        "search({s}, {v}, 10)",
        "count_page({s}, NULL, 10)",
        "sample_page({s}, NULL, 10, 10)",
        "explain_item({s}, '1')",
        "orphans({s})",
        "status",
        "sources_waiting('0')",
    ):
        with suppress(psycopg.errors.InsufficientPrivilege):
            run(connection, "SELECT * FROM evervec." + call.format(s=f"'{source}'", v=VECTOR))


def test_a_tables_owner_cannot_borrow_the_rights_of_evervecs_owner(mallory: Mallory) -> None:
    mallory.do(TABLE)
    booby_trap(mallory)
    with pytest.raises(psycopg.errors.InsufficientPrivilege, match="by a trigger or an expression") as caught:
        watch(mallory)
    assert f"SET evervec.trusted_owners = '{mallory.name}'" in (caught.value.diag.message_hint or "")
    assert mallory.gained() == []


def test_an_owner_who_is_vouched_for_is_watched(mallory: Mallory) -> None:
    mallory.do(TABLE)
    mallory.do("INSERT INTO goods VALUES (1, 'one')")
    run(mallory.admin, "SELECT set_config('evervec.trusted_owners', %s, false)", [f"somebody, {mallory.name}"])
    source = watch(mallory)
    run(mallory.admin, "RESET evervec.trusted_owners")
    assert run(mallory.admin, "SELECT enqueued FROM evervec.fill_page(10)") == [(1,)]
    put_to_work(mallory.admin, source)
    assert value(mallory.admin, "SELECT fresh FROM evervec.status WHERE source = %s", [source]) == 1
    run(mallory.admin, "SELECT evervec.unwatch(%s)", [source])


def test_a_table_that_gets_another_owner_is_left_alone(mallory: Mallory) -> None:
    run(mallory.admin, TABLE.replace("goods", f"{mallory.name}.goods"))
    source = watch(mallory)
    run(mallory.admin, f"INSERT INTO {mallory.name}.goods VALUES (1, 'one')")
    run(mallory.admin, f"ALTER TABLE {mallory.name}.goods OWNER TO {mallory.name}")
    run(mallory.admin, "UPDATE evervec.source SET filling = true WHERE name = %s", [source])
    mallory.do("ALTER TABLE goods DISABLE TRIGGER USER")
    booby_trap(mallory)
    put_to_work(mallory.admin, source)
    assert mallory.gained() == []
    with pytest.raises(psycopg.errors.InsufficientPrivilege, match="was given to another owner"):
        run(mallory.admin, "SELECT * FROM evervec.read_items(%s, '{1}')", [source])
    with pytest.raises(psycopg.errors.InsufficientPrivilege, match="by a trigger or an expression"):
        watch(mallory)
    run(mallory.admin, "SELECT evervec.unwatch(%s)", [source])


def test_a_partition_of_somebody_elses_is_not_watched(mallory: Mallory) -> None:
    name = mallory.name
    run(mallory.admin, f"CREATE TABLE {name}.goods (id bigint PRIMARY KEY, name text) PARTITION BY RANGE (id)")
    run(mallory.admin, f"CREATE TABLE {name}.part PARTITION OF {name}.goods DEFAULT")
    run(mallory.admin, f"ALTER TABLE {name}.part OWNER TO {name}")
    with pytest.raises(psycopg.errors.InsufficientPrivilege, match=r"part belongs to .*, who could act"):
        watch(mallory)


@pytest.mark.parametrize("domain", [False, True])
def test_the_owner_of_a_type_cannot_borrow_rights(mallory: Mallory, domain: bool) -> None:
    """Not by a cast from an enum to text, nor by a CHECK of the key's domain."""
    strike = f"{mallory.name}.strike"
    if domain:
        mallory.do(f"CREATE DOMAIN code AS text CHECK ({strike}('domain'))")
    else:
        mallory.do("CREATE TYPE code AS ENUM ('a', 'b')")
        mallory.do(
            f"CREATE FUNCTION spell(code) RETURNS text LANGUAGE plpgsql AS $$ BEGIN PERFORM {strike}('cast'); "
            "RETURN 'x'; END $$"
        )
        mallory.do("CREATE CAST (code AS text) WITH FUNCTION spell(code) AS ASSIGNMENT")
    run(mallory.admin, f"CREATE TABLE {mallory.name}.goods (id {mallory.name}.code PRIMARY KEY, name text)")
    with pytest.raises(psycopg.errors.InsufficientPrivilege, match=r"type .* belongs to .*, who could act"):
        watch(mallory)
    assert mallory.gained() == []
    run(mallory.admin, f"ALTER TYPE {mallory.name}.code OWNER TO postgres")
    assert watch(mallory) == mallory.name
    run(mallory.admin, "SELECT evervec.unwatch(%s)", [mallory.name])


@pytest.mark.parametrize("active", ["{m}.open(name)", "name OPERATOR({m}.===) 'x'", "name::{m}.code IS NOT NULL"])
def test_a_predicate_uses_nothing_that_others_can_change(mallory: Mallory, active: str) -> None:
    strike = f"{mallory.name}.strike"
    mallory.do(f"CREATE FUNCTION open(text) RETURNS boolean LANGUAGE sql AS $$ SELECT {strike}('active') $$")
    mallory.do(f"CREATE FUNCTION same(text, text) RETURNS boolean LANGUAGE sql AS $$ SELECT {strike}('operator') $$")
    mallory.do("CREATE OPERATOR === (FUNCTION = same, LEFTARG = text, RIGHTARG = text)")
    mallory.do(f"CREATE DOMAIN code AS text CHECK ({strike}('domain'))")
    run(mallory.admin, TABLE.replace("goods", f"{mallory.name}.goods"))
    with pytest.raises(psycopg.errors.InsufficientPrivilege, match=r"active uses .*, whose owner could change it"):
        watch(mallory, active=active.format(m=mallory.name))
    assert value(mallory.admin, "SELECT to_regclass('pg_temp.evervec_probe')") is None


@contextmanager
def installed_by_keeper(postgres: str, template: str) -> Iterator[tuple[str, str]]:
    """A database in which a role without superuser rights installed evervec: its connection string, and the role."""
    keeper = f"keeper_{uuid.uuid4().hex[:12]}"
    with fresh_database(postgres, template) as conninfo, connect(conninfo) as admin:
        run(admin, "DROP SCHEMA evervec CASCADE")
        run(admin, f"CREATE ROLE {keeper} LOGIN PASSWORD 'secret' CREATEROLE")
        run(admin, f"GRANT ALL ON DATABASE {conninfo.rpartition('/')[2]} TO {keeper}")
        run(admin, f"GRANT ALL ON SCHEMA public TO {keeper}")
        asyncio.run(apply_schema(psycopg.conninfo.make_conninfo(conninfo, user=keeper, password="secret")))
        yield conninfo, keeper
        run(admin, f"DROP OWNED BY {keeper} CASCADE")
        run(admin, f"DROP ROLE {keeper}")


def test_whoever_watches_the_triggers_have_the_rights_of_evervecs_owner(postgres: str, template_database: str) -> None:
    with (
        installed_by_keeper(postgres, template_database) as (conninfo, keeper),
        connect(conninfo) as admin,
        connect(conninfo, keeper) as owner,
    ):
        run(owner, TABLE.replace("goods", "public.goods"))
        assert value(admin, WATCH, ["public.goods", "goods", "column"]) == "goods"
        # Nobody but the owner of the schema owns anything in it.
        for catalog, schema, role in (
            ("pg_proc", "pronamespace", "proowner"),
            ("pg_class", "relnamespace", "relowner"),
        ):
            owners = f"SELECT DISTINCT {role}::regrole::text FROM {catalog} WHERE {schema} = 'evervec'::regnamespace"
            assert run(admin, owners) == [(keeper,)]
        run(owner, "INSERT INTO public.goods VALUES (1, 'one')")
        run(owner, "SELECT evervec.watch('public.goods', '{name,description}', model => 'stub:8')")

        # A superuser owns every table; evervec's owner does not.
        run(admin, "CREATE TABLE public.others (id bigint PRIMARY KEY, name text)")
        message = refused(admin, WATCH, ["public.others", "others", "column"])
        assert message.endswith(f"whose rights evervec's owner, {keeper}, does not have")
        # Who asks may see all rows where evervec's owner does not.
        run(owner, "ALTER TABLE public.goods ENABLE ROW LEVEL SECURITY, FORCE ROW LEVEL SECURITY")
        assert refused(admin, WATCH, ["public.goods", "goods", "column"]).startswith("row security hides rows")


def test_default_privileges_hand_out_no_trigger_function(postgres: str, template_database: str) -> None:
    with installed_by_keeper(postgres, template_database) as (conninfo, keeper), connect(conninfo, keeper) as owner:
        run(owner, TABLE.replace("goods", "public.goods"))
        run(owner, "ALTER DEFAULT PRIVILEGES GRANT EXECUTE ON FUNCTIONS TO evervec_viewer")
        run(owner, WATCH, ["public.goods", "goods", "column"])
        trigger_functions = (
            "SELECT count(*), count(*) FILTER (WHERE has_function_privilege('evervec_viewer', oid, 'EXECUTE')) "
            "FROM pg_proc WHERE pronamespace = 'evervec'::regnamespace AND prorettype = 'trigger'::regtype"
        )
        assert run(owner, trigger_functions) == [(5, 0)]


async def test_a_schema_that_somebody_else_made_is_not_installed_into(empty_database: str) -> None:
    """They could replace its functions, before or after: an installer's CREATE OR REPLACE leaves them their owner."""
    name = f"mallory_{uuid.uuid4().hex[:12]}"
    with connect(empty_database) as admin:
        run(admin, f"CREATE ROLE {name}")
        run(admin, f"CREATE SCHEMA evervec AUTHORIZATION {name}")
        with pytest.raises(DatabaseError, match=f"belongs to another role, {name}: run this file as that role"):
            await apply_schema(empty_database)
        assert value(admin, "SELECT count(*) FROM pg_class WHERE relnamespace = 'evervec'::regnamespace") == 0
        run(admin, f"DROP OWNED BY {name}")
        run(admin, f"DROP ROLE {name}")


async def test_a_second_superuser_leaves_all_to_the_first(database: str) -> None:
    name = f"second_{uuid.uuid4().hex[:12]}"
    with connect(database) as admin:
        run(admin, f"CREATE ROLE {name} LOGIN SUPERUSER PASSWORD 'secret'")
        run(admin, "DROP FUNCTION evervec.owner() CASCADE")
        await apply_schema(psycopg.conninfo.make_conninfo(database, user=name, password="secret"))
        owners = "SELECT DISTINCT proowner::regrole::text FROM pg_proc WHERE pronamespace = 'evervec'::regnamespace"
        assert run(admin, owners) == run(admin, "SELECT current_user::text")
        run(admin, f"DROP ROLE {name}")


@pytest.mark.parametrize("role", ALLOWED)
def test_no_role_may_call_what_is_not_its_own(contract_database: str, role: str) -> None:
    with connect(contract_database) as admin:
        functions = functions_of_evervec(admin)
        triggers = run(
            admin,
            "SELECT oid::regprocedure::text FROM pg_proc WHERE pronamespace = 'evervec'::regnamespace "
            "AND prorettype = 'trigger'::regtype",
        )
        tables = run(admin, "SELECT oid::regclass::text FROM pg_class WHERE relnamespace = 'evervec'::regnamespace "
                            "AND relkind = 'r'")  # fmt: skip
    with member_of(contract_database, role) as connection:
        for signature, call in functions.items():
            if signature.removeprefix("evervec.").partition("(")[0] not in ALLOWED[role]:
                assert refused(connection, call).startswith("permission denied for function"), signature
        for (table,) in tables:
            for statement in ("SELECT FROM {}", "INSERT INTO {} DEFAULT VALUES", "DELETE FROM {}", "TRUNCATE {}",
                              "COPY {} TO STDOUT", "ALTER TABLE {} DISABLE TRIGGER ALL"):  # fmt: skip
                refused(connection, statement.format(table))
        run(connection, "CREATE TEMP TABLE mine (id bigint PRIMARY KEY, name text)")
        for (function,) in triggers:
            refused(connection, f"CREATE TRIGGER t AFTER INSERT ON mine FOR EACH ROW EXECUTE FUNCTION {function}")
        run(connection, "DROP TABLE mine")
        refused(connection, "CREATE FUNCTION evervec.mine() RETURNS int LANGUAGE sql AS 'SELECT 1'")
        refused(connection, "SELECT nextval('evervec.outbox_version')")
        refused(connection, "DROP SCHEMA evervec CASCADE")


def test_no_role_gets_at_a_table_that_is_not_watched(lab: Lab) -> None:
    """The functions take a source's name, and nothing else that could lead to a table."""
    source = lab.watched(1)
    lab.run("CREATE TABLE payroll (id bigint PRIMARY KEY, name text)")
    lab.run("INSERT INTO payroll VALUES (1, 'SECRET')")
    guesses = ["payroll", f"{lab.schema}.payroll", f'{source.name}"; SELECT', f"{source.name}' OR '1'='1", "items", "%"]
    with member_of(lab.conninfo, "evervec_worker") as worker:
        for guess in guesses:
            for call in ("read_items(%s, '{1}')", "sweep_page(%s, NULL, 10, '0', '0')",
                         "write_back(%s, '{1}', '{1}', '{x}', '{1}')"):  # fmt: skip
                with pytest.raises(psycopg.errors.NoDataFound):
                    run(worker, f"SELECT * FROM evervec.{call}", [guess])
            run(worker, "SELECT evervec.record_failures(%s, '{1}', '{1}', '{bad}', 1)", [guess])
            run(worker, "SELECT evervec.note_errors(%s, '{1}', '{1}', 'bad')", [guess])
        # Nor at other columns or rows of one that is.
        read = run(worker, "SELECT content FROM evervec.read_items(%s, ARRAY['1', '1 OR true', '1) OR (true'])",
                   [source.name])  # fmt: skip
        assert read == [("name 1 | text 1 | tools",), (None,), (None,)]
    with member_of(lab.conninfo, "evervec_viewer") as viewer:
        assert run(viewer, "SELECT total FROM evervec.count_now('payroll', 0, 0)") == [(0,)]
    assert lab.run("SELECT to_jsonb(p) FROM payroll AS p") == [({"id": 1, "name": "SECRET"},)]
    assert source.outbox() == {}


def test_a_viewer_sees_no_item_that_has_not_failed(lab: Lab) -> None:
    """A function in a query may be called before the view's own condition is looked at, unless it is a barrier."""
    source = lab.watched(2)
    lab.run("UPDATE items SET name = 'other'")
    source.fail("1")
    with member_of(lab.conninfo, "evervec_viewer") as viewer:
        run(viewer, "CREATE FUNCTION pg_temp.look(k text) RETURNS boolean COST 0.0001 LANGUAGE plpgsql AS $$ "
                    "BEGIN PERFORM set_config('seen.keys', current_setting('seen.keys', true) || k, false); "
                    "RETURN true; END $$")  # fmt: skip
        run(viewer, "SET seen.keys = '-'")
        run(viewer, "SELECT * FROM evervec.failures WHERE source = %s AND pg_temp.look(item_key)", [source.name])
        assert value(viewer, "SHOW seen.keys") == "-1"
        run(viewer, "DROP FUNCTION pg_temp.look")


def test_row_security_covers_the_vectors_too(contract_database: str) -> None:
    with lab_in(contract_database, "table") as lab:
        source = lab.watched(2)
        reader = f"reader_{uuid.uuid4().hex[:12]}"
        lab.run(f"CREATE ROLE {reader}")
        lab.run(f"GRANT USAGE ON SCHEMA {lab.schema} TO {reader}")
        lab.run(f"GRANT SELECT ON items, {source.side_table} TO {reader}")
        lab.run("ALTER TABLE items ENABLE ROW LEVEL SECURITY")
        lab.run("CREATE POLICY first ON items FOR SELECT USING (id = 1)")
        lab.watch()
        with connect(lab.conninfo, reader) as connection:
            assert run(connection, f"SELECT id FROM {lab.schema}.{source.side_table}") == [(1,)]
        assert set(source.stored()) == {"1", "2"}
        assert lab.watch(text_columns=["name"]).assert_settled() == ["1", "2"]
        lab.run(f"DROP OWNED BY {reader}")
        lab.run(f"DROP ROLE {reader}")


def test_a_hostile_search_path_changes_nothing(lab: Lab) -> None:
    """Whatever the caller's schemas hold under the names that evervec uses: it finds PostgreSQL's own."""
    roles = ("evervec_listener", "evervec_worker", "evervec_viewer")
    with Mallory.at(lab.conninfo, *roles) as mallory:
        assert shadow_everything(mallory) > 150
        path = f"SET search_path = {mallory.name}, pg_temp, pg_catalog, {lab.schema}, public"
        source = lab.watched(3)
        lab.run(f"GRANT USAGE ON SCHEMA {lab.schema} TO {mallory.name}")
        lab.run(f"GRANT ALL ON items TO {mallory.name}")
        with mallory.session() as session:
            for table in ("items", "outbox", "source", "unnest", "given", "fit", "pg_class", "pg_attribute"):
                run(session, f"CREATE TEMP TABLE {table} (id bigint, name text, item_key text)")
            run(session, path)
            # As a writer, whose statements have constants alone, so that nothing of Mallory's runs by her own doing.
            run(session, f"INSERT INTO {lab.schema}.items (id, name) VALUES (4, 'four'), (5, 'five')")
            run(session, f"UPDATE {lab.schema}.items SET name = 'edited'")
            run(session, f"DELETE FROM {lab.schema}.items WHERE active AND id OPERATOR(pg_catalog.=) 2")
            # And as a member of the three roles.
            for call in (
                "instance_id()", "pending_items(NULL, NULL, 10)", "waiting_items(10)", "fill_page(10)",
                "census_page(10)", "count_outbox()", "models()", "sources_waiting('0')",
                f"newest_items('{source.name}', '1 h', 10)",
                f"pending_among('{{{source.name}}}', '{{1}}')", f"read_items('{source.name}', '{{1,2}}')",
                f"sweep_page('{source.name}', NULL, 10, '0', '0')", f"count_now('{source.name}', 0, 0)",
                f"record_failures('{source.name}', '{{1}}', '{{1}}', '{{x}}', 1)",
                f"note_errors('{source.name}', '{{1}}', '{{1}}', 'x')",
            ):  # fmt: skip
                run(session, f"SELECT * FROM evervec.{call}")
            run(session, "TABLE evervec.status")
            run(session, "TABLE evervec.failures")
            _write_back(session, source.name, "1")
        # As evervec's owner, with Mallory's schema in front.
        lab.run(f"SET search_path = {mallory.name}, pg_catalog, {lab.schema}, public")
        lab.run("SELECT evervec.refire(%s)", [source.name])
        lab.run("SELECT evervec.retry(%s)", [source.name])
        lab.run("SELECT evervec.pause(%s), evervec.resume(%s), evervec.throttle(%s, 5)", [source.name] * 3)
        lab.run("SELECT * FROM evervec.search(%s, '{1,0,0,0,0,0,0,0}', 5)", [source.name])
        lab.register(f"{lab.schema}.items", ["name", "description"], required=["name"], active="active")
        lab.run(f"SET search_path = {lab.schema}, public")
        assert mallory.gained() == []
        source.text_columns = ("name", "description")
        assert source.assert_settled() == ["1", "3", "4", "5"]


def _write_back(session: Connection, source: str, key: str) -> None:
    [row] = run(session, "SELECT outbox_version, content_hash FROM evervec.read_items(%s, ARRAY[%s])", [source, key])
    written = run(
        session,
        "SELECT outcome FROM evervec.write_back(%s, ARRAY[%s], ARRAY[%s::bigint], ARRAY[%s], "
        "ARRAY[1,0,0,0,0,0,0,0]::real[])",
        [source, key, *row],
    )
    assert written == [("embedded",)]
