"""The dashboard as a process: how it starts, what it refuses, how it stops."""

import asyncio
import re
import signal
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Any

import httpx2
import psycopg
import pytest
from pydantic import SecretStr

from db.connection import open_pool
from db.listen import NotificationStream
from db.pages import Pages
from evervec.settings import Settings
from service.refire import PAGE_SIZE
from tests.integration.dashboard_lab import NOWHERE, TOKEN
from tests.integration.pipeline import until
from tests.integration.program import Program, programs
from tests.integration.service_lab import open_lab

STOP_SECONDS = 30.0
"""A bound for a busy machine; requests are cut off after two seconds."""
ROWS = PAGE_SIZE + 500


def settings(database: str, **changes: Any) -> Settings:
    values = {"dashboard_address": "127.0.0.1:0", "temporal_address": NOWHERE}
    return Settings(database_url=SecretStr(database), **(values | changes))


def ended(program: Program) -> bool:
    return program.code is not None


@asynccontextmanager
async def served(database: str, log: Path, **changes: Any) -> AsyncIterator[tuple[Program, str]]:
    program = Program("dashboard", settings(database, **changes), log)
    async with programs(program):
        ready = await program.logged("dashboard ready")
        yield program, ready["url"]


async def test_it_sends_what_changes_as_it_changes(database: str, tmp_path: Path) -> None:
    async with (
        open_lab(database) as lab,
        served(database, tmp_path / "log") as (_, url),
        httpx2.AsyncClient(timeout=60) as http,
        http.stream("GET", f"{url}/events") as stream,
        asyncio.timeout(60),
    ):
        assert stream.headers["content-type"].startswith("text/event-stream")
        lines = stream.aiter_lines()
        assert "event: totals" in [await anext(lines) for _ in range(40)]
        await lab.do("INSERT INTO items (id, name, description) VALUES (1, 'Drill', 'with a case')")
        async for line in lines:
            if 'id="pending">1<' in line:
                break


async def test_it_stops_soon_though_somebody_looks(database: str, tmp_path: Path) -> None:
    async with (
        served(database, tmp_path / "log") as (program, url),
        httpx2.AsyncClient(timeout=60) as http,
        http.stream("GET", f"{url}/events") as stream,
    ):
        lines = stream.aiter_lines()  # kept: who forgets it hangs up
        await anext(lines)
        async with asyncio.timeout(STOP_SECONDS):
            assert await program.end(signal.SIGTERM) == 0


async def test_what_a_backfill_has_enqueued_when_it_stops_is_embedded(database: str, tmp_path: Path) -> None:
    async with (
        open_lab(database) as lab,
        served(database, tmp_path / "log") as (program, url),
        httpx2.AsyncClient(timeout=60, base_url=url) as http,
        await psycopg.AsyncConnection.connect(database) as user,
    ):
        await lab.fill()
        await lab.do("INSERT INTO items (id, name, description) SELECT n, n, n FROM generate_series(1, %s) AS n", ROWS)
        await lab.work()
        csrf = re.search(r'name="csrf" value="([^"]+)"', (await http.get("/sources")).text)
        assert csrf
        await user.execute("UPDATE items SET name = 'not yet' WHERE id = %s", (ROWS,))  # the last page waits for it
        form = {"csrf": csrf[1], "source": "items", "everything": "yes"}
        await http.post("/sources/backfill", data=form)
        await until(lambda: lab.value("SELECT count(*) = %s FROM evervec.outbox WHERE forced", PAGE_SIZE))
        assert await program.end(signal.SIGTERM) == 0
        await user.rollback()
        began = await lab.value("SELECT now()")
        await lab.work()
        assert await lab.value("SELECT count(*) FROM items WHERE embedded_at >= %s", began) == PAGE_SIZE
        assert await lab.value("SELECT eligible = fresh FROM evervec.status")


@pytest.mark.parametrize(
    ("changes", "code", "told"),
    [
        ({"dashboard_address": "0.0.0.0:0"}, 2, "EVERVEC_DASHBOARD_TOKEN"),
        ({"dashboard_address": "nowhere"}, 2, "host:port"),
        (
            {"dashboard_address": "192.0.2.1:80", "dashboard_token": SecretStr(TOKEN)},
            2,
            "cannot listen on 192.0.2.1:80",
        ),
    ],
)
async def test_it_says_why_it_does_not_start(
    database: str, tmp_path: Path, changes: dict[str, Any], code: int, told: str
) -> None:
    program = Program("dashboard", settings(database, **changes), tmp_path / "log")
    async with programs(program):
        await until(partial(ended, program))
    assert program.code == code
    [line] = program.log.read_text().splitlines()
    assert told in line


async def test_a_taken_address_and_a_server_that_is_away_are_told(database: str, tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        for changed, code, told in (
            (settings(database, dashboard_address=address), 2, "in use"),
            (settings("postgresql://127.0.0.1:1/nowhere"), 3, "127.0.0.1:1"),
        ):
            program = Program("dashboard", changed, tmp_path / f"log{code}")
            async with programs(program):
                await until(partial(ended, program))
            assert program.code == code
            assert told in program.log.read_text().splitlines()[-1]


async def test_beyond_this_machine_it_asks_for_the_token(database: str, tmp_path: Path) -> None:
    async with open_lab(database):
        changes = {"dashboard_address": "0.0.0.0:0", "dashboard_token": SecretStr(TOKEN)}
        async with served(database, tmp_path / "log", **changes) as (program, url):
            near = url.replace("0.0.0.0", "127.0.0.1")
            async with httpx2.AsyncClient(base_url=near, timeout=60) as http:
                assert (await http.get("/")).headers["location"] == "/login"
                body = {"source": "items", "texts": ["x"]}
                assert (await http.post("/api/embed", json=body)).status_code == 401
                answer = await http.post("/api/embed", json=body, headers={"authorization": f"Bearer {TOKEN}"})
                assert answer.json()["dimension"] == 8
            assert TOKEN not in program.log.read_text()


async def test_listeners_are_told_apart(database: str) -> None:
    async with open_pool(database, size=1, application_name="test") as pool:
        pages = Pages(pool)
        assert await pages.listeners() == []
        first, second = await NotificationStream.open(database), await NotificationStream.open(database)
        pids = [stream.connection.info.backend_pid for stream in (first, second)]
        assert {(one.pid, one.leads) for one in await pages.listeners()} == {(pid, False) for pid in pids}
        await second.connection.execute("SELECT pg_advisory_lock(7310312410226385252)")
        assert await pages.listeners() == [(pids[1], True), (pids[0], False)]
        await second.close()
        await first.close()

        async def none_is_left() -> bool:
            return not await pages.listeners()

        await until(none_is_left)
