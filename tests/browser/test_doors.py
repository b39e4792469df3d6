"""The token keeps strangers out, a viewer's changes nothing, and a forged form is refused."""

import re

from playwright.sync_api import Page, expect

from tests.browser.conftest import Windows
from tests.browser.scene import TOKEN, VIEWER_TOKEN, Scene


def sign_in(page: Page, token: str) -> None:
    page.goto("/")
    expect(page).to_have_url(re.compile("/login$"))
    page.get_by_label("Token").fill(token)
    page.get_by_role("button", name="Sign in").click()


def test_the_token_keeps_strangers_out(windows: Windows, guarded: str) -> None:
    page = windows.open(guarded)
    for path in ("/", "/items?source=items", "/item?source=items&key=1", "/failures", "/search", "/sources"):
        page.goto(path)
        expect(page).to_have_url(re.compile("/login$"))
        expect(page.get_by_role("navigation")).to_have_count(0)
    sign_in(page, "a guess")
    expect(page.get_by_role("alert")).to_have_text("That is not the token.")
    windows.trouble.clear()  # the browser tells of the status 401
    sign_in(page, TOKEN)
    expect(page.get_by_role("heading", level=1)).to_have_text("Overview")
    expect(page.locator("[data-source=items]")).to_be_visible()
    assert page.evaluate("document.cookie") == ""
    page.get_by_role("button", name="Sign out").click()
    expect(page).to_have_url(re.compile("/login$"))
    page.goto("/sources")
    expect(page).to_have_url(re.compile("/login$"))


def test_a_viewer_looks_and_finds_no_button(windows: Windows, guarded: str) -> None:
    page = windows.open(guarded)
    sign_in(page, VIEWER_TOKEN)
    expect(page.get_by_role("heading", level=1)).to_have_text("Overview")
    for path in ("/sources", "/failures", "/item?source=items&key=1"):
        page.goto(path)
        expect(page.get_by_role("button")).to_have_text(["Sign out"])
    page.goto("/search")
    page.get_by_label("Words").fill("Fahrrad für ein Kind")
    page.get_by_role("button", name="Search").click()
    expect(page.get_by_role("row").nth(1)).to_be_visible()


def test_a_forged_form_is_refused(windows: Windows, guarded: str, scene: Scene) -> None:
    page = windows.open(guarded)
    sign_in(page, TOKEN)
    expect(page.get_by_role("heading", level=1)).to_have_text("Overview")
    forged: list[dict[str, str | float | bool]] = [{"source": "items"}, {"source": "items", "csrf": "guessed"}]
    for fields in forged:
        answer = page.request.post("/sources/pause", form=fields)
        assert answer.status == 403
    # A form of another site, which the browser sends: no cookie goes along.
    form = (
        f"<form method=post action='{guarded}/sources/pause'><input name=source value=items><button>x</button></form>"
    )
    page.route("http://evil.example/", lambda route: route.fulfill(content_type="text/html", body=form))
    page.goto("http://evil.example/")
    page.get_by_role("button").click()
    expect(page).to_have_url(re.compile("/login$"))
    assert not scene.value("SELECT paused FROM evervec.source WHERE name = 'items'")
    windows.hosts.remove("evil.example")
    windows.trouble.clear()
