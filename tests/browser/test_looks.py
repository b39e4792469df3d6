"""Every page in both themes, on a desk and on a phone: nothing overflows, nothing is out of reach, and its picture."""

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import Page, expect

from tests.browser.conftest import Windows
from tests.browser.scene import Scene, until

PICTURES = Path(os.environ.get("SCREENSHOTS", "build/screenshots"))
PAGES = {
    "overview": "/",
    "items": "/items?source=items",
    "item": "/item?source=items&key=1",
    "failures": "/failures?source=archive&error=the+stub+refuses+content+that+holds+evervec-poison",
    "search": "/search",
    "sources": "/sources",
    "error": "/item?source=nobody&key=1",
}
SCREENS: dict[str, dict[str, Any]] = {
    "desk": {"viewport": {"width": 1280, "height": 900}},
    "phone": {
        "viewport": {"width": 390, "height": 844},
        "device_scale_factor": 2,
        "is_mobile": True,
        "has_touch": True,
    },
}
THEMES = ("light", "dark")
SERIOUS = {"serious", "critical"}


HISTORY = """
    INSERT INTO evervec.work SELECT 'items', date_trunc('minute', now()) - make_interval(mins => n), w.done, 0, 0,
      ARRAY[0, 0, w.done / 4, w.done - w.done / 4 - w.slow, 0, w.slow / 2, w.slow - w.slow / 2]
        || array_fill(0, ARRAY[12])
    FROM generate_series(4, 58) AS n, LATERAL (
      SELECT (60 + 40 * sin(n / 4.0) + 15 * sin(n * 1.7))::int, (5 + 4 * sin(n / 3.0))::int) AS w (done, slow)
    ON CONFLICT DO NOTHING
"""


@pytest.fixture(scope="module", autouse=True)
def something_to_see(scene: Scene) -> Iterator[None]:
    """An hour of work, edits, failures, and a sweep that takes its time."""
    scene.run(HISTORY)
    scene.run("CREATE TABLE archive (id int PRIMARY KEY, title text)")
    scene.run(
        "INSERT INTO archive SELECT n, CASE n % 700 WHEN 7 THEN 'evervec-poison' ELSE 'Record ' || n END "
        "FROM generate_series(1, 6000) AS n"
    )
    scene.run("SELECT evervec.watch('archive', '{title}', model => 'stub:8')")
    scene.settled()
    # At once: no sweep begins without the limit.
    scene.run("SELECT evervec.throttle('archive', 40), evervec.refire('archive', 'id % 700 <> 7', true)")
    scene.run("UPDATE items SET description = description || ' Still there.' WHERE id % 20 = 1")
    pending = "SELECT count(*) FROM evervec.outbox WHERE source = 'items' AND state = 'pending'"
    until(lambda: scene.value(pending) == 0, "the edits to be embedded")
    yield
    scene.run("SELECT evervec.throttle('archive', NULL)")
    scene.settled()
    scene.run("SELECT evervec.unwatch('archive')")


def show(page: Page, name: str) -> None:
    """A page with all that belongs to it."""
    page.goto(PAGES[name])
    if name == "search":
        page.get_by_label("Source").select_option("items")
        page.get_by_label("Words").fill("something to drill holes into a wall")
        page.get_by_role("button", name="Search").click()
        expect(page.get_by_role("row").nth(1)).to_be_visible()
    if name == "overview":
        expect(page.locator("[data-sweep=archive]")).to_be_visible()
        expect(page.locator("[data-sweep=archive]")).not_to_have_attribute("data-done", "0")
        expect(page.locator("[data-charts=items]")).to_be_visible()
    if name == "item":
        expect(page.locator("[aria-labelledby=h-near] tbody tr").first).to_be_visible()
    if name == "sources":
        page.locator("details").first.evaluate("it => { it.open = true }")


@pytest.mark.parametrize("theme", THEMES)
@pytest.mark.parametrize("screen", SCREENS)
def test_nothing_overflows_and_nothing_is_out_of_reach(windows: Windows, screen: str, theme: str) -> None:
    page = windows.open(color_scheme=theme, reduced_motion="reduce", **SCREENS[screen])
    faults = {}
    for name in PAGES:
        show(page, name)
        width = page.evaluate("[document.documentElement.scrollWidth, innerWidth]")
        assert width[0] <= width[1], (name, width)
        found = Axe().run(page).response["violations"]
        serious = [(one["id"], one["nodes"][0]["html"]) for one in found if one["impact"] in SERIOUS]
        if serious:
            faults[name] = serious
        PICTURES.mkdir(parents=True, exist_ok=True)
        page.screenshot(
            path=PICTURES / f"{name}-{screen}-{theme}.png", full_page=(name, screen) == ("overview", "desk")
        )
    windows.trouble[:] = [told for told in windows.trouble if "404" not in told]  # the error page is one
    assert faults == {}


def test_the_login_page_in_both_themes(windows: Windows, guarded: str) -> None:
    for theme in THEMES:
        page = windows.open(guarded, color_scheme=theme, viewport=SCREENS["phone"]["viewport"])
        page.goto("/login")
        assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
        found = Axe().run(page).response["violations"]
        assert [one["id"] for one in found if one["impact"] in SERIOUS] == []


def test_the_keyboard_is_enough(page: Page, scene: Scene) -> None:
    page.goto("/")
    page.keyboard.press("Tab")
    expect(page.get_by_role("link", name="Skip to the content")).to_be_focused()
    page.keyboard.press("Enter")
    expect(page.locator("main")).to_be_focused()
    page.goto("/sources")
    button = page.get_by_role("button", name="Pause items")
    for _ in range(60):
        page.keyboard.press("Tab")
        if button.evaluate("it => it === document.activeElement"):
            break
    expect(button).to_be_focused()
    assert button.evaluate("it => getComputedStyle(it).outlineStyle") == "solid"
    page.keyboard.press("Enter")
    expect(page.get_by_role("status")).to_be_visible()
    assert scene.value("SELECT paused FROM evervec.source WHERE name = 'items'")
    page.get_by_role("button", name="Resume items").press("Enter")
    expect(page.get_by_role("status")).to_have_text("The work goes on.")


def test_the_focus_stays_while_the_page_is_kept_up_to_date(page: Page, scene: Scene) -> None:
    page.goto("/")
    link = page.locator("[data-source=items] h3 a")
    link.focus()
    before = page.locator("#changes").inner_text()
    scene.run("UPDATE items SET description = description || ' More.' WHERE id = 9")
    expect(page.locator("#changes")).not_to_have_text(before)
    expect(link).to_be_focused()
