"""What programs are answered: /api/search and /api/embed."""

import json
from collections.abc import AsyncIterator
from typing import Any

import numpy as np
import pytest

from embedding.stub import StubEmbedder
from tests.integration.dashboard_lab import TOKEN, VIEWER_TOKEN, Browser, open_dashboard
from tests.integration.service_lab import Lab, open_lab

SECRET = "canary-3f1c"


@pytest.fixture
async def lab(database: str) -> AsyncIterator[Lab]:
    async with open_lab(database) as lab:
        await lab.do(
            "INSERT INTO items VALUES "
            "(1, 'Drill', 'with a case', true), (2, 'Tent', 'for four', true), (3, 'Old', 'x', NULL)"
        )
        await lab.fill()
        await lab.work()
        yield lab


@pytest.fixture
async def programs(lab: Lab) -> AsyncIterator[Browser]:
    async with open_dashboard(str(lab.pool.conninfo)) as browser:
        yield browser


async def ask(browser: Browser, path: str, body: object, status: int = 200, **headers: str) -> Any:
    browser.last = await browser.http.post(path, json=body, headers=headers)
    assert browser.last.status_code == status, browser.last.text
    answer = browser.last.json()
    if status != 200:
        assert list(answer) == ["error"]
        assert answer["error"]
        assert "\n" not in answer["error"]
    return answer


async def test_search_answers_as_the_command_does(programs: Browser) -> None:
    answer = await ask(programs, "/api/search", {"source": "items", "query": "Drill | with a case"})
    assert list(answer) == ["source", "query", "results"]
    assert [hit["key"] for hit in answer["results"]] == ["1", "2"]
    assert answer["results"][0] == {
        "key": "1",
        "distance": pytest.approx(0, abs=1e-6),
        "content": "Drill | with a case",
    }
    answer = await ask(programs, "/api/search", {"source": "items", "query": "tent", "limit": 1})
    assert len(answer["results"]) == 1


async def test_embed_gives_the_vectors_that_the_items_would_have(programs: Browser, lab: Lab) -> None:
    await lab.do("SELECT evervec.watch('items', '{name}', prompt => 'find: ', model => 'stub:8')")
    texts = ["one", "two", "one", "ä" * 1000]
    answer = await ask(programs, "/api/embed", {"source": "items", "texts": texts})
    assert list(answer) == ["model", "dimension", "embeddings"]
    assert answer["model"] == await lab.value("SELECT model_label FROM evervec.source")
    assert answer["dimension"] == 8
    np.testing.assert_allclose(answer["embeddings"], StubEmbedder(8).encode(texts, "find: "), rtol=1e-6)


BAD: list[tuple[str, object, int, str]] = [
    ("/api/search", {"source": "nope", "query": "x"}, 404, "no source named 'nope'"),
    ("/api/embed", {"source": "nope", "texts": ["x"]}, 404, "no source named 'nope'"),
    ("/api/search", {"source": "items", "query": "  "}, 400, "no text to search for"),
    ("/api/search", {"source": "items", "query": "x", "limit": 0}, 400, "limit"),
    ("/api/search", {"source": "items", "query": "x", "limit": 1001}, 400, "limit"),
    ("/api/search", {"source": "items"}, 400, "query"),
    ("/api/search", {"source": "items", "query": 5}, 400, "query"),
    ("/api/search", {"source": "it\0ems", "query": "x"}, 400, "NUL"),
    ("/api/search", [], 400, ""),
    ("/api/embed", {"source": "items", "texts": []}, 400, "texts"),
    ("/api/embed", {"source": "items", "texts": "x"}, 400, "texts"),
    ("/api/embed", {"source": "items", "texts": ["ok", ""]}, 400, "the texts 1 "),
    ("/api/embed", {"source": "items", "texts": ["ok", "evervec-poison"]}, 400, "text 1 "),
    ("/api/embed", {"source": "items", "texts": ["x"] * 257}, 400, "256"),
    ("/api/embed", {"source": "items", "texts": ["x" * 100_001]}, 400, "100000"),
]


async def test_what_cannot_be_answered_says_why(programs: Browser) -> None:
    for path, body, status, told in BAD:
        assert told in (await ask(programs, path, body, status))["error"]
    answer = await programs.http.post("/api/search", content=b"{", headers={"content-type": "application/json"})
    assert answer.status_code == 400
    assert "error" in answer.json()
    assert (await programs.http.get("/api/search")).status_code == 405
    assert (await programs.http.get("/api/nowhere")).json() == {"error": "there is no such page"}


async def test_an_error_quotes_nothing_of_what_was_sent(programs: Browser) -> None:
    for body in ({"source": "items", "query": [SECRET]}, {"source": "items", "query": "x", "limit": SECRET}):
        assert SECRET not in json.dumps(await ask(programs, "/api/search", body, 400))
    assert SECRET not in json.dumps(
        await ask(programs, "/api/embed", {"source": "items", "texts": [{"a": SECRET}]}, 400)
    )


async def test_what_is_no_json_is_refused(programs: Browser) -> None:
    for kind in ("text/plain", "application/x-www-form-urlencoded", ""):
        answer = await programs.http.post(
            "/api/search", content=b'{"source": "items", "query": "x"}', headers={"content-type": kind}
        )
        assert answer.status_code == 415
        assert "application/json" in answer.json()["error"]


async def test_what_is_too_large_is_refused(programs: Browser) -> None:
    texts = ["x" * 99_000] * 50
    await ask(programs, "/api/embed", {"source": "items", "texts": texts}, 413)

    async def endless() -> AsyncIterator[bytes]:
        for _ in range(10):
            yield b'"' + b"x" * 1_000_000

    answer = await programs.http.post("/api/embed", content=endless(), headers={"content-type": "application/json"})
    assert answer.status_code == 413


async def test_the_token_keeps_strangers_out(lab: Lab) -> None:
    body = {"source": "items", "query": "x"}
    async with open_dashboard(str(lab.pool.conninfo), tokens=True) as browser:
        for authorization in ("", "Bearer", "Bearer wrong", f"Basic {TOKEN}", TOKEN, "Bearer "):
            await ask(browser, "/api/search", body, 401, authorization=authorization)
            assert browser.last.headers["www-authenticate"] == "Bearer"
        for token in (TOKEN, VIEWER_TOKEN):
            await ask(browser, "/api/search", body, authorization=f"Bearer {token}")
            await ask(browser, "/api/embed", {"source": "items", "texts": ["x"]}, authorization=f"bearer {token}")
        await browser.sign_in(TOKEN)
        await ask(browser, "/api/search", body, 401)
        assert (await browser.http.get("/openapi.json")).status_code == 200
        browser.http.cookies.clear()
        assert (await browser.http.get("/openapi.json")).status_code == 401


async def test_the_description_tells_of_both(programs: Browser) -> None:
    described = (await programs.http.get("/openapi.json")).json()
    assert set(described["paths"]) == {"/api/search", "/api/embed"}
    for path in described["paths"].values():
        assert {"200", "400", "401", "404", "413", "415", "429", "503"} <= set(path["post"]["responses"])
    assert described["components"]["schemas"]["EmbedRequest"]["properties"]["texts"]["maxItems"] == 256


async def test_a_model_that_cannot_be_loaded_is_no_fault_of_the_request(lab: Lab) -> None:
    await lab.do("SELECT evervec.watch('items', '{name}', model => 'nobody/has-this', dimension => 8)")
    async with open_dashboard(str(lab.pool.conninfo)) as browser:
        assert "nobody/has-this" in (await ask(browser, "/api/search", {"source": "items", "query": "x"}, 503))["error"]
        await ask(browser, "/api/embed", {"source": "items", "texts": ["x"]}, 503)


async def test_no_text_gets_into_a_log(
    programs: Browser, lab: Lab, capfd: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("DEBUG")
    await ask(programs, "/api/search", {"source": "items", "query": SECRET})
    await ask(programs, "/api/embed", {"source": "items", "texts": [SECRET]})
    await ask(programs, "/api/embed", {"source": "items", "texts": [f"{SECRET} evervec-poison"]}, 400)
    await programs.get("/search")
    assert SECRET in await programs.post("/search", source="items", query=SECRET)
    await lab.do("DROP TABLE items CASCADE")
    await ask(programs, "/api/search", {"source": "items", "query": SECRET}, 400)
    heard = capfd.readouterr()
    assert SECRET not in caplog.text + heard.out + heard.err
