"""When an edit comes: together with others, taken back, during the embedding of the text before it, after a failure."""

import uuid
from collections.abc import AsyncIterator, Iterator

import numpy as np
import pytest
import pytest_asyncio

from tests.integration.contract import fresh_database
from tests.integration.pipeline import DESTINATIONS, CountedStub, Encodings, Site, Table, new_table, until

pytestmark = pytest.mark.asyncio(loop_scope="module")

DEBOUNCE_MS = 400
"""Long enough for two statements to come within it on a busy machine."""


@pytest.fixture(scope="module")
def encodings() -> Iterator[Encodings]:
    """What the embedder is given to encode."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("embedding.stub.StubEmbedder", CountedStub)
        yield CountedStub.encodings


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def site(
    encodings: Encodings,  # noqa: ARG001 - counts from the worker's start
    postgres: str,
    template_database: str,
    temporal_address: str,
) -> AsyncIterator[Site]:
    with fresh_database(postgres, template_database) as database:
        settings = {"debounce_ms": DEBOUNCE_MS, "debounce_max_ms": 10 * DEBOUNCE_MS, "max_attempts": 2}
        async with Site.open(database, temporal_address, **settings) as site, site.running():
            yield site


@pytest_asyncio.fixture(params=DESTINATIONS, loop_scope="module")
async def items(site: Site, request: pytest.FixtureRequest) -> Table:
    """A watched table with two rows that have their vectors."""
    table = await new_table(site, request.param)
    await table.fill(2)
    await table.fresh()
    return table


@pytest.fixture
def word() -> str:
    """A word that is in no other test's texts."""
    return uuid.uuid4().hex


async def commit_at_once(items: Table, *statements: str) -> None:
    """Each statement in a transaction of its own, all in one message to the server."""
    await items.do("; ".join(f"BEGIN; {statement}; COMMIT" for statement in statements))


async def test_two_edits_within_the_window_are_one_embedding(items: Table, encodings: Encodings, word: str) -> None:
    edit = "UPDATE {{t}} SET name = '{}' WHERE id = 1"
    await commit_at_once(items, edit.format(f"first {word}"), edit.format(f"second {word}"))
    await items.fresh()
    assert encodings.of(word) == [f"second {word} | number 1"]


async def test_an_edit_and_its_revert_are_no_embedding(items: Table, encodings: Encodings, word: str) -> None:
    before = await items.rows()
    edit, revert = (f"UPDATE {{t}} SET name = '{name}' WHERE id = 1" for name in (word, "item 1"))
    await commit_at_once(items, edit, revert)
    assert [row[0] for row in await items.outbox()] == ["1"]
    assert await items.fresh() == before
    # In one transaction it is the same, and naming a column without changing it is not even an edit.
    await items.do(f"{edit}; {revert}")
    await items.do("UPDATE {t} SET name = name, price = 1 WHERE id = 2")
    assert [row[0] for row in await items.outbox()] == ["1"]
    assert await items.fresh() == before
    assert encodings.of(word) == []


async def test_an_edit_while_the_text_before_it_is_embedded(items: Table, encodings: Encodings, word: str) -> None:
    old, new = f"old {word}", f"new {word}"
    await log_vectors(items)
    with encodings.held(f"{old} | number 1") as gate:
        await items.do("UPDATE {t} SET name = %s WHERE id = 1", old)
        await until(gate.reached.is_set)
        await items.do("UPDATE {t} SET name = %s WHERE id = 1", new)
    await items.fresh()
    assert encodings.of(word) == [f"{old} | number 1", f"{new} | number 1"]
    # The old text's vector was never written, not even for a moment.
    [(written,)] = await items.site.run("SELECT vector::real[] FROM written WHERE source = %s", items.source)
    np.testing.assert_allclose(written, items.embed(f"{new} | number 1"), rtol=1e-6)


async def log_vectors(items: Table) -> None:
    """Have the database remember every vector that is written from now on."""
    await items.site.run("CREATE TABLE IF NOT EXISTS written (source text, vector vector)")
    function = f"log_{uuid.uuid4().hex}"
    await items.site.run(
        f"CREATE FUNCTION {function}() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN "
        "INSERT INTO public.written VALUES (TG_ARGV[0], NEW.embedding); RETURN NULL; END $$"
    )
    await items.do(
        "CREATE TRIGGER log AFTER INSERT OR UPDATE OF embedding ON {e} FOR EACH ROW EXECUTE FUNCTION "
        f"{function}('{items.source}')"
    )


async def test_an_item_is_deleted_while_it_is_embedded(items: Table, encodings: Encodings, word: str) -> None:
    with encodings.held(f"{word} | number 1") as gate:
        await items.do("UPDATE {t} SET name = %s WHERE id = 1", word)
        await until(gate.reached.is_set)
        await items.do("DELETE FROM {t} WHERE id = 1")
        await items.do("INSERT INTO {t} VALUES (1, %s, 'comes again')", word)
    rows = await items.fresh()
    assert [row.key for row in rows] == ["1", "2"]
    assert encodings.of(word)[-1] == f"{word} | comes again"


async def test_one_bad_row_harms_only_itself(items: Table, word: str) -> None:
    before = await items.vectors()
    await items.do("UPDATE {t} SET name = %s WHERE id = 1", f"evervec-poison {word}")
    await items.do("UPDATE {t} SET name = 'a good neighbour' WHERE id = 2")
    await items.settled()
    [(key, attempts, error)] = await failures(items)
    assert (key, attempts) == ("1", 2)
    assert "evervec-poison" in error
    assert word not in error
    status = await items.site.status(items.source)
    assert (status["fresh"], status["stale"], status["failed"], status["pending"]) == (1, 1, 1, 0)
    bad, good = await items.rows()
    assert good.vector is not None
    np.testing.assert_allclose(good.vector, items.embed("a good neighbour | number 2"), rtol=1e-6)
    # The old vector is still there, and marked as that of another text.
    assert bad.vector == before["1"]

    # It can be tried again, in vain as long as its text is bad; an edit cures it.
    assert await items.site.value("SELECT evervec.retry(%s)", items.source) == 1
    await items.settled()
    assert [(key, attempts) for key, attempts, _ in await failures(items)] == [("1", 2)]
    await items.do("UPDATE {t} SET name = 'cured' WHERE id = 1")
    assert await failures(items) == []
    await items.fresh()


async def failures(items: Table) -> list[tuple[str, int, str]]:
    """The source's rows of `evervec.failures`."""
    query = "SELECT item_key, attempts, last_error FROM evervec.failures WHERE source = %s"
    return [(key, attempts, error) for key, attempts, error in await items.site.run(query, items.source)]


async def test_a_failed_item_is_embedded_when_it_is_retried_after_its_cause_has_gone(items: Table, word: str) -> None:
    constraint = f"no_{word}"
    now = await items.site.value("SELECT clock_timestamp()::text")
    await items.do(f"ALTER TABLE {{e}} ADD CONSTRAINT {constraint} CHECK (embedded_at < '{now}')")
    await items.do("UPDATE {t} SET name = 'refused' WHERE id = 1")
    await items.settled()
    [(key, _, error)] = await failures(items)
    assert (key, constraint in error) == ("1", True)
    await items.do(f"ALTER TABLE {{e}} DROP CONSTRAINT {constraint}")
    assert await items.site.value("SELECT evervec.retry(%s, '{1}')", items.source) == 1
    await items.fresh()
