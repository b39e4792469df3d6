"""Hostile inputs from outside the database: what somebody else notifies, and what a command is given."""

import json
import os
import subprocess
import sys
import uuid
from collections.abc import AsyncIterator, Iterator
from typing import Any

import psycopg
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.integration.commands import CommandProcess
from tests.integration.contract import ITEMS, connect, run, value
from tests.integration.hostile import CANARY, NAMES, PREDICATES, TEXTS, UNTOUCHED, generated, hostile, payloads
from tests.integration.pipeline import Site, new_table, until
from tests.integration.temporal_lab import new_namespace

PAYLOADS = 400
NO_TEXT = "an argument or a variable of the environment is no UTF-8"
SECRETS = "CREATE TABLE payroll (id bigint PRIMARY KEY, name text, embedding vector(8), embedding_hash text)"


@pytest.fixture
async def site(database: str, temporal_address: str) -> AsyncIterator[Site]:
    """In a namespace of its own, all of whose workflows can be counted."""
    namespace = (await new_namespace(temporal_address)).namespace
    async with Site.open(database, temporal_address, temporal_namespace=namespace) as site:
        yield site


async def test_what_somebody_else_notifies(site: Site) -> None:
    """Whatever it names: nothing is embedded that did not wait in the outbox, and edits go on being followed."""
    await site.run(SECRETS)
    await site.run("INSERT INTO payroll SELECT n, 'SECRET ' || n FROM generate_series(1, 3) AS n")
    table, silent = await new_table(site, "column"), await new_table(site, "table")
    stranger = f"stranger_{uuid.uuid4().hex[:12]}"
    await site.run(f"CREATE ROLE {stranger} LOGIN PASSWORD 'secret'")
    forged = generated(payloads([table.source, silent.source, "payroll"], ["1", "2", "3"]), PAYLOADS)
    async with site.working(), site.listening() as listener:
        await table.fill(3)
        before = await table.fresh()
        conninfo = psycopg.conninfo.make_conninfo(site.conninfo, user=stranger, password="secret")
        async with await psycopg.AsyncConnection.connect(conninfo, autocommit=True) as anybody:
            for n, payload in enumerate(forged):
                await anybody.execute("SELECT pg_notify('evervec', %s)", [payload])
                if n == PAYLOADS // 2:
                    await table.do("UPDATE {t} SET name = 'edited' WHERE id = 1")
        after = await table.fresh()
        await until(lambda: listener.status().heard >= PAYLOADS)
        # What comes after all of them is heard after them.
        await table.do("UPDATE {t} SET name = 'last' WHERE id = 2")
        await table.fresh()
        await until(lambda: listener.status().waiting == 0)
        assert listener.status().garbage > 0
        started = [workflow.id async for workflow in site.client.list_workflows() if "item-embedding" in workflow.id]
    assert [row.vector for row in before[2:]] == [row.vector for row in after[2:]]
    assert {workflow.rpartition(f"/{table.source}/")[2] for workflow in started} <= {"1", "2", "3"}
    assert await site.run("SELECT count(*), count(embedding) FROM payroll") == [(3, 0)]
    assert await site.run("SELECT source FROM evervec.outbox") == []
    await site.run(f"DROP ROLE {stranger}")


@pytest.fixture(scope="module")
def process() -> Iterator[CommandProcess]:
    with CommandProcess.running() as running:
        yield running


@pytest.fixture(scope="module")
def variables(contract_database: str) -> Iterator[dict[str, str]]:
    """The environment of commands on a database with a source of three items, and the canary."""
    with connect(contract_database) as owner:
        run(owner, CANARY)
        run(owner, ITEMS)
        run(owner, "INSERT INTO items SELECT n, 'name ' || n FROM generate_series(1, 3) AS n")
        run(owner, "SELECT evervec.watch('items', '{name}', model => 'stub:8')")
        yield {"EVERVEC_DATABASE_URL": contract_database, "EVERVEC_TEMPORAL_ADDRESS": "127.0.0.1:1",
               "HF_HUB_OFFLINE": "1"}  # fmt: skip
        assert run(owner, UNTOUCHED) == [(1, False)]
        assert run(owner, "SELECT id, name FROM items ORDER BY id") == [(n, f"name {n}") for n in (1, 2, 3)]
        assert value(owner, "SELECT count(*) FROM evervec.source WHERE name = 'items'") == 1


SOURCES = st.just("items") | TEXTS
LISTS = st.lists(TEXTS, min_size=1, max_size=3).map(",".join)
NUMBERS = st.sampled_from(["0", "-1", "1", "3", "99999999999", "1e400", "nan", "x", ""])
COMMANDS: list[tuple[Any, ...]] = [
    ("status", SOURCES),
    ("status", SOURCES, "--json"),
    ("item", SOURCES, TEXTS, "--json"),
    ("failures", SOURCES, "--json"),
    ("search", SOURCES, TEXTS, "--limit", NUMBERS, "--json"),
    ("verify", SOURCES, "--json"),
    ("backfill", SOURCES, "--where", PREDICATES, "--json"),
    ("backfill", "items", "--rate", NUMBERS),
    ("regenerate", SOURCES, "--ids", LISTS),
    ("retry", SOURCES, "--ids", LISTS),
    ("pause", TEXTS.filter(lambda text: text != "items")),
    ("resume", SOURCES),
    ("unwatch", TEXTS.filter(lambda text: text != "items")),
    ("watch", TEXTS, "--text", LISTS, "--model", "stub:8"),
    (
        "watch",
        "items",
        "--text",
        "name",
        "--source",
        NAMES,
        "--model",
        TEXTS,
        "--dimension",
        "8",
        "--embedding",
        "more",
    ),
    ("watch", "items", "--text", "name", "--active", PREDICATES, "--model", "stub:8"),
    ("watch", "items", "--text", "name", "--key", NAMES, "--required", LISTS, "--model", "stub:8"),
    (TEXTS, TEXTS),
]


@pytest.mark.long
@hostile(60)
@given(data=st.data())
def test_what_a_command_is_given(process: CommandProcess, variables: dict[str, str], data: st.DataObject) -> None:
    command = data.draw(st.sampled_from(COMMANDS), "command")
    arguments = tuple(part if isinstance(part, str) else data.draw(part) for part in command)
    answer = process.run(arguments, variables)
    assert answer.code in (0, 1, 2), (arguments, answer)
    assert "which is a bug" not in answer.err, (arguments, answer)
    assert "Traceback" not in answer.err
    if answer.code == 2:
        assert answer.err.splitlines()[-1].startswith("evervec: "), (arguments, answer)
        if command[0] != "item":
            assert answer.out == ""
    elif "--json" in arguments:
        json.loads(answer.out)


@pytest.mark.parametrize("arguments", [("item", "items", "\udcff"), ("search", "items", "\udcff")])
def test_bytes_that_are_no_text(process: CommandProcess, variables: dict[str, str], arguments: tuple[str, ...]) -> None:
    answer = process.run(arguments, variables)
    assert (answer.code, answer.out) == (2, "")
    half = "the text cannot be searched for: a text holds half a surrogate pair, which is no character"
    assert answer.line in (f"evervec: {NO_TEXT}", f"evervec: {half}")


def test_bytes_that_are_no_text_in_a_process_of_its_own(variables: dict[str, str]) -> None:
    others = {name: value for name, value in os.environ.items() if not name.startswith("EVERVEC_")}
    command: list[str | bytes] = [sys.executable, "-m", "cli.main", "status", b"\xff"]
    done = subprocess.run(command, env=others | variables, capture_output=True, check=False)
    assert (done.returncode, done.stdout, done.stderr.decode()) == (2, b"", f"evervec: {NO_TEXT}\n")
