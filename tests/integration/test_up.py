"""`evervec up` as its user starts it: a command of its own, stopped by signals, killed, started again."""

import contextlib
import os
import shlex
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Self
from urllib.request import urlopen

import psutil
import psycopg
import pytest
from temporalio.client import Client

from cli.stack.temporal import TemporalServer
from tests.integration.scrape_lab import free_neighbours, scrape

COME_UP_SECONDS = 90.0
STOP_SECONDS = 60.0
PARTS = {"postgres", "temporal", "listener", "worker", "dashboard"}
PREFERRED_PORTS = (54329, 7233, 8233, 8080)


def wait_until(condition: Callable[[], bool], what: str, seconds: float = COME_UP_SECONDS) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"{what} took longer than {seconds:.0f} s"
        time.sleep(0.05)


class Up:
    """A running `evervec up`."""

    def __init__(self, data_dir: Path, **variables: str) -> None:
        self.data_dir = data_dir
        self._output = data_dir.parent / "up.output"
        with self._output.open("ab") as output:
            self.process = subprocess.Popen(
                command("up", "--data-dir", str(data_dir)),
                env=environment(**variables),
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                start_new_session=True,
            )

    @property
    def env_file(self) -> Path:
        return self.data_dir / "env"

    @property
    def output(self) -> str:
        return self._output.read_text()

    def ready(self) -> Self:
        wait_until(lambda: self.env_file.exists() or self.process.poll() is not None, "coming up")
        assert self.process.poll() is None, self.output
        return self

    def environment(self) -> dict[str, str]:
        lines = self.env_file.read_text().splitlines()
        return {name: shlex.split(value)[0] for name, _, value in (line.partition("=") for line in lines)}

    def connect(self) -> psycopg.Connection:
        return psycopg.connect(self.environment()["EVERVEC_DATABASE_URL"], autocommit=True)

    def children(self) -> dict[str, psutil.Process]:
        """The parts that it runs, by name."""
        found = {}
        for child in psutil.Process(self.process.pid).children():
            with contextlib.suppress(psutil.Error):
                program = child.cmdline()
                found[program[-1] if "cli.main" in program else Path(*program[:1]).name] = child
        return {name: child for name, child in found.items() if name in PARTS}

    def stop(self, stop_signal: signal.Signals = signal.SIGINT) -> int:
        """Send a signal to the whole process group, as a terminal does."""
        os.killpg(self.process.pid, stop_signal)
        return self.process.wait(STOP_SECONDS)

    def kill(self) -> None:
        """End it without a chance to tidy up."""
        self.process.kill()
        self.process.wait(STOP_SECONDS)


def command(*arguments: str) -> list[str]:
    return [sys.executable, "-P", "-m", "cli.main", *arguments]


def environment(**variables: str) -> Mapping[str, str]:
    inherited = {name: value for name, value in os.environ.items() if not name.startswith(("EVERVEC_", "PG"))}
    return inherited | {"EVERVEC_MODEL": "stub:8"} | variables


def has_ended(process: psutil.Process) -> bool:
    try:
        return not process.is_running() or process.status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True


@pytest.fixture
def data_dir(stack_dir: Path, request: pytest.FixtureRequest) -> Path:
    home = stack_dir / str(request.node.name)
    home.mkdir(mode=0o755)
    return home / "data"


@pytest.fixture
def start(data_dir: Path) -> Iterator[Callable[..., Up]]:
    started: list[Up] = []

    def start_up(**variables: str) -> Up:
        started.append(Up(data_dir, **variables))
        return started[-1]

    yield start_up
    for up in started:
        if up.process.poll() is None:
            up.stop()


def test_comes_up_on_busy_ports_and_stops_on_ctrl_c(start: Callable[..., Up]) -> None:
    with contextlib.ExitStack() as busy:
        for port in PREFERRED_PORTS:
            # Where another process has it already, it is busy all the same.
            with contextlib.suppress(OSError):
                busy.enter_context(socket.create_server(("127.0.0.1", port)))
        up = start().ready()
        assert all(f"port {port} is taken" in up.output for port in PREFERRED_PORTS)
    assert up.env_file.stat().st_mode & 0o777 == 0o600
    variables = up.environment()
    assert set(variables) == {
        "EVERVEC_DATABASE_URL",
        "EVERVEC_TEMPORAL_ADDRESS",
        "EVERVEC_TEMPORAL_NAMESPACE",
        "EVERVEC_DASHBOARD_URL",
    }
    with urlopen(variables["EVERVEC_DASHBOARD_URL"], timeout=30) as answer:
        assert b"Nothing is watched yet" in answer.read()
    with up.connect() as connection:
        row = connection.execute("SELECT current_database(), (SELECT count(*) FROM evervec.source)").fetchone()
    assert row == ("evervec", 0)
    children = up.children()
    assert set(children) == PARTS

    second = subprocess.run(
        command("up", "--data-dir", str(up.data_dir)), env=environment(), capture_output=True, text=True, check=False
    )
    assert second.returncode == 2
    assert "is in use by another evervec" in second.stderr
    assert len(second.stderr.splitlines()) == 1

    assert up.stop(signal.SIGINT) == 0
    assert not up.env_file.exists()
    assert all(map(has_ended, children.values()))


@pytest.mark.parametrize("end", [Up.stop, Up.kill], ids=["after_ctrl_c", "after_kill_9"])
def test_starts_again_on_the_same_directory(start: Callable[..., Up], end: Callable[[Up], object]) -> None:
    up = start().ready()
    with up.connect() as connection:
        connection.execute("CREATE TABLE kept AS SELECT 42 AS answer")
    children = up.children()
    end(up)
    wait_until(lambda: not up.env_file.exists(), "removing the env file", seconds=10)

    again = start().ready()
    with again.connect() as connection:
        assert connection.execute("SELECT answer FROM kept").fetchone() == (42,)
    assert set(again.children()) == set(children)
    assert all(map(has_ended, children.values()))
    assert again.stop(signal.SIGTERM) == 0


def test_starts_what_died_again(start: Callable[..., Up]) -> None:
    up = start().ready()
    before = up.children()
    for child in before.values():
        child.kill()

    def mended() -> bool:
        now = up.children()
        return set(now) == set(before) and all(now[name].pid != before[name].pid for name in now)

    wait_until(mended, "starting what died again")
    parts = ("PostgreSQL", "Temporal", "listener", "worker", "dashboard")
    wait_until(lambda: all(up.output.count(f"started {part}") >= 2 for part in parts), "the return of all of them")
    with up.connect() as connection:
        assert connection.execute("SELECT count(*) FROM evervec.source").fetchone() == (0,)
    assert up.output.count("was ended by SIGKILL; starting it again") == len(before)
    assert up.stop() == 0


async def test_uses_the_servers_that_the_environment_names(
    start: Callable[..., Up], database: str, temporal: TemporalServer
) -> None:
    variables = {"EVERVEC_DATABASE_URL": database, "EVERVEC_TEMPORAL_ADDRESS": temporal.address}
    first, second = free_neighbours()
    up = start(**variables, EVERVEC_MODEL="nobody/has-this-model", EVERVEC_METRICS_ADDRESS=first).ready()
    assert up.environment().items() >= variables.items()
    assert set(up.children()) == {"listener", "worker", "dashboard"}
    assert "evervec_listener_role" in await scrape(first)
    assert "evervec_worker_ready" in await scrape(second)
    assert up.stop() == 0
    assert await Client.connect(temporal.address)


@pytest.mark.parametrize(
    ("variables", "code", "told"),
    [
        ({"EVERVEC_DATABASE_URL": "postgresql://127.0.0.1:1/nowhere"}, 3, "127.0.0.1:1"),
        ({"EVERVEC_TEMPORAL_ADDRESS": "127.0.0.1:1"}, 3, "127.0.0.1:1"),
        ({"EVERVEC_DEBOUNCE_MS": "soon"}, 2, "EVERVEC_DEBOUNCE_MS"),
    ],
)
def test_says_why_it_cannot_come_up(data_dir: Path, variables: dict[str, str], code: int, told: str) -> None:
    up = subprocess.run(
        command("up", "--data-dir", str(data_dir)),
        env=environment(**variables),
        capture_output=True,
        text=True,
        check=False,
        timeout=COME_UP_SECONDS,
    )
    assert up.returncode == code
    assert told in up.stderr
    assert len(up.stderr.splitlines()) == 1
    assert not (data_dir / "env").exists()
