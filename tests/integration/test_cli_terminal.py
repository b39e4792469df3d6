"""What commands show on a terminal of 80 columns, and to whom they give way."""

import asyncio
import re
import sys
from collections.abc import AsyncIterator, Callable, Iterator

import pytest
from temporalio.client import ScheduleHandle
from temporalio.service import RPCError

from evervec.schedule import schedule_id
from tests.integration.commands import Cli, CommandProcess
from tests.integration.pipeline import Site, until
from tests.integration.program import clean_environment
from tests.integration.terminal import COLUMNS, Ended, Terminal

TABLE = "CREATE TABLE items (id bigint PRIMARY KEY, name text, description text)"
LONG_NAME = "a_table_whose_name_is_rather_long"
ESCAPES = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")


@pytest.fixture(scope="module")
def process() -> Iterator[CommandProcess]:
    with CommandProcess.running() as running:
        yield running


@pytest.fixture
async def site(database: str, temporal_address: str) -> AsyncIterator[Site]:
    async with Site.open(database, temporal_address) as opened:
        await opened.run(TABLE)
        await opened.run("SELECT evervec.watch('items', '{name,description}', model => 'stub:8')")
        yield opened


@pytest.fixture
def cli(site: Site, process: CommandProcess) -> Cli:
    return Cli(process, site.settings)


@pytest.fixture
def run(cli: Cli) -> Callable[..., Ended]:
    """A command on a terminal, to its end."""
    return lambda *command: Terminal(*command, variables=cli.variables).end()


def lines_of(shown: str) -> list[str]:
    return re.split(r"[\r\n]+", ESCAPES.sub("", shown))


async def test_a_live_status_has_rate_and_time_left_and_ends_with_ctrl_c(site: Site, cli: Cli) -> None:
    await site.run("INSERT INTO items SELECT n, 'n', 'd' FROM generate_series(1, 2000) AS n")
    await site.run("SELECT evervec.throttle('items', 50)")
    terminal = Terminal("status", "--watch", variables=cli.variables)
    async with site.running(), asyncio.timeout(120):
        await asyncio.to_thread(terminal.shows, "stub:8", "/s, ", " left")
    terminal.interrupt()
    ended = await asyncio.to_thread(terminal.end)
    assert (ended.code, ended.complaint) == (0, "")
    assert max(map(len, lines_of(ended.shown))) <= COLUMNS


async def test_a_live_status_without_a_terminal_is_lines(site: Site, cli: Cli) -> None:
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "cli.main", "status", "--watch"),
        env=clean_environment(**cli.variables),
        stdout=asyncio.subprocess.PIPE,
    )
    assert process.stdout
    async with asyncio.timeout(120):
        first = (await process.stdout.readline()).decode()
        await site.run("INSERT INTO items VALUES (1, 'a', 'b')")
        second = (await process.stdout.readline()).decode()
        process.terminate()
        assert await process.wait() == 0
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ items: 0 of 0 fresh, 0 pending, 0 failed\n", first)
    assert second.endswith(" items: 0 of 1 fresh, 1 pending, 0 failed\n")


async def test_waiting_shows_a_bar_with_rate_and_time_left(site: Site, cli: Cli) -> None:
    await site.run("INSERT INTO items SELECT n, 'n', 'd' FROM generate_series(1, 300) AS n")
    terminal = Terminal("backfill", "items", "--rate", "50", "--wait", variables=cli.variables, progress=True)
    async with asyncio.timeout(120):
        await asyncio.to_thread(terminal.shows, "0/300")
    async with site.running(), asyncio.timeout(120):
        await asyncio.to_thread(terminal.shows, "/s", "0:00:0")
        ended = await asyncio.to_thread(terminal.end)
    assert ended.code == 0, ended
    lines = lines_of(ended.shown)
    assert max(map(len, lines)) <= COLUMNS
    assert any("300/300" in line and "━" in line for line in lines)
    assert "items: 300 items enqueued" in lines


async def test_everything_fits_into_80_columns(site: Site, run: Callable[..., Ended]) -> None:
    key = "0" * 5 + "x" * 200
    await site.run("CREATE TABLE keyed (id text PRIMARY KEY, name text)")
    model = "sentence-transformers/paraphrase-multilingual-mpnet-base-v2"
    await site.run(f"SELECT evervec.watch('keyed', '{{name}}', source => '{LONG_NAME}', model => '{model}')")
    await site.run("INSERT INTO keyed VALUES (%s, 'evervec-poison'), ('1', 'b')", key)
    await site.run("UPDATE evervec.outbox SET state = 'failed', failed_at = now() - interval '3 hours', attempts = 5, "
                   "last_error = repeat('the model refuses this text ', 10) WHERE item_key <> '1'")  # fmt: skip
    for command in (
        ("status",),
        ("failures",),
        ("item", LONG_NAME, key),
        ("item", "items", "1"),
        ("verify",),
        ("doctor", "--quick"),
        ("watch", "keyed", "--source", "new", "--embedding", "e", "--text", "name", "--model", "stub:8", "--dry-run"),
    ):
        ended = await asyncio.to_thread(run, *command)
        assert ended.code in {0, 1, 2}, ended
        lines = lines_of(ended.shown)
        assert len(lines) > 1
        assert max(map(len, lines)) <= COLUMNS, lines
        assert "3 h" in ended.shown or command != ("failures",)


async def test_uninstall_asks(site: Site, cli: Cli) -> None:
    await site.run("CREATE TABLE others AS SELECT 1 AS id, 'x' AS name; ALTER TABLE others ADD PRIMARY KEY (id)")
    await site.run("SELECT evervec.watch('others', '{name}', model => 'stub:8')")
    refused = await cli("uninstall")
    assert refused.code == 2
    assert "removes evervec, and with it 2 sources (items, others) from" in refused.line
    assert "say --yes" in refused.line
    no = Terminal("uninstall", variables=cli.variables)
    no.type("n\n")
    ended = await asyncio.to_thread(no.end)
    assert (ended.code, "Remove evervec, and with it 2 sources" in ended.complaint) == (130, True)
    assert await site.value("SELECT count(*) FROM evervec.source") == 2
    yes = Terminal("uninstall", variables=cli.variables)
    yes.type("y\n")
    ended = await asyncio.to_thread(yes.end)
    assert ended.code == 0, ended
    assert await site.value("SELECT to_regnamespace('evervec') IS NULL")
    assert await site.value("SELECT count(*) FROM information_schema.columns WHERE column_name = 'embedding'") == 2


async def test_what_was_embedded_need_not_be_after_a_new_installation(site: Site, cli: Cli) -> None:
    await site.run("INSERT INTO items SELECT n, 'n', 'd' FROM generate_series(1, 3) AS n")
    async with site.running():
        await cli.ok("backfill", "--wait")
    await cli.ok("uninstall", "--yes")
    await cli.ok("init")
    watch = ("watch", "items", "--text", "name,description", "--model", "stub:8")
    assert (await cli.ok(*watch, "--dry-run", "--json")).json["fitting"] == 3
    await cli.ok(*watch)
    assert (await cli.ok("status", "--json")).json["sources"][0]["fresh"] == 3


async def test_uninstall_takes_the_schedule_along(site: Site, cli: Cli) -> None:
    schedule = site.client.get_schedule_handle(schedule_id(await site.value("SELECT evervec.instance_id()")))
    async with site.listening():
        await until(lambda: _is_there(schedule))
    assert (await cli.ok("uninstall", "--yes")).err == ""
    assert not await _is_there(schedule)


async def test_uninstall_does_without_temporal(cli: Cli) -> None:
    answer = await cli.ok("uninstall", "--yes", EVERVEC_TEMPORAL_ADDRESS="127.0.0.1:1")
    assert answer.line.startswith("note: the schedule embedding-sweeps/")
    assert "is left in Temporal" in answer.line


async def _is_there(schedule: ScheduleHandle) -> bool:
    try:
        await schedule.describe()
    except RPCError:
        return False
    return True
