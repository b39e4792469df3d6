"""Who may come in, and what a form must bring along."""

from collections.abc import AsyncIterator
from typing import Any

import pytest

from dashboard.guard import Guard
from evervec.errors import ConfigurationError
from evervec.settings import Settings
from tests.integration.dashboard_lab import TOKEN, VIEWER_TOKEN, Browser, open_dashboard, words
from tests.integration.service_lab import Lab, open_lab

PAGES = (
    "/",
    "/items",
    "/item?source=items&key=1",
    "/item/neighbours?source=items&key=1",
    "/failures",
    "/search",
    "/sources",
)
ORDERS: dict[str, dict[str, Any]] = {
    "/item/embed": {"source": "items", "key": "1"},
    "/item/retry": {"source": "items", "key": "1"},
    "/failures/retry": {"what": "all"},
    "/sources/pause": {"source": "items"},
    "/sources/resume": {"source": "items"},
    "/sources/backfill": {"source": "items"},
    "/sources/cancel": {"source": "items"},
    "/sources/throttle": {"source": "items", "rate": "3"},
}
LOOKS: dict[str, dict[str, Any]] = {
    "/item": {"source": "items", "key": "1"},
    "/items": {"source": "items", "state": "any", "after": "0"},
}
FORMS = ORDERS | LOOKS | {"/search": {"source": "items", "query": "drill"}, "/logout": {}}


@pytest.fixture
async def lab(database: str) -> AsyncIterator[Lab]:
    async with open_lab(database) as lab:
        await lab.do("INSERT INTO items (id, name, description) VALUES (1, 'Drill', 'with a case')")
        await lab.fill()
        await lab.work()
        yield lab


@pytest.fixture
async def open_one(lab: Lab) -> AsyncIterator[Browser]:
    async with open_dashboard(str(lab.pool.conninfo)) as browser:
        yield browser


@pytest.fixture
async def guarded(lab: Lab) -> AsyncIterator[Browser]:
    async with open_dashboard(str(lab.pool.conninfo), tokens=True) as browser:
        yield browser


async def test_a_stranger_is_sent_to_the_login_page(guarded: Browser) -> None:
    for path in (*PAGES, "/events"):
        answer = await guarded.http.get(path)
        assert (answer.status_code, answer.headers["location"]) == (303, "/login"), path
        assert "Drill" not in answer.text


async def test_a_strangers_forms_do_nothing(guarded: Browser, lab: Lab) -> None:
    for path, fields in FORMS.items():
        answer = await guarded.http.post(path, data={"csrf": "guessed", **fields})
        assert (answer.status_code, answer.headers["location"]) == (303, "/login"), path
    assert await untouched(lab)


async def test_a_wrong_token_opens_nothing_and_the_right_one_everything(guarded: Browser) -> None:
    await guarded.sign_in("a guess")
    assert guarded.last.status_code == 401
    assert "That is not the token" in guarded.last.text
    assert not guarded.http.cookies
    await guarded.sign_in(TOKEN)
    assert guarded.last.url.path == "/"
    for path in PAGES:
        await guarded.get(path)
        assert guarded.last.status_code == 200, path


async def test_the_cookie_is_kept_from_scripts_and_from_other_sites(guarded: Browser) -> None:
    answer = await guarded.http.post("/login", data={"token": TOKEN})
    cookie = answer.headers["set-cookie"].lower()
    assert "httponly" in cookie
    assert "samesite=strict" in cookie
    assert "secure" not in cookie
    answer = await guarded.http.post("https://127.0.0.1:8080/login", data={"token": TOKEN})
    assert "secure" in answer.headers["set-cookie"].lower()


async def test_a_forged_cookie_opens_nothing(guarded: Browser) -> None:
    await guarded.sign_in(VIEWER_TOKEN)
    [cookie] = guarded.http.cookies.jar
    value = cookie.value or ""
    guarded.http.cookies.clear()
    for forged in ("", "x", value.swapcase(), f"x{value}", value.partition(".")[0]):
        answer = await guarded.http.get("/", headers={"cookie": f"{cookie.name}={forged}"})
        assert answer.status_code == 303, forged
    assert (await guarded.http.get("/", headers={"cookie": f"{cookie.name}={value}"})).status_code == 200


async def test_another_token_ends_all_sessions(lab: Lab) -> None:
    async with open_dashboard(str(lab.pool.conninfo), tokens=True) as browser:
        await browser.sign_in(TOKEN)
        cookies = dict(browser.http.cookies)
    async with open_dashboard(str(lab.pool.conninfo), tokens=True) as browser:
        browser.http.cookies.update(cookies)
        assert (await browser.http.get("/")).status_code == 200
    async with open_dashboard(str(lab.pool.conninfo), dashboard_token="changed") as browser:
        browser.http.cookies.update(cookies)
        assert (await browser.http.get("/")).status_code == 303


async def test_a_viewer_looks_and_changes_nothing(guarded: Browser, lab: Lab) -> None:
    await guarded.sign_in(VIEWER_TOKEN)
    for path in PAGES:
        html = await guarded.get(path)
        assert guarded.last.status_code == 200, path
        assert not any(f'action="{order}"' in html for order in ORDERS), path
    for path, fields in ORDERS.items():
        await guarded.get("/")
        assert "viewer" in await guarded.post(path, **fields)
        assert guarded.last.status_code == 403, path
    assert await untouched(lab)
    await guarded.get("/search")
    assert "Drill" in await guarded.post("/search", source="items", query="drill")


async def test_a_form_without_its_token_is_refused(open_one: Browser, lab: Lab) -> None:
    for path, fields in FORMS.items():
        for csrf in ("", "guessed", "é"):
            await open_one.post(path, csrf=csrf, **fields)
            assert open_one.last.status_code == 403, path
    assert await untouched(lab)


async def test_the_token_of_another_session_is_refused(guarded: Browser, lab: Lab) -> None:
    await guarded.sign_in(TOKEN)
    await guarded.get("/sources")
    csrf = guarded.csrf()
    await guarded.sign_in(TOKEN)
    guarded.http.cookies.clear()
    await guarded.sign_in(TOKEN)
    await guarded.post("/sources/pause", csrf=csrf, source="items")
    assert guarded.last.status_code == 403
    assert await untouched(lab)


FOREIGN = (
    {"origin": "https://evil.example"},
    {"origin": "null"},
    {"sec-fetch-site": "cross-site"},
    {"sec-fetch-site": "same-site"},
)


async def test_a_form_of_another_site_is_refused(open_one: Browser, lab: Lab) -> None:
    await open_one.get("/sources")
    csrf = open_one.csrf()
    for headers in FOREIGN:
        await open_one.post("/sources/pause", csrf, headers, source="items")
        assert open_one.last.status_code == 403, headers
        answer = await open_one.http.post("/api/search", json={"source": "items", "query": "x"}, headers=headers)
        assert answer.status_code == 403, headers
    assert await untouched(lab)


async def test_another_name_that_leads_here_is_a_strangers(open_one: Browser) -> None:
    for host in ("evil.example", "evil.example:8080", "127.0.0.1.evil.example", ""):
        for path in ("/", "/static/evervec.css"):
            answer = await open_one.http.get(path, headers={"host": host})
            assert answer.status_code == 400, host
            assert "Drill" not in answer.text


async def test_the_names_of_this_machine_are_ours(open_one: Browser) -> None:
    for host in ("localhost", "localhost:8080", "127.0.0.1:9999", "[::1]:8080"):
        assert (await open_one.http.get("/", headers={"host": host})).status_code == 200, host


async def test_with_a_token_any_name_will_do(guarded: Browser) -> None:
    answer = await guarded.http.get("/login", headers={"host": "dash.example.com"})
    assert answer.status_code == 200


async def test_every_answer_bears_the_safe_headers(open_one: Browser) -> None:
    for path in (*PAGES, "/login", "/nowhere", "/static/evervec.js", "/healthz"):
        headers = (await open_one.http.get(path)).headers
        policy = headers["content-security-policy"]
        assert "default-src 'self'" in policy, path
        assert "frame-ancestors 'none'" in policy, path
        assert "unsafe" not in policy, path
        assert headers["x-content-type-options"] == "nosniff", path
        assert path.startswith("/static/") or headers["cache-control"] == "no-store", path


async def test_a_page_names_no_other_host_and_holds_no_script_of_its_own(open_one: Browser) -> None:
    for path in PAGES:
        html = await open_one.get(path)
        assert "http://" not in html, path
        assert "https://" not in html, path
        assert "style=" not in html, path
        assert html.count("<script") == html.count('<script src="/static/') <= 1, path


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"dashboard_address": "0.0.0.0:8080"}, "EVERVEC_DASHBOARD_TOKEN"),
        ({"dashboard_address": "[::]:8080"}, "EVERVEC_DASHBOARD_TOKEN"),
        ({"dashboard_address": "dash.example.com:80"}, "EVERVEC_DASHBOARD_TOKEN"),
        ({"dashboard_viewer_token": "v"}, "EVERVEC_DASHBOARD_TOKEN"),
        ({"dashboard_viewer_token": "t", "dashboard_token": "t"}, "must differ"),
        ({"dashboard_address": "8080"}, "host:port"),
        ({"dashboard_address": "127.0.0.1:http"}, "host:port"),
        ({"dashboard_address": "127.0.0.1:99999"}, "host:port"),
    ],
)
def test_what_would_be_open_to_all_does_not_start(changes: dict[str, Any], told: str) -> None:
    with pytest.raises(ConfigurationError, match=told):
        Guard(Settings(**changes))


@pytest.mark.parametrize(
    "changes",
    [
        {"dashboard_address": "127.0.0.1:0"},
        {"dashboard_address": "[::1]:8080"},
        {"dashboard_address": "localhost:8080"},
        {"dashboard_address": "0.0.0.0:8080", "dashboard_token": "t"},
    ],
)
def test_what_is_guarded_starts(changes: dict[str, Any]) -> None:
    assert Guard(Settings(**changes)).address.host


async def untouched(lab: Lab) -> bool:
    """Whether nobody has changed anything."""
    return (
        await lab.value(
            "SELECT NOT paused AND rate IS NULL AND NOT EXISTS (SELECT FROM evervec.outbox) FROM evervec.source"
        )
        is True
    )


async def test_what_a_token_opens_it_names_nowhere(guarded: Browser) -> None:
    await guarded.sign_in(TOKEN)
    for path in PAGES:
        assert TOKEN not in words(await guarded.get(path))
