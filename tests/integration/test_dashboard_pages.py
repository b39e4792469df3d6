"""What the pages show and what their buttons do, without a browser."""

import re
from collections.abc import AsyncIterator
from typing import Any

import pytest

from tests.integration.dashboard_lab import Browser, open_dashboard, words
from tests.integration.pipeline import until
from tests.integration.service_lab import Lab, open_lab

SCRIPT = "<script>alert(1)</script>"
LONG = "long/" * 20_000
STRANGE = (SCRIPT, LONG, "", "a\tb\x01\u202e", "a/b?c=d&e#f", "ä ö", "'; drop table items; --", "{{ 7 * 7 }}")
SEEDS = {
    "fresh": "INSERT INTO items VALUES (1, 'Drill', 'with a case'), (2, 'Tent', 'for four'), (3, 'Ice maker', 'small')",
    "inactive": "INSERT INTO items VALUES (4, 'Old', 'thing', false)",
    "blank": "INSERT INTO items VALUES (5, 'No description', ' ')",
    "poison": "INSERT INTO items VALUES (6, 'Bad', 'evervec-poison'), (7, 'Worse', 'evervec-poison')",
}


@pytest.fixture
async def lab(database: str) -> AsyncIterator[Lab]:
    async with open_lab(database) as lab:
        yield lab


@pytest.fixture
async def browser(lab: Lab) -> AsyncIterator[Browser]:
    async with open_dashboard(str(lab.pool.conninfo), temporal_ui_url="http://temporal.example") as browser:
        yield browser


async def seed(lab: Lab, *names: str) -> None:
    for name in names:
        await lab.do(SEEDS[name])
    await lab.fill()
    await lab.work()


async def test_without_a_source_every_page_says_so(database: str) -> None:
    async with open_lab(database, watched=False), open_dashboard(database) as browser:
        for path in ("/", "/items", "/search", "/sources"):
            assert "Nothing is watched yet" in await browser.get(path)
        assert "Nothing has failed" in await browser.get("/failures")
        await browser.get("/item", source="items", key="1")
        assert browser.last.status_code == 404


async def test_the_overview_counts(browser: Browser, lab: Lab) -> None:
    await seed(lab, "fresh", "poison")
    await lab.do("UPDATE items SET name = 'New' WHERE id = 1")

    async def temporal_was_asked() -> bool:  # no page waits for that
        return "Temporal does not answer" in await browser.get("/")

    await until(temporal_was_asked)
    shown = words(browser.last.text)
    assert "Coverage 40.0% Eligible items 5 Pending 1 Failed 2" in shown
    assert "No listener is connected" in shown
    assert "Temporal does not answer" in shown
    assert "stub:8, 8 dimensions. 5 rows" in shown


async def test_an_item_says_why_it_is_as_it_is(browser: Browser, lab: Lab) -> None:
    await seed(lab, "fresh", "inactive", "blank", "poison")
    await lab.do("UPDATE items SET name = 'New' WHERE id = 2")
    await lab.do("INSERT INTO items VALUES (8, 'Just', 'come')")
    for key, state, told in (
        ("1", "fresh", "The vector of the present content was written at"),
        ("2", "stale", "The content changed since it was embedded"),
        ("8", "stale", "No vector yet; waiting since"),
        ("4", "ineligible", "Inactive"),
        ("5", "ineligible", 'Required column "description" is blank'),
        ("6", "failed", "Gave up after 1 attempt: the stub refuses"),
        ("99", "missing", "No row has this key"),
        ("abc", "missing", "No row has this key"),
    ):
        shown = words(await browser.get("/item", source="items", key=key))
        assert f"{state} {told}" in shown, key
    await lab.do("SELECT evervec.pause('items')")
    assert "the source is paused" in await browser.get("/item", source="items", key="2")
    await lab.do("SELECT evervec.watch('items', '{name,description}', required => '{name}', model => 'stub:9')")
    assert "No vector yet" in await browser.get("/item", source="items", key="1")


async def test_an_item_shows_its_content_and_its_neighbours(browser: Browser, lab: Lab) -> None:
    await seed(lab, "fresh")
    shown = words(await browser.get("/item", source="items", key="1"))
    assert "Drill | with a case" in shown
    near = words(await browser.get("/item/neighbours", source="items", key="1"))
    assert "Tent | for four" in near
    assert "Ice maker | small" in near
    assert "Drill" not in near
    nothing = await browser.get("/item/neighbours", source="items", key="99")
    assert "no vector" in nothing


async def test_buttons_of_an_item(browser: Browser, lab: Lab) -> None:
    await seed(lab, "fresh", "inactive", "poison")
    await browser.get("/item", source="items", key="1")
    assert "Back in the outbox" in await browser.post("/item/embed", source="items", key="1")
    assert await lab.value("SELECT forced FROM evervec.outbox WHERE item_key = '1'") is True
    assert "Nothing to do" in await browser.post("/item/embed", source="items", key="4")
    assert "tried again: 1" in await browser.post("/item/retry", source="items", key="6")
    assert await lab.value("SELECT state FROM evervec.outbox WHERE item_key = '6'") == "pending"
    assert await lab.value("SELECT state FROM evervec.outbox WHERE item_key = '7'") == "failed"


async def test_strange_keys_do_no_harm(database: str) -> None:
    async with open_lab(database, watched=False) as lab, open_dashboard(database) as browser:
        await lab.do("ALTER TABLE items ALTER id DROP IDENTITY")
        await lab.do("ALTER TABLE items ALTER id TYPE text")
        await lab.do("SELECT evervec.watch('items', '{name}', model => 'stub:8', dimension => 8)")
        for key in STRANGE:
            await lab.do("INSERT INTO items (id, name) VALUES (%s, %s)", key, f"name {SCRIPT}" + "b" * 100_000)
        await lab.fill()
        for path in ("/items", "/items?state=pending"):
            html = await browser.get(path)
            assert SCRIPT not in html
            assert len(html) < 50_000 + 2 * len(LONG)
        await lab.work()
        for key in STRANGE:
            assert SCRIPT not in await browser.get("/items")
            html = await browser.post("/item", source="items", key=key)
            assert browser.last.status_code == 200
            assert SCRIPT not in html
            assert "the vector of the present content" in html.lower(), key
            await browser.post("/item/embed", source="items", key=key)
            assert browser.last.status_code == 200
            assert await lab.value("SELECT forced FROM evervec.outbox WHERE item_key = %s", key) is True
        # What follows tells times, in which there may be any number.
        shown = words(await browser.post("/item", source="items", key="{{ 7 * 7 }}")).partition("The vector of")[0]
        assert "{{ 7 * 7 }}" in shown
        assert "49" not in shown


async def test_a_nul_is_no_key(browser: Browser, lab: Lab) -> None:
    await seed(lab, "fresh")
    for path in ("/item", "/item/neighbours", "/items"):
        await browser.get(path, source="items", key="a\0b", after="\0")
        assert browser.last.status_code == 404
    await browser.get("/item", source="it\0ems", key="1")
    assert browser.last.status_code == 404


async def test_items_page_by_page(browser: Browser, lab: Lab) -> None:
    await lab.do("INSERT INTO items SELECT n, 'thing ' || n, 'text' FROM generate_series(1, 120) AS n")
    await lab.fill()
    for state in ("any", "pending", "stale"):
        seen: list[str] = []
        html = await browser.get("/items", source="items", state=state)
        while True:
            seen += re.findall('href="/item[?]source=items&amp;key=([0-9]+)"', html)
            after = html.partition(f"state={state}&amp;after=")[2].partition('"')[0]
            if not after:
                break
            html = await browser.get("/items", source="items", state=state, after=after)
        assert len(seen) == len(set(seen)) == 120, state
    assert "No such item" in await browser.get("/items", source="items", state="failed")


async def test_failures_are_grouped_and_retried(browser: Browser, lab: Lab) -> None:
    await seed(lab, "fresh", "poison")
    shown = words(await browser.get("/failures"))
    assert "items the stub refuses content that holds evervec-poison 2" in shown
    error = "the stub refuses content that holds evervec-poison"
    shown = await browser.get("/failures", source="items", error=error)
    assert "key=6" in shown
    assert "key=7" in shown
    assert "tried again: 1" in await browser.post("/failures/retry", what="keys", source="items", key="6")
    await lab.work()
    assert "tried again: 2" in await browser.post("/failures/retry", what="keys", source="items", key=["6", "7"])
    await lab.work()
    assert "tried again: 2" in await browser.post("/failures/retry", what="error", source="items", error=error)
    await lab.work()
    assert "tried again: 2" in await browser.post("/failures/retry", what="all")
    assert await lab.value("SELECT count(*) FROM evervec.outbox WHERE state = 'failed'") == 0
    refused: list[dict[str, Any]] = [{"what": "keys", "source": "items"}, {"what": "everything"}, {}]
    for fields in refused:
        await browser.get("/failures")
        await browser.post("/failures/retry", **fields)
        assert browser.last.status_code == 400


async def test_search_finds(browser: Browser, lab: Lab) -> None:
    await seed(lab, "fresh", "inactive")
    await browser.get("/search")
    shown = words(await browser.post("/search", source="items", query="Drill | with a case"))
    assert "1 0.0000 Drill | with a case" in shown
    assert "Old | thing" not in shown
    assert "there is no text to search for" in await browser.post("/search", source="items", query="  ")
    assert "cannot be searched for" in await browser.post("/search", source="items", query="evervec-poison")
    await browser.post("/search", source="nope", query="x")
    assert browser.last.status_code == 404
    assert SCRIPT not in await browser.post("/search", source="items", query=SCRIPT)


async def test_a_source_is_paused_throttled_and_backfilled(browser: Browser, lab: Lab) -> None:
    await seed(lab, "fresh")
    assert "name | description" in words(await browser.get("/sources"))
    assert "Paused" in await browser.post("/sources/pause", source="items")
    assert await lab.value("SELECT paused FROM evervec.source") is True
    assert "goes on" in await browser.post("/sources/resume", source="items")
    assert await lab.value("SELECT paused FROM evervec.source") is False
    await browser.post("/sources/throttle", source="items", rate="2.5")
    assert await lab.value("SELECT rate FROM evervec.source") == 2.5
    assert "as fast as it can" in await browser.post("/sources/throttle", source="items", rate="")
    for rate in ("0", "-1", "nan", "inf", "fast", "1e9"):
        await browser.get("/sources")
        await browser.post("/sources/throttle", source="items", rate=rate)
        assert browser.last.status_code == 400, rate

    await browser.get("/sources")
    await browser.post("/sources/backfill", source="items", where="id > 1", everything="yes", rate="7")
    assert browser.last.status_code == 200

    async def enqueued() -> bool:
        return await lab.value("SELECT count(*) FILTER (WHERE forced) FROM evervec.outbox") == 2

    async def limited() -> bool:
        return await lab.value("SELECT rate FROM evervec.source") == 7

    await until(enqueued)
    await until(limited)
    assert "2 items will not be embedded again" in await browser.post("/sources/cancel", source="items")
    assert await lab.value("SELECT count(*) FILTER (WHERE forced) FROM evervec.outbox") == 0
    await browser.get("/sources")
    await browser.post("/sources/backfill", source="items", where="no such column")
    assert browser.last.status_code == 400
    await browser.get("/sources")
    await browser.post("/sources/backfill", source="nope")
    assert browser.last.status_code == 404


async def test_a_page_comes_while_postgresql_is_away(browser: Browser, lab: Lab) -> None:
    await seed(lab, "fresh")
    await browser.get("/")
    pages = browser.context.pages
    pool = pages._pool
    await pool.close()
    assert "Coverage 100%" in words(await browser.get("/"))
    await browser.get("/items")
    assert browser.last.status_code == 503


async def test_what_is_called_off_is_acknowledged_without_being_embedded(browser: Browser, lab: Lab) -> None:
    await seed(lab, "fresh")
    await lab.do("SELECT evervec.refire('items', 'true', true)")
    await lab.do("UPDATE items SET name = 'Another' WHERE id = 3")
    before = await lab.value("SELECT array_agg(embedded_at ORDER BY id) FROM items WHERE id < 3")
    await browser.context.backfills.cancel("items")
    await lab.work()
    assert await lab.value("SELECT count(*) FROM evervec.outbox") == 0
    assert await lab.value("SELECT array_agg(embedded_at ORDER BY id) FROM items WHERE id < 3") == before
    assert await lab.value("SELECT embedding_hash = content_hash FROM evervec.explain_item('items', '3')")


async def test_only_so_many_compute_at_a_time(browser: Browser, lab: Lab) -> None:
    await seed(lab, "fresh")
    computing = browser.context.computing
    await browser.get("/search")
    while not computing.locked():
        await computing.acquire()
    await browser.post("/search", source="items", query="drill")
    assert browser.last.status_code == 429
    assert browser.last.headers["retry-after"]


async def test_bytes_that_are_no_text_are_shown_as_question_marks(bytes_database: str) -> None:
    async with open_lab(bytes_database, watched=False) as lab, open_dashboard(bytes_database) as browser:
        await lab.do("SELECT evervec.watch('items', '{name}', model => 'stub:8')")
        await lab.do("INSERT INTO items (id, name) VALUES (1, 'a name')")
        await lab.do("INSERT INTO items (id, name) SELECT 2, 'half ' || convert_from(%s, 'SQL_ASCII')", b"\xed\xa0\x80")
        await lab.fill()
        await lab._work_on("items", ["1", "2"], max_attempts=1)
        for path in ("/", "/items", "/items?state=failed", "/failures", "/sources", "/item?source=items&key=2"):
            await browser.get(path)
            assert browser.last.status_code == 200, path
        assert "half ???" in await browser.get("/items")
        assert "the vector of the present content" in (await browser.get("/item", source="items", key="1")).lower()
