"""An item's page says why it is as it is, whatever the item is called."""

from collections.abc import Iterator
from urllib.parse import urlencode

import pytest
from playwright.sync_api import Page, expect

from tests.browser.scene import Scene, until

SCRIPT = "<script>alert(1)</script>"
LONG_NAME = "b" * 100_000
LONG_KEY = "long/" * 20_000
STRANGE = (SCRIPT, LONG_KEY, "", "a/b?c=d&e#f", "\t\x01", "'; drop table odd; --", "{{ 7 * 7 }}", "ä 日本")


@pytest.fixture(scope="module")
def odd(scene: Scene) -> Iterator[str]:
    """A source whose items have strange keys and strange contents."""
    scene.run("CREATE TABLE odd (id text PRIMARY KEY, name text, active boolean NOT NULL DEFAULT true)")
    scene.run("SELECT evervec.watch('odd', '{name}', required => '{name}', active => 'active', model => 'stub:8')")
    for key in STRANGE:
        scene.run("INSERT INTO odd VALUES (%s, %s)", key, f"<img src=x onerror=alert(1)> {key[:100]}")
    scene.run("INSERT INTO odd VALUES ('big', %s)", LONG_NAME)
    scene.settled()
    yield "odd"
    scene.run("SELECT evervec.unwatch('odd')")


def open_item(page: Page, source: str, key: str) -> None:
    page.goto(f"/item?{urlencode({'source': source, 'key': key})}")


def shows(page: Page, state: str, reason: str) -> None:
    expect(page.locator(".verdict .state")).to_have_text(state)
    expect(page.locator("#reason")).to_contain_text(reason)


def test_a_page_explains_eight_situations(page: Page, scene: Scene) -> None:
    scene.run("CREATE TABLE cases (id text PRIMARY KEY, name text, active boolean NOT NULL DEFAULT true)")
    scene.run(
        "INSERT INTO cases VALUES ('fresh', 'a', true), ('inactive', 'b', false), ('blank', ' ', true), ('failed', "
        "'evervec-poison', true), ('edited', 'e', true), ('forced', 'f', true)"
    )
    watch = "SELECT evervec.watch('cases', '{name}', required => '{name}', active => 'active', model => %s)"
    scene.run(watch, "stub:8")
    until(lambda: scene.value("SELECT fresh FROM evervec.status WHERE source = 'cases'") == 3, "the first fill")
    until(lambda: scene.value("SELECT failed FROM evervec.status WHERE source = 'cases'") == 1, "a failure")

    open_item(page, "cases", "fresh")
    shows(page, "fresh", "The vector of the present content was written at")
    open_item(page, "cases", "inactive")
    shows(page, "ineligible", "Inactive")
    open_item(page, "cases", "blank")
    shows(page, "ineligible", 'Required column "name" is blank')
    open_item(page, "cases", "failed")
    shows(page, "failed", "Gave up after 1 attempt: the stub refuses content that holds evervec-poison")
    open_item(page, "cases", "nobody")
    shows(page, "missing", "No row has this key")
    expect(page.get_by_role("button", name="Embed again")).to_have_count(0)

    scene.run("SELECT evervec.pause('cases')")
    scene.run("UPDATE cases SET name = 'edited' WHERE id = 'edited'")
    open_item(page, "cases", "edited")
    shows(page, "stale", "The content changed since it was embedded")
    shows(page, "stale", "the source is paused")
    open_item(page, "cases", "forced")
    page.get_by_role("button", name="Embed again").click()
    shows(page, "fresh", "to be embedded again: waiting since")
    scene.run(watch.replace("model", "dimension => 9, model"), "stub:9")
    open_item(page, "cases", "fresh")
    shows(page, "stale", "No vector yet")
    scene.run("SELECT evervec.unwatch('cases')")


def test_strange_items_do_no_harm(page: Page, odd: str) -> None:
    """A dialog, a failed script and a refused one are found by the fixture."""
    page.goto(f"/items?source={odd}")
    rows = page.locator("tbody tr")
    expect(rows).to_have_count(len(STRANGE) + 1)
    for n in range(len(STRANGE) + 1):
        page.goto(f"/items?source={odd}")
        rows.nth(n).locator(".key").click()
        shows(page, "fresh", "The vector of the present content")
        expect(page.locator("[aria-labelledby=h-near] tbody tr").first).to_be_visible()
        assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
    open_item(page, odd, SCRIPT)
    expect(page.get_by_role("heading", level=1)).to_have_text(SCRIPT)
    expect(page.locator("pre")).to_have_text(f"<img src=x onerror=alert(1)> {SCRIPT}")
    open_item(page, odd, "big")
    expect(page.get_by_text("The first 20,000 of 100,000 characters")).to_be_visible()


def test_a_key_of_100_kb_is_embedded_again_by_click(page: Page, scene: Scene, odd: str) -> None:
    page.goto(f"/items?source={odd}")
    page.get_by_role("button", name="long/long/").click()
    expect(page.get_by_role("heading", level=1)).to_contain_text("(100,000 characters)")
    before = scene.value("SELECT embedded_at FROM odd WHERE id = %s", LONG_KEY)
    page.get_by_role("button", name="Embed again").click()
    until(lambda: scene.value("SELECT embedded_at FROM odd WHERE id = %s", LONG_KEY) > before, "the new vector")


def test_search_shows_strange_items_as_text(page: Page, odd: str) -> None:
    page.goto("/search")
    page.get_by_label("Source").select_option(odd)
    page.get_by_label("Words").fill(f"{SCRIPT}<b>")
    page.get_by_role("button", name="Search").click()
    expect(page.get_by_role("row")).to_have_count(len(STRANGE) + 2)
    expect(page.get_by_label("Words")).to_have_value(f"{SCRIPT}<b>")


def test_an_item_is_found_by_its_key(page: Page, scene: Scene) -> None:
    page.goto("/items")
    form = page.locator("form[action='/item']").first
    form.get_by_label("Source").select_option("items")
    form.get_by_label("Key").fill("3")
    form.get_by_label("Key").press("Enter")
    expect(page.locator("pre")).to_contain_text(scene.value("SELECT name FROM items WHERE id = 3"))
