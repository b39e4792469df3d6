"""Somebody who may not do much, and tries to get others to do more."""

import uuid
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import psycopg
from psycopg import sql

from tests.integration.contract import Connection, connect, run, value

CANARY = """
    CREATE TABLE IF NOT EXISTS public.canary (who name, how text);
    CREATE SEQUENCE IF NOT EXISTS public.strikes;
    REVOKE ALL ON public.canary, public.strikes FROM PUBLIC
"""
# Leaves a trace where it has the rights for it, and none elsewhere; that of a sequence outlives a rollback.
STRIKE = """
    CREATE FUNCTION {}.strike(how text) RETURNS boolean LANGUAGE plpgsql AS $$
    BEGIN
      PERFORM nextval('public.strikes');
      INSERT INTO public.canary VALUES (current_user, how);
      RETURN true;
    EXCEPTION WHEN insufficient_privilege THEN
      RETURN true;
    END $$
"""


class Mallory:
    """A role with a schema of its own, whose function `strike` writes to the canary when somebody else runs it."""

    def __init__(self, conninfo: str, admin: Connection, name: str) -> None:
        self.conninfo = conninfo
        self.admin = admin
        self.name = name
        """Of the role and of the schema."""

    @classmethod
    @contextmanager
    def at(cls, conninfo: str, *member_of: str) -> Iterator["Mallory"]:
        """In a database, with the rights of some roles."""
        name = f"mallory_{uuid.uuid4().hex[:12]}"
        with connect(conninfo) as admin:
            run(admin, CANARY)
            run(admin, f"CREATE ROLE {name}")
            for role in member_of:
                run(admin, f"GRANT {role} TO {name}")
            run(admin, f"CREATE SCHEMA {name} AUTHORIZATION {name}")
            run(admin, f"GRANT USAGE ON SCHEMA {name} TO PUBLIC")
            mallory = cls(conninfo, admin, name)
            with mallory.session() as session:
                run(session, STRIKE.format(name))
            try:
                yield mallory
            finally:
                run(admin, "SET client_min_messages = warning")
                run(admin, "DELETE FROM public.canary")
                run(admin, "ALTER SEQUENCE public.strikes RESTART")
                run(admin, f"DROP OWNED BY {name} CASCADE")
                run(admin, f"DROP ROLE {name}")

    @contextmanager
    def session(self) -> Iterator[Connection]:
        """A session of the role, whose own schema comes before all others."""
        with connect(self.conninfo, self.name) as session:
            run(session, f"SET search_path = {self.name}, pg_catalog, public")
            yield session

    def do(self, statement: str, parameters: Sequence[object] | None = None) -> list[tuple[Any, ...]]:
        """Run a statement as the role."""
        with self.session() as session:
            return run(session, statement, parameters)

    def gained(self) -> list[tuple[Any, ...]]:
        """With whose rights code of Mallory's ran, and how it came to that."""
        return run(
            self.admin,
            "SELECT DISTINCT who::text, how FROM public.canary "
            "UNION ALL SELECT 'somebody', 'was rolled back' FROM public.strikes WHERE is_called",
        )


def refused(connection: Connection, statement: str, parameters: Sequence[object] | None = None) -> str:
    """The message with which the database refuses a statement for want of rights."""
    try:
        run(connection, statement, parameters)
    except psycopg.errors.InsufficientPrivilege as error:
        return error.diag.message_primary or ""
    raise AssertionError(f"not refused: {statement}")


def functions_of_evervec(connection: Connection) -> dict[str, str]:
    """Each function of schema evervec by its signature: a call of it, with nulls for arguments."""
    rows = run(
        connection,
        "SELECT oid::regprocedure::text, format('SELECT evervec.%I(%s)', proname, (SELECT string_agg('NULL::' || "
        "t::regtype, ', ') FROM unnest(proargtypes::oid[]) AS t)) FROM pg_proc "
        "WHERE pronamespace = 'evervec'::regnamespace AND prorettype <> 'trigger'::regtype",
    )
    return dict(rows)


def shadow_everything(mallory: Mallory) -> int:
    """Put functions and operators into Mallory's schema that strike, one for each that evervec's SQL could look up.

    Returns how many. They take the same arguments as PostgreSQL's own, so that whichever schema comes first wins.
    """
    source = value(
        mallory.admin, "SELECT string_agg(prosrc, ' ') FROM pg_proc WHERE pronamespace = 'evervec'::regnamespace"
    )
    functions = run(
        mallory.admin,
        "SELECT proname, pg_get_function_identity_arguments(p.oid), pg_get_function_result(p.oid) FROM pg_proc p "
        "WHERE pronamespace = 'pg_catalog'::regnamespace AND prokind = 'f' AND %s ~ ('\\m' || proname || '\\M') "
        "AND NOT EXISTS (SELECT FROM unnest(proargtypes::oid[] || prorettype) AS a JOIN pg_type t ON t.oid = a "
        "WHERE t.typtype = 'p')",
        [source],
    )
    operators = run(
        mallory.admin,
        "SELECT oprname, oprleft::regtype::text, oprright::regtype::text, oprresult::regtype::text FROM pg_operator "
        "WHERE oprnamespace = 'pg_catalog'::regnamespace AND oprleft <> 0 AND oprname IN "
        "('=', '<>', '<', '>', '<=', '>=', '||', '+', '-', '*', '/', '~') AND oprleft IN ('text'::regtype, "
        "'int4'::regtype, 'int8'::regtype, 'name'::regtype, 'oid'::regtype, 'timestamptz'::regtype) "
        "AND oprright IN ('text'::regtype, 'int4'::regtype, 'int8'::regtype, 'name'::regtype, 'oid'::regtype, "
        "'timestamptz'::regtype)",
    )
    with mallory.session() as session, session.transaction():
        run(session, "SET LOCAL check_function_bodies = off")
        run(session, "SET LOCAL search_path = pg_catalog")
        for name, arguments, result in functions:
            run(session, shadow(mallory.name, name, arguments, result))
        for n, (name, left, right, result) in enumerate(operators):
            run(session, shadow(mallory.name, f"op_{n}", f"{left}, {right}", result))
            run(
                session,
                f"CREATE OPERATOR {mallory.name}.{name} (FUNCTION = {mallory.name}.op_{n}, LEFTARG = {left}, "
                f"RIGHTARG = {right})",
            )
    return len(functions) + len(operators)


def shadow(schema: str, name: str, arguments: str, result: str) -> str:
    """A function that strikes and then breaks whoever called it."""
    function = sql.Identifier(schema, name).as_string()
    return (
        f"CREATE FUNCTION {function}({arguments}) RETURNS {result} LANGUAGE plpgsql AS $$ BEGIN "
        f"PERFORM {schema}.strike('{name}'); RAISE EXCEPTION 'shadowed'; END $$"
    )
