"""Where the stack is, for a shell to source: a file that is there exactly while the stack is up."""

import shlex
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path


class EnvFile:
    """`NAME=value` lines, readable by nobody else. It goes with the process that wrote it, even when that is killed."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._janitor: subprocess.Popen[bytes] | None = None

    def write(self, environment: Mapping[str, str]) -> None:
        """Write it, all at once."""
        janitor = [sys.executable, "-I", "-S", str(Path(__file__).with_name("janitor.py")), str(self.path)]
        self._janitor = subprocess.Popen(janitor, stdin=subprocess.PIPE, start_new_session=True)  # noqa: S603
        draft = self.path.with_suffix(".new")
        draft.unlink(missing_ok=True)
        draft.touch(mode=0o600)
        lines = [f"{name}={shlex.quote(value)}\n" for name, value in environment.items()]
        draft.write_text("".join(lines), encoding="utf-8")
        draft.replace(self.path)

    def remove(self) -> None:
        """Remove it; nothing happens when it is not there."""
        self.path.unlink(missing_ok=True)
        if self._janitor:
            self._janitor.communicate()
            self._janitor = None
