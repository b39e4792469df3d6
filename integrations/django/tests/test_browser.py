"""The admin's actions and the example's pages in a real browser: Debian's chromium, or CHROMIUM=/path/to/it."""

import os
import re
import shutil
import socket
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest
from django.test import Client
from playwright.sync_api import Page, expect, sync_playwright

from items.models import Item
from tests.lab import assert_right, outbox, paused, settle, until, unwalked
from tests.test_commands import without_triggers
from tests.test_writes import item
from tests.things.models import Poem

MANAGE = Path(__file__).parents[1] / "example" / "manage.py"
TIMEOUT_MS = 60_000

expect.set_options(timeout=TIMEOUT_MS)


@pytest.fixture(scope="module")
def address() -> Iterator[str]:
    """The project as `manage.py runserver` serves it."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    paths = os.pathsep.join([str(MANAGE.parents[1]), str(MANAGE.parent)])
    server = subprocess.Popen(
        [sys.executable, MANAGE, "runserver", "--noreload", f"127.0.0.1:{port}"],
        env=os.environ | {"PYTHONPATH": paths},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        until(lambda: answers(f"http://127.0.0.1:{port}/admin/login/"))
        yield f"http://127.0.0.1:{port}"
    finally:
        server.terminate()
        server.wait()


def answers(address: str) -> bool:
    try:
        with urllib.request.urlopen(address):
            return True
    except OSError:
        return False


@pytest.fixture
def page(address: str, monkeypatch: pytest.MonkeyPatch, admin: Client) -> Iterator[Page]:  # noqa: ARG001 - whom the page logs in
    """A page on which `admin` is logged in."""
    # Playwright has an event loop in this thread, Django's ORM does not mind it.
    monkeypatch.setenv("DJANGO_ALLOW_ASYNC_UNSAFE", "true")
    path = os.environ.get("CHROMIUM") or shutil.which("chromium")
    assert path, "no chromium: install Debian's, or set CHROMIUM"
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path, args=["--no-sandbox"])
        page = browser.new_page(base_url=address)
        page.set_default_timeout(TIMEOUT_MS)
        page.goto("/admin/login/?next=/admin/")
        page.get_by_label("Username").fill("admin")
        page.get_by_label("Password").fill("admin")
        page.get_by_role("button", name="Log in").click()
        page.wait_for_url(f"{address}/admin/")
        yield page
        browser.close()


def act(page: Page, action: str) -> None:
    page.get_by_label("Action:").select_option(action)
    page.get_by_role("button", name="Go", exact=True).click()


def row(page: Page, name: str) -> object:
    return page.locator("#result_list tr", has_text=name).locator(".field-embedding_status")


def test_generate_embeddings_for_some(page: Page) -> None:
    Item.objects.bulk_create([item(f"Thing {number}") for number in range(3)])
    settle()
    with unwalked():
        without_triggers("UPDATE items_item SET description = 'Loaded'")
        page.goto("/admin/items/item/")
        expect(row(page, "Thing 1")).to_contain_text(re.compile(r"stale changed since it was embedded .* ago"))
        for name in ("Thing 0", "Thing 1"):
            page.locator("#result_list tr", has_text=name).locator("input.action-select").check()
        act(page, "Generate embeddings")
        expect(page.locator(".messagelist .success")).to_have_text("2 items to be embedded; all others are fresh.")
        settle()
        page.reload()
        expect(row(page, "Thing 1")).to_contain_text(re.compile(r"fresh embedded .* ago"))
        expect(row(page, "Thing 2")).to_contain_text("stale")


def test_regenerate_all_that_a_search_finds(page: Page) -> None:
    Item.objects.bulk_create([item(f"Thing {number}") for number in range(150)])
    Item.objects.bulk_create([item("Another")])
    settle()
    with paused():
        page.goto("/admin/items/item/?q=Thing")
        page.locator("#action-toggle").check()
        page.get_by_text("Select all 150 items").click()
        act(page, "Regenerate")
        expect(page.locator(".messagelist .success")).to_have_text("150 items to be embedded anew.")
        assert len(outbox()) == 150
    assert_right(fresh=151)


def test_retry_what_the_filter_shows_as_failed(page: Page) -> None:
    Poem.objects.create(text="Roses")
    poison = Poem.objects.create(text="evervec-poison")
    settle()
    page.goto("/admin/things/poem/")
    page.get_by_role("link", name="failed", exact=True).click()
    page.wait_for_url("**embedding=failed")
    expect(page.locator("#result_list tbody tr")).to_have_count(1)
    expect(row(page, f"Poem object ({poison.pk})")).to_contain_text(re.compile("failed given up .* after 2 attempts"))
    page.locator("#result_list input.action-select").check()
    with paused("things_poem"):
        act(page, "Retry failed")
        expect(page.locator(".messagelist .success")).to_have_text("1 item that had failed tried again.")
        expect(page.locator("#result_list tbody tr")).to_have_count(0)
    settle()
    page.reload()
    expect(page.locator("#result_list tbody tr")).to_have_count(1)


def test_a_form_leads_to_a_right_vector(page: Page) -> None:
    page.goto("/admin/items/item/add/")
    for label, text in [("Name", "Drill"), ("Description", "With bits"), ("Category", "tools"), ("Type", "lend")]:
        page.get_by_label(f"{label}:").fill(text)
    page.get_by_role("button", name="Save", exact=True).click()
    expect(page.locator(".messagelist .success")).to_contain_text("was added successfully")
    assert_right(fresh=1)


def test_the_pages_of_similar_items(page: Page) -> None:
    Item.objects.bulk_create(
        [item("Schlagbohrmaschine"), item("Zelt", description="Wasserdicht"), item("Impact drill")]
    )
    settle()
    page.goto("/")
    page.get_by_label("What do you need?").fill("camping")
    page.get_by_role("button", name="Search").click()
    expect(page.locator("li a").first).to_have_text("Zelt")
    page.get_by_role("link", name="Impact drill").click()
    expect(page.get_by_role("heading", level=1)).to_have_text("Impact drill")
    expect(page.locator("li a")).to_have_text(["Schlagbohrmaschine", "Zelt"])
