"""A command on a terminal of its own, as somebody sees it who sits in front of it."""

import fcntl
import os
import signal
import struct
import subprocess
import sys
import termios
from collections.abc import Mapping
from typing import NamedTuple

from tests.integration.program import clean_environment

COLUMNS = 80
LINES = 50


class Ended(NamedTuple):
    """What a command has shown when it has ended."""

    code: int
    shown: str
    complaint: str
    """Of stderr, where that is no terminal."""


class Terminal:
    """`evervec …` with a terminal of 80 columns."""

    def __init__(self, *command: str, variables: Mapping[str, str], progress: bool = False) -> None:
        """With `progress` stderr is on the terminal as well."""
        self._screen, its_end = os.openpty()
        fcntl.ioctl(its_end, termios.TIOCSWINSZ, struct.pack("HHHH", LINES, COLUMNS, 0, 0))
        self._process = subprocess.Popen(
            [sys.executable, "-m", "cli.main", *command],
            env=clean_environment(TERM="xterm-256color", **variables),
            stdin=its_end,
            stdout=its_end,
            stderr=its_end if progress else subprocess.PIPE,
        )
        os.close(its_end)
        self._shown = b""

    def type(self, text: str) -> None:
        """Type a text, with Enter where it holds a line's end."""
        os.write(self._screen, text.encode())

    def shows(self, *texts: str) -> None:
        """Wait until all these texts have been on the screen."""
        while not all(text.encode() in self._shown for text in texts):
            if not self._read():
                raise AssertionError(self._shown.decode())

    def interrupt(self) -> None:
        """Press Ctrl-C."""
        self._process.send_signal(signal.SIGINT)

    def end(self) -> Ended:
        """Wait for the end."""
        while self._read():
            pass
        _, complaint = self._process.communicate(timeout=60)
        os.close(self._screen)
        return Ended(self._process.returncode, self._shown.decode(), (complaint or b"").decode())

    def _read(self) -> bool:
        """Take what has been shown since; False when nothing will be any more."""
        try:
            some = os.read(self._screen, 65536)
        except OSError:  # how Linux says that nobody has the other end
            return False
        self._shown += some
        return bool(some)
