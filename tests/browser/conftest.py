"""One stack and one browser for all tests of a module; a window for each test, in which nothing may go wrong unseen."""

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Browser, BrowserContext, ConsoleMessage, Dialog, Page, expect, sync_playwright

from tests.browser.scene import TOKEN, VIEWER_TOKEN, Scene, chromium, open_scene

TIMEOUT_MS = 60_000
"""A bound, for machines that have much else to do."""

expect.set_options(timeout=TIMEOUT_MS)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    here = Path(__file__).parent
    for item in items:
        if here in item.path.parents:
            item.add_marker(pytest.mark.browser)
            item.add_marker(pytest.mark.timeout(600))


@pytest.fixture(scope="package")
def scene(postgres: str, template_database: str, temporal_address: str, stack_dir: Path) -> Iterator[Scene]:
    """The whole stack."""
    logs = stack_dir / "browser"
    logs.mkdir()
    with open_scene(postgres, template_database, temporal_address, logs) as scene:
        yield scene


@pytest.fixture(scope="package")
def dashboard(scene: Scene) -> str:
    """The URL of a dashboard without a token."""
    return scene.start_dashboard(temporal_ui_url="http://127.0.0.1:8233")


@pytest.fixture(scope="package")
def guarded(scene: Scene) -> str:
    """The URL of one that asks for a token."""
    return scene.start_dashboard(dashboard_token=TOKEN, dashboard_viewer_token=VIEWER_TOKEN)


@pytest.fixture(scope="package")
def chrome(dashboard: str, guarded: str) -> Iterator[Browser]:
    """A browser. After all that starts an event loop of its own."""
    assert dashboard != guarded
    with sync_playwright() as playwright:
        # As root there is no other way.
        arguments = ["--no-sandbox"] if os.geteuid() == 0 else []
        browser = playwright.chromium.launch(executable_path=chromium(), args=arguments)
        yield browser
        browser.close()


class Windows:
    """Opens windows, and remembers what went wrong in them."""

    def __init__(self, chrome: Browser, base: str) -> None:
        self._chrome = chrome
        self._base = base
        self._contexts: list[BrowserContext] = []
        self.trouble: list[str] = []
        self.hosts: set[str] = set()

    def open(self, base: str | None = None, **options: Any) -> Page:
        """A window of a visitor of its own."""
        context = self._chrome.new_context(**{"base_url": base or self._base, "viewport": SIZE, **options})
        context.set_default_timeout(TIMEOUT_MS)
        self._contexts.append(context)
        page = context.new_page()
        page.on("dialog", self._dialog)
        page.on("pageerror", lambda error: self.trouble.append(f"a script failed: {error}"))
        page.on("console", self._said)
        page.on("request", lambda request: self.hosts.add(request.url.split("/")[2]))
        return page

    def _dialog(self, dialog: Dialog) -> None:
        self.trouble.append(f"a dialog: {dialog.message}")
        dialog.dismiss()

    def _said(self, message: ConsoleMessage) -> None:
        if message.type == "error":
            self.trouble.append(f"{message.location['url']}: {message.text}")

    def close(self) -> None:
        """All of them."""
        for context in self._contexts:
            context.close()


SIZE = {"width": 1280, "height": 900}


@pytest.fixture
def windows(chrome: Browser, dashboard: str) -> Iterator[Windows]:
    """Windows before the open dashboard; at the end nothing has gone wrong, and no other host was asked."""
    windows = Windows(chrome, dashboard)
    yield windows
    windows.close()
    assert windows.trouble == []
    assert len(windows.hosts) <= 1


@pytest.fixture
def page(windows: Windows) -> Page:
    """A window."""
    return windows.open()
