"""What an operator does with the dashboard, by clicks, while everything runs."""

import re
import time
from functools import partial

from playwright.sync_api import Locator, Page, expect

from tests.browser.conftest import Windows
from tests.browser.scene import Scene, until

SOON_SECONDS = 2.0
EDITS = 5
PILE = "SELECT evervec.watch('pile', '{name}', model => 'stub:8')"


def number(text: str) -> int:
    return int(text.replace(",", ""))


def is_beyond(shown: Locator, before: int) -> bool:
    return number(shown.inner_text()) > before


def tells_the_step(page: Page, word: str) -> bool:
    """Whether an item's page does when it is asked for anew: the workflow is done a moment after its row is."""
    page.reload()
    return any(word in told for told in page.locator(".steps").all_inner_texts())


def test_an_edit_by_sql_changes_the_overview_without_a_reload(page: Page, scene: Scene) -> None:
    page.goto("/")
    page.evaluate("window.neverReloaded = true")
    took = []
    shown = page.locator("#changes")
    for n in range(EDITS):
        before = number(shown.inner_text())
        began = time.monotonic()
        scene.run("UPDATE items SET description = %s WHERE id = 1", f"Edited for the {n}th time, in plain SQL")
        until(partial(is_beyond, shown, before), "the edit to be shown")
        took.append(time.monotonic() - began)
    # The machine may be busy with something else now and then.
    assert min(took) < SOON_SECONDS, took
    assert page.evaluate("window.neverReloaded")
    scene.settled()
    expect(page.locator("[data-source=items] [data-pending]")).to_have_text("0")


def test_what_waits_is_shown_while_it_waits(page: Page, scene: Scene) -> None:
    page.goto("/")
    scene.run("SELECT evervec.pause('items')")
    scene.run("UPDATE items SET description = 'Waits for the source to go on' WHERE id IN (2, 3)")
    card = page.locator("[data-source=items]")
    expect(card.locator("[data-pending]")).to_have_text("2")
    expect(card).to_contain_text("paused")
    scene.run("SELECT evervec.resume('items')")
    expect(card.locator("[data-pending]")).to_have_text("0")
    expect(card).not_to_contain_text("paused")


def test_the_charts_show_what_was_done(page: Page) -> None:
    page.goto("/")
    charts = page.locator("[data-charts=items]")
    expect(charts.locator("rect.column").first).to_be_visible()
    expect(charts.locator("polyline.line").first).to_be_attached()
    expect(charts).to_contain_text("embedded in the last hour")
    expect(charts).to_contain_text("half within")


def test_a_poison_row_is_listed_and_retried_by_click(page: Page, scene: Scene) -> None:
    scene.run("CREATE TABLE pots (id text PRIMARY KEY, name text)")
    scene.run("SELECT evervec.watch('pots', '{name}', model => 'stub:8')")
    scene.settled()  # a first fill that comes after the rows tries those that failed once more
    scene.run("INSERT INTO pots VALUES ('good', 'a pot'), ('bad', 'evervec-poison'), ('worse', 'evervec-poison too')")
    page.goto("/")
    expect(page.locator("[data-source=pots] [data-failed]")).to_have_text("2")
    page.get_by_role("navigation").get_by_role("link", name="Failures").click()
    row = page.get_by_role("row", name=re.compile("pots.*refuses content that holds evervec-poison"))
    expect(row).to_contain_text("2")
    row.get_by_role("link").click()
    failed_at = "SELECT failed_at FROM evervec.outbox WHERE source = 'pots' AND item_key = %s"
    before = {key: scene.value(failed_at, key) for key in ("bad", "worse")}

    page.get_by_role("button", name="Retry bad", exact=True).click()
    expect(page.get_by_role("status")).to_have_text("Items that are tried again: 1.")
    until(lambda: (scene.value(failed_at, "bad") or before["bad"]) > before["bad"], "another try")
    assert scene.value(failed_at, "worse") == before["worse"]

    with scene.unwalked("pots"):
        scene.run("ALTER TABLE pots DISABLE TRIGGER ALL")
        scene.run("UPDATE pots SET name = 'mended' WHERE name LIKE 'evervec-poison%%'")
        scene.run("ALTER TABLE pots ENABLE TRIGGER ALL")
        until(lambda: not scene.value("SELECT EXISTS (SELECT FROM evervec.outbox WHERE state = 'pending')"), "rest")
        page.goto("/failures")
        page.get_by_role("row", name=re.compile("pots")).get_by_role("link").click()
        page.get_by_role("checkbox", name="Tick worse").check()
    page.get_by_role("button", name="Retry those that are ticked").click()
    expect(page.get_by_role("status")).to_be_visible()
    page.goto("/failures")
    if page.get_by_role("button", name="Retry all of all sources").is_visible():
        page.get_by_role("button", name="Retry all of all sources").click()
        expect(page.get_by_role("status")).to_be_visible()
    left = "SELECT failed + pending FROM evervec.status WHERE source = 'pots'"
    until(lambda: scene.value(left) == 0, "all to be embedded")
    scene.run("SELECT evervec.unwatch('pots')")


def test_a_backfills_bar_moves_and_ends(page: Page, scene: Scene) -> None:
    scene.run("CREATE TABLE pile (id int PRIMARY KEY, name text)")
    scene.run("INSERT INTO pile SELECT n, 'thing ' || n FROM generate_series(1, 400) AS n")
    scene.run(PILE)
    scene.settled()
    page.goto("/sources")
    card = page.locator("section[data-source=pile]")
    card.get_by_text("Backfill pile").click()
    card.get_by_label("Embed what is fresh, too").check()
    card.get_by_label("Items a second at most").fill("10")
    card.get_by_role("button", name="Begin the backfill of pile").click()
    expect(page.get_by_role("status")).to_have_text("The backfill has begun.")
    sweep = page.locator("[data-sweep=pile]")
    expect(sweep).to_have_attribute("data-running", "true")
    # This one, and not that of the first fill, as it was seen last.
    expect(sweep).to_contain_text("limit 10")
    widths: list[float] = []

    def moved() -> bool:
        widths.append(float((sweep.locator(".fill").get_attribute("width") or "0").removesuffix("%")))
        return len(set(widths)) > 3

    until(moved, "the bar to move")
    assert sorted(widths) == widths

    # Quicker from here on.
    card.get_by_label("Items a second", exact=True).fill("")
    card.get_by_role("button", name="Set the rate of pile").click()
    expect(page.get_by_role("status")).to_have_text("Bulk work goes as fast as it can.")
    expect(sweep).to_have_attribute("data-running", "false")
    expect(sweep).to_contain_text("100%")
    scene.settled()


def test_a_backfill_is_cancelled(page: Page, scene: Scene) -> None:
    page.goto("/sources")
    card = page.locator("section[data-source=pile]")
    card.get_by_text("Backfill pile").click()
    card.get_by_label("Embed what is fresh, too").check()
    card.get_by_label("Items a second at most").fill("1")
    card.get_by_role("button", name="Begin the backfill of pile").click()
    expect(page.get_by_role("status")).to_have_text("The backfill has begun.")
    until(lambda: scene.value("SELECT count(*) FROM evervec.outbox WHERE source = 'pile'") > 100, "the outbox to fill")
    page.get_by_role("button", name="Cancel the backfill of pile").click()
    expect(page.get_by_role("status")).to_contain_text("will not be embedded again")
    assert not scene.value("SELECT EXISTS (SELECT FROM evervec.outbox WHERE source = 'pile' AND forced)")
    card.get_by_label("Items a second", exact=True).fill("")
    card.get_by_role("button", name="Set the rate of pile").click()
    scene.settled()
    scene.run("SELECT evervec.unwatch('pile')")


def test_a_source_is_paused_and_resumed_by_click(page: Page, scene: Scene) -> None:
    page.goto("/sources")
    page.get_by_role("button", name="Pause items").click()
    expect(page.get_by_role("status")).to_have_text("Paused: changes are recorded, and wait.")
    assert scene.value("SELECT paused FROM evervec.source WHERE name = 'items'")
    page.get_by_role("button", name="Resume items").click()
    expect(page.get_by_role("status")).to_have_text("The work goes on.")
    assert not scene.value("SELECT paused FROM evervec.source WHERE name = 'items'")


def test_search_finds_across_languages(page: Page) -> None:
    page.goto("/search")
    page.get_by_label("Source").select_option("items")
    page.get_by_label("Words").fill("something to drill holes into a wall")
    page.get_by_label("Words").press("Enter")
    hits = page.get_by_role("row").filter(has_text="bohr")
    expect(hits.first).to_be_visible()
    assert "something" not in page.url


def test_an_item_is_embedded_again_and_shows_its_workflow(page: Page, scene: Scene) -> None:
    scene.run("UPDATE items SET description = 'Has a workflow of its own now' WHERE id = 5")
    scene.settled()
    page.goto("/items?source=items")
    page.get_by_role("link", name="5", exact=True).click()
    expect(page.get_by_text("Has a workflow of its own now")).to_be_visible()
    until(partial(tells_the_step, page, "embedded"), "the last step of the workflow")
    expect(page.locator(".steps")).to_contain_text("embedded")
    link = page.locator(".hash a")
    expect(link).to_have_attribute(
        "href", re.compile("http://127.0.0.1:8233/namespaces/default/workflows/item-embedding%2F")
    )
    expect(page.locator("[aria-labelledby=h-near] tbody tr")).to_have_count(8)
    before = scene.value("SELECT embedded_at FROM items WHERE id = 5")
    page.get_by_role("button", name="Embed again").click()
    expect(page.get_by_role("status")).to_contain_text("Back in the outbox")
    until(lambda: scene.value("SELECT embedded_at FROM items WHERE id = 5") > before, "the new vector")


def test_it_is_seen_which_listener_leads_and_that_another_takes_over(page: Page, scene: Scene) -> None:
    page.goto("/")
    health = page.locator(".health")
    expect(health).to_contain_text("one leads")
    other = scene.start("listener")
    expect(health).to_contain_text("one leads, 1 on standby")
    expect(health).to_contain_text("18.")
    expect(health).to_contain_text(re.compile("Workers.*@", re.DOTALL))
    other._process.kill()
    expect(health).not_to_contain_text("on standby")


def test_without_scripts_every_button_works(windows: Windows, scene: Scene) -> None:
    page = windows.open(java_script_enabled=False)
    page.goto("/sources")
    page.get_by_role("button", name="Pause items").click()
    expect(page.get_by_role("status")).to_have_text("Paused: changes are recorded, and wait.")
    page.get_by_role("button", name="Resume items").click()
    expect(page.get_by_role("status")).to_have_text("The work goes on.")
    assert not scene.value("SELECT paused FROM evervec.source WHERE name = 'items'")
    page.goto("/item?source=items&key=7")
    page.get_by_role("link", name="Show them").click()
    expect(page.get_by_role("row")).to_have_count(9)
    page.goto("/item?source=items&key=7")
    page.get_by_role("button", name="Embed again").click()
    expect(page.get_by_role("status")).to_contain_text("Back in the outbox")
    page.goto("/search")
    page.get_by_label("Words").fill("Fahrrad für ein Kind")
    page.get_by_role("button", name="Search").click()
    expect(page.get_by_role("row").filter(has_text=re.compile("bike|bicycle", re.IGNORECASE)).first).to_be_visible()
