"""A child process of the stack: started once, found again after its parent was killed, stopped in bounded time."""

import asyncio
import contextlib
import json
import math
import os
import signal
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import psutil

from evervec.errors import ConfigurationError

POLL_SECONDS = 0.05
LOG_LIMIT_BYTES = 10_000_000
# The start time of a process is reckoned from the wall clock, which may have been set meanwhile.
SAME_START_SECONDS = 10.0

Say = Callable[[str], None]


def quiet(_line: str) -> None:
    """Say nothing."""


class SystemUser(NamedTuple):
    """The user under whom a child runs."""

    name: str
    uid: int
    gid: int


@dataclass(frozen=True)
class Command:
    """What a child runs: an absolute path and arguments, and how it is asked to stop, politely first.

    `death_signal` is what it gets when its parent is gone.
    """

    name: str
    argv: Sequence[str]
    environment: Mapping[str, str] | None = None
    user: SystemUser | None = None
    stop_signals: Sequence[signal.Signals] = (signal.SIGTERM,)
    stop_seconds: float = 10.0
    death_signal: signal.Signals = signal.SIGTERM


class Child:
    """One child process, in a session of its own so that a terminal's Ctrl-C does not reach it.

    On Linux it gets its death signal when the thread that started it ends: start it from the main thread. Where that
    does not work, `pid_file` lets the next start find it.
    """

    def __init__(self, command: Command, *, log_file: Path, pid_file: Path) -> None:
        self.command = command
        self.log_file = log_file
        self._pid_file = pid_file
        self._process: subprocess.Popen[bytes] | None = None
        self._log_begins = 0

    @property
    def pid(self) -> int | None:
        """The process id while it runs."""
        return self._process.pid if self._process and self._process.poll() is None else None

    @property
    def running(self) -> bool:
        """Whether the process is there."""
        return self.pid is not None

    def start(self) -> None:
        """Start the process; its output is appended to the log file."""
        command = self.command
        user = command.user or SystemUser("", -1, -1)
        launcher = [sys.executable, "-I", "-S", str(Path(__file__).with_name("launch.py"))]
        arguments = [str(number) for number in (os.getpid(), int(command.death_signal), user.uid, user.gid)]
        self.log_file.parent.mkdir(parents=True, exist_ok=True)
        _rotate(self.log_file)
        with self.log_file.open("ab") as log:
            self._log_begins = log.tell()
            self._process = subprocess.Popen(  # noqa: S603 - the arguments are the stack's own
                [*launcher, *arguments, *command.argv],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env=command.environment,
                start_new_session=True,
            )
        _write_pid_file(self._pid_file, self._process.pid, command.argv)

    async def wait(self) -> int:
        """Wait until the process has ended; its return code."""
        if self._process is None:
            raise RuntimeError(f"{self.command.name} was never started")
        async for _ in poll_until(math.inf):
            if self._process.poll() is not None:
                break
        return self._process.wait()

    async def stop(self) -> None:
        """Ask it to stop, less politely each time, and kill it in the end. Nothing happens when it is not running."""
        if self._process is not None:
            await _end(self._process, self.command)
        self._pid_file.unlink(missing_ok=True)

    async def stop_orphan(self) -> bool:
        """Stop the process that an earlier run left behind; whether there was one."""
        orphan = _read_pid_file(self._pid_file)
        if orphan is None:
            return False
        await stop_process(orphan, self.command)
        self._pid_file.unlink(missing_ok=True)
        return True

    def log_tail(self, lines: int = 5) -> str:
        """The last lines that it logged since it was started; what an earlier one said is no reason."""
        try:
            with self.log_file.open("rb") as log:
                log.seek(self._log_begins)
                text = log.read().decode("utf-8", errors="replace")
        except OSError:
            return ""
        return "\n".join(text.splitlines()[-lines:])


async def stop_process(process: psutil.Process, command: Command) -> None:
    """Stop a process that is no child of this one as `command` says. It may end by itself at any moment."""
    try:
        await _end(process, command)
    except psutil.NoSuchProcess:
        return
    except psutil.AccessDenied:
        raise ConfigurationError(
            f"{command.name} still runs as another user's process {process.pid}: stop it first"
        ) from None


async def _end(process: subprocess.Popen[bytes] | psutil.Process, command: Command) -> None:
    for stop_signal in (*command.stop_signals, signal.SIGKILL):
        if not _alive(process):
            return
        process.send_signal(stop_signal)
        async for _ in poll_until(command.stop_seconds):
            if not _alive(process):
                return
    raise ConfigurationError(f"{command.name} (process {process.pid}) cannot be stopped: stop it by hand, try again")


def _alive(process: subprocess.Popen[bytes] | psutil.Process) -> bool:
    if isinstance(process, subprocess.Popen):
        return process.poll() is None
    # A zombie has ended: only its parent has not yet asked.
    return bool(process.is_running() and process.status() != psutil.STATUS_ZOMBIE)


async def poll_until(seconds: float) -> AsyncIterator[None]:
    """A tick every POLL_SECONDS, at least one, until the time is up."""
    deadline = time.monotonic() + seconds
    while True:
        yield
        if time.monotonic() >= deadline:
            return
        await asyncio.sleep(POLL_SECONDS)


def _rotate(log_file: Path) -> None:
    if log_file.exists() and log_file.stat().st_size > LOG_LIMIT_BYTES:
        log_file.replace(log_file.with_suffix(f"{log_file.suffix}.1"))


def _write_pid_file(path: Path, pid: int, argv: Sequence[str]) -> None:
    with contextlib.suppress(psutil.NoSuchProcess):
        started = psutil.Process(pid).create_time()
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps({"pid": pid, "started": started, "argv": list(argv)}), encoding="utf-8")


def _read_pid_file(path: Path) -> psutil.Process | None:
    """The process that the file names if it is still that very one, by command line and start time."""
    try:
        noted = json.loads(path.read_text(encoding="utf-8"))
        process = psutil.Process(noted["pid"])
        same_command = process.cmdline()[-len(noted["argv"]) :] == noted["argv"]
        same_start = abs(process.create_time() - noted["started"]) < SAME_START_SECONDS
    except (OSError, ValueError, KeyError, psutil.Error):
        return None
    return process if same_command and same_start else None
