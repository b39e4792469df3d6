"""One stack a data directory."""

import fcntl
import os
from pathlib import Path
from typing import Self

from evervec.errors import ConfigurationError


class DataDirectoryLock:
    """Held while the process lives; the system frees it however the process ends."""

    def __init__(self, data_dir: Path) -> None:
        self._file = data_dir / "lock"
        self._descriptor: int | None = None

    def acquire(self) -> Self:
        """Take it; a ConfigurationError when another process holds it, or the directory cannot be written."""
        try:
            descriptor = os.open(self._file, os.O_RDWR | os.O_CREAT, 0o600)
        except OSError as error:
            raise ConfigurationError(f"{self._file} cannot be written: {error.strerror}") from None
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            holder = os.read(descriptor, 32).decode(errors="replace").strip()
            os.close(descriptor)
            raise ConfigurationError(
                f"{self._file.parent} is in use by another evervec (process {holder}): "
                f"stop that one, or name another directory with --data-dir"
            ) from None
        os.ftruncate(descriptor, 0)
        os.write(descriptor, f"{os.getpid()}\n".encode())
        self._descriptor = descriptor
        return self

    def release(self) -> None:
        """Give it back; nothing happens when it is not held."""
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None
